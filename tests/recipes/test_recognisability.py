"""The judge of recovered images knows what it was shown, and says so of images that are what they should be."""

import json
import sys

import pytest
import torch

from hf_dfml.data import FewShotDataset
from hf_dfml.networks import create_network
from hf_dfml.pool.building.writing import member_config
from hf_dfml.pool.building.writing import write_member as write_network
from tests.pool.members import write_pool

COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)


@pytest.fixture
def benchmark(script):
    return script("recognisability")


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A random network in a folder; solid colours are told apart by any."""
    folder = tmp_path_factory.mktemp("judge") / "network"
    network = create_network("resnet10", num_classes=2, image_size=16, generator=torch.Generator().manual_seed(1))
    write_network(
        folder, network, member_config(network, "resnet10", ["x", "y"], image_size=16, mean=[0.5] * 3, std=[0.5] * 3)
    )
    return folder


def colours(names=("cat", "dog", "fox"), count=8):
    """Photographs of one colour a class, with a little noise."""
    noise = torch.randint(0, 20, (len(names) * count, 3, 16, 16), generator=torch.Generator().manual_seed(2))
    images = COLOURS.repeat_interleave(count, 0)[:, :, None, None].int() - noise
    labels = torch.arange(len(names)).repeat_interleave(count)
    return FewShotDataset("colours", "train", images.clamp(0, 255).byte(), labels, names, (0.5,) * 3, (0.5,) * 3)


def test_the_judge_names_what_it_learnt(benchmark, public):
    judge = benchmark.Judge(benchmark.open_backbone(str(public)), colours(), 16, 4)
    images = (COLOURS.float() / 255)[:, :, None, None].expand(3, 3, 16, 16)
    assert judge.real == 100
    assert judge.accuracy(images, ["cat", "dog", "fox"]) == 100
    assert judge.accuracy(images, ["dog", "fox", "cat"]) == 0
    assert judge.accuracy(images, ["cat", "dog", "unicorn"]) == 100, "classes that it does not know are left out"


def test_each_way_of_recovery_is_judged(benchmark, public, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "load_dataset", lambda *names, **options: colours())
    small = "--photos 4 --image_size 16 --joint_updates 2 --recovery_steps 2 --images_per_class 2".split()
    pool = write_pool(tmp_path / "pool", 2)
    monkeypatch.setattr(sys, "argv", ["x", "--pool", str(pool), "--backbone", str(public), *small])
    benchmark.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found) == 5 and found["real photographs"] == 100 and all(0 <= each <= 100 for each in found.values())
