"""The outer step: gradients by name into an optimiser, and batch-norm statistics for the finished model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from hf_dfml.networks.functional import normalise


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters of `model` by name (the tensors themselves)."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def apply_gradients(optimizer: torch.optim.Optimizer, model: nn.Module, gradients: dict[str, Tensor]) -> None:
    """One step of `optimizer` with gradients given by parameter name.

    Raises:
        FloatingPointError: if a gradient is not finite; the weights are left as they were.
    """
    norm = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients.values()]).sum()
    if not torch.isfinite(norm):
        raise FloatingPointError("The meta-gradient is not finite (NaN or infinity): lower --outer_lr or --inner_lr.")
    for name, parameter in model.named_parameters():
        parameter.grad = gradients.get(name)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def calibrate_batch_norm(model: nn.Module, images: Tensor, batch_size: int = 100) -> nn.Module:
    """Set the running statistics of `model` to those of `images` (`(B, 3, H, W)` in [0, 1]) and return it.

    Every batch is of images from all of them: batches of one class would lose the variance between classes.
    Meta-training uses batch statistics only, so the stored ones would otherwise be those of the initialisation.
    """
    pixels, batches = normalise(model, images), max(1, -(-len(images) // batch_size))
    update_bn([pixels[first::batches] for first in range(batches)], model)
    return model


def one_cycle(done: float, *, warmup: float = 0.3, start: float = 0.04) -> float:
    """Learning rate of the one-cycle schedule as a share of its peak (Smith and Topin, arXiv 1708.07120).

    A cosine from `start` up to 1 and another one down to 0, as PyTorch's `OneCycleLR` draws it. It is a function of
    the position alone, so that a resumed run has nothing to restore.

    Args:
        done: share of the run that is over, in [0, 1].
        warmup: share of the run in which the learning rate rises.
        start: the first learning rate.

    Examples:
        >>> [round(one_cycle(done), 2) for done in (0.0, 0.15, 0.3, 0.65, 1.0)]
        [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    if done < warmup:
        return start + (1 - start) * (1 - math.cos(math.pi * done / warmup)) / 2
    return (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2
