"""Where a number came from, without private paths: command lines and machines."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
_URL_SECRET = re.compile(r"(?<=://)[^/@\s]+@")
_URL_QUERY = re.compile(r"(?<=\?)[^\s,?]+")
_SECRET_OPTION = re.compile(r"--?[\w-]*(token|password|secret|api[-_]?key)[\w-]*", re.IGNORECASE)
_NAMED_PLACE = re.compile(r"(dir:|lock:)(.+)", re.DOTALL)
HIDDEN = "HIDDEN"
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_DFML_SERVE_TOKEN")
"""Variables of the environment that hold tokens."""
PUBLIC = ("recipes", "benchmarks", "hf_dfml")
"""Folders of this project: what lies in them is named as it is from the project's own folder."""


def hide_secrets(text: str) -> str:
    """A text without Hugging Face tokens, passwords in addresses, queries of addresses, and the tokens in use.

    Examples:
        >>> hide_secrets("http://ada:pw@host/x?key=1 refuses hf_abcdefgh12")
        'http://HIDDEN@host/x?HIDDEN refuses HIDDEN'
    """
    for name in SECRETS:
        if len(secret := os.environ.get(name) or "") >= 6:
            text = text.replace(secret, HIDDEN)
    text = _URL_SECRET.sub(f"{HIDDEN}@", _TOKEN.sub(HIDDEN, text))
    return re.sub(r"(?<=://)(\S+?\?)[^\s,?]+", rf"\1{HIDDEN}", text)


def scrub_command(command: str) -> str:
    """A command line with absolute paths cut to their last part or this project's, and tokens and passwords hidden.

    Examples:
        >>> scrub_command("python /ada/recipes/tgr.py --pool ../a --data_dir=/mnt/sets --hub_token hf_abcdefgh12")
        'python recipes/tgr.py --pool ../a --data_dir=sets --hub_token HIDDEN'
    """
    try:
        words = shlex.split(command)
    except ValueError:  # An unbalanced quote: not a shell's command line, but still to be scrubbed.
        words = command.split()
    clean: list[str] = []
    for word in words:
        if clean and "=" not in clean[-1] and _SECRET_OPTION.fullmatch(clean[-1]):
            clean.append(HIDDEN)
            continue
        if "://" in word:
            word = _URL_QUERY.sub(HIDDEN, word)
        option, equals, value = word.partition("=")
        if equals and _SECRET_OPTION.fullmatch(option):
            clean.append(f"{option}={HIDDEN}")
            continue
        clean.append((option + equals if equals else "") + _scrub_words(value if equals else word))
    return shlex.join(clean)


def scrub_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the words among their values scrubbed as those of a command line are.

    Examples:
        >>> scrub_values({"images": "/home/ada/photos", "prior": None, "further": {"probe": "~/nets/a,timm/b"}})
        {'images': 'photos', 'prior': None, 'further': {'probe': 'a,timm/b'}}
    """
    return {name: _scrub_value(value) for name, value in values.items()}


def called(place: str) -> str:
    """Folders, files or names (by comma) as they may be shown: of what is on this disk the last part of its path.

    Examples:
        >>> called("dir:/home/ada/pools/mine,org/name,~/zoo:x")
        'dir:mine,org/name,zoo:x'
        >>> called("..") == Path("..").resolve().name
        True
        >>> called("https://host/v1?api_key=1")
        'https://host/v1?HIDDEN'
    """
    return ",".join(
        Path(part).expanduser().resolve().name if part and Path(part).expanduser().exists() else _scrub_word(part)
        for part in place.split(",")
    )


def this_command() -> str:
    """The running process as a user types it, scrubbed."""
    program, *arguments = sys.argv
    if Path(program).name == "__main__.py":
        words = ["python", "-m", Path(program).parent.name]
    elif program.endswith(".py"):
        # `accelerate launch` leaves its precision in the environment.
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ
        words = [*(("accelerate", "launch") if launched else ("python",)), program]
    else:
        words = [Path(program).name]
    return scrub_command(shlex.join([*words, *arguments]))


def describe_machine(device: torch.device | str = "cpu") -> str:
    """Processor, cores and accelerator in one line, for a card or a table.

    Args:
        device: where the work was done.
    """
    threads = torch.get_num_threads()
    text = f"{_processor()}, {os.cpu_count()} cores ({threads} thread{'s' if threads > 1 else ''} used)"
    device = torch.device(device)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}; {text}"
    return text if device.type == "cpu" else f"{device.type}; {text}"


def _scrub_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return scrub_values(value)
    if isinstance(value, list | tuple):
        return [_scrub_value(each) for each in value]
    return _scrub_words(value) if isinstance(value, str) else value


def _scrub_words(text: str) -> str:
    """Pools may be several folders, separated by commas."""
    return ",".join(map(_scrub_word, text.split(",")))


def _scrub_word(word: str) -> str:
    word = _URL_SECRET.sub(f"{HIDDEN}@", _TOKEN.sub(HIDDEN, word))
    if "://" in word:
        return _URL_QUERY.sub(HIDDEN, word) if not word.startswith("file:") else "file://" + _scrub_word(word[7:])
    if place := _NAMED_PLACE.fullmatch(word):
        return place[1] + _scrub_word(place[2])
    if word.startswith(("/", "~")):
        path = PurePosixPath(word)
        ours = [position for position, part in enumerate(path.parts) if part in PUBLIC]
        return "/".join(path.parts[ours[-1] :]) if ours else path.name or "/"
    if PureWindowsPath(word).drive:
        return PureWindowsPath(word).name
    return word


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = re.findall(r"^model name\s*:\s*(.+)$", information.read_text(), re.MULTILINE)
        if names:
            return " ".join(names[0].split())
    return platform.processor() or platform.machine() or "unknown processor"
