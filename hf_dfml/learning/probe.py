"""The probe network of the task embedding: a pretrained backbone, or one made of the pool itself."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import timm

from hf_dfml.learning.fusion import average_state
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.loading import build_network
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.teacher import Teacher

logger = logging.getLogger(__name__)


def load_probe(name: str, pool: ModelPool) -> Teacher:
    """The network whose Fisher information embeds the tasks.

    Args:
        name: `average` (the element-wise average of the pool), the id of a member, or a timm model with pretrained
            weights such as `resnet34.tv_in1k` (the paper's probe).
        pool: members are taken from here; where a timm model's weights cannot be had, the pool's average takes its
            place (the first member in a pool of several architectures), and a warning says so.

    Raises:
        ValueError: if `name` is neither a member nor a model that timm knows.
    """
    for entry in pool:
        if entry.id == name:
            return pool.load(entry)
    if name == "average":
        return _average(pool)
    if not timm.is_model(name):
        raise ValueError(f"The probe '{name}' is neither 'average', nor a member of the pool, nor a timm model.")
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # timm lets through whatever the network stack raises; each means "no weights here".
        logger.warning(
            "No weights for the probe %s (%s); the pool itself serves as probe.", name, type(error).__name__
        )
        return _average(pool)
    settings: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
    entry = PoolEntry(
        id=name,
        architecture=name,
        num_classes=settings["num_classes"],
        # Tasks are embedded at their own size; a probe trained on larger pictures accepts it.
        input_size=pool[0].input_size,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
    return Teacher(entry, network)


def _average(pool: ModelPool) -> Teacher:
    first = pool.load(0)
    if len({(entry.architecture, entry.num_classes, entry.input_size) for entry in pool}) > 1:
        logger.warning(
            "The pool has several architectures and so no average: its first member %s is the probe.", pool[0].id
        )
        return first
    network = build_network(pool[0])
    network.load_state_dict(average_state(pool.load(entry).network.state_dict() for entry in pool))
    return Teacher(replace(pool[0], id="average"), network).to(first.mean.device)
