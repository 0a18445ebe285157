"""Where a student starts: at the network that its members were fine-tuned from, or at the best of them."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from hf_dfml.learning.fusion import State, average_state
from hf_dfml.networks.info import network_info
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.utils.text import counted

COMPARED = 4
"""Members whose weights are compared with each other, layer by layer."""
RELATED = 0.5
"""Distance of two members' layers below which they come from the same ones: 0 for copies, 1 for independent layers."""


def start_from_pool(model: nn.Module, pool: TeacherPool) -> str:
    """Give `model` weights of the members of its architecture, but for the classifier's.

    Members that were fine-tuned from one network are still near each other, layer by layer: the student starts from
    their average, an estimate of what they share, and takes layers that they do not share from the best of them.
    Where no layer is shared, it starts from the best member; where no member has its architecture, it stays as it is.

    Args:
        model: the student.
        pool: the members.

    Returns:
        What was done, as a sentence.
    """
    own = _weights(model)
    architecture = network_info(model).architecture
    named = sorted(
        (each for each in pool if each.architecture == architecture), key=lambda each: -(each.val_accuracy or 0)
    )
    kin = (entry for entry in named if _fits(_weights(pool.load(entry).network), own))
    first = list(itertools.islice(kin, COMPARED))
    if not first:
        return "The student starts at random: no member has its architecture and size."
    best = _weights(pool.load(first[0]).network)
    shared = shared_tensors(pool, first) & own.keys()
    if not shared:
        model.load_state_dict(model.state_dict() | {name: best[name] for name in own})
        return (
            f"The student starts from {first[0].id}, the best of {counted(len(named), 'member')} of its architecture."
        )
    related = [*first, *kin]
    states = ({name: _weights(pool.load(entry).network)[name] for name in shared} for entry in related)
    ancestor = average_state(states, [entry.id for entry in related])
    model.load_state_dict(model.state_dict() | {name: (best | ancestor)[name] for name in own})
    rest = "" if len(shared) == len(own) else f"; its other layers are those of {first[0].id}, the best of them"
    return (
        f"The student starts from what {len(related)} members were fine-tuned from: the average of the {len(shared)} "
        f"of {len(own)} tensors that they have in common{rest}."
    )


def shared_tensors(pool: TeacherPool, entries: list[PoolEntry]) -> set[str]:
    """Names of the tensors outside of the classifier that members of one architecture have from a common ancestor.

    Weights of two or more dimensions are compared; biases, scales and statistics of a layer go with the layer. The
    distance of two tensors is |a - b|² / (|a|² + |b|²), which is 1 for independent ones; all pairs must be related.
    A single member has no relatives.
    """
    states = [_weights(pool.load(entry).network) for entry in entries]
    if len(states) < 2:
        return set()
    layers = {
        _layer(name): all(
            distance(one[name], other[name]) < RELATED for one, other in itertools.combinations(states, 2)
        )
        for name, tensor in states[0].items()
        if tensor.ndim > 1
    }
    # A normalisation has no weights of its own to compare: it is shared where the layers before it are.
    names, shared, last = list(states[0]), set(), True
    for name in names:
        last = layers.get(_layer(name), last)
        if last:
            shared.add(name)
    return shared if any(layers.values()) else set()


def distance(one: Tensor, other: Tensor) -> float:
    """|a - b|² / (|a|² + |b|²): 0 for equal tensors, about 1 for independent ones of mean 0, 2 for opposite ones.

    Examples:
        >>> import torch
        >>> distance(torch.ones(3), torch.ones(3)), distance(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
        (0.0, 1.0)
    """
    size = one.double().square().sum() + other.double().square().sum()
    return float((one.double() - other.double()).square().sum() / size) if size else 0.0


def _weights(network: nn.Module) -> State:
    info = network_info(network)
    return {name: value for name, value in network.state_dict().items() if not info.in_classifier(name)}


def _fits(weights: State, own: State) -> bool:
    return all(name in weights and weights[name].shape == value.shape for name, value in own.items())


def _layer(name: str) -> str:
    return name.rpartition(".")[0]
