"""MFGP: Gaussian processes from task embeddings to a latent code, decoded into the weights of a network.

Zhenyi Wang et al. UAI 2022, supplement 1.1 (a baseline of DRO), on GPyTorch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hf_dfml.learning.fusion import average_state
from hf_dfml.methods.base import Context
from hf_dfml.methods.dro import DRO
from hf_dfml.methods.weight_space import WeightSpaceMethod, member_states, require_same_network
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.settings import Settings, option
from hf_dfml.utils.checkpoint import Tree

SMALLEST_STD = 0.01
"""Least standard deviation of a weight under the model."""


class MFGPConfig(Settings):
    """MFGP's hyper-parameters; the sizes are the paper's, how it is trained is ours (the paper does not say)."""

    steps: int = option(1000, "Adam steps on the evidence lower bound.", least=0, common=True)
    lr: float = option(5e-3, "Learning rate of Adam; it falls to 0 along a cosine.", above=0)
    batch_size: int = option(10, "Members a step.", least=2)
    embedding_dim: int = option(50, "Size of a task embedding.", least=1)
    embedding_std: float = option(0.1, "Standard deviation of the initial embeddings.")
    processes: int = option(10, "Independent sparse Gaussian processes.", least=1)
    inducing_points: int = option(20, "Inducing points of each.", least=1)
    noise_dim: int = option(100, "Size of the noise that the base module is given.", least=1)
    base_dim: int = option(100, "Size of w0, the part of the code that no task has a say in.", least=1)


class MFGP(WeightSpaceMethod):
    """Model fusion with Gaussian processes.

    A base module turns noise into a Gaussian over w0, the processes turn a task's embedding into w, a crossing module
    turns (w0, w) into a Gaussian over a member's weights; all of it, embeddings included, is trained by the evidence
    lower bound. The meta-model is the mean at the mean embedding.

    Args:
        config: hyper-parameters.
        model: the meta-model, of the pool's architecture and head size.

    Raises:
        ModuleNotFoundError: at `setup`, without the extra `gp`.
    """

    name = "MFGP"
    paper = DRO.paper
    Config = MFGPConfig
    config: MFGPConfig

    def setup(self, pool: TeacherPool, context: Context) -> None:
        """Load all members, initialise processes and modules.

        Raises:
            ValueError: if members differ in architecture, head size or tensors.
        """
        require_same_network(pool)
        self._build(pool, context, context.generator)

    def step(self, context: Context) -> dict[str, float]:
        """One step on a minibatch of members; the negative bound per member."""
        count = len(self.targets)
        batch = torch.randperm(count, generator=context.generator)[: self.config.batch_size]
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * 0.5 * (1 + math.cos(math.pi * context.step / self.num_steps))
        # GPyTorch samples from the global stream: it is lent a piece of ours.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=context.generator)))
            log_likelihood, base_divergence = self.fusion(batch.to(self.targets.device), self.targets)
        bound = log_likelihood - base_divergence - self.fusion.process_divergence() / count
        if not torch.isfinite(bound):
            raise FloatingPointError("MFGP's evidence lower bound is not finite (NaN or infinity): lower --lr.")
        self.optimizer.zero_grad()
        (-bound / self.targets.shape[1]).backward()
        self.optimizer.step()
        if context.step + 1 == self.num_steps:
            self._write_model()
        return {"negative_bound": -bound.item()}

    def snapshot(self, context: Context) -> nn.Module:
        """A copy of the meta-model at the mean embedding."""
        self._write_model()
        return super().snapshot(context)

    def state_dict(self) -> Tree:
        """Processes, modules, embeddings and optimiser."""
        return {"fusion": self.fusion.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Tree, pool: TeacherPool, context: Context) -> None:
        """Take over what `state_dict` gave; the members are read from the pool again."""
        self._build(pool, context, torch.Generator().manual_seed(0))
        self.fusion.load_state_dict(state["fusion"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._write_model()

    def _build(self, pool: TeacherPool, context: Context, generator: torch.Generator) -> None:
        states = list(member_states(pool, self.model))
        names = [name for name, _ in self.model.named_parameters()]
        self.targets = torch.stack([torch.cat([state[name].flatten() for name in names]) for state in states])
        self.model.load_state_dict(average_state(states, [entry.id for entry in pool]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            self.fusion = _fusion(self.config, *self.targets.shape).to(context.device)
        self.optimizer = torch.optim.Adam(self.fusion.parameters(), self.config.lr)

    def _write_model(self) -> None:
        with torch.no_grad():
            flat = self.fusion.mean_weights()
            parameters = list(self.model.parameters())
            for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
                parameter.copy_(part.view_as(parameter))


def _fusion(config: MFGPConfig, num_members: int, num_targets: int) -> Any:
    try:
        import gpytorch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "MFGP needs GPyTorch, which is not installed: pip install 'hf_dfml[gp]' (or pip install gpytorch)."
        ) from error

    class Processes(gpytorch.models.ApproximateGP):
        """Independent sparse processes over embeddings."""

        def __init__(self) -> None:
            batch = torch.Size([config.processes])
            points = config.embedding_std * torch.randn(*batch, config.inducing_points, config.embedding_dim)
            posterior = gpytorch.variational.CholeskyVariationalDistribution(config.inducing_points, batch_shape=batch)
            super().__init__(
                gpytorch.variational.IndependentMultitaskVariationalStrategy(
                    gpytorch.variational.VariationalStrategy(self, points, posterior), num_tasks=config.processes
                )
            )
            self.mean_module = gpytorch.means.ConstantMean(batch_shape=batch)
            self.covar_module = gpytorch.kernels.ScaleKernel(
                gpytorch.kernels.RBFKernel(batch_shape=batch), batch_shape=batch
            )

        def forward(self, embeddings: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(
                self.mean_module(embeddings), self.covar_module(embeddings)
            )

    class Fusion(nn.Module):
        """The whole model: embeddings, base module, processes, crossing module."""

        def __init__(self) -> None:
            super().__init__()
            self.embeddings = nn.Parameter(config.embedding_std * torch.randn(num_members, config.embedding_dim))
            self.base = nn.Linear(config.noise_dim, 2 * config.base_dim)
            self.processes = Processes()
            self.crossing = nn.Linear(config.base_dim + config.processes, 2 * num_targets)
            with torch.no_grad():
                # Small at first, so that w and w0 shift the weights by less than the weights' own size.
                self.crossing.weight.mul_(0.1)

        def forward(self, batch: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            """Log-likelihood and divergence of w0, both a member."""
            noise = torch.randn(len(batch), config.noise_dim, device=targets.device)
            mean, log_scale = self.base(noise).chunk(2, -1)
            w0 = mean + log_scale.exp() * torch.randn_like(mean)
            w = self.processes(self.embeddings[batch]).rsample()
            weights, raw_std = self.crossing(torch.cat([w0, w], -1)).chunk(2, -1)
            # The floor keeps weights that all members share from driving the likelihood to infinity.
            std = nn.functional.softplus(raw_std) + SMALLEST_STD
            residual = (targets[batch] - weights) / std
            log_likelihood = (-0.5 * residual**2 - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1).mean()
            divergence = 0.5 * (mean**2 + torch.exp(2 * log_scale) - 2 * log_scale - 1).sum(-1).mean()
            return log_likelihood, divergence

        def process_divergence(self) -> Tensor:
            return self.processes.variational_strategy.kl_divergence().sum()

        def mean_weights(self) -> Tensor:
            """The mean of the weights at the mean embedding, for noise at its mean."""
            self.processes.eval()
            w = self.processes(self.embeddings.mean(0, keepdim=True)).mean
            self.processes.train()
            w0 = self.base(torch.zeros(1, config.noise_dim, device=w.device)).chunk(2, -1)[0]
            return self.crossing(torch.cat([w0, w], -1)).chunk(2, -1)[0][0]

    return Fusion()
