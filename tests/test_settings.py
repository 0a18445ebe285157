"""Settings: parts and their defaults, one validation whoever gives the values, presets, help."""

import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from hf_dfml.arguments import parse, parse_into
from hf_dfml.methods.catalogue import METHODS, find_method
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import Settings, flat, from_flat, option, options_of, part

PRESETS = sorted((Path(__file__).parents[1] / "hf_dfml" / "presets").glob("*.yaml"))


class Loop(Settings):
    """The loop; more about it."""

    inner_steps: int = option(5, "Inner steps.", least=1, most=50)
    inner_lr: float = option(0.1, "Their learning rate.", above=0)


class Replay(Settings):
    """The replay."""

    loop: Loop = part(Loop, inner_steps=3)
    order: Literal["first", "second"] = option("first", "Order.")


class Toy(Settings):
    """A toy method."""

    steps: int = option(10, "Steps.", common=True)
    flip: bool = option(True, "Mirror.")
    tracker: str = option("none", "Tracker.")
    precision: str | None = option(None, "Precision.", choices=("no", "bf16"))
    shots: list[int] = option([1, 5], "Shots.", least=1)
    replay: Replay = part(Replay, inner_lr=0.5)

    def check(self):
        if self.steps < self.replay.loop.inner_steps:
            raise ValueError("More inner steps than steps.")


def read(tmp_path, *lines, words=()):
    (tmp_path / "c.yaml").write_text("\n".join(lines), encoding="utf-8")
    return parse_into([Toy], ["--config", str(tmp_path / "c.yaml"), *words], program="toy")[0]


def test_parts_have_defaults_of_their_own_and_options_are_given_by_name():
    assert (Loop().inner_steps, Replay().loop.inner_steps, Toy().replay.loop.inner_lr) == (5, 3, 0.5)
    config = Toy(inner_steps=4, order="second", steps=6)
    assert (config.replay.loop.inner_steps, config.replay.order, config.steps) == (4, "second", 6)
    assert config.replay.loop.inner_lr == 0.5, "what is not given stays the default of this method"
    again = replace(config, inner_lr=1)
    assert again.replay.loop == Loop(inner_steps=4, inner_lr=1.0) and again.replay.order == "second"
    assert replace(config, replay=Replay(order="first"), inner_steps=2).replay == Replay(inner_steps=2)
    assert Toy().shots is not Toy().shots and pickle.loads(pickle.dumps(config)) == config


def test_the_flat_form_goes_there_and_back():
    config = Toy(inner_steps=4, shots=[2], precision="bf16")
    assert flat(config) == {
        "steps": 10, "flip": True, "tracker": "none", "precision": "bf16", "shots": [2],
        "inner_steps": 4, "inner_lr": 0.5, "order": "first",
    }  # fmt: skip
    assert from_flat(Toy, flat(config)) == config and from_flat(Toy, {}) == Toy()
    assert list(options_of(Toy)) == list(flat(config))


def test_two_options_of_one_name_are_an_error_of_the_class():
    with pytest.raises(TypeError, match="Twice and its parts have two options .* called inner_lr"):

        class Twice(Settings):
            inner_lr: float = option(1.0, "Again.")
            loop: Loop = part(Loop)

    with pytest.raises(TypeError, match="RunConfig has an option that there is already: .*shots"):
        parse_into([Toy, RunConfig], [])


WRONG = [
    ("steps", "many", "steps many: expected a whole number."),
    ("steps", "1.5", "steps 1.5: expected a whole number."),
    ("steps", None, "steps null: expected a whole number."),
    ("inner_steps", "0", "inner_steps 0: expected at least 1."),
    ("inner_steps", "51", "inner_steps 51: expected at most 50."),
    ("inner_lr", "0", "inner_lr 0: expected a number above 0."),
    ("inner_lr", "nan", "inner_lr nan: expected a number."),
    ("order", "secnd", "order secnd: expected first or second. Did you mean second?"),
    ("order", "zeroth", "order zeroth: expected first or second."),
    ("precision", "fp16", "precision fp16: expected no or bf16. Did you mean bf16?"),
    ("flip", "maybe", "flip maybe: expected true or false."),
    ("shots", "0", "shots 0: expected at least 1."),
]


@pytest.mark.parametrize(("name", "value", "sentence"), WRONG)
def test_files_command_lines_and_python_give_the_same_sentence(name, value, sentence, tmp_path, capsys):
    with pytest.raises(ValueError) as stop:
        Toy(**{name: value})
    assert str(stop.value) == sentence
    with pytest.raises(ValueError) as stop:
        from_flat(Toy, {name: value})
    assert str(stop.value) == sentence
    with pytest.raises(ValueError) as stop:
        read(tmp_path, "# a comment", f"{name}: {'null' if value is None else value}")
    assert str(stop.value) == f"{tmp_path / 'c.yaml'}, line 2: {sentence}"
    if value is not None:
        with pytest.raises(SystemExit) as stop:
            parse_into([Toy], [f"--{name}", value], program="toy")
        assert stop.value.code == 2 and capsys.readouterr().err.endswith(f"toy: error: --{sentence}\n")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["steps: 3", "stepz: 4"], "line 2: there is no option stepz: did you mean steps?"),
        (["steps: 3", "zzz: 4"], "line 2: there is no option zzz; --help_advanced lists them."),
        (["replay: 4"], "line 1: there is no option replay"),
        (["config: x"], "line 1: there is no option config"),
        (["steps: 3", "flip: false", "steps: 4"], "line 3: steps is set twice."),
        (["steps: [1, 2]"], "line 1: steps ['1', '2']: expected a whole number."),
        (["shots: []"], "line 1: shots: expected one or more values, each a whole number."),
        (["shots: [1, {a: 2}]"], "line 1: shots ["),
        (["steps: 3", "shots: [1, 2"], "line 2: not valid YAML: "),
        (["steps: 3", "  flip: false"], "line 2: not valid YAML: "),
        (["- steps"], "line 1: expected lines of `option: value`."),
        (["steps: \x00"], "is not valid YAML: "),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(lines, sentence, tmp_path):
    with pytest.raises(ValueError) as stop:
        read(tmp_path, *lines)
    assert str(stop.value).startswith(str(tmp_path / "c.yaml")) and sentence in str(stop.value)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("precision: no", "no"), ("precision: 'no'", "no"), ("precision: null", None), ("precision:", None),
        ("tracker: no", "no"), ("tracker: 3", "3"), ("tracker: off", "off"),
        ("flip: no", False), ("flip: On", True), ("flip: 0", False),
        ("inner_lr: 1e-3", 0.001), ("inner-lr: 2", 2.0), ("steps: 1_000", 1000),
        ("shots: 3", [3]), ("shots: [3, 4]", [3, 4]), ("shots:\n- 3", [3]),
    ],
)  # fmt: skip
def test_scalars_of_files_are_what_the_command_line_takes_them_for(line, value, tmp_path):
    found = flat(read(tmp_path, line))[line.partition(":")[0].replace("-", "_")]
    assert found == value and type(found) is type(value)


def test_python_values_of_a_wrong_type_are_refused_and_whole_numbers_are_numbers():
    assert type(Toy(inner_lr=2).replay.loop.inner_lr) is float
    for values in ({"steps": True}, {"steps": 2.0}, {"flip": 1}, {"precision": False}, {"tracker": 3}, {"shots": []}):
        with pytest.raises(ValueError, match=f"{next(iter(values))}.*: expected"):
            Toy(**values)
    with pytest.raises(ValueError, match="Toy: there is no option inner_step: did you mean inner_steps?"):
        Toy(inner_step=3)
    with pytest.raises(ValueError, match="replay: expected Replay, found Loop"):
        Toy(replay=Loop())
    with pytest.raises(ValueError, match="More inner steps than steps"):
        replace(Toy(), steps=2)


def test_the_command_line_wins_over_the_file_and_both_spellings_are_read(tmp_path):
    config = read(tmp_path, "steps: 7", "shots: [3]", "flip: false", words=["--inner-steps=2", "--shots", "1", "2"])
    assert flat(config) == flat(Toy(steps=7, flip=False, shots=[1, 2], inner_steps=2))
    assert read(tmp_path, "flip: false", words=["--flip"]).flip
    assert parse_into([Toy], ["--shots", "1", "--shots", "2", "--steps", "6", "--steps", "8"])[0] == Toy(
        shots=[1, 2], steps=8
    )


def test_words_that_are_no_options_end_with_a_sentence(capsys):
    for words, sentence in (
        (["3"], "'3' is not understood where it stands"),
        (["--steps", "3", "4"], "'4' is not understood where it stands"),
        (["--steps"], "--steps: expected a whole number after it."),
        (["--preset", "x"], "--preset x: expected "),
    ):
        with pytest.raises(SystemExit) as stop:
            parse_into([Toy], words, program="toy")
        assert stop.value.code == 2 and sentence in capsys.readouterr().err


def test_a_plain_dataclass_is_read_too(capsys):
    @dataclass(frozen=True)
    class Plain:
        name: str
        steps: int = 2

    assert parse_into([Plain], ["--name", "a", "--steps", "3"]) == (Plain("a", 3),)
    with pytest.raises(SystemExit):
        parse_into([Plain], [])
    assert "--name is missing: expected text." in capsys.readouterr().err


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_read_by_its_name(path):
    name = max((each for each in METHODS if path.name.startswith(each.replace("_", "-"))), key=len)
    method, own = find_method(name), name.replace("_", "-")
    by_file = parse(method, RunConfig, ["--config", str(path), "--seed", "7"])
    assert by_file[1].seed == 7 and from_flat(method.Config, flat(by_file[0])) == by_file[0]
    for preset in (path.stem, path.stem.removeprefix(f"{own}-")):
        assert parse(method, RunConfig, ["--preset", preset, "--seed", "7"]) == by_file


def test_a_preset_that_there_is_not_is_answered_with_those_of_the_method(capsys):
    with pytest.raises(SystemExit):
        parse(find_method("tgr"), RunConfig, ["--preset", "cifar-fs-gpu"])
    said = capsys.readouterr().err
    assert "expected tiny, small, cpu, gpu, paper, cifar-fs-cpu, " in said and "Did you mean cifar-fs-cpu?" in said
    with pytest.raises(SystemExit):
        parse(find_method("tgr"), RunConfig, ["--preset", "free-cifar-fs-cpu"])


@pytest.mark.parametrize("name", METHODS)
def test_help_is_short_and_advanced_help_whole(name, capsys):
    method, shown = find_method(name), {}
    for words in ("-h", "--help-advanced"):
        with pytest.raises(SystemExit):
            parse(method, RunConfig, [words], description="What it does.")
        out = capsys.readouterr().out
        assert "What it does." in out
        shown[words] = {line.split()[0][2:] for line in out.splitlines() if line.startswith("  --")}
    assert shown["--help-advanced"] == {*options_of(method.Config), *options_of(RunConfig), "config", "preset"}
    assert {"pool", "dataset", "output_dir", "seed", "preset"} < shown["-h"] and len(shown["-h"]) <= 14


def test_options_of_earlier_versions_are_ignored_aloud(tmp_path, capsys):
    from hf_dfml.methods.pool_distillation import PoolDistillation

    (tmp_path / "old.yaml").write_text("steps: 3\ntarget_dim: 4\n")
    words = ["--config", str(tmp_path / "old.yaml"), "--landmarks", "10", "--lr", "0.02"]
    method, _ = parse(PoolDistillation, RunConfig, words)
    assert (method.steps, method.lr) == (3, 0.02)
    said = capsys.readouterr().err
    assert "--landmarks is ignored: pool distillation learns" in said
    assert "old.yaml, line 2: target_dim is ignored: pool distillation learns" in said
