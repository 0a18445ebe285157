"""Command lines and YAML files -> the dataclasses that a recipe is configured by."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

Config = TypeVar("Config")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind each option, the description as it was written."""


def parse(
    method_class: Any, run_class: type[Config], argv: Sequence[str] | None = None, *, description: str | None = None
) -> tuple[Any, Config]:
    """The method's hyper-parameters and the run's settings from a command line.

    Options are the dataclasses' field names. `--config file.yaml` gives defaults; the command line wins.

    Args:
        method_class: a class of `hf_dfml.methods` with its dataclass as `Config`.
        run_class: the dataclass of the run.
        argv: arguments without the program; those of this process by default.
        description: text above the list of options.

    Raises:
        ValueError: if the YAML file has a key that is no option.
    """
    from transformers import HfArgumentParser

    classes: tuple[Any, ...] = (method_class.Config, run_class)
    parser = HfArgumentParser(classes, description=description, formatter_class=_Help)
    parser.add_argument("--config", type=Path, help="YAML file with any of these options; the command line wins.")
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", type=Path)
    known, rest = first.parse_known_args(argv)
    if known.config:
        parser.set_defaults(**_read_yaml(known.config, classes))
    method_config, run_config, *_ = parser.parse_args_into_dataclasses(args=rest, look_for_args_file=False)
    return method_config, run_config


def _read_yaml(path: Path, classes: Sequence[type]) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration file {path}.")
    values = yaml.safe_load(path.read_text()) or {}
    options = {field.name for config in classes for field in dataclasses.fields(config)}
    unknown = sorted(set(values) - options)
    if unknown:
        raise ValueError(
            f"{path} sets {', '.join(unknown)}, which this recipe does not have: --help lists its options."
        )
    return values
