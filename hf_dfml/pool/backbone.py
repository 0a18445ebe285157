"""A public network to start from: a folder, a repository, or the name of one of timm's pretrained networks."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from hf_dfml.networks.info import network_info, set_input
from hf_dfml.networks.timm_network import is_model
from hf_dfml.pool.entry import MemberError
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.teacher import Teacher


def find_backbone(name: str) -> ModelPool:
    """A pretrained network as a pool of one member whose weights are not read yet.

    Args:
        name: a folder with `config.json` and `model.safetensors`, a Hub id, or a timm name with pretrained weights
            (`resnet18`, `resnet18.a1_in1k`).

    Raises:
        FileNotFoundError: if there is none of that name.
        ValueError: if it names several networks, or one that cannot be used or is not of timm's layout.
    """
    pool = ModelPool.open(_address(name)).resolve()
    if len(pool) != 1:
        raise ValueError(f"{name} holds {len(pool)} networks: name the folder or the repository of one.")
    entry = pool[0]
    if entry.problem is not None:
        raise MemberError(entry.id, entry.problem)
    if entry.library != "timm":
        raise ValueError(f"{name} is a network of {entry.library}: to start from it, name one of timm's layout.")
    return pool


def open_backbone(name: str) -> Teacher:
    """A pretrained network, read as safely as a member of a pool is; raises what `find_backbone` does."""
    return find_backbone(name).load(0)


def started_from(backbone: Teacher, *, num_classes: int, image_size: int, generator: torch.Generator) -> nn.Module:
    """A copy of a backbone with a fresh classifier, for images of another size.

    Args:
        backbone: from `open_backbone`.
        num_classes: outputs.
        image_size: height and width of its images.
        generator: seeds the classifier.

    Raises:
        ValueError: if the backbone takes images of one size only, and not of this one.
    """
    entry, network = backbone.entry, copy.deepcopy(backbone.network)
    model_args = dict(entry.model_args)
    assert entry.input_size is not None and entry.mean is not None and entry.std is not None
    fixed = entry.fixed_input_size or "img_size" in model_args
    if entry.input_size[1:] != (image_size, image_size) and fixed:
        if not hasattr(network, "set_input_size"):
            height, width = entry.input_size[1:]
            raise ValueError(
                f"{entry.id} ({entry.architecture}) takes images of {height}x{width} pixels only: set image_size to "
                f"{height}, or name another backbone; found {image_size}."
            )
        network.set_input_size(img_size=image_size)  # type: ignore[operator]
        model_args["img_size"] = image_size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        network_info(network).reset_classifier(num_classes)
    further = {"num_classes": num_classes, "model_args": model_args, "started_from": entry.id}
    set_input(network, (3, image_size, image_size), entry.mean, entry.std, **further)
    return network.requires_grad_(True)


def _address(name: str) -> str:
    import timm

    if Path(name).exists() or "/" in name or not is_model(name):
        return name
    known = timm.get_pretrained_cfg(name)
    hub_id = known.hf_hub_id if known else None
    if not hub_id:
        raise MemberError(name, "timm has no pretrained weights of it on the Hub: name a folder or another network")
    return f"hf:{hub_id}"
