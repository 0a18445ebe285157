"""The probe network of the task embedding: a pretrained backbone, or one made of the pool itself."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from huggingface_hub.utils import httpx

from hf_dfml.learning.fusion import average_state
from hf_dfml.networks.timm_network import is_model
from hf_dfml.pool.backbone import open_backbone
from hf_dfml.pool.entry import MemberError
from hf_dfml.pool.formats.checks import one_line
from hf_dfml.pool.formats.loading import build_network
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.teacher import Teacher
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.settings import meant

logger = logging.getLogger(__name__)


def load_probe(name: str, pool: TeacherPool, size: int = 0) -> Teacher:
    """The network whose Fisher information embeds the tasks.

    Args:
        name: `average` (the element-wise average of the pool), the id of a member, a timm model with pretrained
            weights such as `resnet34.tv_in1k` (the paper's probe), or the folder of a network in timm's layout.
        pool: members are taken from here; where a timm model's weights cannot be had, the pool's average takes its
            place (the first member in a pool of several architectures), and a warning says so.
        size: height and width at which the probe sees images; 0: the largest of the members', or a member's own.

    Raises:
        ValueError: if `name` is neither a member, nor a folder, nor a model that timm has weights for.
    """
    probe = _probe(name, pool)
    return Teacher(replace(probe.entry, input_size=(3, size, size)), probe.network) if size else probe


def _probe(name: str, pool: TeacherPool) -> Teacher:
    for entry in pool:
        if entry.id == name:
            return pool.load(entry)
    repository = check_probe(name, pool)
    if repository is None:
        return _at_the_members_size(open_backbone(name), pool) if Path(name).is_dir() else _average(pool)
    try:
        probe = ModelPool.from_hub([repository]).load(0)
    except (MemberError, OSError, httpx.HTTPError) as error:
        logger.warning("No weights for the probe %s (%s): the pool itself serves as probe.", name, one_line(error))
        return _average(pool)
    return _at_the_members_size(probe, pool)


def _at_the_members_size(probe: Teacher, pool: TeacherPool) -> Teacher:
    """Tasks are embedded at the largest size that a member sees; a probe trained on larger pictures accepts it."""
    sizes = [entry.input_size for entry in pool if entry.input_size]
    return Teacher(replace(probe.entry, input_size=max(sizes, key=lambda size: size[-1])), probe.network)


def check_probe(name: str, pool: TeacherPool) -> str | None:
    """The repository on the Hub of a probe's weights; None where they are in a folder or the pool's own.

    Raises:
        ValueError: if `name` is neither a member, nor a folder, nor a model that timm has weights for.
    """
    if name == "average" or any(entry.id == name for entry in pool) or Path(name).is_dir():
        return None
    import timm

    if not is_model(name):
        near = meant(name, ["average", *(entry.id for entry in pool), *timm.list_pretrained()])
        raise ValueError(
            f"The probe '{name}' is neither 'average', nor a member of the pool, nor a folder, nor a timm model.{near}"
        )
    repository = getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None)
    if not repository:
        raise ValueError(f"timm has no weights for the probe '{name}': name one with a tag, such as resnet34.tv_in1k.")
    return str(repository)


def _average(pool: TeacherPool) -> Teacher:
    first = pool.load(0)
    if len({(entry.architecture, entry.num_classes, entry.input_size) for entry in pool}) > 1:
        logger.warning(
            "The pool has several architectures and so no average: its first member %s is the probe.", pool[0].id
        )
        return first
    network = build_network(pool[0])
    network.load_state_dict(average_state(pool.load(entry).network.state_dict() for entry in pool))
    return Teacher(replace(pool[0], id="average"), network).to(first.mean.device)
