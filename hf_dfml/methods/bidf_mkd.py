"""BiDf-MKD: Learning to Learn from APIs: Black-Box Data-Free Meta-Learning.

Zixuan Hu, Li Shen, Zhenyi Wang, Baoyuan Wu, Chun Yuan, Dacheng Tao. ICML 2023, arXiv 2305.18413.

Each step is one of the meta-model's Adam on the sum of a few episodes. One is an API episode whenever replay has
stopped paying:
1. Recover a support set from one teacher; adapt the meta-model to it by distillation (inner level).
2. Recover a query set near the decision boundary of the adapted model; distil on it through the adaptation (outer
   level). Both sets go into the bank.

The others replay recovered tasks of all teachers, their classes mixed, with MAML (task interpolation).

Of a pool of black boxes (`ModelPool.as_black_box`, a served pool) gradients are estimated from queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from hf_dfml.learning.curriculum import PlateauSwitch
from hf_dfml.learning.inner_loop import Parameters, unroll
from hf_dfml.learning.optimisation import apply_gradients, parameters_of
from hf_dfml.learning.replay import ReplayConfig, replay_gradient
from hf_dfml.methods.base import Context, in_mixed_precision
from hf_dfml.methods.inversion import (
    DistillationConfig,
    InversionMethod,
    choose_outputs,
    distillation_of,
    student_logits,
)
from hf_dfml.methods.paper import Paper
from hf_dfml.pool.queries import QueryBudgetError, ServiceError
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.recovery.gradient_source import GradientSource, ZeroOrderGradient, autograd_gradient
from hf_dfml.recovery.inversion import EstimationConfig, RecoveryConfig, recover
from hf_dfml.recovery.objective import BoundaryLoss, FurtherTerm, boundary_terms
from hf_dfml.recovery.task import Task
from hf_dfml.settings import Settings, option, part
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.clock import now
from hf_dfml.utils.seeding import spawn


class BiDfMKDConfig(Settings):
    """Hyper-parameters of BiDf-MKD; the defaults are the released scripts'."""

    steps: int = option(60_000, "Outer steps.", least=0, common=True)
    distillation_steps: int = option(10, "Inner steps of distillation on a support set.", least=0)
    distillation_lr: float = option(0.01, "Learning rate of these SGD steps.", above=0)
    boundary_weight: float = option(1.0, "Weight of the boundary term in query sets.")
    boundary_start: int = option(4000, "First step at which query sets have that term.", least=0)
    boundary_loss: BoundaryLoss = option("kl", "Its divergence: `kl`, or the released code's `legacy_linear`.")
    # No batch-norm statistics: an API does not show them.
    inversion: RecoveryConfig = part(RecoveryConfig, bn_weight=0.0)
    estimation: EstimationConfig = part(EstimationConfig)
    distillation: DistillationConfig = part(DistillationConfig, distillation_ce=0.0)
    replay: ReplayConfig = part(ReplayConfig, replay_batch=4, replay_patience=200)

    def check(self) -> None:
        """Make sure that what is to be estimated can be."""
        self.estimation.check_objective(self.inversion)


class BiDfMKD(InversionMethod):
    """The meta-learner of BiDf-MKD; see the module's docstring.

    Of black boxes gradients are estimated by queries, whatever `config.gradient` says.

    Args:
        config: hyper-parameters.
        model: the meta-model, on its device.
        source: where gradients with respect to images come from; by default what `config.gradient` says.
    """

    paper = Paper(
        title="Learning to Learn from APIs: Black-Box Data-Free Meta-Learning",
        authors="Zixuan Hu, Li Shen, Zhenyi Wang, Baoyuan Wu, Chun Yuan, Dacheng Tao",
        venue="ICML",
        year=2023,
        arxiv="2305.18413",
    )
    Config = BiDfMKDConfig
    config: BiDfMKDConfig
    black_boxes = True
    whole_tasks = False

    def __init__(self, config: BiDfMKDConfig, model: nn.Module, source: GradientSource | None = None) -> None:
        super().__init__(config, model)
        self.name = _name(config)
        self.switch = PlateauSwitch(config.replay.replay_patience, longest=config.replay.replay_max_batches)
        self.source = source or config.estimation.source()

    @classmethod
    def config_for(cls, config: BiDfMKDConfig, pool: TeacherPool) -> BiDfMKDConfig:
        """With estimated gradients for members that only answer."""
        return replace(config, gradient="zero_order") if pool.answers_only else config

    def setup(self, pool: TeacherPool, context: Context) -> None:
        """Nothing is looked at beforehand.

        Raises:
            ValueError: if the pool has fewer classes than an episode, or is of black boxes and the objective has terms
                that answers do not give.
        """
        self.require_classes(pool)
        self._connect(pool)

    @in_mixed_precision
    def step(self, context: Context) -> dict[str, float]:
        """One outer step: an API episode if its time has come or there is too little to replay, and replay.

        Raises:
            QueryBudgetError: if an API episode is due and black boxes may not be asked so often.
            ServiceError: if they cannot be asked. In both cases the method is what it was before the step.
        """
        before = self.switch.state_dict()
        try:
            return self._step(context)
        except (QueryBudgetError, ServiceError):
            self.switch.load_state_dict(before)
            raise

    def _step(self, context: Context) -> dict[str, float]:
        config, generator = self.config, context.generator
        total = {name: torch.zeros_like(value) for name, value in parameters_of(self.model).items()}
        metrics: dict[str, float] = {}
        api = self.switch.take(context.step) or not self._can_replay()
        if api:
            # Of the main process, so that an API is asked once; its two levels follow one another anyway.
            (stream,) = spawn(generator, 1)
            gradients, metrics, tasks = context.processes.once(lambda: self._api_episode(context.step, stream))
            self.remember(tasks)
            total = _sum(total, gradients)
        replayed = config.replay.episode.replay_batch - api
        if replayed and self._can_replay():
            gradients, loss, accuracy = replay_gradient(
                self.model,
                self.bank,
                config.replay.episode,
                generator,
                ways=self.ways,
                count=replayed,
                processes=context.processes,
            )
            total = _sum(total, gradients)
            metrics |= {"replay_loss": loss, "replay_accuracy": accuracy}
            self.switch.observe(context.step, accuracy)
        apply_gradients(self.optimizer, self.model, total)
        if self.pool.queries:
            metrics["queries"] = float(self.pool.queries.total)
        return metrics | {"api_episode": float(api), "bank_images": float(len(self.bank))}

    def _connect(self, pool: TeacherPool) -> None:
        self.pool = pool
        config = self.config_for(self.config, pool)
        if self.source is autograd_gradient:
            self.source, self.name = config.estimation.source(), _name(config)
        if isinstance(self.source, ZeroOrderGradient):
            self.source.resolution = max(self.source.resolution, pool.resolution)

    def _can_replay(self) -> bool:
        episode = self.config.replay.episode
        return len(self.bank.ready(episode.replay_shots + episode.replay_queries)) >= self.ways

    def _api_episode(self, step: int, generator: torch.Generator) -> tuple[Parameters, dict[str, float], list[Task]]:
        """Gradient of the outer distillation loss with respect to the meta-model, metrics, and what was recovered."""
        config, recovery, device = self.config, self.config.inversion, next(self.model.parameters()).device
        teacher = self.pool.load(int(torch.randint(len(self.pool), (), generator=generator)))
        outputs = choose_outputs(teacher.num_classes, self.ways, generator)
        self._afford(len(outputs) * recovery.images_per_class)
        started = now(device)
        support = recover(teacher, recovery, self.size, generator, outputs=outputs, source=self.source)
        seconds = now(device) - started
        leaves = {name: value.detach().requires_grad_() for name, value in parameters_of(self.model).items()}
        inner = distillation_of(self.model, teacher, support, outputs, config.distillation, recovery, generator)
        adapted = unroll(
            inner,
            leaves,
            steps=config.distillation_steps,
            lr=config.distillation_lr,
            second_order=config.replay.episode.second_order,
        )
        hard = config.boundary_weight > 0 and step >= config.boundary_start
        renewed = (
            boundary_held(self.model, adapted, outputs, config.boundary_weight, config.boundary_loss) if hard else None
        )
        started = now(device)
        query = recover(teacher, recovery, self.size, generator, renewed=renewed, outputs=outputs, source=self.source)
        seconds += now(device) - started
        loss = distillation_of(self.model, teacher, query, outputs, config.distillation, recovery, generator)(adapted)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        metrics = {"kd_loss": loss.item(), "boundary": float(hard), "recovery_seconds": seconds}
        return dict(zip(leaves, gradients, strict=True)), metrics, [support, query]

    def _afford(self, images: int) -> None:
        """Spend nothing on an API episode of two sets of `images` that the budget would cut short."""
        if self.pool.queries and isinstance(self.source, ZeroOrderGradient):
            recovered = self.config.inversion.recovery_steps * self.source.queries_per_image
            self.pool.queries.require(2 * images * (recovered + 1))  # Each set is distilled from once.

    def state_dict(self) -> Tree:
        """The common state, the switch and the queries asked so far."""
        queries = self.source.queries if isinstance(self.source, ZeroOrderGradient) else 0
        return super().state_dict() | {"switch": self.switch.state_dict(), "queries": queries}

    def load_state_dict(self, state: Tree, pool: TeacherPool, context: Context) -> None:
        """Take over what `state_dict` gave, in place of `setup`."""
        super().load_state_dict(state, pool, context)
        self._connect(pool)
        self.switch.load_state_dict(state["switch"])
        if isinstance(self.source, ZeroOrderGradient):
            self.source.queries = state["queries"]


def boundary_held(
    model: nn.Module, params: Parameters, outputs: list[int], weight: float, kind: BoundaryLoss = "kl"
) -> Callable[[Tensor], FurtherTerm]:
    """The boundary term against a student that is asked once for each batch, without a graph.

    Only the teacher carries the gradient, and where an estimate perturbs what the teacher sees, the student's answer
    is held while the agreement of both is computed anew, as in the released code. The divergence is the same in either
    case; that code has an L1 distance where gradients are estimated.

    Args:
        model: the meta-model.
        params: the (adapted) student's parameters by name.
        outputs: which of the teacher's outputs the student's first ones are.
        weight: of the term.
        kind: see `boundary_term`.
    """
    params = {name: value.detach() for name, value in params.items()}

    def around(batch: Tensor) -> FurtherTerm:
        with torch.no_grad():
            student = student_logits(model, params, batch, len(outputs))

        def term(images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
            versions = len(logits) // len(student)
            return weight * boundary_terms(logits[:, outputs], student.repeat(versions, 1), kind)

        return term

    return around


def _name(config: BiDfMKDConfig) -> str:
    return "BiDf-MKD" if config.estimation.gradient == "autograd" else "BiDf-MKD (zero-order)"


def _sum(first: Parameters, second: Parameters) -> Parameters:
    return {name: value + second[name] for name, value in first.items()}
