"""What one process has, another gets, and nothing that runs."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from hf_dfml.recovery.task import Task
from hf_dfml.utils.transport import STRUCTURE, pack, unpack


@dataclass
class Stranger:
    value: int


def test_values_arrive_as_they_were_sent():
    images = torch.randn(2, 3, 4, 4).permute(0, 2, 3, 1)
    sent = {
        "loss": [0.1, float("-inf"), 3, True, None, "ü", ()],
        7: (torch.tensor(2.5), torch.empty(0, 3), torch.ones(2, dtype=torch.bfloat16)),
        "task": Task(images, torch.tensor([1, 0]), ("cat", "dog"), "member"),
    }
    got = unpack(pack(sent))
    assert list(got) == list(sent) and got["loss"] == sent["loss"]
    assert all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(got[7], sent[7], strict=True))
    task = got["task"]
    assert isinstance(task, Task) and (task.class_names, task.member) == (("cat", "dog"), "member")
    # Of the same layout too: a convolution of channels-last images rounds differently.
    assert torch.equal(task.images, images) and task.images.stride() == images.stride()
    assert task.labels.tolist() == [1, 0]


@pytest.mark.parametrize("value", [Path("x"), {1, 2}, threading.Lock(), lambda: None, Task, torch.Generator()])
def test_what_is_no_tree_is_refused_by_its_class_and_place(value):
    with pytest.raises(TypeError, match=rf"{type(value).__name__}.*\(at '/images/1'\) cannot go from one process to"):
        pack({"images": [torch.ones(2), value]})


@pytest.mark.parametrize("name", ["os:system", "hf_dfml.utils.transport:pack", "hf_dfml.no:Thing", "hf_dfml.utils"])
def test_nothing_but_dataclasses_of_this_library_is_made_of_a_message(name):
    structure = json.dumps({"dataclass": [name, {"dict": [["command", {"value": "echo ran"}]]}]})
    message = save({STRUCTURE: torch.tensor(list(structure.encode()), dtype=torch.uint8)})
    with pytest.raises(ValueError, match=f"has sent a {name}, which is no dataclass"):
        unpack(message)
    with pytest.raises(ValueError, match="Stranger, which is no dataclass that is known here"):
        unpack(pack(Stranger(1)))


def test_a_message_is_a_safetensors_file():
    assert set(load(pack([torch.ones(1)]))) == {STRUCTURE, "/0"}
