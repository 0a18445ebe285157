"""The rules of the house: imports go one way, methods do not ask what kind of pool they have, imports stay light.

Read from the source with `ast`, so that what is imported inside functions counts too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

PACKAGE = Path(__file__).parent.parent / "hf_dfml"

ORDER = (
    *("networks", "data"),
    *(
        "pool.names",
        "pool.entry",
        "pool.members",
        "pool.queries",
        "pool.teacher_pool",
        "pool.teacher",
        "pool.formats",
        "pool.sources",
        "pool.cache",
    ),
    *(
        "pool.black_box",
        "pool.sources.service",
        "pool.sources.registry",
        "pool.model_pool",
        "pool.backbone",
        "pool.black_box.server",
        "pool.inspection",
        "pool.building",
        "pool",
    ),
    *("recovery", "learning", "evaluation", "methods", "sinusoids", "trackers", "resuming", "trainer", "classifier"),
    *(
        "meta_config",
        "hub_results",
        "model_card",
        "meta_model",
        "meta_network",
        "adapting",
        "comparing",
        "preflight",
        "estimate",
        "pipeline",
    ),
    *("quickstart", "demo", "cli"),
)
"""A module imports from its own line and from those before it; `pool` itself is what `pool/__init__.py` offers."""

SHARED = ("utils", "errors", "version", "zoo", "settings", "arguments", "run_config", "_timm_hook")
"""Usable by all, so that they import from each other alone."""

HEAVY = {"torchvision", "matplotlib", "datasets", "ot", "gradio", "sklearn", "scipy", "transformers", "onnx"}

PROBED = set(
    "get_classifier reset_classifier forward_head forward_features head_hidden_size pretrained_cfg default_cfg".split()
)
"""Attributes by which networks differ: `networks/info.py` answers for them."""

POOLS = {"ModelPool", "BlackBoxPool", "TeacherPool"}


def imports(tree: ast.AST, deferred: bool = False) -> Iterator[tuple[str, bool]]:
    """Names of the imported modules, and whether the import waits for a call (or is for the type checker only)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names a module too.
            yield from ((f"{node.module}.{alias.name}", deferred) for alias in node.names)
        else:
            waits = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            )
            yield from imports(node, deferred or waits)


def home(name: str) -> str:
    """The module or package of ours in which `hf_dfml.a.b.Name` lies, as `a.b`."""
    parts = name.split(".")
    while len(parts) > 1 and not (PACKAGE.parent.joinpath(*parts).with_suffix(".py")).exists():
        if PACKAGE.parent.joinpath(*parts, "__init__.py").exists():
            break
        parts.pop()
    return ".".join(parts[1:])


def place(module: str) -> int | None:
    """The line of `ORDER` that fits a module best; -1 for what is shared, None for the package itself."""
    if not module:
        return None
    if module.split(".")[0] in SHARED:
        return -1
    fits = [line for line in ORDER if module == line or module.startswith(f"{line}.")]
    assert fits, f"hf_dfml/{module} has no line in ORDER: say where it stands"
    return ORDER.index(max(fits, key=len))


def upward(module: str, tree: ast.AST) -> set[str]:
    """The imports that go against the order."""
    own = place(module)
    if own is None:
        return set()
    targets = {home(name) for name, _ in imports(tree) if name.split(".")[0] == PACKAGE.name}
    return {f"{module} -> {target}" for target in targets if (line := place(target)) is not None and line > own}


def heavy(tree: ast.AST) -> set[str]:
    """Libraries imported with the module that take long or are optional."""
    return {name.split(".")[0] for name, deferred in imports(tree) if not deferred} & HEAVY


def kinds_of_pool(module: str, tree: ast.AST) -> set[str]:
    """Questions after the kind of a pool."""
    return {
        f"{module}: isinstance(..., {name.id})"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
        for name in ast.walk(node.args[1])
        if isinstance(name, ast.Name) and name.id in POOLS
    }


def probed(tree: ast.AST) -> set[str]:
    """Attributes of networks that are asked for, by dot or by name, of anything but a `NetworkInfo`."""
    infos = ("network_info(", "info")
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    found = {node.attr for node in attributes if not ast.unparse(node.value).startswith(infos)}
    words = {"getattr", "hasattr", "setattr"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in words and len(node.args) > 1:
            found.add(ast.unparse(node.args[1]).strip("'"))
    return found & PROBED


def modules() -> dict[str, ast.Module]:
    """Every module of the package, parsed, by its dotted name below it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


MODULES = modules()


def test_imports_go_one_way():
    assert set().union(*(upward(module, tree) for module, tree in MODULES.items())) == set()


def test_heavy_libraries_are_imported_where_they_are_used():
    assert {module: found for module, tree in MODULES.items() if (found := heavy(tree))} == {}


def test_nobody_asks_what_kind_of_pool_it_is():
    asking = ("methods", "evaluation", "pipeline", "trainer")
    trees = {module: tree for module, tree in MODULES.items() if module.split(".")[0] in asking}
    assert set().union(*(kinds_of_pool(module, tree) for module, tree in trees.items())) == set()


def test_what_networks_differ_in_is_asked_of_network_info():
    trees = {module: tree for module, tree in MODULES.items() if module.split(".")[0] != "networks"}
    assert {module: found for module, tree in trees.items() if (found := probed(tree))} == {}


def test_the_rules_notice():
    parse = ast.parse
    assert upward("networks.conv4", parse("def f():\n    from hf_dfml.data import episodes")) == {
        "networks.conv4 -> data.episodes"
    }
    assert upward("learning.x", parse("from hf_dfml.evaluation.results import Result")) == {
        "learning.x -> evaluation.results"
    }
    assert upward("utils.x", parse("import hf_dfml.networks.info")) == {"utils.x -> networks.info"}
    assert upward("methods.x", parse("from hf_dfml import __version__\nfrom hf_dfml.utils import text")) == set()
    assert heavy(parse("class A:\n    import matplotlib.figure")) == {"matplotlib"}
    assert heavy(parse("if TYPE_CHECKING:\n    import datasets\ndef f():\n    import ot")) == set()
    assert kinds_of_pool("m", parse("isinstance(pool, (ModelPool, int))")) == {"m: isinstance(..., ModelPool)"}
    assert probed(parse("model.get_classifier()\ngetattr(x, 'pretrained_cfg', None)")) == {
        "get_classifier",
        "pretrained_cfg",
    }
    with pytest.raises(AssertionError, match="has no line in ORDER"):
        place("novelty")


def test_the_package_and_its_command_line_import_no_library():
    code = "import sys, hf_dfml, hf_dfml.cli; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    libraries = HEAVY | {"torch", "timm", "numpy", "accelerate", "huggingface_hub", "PIL", "yaml"}
    assert libraries.isdisjoint(loaded)


def test_one_image_is_classified_without_the_libraries_that_take_seconds(tmp_path):
    from hf_dfml.meta_model import MetaModel
    from tests.methods.pools import make_model

    MetaModel.of(make_model(), method="TGR").save_pretrained(tmp_path / "meta")
    for name, shade in (("dark", 0), ("light", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), (shade,) * 3).save(tmp_path / "photos" / name / "1.png")
    photo, slow = str(tmp_path / "photos" / "dark" / "1.png"), HEAVY | {"timm", "accelerate", "torch._dynamo"}
    commands = [
        ["adapt", str(tmp_path / "meta"), "--support", str(tmp_path / "photos"), "--save", str(tmp_path / "mine")],
        ["classify", str(tmp_path / "mine"), photo],
    ]
    # One process for both, which take seconds to start: what neither needs, none of them imports.
    code = f"import sys\nfrom hf_dfml.cli import main\nfor words in {commands}:\n"
    code += "    try: main(words)\n    except SystemExit as end: assert not end.code, end.code\n"
    code += f"    print('slow:', *{slow} & sys.modules.keys())\n"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    lines = [line.strip() for line in said.splitlines()]
    assert lines[0] == lines[-1] == "slow:" and lines[1].startswith(f"{photo}\tdark")


def test_the_public_names_are_what_dir_shows():
    import hf_dfml

    assert dir(hf_dfml) == sorted(hf_dfml.__all__)
    assert all(getattr(hf_dfml, name) for name in dir(hf_dfml))
