"""A state dict and class names become a member that answers as the network did."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from hf_dfml.cli import main
from hf_dfml.pool import ModelPool
from hf_dfml.pool.building.conversion import add_member, read_labels
from tests.pool.members import WAYS, state_of

LABELS = ["cat", "dog", "fox"]
CONV4 = {"arch": "conv4_16", "labels": LABELS, "image_size": 16}


@pytest.fixture(scope="module")
def resnet():
    """A small network of torchvision's with running statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.resnet18(num_classes=WAYS)
        network(torch.randn(4, 3, 32, 32))
    return network.eval()


def test_a_member_is_one_that_plain_timm_loads(tmp_path):
    torch.save(state_of(), tmp_path / "mine.pt")
    add_member(tmp_path / "mine.pt", **CONV4, output=tmp_path / "pool", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pool = ModelPool.from_dir(tmp_path / "pool")
    assert pool.check("mine") is None
    assert (pool[0].label_names, pool[0].input_size, pool[0].mean) == (tuple(LABELS), (3, 16, 16), (0.1, 0.2, 0.3))
    state = pool.load(0).network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in state_of().items())
    plain = timm.create_model(f"local-dir:{tmp_path / 'pool' / 'mine'}", pretrained=True).eval()
    images = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (pool[0].mean, pool[0].std))
    torch.testing.assert_close(pool.load(0)(images), plain((images - mean) / std))
    assert sorted(path.name for path in (tmp_path / "pool").iterdir()) == ["mine"]
    assert len({path.stat().st_mode for path in (tmp_path / "pool" / "mine").iterdir()}) == 1


WRAPPED = {
    "plain": lambda state: state,
    "checkpoint": lambda state: {"epoch": 3, "state_dict": state, "lr": 0.1},
    "model": lambda state: {"model": state},
    "parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "lightning": lambda state: {"state_dict": {f"model._orig_mod.{name}": value for name, value in state.items()}},
    "half": lambda state: {
        name: value.half() if value.is_floating_point() else value for name, value in state.items()
    },
    "no counters": lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_are_understood(tmp_path, name):
    torch.save(WRAPPED[name](state_of()), tmp_path / "mine.pth")
    add_member(tmp_path / "mine.pth", **CONV4, output=tmp_path / "pool")
    weight = ModelPool.from_dir(tmp_path / "pool").load(0).network.state_dict()["fc.weight"]
    expected = state_of()["fc.weight"]
    assert torch.equal(weight, expected.half().float() if name == "half" else expected)


@pytest.mark.parametrize("arch", ["resnet18", "torchvision:resnet18"])
def test_weights_of_torchvision_answer_as_there(tmp_path, resnet, arch):
    save_file(resnet.state_dict(), tmp_path / "mine.safetensors")
    add_member(tmp_path / "mine.safetensors", arch=arch, labels=LABELS, output=tmp_path, image_size=32, id="a")
    teacher = ModelPool.from_dir(tmp_path / "a").load(0)
    images = torch.rand(2, 3, 32, 32)
    expected = resnet((images - teacher.mean) / teacher.std)
    torch.testing.assert_close(teacher(images), expected, rtol=1e-4, atol=1e-5)


def test_labels_and_outputs_of_a_network_of_torchvision_are_counted(tmp_path, resnet):
    save_file(resnet.state_dict(), tmp_path / "mine.safetensors")
    for arch in ("resnet18", "torchvision:resnet18"):
        with pytest.raises(ValueError, match="has 3 outputs, and there are 4 labels: give one class name"):
            add_member(tmp_path / "mine.safetensors", arch=arch, labels=list("abcd"), output=tmp_path, image_size=32)


def test_a_network_that_timm_calls_otherwise_is_renamed(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.mobilenet_v3_small(num_classes=WAYS).eval()
    torch.save(network.state_dict(), tmp_path / "mine.pt")
    entry = add_member(tmp_path / "mine.pt", arch="mobilenet_v3_small", labels=LABELS, output=tmp_path, image_size=64)
    # Its batch norm adds 0.001 to variances, timm's 0.00001.
    assert (entry.architecture, entry.model_args) == ("mobilenetv3_small_100", {"bn_eps": 0.001})
    teacher = ModelPool.from_dir(entry.location).load(0)
    images = torch.rand(2, 3, 64, 64)
    expected = network((images - teacher.mean) / teacher.std)
    torch.testing.assert_close(teacher(images), expected, rtol=1e-3, atol=1e-5)


def test_a_network_that_timm_does_not_have_is_refused(tmp_path):
    torch.save(torchvision.models.squeezenet1_1(num_classes=WAYS).state_dict(), tmp_path / "mine.pt")
    with pytest.raises(ValueError, match="'squeezenet1_1' has no counterpart in timm"):
        add_member(tmp_path / "mine.pt", arch="squeezenet1_1", labels=LABELS, output=tmp_path / "pool")
    assert not (tmp_path / "pool").exists()


class Unwanted:
    """Not a tensor."""


def without(name, renamed=None):
    state = state_of()
    tensor = state.pop(name)
    return state | ({renamed: tensor} if renamed else {})


BAD = {
    "wrong shape": (without("fc.weight") | {"fc.weight": torch.zeros(5, 16)}, r"fc.weight is \[5, 16\], expected"),
    "renamed": (without("fc.weight", "head.weight"), r"fc.weight is missing \(perhaps named head.weight here\)"),
    "too many": (state_of() | {"extra": torch.zeros(1)}, "extra is not part of the network"),
    "not finite": (without("fc.bias") | {"fc.bias": torch.full((3,), float("nan"))}, "make no pool member: .*NaN"),
    "code": ({"state_dict": Unwanted()}, "holds more than tensors, which would run code"),
    "no tensors": ({"epoch": 3}, "holds no state dict"),
    "a list": ([torch.zeros(1)], "holds no state dict"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, name):
    content, message = BAD[name]
    torch.save(content, tmp_path / "mine.pt")
    with pytest.raises(ValueError, match=message):
        add_member(tmp_path / "mine.pt", **CONV4, output=tmp_path / "pool")
    assert not any((tmp_path / "pool").glob("*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "conv5"}, "Architecture 'conv5' is unknown"),
        ({"labels": ["cat"]}, "at least 2 class names"),
        ({"labels": ["cat", "dog", "cat"]}, "stands for two classes"),
        ({"labels": ["cat", "dog"]}, r"has 3 outputs, and there are 2 labels: give one class name for each output"),
        ({"labels": list("abcd"), "arch": "conv4"}, r"do not fit 'conv4' with 4 classes: blocks.0.conv"),
        ({"id": "../mine"}, "not a valid name of a member"),
        ({"std": (0.0, 1.0, 1.0)}, "expected positive numbers"),
        ({"image_size": 5}, "timm cannot build 'conv4_16' for 5 pixels"),
    ],
)
def test_other_mistakes_are_answered_in_a_sentence(tmp_path, changes, message):
    torch.save(state_of(), tmp_path / "mine.pt")
    with pytest.raises(ValueError, match=message):
        add_member(tmp_path / "mine.pt", **CONV4 | {"output": tmp_path / "pool"} | changes)


@pytest.mark.parametrize("content", [b"", b"no weights", b"version https://git-lfs.github.com/spec/v1\n"])
@pytest.mark.parametrize("name", ["mine.pt", "mine.safetensors"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        add_member(tmp_path / name, **CONV4, output=tmp_path / "pool")


def test_a_member_that_is_there_is_not_replaced(tmp_path):
    torch.save(state_of(), tmp_path / "mine.pt")
    add_member(tmp_path / "mine.pt", **CONV4, output=tmp_path / "pool")
    before = (tmp_path / "pool" / "mine" / "config.json").stat()
    with pytest.raises(FileExistsError, match="choose another name with --id"):
        add_member(tmp_path / "mine.pt", **CONV4, output=tmp_path / "pool")
    assert (tmp_path / "pool" / "mine" / "config.json").stat() == before


def test_labels_come_from_a_list_or_from_files(tmp_path):
    assert read_labels("cat, dog,fox") == LABELS
    many = [f"class number {index}" for index in range(100)]
    assert read_labels(",".join(many)) == many, "longer than a name of a file may be"
    (tmp_path / "names.txt").write_text("cat\ndog\n\nfox\n")
    assert read_labels(str(tmp_path / "names.txt")) == LABELS
    for content in (LABELS, {"2": "fox", "0": "cat", "1": "dog"}):
        (tmp_path / "names.json").write_text(json.dumps(content))
        assert read_labels(str(tmp_path / "names.json")) == LABELS
    (tmp_path / "names.json").write_text('{"1": "cat"}')
    with pytest.raises(ValueError, match="holds no class names"):
        read_labels(str(tmp_path / "names.json"))
    (tmp_path / "names.json").write_text("{")
    with pytest.raises(ValueError, match="names.json is not readable as JSON"):
        read_labels(str(tmp_path / "names.json"))


def test_the_command_adds_a_member(tmp_path, capsys):
    torch.save(state_of(), tmp_path / "mine.pt")
    words = ["pool", "add", str(tmp_path / "mine.pt"), "--arch", "conv4_16", "--labels", "cat,dog,fox"]
    words += ["--output", str(tmp_path / "pool"), "--image_size", "16", "--mean", "0.1", "0.2", "0.3", "--id", "first"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code
    assert "first: conv4_16, 3 classes" in capsys.readouterr().out
    assert ModelPool.from_dir(tmp_path / "pool")[0].mean == (0.1, 0.2, 0.3)
