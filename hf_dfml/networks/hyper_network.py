"""A network whose output is the weights of another: one linear map a layer from an embedding of the task."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class HyperNetwork(nn.Module):
    r"""Predicts all parameters of a network from a task embedding, f_phi(e).

    Each layer of the target network has one linear map from the embedding to all of its parameters. The maps are
    stacked in one matrix `W` `(P, D)` and bias `b` `(P,)`, which is the same function in one multiplication:
    :math:`f_\phi(e) = We + b`.

    Source: DRO (Wang et al., UAI 2022), section 5.2.

    Args:
        shapes: shape of each parameter of the target network by name.
        embedding_dim: D.
        generator: draws the initial maps; the global stream by default.

    Examples:
        >>> hyper = HyperNetwork({"fc.weight": torch.Size([5, 8]), "fc.bias": torch.Size([5])}, embedding_dim=4)
        >>> hyper.num_targets, hyper(torch.zeros(4)).shape, hyper.split(hyper(torch.zeros(4)))["fc.bias"].shape
        (45, torch.Size([45]), torch.Size([5]))
    """

    def __init__(
        self, shapes: Mapping[str, torch.Size], embedding_dim: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        self.num_targets = sum(shape.numel() for shape in self.shapes.values())
        self.embedding_dim = embedding_dim
        self.weight = nn.Parameter(torch.empty(self.num_targets, embedding_dim))
        self.bias = nn.Parameter(torch.empty(self.num_targets))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Columns of about unit length in `W`, zeros in `b`.

        torch's default for a linear layer depends on D alone, so that the largest eigenvalue of `W^T W` grows with P
        (61 for the 7,861 parameters of DRO's conv4) and gradient descent on the embeddings diverges at the paper's
        learning rate of 0.03; here it starts near 1 whatever the network.
        """
        with torch.no_grad():
            self.weight.normal_(0, 1 / math.sqrt(self.num_targets), generator=generator)
            self.bias.zero_()

    def forward(self, embedding: Tensor) -> Tensor:
        """All parameters `(..., P)`, flat, from embeddings `(..., D)`."""
        return torch.nn.functional.linear(embedding, self.weight, self.bias)

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Parameters by name from the flat vector `(P,)`."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}

    def flatten(self, params: Mapping[str, Tensor]) -> Tensor:
        """The flat vector `(P,)` of parameters by name: the inverse of `split`."""
        return torch.cat([params[name].reshape(-1) for name in self.shapes])
