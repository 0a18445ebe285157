"""What the systems that look at weights only have in common: one kind of network, its members' states, the product."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from hf_dfml.learning.fusion import State, check_same_tensors
from hf_dfml.methods.base import Context, Method
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.utils.progress import progress


class WeightSpaceMethod(Method):
    """A method whose meta-model is written by `setup` and needs no steps.

    Args:
        config: hyper-parameters.
        model: the meta-model, on its device; of the same architecture and head size as the pool.
    """

    def setup(self, pool: TeacherPool, context: Context) -> None:
        """Fuse the pool into the meta-model.

        Raises:
            ValueError: if members differ in architecture, head size or tensors; it names them.
        """
        require_same_network(pool)
        self.model.load_state_dict(self.fuse(pool, context))

    def fuse(self, pool: TeacherPool, context: Context) -> State:
        """The meta-model's state dict; each method's own."""
        raise TypeError(f"{type(self).__name__} does not say how it fuses a pool.")

    def step(self, context: Context) -> dict[str, float]:
        """Nothing is left to do."""
        return {}


def run_without_trainer(method: Method, pool: TeacherPool, context: Context) -> nn.Module:
    """The meta-model of a method whose whole run takes seconds: setup and all steps, no validation, no checkpoint."""
    method.setup(pool, context)
    for step in progress(range(method.num_steps), description=method.name, unit="step"):
        context.step = step
        method.step(context)
    return method.snapshot(context)


def require_same_network(entries: Iterable[PoolEntry]) -> None:
    """Make sure from the metadata alone that all members are networks of one shape.

    Raises:
        ValueError: with each kind of network and the members that are one.
    """
    kinds: dict[str, list[str]] = {}
    for entry in entries:
        if entry.architecture is not None:
            size = "x".join(str(side) for side in entry.input_size or ())
            kind = f"{entry.architecture} with {entry.num_classes} outputs for {size} inputs"
            if entry.model_args:
                kind += f" and {entry.model_args}"
            kinds.setdefault(kind, []).append(entry.id)
    if len(kinds) > 1:
        found = "; ".join(
            f"{kind}: {_some(ids)}" for kind, ids in sorted(kinds.items(), key=lambda kind: -len(kind[1]))
        )
        raise ValueError(
            f"A method that works on weights needs members of one architecture and head size, found {len(kinds)}: "
            f"{found}. Keep one kind with pool.filter(...), or use a method that recovers images."
        )


def member_states(pool: TeacherPool, model: nn.Module, indices: Iterable[int] | None = None) -> Iterator[State]:
    """State dicts of the members, loaded one by one, on the device of `model`.

    Args:
        pool: the members.
        model: the network that they must fit.
        indices: which members, in this order; all by default.

    Raises:
        ValueError: naming the first member whose tensors do not fit `model`.
    """
    wanted = model.state_dict()
    device = next(iter(wanted.values())).device
    for index in range(len(pool)) if indices is None else indices:
        state: dict[str, Tensor] = pool.load(index).network.state_dict()
        check_same_tensors(wanted, state, "the meta-model", pool[index].id)
        yield {name: tensor.to(device) for name, tensor in state.items()}


def input_size(pool: TeacherPool) -> tuple[int, ...]:
    """Size of one input of the pool's networks.

    Raises:
        ValueError: if the first member does not say.
    """
    size = pool[0].input_size
    if size is None:
        raise ValueError(f"Member '{pool[0].id}' does not say its input size: resolve the pool first.")
    return tuple(size)


def _some(ids: list[str], most: int = 5) -> str:
    rest = len(ids) - most
    return ", ".join(ids[:most]) + (f" and {rest} more" if rest > 0 else "")
