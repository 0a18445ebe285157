"""State on disk: nested dictionaries of tensors and plain values, written atomically, never pickled.

A folder holds `tree.json`, `tree.safetensors` and `sha256` (what `sha256sum -c` reads), so that a file that was cut
off or changed later is found out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

Tree = Any
"""A tensor, a JSON scalar, or a list, tuple or dictionary (keyed by strings or integers) of trees."""
FILES = ("tree.safetensors", "tree.json")
SUMS = "sha256"


def save_tree(folder: Path | str, tree: Tree) -> None:
    """Write `tree` into `folder`, which appears complete or not at all.

    An existing folder of that name is replaced.

    Raises:
        TypeError: for a leaf that is neither a tensor nor a JSON scalar.
        OSError: if it cannot be written, as on a full disk; nothing of it is left, and an existing folder stays.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.partial")
    tensors: dict[str, torch.Tensor] = {}
    structure = _describe(tree, tensors)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_tensors(tensors, temporary / "tree.safetensors")
        (temporary / "tree.json").write_text(json.dumps(structure))
        sums = "".join(f"{sha256_of_new(temporary / name)}  {name}\n" for name in FILES)
        (temporary / SUMS).write_text(sums, encoding="utf-8")
        for name in (*FILES, SUMS):
            _flush(temporary / name)
        replace_folder(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(f"{folder} could not be written, and nothing of it is left: {error}") from error


def load_tree(folder: Path | str, device: torch.device | str = "cpu") -> Tree:
    """Read what `save_tree` wrote, tensors on `device`.

    Raises:
        FileNotFoundError: if `folder` holds no saved tree.
        ValueError: if its files are damaged.
    """
    folder = Path(folder)
    _check(folder)
    structure = json.loads((folder / "tree.json").read_text(encoding="utf-8"))  # Sound, as was just seen.
    tensors = load_file(folder / "tree.safetensors", device=str(device))
    try:
        return _restore(structure, tensors)
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # Not what `save_tree` writes.
        raise ValueError(f"{folder} is no saved state of this version: {type(error).__name__}: {error}") from error


def load_values(folder: Path, name: str) -> dict[str, Any]:
    """A part of what `save_tree` wrote that has no tensors, without loading those that have.

    Raises:
        FileNotFoundError: if `folder` holds no saved tree.
        ValueError: if its files are damaged, or it has no such part.
    """
    _check(folder)
    try:
        structure = json.loads((folder / "tree.json").read_text(encoding="utf-8"))
        return _restore(dict(structure["dict"])[name], {})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is no saved state of this version: it has no '{name}'.") from error


def _check(folder: Path) -> None:
    if not (folder / "tree.json").is_file():
        raise FileNotFoundError(f"{folder} holds no saved state: expected tree.json and tree.safetensors in it.")
    if reason := damage(folder):
        raise ValueError(f"{folder} is damaged ({reason}): delete it, and start the same command again.")


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a saved tree; None where they are as they were written."""
    try:
        if (folder / SUMS).is_file():
            lines = [line.split() for line in (folder / SUMS).read_text(encoding="utf-8").splitlines()]
            wrong = [name for sum, name in lines if sha256_of_new(folder / name) != sum]
            if wrong or sorted(name for _, name in lines) != sorted(FILES):
                return f"{(wrong or [SUMS])[0]} is not what was written"
        else:  # Of an earlier version.
            json.loads((folder / "tree.json").read_text(encoding="utf-8"))
            with safe_open(folder / "tree.safetensors", framework="pt"):
                pass
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        return " ".join(str(error).split())
    return None


def newest_sound(folder: Path) -> tuple[str, dict[str, str]]:
    """The name of the last of a folder's `step-*` that is not damaged, and what is wrong with each later one.

    Raises:
        ValueError: if all are damaged.
    """
    damaged: dict[str, str] = {}
    for step in sorted(folder.glob("step-*"), reverse=True):
        reason = damage(step)
        if reason is None:
            return step.name, damaged
        damaged[step.name] = reason
    each = "; ".join(f"{name}: {reason}" for name, reason in damaged.items())
    raise ValueError(
        f"All checkpoints in {folder} are damaged ({each}): restore one from a copy, or begin again in another "
        "--output_dir."
    )


def save_tensors(tensors: dict[str, torch.Tensor], path: Path | str, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file with the usual mode (644): the library itself makes it for its owner alone (600)."""
    path = Path(path)
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)


def replace_folder(source: Path | None, target: Path) -> None:
    """Move the finished folder `source`, if any, to `target` in place of what stands there.

    What stands there is out of sight (renamed to `.<name>.old`) before its first file is deleted; a kill between the
    two renames leaves it whole under that name.
    """
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    if source is not None:
        source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path | str) -> None:
    """Delete a folder and what is in it, as `replace_folder` does."""
    replace_folder(None, Path(folder))


def atomic_write(path: Path | str, content: str | bytes) -> None:
    """Write a file that is seen complete or not at all.

    In a text, what UTF-8 has no form for (names of files may have such bytes) is written as Python's escape of it.

    Raises:
        OSError: if it cannot be written, as on a full disk; an earlier file of that name stays as it is.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
        _flush(temporary)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(f"{path} could not be written, and what was there is as it was: {error}") from error


def _describe(tree: Tree, tensors: dict[str, torch.Tensor], path: str = "") -> Tree:
    """The structure of `tree` as JSON; its tensors go into `tensors`, on the CPU, under the names of their places."""
    if isinstance(tree, torch.Tensor):
        name = path or "root"
        # Stored as it lies in memory (channels last, ...): the rounding of convolutions depends on it.
        order = sorted(range(tree.ndim), key=tree.stride, reverse=True)
        laid_out = {} if tree.is_contiguous() else {"order": order}
        # Cloned, as two names may share one storage (tied weights).
        tensors[name] = (tree.permute(order) if laid_out else tree).detach().cpu().contiguous().clone()
        return {"tensor": name, **laid_out}
    if isinstance(tree, dict):
        keys = [key if isinstance(key, str) else {"int": key} for key in tree]
        values = [_describe(value, tensors, f"{path}/{key}") for key, value in tree.items()]
        return {"dict": [[key, value] for key, value in zip(keys, values, strict=True)]}
    if isinstance(tree, list | tuple):
        items = [_describe(item, tensors, f"{path}/{index}") for index, item in enumerate(tree)]
        return {"tuple" if isinstance(tree, tuple) else "list": items}
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}
    raise TypeError(f"State at '{path}' is a {type(tree).__name__}: expected a tensor, list, dict or JSON scalar.")


def _restore(structure: Tree, tensors: dict[str, torch.Tensor]) -> Tree:
    """The tree of a structure and tensors that `_describe` gave.

    Raises:
        ValueError: for a part of a kind that is not known.
    """
    if "tensor" in structure:
        tensor, order = tensors[structure["tensor"]], structure.get("order")
        return tensor.permute([order.index(dimension) for dimension in range(len(order))]) if order else tensor
    ((kind, content),) = structure.items()
    if kind == "dict":
        return {k["int"] if isinstance(k, dict) else k: _restore(value, tensors) for k, value in content}
    if kind in ("list", "tuple"):
        items = [_restore(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    if kind == "value":
        return content
    raise ValueError(f"A saved state has a part of kind '{kind}', which is not known: another version wrote it.")


def sha256_of_new(path: Path) -> str:
    """The sha256 of a file's content in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
