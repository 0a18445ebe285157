"""Members in timm's own layout: `config.json` names an architecture of timm's registry, ours included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
from torch import nn

from hf_dfml.pool.entry import MemberError, PoolEntry
from hf_dfml.pool.formats.checks import check_input, check_labels, is_count, one_line

# Arguments of timm.create_model and its builder that load files, fetch weights or change what is returned. A config
# has no business with them.
_FORBIDDEN_ARGS = frozenset(
    "cache_dir checkpoint_path exportable feature_cfg feature_cls features_only kwargs_filter model_cfg model_name "
    "no_jit num_classes out_indices pretrained pretrained_cfg pretrained_cfg_overlay pretrained_custom_load "
    "pretrained_filter_fn pretrained_model_args pretrained_strict pruned scriptable variant device dtype".split()
)
_MAX_ARG = 65_536
_MAX_CLASSES = 100_000


def read(id: str, folder: Path | None, revision: str | None, config: dict[str, Any]) -> PoolEntry:
    """The entry of a timm member.

    Raises:
        MemberError: if the config cannot be used.
    """
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        raise MemberError(id, "config.json names no architecture")
    # is_model strips a tag such as '.a1_in1k'; a path or an address is no registered name and so never gets further.
    if not timm.is_model(architecture):
        raise MemberError(id, f"architecture '{architecture[:80]}' is not one that timm or hf_dfml knows")
    # Old exports have the pretrained_cfg's keys at the top level.
    settings = config.get("pretrained_cfg", config)
    if not isinstance(settings, dict):
        raise MemberError(id, "pretrained_cfg in config.json is not an object")
    labels = _labels(id, config.get("label_names") or settings.get("label_names") or settings.get("labels") or [])
    num_classes: Any = config.get("num_classes", settings.get("num_classes", len(labels) or None))
    if not is_count(num_classes) or num_classes > _MAX_CLASSES:
        raise MemberError(id, f"num_classes is {num_classes!r}, expected 1 to {_MAX_CLASSES} classes")
    hints = config.get("dfml", {})
    if not isinstance(hints, dict):
        raise MemberError(id, "dfml in config.json is not an object")
    model_args = _check_model_args(id, config.get("model_args") or {})
    return PoolEntry(
        id=id,
        location=folder,
        revision=revision,
        library="timm",
        architecture=architecture,
        num_classes=num_classes,
        # The defaults are timm's own (PretrainedCfg).
        **check_input(
            id,
            settings.get("input_size", [3, 224, 224]),
            settings.get("mean", timm.data.IMAGENET_DEFAULT_MEAN),
            settings.get("std", timm.data.IMAGENET_DEFAULT_STD),
        ),
        label_names=check_labels(id, labels, num_classes) if labels else (),
        model_args=model_args,
        fixed_input_size=settings.get("fixed_input_size") is True and "img_size" not in model_args,
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
        return timm.create_model(
            str(entry.architecture),
            pretrained=False,
            num_classes=entry.num_classes,
            pretrained_cfg_overlay=settings,
            **entry.model_args,
        )
    except Exception as error:  # Arguments that nobody vouches for make an architecture raise anything at all.
        reason = f"timm cannot build '{entry.architecture}' as configured: {one_line(error)}"
        raise MemberError(entry.id, reason) from error


def _labels(id: str, labels: Any) -> list[Any]:
    if isinstance(labels, dict):
        return list(labels.values())
    if not isinstance(labels, list):
        raise MemberError(id, f"label_names is a {type(labels).__name__}, expected a list")
    return labels


def _check_model_args(id: str, args: Any) -> dict[str, Any]:
    if not isinstance(args, dict):
        raise MemberError(id, f"model_args is a {type(args).__name__}, expected an object")
    for name, value in args.items():
        if name in _FORBIDDEN_ARGS:
            raise MemberError(id, f"model_args sets '{name}', which a member may not")
        for item in _flatten(value):
            # A width or depth of billions would build for ever; nested objects are no argument of a classifier.
            if not (item is None or isinstance(item, str | bool | float | int)):
                raise MemberError(id, f"model_args '{name}' is not a plain value")
            if isinstance(item, int | float) and not abs(item) <= _MAX_ARG:
                raise MemberError(id, f"model_args '{name}' is {item}, more than the {_MAX_ARG} allowed")
    return dict(args)


def _flatten(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for item in value:
            yield from _flatten(item)
    else:
        yield value


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
