"""The regression network of the sinusoid benchmark."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class Mlp(nn.Module):
    """Hidden layers with ReLU and a linear output (2 x 50 in DRO, section 5.2, as in MAML's sinusoids).

    Args:
        hidden: width of each hidden layer.
        inputs: number of inputs.
        outputs: number of outputs.
    """

    def __init__(self, hidden: tuple[int, ...] = (50, 50), inputs: int = 1, outputs: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise((inputs, *hidden)))
        self.act = nn.ReLU()
        self.fc = nn.Linear(hidden[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, inputs)` -> `(B, outputs)`."""
        for layer in self.layers:
            x = self.act(layer(x))
        return self.fc(x)
