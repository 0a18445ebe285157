"""Checks of what a config says, each refusing with one line that names the member."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_dfml.pool.entry import MemberError
from hf_dfml.utils import json_files

_PLACEHOLDER = re.compile(r"label[_ -]?\d+", re.IGNORECASE)
_LFS_START = b"version https://git-lfs"


def read_json(id: str, path: Path) -> dict[str, Any]:
    """A JSON object from a file of unknown origin.

    Raises:
        MemberError: if there is no such file, or it is not a JSON object of sensible size.
    """
    try:
        content = json_files.read_json(path)
    except FileNotFoundError as error:
        raise MemberError(id, f"has no {path.name}") from error
    except ValueError as error:
        raise MemberError(id, one_line(error)) from error
    if not isinstance(content, dict):
        raise MemberError(id, f"{path.name} is a JSON {type(content).__name__}, expected an object")
    return content


@contextmanager
def reading_block(id: str, block: str) -> Iterator[None]:
    """Whatever a reader makes of a block of a foreign `config.json` that is not what was written is a MemberError."""
    try:
        yield
    except MemberError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        found = f"{error} is missing" if isinstance(error, KeyError) else one_line(error, 300)
        raise MemberError(id, f"the block '{block}' of its config.json cannot be read: {found}") from error


def check_labels(id: str, names: list[Any], num_classes: int) -> tuple[str, ...]:
    """Class names as a tuple of `num_classes` distinct strings.

    Raises:
        MemberError: if they are not that.
    """
    if not all(isinstance(name, str) and name for name in names):
        raise MemberError(id, "label names must be non-empty strings")
    if len(names) != num_classes:
        raise MemberError(id, f"has {num_classes} classes but {len(names)} label names")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise MemberError(id, f"label name '{name}' stands for two classes; names must be distinct")
        seen.add(name)
    return tuple(names)


def is_placeholder(name: Any) -> bool:
    """Whether a class name is what transformers calls classes without one: `LABEL_0`, `label 1`.

    Examples:
        >>> is_placeholder("Label-12"), is_placeholder("label of 12")
        (True, False)
    """
    return isinstance(name, str) and _PLACEHOLDER.fullmatch(name) is not None


def member_labels(id: str, names: list[Any], num_classes: int) -> tuple[str, ...]:
    """A member's class names, checked; none where all are missing or placeholders (`LABEL_0`), which name nothing.

    Classes of one name, as ImageNet's two called 'crane', get names that no other member has: `<id>#<index>`.
    """
    if all(map(is_placeholder, names)):
        return ()
    times = Counter(name for name in names if isinstance(name, str))
    distinct = [
        f"{id}#{index}" if isinstance(name, str) and name and times[name] > 1 else name
        for index, name in enumerate(names)
    ]
    return check_labels(id, distinct, num_classes)


def check_problem_type(id: str, config: dict[str, Any]) -> None:
    """Refuse what is not trained as one class of several (transformers' key of that name).

    Raises:
        MemberError: for a multi-label classifier or a regression.
    """
    kind = config.get("problem_type")
    if kind not in (None, "single_label_classification"):
        reason = f"problem_type is '{str(kind)[:80]}', expected a classifier that gives each image one class"
        raise MemberError(id, reason)


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what Git leaves in place of a large file that was not fetched."""
    with path.open("rb") as file:
        return file.read(len(_LFS_START)) == _LFS_START


def check_input(id: str, size: Any, mean: Any, std: Any) -> dict[str, Any]:
    """The entry's `input_size`, `mean` and `std`.

    Raises:
        MemberError: if the size is not that of an RGB image or the scale is not three numbers with positive std.
    """
    if not (_is_list(size, 3) and all(is_count(side) for side in size) and max(size) <= 2048):
        raise MemberError(id, f"input_size is {size!r}, expected [3, height, width] with sides of 1 to 2048 pixels")
    if size[0] != 3:
        raise MemberError(id, f"takes images of {size[0]} channels, expected 3 (RGB)")
    for name, values in (("mean", mean), ("std", std)):
        if not (_is_list(values, 3) and all(_is_number(value) for value in values)):
            raise MemberError(id, f"{name} is {values!r}, expected three numbers")
    if min(std) <= 0:
        raise MemberError(id, f"std is {std!r}, expected positive numbers")
    return {
        "input_size": tuple(size),
        "mean": tuple(float(value) for value in mean),
        "std": tuple(float(value) for value in std),
    }


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def one_line(error: BaseException, limit: int = 160) -> str:
    """An exception's message on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length
