"""The pool of the sinusoid benchmark: one small regression network a task, all trained at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from hf_dfml.pool.entry import PoolEntry
from hf_dfml.settings import Settings, option
from hf_dfml.sinusoids.mlp import Mlp
from hf_dfml.sinusoids.tasks import SinusoidTasks


class SinusoidRecipe(Settings):
    """How the members are trained; DRO gives the network and the tasks.

    It does not say how members are initialised. That its transport fusion (2.27 at 5 shots) is no better than its
    plain average (2.30) suggests one initialisation for all, so this is the default: members of independent weights
    have their channels in different orders, which an average does not survive.
    """

    num_models: int = option(100, "Members, one task each.", least=2)
    steps: int = option(1000, "Adam steps.", least=0, common=True)
    points: int = option(50, "Fresh points of a member's task in each step.", least=1)
    lr: float = option(5e-3, "Largest learning rate; it falls to 0 along a cosine.", above=0)
    shared_init: bool = option(True, "Start all members from the same weights.")


@dataclass(frozen=True)
class Regressor:
    """A loaded member: its entry and its network, as a `Teacher` has them."""

    entry: PoolEntry
    network: nn.Module


class StatePool(Sequence[PoolEntry]):
    """Networks in memory with the part of a `ModelPool`'s interface that weight-space methods use.

    Args:
        template: a network of the members' shape.
        states: one state dict a member.
        input_size: size of one input.
    """

    def __init__(
        self, template: nn.Module, states: Sequence[dict[str, Tensor]], input_size: tuple[int, ...] = (1,)
    ) -> None:
        self.template = template
        self.states = list(states)
        kind: dict[str, Any] = {"architecture": type(template).__name__, "input_size": input_size}
        self.entries = [PoolEntry(id=f"member-{index:03d}", **kind) for index in range(len(self.states))]

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> PoolEntry: ...

    @overload
    def __getitem__(self, index: slice) -> list[PoolEntry]: ...

    def __getitem__(self, index: int | slice) -> PoolEntry | list[PoolEntry]:
        return self.entries[index]

    def load(self, member: int) -> Regressor:
        """The member's network, frozen and in eval mode."""
        network = copy.deepcopy(self.template)
        network.load_state_dict(self.states[member])
        return Regressor(self.entries[member], network.requires_grad_(False).eval())


def build_sinusoid_pool(recipe: SinusoidRecipe, generator: torch.Generator) -> tuple[StatePool, SinusoidTasks, float]:
    """Train `recipe.num_models` networks, one task each, as one batched network.

    Args:
        recipe: how.
        generator: draws tasks, initial weights and points.

    Returns:
        the pool, its tasks, and the members' mean squared error on fresh points of their own task.
    """
    tasks = SinusoidTasks.sample(recipe.num_models, generator)
    networks = [new_mlp(generator) for _ in range(1 if recipe.shared_init else recipe.num_models)]
    stacked = {
        name: torch.stack([networks[m % len(networks)].state_dict()[name] for m in range(recipe.num_models)])
        for name in networks[0].state_dict()
    }
    template = networks[0]

    def error(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return ((torch.func.functional_call(template, params, (x,)) - y) ** 2).mean()

    leaves = {name: tensor.requires_grad_() for name, tensor in stacked.items()}
    optimizer = torch.optim.Adam(leaves.values(), recipe.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for _ in range(recipe.steps):
        x, y = tasks.sample_points(recipe.points, generator)
        # Members share no weight, so the gradient of the sum is each member's own.
        loss = torch.func.vmap(error)(leaves, x, y).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        final = torch.func.vmap(error)(leaves, *tasks.sample_points(1000, generator)).mean().item()
    states = [{name: tensor.detach()[m].clone() for name, tensor in leaves.items()} for m in range(recipe.num_models)]
    return StatePool(template, states), tasks, final


def new_mlp(generator: torch.Generator) -> Mlp:
    """A 2 x 50 network with weights drawn from `generator`, the global stream untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        return Mlp()
