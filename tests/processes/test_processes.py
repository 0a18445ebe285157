"""Two processes come to what one comes to: results of shared work, every method's weights, evaluation rows."""

import json

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from tests.processes import work
from tests.processes.launch import start
from tests.recipes.test_inversion_recipes import glyph_pool


@pytest.mark.timeout(900)  # On a machine that is busy with other things.
def test_two_processes_come_to_what_one_comes_to(tmp_path):
    glyph_pool(tmp_path / "pool", 5)
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    together = start(2, "-m", "tests.processes.work", two)
    work.main(one, Accelerator(cpu=True))
    assert together.wait() == 0
    for rank in (0, 1):
        for name in work.MAKE:
            alone, shared = load_file(one / f"{name}-0.safetensors"), load_file(two / f"{name}-{rank}.safetensors")
            # Not merely to 1e-5: each item's sums are the same ones, and they are added up in double precision.
            assert all(torch.equal(alone[key], shared[key]) for key in alone), name
        expected, shared = (
            json.loads(path.read_text()) for path in (one / "shared-0.json", two / f"shared-{rank}.json")
        )
        refused = shared.pop("refused")
        assert shared == expected
    # What there is to know is known by a process that has done only a part of it.
    assert shared["map [7, 0, 2]"] == [70, 0, 20] and shared["sum [7, 0, 2]"] == [[3.0, 3.0], [3.0, 3.0]]
    assert shared["once"] == [1.0, 1.0] and shared["asked"] == 1 and shared["first"] == "last"
    assert shared["error"].startswith("the budget of 6 queries does not suffice")
    assert refused.startswith("cannot pickle '_thread.lock' object")
    assert shared["same"] and shared["kinds"] == ["Task", "m", ["cat"], float("-inf"), None, [1.0, 1.0]]
