"""Members in timm's own layout: `config.json` names an architecture of timm's registry, ours included."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from hf_dfml.data.registry import IMAGENET_MEAN, IMAGENET_STD
from hf_dfml.networks.timm_network import create_model, default_settings, is_model
from hf_dfml.pool.entry import MemberError, PoolEntry
from hf_dfml.pool.formats.checks import check_input, check_problem_type, is_count, member_labels, one_line

# Arguments of timm.create_model and its builder that load files, fetch weights, choose a place or change what is
# returned. A member may name one of them only to say that it is off.
_FORBIDDEN_ARGS = frozenset(
    "cache_dir checkpoint_path device dtype feature_cfg feature_cls features_only file hf_hub_filename hf_hub_id "
    "kwargs_filter model_cfg model_name out_indices pretrained pretrained_cfg pretrained_cfg_overlay "
    "pretrained_custom_load pretrained_filter_fn pretrained_model_args pretrained_strict pruned state_dict url "
    "variant".split()
)
# How layers are compiled or exported: no weights and no answers depend on it.
_RUNTIME_ARGS = frozenset({"exportable", "no_jit", "scriptable"})
# What this library writes into a pretrained_cfg: of these timm need not be asked whether it knows them.
_OWN_SETTINGS = default_settings("fc", "").keys() | {"crop_mode", "labels"}
_DEPTH_ARG = re.compile(r"(?:.*_)?(?:depths?|layers|blocks|block_config|stages|repeats)")
_MAX_ARG = 65_536
_MAX_DEPTH = 1000
MAX_CLASSES = 100_000
"""Outputs of a network that is loaded."""


def read(id: str, folder: Path | None, revision: str | None, config: dict[str, Any]) -> PoolEntry:
    """The entry of a timm member.

    Raises:
        MemberError: if the config cannot be used.
    """
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        raise MemberError(id, "config.json names no architecture")
    # is_model strips a tag such as '.a1_in1k'; a path or an address is no registered name and so never gets further.
    if not is_model(architecture):
        raise MemberError(id, f"architecture '{architecture[:80]}' is not one that timm or hf_dfml knows")
    # Old exports have the pretrained_cfg's keys at the top level.
    settings = config.get("pretrained_cfg", config)
    if not isinstance(settings, dict):
        raise MemberError(id, "pretrained_cfg in config.json is not an object")
    unknown = sorted(settings.keys() - _OWN_SETTINGS)
    if unknown and "pretrained_cfg" in config:
        from timm.models import PretrainedCfg

        unknown = sorted(set(unknown) - PretrainedCfg.__dataclass_fields__.keys())
    if unknown and "pretrained_cfg" in config:
        raise MemberError(id, f"pretrained_cfg has a key that timm does not know: '{unknown[0][:80]}'")
    check_problem_type(id, config)
    labels = config.get("label_names") or settings.get("label_names") or settings.get("labels") or []
    count = len(labels) if isinstance(labels, list) else None
    num_classes: Any = config.get("num_classes", settings.get("num_classes", count or None))
    if not is_count(num_classes) or not 2 <= num_classes <= MAX_CLASSES:
        raise MemberError(id, f"num_classes is {num_classes!r}, expected 2 to {MAX_CLASSES} classes")
    hints = config.get("dfml", {})
    if not isinstance(hints, dict):
        raise MemberError(id, "dfml in config.json is not an object")
    model_args = _check_model_args(id, config.get("model_args") or {})
    if model_args.pop("num_classes", num_classes) != num_classes:
        raise MemberError(id, f"has {num_classes} classes but model_args says {config['model_args']['num_classes']}")
    shape = _input(id, settings, model_args)
    return PoolEntry(
        id=id,
        location=folder,
        revision=revision,
        library="timm",
        architecture=architecture,
        num_classes=num_classes,
        **shape,
        label_names=member_labels(id, _in_output_order(id, labels, num_classes), num_classes),
        model_args=model_args,
        fixed_input_size=_is_fixed(settings, model_args) and "img_size" not in model_args,
        **_hints(id, hints, num_classes),
    )


def build(entry: PoolEntry) -> nn.Module:
    """The member's network with random weights.

    Raises:
        MemberError: if timm cannot build it from the member's config.
    """
    settings: dict[str, Any] = {"input_size": entry.input_size, "mean": entry.mean, "std": entry.std}
    settings |= {"num_classes": entry.num_classes, "fixed_input_size": entry.fixed_input_size}
    try:
        return create_model(
            str(entry.architecture),
            pretrained=False,
            num_classes=entry.num_classes,
            pretrained_cfg_overlay=settings,
            **entry.model_args,
        )
    except Exception as error:  # Arguments of unknown origin make an architecture raise anything at all.
        reason = f"timm cannot build '{entry.architecture}' as configured: {one_line(error)}"
        raise MemberError(entry.id, reason) from error


def _input(id: str, settings: dict[str, Any], model_args: dict[str, Any]) -> dict[str, Any]:
    """Input size and normalisation of RGB images; a network for grey images is given the mean of their channels."""
    size = settings.get("input_size") or [3, 224, 224]  # The defaults are timm's own (PretrainedCfg).
    image_size = model_args.get("img_size")
    if isinstance(size, list) and len(size) == 3:
        # As timm's own loading has it (`timm.models._hub._parse_model_cfg`).
        if image_size is not None and _is_fixed(settings, model_args):
            sides = image_size if isinstance(image_size, list) else [image_size] * 2
            size = [size[0], *sides]
        size = [model_args.pop("in_chans", None) or size[0], *size[1:]]
    mean = settings.get("mean") or list(IMAGENET_MEAN)
    std = settings.get("std") or list(IMAGENET_STD)
    if not (isinstance(size, list) and size[:1] == [1]):
        return check_input(id, size, mean, std)
    # Where mean and std are those of RGB images, timm's loaders take their average.
    grey = [sum(values) / len(values) if _are_numbers(values) else values for values in (mean, std)]
    return check_input(id, [3, *size[1:]], *([value] * 3 for value in grey)) | {"channels": "grey"}


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, int | float) for value in values)


def _is_fixed(settings: dict[str, Any], model_args: dict[str, Any]) -> bool:
    dynamic = model_args.get("dynamic_img_size") or model_args.get("use_naflex")
    return settings.get("fixed_input_size") is True and not dynamic and model_args.get("strict_img_size") is not False


def _in_output_order(id: str, labels: Any, num_classes: int) -> list[Any]:
    """Names from a list, from an object of indices and names (which may leave gaps), or from one string."""
    if isinstance(labels, str):
        return [name.strip() for name in labels.split(",")] if "," in labels else labels.split()
    if isinstance(labels, dict):
        wrong = [key for key in labels if not (re.fullmatch("[0-9]{1,6}", key) and int(key) < num_classes)]
        if wrong:
            reason = f"label_names numbers a class '{wrong[0][:80]}', expected 0 to {num_classes - 1}"
            raise MemberError(id, reason)
        named = {int(key): name for key, name in labels.items()}
        return [named.get(index, f"{id}#{index}") for index in range(num_classes)]
    if not isinstance(labels, list):
        raise MemberError(id, f"label_names is a {type(labels).__name__}, expected a list")
    return labels


def _check_model_args(id: str, args: Any) -> dict[str, Any]:
    """The arguments that the network is built with.

    Which names an architecture knows is timm's to say; here only what they mean is looked at: no files, no addresses,
    no sizes that would build for ever.
    """
    if not isinstance(args, dict):
        raise MemberError(id, f"model_args is a {type(args).__name__}, expected an object")
    kept = {name: value for name, value in args.items() if value is not None and name not in _RUNTIME_ARGS}
    for name, value in args.items():
        if name in _FORBIDDEN_ARGS:
            if value:
                raise MemberError(id, f"model_args sets '{name}', which a member may not")
            kept.pop(name, None)
        items = list(_flatten(value))
        for item in items:
            if not (item is None or isinstance(item, str | bool | float | int)):
                raise MemberError(id, f"model_args '{name}' is not a plain value")
            if isinstance(item, str) and (re.search(r"[/\\]|:", item) or len(item) > 500):
                raise MemberError(id, f"model_args '{name}' looks like a file or an address: '{item[:80]}'")
            if isinstance(item, int | float) and not abs(item) <= _MAX_ARG:
                raise MemberError(id, f"model_args '{name}' is {item}, more than the {_MAX_ARG} allowed")
        depth = sum(abs(item) for item in items if isinstance(item, int))
        if len(items) > _MAX_DEPTH or (_DEPTH_ARG.fullmatch(name) and depth > _MAX_DEPTH):
            raise MemberError(id, f"model_args '{name}' describes more than the {_MAX_DEPTH} layers allowed")
    return kept


def _flatten(value: Any) -> Iterator[Any]:
    waiting = [value]  # Not by recursion: lists may be nested as deeply as JSON is read.
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        else:
            yield item


def _hints(id: str, hints: dict[str, Any], num_classes: int) -> dict[str, Any]:
    dataset, classes, accuracy = hints.get("dataset"), hints.get("classes"), hints.get("val_accuracy")
    if dataset is not None and not isinstance(dataset, str):
        raise MemberError(id, f"dfml.dataset is {dataset!r}, expected a name")
    if classes is not None:
        if not isinstance(classes, list) or not all(isinstance(item, int) for item in classes):
            raise MemberError(id, "dfml.classes is not a list of whole numbers")
        if len(classes) != num_classes:
            raise MemberError(id, f"has {num_classes} classes but {len(classes)} class ids in dfml.classes")
        classes = tuple(classes)
    if accuracy is not None and not (isinstance(accuracy, int | float) and 0 <= accuracy <= 1):
        raise MemberError(id, f"dfml.val_accuracy is {accuracy!r}, expected a number from 0 to 1")
    return {"dataset": dataset, "classes": classes, "val_accuracy": accuracy}
