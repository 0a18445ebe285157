"""Task embeddings by what images show: the Fisher information of a probe's filters, standardised over a pool."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.pool.teacher import Teacher


def filter_fisher(probe: Teacher, images: Tensor, generator: torch.Generator, *, chunk_size: int = 25) -> Tensor:
    r"""Embed a task by the Fisher information of the scale of each convolution's filters.

    :math:`F_k = \mathbb E_x\, d_k^2 / \sum_j d_j^2` with :math:`d_k = \partial_{s_k} \log p(y|x)` at :math:`s_k = 1`
    for a label drawn from :math:`p(y|x)`, where :math:`s_k` multiplies the k-th output channel of a convolution and
    :math:`p` is the probe's own classifier (that of ImageNet, for a public backbone). Each image counts the same: in
    the plain expectation those few decide on which the classifier is least sure (docs/results/mechanisms.md). No head
    is fitted to the task: one that fits a task's images perfectly has no Fisher information left, and so all tasks are
    seen through the same outputs.

    One backward pass gives all images' derivatives, where those of every weight (Task2Vec, `fisher_embedding`) take
    one for each image.

    Args:
        probe: a frozen network with convolutions, the same for every task.
        images: `(B, 3, H, W)` in [0, 1].
        generator: draws the labels.
        chunk_size: images in memory at a time.

    Returns:
        `(D,)`, one non-negative number an output channel; they sum to 1.

    Raises:
        ValueError: if the probe has no convolutions.
    """
    layers = [module for module in probe.network.modules() if isinstance(module, nn.Conv2d)]
    if not layers:
        raise ValueError(
            f"The probe {probe.entry.id} has no convolutions, whose filters embed a task: name a convolutional "
            "network, or choose embedding task2vec."
        )
    total = torch.zeros(sum(layer.out_channels for layer in layers), device=images.device)
    for part in images.split(chunk_size):
        scales: list[Tensor] = []

        def scaled(_: nn.Module, inputs: Any, output: Tensor, scales: list[Tensor] = scales) -> Tensor:
            scales.append(torch.ones(*output.shape[:2], 1, 1, device=output.device, requires_grad=True))
            return output * scales[-1]

        hooks = [layer.register_forward_hook(scaled) for layer in layers]
        try:
            with torch.enable_grad():
                logits = probe(part)
        finally:
            for hook in hooks:
                hook.remove()
        drawn = torch.multinomial(logits.detach().float().softmax(-1).cpu(), 1, generator=generator).squeeze(1)
        loss = F.cross_entropy(logits, drawn.to(logits.device), reduction="sum")
        gradients = torch.autograd.grad(loss, scales)
        squares = torch.cat([gradient.flatten(1) for gradient in gradients], 1).square()
        total += (squares / squares.sum(1, keepdim=True).clamp_min(1e-30)).sum(0)
    return total / len(images)


def standardised_dissimilarities(embeddings: Tensor) -> Tensor:
    """Half of 1 minus the correlation of embeddings whose every component was standardised over the pool.

    Components are taken as logarithms first. What all tasks have in common, which is most of it, is so left out.

    Args:
        embeddings: `(M, D)`, non-negative.

    Returns:
        `(M, M)`, symmetric, zero on the diagonal, in [0, 1].
    """
    logs = embeddings.double().cpu().clamp_min(1e-30).log()
    values = (logs - logs.mean(0)) / logs.std(0, correction=0).clamp_min(1e-12)
    directions = F.normalize(values - values.mean(1, keepdim=True), dim=1)
    return ((1 - directions @ directions.T) / 2).fill_diagonal_(0).clamp_(0, 1)
