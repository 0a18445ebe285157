"""What the documentation tells a reader to type is there to be typed, and every recipe is told of."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import typer

from hf_dfml.cli.commands import app
from hf_dfml.methods.catalogue import METHODS, is_file
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import options_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("black_boxes", "hub_pools", "papers"))]
PAGES += [ROOT / "docs" / f"{name}.md" for name in ("extending", "pool_distillation", "processes")]
COMMAND = typer.main.get_command(app)


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page, in blocks and in sentences."""
    text = page.read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [
        " ".join(words.split()) for words in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    ]
    return [shlex.split(line, comments=True) for line in lines if re.search(r"hf-dfml |recipes/\w+\.py ", line)]


def own_options(method: str) -> set[str]:
    config = getattr(import_module(f"hf_dfml.methods.{method}"), METHODS[method]).Config
    return {name for kind in (config, RunConfig) for name in options_of(kind)} | {"config", "preset", "help"}


def unknown(words: list[str]) -> list[str]:
    """The words of a command line that its program does not know."""
    recipe = next((Path(word).stem for word in words if re.fullmatch(r"recipes/\w+\.py", word)), None)
    if recipe:
        if not (ROOT / "recipes" / f"{recipe}.py").is_file():
            return [recipe]
        rest = words[words.index(f"recipes/{recipe}.py") + 1 :]
        known = own_options(recipe) if recipe in METHODS else None
    else:
        start = next(index for index, word in enumerate(words) if word.endswith("hf-dfml"))
        rest, command = words[start + 1 :], COMMAND
        while rest and not rest[0].startswith("-") and hasattr(command, "commands"):
            name = rest.pop(0)
            if name == "METHOD" or is_file(name):
                return []
            if name not in command.commands:
                return [name]
            command = command.commands[name]
        trained = command.name.replace("-", "_")
        known = {name.lstrip("-").replace("-", "_") for option in command.params for name in option.opts} | {"help"}
        known = own_options(trained) if trained in METHODS else known
    given = [word.partition("=")[0].removeprefix("--").replace("-", "_") for word in rest if word.startswith("--")]
    return [name for name in given if known is not None and name not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_exists_with_its_options(page):
    found = commands(page)
    assert {shlex.join(words): unknown(words) for words in found if unknown(words)} == {}


def test_commands_are_found_and_wrong_ones_seen():
    assert len(commands(ROOT / "README.md")) >= 10
    assert unknown(["hf-dfml", "pool", "burn", "x"]) == ["burn"]
    assert unknown(["hf-dfml", "serve", "x", "--top_k", "3", "--colour", "red"]) == ["colour"]
    assert unknown(["accelerate", "launch", "recipes/tgr.py", "--pool", "x", "--stepps", "4"]) == ["stepps"]


def test_every_recipe_is_told_of():
    to_answers = (ROOT / "README.md").read_text() + (ROOT / "docs" / "papers.md").read_text()
    assert [path.name for path in (ROOT / "recipes").glob("*.py") if f"recipes/{path.name}" not in to_answers] == []
