"""One validation: YAML files, command lines, Python and stored settings give one verdict, in the same words.

Of every option of every method and of the run itself; what is wrong is drawn.
"""

from __future__ import annotations

import contextlib
import io
import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_dfml.arguments import parse_into
from hf_dfml.methods.catalogue import METHODS, find_method
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import Option, flat, from_flat, options_of

CONFIGS: dict[str, Any] = {"run": RunConfig} | {name: find_method(name).Config for name in METHODS}
Outcome = tuple[str, Any]
"""`ok` and the value, or `no` and what is said of it, without where it stands."""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("yaml") / "options.yaml"


def by_python(config: Any, name: str, value: Any) -> Outcome:
    try:
        return "ok", flat(config(**{name: value}))[name]
    except ValueError as error:
        return "no", str(error).removeprefix(f"{config.__name__}: ")


def by_storage(config: Any, name: str, value: Any) -> Outcome:
    try:
        return "ok", flat(from_flat(config, {name: value}))[name]
    except ValueError as error:
        return "no", str(error).removeprefix(f"{config.__name__}: ")


def by_file(config: Any, name: str, text: str, file: Path, key: str | None = None) -> Outcome:
    file.write_text(f"# Options.\n{key or name}: {text}\n", encoding="utf-8")
    try:
        return "ok", flat(parse_into([config], ["--config", str(file)])[0]).get(name)
    except ValueError as error:
        said = str(error)
        if said.startswith(str(file)):  # What an option says for itself; not what options say together.
            assert said.startswith(f"{file}, line 2: ")
        return "no", said.removeprefix(f"{file}, line 2: ")


def by_command_line(config: Any, name: str, words: list[str], key: str | None = None) -> Outcome:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return "ok", flat(parse_into([config], [f"--{key or name}", *words], program="x")[0])[name]
    except ValueError as error:
        return "no", str(error)
    except SystemExit as stop:
        assert stop.code == 2 and said.getvalue().startswith("usage: x ")
        return "no", said.getvalue().splitlines()[-1].removeprefix("x: error: ").replace("--", "")


def everywhere(config: Any, name: str, text: str, file: Path) -> list[Outcome]:
    """What the four routes make of a value that is one plain word."""
    return [
        by_python(config, name, text),
        by_storage(config, name, text),
        by_file(config, name, text, file),
        by_command_line(config, name, [text]),
    ]


def misspelt(word: str, draw: Any) -> str:
    """One letter less, more, another, or two in each other's place."""
    place, letter = draw(st.integers(0, len(word) - 1)), draw(st.sampled_from(string.ascii_lowercase))
    kind = draw(st.sampled_from(("less", "more", "other", "swapped")))
    if kind == "less":
        return word[:place] + word[place + 1 :]
    if kind == "more":
        return word[:place] + letter + word[place:]
    if kind == "other":
        return word[:place] + letter + word[place + 1 :]
    return word[:place] + word[place : place + 2][::-1] + word[place + 2 :]


def an_option(draw: Any) -> tuple[Any, Option]:
    config = CONFIGS[draw(st.sampled_from(sorted(CONFIGS)))]
    return config, draw(st.sampled_from(sorted(options_of(config).values(), key=lambda each: each.name)))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_misspelt_option_is_refused_everywhere_with_the_one_that_was_meant(data, file):
    config, option = an_option(data.draw)
    word = misspelt(option.name, data.draw)
    known = options_of(config)
    assume(re.fullmatch("[a-z]\\w{3,}", word) and word not in known and word not in ("preset", "config", "null"))
    assume(word not in {part for name in known for part in (name, name.replace("_", "-"))})
    found = [
        by_storage(config, word, "1"),
        by_file(config, word, "1", file),
        by_command_line(config, word, ["1"]),
        by_command_line(config, word, ["1"], key=word.replace("_", "-")),
    ]
    assert found == found[:1] * len(found)
    verdict, said = found[0]
    assert verdict == "no" and said.startswith(f"there is no option {word}: did you mean ")
    meant = re.search(r"did you mean (\w+)\?", said)
    assert meant and meant[1] in known
    # In Python the parts of a config are named as well, and may be nearer.
    verdict, in_python = by_python(config, word, "1")
    assert verdict == "no" and in_python.startswith(f"there is no option {word}: did you mean ")
    assert in_python == said or re.search(r"did you mean (\w+)\?", in_python)[1] not in known  # type: ignore[index]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_misspelt_choice_is_refused_everywhere_with_the_one_that_was_meant(data, file):
    config = CONFIGS[data.draw(st.sampled_from(sorted(CONFIGS)))]
    with_choices = sorted((each for each in options_of(config).values() if each.choices), key=lambda each: each.name)
    assume(with_choices)
    option = data.draw(st.sampled_from(with_choices))
    word = misspelt(data.draw(st.sampled_from(option.choices)), data.draw)
    assume(re.fullmatch("[a-z]\\w*", word) and word not in option.choices and word != "null")
    found = everywhere(config, option.name, word, file)
    assert found == found[:1] * 4
    expected = ", ".join(option.choices[:-1]) + f" or {option.choices[-1]}"
    assert found[0][0] == "no" and found[0][1].startswith(f"{option.name} {word}: expected {expected}.")
    meant = re.search(r"Did you mean (\w+)\?", found[0][1])
    assert meant is None or meant[1] in option.choices
    assert meant or len(word) < 4, "a letter of a longer word is not much"


VALUES = [
    *("0", "1", "2", "-1", "3.5", "1e-3", "1e3", "1_000", "007", "0x10", "1e999", ".5", "5.", "+4", "100000000000"),
    *("nan", "inf", "-inf", ".nan", "many", "true", "false", "yes", "no", "on", "off", "True", "NO", "maybe"),
    *("none", "latest", "conv4", "1,5", "2001-01-01", "12:30:00", "0o17", "0b11", "1e", "x=y", "ü"),
]
"""Words that YAML, Python and command lines might each take for something else."""


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_word_is_the_same_value_or_the_same_mistake_everywhere(data, file):
    config, option = an_option(data.draw)
    assume(option.name not in ("resume_from_checkpoint",))
    text = data.draw(st.sampled_from(VALUES))
    found = everywhere(config, option.name, text, file)
    assert all(type(value) is type(found[0][1]) for _, value in found)
    assert found == found[:1] * 4
    if found[0][0] == "no" and "expected" in found[0][1]:
        assert option.name in found[0][1] and text in found[0][1]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nothing_is_a_value_only_where_it_may_be(data, file):
    """`null`, `~` and an empty value in files; None in Python. A command line has no word for it."""
    config, option = an_option(data.draw)
    found = [by_python(config, option.name, None), by_storage(config, option.name, None)]
    found += [by_file(config, option.name, text, file) for text in ("null", "~", "", "Null")]
    assert found == found[:1] * 6
    assert found[0] == (
        ("ok", None) if option.nullable else ("no", f"{option.name} null: expected {option.expected}.")
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), text=st.sampled_from(["{a: 1}", "[[1]]", "[{a: 1}, 2]", "!!set {a}"]))
def test_what_is_no_value_at_all_is_named_as_it_is_written(data, text, file):
    config, option = an_option(data.draw)
    verdict, said = by_file(config, option.name, text, file)
    assert verdict == "no" and said.startswith(f"{option.name} ") and "Node" not in said
    assert said.endswith(f": expected {option.expected}.")


@settings(max_examples=40, deadline=None)
@given(data=st.data(), values=st.lists(st.integers(1, 99), min_size=1, max_size=4))
def test_lists_are_the_same_everywhere(data, values, file):
    found = [
        by_python(RunConfig, "shots", values),
        by_python(RunConfig, "shots", tuple(values)),
        by_storage(RunConfig, "shots", values),
        by_file(RunConfig, "shots", str(values), file),
        by_file(RunConfig, "shots", "".join(f"\n- {value}" for value in values), file),
        by_command_line(RunConfig, "shots", list(map(str, values))),
    ]
    assert found == [("ok", values)] * 6


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_stored_is_read_again(name):
    try:
        config = CONFIGS[name]()
    except ValueError:  # One that must be told something.
        return
    assert from_flat(CONFIGS[name], flat(config)) == config
