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
from pathlib import Path

import torch
from torch import nn

from hf_dfml.learning.gradients import average_gradient, sequential_gradient
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
from hf_dfml.recovery.inversion import recover
from hf_dfml.recovery.meta_generator import MetaGenerator, MetaGeneratorConfig
from hf_dfml.recovery.task import Task
from hf_dfml.settings import Settings, option, part
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.images import to_unit
from hf_dfml.utils.processes import Processes
from hf_dfml.utils.seeding import spawn

PICTURED_TEACHERS = 4
"""Teachers through which the same images are mapped."""


class FREEConfig(Settings):
    """Hyper-parameters of FREE; the defaults are the paper's, and the released scripts' where it names none.

    The four rows of the paper's ablation (Table 5) are the four settings of `five` and `bell`.
    """

    steps: int = option(1000, "Steps, those of the warm-up included (the paper's epochs).", least=0, common=True)
    warmup: int = option(20, "First steps in which the meta-generator learns alone; none without --five.", least=0)
    teachers_per_step: int = option(4, "b: teachers drawn (with replacement) in a step.", least=1)
    five: bool = option(
        True, "Recover by the meta-generator; without, from scratch as --recovery and --recovery_steps say."
    )
    boundary_weight: float = option(1.0, "Weight of the boundary term, by which images get hard for the meta-model.")
    bell: bool = option(True, "Learn from the tasks one after the other; without, from their mean (ERM).")
    bell_lr: float = option(1e-3, "alpha: learning rate of BELL's inner SGD step on each task.", above=0)
    meta_generator: MetaGeneratorConfig = part(MetaGeneratorConfig)
    distillation: DistillationConfig = part(DistillationConfig, distillation_ce=0.0)
    replay: ReplayConfig = part(ReplayConfig, bank_per_class=400, replay_batch=10, replay_patience=10)


class FREE(InversionMethod):
    """The meta-learner of FREE; see the module's docstring.

    BELL's (or ERM's) gradient goes to the Adam that the replay uses as well, so that `outer_lr` stands for the paper's
    epsilon; taken literally, a step of epsilon * alpha = 1e-6 would leave the meta-model where it is.

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
        if config.five and config.steps <= config.warmup:
            raise ValueError(
                f"steps={config.steps} ends with the {config.warmup} steps of warm-up, before anything is learned: "
                f"give --steps above {config.warmup}, or a shorter --warmup."
            )
        super().__init__(config, model)
        self.name = _name(config)
        device = next(model.parameters()).device
        self.meta_generator = MetaGenerator(config.meta_generator, self.size, device) if config.five else None

    def setup(self, pool: TeacherPool, context: Context) -> None:
        """Draw the meta-generator's weights."""
        self.pool = pool
        if self.meta_generator:
            self.meta_generator.reset_parameters(context.generator)

    @in_mixed_precision
    def step(self, context: Context) -> dict[str, float]:
        """Recover (FIVE), and after the warm-up distil (BELL) and replay."""
        config, generator, processes = self.config, context.generator, context.processes
        drawn = torch.randint(len(self.pool), (config.teachers_per_step,), generator=generator).tolist()
        teachers = [self.pool.load(index) for index in drawn]
        started = time.monotonic()
        if self.meta_generator and context.step < config.warmup:
            _, metrics = self.meta_generator.recover(teachers, generator, processes=processes)
            return metrics | {"recovery_seconds": time.monotonic() - started}
        tasks, metrics = self._recover(teachers, generator, processes)
        metrics |= {"recovery_seconds": time.monotonic() - started}
        self.remember(tasks)
        (stream,) = spawn(generator, 1)
        gradients, distilled = processes.once(lambda: self._distil(teachers, tasks, stream))
        apply_gradients(self.optimizer, self.model, gradients)
        replayed = replay_until_plateau(
            self.model, self.optimizer, self.bank, config.replay, generator, ways=self.ways, processes=processes
        )
        return metrics | distilled | replayed | {"bank_images": float(len(self.bank))}

    def _distil(
        self, teachers: list[Teacher], tasks: list[Task], generator: torch.Generator
    ) -> tuple[Parameters, dict[str, float]]:
        config, params = self.config, parameters_of(self.model)
        recovery = config.meta_generator.inversion
        losses = [
            distillation_task(self.model, teacher, task, config.distillation, recovery, generator)
            for teacher, task in zip(teachers, tasks, strict=True)
        ]
        if config.bell:
            return sequential_gradient(losses, params, lr=config.bell_lr)
        return average_gradient(losses, params)

    def _recover(
        self, teachers: list[Teacher], generator: torch.Generator, processes: Processes
    ) -> tuple[list[Task], dict[str, float]]:
        """A task from each teacher on L_G = CE + the boundary term against the meta-model as it stands (Eq. 1)."""
        config, params = self.config, parameters_of(self.model)
        terms = [
            boundary_against(
                self.model, params, choose_outputs(teacher.num_classes, self.ways, generator), config.boundary_weight
            )
            if config.boundary_weight
            else None
            for teacher in teachers
        ]
        if self.meta_generator:
            return self.meta_generator.recover(teachers, generator, terms, processes)
        items = zip(teachers, spawn(generator, len(teachers)), terms, strict=True)
        return processes.map(
            lambda item: recover(item[0], config.meta_generator.inversion, self.size, *item[1:]), items
        ), {}

    def state_dict(self) -> Tree:
        """The common state and the meta-generator's."""
        own = {"meta_generator": self.meta_generator.state_dict()} if self.meta_generator else {}
        return super().state_dict() | own

    def load_state_dict(self, state: Tree, pool: TeacherPool, context: Context) -> None:
        """Take over what `state_dict` gave, in place of `setup`."""
        super().load_state_dict(state, pool, context)
        if self.meta_generator:
            self.meta_generator.load_state_dict(state["meta_generator"])

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
    """FREE, FREE (k=2), FREE without FIVE, ..."""
    switched_off = [name for name, on in (("FIVE", config.five), ("BELL", config.bell)) if not on]
    count = config.meta_generator.adaptation_steps
    steps = f" (k={count})" if config.five and count != 5 else ""
    return f"FREE{steps}" + (f" without {' and '.join(switched_off)}" if switched_off else "")
