"""Task embeddings: the diagonal Fisher information of a probe network on a task's data (Task2Vec, used by TGR)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_dfml.networks.functional import with_parameters
from hf_dfml.networks.info import network_info
from hf_dfml.pool.teacher import Teacher


def fisher_embedding(
    probe: Teacher,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    *,
    head_epochs: int = 10,
    head_lr: float = 4e-4,
    chunk_size: int = 64,
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
        chunk_size: images whose gradients are held in memory at a time.

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

    def negative_log_likelihood(current: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        features = with_parameters(probe, current, lambda: probe.features(image[None]))
        return F.cross_entropy(F.linear(features, weight, bias), label[None])

    per_sample = torch.func.vmap(torch.func.grad(negative_log_likelihood), in_dims=(None, 0, 0))
    total = {name: torch.zeros(len(value), device=value.device) for name, value in params.items()}
    for part in torch.arange(len(images), device=images.device).split(chunk_size):
        gradients = per_sample(params, images[part], sampled[part])
        for name, gradient in gradients.items():
            total[name] += gradient.flatten(2).square().mean(2).sum(0)
    return torch.cat(list(total.values())) / len(images)


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
