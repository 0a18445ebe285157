"""Members that are image classifiers of `transformers`, loaded from local files, never with code of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_dfml.networks.info import set_input
from hf_dfml.pool.entry import CONFIG_NAME, PREPROCESSOR_NAME, MemberError, PoolEntry
from hf_dfml.pool.formats.checks import check_problem_type, is_count, member_labels, one_line, read_json
from hf_dfml.pool.formats.processors import preprocessing

# Keys of a config that make transformers fetch or run something beside its own model code.
_FORBIDDEN_KEYS = {
    "auto_map": "names Python code of its own (auto_map), which is never run",
    "custom_pipelines": "names Python code of its own (custom_pipelines), which is never run",
    "quantization_config": "has quantised weights, which are not supported",
    "attn_implementation": "asks for an attention kernel, which is never fetched",
    "_attn_implementation": "asks for an attention kernel, which is never fetched",
    "_attn_implementation_internal": "asks for an attention kernel, which is never fetched",
    "experts_implementation": "asks for a kernel, which is never fetched",
    "use_timm_backbone": "is built around a second model (use_timm_backbone), which is not supported",
    "use_pretrained_backbone": "is built around a second model (use_pretrained_backbone), which is not supported",
    "backbone": "is built around a second model (backbone), which is not supported",
    "backbone_config": "is built around a second model (backbone_config), which is not supported",
    "transformers_weights": "names a weights file of its own (transformers_weights), which is not supported",
    "configuration_files": "names further configs (configuration_files), which are not supported",
    "fusion_config": "asks for fused layers (fusion_config), which are not supported",
}
_DEPTH_KEYS = ("num_hidden_layers", "depths", "depth", "num_layers", "encoder_layers")
_MAX_DEPTH = 1000


def read(id: str, folder: Path, revision: str | None, config: dict[str, Any]) -> PoolEntry:
    """The entry of a transformers member.

    Raises:
        MemberError: if the config cannot be used.
    """
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else None
    if not (isinstance(architecture, str) and re.fullmatch(r"\w{1,80}ForImageClassification", architecture)):
        raise MemberError(id, f"architectures is {str(names)[:80]}, expected one ...ForImageClassification")
    _check_keys(id, config)
    if (folder / "adapter_config.json").exists():  # transformers would load the model that it names instead.
        raise MemberError(id, "is an adapter (adapter_config.json), not a whole model")
    labels = _labels(id, config)
    num_classes = len(labels) if labels else config.get("num_labels", 2)
    if not is_count(num_classes) or num_classes < 2:
        raise MemberError(id, f"num_labels is {num_classes!r}, expected a classifier of at least 2 classes")
    return PoolEntry(
        id=id,
        location=folder,
        revision=revision,
        library="transformers",
        architecture=architecture,
        num_classes=num_classes,
        label_names=member_labels(id, labels, num_classes),
        **preprocessing(id, read_json(id, folder / PREPROCESSOR_NAME)),
    )


def build(entry: PoolEntry) -> nn.Module:
    """The member's network, as its config describes it, with random weights.

    Raises:
        MemberError: if transformers has no such model or cannot build it.
    """
    from transformers import CONFIG_MAPPING, AutoModelForImageClassification

    assert entry.location is not None
    content = read_json(entry.id, entry.location / CONFIG_NAME)
    _check_keys(entry.id, content)
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        reason = f"transformers cannot build '{entry.architecture}' as configured"
        raise MemberError(entry.id, f"{reason}: it knows no model_type {str(kind)[:80]!r}")
    try:
        # Not `AutoConfig.from_pretrained`, which reads another file where config.json says so.
        config = CONFIG_MAPPING[kind].from_dict(content)
        network = AutoModelForImageClassification.from_config(config, attn_implementation="eager")
    except Exception as error:  # A config of unknown origin makes a model's constructor raise anything at all.
        raise MemberError(
            entry.id, f"transformers cannot build '{entry.architecture}' as configured: {one_line(error)}"
        ) from error
    if type(network).__name__ != entry.architecture:
        raise MemberError(
            entry.id, f"config.json says '{entry.architecture}' but describes a {type(network).__name__}"
        )
    set_input(network, entry.input_size or (), entry.mean or (), entry.std or ())
    return network


def load(entry: PoolEntry, like: Any, state: dict[str, Tensor]) -> nn.Module:
    """The member's network with its weights, in float32.

    Args:
        entry: the member.
        like: what `build` gives of it.
        state: the tensors of its weights file, under the names that they have there.

    Raises:
        MemberError: if the weights do not fit the config.
    """
    try:
        # No folder: transformers would look for further files in it, and open them.
        network, report = type(like).from_pretrained(
            None,
            config=like.config,
            state_dict=state,
            output_loading_info=True,
            attn_implementation="eager",
            dtype=torch.float32,
        )
    except Exception as error:  # As above: the files are foreign, and so is what they make transformers raise.
        raise MemberError(entry.id, f"transformers cannot load it: {one_line(error)}") from error
    missing = [name for name in report["missing_keys"] if not name.endswith("num_batches_tracked")]
    for what, keys in (("is missing", missing), ("does not fit", report["mismatched_keys"])):
        if keys:
            raise MemberError(entry.id, f"tensors do not fit the config: {sorted(map(str, keys))[0]} {what}")
    if entry.channels == "bgr":
        _take_rgb(entry.id, network)
    set_input(network, entry.input_size or (), entry.mean or (), entry.std or ())
    return network


def _take_rgb(id: str, network: nn.Module) -> None:
    """Let a network for BGR images take RGB: its first layer's weights change places."""
    first = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d) and layer.in_channels == 3]
    if len(first) != 1:
        reason = f"takes BGR images and has {len(first)} layers of 3 channels, expected one to convert"
        raise MemberError(id, reason)
    first[0].weight.data = first[0].weight.data.flip(1)


def _check_keys(id: str, config: dict[str, Any]) -> None:
    for key, reason in _FORBIDDEN_KEYS.items():
        if config.get(key):
            raise MemberError(id, reason)
    check_problem_type(id, config)
    if config.get("num_channels", 3) != 3:
        raise MemberError(id, f"takes images of {config['num_channels']} channels, expected 3 (RGB)")
    if str(config.get("model_type", "")).startswith("timm"):
        raise MemberError(
            id,
            f"model_type '{config['model_type']}' wraps a timm model but config.json names no architecture of timm's",
        )
    for key in _DEPTH_KEYS:
        values = config.get(key)
        numbers = [value for value in (values if isinstance(values, list) else [values]) if isinstance(value, int)]
        if sum(numbers) > _MAX_DEPTH:
            raise MemberError(id, f"{key} is {values}, more than the {_MAX_DEPTH} layers allowed")


def _labels(id: str, config: dict[str, Any]) -> list[Any]:
    named = config.get("id2label") or {}
    if not isinstance(named, dict):
        raise MemberError(id, f"id2label is a {type(named).__name__}, expected an object")
    if sorted(named) != sorted(str(index) for index in range(len(named))):
        raise MemberError(id, f"id2label does not number its {len(named)} classes from 0 to {len(named) - 1}")
    labels = [named[str(index)] for index in range(len(named))]
    return labels
