"""Task embeddings: the diagonal Fisher information of a probe network on a task's data (Task2Vec, used by TGR)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_dfml.learning.per_sample import squared_gradients
from hf_dfml.networks.functional import with_parameters
from hf_dfml.networks.info import network_info
from hf_dfml.pool.teacher import Teacher
from hf_dfml.utils.images import to_unit

PIXELS_AT_ONCE = 64 * 64 * 64
"""Pixels (of one channel) of the images that are in memory at a time."""


def fisher_embedding(
    probe: Teacher,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    *,
    head_epochs: int = 10,
    head_lr: float = 4e-4,
    chunk_size: int | None = None,
) -> Tensor:
    r"""Embed a task by what its data says about the weights of a probe network's feature extractor.

    As in Task2Vec (Achille et al., ICCV 2019; TGR, ICML 2024, task embedding): a linear head is fitted on the probe's
    features, labels are *sampled* from the fitted model, and the squared per-sample gradients of the log-likelihood
    are averaged over the images and over each filter,
    :math:`F = \mathbb E_x \mathbb E_{y \sim p(y|x)} (\nabla_w \log p_w(y|x))^2`. The released TGR code keeps the
    probe's own 1000-way head, squares the gradient of a whole batch and counts batch-norm and head parameters too;
    none of that is repeated here.

    Args:
        probe: a frozen network, the same for every task; only its features are used.
        images: `(B, 3, H, W)` in [0, 1].
        labels: `(B,)` class indices.
        generator: draws the head's batches and the sampled labels.
        head_epochs: passes of Adam over the cached features to fit the head.
        head_lr: learning rate of these passes.
        chunk_size: images that are in memory at a time; by default as many as fit in a gigabyte.

    Returns:
        `(D,)`, one non-negative number a filter (or output unit) of each weight tensor.
    """
    with torch.no_grad():
        features = probe.features(images)
    weight, bias = _fit_head(features, labels, generator, head_epochs, head_lr)
    probabilities = F.softmax(F.linear(features, weight, bias), dim=-1).cpu()
    sampled = torch.multinomial(probabilities, 1, generator=generator).squeeze(1).to(images.device)
    # The layers before the classifier: neither batch norm, nor biases, nor the head.
    info = network_info(probe.network)
    params = {
        f"network.{name}": parameter.detach()
        for name, parameter in probe.network.named_parameters()
        if parameter.dim() >= 2 and not info.in_classifier(name)
    }
    size = chunk_size or images_at_once(images)
    total = {name: torch.zeros(len(value), device=value.device) for name, value in params.items()}
    for part, answers in zip(images.split(size), sampled.split(size), strict=True):
        for name, squares in _squares(probe, params, weight, bias, part, answers).items():
            total[name] += squares
    return torch.cat(list(total.values())) / len(images)


def _squares(
    probe: Teacher, params: dict[str, Tensor], weight: Tensor, bias: Tensor, images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Squared per-sample gradients of the negative log-likelihood: mean over each filter, sum over the images."""

    def losses(some: Tensor) -> Tensor:
        features = with_parameters(probe, params, lambda: probe.features(some))
        return F.cross_entropy(F.linear(features, weight, bias), labels, reduction="none")

    found = squared_gradients(losses, params, to_unit(images))
    rest = {name: value for name, value in params.items() if name not in found}
    if rest:
        found |= _squares_by_vmap(probe, rest, weight, bias, images, labels)
    return found


def _squares_by_vmap(
    probe: Teacher, params: dict[str, Tensor], weight: Tensor, bias: Tensor, images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """The same for weights of any kind, with a copy of them for each image."""

    def negative_log_likelihood(current: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        features = with_parameters(probe, current, lambda: probe.features(image[None]))
        return F.cross_entropy(F.linear(features, weight, bias), label[None])

    per_sample = torch.func.vmap(torch.func.grad(negative_log_likelihood), in_dims=(None, 0, 0))
    gradients = per_sample(params, images, labels)
    return {name: gradient.flatten(2).square().mean(2).sum(0) for name, gradient in gradients.items()}


def images_at_once(images: Tensor) -> int:
    """So that what a backward pass keeps of them stays below a gigabyte, for networks such as ResNet-34."""
    return max(1, min(64, PIXELS_AT_ONCE // (images.shape[-2] * images.shape[-1])))


def dissimilarities(embeddings: Tensor) -> Tensor:
    """Scaled cosine distance between all pairs of task embeddings (Task2Vec, Eq. 5).

    Args:
        embeddings: `(M, D)`, non-negative.

    Returns:
        `(M, M)`, symmetric, zero on the diagonal, at most 1.
    """
    count = len(embeddings)
    matrix = torch.zeros(count, count, dtype=torch.float64)
    values = embeddings.double().cpu()
    # Relative: Fisher values are often far below any fixed epsilon, which would then decide the distance alone.
    epsilon = 1e-8 * values.max().clamp_min(torch.finfo(torch.float64).tiny)
    for row in range(count):
        total = values[row] + values + epsilon
        matrix[row] = 1 - F.cosine_similarity(values[row] / total, values / total, dim=-1)
    matrix = (matrix + matrix.T) / 2
    return matrix.fill_diagonal_(0).clamp_(0, 1)


def _fit_head(
    features: Tensor, labels: Tensor, generator: torch.Generator, epochs: int, lr: float
) -> tuple[Tensor, Tensor]:
    classes = int(labels.max()) + 1
    weight = torch.zeros(classes, features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(classes, device=features.device, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr, weight_decay=1e-4)
    for _ in range(epochs):
        for batch in torch.randperm(len(features), generator=generator).to(features.device).split(64):
            loss = F.cross_entropy(F.linear(features[batch], weight, bias), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weight.detach(), bias.detach()
