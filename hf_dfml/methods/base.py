"""The seam between a method and the trainer."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_dfml.evaluation.heads.base import PAPERS_INNER_LOOP, Adaptation
from hf_dfml.methods.paper import Paper
from hf_dfml.pool.queries import QueryCount
from hf_dfml.pool.sources.prefetch import WORKERS
from hf_dfml.pool.teacher_pool import TeacherPool
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

    def say(self, sentence: str) -> None:
        """Print a sentence, once for all processes."""
        self.processes.once(partial(print, sentence, flush=True))

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
        self, name: str, compute: Callable[[int], Tree], pool: TeacherPool, description: str
    ) -> list[Tree]:
        """`map_parts` of the members of a pool, whose weights are fetched ahead of their turn."""
        indices, together = range(len(pool)), self.processes.count

        def of_member(index: int) -> Tree:
            pool.prefetch(indices[index + together :: together][:WORKERS])
            return compute(index)

        return self.map_parts(name, of_member, len(pool), description, "member")

    def map_parts(
        self, name: str, compute: Callable[[int], Tree], count: int, description: str, unit: str
    ) -> list[Tree]:
        """`compute(index)` of `count` parts, divided among the processes and each kept as by `memo`.

        Raises:
            SetupInterruptedError: if the run is to stop before the last of them.
        """
        together, alone = self.processes.count, replace(self, processes=ALONE)

        def part(index: int) -> Tree:
            return alone.memo(f"{name}-{index:04d}", partial(compute, index))

        results: list[Tree] = []
        with progress(description=description, total=count, unit=unit) as bar:
            for first in range(0, count, together):
                if first and self.interrupted():
                    raise SetupInterruptedError
                results += self.processes.map(part, range(first, min(first + together, count)))
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


@dataclass(frozen=True)
class NoOptions:
    """The config of a method that has nothing to set."""


class Method(ABC):
    """A system as the trainer sees it. A method must define `setup` and `step`; everything else has a default.

    All processes of a run call `setup` and `step` alike, with the same generator, and end them in the same state.

    One that learns from answers alone says `black_boxes = True`; no other is given a pool of `answers_only`. It raises
    `QueryBudgetError` (or passes on a `ServiceError`) from its setup, or from a step that it leaves no trace of, so
    that the run can go on with a larger budget.

    Args:
        config: hyper-parameters, an instance of `Config`.
        model: the meta-model, on its device.

    Attributes:
        name: how tables call it; by default the name of the class.
        data_free: whether it learns without any real image (references that see data say False).
        unlabelled: whether it learns from real images without labels as well.
        paper: where it was published; None for one that was not.
        Config: frozen dataclass of its hyper-parameters; each field is an option of the command line.
        eval_head: the head that suits its meta-model, of its validation and of the first rows of its evaluation.
        eval_bn: likewise the batch norm.
        eval_representation: likewise what a head on features works with.
        eval_inner_loop: likewise the steps and the learning rate of a head that takes steps; those of meta-training
            where there are such.
        black_boxes: whether it learns from answers alone.
        config: its hyper-parameters.
        model: the meta-model; its weights are the product.
        num_steps: how many steps make a run; by default `config.steps`, or 0 without such an option.
        pool: the teachers; a `setup` whose `step` needs them keeps them here, as the default `load_state_dict` does.
    """

    name: str = ""
    data_free: bool = True
    unlabelled: bool = False
    paper: Paper | None = None
    Config: Any = NoOptions
    eval_head: Any = "finetune"
    eval_bn: Any = "support"
    eval_representation: Any = "features"
    eval_inner_loop: tuple[int, float] = PAPERS_INNER_LOOP
    black_boxes: bool = False

    config: Any
    pool: TeacherPool

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def __init__(self, config: Any, model: nn.Module) -> None:
        self.config = config
        self.model = model
        self.num_steps: int = getattr(config, "steps", 0)

    @classmethod  # noqa: B027  (most methods name nothing)
    def check_names(cls, config: Any) -> None:
        """Make sure that what the options name exists; called before a member of the pool is opened.

        Raises:
            FileNotFoundError: if it does not.
        """
        return None

    def check_model(self) -> None:  # noqa: B027  (most methods take any network)
        """Make sure that the meta-model can learn by this method; called before any work.

        Raises:
            ValueError: if it cannot.
        """
        return None

    @property
    def adaptation(self) -> Adaptation:
        """How its meta-model is adapted by default."""
        steps, lr = self.eval_inner_loop
        return Adaptation(self.eval_bn, self.eval_head, steps, lr, representation=self.eval_representation)

    @classmethod
    def config_for(cls, config: Any, pool: TeacherPool) -> Any:
        """`config` without what this pool does not allow, such as gradients through members that only answer.

        Raises:
            ValueError: if an option that was asked for is impossible with this pool.
        """
        return config

    @classmethod
    def kept_bytes(cls, config: Any, pool: TeacherPool, size: int) -> int:
        """Bytes of images that are kept between two steps, and are part of every checkpoint, at most.

        Args:
            config: hyper-parameters.
            pool: the teachers.
            size: height and width of the images.
        """
        return 0

    @abstractmethod
    def setup(self, pool: TeacherPool, context: Context) -> None:
        """Look at the pool once, before the first step; not repeated when a run is resumed."""

    @abstractmethod
    def step(self, context: Context) -> dict[str, float]:
        """One outer step; its metrics."""

    def snapshot(self, context: Context) -> nn.Module:
        """A copy of the meta-model as it stands, ready for an evaluation. Draws nothing from `context.generator`."""
        return copy.deepcopy(self.model).eval()

    def state_dict(self) -> Tree:
        """Everything that later steps depend on; by default the meta-model."""
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state: Tree, pool: TeacherPool, context: Context) -> None:
        """Stand where `state_dict` was taken, without `setup`."""
        self.model.load_state_dict(state["model"])
        self.pool = pool

    def pictures(self, folder: Path) -> list[Path]:
        """Draw what a person would rather look at into `folder`; the files written."""
        return []


def refuse_black_boxes(method: Method | type[Method]) -> None:
    """Make sure that a method (or its class) may be given a pool of black boxes.

    Raises:
        ValueError: if the method cannot learn from answers alone.
    """
    if not method.black_boxes:
        name = method.__name__ if isinstance(method, type) else method.name
        raise ValueError(
            f"{name} needs the weights of its teachers, and a black-box pool gives answers only: use BiDf-MKD "
            "(recipes/bidf_mkd.py) or pool distillation, or give the members themselves."
        )
