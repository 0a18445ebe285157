"""What methods know of a pool, whatever its kind; and that they ask for nothing else."""

import ast
from pathlib import Path

import pytest
import torch

import hf_dfml
from hf_dfml.pool import ModelPool, TeacherPool

PACKAGE = Path(hf_dfml.__file__).parent
KINDS = {"BlackBox", "BlackBoxPool", "ModelPool"}


def test_a_pool_of_members_and_one_of_black_boxes_answer_the_same_questions(members):
    pool = ModelPool.from_dir(members)
    boxes = pool.as_black_box("label", max_queries=10)
    assert isinstance(pool, TeacherPool) and isinstance(boxes, TeacherPool)
    assert (pool.answers_only, pool.output, pool.queries, pool.resolution) == (False, None, None, 0.0)
    assert (boxes.answers_only, boxes.output, boxes.queries.allowed) == (True, "label", 10)
    assert pool.load(0).answers_only is False and boxes.load(0).answers_only is True
    last = len(boxes) - 1
    assert [member.entry.id for member in boxes.stream([last, 0])] == [boxes[last].id, boxes[0].id]
    assert boxes.prefetch([0, 1]) is None and boxes.resolve() is boxes
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(boxes.load(1)(images).argmax(-1), pool.load(1)(images).argmax(-1))


def test_members_that_only_answer_are_pinned_where_their_files_are_at_hand(members, tmp_path):
    pool = ModelPool.from_dir(members)
    path = pool.as_black_box()[1:].to("cpu").lock(tmp_path / "run")
    assert [entry.id for entry in ModelPool.from_lock(path)] == [entry.id for entry in pool[1:]]


@pytest.mark.parametrize("part", ["methods", "evaluation", "learning", "recovery", "trainer.py", "pipeline.py"])
def test_nothing_asks_what_kind_of_pool_or_black_box_it_has(part):
    place = PACKAGE / part
    for file in [place] if place.is_file() else place.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "isinstance":
                named = {node.id for node in ast.walk(call.args[1]) if isinstance(node, ast.Name)}
                assert not named & KINDS, f"{file}:{call.lineno}"
