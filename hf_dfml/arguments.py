"""Command lines and YAML files -> the dataclasses that a recipe is configured by."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")

LEAST = {
    "batch_size": 2,
    "checkpoint_every": 1,
    "episodes": 2,
    "images_per_class": 1,
    "keep_checkpoints": 1,
    "max_queries": 0,
    "num_images": 1,
    "num_members": 0,
    "recoveries": 1,
    "recovery_steps": 1,
    "shots": 1,
    "steps": 0,
    "validate_every": 1,
    "validation_episodes": 2,
    "ways": 2,
}
"""The smallest values of options that count something; rates (`lr`, `..._lr`) must be positive."""


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind each option, the description as it was written."""


def parse(
    method_class: Any,
    run_class: type[Config],
    argv: Sequence[str] | None = None,
    *,
    description: str | None = None,
    program: str | None = None,
) -> tuple[Any, Config]:
    """The method's hyper-parameters and the run's settings from a command line.

    Args:
        method_class: a class of `hf_dfml.methods` with its dataclass as `Config`.
        run_class: the dataclass of the run.
        argv: see `parse_into`, as all that follow.
        description: text above the list of options.
        program: what the user has typed before `argv`.

    Raises:
        ValueError: if the YAML file has a key that is no option.
    """
    method_config, run_config = parse_into((method_class.Config, run_class), argv, description, program)
    return method_config, run_config


def parse_into(
    classes: Sequence[Any],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    program: str | None = None,
) -> tuple[Any, ...]:
    """One instance of each dataclass from a command line; an option that there is not ends it with exit code 2.

    Options are the dataclasses' field names. `--config file.yaml` gives defaults; the command line wins.

    Args:
        classes: the dataclasses.
        argv: arguments without the program; those of this process by default.
        description: text above the list of options.
        program: what the user has typed before `argv`; the script's name by default.

    Raises:
        ValueError: if the YAML file has a key that is no option, or a number is too small for its option.
        FileNotFoundError: if there is no such file.
    """
    from transformers import HfArgumentParser

    # A list of all options would bury an error; --help has it below, with a line for each.
    usage = "%(prog)s [--config FILE] [--OPTION VALUE ...]"
    parser = HfArgumentParser(classes, prog=program, usage=usage, description=description, formatter_class=_Help)
    parser.add_argument("--config", type=Path, help="YAML file with any of these options; the command line wins.")
    first = argparse.ArgumentParser(add_help=False, prog=parser.prog, usage=usage)
    first.add_argument("--config", type=Path)
    known, rest = first.parse_known_args(argv)
    if known.config:
        parser.set_defaults(**_read_yaml(known.config, classes))
    *configs, unknown = parser.parse_args_into_dataclasses(
        args=rest, look_for_args_file=False, return_remaining_strings=True
    )
    if unknown:
        parser.error(_unknown(unknown[0], classes))
    for config in configs[: len(classes)]:
        _check_sizes(config)
    return tuple(configs[: len(classes)])


def _check_sizes(config: Any) -> None:
    """Refuse numbers with which no run can be, before any work."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, list) else [value]:
            if field.name in LEAST and number < LEAST[field.name]:
                raise ValueError(f"--{field.name} {number}: expected at least {LEAST[field.name]}.")
            if field.name.split("_")[-1] == "lr" and isinstance(number, float) and not number > 0:
                raise ValueError(f"--{field.name} {number:g}: a rate is a positive number.")


def _unknown(word: str, classes: Sequence[type]) -> str:
    """What to say of a word that is no option, with the option that may have been meant."""
    name = word.partition("=")[0]
    if not name.startswith("-"):
        return f"'{word}' is not understood where it stands: each option begins with --, and --help lists them."
    options = [f"--{option}" for option in sorted(_options(classes) | {"config"})]
    close = difflib.get_close_matches("--" + name.lstrip("-").replace("-", "_"), options, n=1)
    return f"there is no option {name}" + (f": did you mean {close[0]}?" if close else "; --help lists them.")


def _options(classes: Sequence[type]) -> set[str]:
    return {field.name for config in classes for field in dataclasses.fields(config)}


def _read_yaml(path: Path, classes: Sequence[type]) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration file {path}.")
    values = yaml.safe_load(path.read_text()) or {}
    unknown = sorted(set(values) - _options(classes))
    if unknown:
        raise ValueError(
            f"{path} sets {', '.join(unknown)}, which this recipe does not have: --help lists its options."
        )
    return values
