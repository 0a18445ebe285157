"""Members that were fine-tuned from one network show it in their weights."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_dfml.learning.ancestry import shared_tensors, start_from_pool
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool
from tests.pool.members import write_member


def write_family(folder, changed, count=3, by=0.1):
    """Members of one network whose tensors with `changed` in their names were replaced, the others moved a little."""
    for index in range(count):
        write_member(folder / f"m-{index}", seed=0, dfml={"val_accuracy": 0.5 + 0.1 * index})
        path = folder / f"m-{index}" / "model.safetensors"
        generator = torch.Generator().manual_seed(index)
        state = load_file(path)
        for name, tensor in state.items():
            if tensor.is_floating_point() and tensor.ndim > 1:
                noise = torch.randn(tensor.shape, generator=generator) * tensor.std()
                state[name] = noise if any(part in name for part in changed) else tensor + by * noise
        save_file(state, path, metadata={"format": "pt"})
    return ModelPool.from_dir(folder)


def weights(pool, index):
    return pool.load(index).network.state_dict()


def test_a_student_starts_from_the_average_of_what_was_fine_tuned(tmp_path):
    pool = write_family(tmp_path, changed=("fc.",))
    model = create_network("conv4_16", num_classes=5, image_size=16)
    head = model.fc.weight.clone()
    said = start_from_pool(model, pool)
    assert "3 members were fine-tuned from" in said and said.endswith("in common.")
    for name in ("blocks.0.conv.weight", "blocks.3.conv.weight"):
        mean = torch.stack([weights(pool, index)[name] for index in range(3)]).mean(0)
        torch.testing.assert_close(model.state_dict()[name], mean)
    assert model.fc.weight.equal(head), "the classifier is the student's own"


def test_layers_that_are_not_shared_are_the_best_members(tmp_path):
    pool = write_family(tmp_path, changed=("blocks.3.", "fc."))
    shared = shared_tensors(pool, list(pool))
    assert {"blocks.2.conv.weight", "blocks.2.bn.weight", "blocks.2.bn.running_mean"} <= shared
    assert not any(name.startswith("blocks.3.") for name in shared)
    model = create_network("conv4_16", num_classes=5, image_size=16)
    said = start_from_pool(model, pool)
    assert "its other layers are those of m-2, the best of them" in said
    assert model.state_dict()["blocks.3.conv.weight"].equal(weights(pool, 2)["blocks.3.conv.weight"])


@pytest.mark.parametrize("count", [1, 3])
def test_members_of_no_common_origin_share_nothing(tmp_path, count):
    for index in range(count):
        write_member(tmp_path / f"m-{index}", seed=index, dfml={"val_accuracy": 0.5 + 0.1 * index})
    pool = ModelPool.from_dir(tmp_path)
    assert shared_tensors(pool, list(pool)) == set()
    model = create_network("conv4_16", num_classes=5, image_size=16)
    assert start_from_pool(model, pool).startswith(f"The student starts from m-{count - 1}, the best of ")
    assert model.state_dict()["blocks.0.conv.weight"].equal(weights(pool, count - 1)["blocks.0.conv.weight"])


def test_a_student_of_another_kind_starts_at_random(tmp_path):
    write_member(tmp_path / "only")
    model = create_network("conv4_64", num_classes=5, image_size=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert "at random" in start_from_pool(model, ModelPool.from_dir(tmp_path))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
