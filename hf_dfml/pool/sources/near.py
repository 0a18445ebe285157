"""A folder that a misspelt name may mean: said at once, before the Hub is asked for a repository of that name."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from hf_dfml.pool.entry import CONFIG_NAME

PREFIXES = ("dir:", "zoo:", "lock:", "hf:", "collection:", "http:", "https:")
"""A name that begins so says itself what it is."""
SIMILAR = 0.7
"""Least share of letters that two names have in common, as `difflib` counts."""


def did_you_mean(name: str) -> str:
    """A question for the folder of models that a name may mean; empty where there is no such folder, or none is near.

    Each part of a path may be misspelt. Names that differ in their digits alone are of different members.

    Examples:
        >>> did_you_mean("hf:pools/mine")
        ''
    """
    path = Path(name.removeprefix("dir:").partition("@")[0]).expanduser()
    if name.startswith(PREFIXES[1:]) or path.exists():
        return ""
    near = _near(path)
    return f" Did you mean {near}?" if near and _holds_models(near) else ""


def _near(path: Path) -> Path | None:
    """The existing folder whose path is most like this one, part by part."""
    if path.is_dir():
        return path
    above = _near(path.parent) if path.parent != path else None
    if above is None:
        return None
    try:
        names = [each.name for each in above.iterdir() if each.is_dir() and not each.name.startswith(".")]
    except OSError:
        return None
    names = [each for each in names if each == path.name or _without_digits(each) != _without_digits(path.name)]
    close = get_close_matches(path.name, names, 1, SIMILAR)
    return above / close[0] if close else None


def _without_digits(name: str) -> str:
    return re.sub(r"\d+", "", name)


def _holds_models(folder: Path) -> bool:
    """Whether a folder is a member, a meta-model or a classifier, or holds some."""
    try:
        return (folder / CONFIG_NAME).is_file() or any(folder.glob(f"*/{CONFIG_NAME}"))
    except OSError:
        return False
