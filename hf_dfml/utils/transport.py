"""Values on their way from one process to another: one safetensors message of tensors and JSON, never a pickle."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from safetensors.torch import load, save

from hf_dfml.utils.checkpoint import describe, restore

STRUCTURE = "structure"
"""Name of the tensor whose bytes are the JSON; names of other tensors are places (`/0/images`) or `root`."""


def pack(value: Any) -> bytes:
    """The message of a value: a tree (`hf_dfml.utils.checkpoint.Tree`) that may have dataclasses of trees in it.

    Tensors lose their graph.

    Raises:
        TypeError: for anything else.

    Examples:
        >>> unpack(pack({"loss": 0.1, "images": (torch.ones(2), [])}))
        {'loss': 0.1, 'images': (tensor([1., 1.]), [])}
    """
    tensors: dict[str, torch.Tensor] = {}

    def record(other: Any, path: str) -> dict[str, Any]:
        if not is_dataclass(other) or isinstance(other, type):
            raise TypeError(
                f"An object of {type(other)} (at '{path}') cannot go from one process to another: expected tensors, "
                "numbers, strings, None, or lists, tuples, dictionaries or dataclasses of these."
            )
        content = {field.name: getattr(other, field.name) for field in fields(other)}
        return {"dataclass": [name_of(type(other)), describe(content, tensors, path, record)]}

    structure = json.dumps(describe(value, tensors, other=record))
    tensors[STRUCTURE] = torch.frombuffer(bytearray(structure.encode()), dtype=torch.uint8)
    return save(tensors)


def unpack(message: bytes, device: torch.device | str = "cpu") -> Any:
    """The value of a message, tensors on `device`.

    Raises:
        ValueError: if a dataclass is none of this library that has been imported.
    """
    tensors = load(message)
    structure = json.loads(tensors.pop(STRUCTURE).numpy().tobytes())
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}

    def rebuild(kind: str, content: Any) -> Any:
        name, described = content
        found = class_of(name)
        ours = name.startswith("hf_dfml.") and isinstance(found, type) and is_dataclass(found)
        if kind != "dataclass" or not ours:
            raise ValueError(f"Another process has sent a {name}, which is no dataclass that is known here.")
        return found(**restore(described, tensors, rebuild))

    return restore(structure, tensors, rebuild)


def name_of(kind: type) -> str:
    """Of a class: `module:name`."""
    return f"{kind.__module__}:{kind.__qualname__}"


def class_of(name: str) -> Any:
    """What `name_of` named, if its module has been imported; nothing is imported for it. None if there is no such."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found
