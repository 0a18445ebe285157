"""The seam between a method and the trainer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from hf_dfml.pool.black_box.pool import BlackBoxPool, QueryCount
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.sources.prefetch import WORKERS
from hf_dfml.utils.checkpoint import Tree, load_tree, save_tree
from hf_dfml.utils.processes import ALONE, Processes
from hf_dfml.utils.progress import progress


class SetupInterruptedError(Exception):
    """A setup was asked to stop between two of its parts; those that are done are kept in `Context.scratch`."""


@dataclass
class Context:
    """What the trainer hands to a method.

    Attributes:
        generator: the one source of randomness of the run, on the CPU; its state is part of every checkpoint.
        device: where the tensors live.
        seed: the run's seed, from which `fork` derives streams that must not depend on the order of the work.
        step: number of steps done.
        scratch: folder for pieces of long setups, so that an interrupted setup goes on where it was; None keeps none.
        cache: folder of pieces that other runs can use as well; None keeps none.
        processes: among which a method divides its work.
        queries: what black boxes were asked; the kept parts of a setup remember how far it was at their end.
        interrupted: whether the run should stop, in which all processes agree; asked between two parts of a setup.
        autocast: the precision of recovery and replay.
        begin: called before a file is written; until then a run may be refused, and leaves its folder as it was.
    """

    generator: torch.Generator
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    step: int = 0
    scratch: Path | None = None
    cache: Path | None = None
    processes: Processes = ALONE
    queries: QueryCount | None = None
    interrupted: Callable[[], bool] = lambda: False
    autocast: Callable[[], AbstractContextManager] = nullcontext
    begin: Callable[[], None] = lambda: None

    def memo(self, name: str, compute: Callable[[], Tree]) -> Tree:
        """`compute()`, or what it gave before the run was interrupted. It must not draw from `generator`."""
        if self.scratch is None:
            return compute()
        folder = self.scratch / name
        if not self.processes.once(folder.exists):
            tree = compute()
            self.begin()
            asked = self.queries.state_dict() if self.queries else {}
            self.processes.once(lambda: save_tree(folder, {"part": tree, "queries": asked}))
        # Read back even when just computed, so that a resumed run sees the very same values.
        kept = load_tree(folder, self.device)
        if self.queries:
            self.queries.load_state_dict(kept["queries"])
        return kept["part"]

    def cached(self, what: Mapping[str, Any], compute: Callable[[], Tree]) -> Tree:
        """`compute()`, or what it gave to another run with this `cache` and the same `what` (JSON)."""
        if self.cache is None:
            return compute()
        folder = self.cache / hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
        if not folder.exists():
            save_tree(folder, compute())
        return load_tree(folder, self.device)

    def map_members(
        self, name: str, compute: Callable[[int], Tree], pool: ModelPool | BlackBoxPool, description: str
    ) -> list[Tree]:
        """`compute(index)` of each member of the pool, divided among the processes and each kept as by `memo`.

        Raises:
            SetupInterruptedError: if the run is to stop before the last of them.
        """
        indices, together = range(len(pool)), self.processes.count
        prefetch = pool.prefetch if isinstance(pool, ModelPool) else lambda _: None  # There is nothing to fetch.
        alone = replace(self, processes=ALONE)

        def of_member(index: int) -> Tree:
            prefetch(indices[index + together :: together][:WORKERS])
            return alone.memo(f"{name}-{index:04d}", partial(compute, index))

        results: list[Tree] = []
        with progress(description=description, total=len(pool), unit="member") as bar:
            for first in indices[::together]:
                if first and self.interrupted():
                    raise SetupInterruptedError
                results += self.processes.map(of_member, indices[first : first + together])
                bar.update(len(results) - first)
        return results


Step = Callable[[Any, Context], dict[str, float]]


def in_mixed_precision(step: Step) -> Step:
    """A method's `step` in the precision that the run was asked for."""

    @wraps(step)
    def cast(method: Any, context: Context) -> dict[str, float]:
        with context.autocast():
            return step(method, context)

    return cast


class Method(Protocol):
    """A system as the trainer sees it.

    All processes of a run call `setup` and `step` alike, with the same generator, and end them in the same state.

    Attributes:
        name: how tables call it.
        data_free: whether it learns without any real image (references that see data say False).
        config: its frozen dataclass of hyper-parameters.
        model: the meta-model; its weights are the product.
        num_steps: how many steps make a run.

    A class may also name, as `eval_head` and `eval_bn`, the head and the batch norm that suit its meta-model: those of
    its validation and of the first rows of its evaluation. Without them they are `finetune` and `support`, as in the
    papers. One that learns from answers alone says `black_boxes = True`; no other is given a `BlackBoxPool`. It raises
    `QueryBudgetError` (or passes on a `ServiceError`) from its setup, or from a step that it leaves no trace of, so
    that the run can go on with a larger budget.
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
        """The meta-model as it stands, ready for an evaluation. Draws nothing from `context.generator`."""
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
            "(recipes/bidf_mkd.py) or pool distillation, or give the members themselves."
        )
