"""The loop: steps of a method with progress, trackers, validation, checkpoints, exact resume and a graceful stop."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from torch import nn

from hf_dfml.methods.base import Context, Method, SetupInterruptedError, refuse_black_boxes
from hf_dfml.networks.info import network_info
from hf_dfml.pool.entry import WEIGHTS_NAME
from hf_dfml.pool.queries import QueryBudgetError, ServiceError
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.resuming import (
    CHECKPOINTS,
    LATEST,
    held_options,
    newest_checkpoint,
    refuse_other_options,
    refuse_other_origin,
    refuse_other_run,
    superseded,
)
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import flat
from hf_dfml.utils.checkpoint import load_tree, newest_sound, remove_folder, replace_folder, save_tree
from hf_dfml.utils.interrupt import INTERRUPTED, STOPPED, StopSignal
from hf_dfml.utils.memory import keep_freed_memory
from hf_dfml.utils.processes import Processes, ProcessLostError
from hf_dfml.utils.progress import WholeRun, progress
from hf_dfml.utils.seeding import fork

SAVE_SECONDS = 120.0
"""Checkpoints are at most so far apart, or a step, if steps are slower than `checkpoint_every` supposes."""

Validation = Callable[[nn.Module], dict[str, float]]
"""Scores a snapshot on the validation classes; the checkpoint with the largest mean of its values is chosen."""


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
        stopped: why the run was stopped before its last step; None where it was not.
    """

    model: nn.Module
    progress: Progress
    stopped: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the last step was made."""
        return self.stopped is None

    @property
    def exit_code(self) -> int:
        """What the run's process is to end with."""
        if self.stopped is None:
            return 0
        return INTERRUPTED if self.stopped.startswith(signal.SIGINT.name) else STOPPED


class Trainer:
    """Runs a method over a pool.

    Args:
        method: what to run.
        pool: its teachers.
        config: folder, intervals, limits.
        accelerator: device, precision and trackers.
        validate: scores a snapshot; None keeps the last snapshot.
        begin: called once, by the main process, before the run's first file, when nothing refuses it any more.
        whole: shows how far the run has come.

    Raises:
        ValueError: if the pool is one of black boxes and the method needs weights.
    """

    def __init__(
        self,
        method: Method,
        pool: TeacherPool,
        config: RunConfig,
        accelerator: Accelerator,
        validate: Validation | None = None,
        begin: Callable[[], Any] | None = None,
        *,
        whole: WholeRun | None = None,
    ) -> None:
        if pool.answers_only:
            refuse_black_boxes(method)
        self.method, self.pool, self.config = method, pool, config
        self.accelerator, self.validate = accelerator, validate
        self.whole = whole or WholeRun(method.name, ["setup", "steps"], enabled=False)
        self.folder = Path(config.output_dir)
        self.progress = Progress()
        self.processes = Processes(accelerator)
        info = network_info(method.model)  # Of the fresh network: a method may add to it.
        self._network = {
            "ways (or outputs of the meta-model)": info.num_classes,
            "network (--arch)": [info.architecture, list(info.input_size)],
        }
        self.context = Context(
            generator=fork(config.seed, "training"),
            device=self.processes.device,
            seed=config.seed,
            scratch=self.folder / "setup" / self._setup_name(),
            cache=Path(config.recovery_cache) if config.recovery_cache else None,
            processes=self.processes,
            queries=pool.queries,
            interrupted=self._interrupted,
            # Without a cache of converted weights, which would outlive an optimiser's steps.
            autocast=partial(accelerator.autocast, AutocastKwargs(cache_enabled=False)),
            begin=self._begin,
        )
        self._to_begin = begin if accelerator.is_main_process else None
        self._best: dict[str, torch.Tensor] | None = None
        self._began, self._before = time.monotonic(), 0.0  # Before: the seconds of a run that is resumed.
        self._signal = StopSignal(self._stopping_after, breaks_off=self.processes.count == 1)
        self._broken_off = False
        self._saved = time.monotonic()
        self._stop: str | None = None  # Why all processes stop.
        self._remedy = "the same command"

    def fit(self) -> Outcome:
        """Run to the last step, or until Ctrl-C, `max_minutes` or the end of a black-box pool's budget.

        Each of these leaves a checkpoint (or, in the setup, the parts of it that are done), and so does a service that
        answers no more. A step, or a part of the setup, that does not end within `PATIENCE` seconds of Ctrl-C (or at a
        second one) is broken off, and taken anew when the run goes on from its last checkpoint.

        Raises:
            FileExistsError: if the folder holds another run's checkpoints and no resume was asked for.
            FloatingPointError: if the loss is not finite.
            OSError: if a checkpoint cannot be written.
            ProcessLostError: if another process of the run is gone.
        """
        if self.context.device.type == "cpu":
            keep_freed_memory()
        self._began = time.monotonic()
        with self._signal.caught():
            begun = self._resume()
            with self._say_where_to_go_on():
                try:
                    if not begun:
                        self._set_up()
                    self._run()
                except SetupInterruptedError:
                    pass
                except (QueryBudgetError, ServiceError) as error:
                    self._stop_asking(error)
                except KeyboardInterrupt:
                    if not self._signal.name:
                        raise
                    self._broken_off, self._stop = True, f"{self._signal.name} was received"
                    self._signal.obeyed()
        if not self._stop:
            return Outcome(self._chosen(), self.progress)
        self.accelerator.print(f"Stopped {self._where_stopped()} and --resume_from_checkpoint latest.")
        # What was broken off has left a model that is no state of the run.
        return Outcome(self.method.model if self._broken_off else self._chosen(), self.progress, self._stop)

    def _where_stopped(self) -> str:
        newest, step, total = newest_checkpoint(self.folder), self.progress.step, self.method.num_steps
        if not newest:
            return f"during the setup: {self._stop}. Go on with {self._remedy}"
        if not self._broken_off:
            return f"after step {step} of {total}: {self._stop}. Go on with {self._remedy}"
        return (
            f"in step {step + 1} of {total}: {self._stop}. The last checkpoint is {newest}: go on with {self._remedy}"
        )

    def _run(self) -> None:
        state, total = self.progress, self.method.num_steps
        if state.step < total:
            self._interrupted()
        self.whole.begin("steps", done=state.step / max(1, total), one_bar=True)
        with progress(description=self.method.name, total=total, initial=state.step, unit="step") as bar:
            while state.step < total and not self._stop:
                self.context.step = state.step
                metrics = self._step()
                state.step += 1
                state.seconds = self._seconds()
                last = state.step == total
                if self.validate and (last or state.step % self.config.validate_every == 0):
                    metrics |= self._validate()
                state.history.append({"step": state.step, **metrics})
                self.accelerator.log(metrics, step=state.step)
                bar.update()
                bar.set_postfix(
                    {name: f"{value:.3g}" for name, value in metrics.items() if name.endswith(("loss", "accuracy"))}
                )
                due = state.step % self.config.checkpoint_every == 0 or self._save_is_due()
                if last or self._interrupted() or due:
                    self.save_checkpoint()

    def _stop_asking(self, error: QueryBudgetError | ServiceError) -> None:
        """Black boxes answer no more, in the setup or in a step that has left no trace."""
        begun = newest_checkpoint(self.folder) is not None
        self._stop = str(error).rstrip(".")
        if isinstance(error, QueryBudgetError):
            end = f" (or end here, with --steps {self.progress.step})" if begun else ""
            self._remedy = f"a larger --max_queries{end}"
        if begun:
            self.save_checkpoint()

    def save_checkpoint(self) -> Path:
        """Write the whole state of the run; the folder appears complete or not at all.

        Raises:
            OSError: if it cannot be written, as on a full disk; earlier checkpoints stay what they are.
        """
        folder = self._checkpoints() / f"step-{self.progress.step:06d}"
        self.processes.once(partial(self._write, folder))
        self._saved = time.monotonic()
        return folder

    def _save_is_due(self) -> bool:
        """Whether the last checkpoint is long ago; all processes say the same."""
        return bool(self.processes.once(lambda: time.monotonic() - self._saved > SAVE_SECONDS))

    def _begin(self) -> None:
        if self._to_begin:
            self._to_begin()
            self._to_begin = None

    def _write(self, folder: Path) -> None:
        self._begin()
        save_tree(
            folder,
            {
                "progress": asdict(self.progress),
                "generator": self.context.generator.get_state(),
                "method_config": flat(self.method.config),
                "origin": self._origin(),
                "method": self.method.state_dict(),
                "best": self._best,
                "queries": self.pool.queries.state_dict() if self.pool.queries else None,
            },
        )
        checkpoints = self._checkpoints()
        # Hidden: what a killed process has left of a checkpoint.
        config = self.config
        outdated = superseded(checkpoints, every=config.checkpoint_every, keep=config.keep_checkpoints)
        for old in (*outdated, *checkpoints.glob(".step-*")):
            remove_folder(old)

    def load_checkpoint(self, folder: Path) -> None:
        """Stand where the checkpoint was written.

        Raises:
            ValueError: if the checkpoint was written with other hyper-parameters, another seed or other members.
        """
        state = load_tree(folder)
        refuse_other_options(folder, state["method_config"], self.method.config)
        refuse_other_origin(folder, state.get("origin", {}), self._origin())
        self.progress = Progress(**state["progress"])
        self._before = self.progress.seconds
        self.context.generator.set_state(state["generator"])
        self._best = state["best"]
        if self.pool.queries:
            self.pool.queries.load_state_dict(state.get("queries") or {})
        self.method.load_state_dict(state["method"], self.pool, self.context)

    def _resume(self) -> bool:
        """Stand at the checkpoint that was asked for; whether there is one."""
        asked = self.config.resume_from_checkpoint
        self.processes.once(partial(refuse_other_run, self.folder, asked))
        if not asked:
            return False
        if asked == LATEST and not self.processes.once(lambda: str(newest_checkpoint(self.folder) or "")):
            self.accelerator.print(f"No checkpoint under {self.folder} yet: starting from the beginning.")
            return False
        folder, checkpoints = Path(asked), self._checkpoints()
        damaged: dict[str, str] = {}
        if asked == LATEST:
            name, damaged = self.processes.once(partial(newest_sound, checkpoints))
            folder = checkpoints / name
        self.load_checkpoint(folder)
        for name, reason in damaged.items():
            self.accelerator.print(f"Warning: checkpoint {name} is damaged ({reason}): kept as damaged-{name}.")
            self.processes.once(partial(replace_folder, checkpoints / name, checkpoints / f"damaged-{name}"))
        self.accelerator.print(f"Resumed from {folder} at step {self.progress.step}.")
        return True

    def _set_up(self) -> None:
        self.whole.begin("setup")
        self.method.setup(self.pool, self.context)
        self.progress.seconds = self._seconds()
        self.save_checkpoint()
        if self.accelerator.is_main_process:
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
            raise FloatingPointError(f"Step {self.progress.step + 1}: {error}") from error

    def _validate(self) -> dict[str, float]:
        assert self.validate is not None
        snapshot = self._snapshot()
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

    def _snapshot(self) -> nn.Module:
        """The main process's: where kernels are not deterministic, the others' may differ from it by rounding."""
        model = self.method.snapshot(self.context)
        model.load_state_dict(self.processes.once(model.state_dict))
        return model

    def _chosen(self) -> nn.Module:
        model = self._snapshot()
        if self._best is not None:
            model.load_state_dict(self._best)
        return model

    def _origin(self) -> dict[str, Any]:
        """What a run starts from, beside its options."""
        return {
            "random numbers": self.config.seed,
            "members": [[entry.id, entry.revision] for entry in self.pool],
            "weights of its members": [entry.sha256.get(WEIGHTS_NAME) for entry in self.pool if not entry.revision],
            "answers": self.pool.output,
            **self._network,
        }

    def _setup_name(self) -> str:
        """Of the folder of the setup's finished parts, which are of no use under other options."""
        to_answers = [held_options(self.method.config), self._origin()]
        return hashlib.sha256(json.dumps(to_answers).encode()).hexdigest()[:12]

    def _checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def _interrupted(self) -> bool:
        """Whether a signal has come to any process, or its time is over. All processes say the same."""
        minutes = self.config.max_minutes
        reason = self._signal.name and f"{self._signal.name} was received"
        if minutes and time.monotonic() - self._began >= 60 * minutes:
            reason = f"the {minutes:g} minutes of --max_minutes are over"
        self._stop = self._stop or self.processes.first(reason)
        if self._stop:
            self._signal.obeyed()
        return self._stop is not None

    def _stopping_after(self) -> str:
        return "step" if newest_checkpoint(self.folder) else "part of the setup"

    @contextmanager
    def _say_where_to_go_on(self) -> Iterator[None]:
        """Whatever ends the run: name the checkpoint from which the same command goes on."""
        try:
            yield
        except Exception as error:
            if self.accelerator.is_main_process or isinstance(error, ProcessLostError):
                newest, scratch = newest_checkpoint(self.folder), self.context.scratch
                kept = f"The last checkpoint is {newest}" if newest else "Finished parts of the setup are kept"
                if newest or (scratch and scratch.exists()):
                    print(
                        f"The run broke off {f'after step {self.progress.step}' if newest else 'in its setup'}. "
                        f"{kept}: go on with the same command and --resume_from_checkpoint latest.",
                        file=sys.stderr,
                    )
            raise
