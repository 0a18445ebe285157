"""DRO: Meta-Learning without Data via Wasserstein Distributionally-Robust Model Fusion.

Zhenyi Wang, Xiaoyang Wang, Li Shen, Qiuling Suo, Kaiqiang Song, Dong Yu, Yan Shen, Mingchen Gao. UAI 2022.

A hyper-network predicts the weights of every pool member from an embedding of the member. Each step:
1. K gradient steps towards the weights of a training member (phi -> phi*).
2. The worst embedding near that of a validation member, in a Wasserstein ball of price gamma.
3. A step with the gradient of that worst case, taken at phi*, applied to phi (offline) or phi* (online).
The meta-model is the network predicted from the mean embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from hf_dfml.learning.channels import channel_groups
from hf_dfml.learning.fusion import State
from hf_dfml.learning.optimal_transport import align_state
from hf_dfml.learning.wasserstein import Ball, largest_curvature, wasserstein2, worst_embedding
from hf_dfml.methods.base import Context, Method
from hf_dfml.methods.paper import Paper
from hf_dfml.methods.weight_space import input_size, member_states, require_same_network
from hf_dfml.networks.hyper_network import HyperNetwork
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.settings import Settings, option, part
from hf_dfml.utils.checkpoint import Tree


class DROConfig(Settings):
    """DRO's hyper-parameters; the paper's where it gives them."""

    online: bool = option(False, "Members arrive one by one and are seen once (Algorithm 2).")
    epochs: int = option(100, "Passes over the meta-training members; online each is seen once.", least=1, common=True)
    lr: float = option(0.03, "Learning rate of SGD on the hyper-network and the embeddings.", above=0)
    inner_steps: int = option(1, "K, steps towards a member before the outer step.", least=0)
    sigma: float = option(1.0, "Scale of the Gaussian likelihood of a member's weights.", above=0)
    align: bool = option(
        False, "Reorder each member's channels to match the first validation member's (not in the paper)."
    )
    embedding_dim: int = option(50, "Size of a task embedding.", least=1)
    embedding_std: float = option(0.1, "Standard deviation of the initial embeddings.")
    validation_fraction: float = option(0.2, "Share of the pool held out for the outer step.")
    gamma_unit: Literal["curvature", "likelihood"] = option(
        "curvature",
        "What gamma counts in: the largest curvature of the loss in e', so that the search has a maximum above 1, or "
        "the likelihood as --sigma scales it.",
    )
    ball: Ball = part(Ball)


class DRO(Method):
    """A meta-model from weights alone: offline (Algorithm 1) or from a stream of members (Algorithm 2).

    Where the paper says nothing: the hyper-network starts with columns of unit length (`HyperNetwork`); the embedding
    of step 1's member keeps that step, which Algorithm 1 would throw away with phi*; the worst embedding starts from
    noise and stays within a radius (`worst_embedding`), and gamma is in units of the loss's curvature, since sigma, on
    which its meaning depends, is not given; batch norm's scale and shift are predicted, its running
    statistics are the average over the members seen.

    Args:
        config: hyper-parameters.
        model: the meta-model, of the pool's architecture and head size.
    """

    name = "DRO"
    paper = Paper(
        title="Meta-Learning without Data via Wasserstein Distributionally-Robust Model Fusion",
        authors="Zhenyi Wang, Xiaoyang Wang, Li Shen, Qiuling Suo, Kaiqiang Song, Dong Yu, Yan Shen, Mingchen Gao",
        venue="UAI",
        year=2022,
    )
    Config = DROConfig
    config: DROConfig

    def __init__(self, config: DROConfig, model: nn.Module) -> None:
        super().__init__(config, model)
        self.num_steps = 0 if config.online else config.epochs  # online: as many as arrive, known from setup on
        self.targets: dict[int, Tensor] = {}
        self.reference: State = {}
        if config.online:
            self.name = "DRO (online)"

    @classmethod
    def config_for(cls, config: DROConfig, pool: TeacherPool) -> DROConfig:
        """The same; members of several kinds are refused before they are loaded."""
        require_same_network(pool)
        return config

    def setup(self, pool: TeacherPool, context: Context) -> None:
        """Split the pool, load what may be kept (all of it offline, the validation members online), initialise.

        Raises:
            ValueError: if members differ in architecture, head size or tensors, or are fewer than two.
        """
        require_same_network(pool)
        if len(pool) < 2:
            raise ValueError(
                f"DRO trains on some members and validates on others: expected at least 2, the pool has {len(pool)}."
            )
        order = torch.randperm(len(pool), generator=context.generator).tolist()
        held_out = min(max(1, round(self.config.validation_fraction * len(pool))), len(pool) - 1)
        self.validation, self.training = order[:held_out], order[held_out:]
        self.hyper = HyperNetwork(self._shapes(), self.config.embedding_dim, context.generator).to(context.device)
        size = (len(pool), self.config.embedding_dim)
        self.embeddings = (self.config.embedding_std * torch.randn(size, generator=context.generator)).to(
            context.device
        )
        self.displacements = torch.zeros_like(self.embeddings)
        self._begin(pool, self.validation if self.config.online else order)
        self._write_model()

    def step(self, context: Context) -> dict[str, float]:
        """Offline one epoch, as many iterations of Algorithm 1 as there are training members; online one arrival."""
        if self.config.online:
            i = self.training[context.step]
            target = self._load(self.pool, i)  # the only time that this member is read
            losses = [self.iterate(i, target, context.generator)]
        else:
            losses = []
            for _ in self.training:
                i = self.training[_draw(len(self.training), context.generator)]
                losses.append(self.iterate(i, self.targets[i], context.generator))
        self._write_model()
        inner, outer = (sum(values) / len(losses) for values in zip(*losses, strict=True))
        raw, moved = self.embeddings[self.validation], self.displacements[self.validation]
        return {
            "inner_loss": inner,
            "outer_loss": outer,
            "wasserstein": wasserstein2(raw, raw + moved),
            # Below this gamma (in units of the likelihood) the search has no maximum, and ends at the radius.
            "bounding_gamma": self._curvature(self.hyper.weight),
            "at_radius": (moved.norm(dim=1) > 0.999 * self.config.ball.ball_radius).float().mean().item(),
        }

    def _curvature(self, weight: Tensor) -> float:
        """Largest curvature of the loss in e' under a hyper-network of this weight."""
        return largest_curvature(weight) / self.config.sigma**2

    def _priced_ball(self, weight: Tensor) -> Ball:
        """The ball with gamma in units of the likelihood, under a hyper-network of this weight."""
        ball = self.config.ball
        if self.config.gamma_unit == "likelihood" or not ball.ball_steps:
            return ball
        return replace(ball, gamma=ball.gamma * self._curvature(weight))

    def iterate(self, i: int, target: Tensor, generator: torch.Generator) -> tuple[float, float]:
        """Steps 1 to 3 with training member `i` and a validation member at random; the inner and the outer loss."""
        config = self.config
        j = self.validation[_draw(len(self.validation), generator)]
        phi: dict[str, Tensor] = dict(self.hyper.named_parameters())
        adapted, inner_loss = phi, torch.tensor(0.0)
        for _ in range(config.inner_steps):
            inner_loss, gradient, pull = self._descent(adapted, self.embeddings[i], target)
            adapted = {name: adapted[name] - config.lr * gradient[name] for name in adapted}
            self.embeddings[i] -= config.lr * pull

        def loss(embedding: Tensor) -> Tensor:
            return self._loss(adapted, embedding, self.targets[j])

        # The curvature grows tenfold within the first epoch: each search has its own price.
        worst = worst_embedding(loss, self.embeddings[j], self._priced_ball(adapted["weight"]), generator)
        self.displacements[j] = worst - self.embeddings[j]
        outer_loss, gradient, pull = self._descent(adapted, worst, self.targets[j])
        if not torch.isfinite(outer_loss):
            raise FloatingPointError(
                "The loss of the hyper-network is not finite (NaN or infinity): lower --lr, or raise --sigma."
            )
        start = adapted if config.online else phi  # the gradient is taken at phi* in both
        with torch.no_grad():
            for name, parameter in self.hyper.named_parameters():
                parameter.copy_(start[name] - config.lr * gradient[name])
        self.embeddings[j] -= config.lr * pull
        return inner_loss.item(), outer_loss.item()

    def state_dict(self) -> Tree:
        """Hyper-network, embeddings and the split; online also what was kept of the members that are gone."""
        state = {
            "hyper": self.hyper.state_dict(),
            "embeddings": self.embeddings,
            "displacements": self.displacements,
            "order": self.validation + self.training,
            "held_out": len(self.validation),
        }
        if self.config.online:
            state["stream"] = {
                "seen": self.seen,
                "statistics": self.statistics,
                "targets": self.targets,
                "reference": self.reference,
            }
        return state

    def load_state_dict(self, state: Tree, pool: TeacherPool, context: Context) -> None:
        """Take over what `state_dict` gave; offline, the members are read from the pool again."""
        self.hyper = HyperNetwork(self._shapes(), self.config.embedding_dim).to(context.device)
        self.hyper.load_state_dict(state["hyper"])
        self.embeddings = state["embeddings"].to(context.device)
        self.displacements = state["displacements"].to(context.device)
        order, held_out = list(state["order"]), state["held_out"]
        self.validation, self.training = order[:held_out], order[held_out:]
        self._begin(pool, [] if self.config.online else order)
        if self.config.online:
            stream = state["stream"]
            self.seen = stream["seen"]
            self.statistics = {name: tensor.to(context.device) for name, tensor in stream["statistics"].items()}
            self.targets = {index: target.to(context.device) for index, target in stream["targets"].items()}
            self.reference = {name: tensor.to(context.device) for name, tensor in stream["reference"].items()}
        self._write_model()

    def _begin(self, pool: TeacherPool, known: Sequence[int]) -> None:
        """Read the members that may be kept, validation members first."""
        self.pool = pool
        if self.config.online:
            self.num_steps = len(self.training)
        self.groups = channel_groups(self.model, input_size(pool)) if self.config.align else []
        self.seen = 0
        self.statistics = {name: torch.zeros_like(buffer, dtype=torch.float64) for name, buffer in self._buffers()}
        self.reference, self.targets = {}, {}
        for index in known:
            self.targets[index] = self._load(pool, index)

    def _load(self, pool: TeacherPool, index: int) -> Tensor:
        """The parameters of one member, flat; its batch-norm statistics enter the average."""
        state = next(member_states(pool, self.model, [index]))
        if self.config.align:
            self.reference = self.reference or state
            state = align_state(state, self.reference, self.groups)[0]
        self.seen += 1
        for name, mean in self.statistics.items():
            mean += (state[name] - mean) / self.seen
        return self.hyper.flatten(state)

    def _loss(self, phi: dict[str, Tensor], embedding: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood of a member's weights (Eq. 3), up to a constant."""
        predicted = torch.func.functional_call(self.hyper, phi, (embedding,))
        return ((predicted - target) ** 2).sum() / self.config.sigma**2

    def _descent(
        self, phi: dict[str, Tensor], embedding: Tensor, target: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss and its gradients with respect to the hyper-network and the embedding."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in phi.items()}
        point = embedding.detach().requires_grad_()
        loss = self._loss(leaves, point, target)
        *gradients, pull = torch.autograd.grad(loss, [*leaves.values(), point])
        return loss.detach(), dict(zip(leaves, gradients, strict=True)), pull

    def _write_model(self) -> None:
        """theta_init = f(mean e) (Algorithm 3), with the averaged batch-norm statistics."""
        with torch.no_grad():
            parameters = self.hyper.split(self.hyper(self.embeddings.mean(0)))
            for name, parameter in self.model.named_parameters():
                parameter.copy_(parameters[name])
            for name, buffer in self._buffers():
                mean = self.statistics[name]
                buffer.copy_(mean if buffer.is_floating_point() else mean.round())

    def _shapes(self) -> dict[str, torch.Size]:
        return {name: parameter.shape for name, parameter in self.model.named_parameters()}

    def _buffers(self) -> list[tuple[str, Tensor]]:
        """The buffers that a state dict holds: batch norm's running statistics."""
        stored = self.model.state_dict().keys()
        return [(name, buffer) for name, buffer in self.model.named_buffers() if name in stored]


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))
