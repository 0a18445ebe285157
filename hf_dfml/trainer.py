"""The loop: steps of a method with progress, trackers, validation, checkpoints, exact resume and a graceful stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from hf_dfml.methods.base import Context, Method, refuse_black_boxes
from hf_dfml.pool.black_box import BlackBoxPool, QueryBudgetError, ServiceError
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.utils.checkpoint import load_tree, remove_folder, save_tree
from hf_dfml.utils.progress import progress
from hf_dfml.utils.seeding import fork

Validation = Callable[[nn.Module], dict[str, float]]
"""Scores a snapshot on the validation classes; the checkpoint with the largest mean of its values is chosen."""


@dataclass(frozen=True)
class TrainerConfig:
    """Where a run lives, how often it looks up from its work, and when it stops."""

    output_dir: str = field(
        default="runs/dfml", metadata={"help": "Folder of the run: checkpoints, model, card, results."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of everything random in the run."})
    validate_every: int = field(default=20, metadata={"help": "Steps between two looks at the validation classes."})
    checkpoint_every: int = field(default=20, metadata={"help": "Steps between two checkpoints."})
    keep_checkpoints: int = field(default=2, metadata={"help": "Newest checkpoints kept on disk."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "`latest`, or the folder of a checkpoint: go on exactly where it was written."}
    )
    max_minutes: float = field(
        default=0.0, metadata={"help": "Stop with a checkpoint after so many minutes; 0: never."}
    )
    log_with: str = field(
        default="tensorboard", metadata={"help": "Tracker for Accelerate (`tensorboard`, `wandb`, ...) or `none`."}
    )


@dataclass
class Progress:
    """How far a run has come; saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best_step: int = -1
    best_score: float = float("-inf")
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What a run has given.

    Attributes:
        model: the chosen snapshot (best on validation, the last one without validation).
        progress: steps, seconds and the history of metrics.
        finished: False where the run was stopped before its last step.
    """

    model: nn.Module
    progress: Progress
    finished: bool


class Trainer:
    """Runs a method over a pool.

    Args:
        method: what to run.
        pool: its teachers.
        config: folder, intervals, limits.
        accelerator: device, precision and trackers.
        validate: scores a snapshot; None keeps the last snapshot.

    Raises:
        ValueError: if the pool is one of black boxes and the method needs weights.
    """

    def __init__(
        self,
        method: Method,
        pool: ModelPool | BlackBoxPool,
        config: TrainerConfig,
        accelerator: Accelerator,
        validate: Validation | None = None,
    ) -> None:
        if isinstance(pool, BlackBoxPool):
            refuse_black_boxes(method)
        self.method, self.pool, self.config, self.accelerator, self.validate = (
            method,
            pool,
            config,
            accelerator,
            validate,
        )
        self.folder = Path(config.output_dir)
        self.progress = Progress()
        self.context = Context(
            generator=fork(config.seed, "training"),
            device=accelerator.device,
            seed=config.seed,
            scratch=self.folder / "setup",
        )
        self._best: dict[str, torch.Tensor] | None = None
        self._stop: str | None = None
        self._remedy = "the same command"

    def fit(self) -> Outcome:
        """Run to the last step, or until Ctrl-C, `max_minutes` or the end of a black-box pool's budget.

        Each of these leaves a checkpoint, and so does a service that answers no more.

        Raises:
            FileExistsError: if the folder holds another run's checkpoints and no resume was asked for.
            FloatingPointError: if the loss is not finite; the message names the last checkpoint.
        """
        self._begin()
        started = time.monotonic() - self.progress.seconds
        limit = self.config.max_minutes * 60 + self.progress.seconds if self.config.max_minutes else float("inf")
        state, total = self.progress, self.method.num_steps
        bar = progress(description=self.method.name, total=total, initial=state.step, unit="step")
        with self._catch_interrupt(), bar:
            while state.step < total and not self._stop:
                self.context.step = state.step
                try:
                    metrics = self._step()
                except (QueryBudgetError, ServiceError) as error:
                    self._stop = str(error).rstrip(".")
                    if isinstance(error, QueryBudgetError):
                        self._remedy = f"a larger --max_queries (or end here, with --steps {state.step})"
                    self.save_checkpoint()
                    break
                state.step += 1
                state.seconds = time.monotonic() - started
                last = state.step == total
                if self.validate and (last or state.step % self.config.validate_every == 0):
                    metrics |= self._validate()
                state.history.append({"step": state.step, **metrics})
                self.accelerator.log(metrics, step=state.step)
                bar.update()
                bar.set_postfix(
                    {name: f"{value:.3g}" for name, value in metrics.items() if name.endswith(("loss", "accuracy"))}
                )
                if not last and state.seconds >= limit:
                    self._stop = f"the {self.config.max_minutes:g} minutes of --max_minutes are over"
                if last or self._stop or state.step % self.config.checkpoint_every == 0:
                    self.save_checkpoint()
        if self._stop:
            self.accelerator.print(
                f"Stopped after step {state.step} of {total}: {self._stop}. "
                f"Go on with {self._remedy} and --resume_from_checkpoint latest."
            )
        return Outcome(self._chosen(), state, finished=state.step >= total)

    def save_checkpoint(self) -> Path:
        """Write the whole state of the run; the folder appears complete or not at all."""
        folder = self._checkpoints() / f"step-{self.progress.step:06d}"
        if self.accelerator.is_main_process:
            save_tree(
                folder,
                {
                    "progress": asdict(self.progress),
                    "generator": self.context.generator.get_state(),
                    "method_config": asdict(self.method.config),
                    "method": self.method.state_dict(),
                    "best": self._best,
                    "queries": self.pool.queries.state_dict() if isinstance(self.pool, BlackBoxPool) else None,
                },
            )
            for old in sorted(self._checkpoints().glob("step-*"))[: -self.config.keep_checkpoints]:
                remove_folder(old)
        return folder

    def load_checkpoint(self, folder: Path) -> None:
        """Stand where the checkpoint was written.

        Raises:
            ValueError: if the checkpoint was written with other hyper-parameters.
        """
        state = load_tree(folder)
        ours = asdict(self.method.config)
        changed = sorted(k for k in ours if k != "steps" and state["method_config"].get(k) != ours[k])
        if changed:
            raise ValueError(
                f"{folder} was written with other values of {', '.join(changed)}: resume with that run's options, "
                "or start a new one in another --output_dir."
            )
        self.progress = Progress(**state["progress"])
        self.context.generator.set_state(state["generator"])
        self._best = state["best"]
        if isinstance(self.pool, BlackBoxPool):
            self.pool.queries.load_state_dict(state.get("queries") or {})
        self.method.load_state_dict(state["method"], self.pool, self.context)

    def _begin(self) -> None:
        asked = self.config.resume_from_checkpoint
        existing = sorted(self._checkpoints().glob("step-*"))
        if asked:
            folder = (existing[-1] if existing else None) if asked == "latest" else Path(asked)
            if folder:
                self.load_checkpoint(folder)
                self.accelerator.print(f"Resumed from {folder} at step {self.progress.step}.")
                return
            self.accelerator.print(f"No checkpoint under {self.folder} yet: starting from the beginning.")
        elif existing:
            raise FileExistsError(
                f"{self.folder} already holds a run (up to {existing[-1].name}): go on with "
                "--resume_from_checkpoint latest, or choose another --output_dir."
            )
        started = time.monotonic()
        self.method.setup(self.pool, self.context)
        self.progress.seconds = time.monotonic() - started
        self.save_checkpoint()
        remove_folder(self.folder / "setup")

    def _step(self) -> dict[str, float]:
        generator = self.context.generator.get_state()
        try:
            return self.method.step(self.context)
        except (QueryBudgetError, ServiceError):
            # The step is taken anew when the run goes on, from the same numbers.
            self.context.generator.set_state(generator)
            raise
        except FloatingPointError as error:
            newest = max(self._checkpoints().glob("step-*"), default=None)
            raise FloatingPointError(
                f"Step {self.progress.step + 1}: {error} The last checkpoint is {newest}."
            ) from error

    def _validate(self) -> dict[str, float]:
        assert self.validate is not None
        snapshot = self.method.snapshot(self.context)
        scores = self.validate(snapshot)
        score = sum(scores.values()) / len(scores)
        state = self.progress
        better = score > state.best_score
        if better:
            state.best_score, state.best_step = score, state.step
            self._best = snapshot.state_dict()
        shown = "  ".join(f"{name} {value:.2f}" for name, value in scores.items())
        self.accelerator.print(
            f"step {state.step}/{self.method.num_steps}  {shown}  {state.seconds / 60:.1f} min"
            f"{'  (best so far)' if better else ''}"
        )
        return {f"validation/{name}": value for name, value in scores.items()}

    def _chosen(self) -> nn.Module:
        model = self.method.snapshot(self.context)
        if self._best is not None:
            model.load_state_dict(self._best)
        return model

    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @contextmanager
    def _catch_interrupt(self) -> Iterator[None]:
        """The first Ctrl-C (or SIGTERM) ends the run after the current step, the second at once."""

        def ask(number: int, frame: Any) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = f"{signal.Signals(number).name} was received"

        try:
            previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # Not the main thread: signals cannot be caught there, and need not be.
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def deterministic(seed: int) -> None:
    """Fix the global seed and ask for deterministic kernels where others exist; for a recipe's entry point only.

    On a CPU nothing that a step uses depends on the order of threads, and PyTorch's switch would make the second
    derivative of max pooling hundreds of times slower.
    """
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
