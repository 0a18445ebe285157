"""The seam between a method and the trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from hf_dfml.pool.black_box import BlackBoxPool
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.utils.checkpoint import Tree, load_tree, save_tree


@dataclass
class Context:
    """What the trainer hands to a method.

    Attributes:
        generator: the one source of randomness of the run, on the CPU; its state is part of every checkpoint.
        device: where the tensors live.
        seed: the run's seed, from which `fork` derives streams that must not depend on the order of the work.
        step: number of steps done.
        scratch: folder for pieces of long setups, so that an interrupted setup goes on where it was; None keeps none.
    """

    generator: torch.Generator
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    step: int = 0
    scratch: Path | None = None

    def memo(self, name: str, compute: Callable[[], Tree]) -> Tree:
        """`compute()`, or what it gave before the run was interrupted. It must not draw from `generator`."""
        if self.scratch is None:
            return compute()
        folder = self.scratch / name
        if not folder.exists():
            save_tree(folder, compute())
        # Read back even when just computed, so that a resumed run sees the very same values.
        return load_tree(folder, self.device)


class Method(Protocol):
    """A system as the trainer sees it.

    Attributes:
        name: how tables call it.
        data_free: whether it learns without any real image (references that see data say False).
        config: its frozen dataclass of hyper-parameters.
        model: the meta-model; its weights are the product.
        num_steps: how many steps make a run.

    A class may also name, as `exam_head` and `exam_bn`, the head and the batch norm that suit its meta-model: those of
    its validation and of the first rows of its exam. Without them they are the papers' `finetune`, and `support`. One
    that learns from answers alone says `black_boxes = True`; no other is given a `BlackBoxPool`. It raises
    `QueryBudgetError` (or passes on a `ServiceError`) from a step that it leaves no trace of, so that the run can go
    on with a larger budget.
    """

    name: str
    data_free: bool
    config: Any
    model: nn.Module
    num_steps: int

    def setup(self, pool: ModelPool | BlackBoxPool, context: Context) -> None:
        """Look at the pool once, before the first step; not repeated when a run is resumed."""
        ...

    def step(self, context: Context) -> dict[str, float]:
        """One outer step; its metrics."""
        ...

    def snapshot(self, context: Context) -> nn.Module:
        """The meta-model as it stands, ready for an exam. Draws nothing from `context.generator`."""
        ...

    def state_dict(self) -> Tree:
        """Everything that later steps depend on."""
        ...

    def load_state_dict(self, state: Tree, pool: ModelPool | BlackBoxPool, context: Context) -> None:
        """Stand where `state_dict` was taken, without `setup`."""
        ...

    def pictures(self, folder: Path) -> list[Path]:
        """Draw what a person would rather look at into `folder`; the files written."""
        ...


def refuse_black_boxes(method: Any) -> None:
    """Make sure that a method (or its class) may be given a pool of black boxes.

    Raises:
        ValueError: if the method cannot learn from answers alone.
    """
    if not getattr(method, "black_boxes", False):
        name = method.__name__ if isinstance(method, type) else method.name
        raise ValueError(
            f"{name} needs the weights of its teachers, and a black-box pool gives answers only: use BiDf-MKD "
            "(recipes/bidf_mkd.py), or give the members themselves."
        )
