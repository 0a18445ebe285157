"""What a run measures: validations on the way, and the one evaluation at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.evaluation.baselines import BASELINES
from hf_dfml.evaluation.heads import Adaptation
from hf_dfml.evaluation.heads.base import BATCH_NORMS
from hf_dfml.evaluation.protocol import EvaluationProtocol
from hf_dfml.evaluation.reporting import meta_test, protocols_of_run
from hf_dfml.evaluation.results import Record
from hf_dfml.evaluation.selection import best_head, level_lines, validation
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.run_config import RunConfig
from hf_dfml.utils.processes import Processes


class RunEvaluation:
    """The evaluation that a run's options ask for.

    Args:
        config: the run.
        suits: the adaptation that the method's meta-model is made for.
        processes: among which each evaluation is divided.

    Attributes:
        protocol: of the evaluation on the test classes.
        validating: of validations, and of choices on the validation classes.
        adapt: the meta-model's adaptation by default: `suits`, until a better one was chosen.
        lines: what the course of the validation is drawn beside; see `level_lines`.
    """

    def __init__(self, config: RunConfig, suits: Adaptation, processes: Processes) -> None:
        self.config, self.suits, self.processes = config, suits, processes
        self.protocol = EvaluationProtocol(
            ways=config.ways, shots=config.shots, queries=config.queries, episodes=config.episodes
        )
        if not config.finetuned_rows:
            self.protocol = replace(self.protocol, head="prototype", bn="running")
        self.validating = replace(
            self.protocol,
            episodes=config.validation_episodes,
            split="validation",
            inner_steps=suits.steps,
            inner_lr=suits.lr,
        )
        self.adapt = suits
        self.lines: dict[str, dict[str, float]] = {}

    def validation(
        self, datasets: Sequence[FewShotDataset], expect: Callable[[float], Any] = lambda _: None
    ) -> Callable[[nn.Module], dict[str, float]] | None:
        """What scores a snapshot on validation classes; None where there are none.

        Args:
            datasets: the classes.
            expect: is told after each validation how many seconds `evaluate` will take by its speed. It is not where
                only one of both fine-tunes, or where there are rows of ICFIL.
        """
        if not datasets:
            return None
        score = validation(datasets, self.validating, self.suits, self.processes)
        if self.suits.head != "finetune" or not self.config.finetuned_rows or self.config.icfil_episodes:
            return score
        # A validation is of all data sets, a piece of one.
        pieces = self.pieces(len(datasets)) / len(datasets)
        times = pieces * self.protocol.episodes / self.validating.episodes

        def timed(model: nn.Module) -> dict[str, float]:
            began = time.monotonic()
            scores = score(model)
            expect(times * (time.monotonic() - began))
            return scores

        return timed

    def pieces(self, datasets: int) -> int:
        """How often `evaluate` reports that a piece of it is done, for so many data sets."""
        rows = len(self._protocols(self.suits)) + 1 + len(BASELINES) * self.config.baselines
        return 1 + datasets * rows + self.config.baselines

    def evaluate(
        self,
        model: nn.Module,
        validation: Sequence[FewShotDataset],
        levels: Iterable[FewShotDataset],
        tests: Iterable[FewShotDataset],
        pool: TeacherPool,
        *,
        method: str,
        command: str,
        record: Record,
    ) -> None:
        """Choose the head on the validation classes, then look at the test classes, once.

        Args:
            model: the meta-model's network.
            validation: validation classes.
            levels: the same in the size of the baselines, read as they are wanted.
            tests: test classes, read as they are wanted.
            pool: the teachers, of which the baselines are made.
            method: how tables call the model.
            command: what a user types to get the rows again.
            record: is given each list of new rows as it is measured, and empty ones after other pieces of work.
        """
        # Nearest class means under running statistics need one pass of the images for all episodes.
        heads, norms = (None, BATCH_NORMS[:2]) if self.config.finetuned_rows else (("prototype",), BATCH_NORMS[1:2])
        self.adapt = best_head(model, validation, self.validating, self.processes, heads=heads, norms=norms)
        record([])
        meta_test(
            model,
            tests,
            self._protocols(self.suits, self.adapt),
            pool,
            method=method,
            baselines=self.protocol if self.config.baselines else None,
            command=command,
            processes=self.processes,
            record=record,
        )
        if self.config.baselines and not pool.answers_only:
            # Members that are seen whole are those of a `ModelPool`.
            self.lines = level_lines(pool, list(levels), self.validating, self.processes)  # type: ignore[arg-type]
            record([])

    def _protocols(self, *chosen: Adaptation) -> list[EvaluationProtocol]:
        return protocols_of_run(self.protocol, chosen, self.config.icfil_episodes)
