"""Command lines without secrets or machine paths."""

from __future__ import annotations

import pytest

from hf_dfml.utils.provenance import describe_machine, scrub_command, this_command


@pytest.mark.parametrize(
    ("command", "clean"),
    [
        ("python recipes/tgr.py --pool ../shared/pools/a --steps 20", None),
        ("python /home/ada/recipes/tgr.py --output_dir=/scratch/ada/x", "python recipes/tgr.py --output_dir=x"),
        ("x --config /home/hf_dfml/presets/tgr.yaml", "x --config hf_dfml/presets/tgr.yaml"),
        ("x --pool /a/pools/one,/b/two,org", "x --pool one,two,org"),
        ("x --data_dir ~/sets", "x --data_dir sets"),
        (
            "x --pool dir:/home/ada/a,lock:/r/pool.lock.json,dir:b --pool=dir:~/c --weights file:///home/ada/d",
            "x --pool dir:a,lock:pool.lock.json,dir:b --pool=dir:c --weights file://d",
        ),
        (r"x --data_dir 'C:\Users\ada\sets'", "x --data_dir sets"),
        ("x --token abc --hub-token=abc --seed 1", "x --token HIDDEN --hub-token=HIDDEN --seed 1"),
        ("x --note hf_AbCdEfGhIjKl --arch conv4", "x --note HIDDEN --arch conv4"),
        ("HF_TOKEN=hf_AbCdEfGhIjKl x", "HF_TOKEN=HIDDEN x"),
        ("x --endpoint https://ada:pass@hub.example/a", "x --endpoint https://HIDDEN@hub.example/a"),
        (
            "x --pool https://a.example/m?key=abc,http://b.example",
            "x --pool 'https://a.example/m?HIDDEN,http://b.example'",
        ),
        ("x --name 'two words'", None),
        ("hf-dfml train tgr --pool hf_dfml/pool", None),
    ],
)
def test_scrubbed(command: str, clean: str | None) -> None:
    assert scrub_command(command) == (clean or command)
    assert scrub_command(scrub_command(command)) == scrub_command(command)


def test_what_no_shell_would_take_is_scrubbed_too() -> None:
    assert scrub_command("x 'open /home/ada/y").endswith(" y")


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["recipes/tgr.py", "--seed", "1"], "python recipes/tgr.py --seed 1"),
        (["/home/ada/.venv/bin/hf-dfml", "evaluate", "/home/ada/runs/x"], "hf-dfml evaluate x"),
        (["/home/ada/lib/hf_dfml/__main__.py", "quickstart"], "python -m hf_dfml quickstart"),
    ],
)
def test_this_command_is_what_was_typed(monkeypatch: pytest.MonkeyPatch, argv: list[str], command: str) -> None:
    monkeypatch.setattr("sys.argv", argv)
    assert this_command() == command


def test_machine_is_one_line() -> None:
    text = describe_machine("cpu")
    assert "cores" in text and "\n" not in text
