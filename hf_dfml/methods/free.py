"""FREE: Faster and Better Data-Free Meta-Learning.

Yongxian Wei, Zixuan Hu, Zhenyi Wang, Li Shen, Chun Yuan, Dacheng Tao. CVPR 2024, arXiv 2405.00984.

Each step:
1. FIVE: recover a task from each of b teachers in k steps from a meta-generator, which learns from it (Alg. 1). During
   the warm-up it does nothing else.
2. BELL: let the meta-model learn from these tasks one after the other, Reptile's way, so that the gradients of
   different teachers' tasks come to agree (Alg. 2).
3. Replay recovered tasks of all teachers, their classes mixed, with MAML (Eq. 4).
"""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from hf_dfml.learning.gradients import average_gradient, sequential_displacement
from hf_dfml.learning.inner_loop import Parameters
from hf_dfml.learning.optimisation import apply_gradients, parameters_of
from hf_dfml.learning.replay import ReplayConfig, replay_until_plateau
from hf_dfml.methods.base import Context, in_mixed_precision
from hf_dfml.methods.inversion import (
    DistillationConfig,
    InversionMethod,
    boundary_against,
    choose_outputs,
    distillation_task,
)
from hf_dfml.methods.paper import Paper
from hf_dfml.pool.teacher import Teacher
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.recovery.meta_generator import MetaGenerator, MetaGeneratorConfig, SequentialGenerator
from hf_dfml.recovery.objective import BoundaryLoss, FurtherTerm
from hf_dfml.recovery.task import Task
from hf_dfml.settings import Settings, option, part
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.images import to_unit
from hf_dfml.utils.seeding import spawn

PICTURED_TEACHERS = 4
"""Teachers through which the same images are mapped."""


class FREEConfig(Settings):
    """Hyper-parameters of FREE; the defaults are the paper's, and the released scripts' where it names none.

    The four rows of the paper's ablation (Table 5) are: the baseline `five=False, bell="none"`, +FIVE `bell="erm"`,
    +BELL `five=False`, and both, which is the default.
    """

    removed = dict.fromkeys(
        ("recovery", "recovery_steps", "recovery_lr"),
        "FREE recovers a task in --adaptation_steps steps from a meta-generator, with --adaptation_lr and --latent_lr",
    )

    steps: int = option(1000, "Steps, those of the warm-up included (the paper's epochs).", least=0, common=True)
    warmup: int = option(20, "First steps in which the generator learns alone.", least=0)
    teachers_per_step: int = option(4, "b: teachers drawn (with replacement) in a step.", least=1)
    five: bool = option(
        True,
        "FIVE: recover from a meta-learned generator; without, from one that is handed on from teacher to teacher "
        "(the baseline of Table 5), with as many steps.",
    )
    boundary_weight: float = option(1.0, "Weight of the boundary term, by which images get hard for the meta-model.")
    boundary_student: Literal["differentiated", "constant"] = option(
        "differentiated",
        "Whether the boundary term's gradient passes through the student (Eq. 1), or its answers are constant (the "
        "released code).",
    )
    boundary_loss: BoundaryLoss = option("kl", "Its divergence: `kl` (Eq. 1), or the released code's `legacy_linear`.")
    bell: Literal["released", "paper", "erm", "none"] = option(
        "released",
        "BELL: give bell_scale (theta - theta~) to an Adam, after inner steps of Adam (`released`), or move by "
        "bell_epsilon (theta~ - theta) after inner steps of SGD (`paper`); the tasks' mean gradient instead (`erm`); "
        "or learn from the replay alone (`none`, the baseline of Table 5).",
    )
    bell_optimizer: Literal["own", "shared"] = option(
        "own", "Of `released` and `erm`: an Adam of its own, or the replay's, as in the released code."
    )
    bell_adam_lr: float = option(1e-3, "Learning rate of the inner Adam steps of `released`.", above=0)
    bell_scale: float = option(
        67.0,
        "Factor of theta - theta~ in `released`; an Adam of BELL's own does not see it, the shared one does.",
        above=0,
    )
    bell_lr: float = option(0.1, "alpha: learning rate of the inner SGD steps of `paper` (there 0.001).", above=0)
    bell_epsilon: float = option(1.0, "epsilon: the outer step of `paper` (there 0.001).", above=0)
    stored_tasks: Literal["all", "last"] = option(
        "all", "Which of a step's recovered tasks are kept for the replay: all, or the last one (the released code)."
    )
    meta_generator: MetaGeneratorConfig = part(MetaGeneratorConfig)
    distillation: DistillationConfig = part(DistillationConfig, distillation_ce=0.0)
    replay: ReplayConfig = part(ReplayConfig, bank_per_class=400, replay_batch=10, replay_patience=10)


class FREE(InversionMethod):
    """The meta-learner of FREE; see the module's docstring.

    The printed alpha = epsilon = 1e-3 would move the meta-model by 1e-6 times a gradient, less than a ten-thousandth
    of what the replay does in the same step. `bell="released"` is what the authors' numbers come from; `bell="paper"`
    is the printed rule with rates that can be seen. The metric `bell_share` is BELL's part of a step's movement.

    Raises:
        ValueError: if the steps end with the warm-up.
    """

    paper = Paper(
        title="FREE: Faster and Better Data-Free Meta-Learning",
        authors="Yongxian Wei, Zixuan Hu, Zhenyi Wang, Li Shen, Chun Yuan, Dacheng Tao",
        venue="CVPR",
        year=2024,
        arxiv="2405.00984",
    )
    Config = FREEConfig
    config: FREEConfig

    def __init__(self, config: FREEConfig, model: nn.Module) -> None:
        if config.steps <= config.warmup:
            raise ValueError(
                f"steps={config.steps} ends with the {config.warmup} steps of warm-up, before anything is learned: "
                f"give --steps above {config.warmup}, or a shorter --warmup."
            )
        super().__init__(config, model)
        self.name = _name(config)
        device = next(model.parameters()).device
        kind = MetaGenerator if config.five else SequentialGenerator
        self.meta_generator = kind(config.meta_generator, self.size, device)
        # The printed rule is no gradient and has no state.
        self.bell_optimizer = self.optimizer
        if config.bell_optimizer == "own":
            self.bell_optimizer = torch.optim.Adam(model.parameters(), config.replay.episode.outer_lr)

    def setup(self, pool: TeacherPool, context: Context) -> None:
        """Draw the generator's weights.

        Raises:
            ValueError: if the pool has fewer classes than an episode.
        """
        self.require_classes(pool)
        self.pool = pool
        self.meta_generator.reset_parameters(context.generator)

    @in_mixed_precision
    def step(self, context: Context) -> dict[str, float]:
        """Recover (FIVE), and after the warm-up distil (BELL) and replay."""
        config, generator, processes = self.config, context.generator, context.processes
        drawn = torch.randint(len(self.pool), (config.teachers_per_step,), generator=generator).tolist()
        teachers = [self.pool.load(index) for index in drawn]
        started = time.monotonic()
        if context.step < config.warmup:
            _, metrics = self.meta_generator.recover(teachers, generator, processes=processes)
            return metrics | {"recovery_seconds": time.monotonic() - started}
        terms = self._boundary_terms(teachers, generator) if config.boundary_weight else None
        tasks, metrics = self.meta_generator.recover(teachers, generator, terms, processes)
        metrics |= {"recovery_seconds": time.monotonic() - started}
        self.remember(tasks if config.stored_tasks == "all" else tasks[-1:])
        (stream,) = spawn(generator, 1)
        before = self._position()
        if config.bell != "none":
            update, distilled = processes.once(lambda: self._distil(teachers, tasks, stream))
            self._learn(update)
            metrics |= distilled
        between = self._position()
        metrics |= replay_until_plateau(
            self.model, self.optimizer, self.bank, config.replay, generator, ways=self.ways, processes=processes
        )
        by_bell, by_replay = (
            (end - start).norm().item() for start, end in pairwise([before, between, self._position()])
        )
        share = by_bell / (by_bell + by_replay) if by_bell else 0.0
        return metrics | {"bell_share": share, "bank_images": float(len(self.bank))}

    def _distil(
        self, teachers: list[Teacher], tasks: list[Task], generator: torch.Generator
    ) -> tuple[Parameters, dict[str, float]]:
        """Where the tasks move the meta-model (`theta~ - theta`), or minus their mean gradient (ERM); and metrics."""
        config, params = self.config, parameters_of(self.model)
        recovery = config.meta_generator.inversion
        losses = [
            distillation_task(self.model, teacher, task, config.distillation, recovery, generator)
            for teacher, task in zip(teachers, tasks, strict=True)
        ]
        if config.bell == "paper":
            return sequential_displacement(losses, params, lr=config.bell_lr)
        if config.bell == "released":
            return sequential_displacement(losses, params, lr=config.bell_adam_lr, rule="adam")
        mean, metrics = average_gradient(losses, params)
        return {name: -gradient for name, gradient in mean.items()}, metrics

    def _learn(self, update: Parameters) -> None:
        """The outer step of BELL (Alg. 2) or of ERM."""
        config = self.config
        if config.bell == "paper":
            with torch.no_grad():
                for name, parameter in parameters_of(self.model).items():
                    parameter += config.bell_epsilon * update[name]
            return
        scale = config.bell_scale if config.bell == "released" else 1.0
        apply_gradients(self.bell_optimizer, self.model, {name: -scale * value for name, value in update.items()})

    def _boundary_terms(self, teachers: list[Teacher], generator: torch.Generator) -> list[FurtherTerm]:
        """Of each teacher, against the meta-model as it stands (Eq. 1)."""
        config, params = self.config, parameters_of(self.model)
        constant = config.boundary_student == "constant"
        outputs = [choose_outputs(teacher.num_classes, self.ways, generator) for teacher in teachers]
        return [
            boundary_against(
                self.model, params, each, config.boundary_weight, constant=constant, kind=config.boundary_loss
            )
            for each in outputs
        ]

    def _position(self) -> Tensor:
        """A copy of all parameters, flat."""
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])

    def state_dict(self) -> Tree:
        """The common state, the generator's, and BELL's optimiser where it has its own."""
        own = {"meta_generator": self.meta_generator.state_dict()}
        if self.bell_optimizer is not self.optimizer:
            own["bell_optimizer"] = self.bell_optimizer.state_dict()
        return super().state_dict() | own

    def load_state_dict(self, state: Tree, pool: TeacherPool, context: Context) -> None:
        """Take over what `state_dict` gave, in place of `setup`."""
        super().load_state_dict(state, pool, context)
        self.meta_generator.load_state_dict(state["meta_generator"])
        if self.bell_optimizer is not self.optimizer:
            self.bell_optimizer.load_state_dict(state["bell_optimizer"])

    def pictures(self, folder: Path) -> list[Path]:
        """Recovered images, and how some of the teachers see the same ones (Fig. 4)."""
        from hf_dfml.utils.pictures import neighbour_maps

        paths = super().pictures(folder)
        if not len(self.bank):
            return paths
        shown = [(name, image) for name in self.bank.class_names[:10] for image in self.bank[name][-20:]]
        images = to_unit(torch.stack([image for _, image in shown]))
        members = range(0, len(self.pool), max(1, len(self.pool) // PICTURED_TEACHERS))[:PICTURED_TEACHERS]
        with torch.no_grad():
            features = {self.pool[index].id: self.pool.load(index).features(images) for index in members}
        title = "The same recovered images through different teachers (t-SNE of their features)"
        return [*paths, neighbour_maps(features, [name for name, _ in shown], folder / "teachers.png", title=title)]


def _name(config: FREEConfig) -> str:
    """The row of the paper's Table 5, and FREE (k=2) for FREE_2."""
    count = config.meta_generator.adaptation_steps
    steps = f" (k={count})" if count != 5 else ""
    row = {
        (False, "none"): " baseline",
        (False, "erm"): " baseline with ERM",
        (True, "none"): " with FIVE, replay alone",
        (True, "erm"): " with FIVE",
    }
    return f"FREE{row.get((config.five, config.bell), '' if config.five else ' with BELL')}{steps}"
