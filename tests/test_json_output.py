"""`--json`: one object on standard output, with keys that tools may rely on (docs/tools.md)."""

from __future__ import annotations

import json
import re
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

MEMBER = ["id", "architecture", "num_classes", "input_size", "val_accuracy", "revision", "problem", "class_names"]


@pytest.fixture
def pool(tmp_path: Path) -> str:
    """One member, and what is none."""
    folder = tmp_path / "pool"
    build_pool("glyphs", num_models=1, ways=2, epochs=1, output=folder, recipe=PoolRecipe.fast(flip=False))
    (folder / "bad").mkdir()
    (folder / "bad" / "config.json").write_text(json.dumps({"architecture": "conv4", "num_classes": 2}))
    return str(folder)


def answered(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    """Exit code and the object that was printed; nothing else may be on standard output."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    return int(stop.value.code or 0), json.loads(capsys.readouterr().out)


def test_pool_ls_and_check(capsys, pool):
    capsys.readouterr()
    code, found = answered(capsys, "pool", "ls", pool, "--json")
    assert code == 0 and list(found) == ["pool", "answers", "members"] and found["answers"] is None
    bad, good = found["members"]
    assert list(bad) == list(good) == MEMBER
    assert bad["problem"] and good["problem"] is None and good["input_size"] == [3, 32, 32]
    assert len(good["class_names"]) == good["num_classes"] == 2
    code, found = answered(capsys, "pool", "check", pool, "--json")
    assert code == 1 and found["usable"] == 1 and list(found) == ["pool", "usable", "members"]
    assert {member["id"]: member["usable"] for member in found["members"]} == {"bad": False, good["id"]: True}
    assert all(list(member) == ["id", "usable", "problem"] for member in found["members"])


def test_evaluate(capsys, tmp_path):
    MetaModel.of(create_network("conv4_16", num_classes=5, image_size=32), method="TGR").save_pretrained(tmp_path)
    words = ["--dataset", "glyphs", "--shots", "1", "--episodes", "2", "--split", "validation", "--json"]
    code, found = answered(capsys, "evaluate", str(tmp_path), *words)
    assert code == 0 and list(found) == ["rows", "file"]
    assert json.loads(Path(found["file"]).read_text()) == found["rows"]
    (row,) = found["rows"]
    assert list(row) == [field.name for field in fields(Result)]


def test_the_page_lists_the_keys():
    page = (Path(__file__).parents[1] / "docs" / "tools.md").read_text()
    lines = {line.split("`")[1]: set(re.findall(r"`(\w+)`", line)) for line in page.splitlines() if line[:3] == "| `"}
    assert lines["pool ls"] - {"pool", "answers", "members"} == set(MEMBER)
    assert lines["pool check"] == {"pool", "usable", "members", "id", "problem"}
    assert lines["compare"] - {"rows", "verdict", "compare"} == {field.name for field in fields(Comparison)}
    assert lines["evaluate"] - {"rows", "file", "evaluate", "right", "images"} <= {
        field.name for field in fields(Result)
    }
