"""`--json`: one object on standard output, with the fields and types that docs/tools.md promises to tools."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from hf_dfml.cli import main
from hf_dfml.comparing import Comparison
from hf_dfml.evaluation import Result
from hf_dfml.meta_model import MetaModel
from hf_dfml.networks import create_network
from hf_dfml.pool.building.build import build_pool
from hf_dfml.pool.building.training import PoolRecipe
from hf_dfml.zoo import manifest
from tests.classifier.conftest import CLASSES, labels, make_meta, pictures
from tests.pool.members import write_pool

pytestmark = pytest.mark.usefixtures("few_glyphs")
PAGE = Path(__file__).parents[1] / "docs" / "tools.md"
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def schema() -> dict[str, dict[str, set[str]]]:
    """For each command its fields and their types, as the page lists them."""
    found: dict[str, dict[str, set[str]]] = {}
    for line in PAGE.read_text().splitlines():
        if row := re.match(r"\| `([^`]+)` \| `([^`]+)` \| ([a-z ]+) \|", line):
            found.setdefault(row[1], {})[row[2]] = set(row[3].split(" or "))
    return found


def leaves(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Every value of an object that is neither list nor object: its path in the page's words, and its type."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, f"{path}.{'SHOTS' if key.isdecimal() else key}".removeprefix("."))
    elif isinstance(value, list):
        for each in value:
            yield from leaves(each, f"{path}[]")
    else:
        yield path, TYPES[type(value)]


def wrong(command: str, found: dict) -> list[str]:
    """Fields that the page does not list, or of another type; and those that it lists and that are not there."""
    listed, seen = schema()[command], list(leaves(found))
    # A list that is not known is null.
    types = {path: listed.get(path) or ({"null"} if f"{path}[]" in listed else set()) for path, _ in seen}
    strange = [f"{path}: {kind}" for path, kind in seen if kind not in types[path]]
    # Whole numbers are numbers.
    strange = [each for each in strange if not each.endswith("integer") or "number" not in types[each.split(": ")[0]]]
    return strange + [path for path in listed if path not in {path for path, _ in seen}]


@pytest.fixture
def pool(tmp_path: Path) -> str:
    """One member, and what is none."""
    folder = tmp_path / "pool"
    build_pool("glyphs", num_models=1, ways=2, epochs=1, output=folder, recipe=PoolRecipe.fast(flip=False))
    (folder / "bad").mkdir()
    (folder / "bad" / "config.json").write_text(json.dumps({"architecture": "conv4", "num_classes": 2}))
    return str(folder)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three of each class."""
    for index, (name, image) in enumerate(zip(labels(3), pictures(0, 3), strict=True)):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def answered(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    """Exit code and the object that was printed; nothing else may be on standard output."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    return int(stop.value.code or 0), json.loads(capsys.readouterr().out)


def test_pool_ls_and_check(capsys, pool):
    capsys.readouterr()
    code, found = answered(capsys, "pool", "ls", pool, "--json")
    assert code == 0 and found["answers"] is None and wrong("pool ls", found) == []
    bad, good = found["members"]
    assert bad["problem"] and good["problem"] is None and good["input_size"] == [3, 32, 32]
    assert len(good["class_names"]) == good["num_classes"] == 2
    code, found = answered(capsys, "pool", "check", pool, "--json")
    assert code == 1 and found["usable"] == 1 and wrong("pool check", found) == []
    assert {member["id"]: member["usable"] for member in found["members"]} == {"bad": False, good["id"]: True}


def test_evaluate(capsys, tmp_path):
    MetaModel.of(create_network("conv4_16", num_classes=5, image_size=32), method="TGR").save_pretrained(tmp_path)
    words = ["--dataset", "glyphs", "--shots", "1", "--episodes", "2", "--split", "validation", "--json"]
    code, found = answered(capsys, "evaluate", str(tmp_path), *words)
    assert code == 0 and wrong("evaluate", found) == []
    assert json.loads(Path(found["file"]).read_text()) == found["rows"] and len(found["rows"]) == 1


def test_evaluate_a_classifier(capsys, tmp_path, photos):
    make_meta().adapt(photos).save_pretrained(tmp_path / "kept")
    code, found = answered(capsys, "evaluate", str(tmp_path / "kept"), "--data", str(photos), "--json")
    assert code == 0 and wrong("evaluate CLASSIFIER", found) == [] and found["images"] == 3 * len(CLASSES)


def test_compare(capsys, tmp_path, photos):
    pool = str(write_pool(tmp_path / "pool", 2))
    words = ["--support", str(photos), "--pool", pool, "--shots", "1", "--episodes", "2", "--json"]
    code, found = answered(capsys, "compare", *words)
    assert code == 0 and wrong("compare", found) == []
    assert all(list(row["accuracy"]) == ["1"] and len(row["behind"]["1"]) == 2 for row in found["rows"])


def test_zoo(capsys):
    code, found = answered(capsys, "zoo", "--json")
    assert code == 0 and wrong("zoo", found) == []
    assert [model["name"] for model in found["models"]] == [f"zoo:{name}" for name in manifest()]


def test_a_field_that_is_missing_new_or_of_another_type_is_seen():
    good = {"right": 3, "images": 4}
    assert wrong("evaluate CLASSIFIER", good) == []
    assert wrong("evaluate CLASSIFIER", {"right": "3", "total": 4}) == ["right: string", "total: integer", "images"]


def test_the_page_lists_the_fields_of_rows():
    assert [path.removeprefix("rows[].") for path in schema()["evaluate"] if "rows" in path] == [
        each.name for each in fields(Result)
    ]
    rows = {re.split(r"[.\[]", path.removeprefix("rows[]."))[0] for path in schema()["compare"] if "rows" in path}
    assert rows == {each.name for each in fields(Comparison)}
