"""What the documentation tells a reader to type is there to be typed, and every recipe is told of."""

import ast
import inspect
import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from hf_dfml import Classifier, MetaModel, ModelPool
from hf_dfml.cli.commands import app
from hf_dfml.methods.catalogue import METHODS, is_file
from hf_dfml.pool.teacher import Teacher
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import options_of

ROOT = Path(__file__).parents[1]
MADE = ("results.md", "benchmarks.md")
"""Pages that scripts write; their commands are those of measurements, whatever version they were made with."""
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md"]
PAGES += sorted(
    path for path in (ROOT / "docs").glob("*.*") if path.suffix in (".md", ".txt") and path.name not in MADE
)
COMMAND = typer.main.get_command(app)
OURS = (Classifier, MetaModel, ModelPool, Teacher)
"""Classes that calls in the documentation return."""
OPTIONAL = ("easyfsl", "pool_reptile")
"""What a block may import that tests do not need, or that another block of the page is."""


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page, in blocks and in sentences."""
    text = page.read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    # What a container is given to run is a command line of its own.
    lines += [part for line in lines for words in re.findall(r'bash -c "([^"]*)"', line) for part in words.split("&&")]
    lines = [re.sub(r'bash -c "[^"]*"', "bash", line) for line in lines]
    lines += [
        " ".join(words.split()) for words in re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    ]
    return [shlex.split(line, comments=True) for line in lines if re.search(r"hf-dfml |recipes/\w+\.py ", line)]


def python_blocks(page: Path) -> list[str]:
    """The blocks of Python in a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


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


class Names:
    """What a block of Python imports, and of which class of ours its variables are, as far as annotations say."""

    def __init__(self, tree: ast.Module) -> None:
        self.objects: dict[str, Any] = {}
        self.kinds: dict[str, type] = {}
        self.wrong: list[str] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._imported(node)
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and (kind := self.kind(node.value))
            ):
                self.kinds[node.targets[0].id] = kind
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and self.kind(node.value) and not self._has(node):
                self.wrong.append(ast.unparse(node))
            if isinstance(node, ast.Call) and (called := self.value(node.func)) is not None:
                self.wrong += [f"{ast.unparse(node.func)}({name}=)" for name in self._unknown_keywords(node, called)]

    def _imported(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            module = alias.name if isinstance(node, ast.Import) else node.module or ""
            if module.split(".")[0] in OPTIONAL:
                continue
            try:
                found = import_module(module)
                found = found if isinstance(node, ast.Import) else getattr(found, alias.name)
            except (ImportError, AttributeError):
                self.wrong.append(f"import {module} {alias.name}")
                continue
            self.objects[(alias.asname or alias.name).split(".")[0]] = found

    def value(self, node: ast.expr) -> Any:
        """The object that a name or an attribute of one is; None where it is not known."""
        if isinstance(node, ast.Name):
            return self.objects.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.kind(node.value) or self.value(node.value)
            return getattr(owner, node.attr, None) if owner is not None else None
        return None

    def kind(self, node: ast.expr) -> type | None:
        """The class of ours that an expression is an instance of."""
        if isinstance(node, ast.Name):
            return self.kinds.get(node.id)
        if not isinstance(node, ast.Call):
            return None
        called = self.value(node.func)
        if inspect.isclass(called):
            return called if called.__module__.startswith("hf_dfml") else None
        written = getattr(called, "__annotations__", {}).get("return")
        return next((each for each in OURS if each.__name__ == written), None)

    def _has(self, node: ast.Attribute) -> bool:
        kind = self.kind(node.value)
        fields = {name for each in kind.__mro__ for name in getattr(each, "__annotations__", {})}  # type: ignore[union-attr]
        return hasattr(kind, node.attr) or node.attr in fields or f"self.{node.attr}" in inspect.getsource(kind)  # type: ignore[arg-type]

    @staticmethod
    def _unknown_keywords(node: ast.Call, called: Any) -> list[str]:
        if not str(getattr(called, "__module__", "")).startswith("hf_dfml"):
            return []
        parameters = inspect.signature(called).parameters
        if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            return []
        return [each.arg for each in node.keywords if each.arg and each.arg not in parameters]


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.stem)
def test_blocks_of_python_use_what_there_is(page):
    assert [Names(ast.parse(block)).wrong for block in python_blocks(page)] == [[]] * len(python_blocks(page))


def test_wrong_python_is_seen():
    def wrong(text):
        return Names(ast.parse(text)).wrong

    assert wrong("from hf_dfml import MetaModle") == ["import hf_dfml MetaModle"]
    assert wrong("from hf_dfml import MetaModel\nm = MetaModel.from_pretrained('x')\nm.adopt(1)") == ["m.adopt"]
    assert wrong("from hf_dfml import MetaModel\nMetaModel.from_pretrained('x').adapt(1, hedd=2).predict(3)") == [
        "MetaModel.from_pretrained('x').adapt(hedd=)"
    ]
    assert wrong("from hf_dfml import ModelPool\np = ModelPool.from_dir('x')\np.as_black_box(output='probs')") == []


def test_pages_are_all_in_the_site_and_their_links_lead_somewhere():
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)
    listed = re.findall(r"'([\w/]+\.md)'", str(site["nav"]))
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    dead = []
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "docs" / "llms.txt", ROOT / "README.md", ROOT / "AGENTS.md"]:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
        dead += [(page.name, link) for link in links if "://" not in link and not (page.parent / link).exists()]
    assert dead == []


def test_numbers_of_the_guide_stand_in_the_results():
    """Accuracies with an interval, and pairs of 1 and 5 shots, to one decimal, are of `docs/results`."""
    stored = set()
    for file in (ROOT / "docs" / "results").glob("*.json"):
        for row in json.loads(file.read_text()):
            stored |= {f"{row['mean']:.1f} ± {row['ci95']:.1f}", f"{row['mean']:.1f}"}
    notes = [*(ROOT / "docs" / "results").glob("*.md"), ROOT / "docs" / "pool_distillation.md"]
    stored |= {number for note in notes for number in re.findall(r"\d+\.\d", note.read_text())}
    for name in ("index", "which_method", "better_accuracy", "apis", "your_pool"):
        text = (ROOT / "docs" / f"{name}.md").read_text()
        found = re.findall(r"\d\d\.\d ± \d\.\d", text)
        found += [number for pair in re.findall(r"(\d\d\.\d) / (\d\d\.\d)", text) for number in pair]
        assert [number for number in found if number not in stored] == [], name


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_every_recipe_brings_its_dependencies(path):
    """PEP 723: `uv run recipes/NAME.py` installs the clone that the recipe lies in."""
    tomllib = pytest.importorskip("tomllib")
    block = re.match(r"# /// script\n((?:#.*\n)*?)# ///\n", path.read_text())
    assert block, "expected the block of PEP 723 at the head of the file"
    said = tomllib.loads("".join(line[2:] + "\n" for line in block[1].splitlines()))
    assert said["dependencies"] == ["hf_dfml"] and said["requires-python"] == ">=3.10"
    assert (path.parent / said["tool"]["uv"]["sources"]["hf_dfml"]["path"] / "setup.cfg").is_file()
