"""Command lines, presets and YAML files -> the dataclasses that a recipe is configured by."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hf_dfml.settings import Option, Settings, from_flat, meant, no_option, options_of

Config = TypeVar("Config")

FILES = {
    "preset": "Ready settings: tiny, small, cpu, gpu, paper, ...; a wrong name lists them all.",
    "config": "YAML file of options, which win over those of a preset.",
}
"""Options that name further options; those of the command line win over either."""
INDENT = 28
"""Column of the texts in a list of options."""
SIZES = ("tiny", "small", "cpu", "gpu", "paper")
"""Presets that every method has, of no data set; the shortest first."""
TIME = "# Time: "
"""How the line of a preset begins that says how long it takes."""


@dataclass(frozen=True)
class Default:
    """What a command line means that names neither a preset nor a file.

    Attributes:
        preset: the preset, where the method has one of that name.
        fit: gives better values of some options for what was typed; those of options that there are not are left out.
        announce: is given a line about the preset that is used, with the time that it takes.
    """

    preset: str = "cpu"
    fit: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    announce: Callable[[str], Any] = print


def parse(
    method_class: Any,
    run_class: type[Config],
    argv: Sequence[str] | None = None,
    *,
    description: str | None = None,
    program: str | None = None,
    default: Default | None = None,
) -> tuple[Any, Config]:
    """The method's hyper-parameters and the run's settings from a command line; see `parse_into`."""
    method = method_class.__module__.rpartition(".")[-1].replace("_", "-")
    classes = (method_class.Config, run_class)
    method_config, run_config = parse_into(classes, argv, description, program, method, default)
    return method_config, run_config


def parse_into(
    classes: Sequence[Any],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    program: str | None = None,
    method: str = "",
    default: Default | None = None,
) -> tuple[Any, ...]:
    """One instance of each dataclass from a command line; what is wrong with it ends it with exit code 2.

    Options are the names of `options_of`, with dashes or underscores. `--preset NAME` gives defaults, `--config FILE`
    others, and the command line wins.

    Args:
        classes: the dataclasses.
        argv: arguments without the program; those of this process by default.
        description: text above the list of options.
        program: what the user has typed before `argv`; the script's name by default.
        method: whose presets `--preset` may name without their first part.
        default: what is meant where neither a preset nor a file is named; None for the options' own defaults.

    Raises:
        ValueError: if a file is not valid YAML, has a key that is no option or a value that its option cannot have.
        FileNotFoundError: if there is no such file.
    """
    options = {
        name: Option(name, str, False, True, None, {"help": text, "common": True}, "Files of options")
        for name, text in FILES.items()
    }
    for kind in classes:
        twice = options.keys() & options_of(kind)
        if twice:
            raise TypeError(f"{kind.__name__} has an option that there is already: {', '.join(sorted(twice))}.")
        options |= options_of(kind)
    gone = {name: why for kind in classes if issubclass(kind, Settings) for name, why in kind.removed.items()}
    program = program or Path(sys.argv[0]).name
    given = list(sys.argv[1:] if argv is None else argv)
    usage = f"usage: {program} [--preset NAME] [--config FILE] [--OPTION VALUE ...]"
    for words, everything in ((("-h", "--help"), False), (("--help_advanced", "--help-advanced"), True)):
        if any(word in words for word in given):
            print("\n\n".join([usage, (description or "").strip(), *_help(options.values(), everything)]))
            raise SystemExit(0)

    def wrong(sentence: str) -> NoReturn:
        print(f"{usage}\n{program}: error: {sentence}", file=sys.stderr)
        raise SystemExit(2)

    try:
        typed = _read_words(given, options, gone)
        name, file = typed.pop("preset", None), typed.pop("config", None)
        assumed = default.preset if default and not name and not file else None
        if assumed and f"{method}-{assumed}" not in presets(method):
            assumed = None  # A method of the user's own.
        preset = _preset(name or assumed or "", method) if name or assumed else None
    except ValueError as error:
        wrong(str(error))
    values = _read_yaml(*preset, options, gone) if preset else {}
    if preset and default:
        chosen = f"--preset {preset[0].removeprefix(f'{method}-').removesuffix('.yaml')}"
        why = f" (no --preset was given; there are {', '.join(SIZES)})" if assumed else ""
        default.announce(f"{chosen}{why}: {time_of(preset[1])}")
    if default and default.fit and assumed:
        values |= {each: value for each, value in default.fit(typed).items() if each in options}
    if file:
        if not Path(file).is_file():
            raise FileNotFoundError(f"There is no configuration file {file}.")
        values |= _read_yaml(file, Path(file).read_bytes(), options, gone)
    values |= typed
    missing = [name for name, each in options.items() if each.default is MISSING and name not in values]
    if missing:
        wrong(f"--{missing[0]} is missing: expected {options[missing[0]].expected}.")
    return tuple(
        from_flat(kind, {name: values[name] for name in options_of(kind) if name in values}) for kind in classes
    )


def _read_words(words: Sequence[str], options: Mapping[str, Option], gone: Mapping[str, str]) -> dict[str, Any]:
    """The values of a command line, `--name value`, `--name=value`, `--name value value` or `--switch`."""
    texts: dict[str, list[str]] = {}
    taking: Option | None = None
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            key = name[2:].replace("-", "_")
            if key in gone:
                _ignore(f"--{key}", gone[key])
                options = {**options, key: Option(key, str, True, True, None, {"help": ""}, "")}
            if key not in options:
                raise ValueError(no_option(key, options, "--"))
            taking = options[key]
            texts[key] = (texts.get(key, []) if taking.several else []) + ([value] if equals else [])
        elif taking is None or (texts[taking.name] and not taking.several):
            raise ValueError(
                f"'{word}' is not understood where it stands: each option begins with --, and --help lists them."
            )
        else:
            texts[taking.name].append(word)
    values = {}
    for key, found in texts.items():
        if key in gone:
            continue
        if not found and options[key].kind is bool:
            found = ["true"]
        if not found:
            raise ValueError(f"--{key}: expected {options[key].expected} after it.")
        try:
            values[key] = options[key].read(found if options[key].several else found[0])
        except ValueError as error:
            raise ValueError(f"--{error}") from None
    return values


def _ignore(name: str, why: str) -> None:
    """Say that an option of an earlier version has no effect any more."""
    print(f"{name} is ignored: {why}.", file=sys.stderr)


def presets(method: str = "") -> dict[str, Any]:
    """The files of `hf_dfml/presets` by name, those of one method or all."""
    folder = files("hf_dfml") / "presets"
    found = {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}
    return {name: found[name] for name in sorted(found) if name.startswith(f"{method}-") or not method}


def time_of(preset: bytes) -> str:
    """What a preset says of the time that it takes."""
    lines = (line for line in preset.decode().splitlines() if line.startswith(TIME))
    return next(lines, f"{TIME}not measured.").removeprefix(TIME)


def _preset(name: str, method: str) -> tuple[str, bytes]:
    """Name and content of a file of `hf_dfml/presets`."""
    own = presets(method)
    full = next((each for each in (name, f"{method}-{name}") if each in own), None)
    if full is None:
        short = [each.removeprefix(f"{method}-") for each in own]
        # Those that every method has come first.
        short.sort(key=lambda each: SIZES.index(each) if each in SIZES else len(SIZES))
        listed = f"expected {', '.join(short)}" if short else f"there are none of {method}"
        raise ValueError(f"--preset {name}: {listed}.{meant(name.removeprefix(f'{method}-'), short)}")
    return f"{full}.yaml", own[full].read_bytes()


def _read_yaml(name: str, content: bytes, options: Mapping[str, Option], gone: Mapping[str, str]) -> dict[str, Any]:
    """The values of a YAML file: scalars are read as the command line's words are, whatever YAML takes them for."""
    import yaml

    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{name}, line {line}: not valid YAML: {error.problem or error.context}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}.") from None
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{name}, line {root.start_mark.line + 1}: expected lines of `option: value`.")
    values: dict[str, Any] = {}
    for key, node in root.value:
        try:
            option_name = _text(key, content).replace("-", "_")
            if option_name in gone:
                _ignore(f"{name}, line {key.start_mark.line + 1}: {option_name}", gone[option_name])
                continue
            if option_name not in options or option_name in FILES:
                raise ValueError(no_option(option_name, options.keys() - FILES.keys()))
            if option_name in values:
                raise ValueError(f"{option_name} is set twice.")
            values[option_name] = options[option_name].read(_plain(node, options[option_name], content))
        except ValueError as error:
            raise ValueError(f"{name}, line {key.start_mark.line + 1}: {error}") from None
    return values


def _plain(node: Any, option: Option, content: bytes) -> Any:
    """A scalar's text, a list of such, or None; raises ValueError for anything else."""
    items = node.value if node.id == "sequence" else [node]
    if any(item.id != "scalar" for item in items):
        raise ValueError(f"{option.name} {_text(node, content)}: expected {option.expected}.")
    if node.id == "sequence":
        return [item.value for item in items]
    return node.value if node.tag != "tag:yaml.org,2002:null" else None


def _text(node: Any, content: bytes) -> str:
    """A scalar's text; of anything else what is written there, on one line."""
    if node.id == "scalar":
        return str(node.value)
    written = content.decode(errors="replace")[node.start_mark.index : node.end_mark.index]
    return " ".join(written.split())[:80]


def _help(options: Iterable[Option], everything: bool) -> Iterator[str]:
    """The list of options in groups, or of the common ones."""
    shown = [each for each in options if everything or each.rules.get("common")]
    for group in dict.fromkeys(each.group for each in shown) if everything else [None]:
        lines = [_line(each) for each in shown if group in (None, each.group)]
        yield "\n".join([f"{group or 'options'}:", *lines])
    yield "--help lists the common ones." if everything else "--help_advanced lists all options."


def _line(option: Option) -> str:
    names = {int: "N", float: "X", bool: "[true|false]", str: "TEXT", Path: "PATH"}
    value = "{" + ",".join(option.choices) + "}" if option.choices else names[option.kind]
    head = f"  --{option.name} {value}{' ...' if option.several else ''}"
    items = option.default if isinstance(option.default, list) else [option.default]
    default = " ".join(str(item).lower() if isinstance(item, bool) else str(item) for item in items)
    text = option.rules.get("help", "") + ("" if items[0] in (None, MISSING, "") else f" (default: {default})")
    width = max(60, shutil.get_terminal_size().columns)
    body = textwrap.wrap(text, width - INDENT) or [""]
    first = [f"{head:<{INDENT}}{body.pop(0)}"] if len(head) < INDENT - 1 else [head]
    return "\n".join(first + [" " * INDENT + line for line in body])
