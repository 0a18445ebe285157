"""Settings: dataclasses of options, made of parts, with one validation for Python, YAML files and command lines.

    class ReplayConfig(Settings):
        replay_shots: int = option(1, "Support images a class.", least=1)

    class MyConfig(Settings):
        steps: int = option(100, "Outer steps.", least=0, common=True)
        replay: ReplayConfig = part(ReplayConfig, replay_shots=5)    # The same option, another default.

    config = MyConfig(replay_shots=2)
    config.replay.replay_shots                                       # 2
    flat(config)                                                     # {"steps": 100, "replay_shots": 2}

Options are given by name, wherever they are, and read where they belong; files and checkpoints hold the flat form.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")

WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
"""How yes and no are written."""
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


def option(
    default: Any,
    help: str,
    *,
    choices: Iterable[str] | None = None,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    common: bool = False,
) -> Any:
    """A field that a user may set.

    Args:
        default: its value where none is given.
        help: what it does, in a sentence.
        choices: the values that there are; a `Literal` as the field's type says the same.
        least: the smallest number.
        most: the largest number.
        above: numbers must be larger than this one.
        common: whether `--help` shows it; `--help_advanced` shows all.
    """
    limits = {"least": least, "most": most, "above": above}
    metadata = {"help": help, "choices": tuple(choices or ()), "common": common, **limits}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def part(kind: type[Config], **values: Any) -> Any:
    """A field that holds other settings, with other defaults for some of their options."""
    return dataclasses.field(default=kind(**values))


@dataclass(frozen=True)
class Option:
    """A field of a dataclass of settings, with what its value must be.

    Attributes:
        name: of the field, the same on the command line, in files and in Python.
        kind: int, float, bool, str or Path; of the items of a list.
        several: whether it is a list.
        nullable: whether None is a value.
        default: its value where none is given; `MISSING` where one must be.
        rules: what `option` was given.
        group: what it is listed under.
    """

    name: str
    kind: Any
    several: bool
    nullable: bool
    default: Any
    rules: Mapping[str, Any]
    group: str

    def read(self, value: Any) -> Any:
        """A value of the option's type from one, or from text.

        Raises:
            ValueError: if it is not a value of this option; names the option, the value and what was expected.
        """
        if value is None:
            if self.nullable:
                return None
            raise ValueError(f"{self.name} null: expected {self.expected}.")
        if not self.several:
            return self._read_one(value)
        items = list(value) if isinstance(value, list | tuple) else [value]
        if not items:
            raise ValueError(f"{self.name}: expected one or more values, each {self.expected}.")
        return [self._read_one(item) for item in items]

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that there are, if not any."""
        return self.rules.get("choices") or ()

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        return " or ".join(filter(None, [", ".join(self.choices[:-1]), *self.choices[-1:]])) or KINDS[self.kind]

    def _read_one(self, value: Any) -> Any:
        shown = (str(value) if isinstance(value, str | int | float) else repr(value)) or "''"
        try:
            found = _convert(self.kind, value)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ValueError(f"{self.name} {shown}: expected {self.expected}.") from None
        if self.choices and found not in self.choices:
            raise ValueError(f"{self.name} {shown}: expected {self.expected}.{meant(shown, self.choices)}")
        least, most, above = (self.rules.get(rule) for rule in ("least", "most", "above"))
        for limit, holds, words in (
            (least, least is None or found >= least, "at least"),
            (most, most is None or found <= most, "at most"),
            (above, above is None or found > above, "a number above"),
        ):
            if not holds:
                raise ValueError(f"{self.name} {shown}: expected {words} {limit:g}.")
        return found


def _convert(kind: Any, value: Any) -> Any:
    if kind is bool:
        return value if isinstance(value, bool) else WORDS[value.lower()]
    accepted = {int: (int, str), float: (float, int, str), str: (str,), Path: (Path, str)}[kind]
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise TypeError
    found = kind(value)
    if isinstance(found, float) and not math.isfinite(found):
        raise ValueError
    return found


def meant(word: str, known: Iterable[str]) -> str:
    """A question for the nearest of the known words, if one is near."""
    close = get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


class Settings:
    """Base class of settings: its subclasses are frozen dataclasses of `option` and `part` fields.

    Options of parts are given by their own names, as all options are: `TGRConfig(recovery_steps=100)`, and likewise
    `dataclasses.replace(config, recovery_steps=100)`.

    Attributes:
        removed: options of earlier versions, and why they are gone: command lines and files may still name them, which
            is said and has no effect.

    Raises:
        ValueError: if there is no such option, or a value is not one of its option.
        TypeError: at the definition of a class two of whose options have the same name.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    removed: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, init=False)(cls)
        names = [field.name for field in fields(cls)]
        for field in fields(cls):
            names += options_of(field.default) if isinstance(field.default, Settings) else []
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise TypeError(f"{cls.__name__} and its parts have two options (or parts) called {', '.join(twice)}.")

    def __init__(self, **values: Any) -> None:
        kind: Any = type(self)
        options, places = _own_options(kind), _places(kind)
        unknown = [name for name in values if name not in places and name not in options]
        if unknown:
            raise ValueError(f"{type(self).__name__}: {no_option(unknown[0], options.keys() | places)}")
        for field in fields(self):
            default: Any = options[field.name].default if field.name in options else field.default
            value = values.get(field.name, default)
            if field.name in options:
                value = options[field.name].read(value)
            else:
                inner = {name: given for name, given in values.items() if places.get(name) == field.name != name}
                if not isinstance(value, type(default)):
                    raise ValueError(f"{field.name}: expected {type(default).__name__}, found {value!r}.")
                value = dataclasses.replace(value, **inner) if inner else value
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Make sure that the values fit together; raises ValueError otherwise."""


@cache
def _own_options(kind: type) -> dict[str, Option]:
    """The options of a dataclass itself, without those of its parts."""
    hints, found = get_type_hints(kind), {}
    for field in fields(kind):
        item, nullable, rules = hints[field.name], False, dict(field.metadata)
        if get_origin(item) in (Union, types.UnionType):
            nullable = True
            (item,) = (each for each in get_args(item) if each is not type(None))
        several = get_origin(item) in (list, tuple, Sequence)
        item = get_args(item)[0] if several else item
        if get_origin(item) is Literal:
            item, rules["choices"] = str, get_args(item)
        if item in KINDS:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            found[field.name] = Option(field.name, item, several, nullable, default, rules, _title(kind))
    return found


@cache
def _places(kind: type) -> dict[str, str]:
    """Each part's name, and each option in a part with that part's name."""
    parts = [field for field in fields(kind) if is_dataclass(field.default)]
    return {name: field.name for field in parts for name in (field.name, *options_of(field.default))}


def _title(kind: type) -> str:
    return (kind.__doc__ or kind.__name__).strip().partition("\n")[0].partition(";")[0].rstrip(".")


def options_of(config: Any) -> dict[str, Option]:
    """The options of a dataclass (or of an instance, whose values are then the defaults) and of all its parts."""
    kind = config if isinstance(config, type) else type(config)
    found: dict[str, Option] = {}
    for field in fields(kind):
        value = field.default if isinstance(config, type) else getattr(config, field.name)
        if is_dataclass(value):
            found |= options_of(value)
        elif field.name in _own_options(kind):
            own = _own_options(kind)[field.name]
            found[field.name] = own if isinstance(config, type) else dataclasses.replace(own, default=value)
    return found


def flat(config: Any) -> dict[str, Any]:
    """The values of a config and of its parts by the options' names, as files hold them."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        found |= flat(value) if is_dataclass(value) else {field.name: value}
    return found


def from_flat(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A config from what `flat` gave, or from a part of it.

    Raises:
        ValueError: if there is no such option, or a value is not one of its option.
    """
    options = options_of(kind)
    for name in values:
        if name not in options:
            raise ValueError(f"{kind.__name__}: {no_option(name, options)}")
    return kind(**{name: options[name].read(value) for name, value in values.items()})


def no_option(name: str, known: Iterable[str], dashes: str = "") -> str:
    """What to say of a name that is no option, with the one that may have been meant."""
    close = get_close_matches(name, sorted(known), n=1)
    return f"there is no option {dashes}{name}" + (
        f": did you mean {dashes}{close[0]}?" if close else "; --help_advanced lists them."
    )
