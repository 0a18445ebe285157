"""What DRO's table compares with: fresh weights, the average of the pool, and MAML, which sees the data."""

from __future__ import annotations

import torch
from torch import nn

from hf_dfml.learning.fusion import State, average_state
from hf_dfml.methods.base import Context
from hf_dfml.methods.weight_space import WeightSpaceMethod, member_states
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.sinusoids.evaluation import adapt_to_tasks, task_errors
from hf_dfml.sinusoids.tasks import SinusoidTasks
from hf_dfml.utils.progress import progress


class RandomInit(WeightSpaceMethod):
    """The meta-model as it is initialised ("Finetuning" in the table)."""

    name = "Random init"

    def setup(self, pool: TeacherPool, context: Context) -> None:
        """Look at nothing."""


class PoolAverage(WeightSpaceMethod):
    """The element-wise average of all members ("VA" in the table)."""

    name = "Average"

    def fuse(self, pool: TeacherPool, context: Context) -> State:
        """The average, one member in memory at a time."""
        return average_state(member_states(pool, self.model), [entry.id for entry in pool])


def maml(tasks: SinusoidTasks, network: nn.Module, steps: int, generator: torch.Generator) -> nn.Module:
    """MAML (Finn et al., 2017) on the points of the pool's own tasks: 5 inner steps at 0.01, 25 tasks a step."""
    params = dict(network.named_parameters())
    optimizer = torch.optim.Adam(params.values(), 1e-3)
    for _ in progress(range(steps), description="MAML", unit="step"):
        batch = tasks[torch.randint(len(tasks), (25,), generator=generator)]
        support, query = (batch.sample_points(10, generator) for _ in range(2))
        copies = {name: value.expand(25, *value.shape) for name, value in params.items()}
        adapted = adapt_to_tasks(network, copies, *support, lr=0.01, steps=5)
        optimizer.zero_grad()
        task_errors(network, adapted, *query).mean().backward()
        optimizer.step()
    return network.requires_grad_(False)
