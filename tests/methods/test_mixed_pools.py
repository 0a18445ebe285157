"""Each method on a pool as the Hub has them: architectures, sizes, classes and normalisations of all kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hf_dfml import MetaModel
from hf_dfml.arguments import parse
from hf_dfml.meta_network import meta_network
from hf_dfml.methods.catalogue import METHODS, find_method
from hf_dfml.networks import create_network
from hf_dfml.networks.info import network_info
from hf_dfml.pipeline import run
from hf_dfml.pool import ModelPool
from hf_dfml.pool.building.writing import member_config, write_member
from hf_dfml.run_config import RunConfig

MEMBERS = {"conv": ("conv4_16", 32, 2), "vit": ("test_vit", 48, 5), "residual": ("test_resnet", 64, 20)}
"""Architecture, pixels and classes; the transformer has no batch norm."""
EPISODE = "--replay_shots 1 --replay_queries 1 --replay_batch 1 --inner_steps 1 --second_order true"
IMAGES = f"{EPISODE} --recovery pixels --recovery_steps 1 --images_per_class 2 --replay_max_batches 1"
OPTIONS = {
    "bidf_mkd": f"--steps 3 {IMAGES} --boundary_start 1 --distillation_steps 1",
    "dro": "--epochs 1",
    "free": f"--steps 2 --warmup 1 {EPISODE} --images_per_class 2 --replay_max_batches 1 --generator_width 4 "
    "--latent_dim 4 --teachers_per_step 3 --adaptation_steps 1",
    "pool_distillation": "--steps 1 --recovery pixels --recovery_steps 1 --images_per_class 2 --recoveries 1 "
    "--joint_rounds 1 --joint_updates 1 --num_images 16 --batch_size 8",
    "purer": f"--steps 2 --warmup 0 --images_per_class 2 {EPISODE}",
    "tgr": f"--steps 1 {IMAGES} --probe average --embedding_batches 1 --num_groups 2 --teachers_per_step 3",
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    """Random members that share class names and nothing else."""
    folder = tmp_path_factory.mktemp("pool")
    for seed, (name, (arch, size, classes)) in enumerate(MEMBERS.items()):
        network = create_network(
            arch, num_classes=classes, image_size=size, generator=torch.Generator().manual_seed(seed)
        )
        made = {"image_size": size, "mean": (0.5,) * 3, "std": (0.25,) * 3}
        made["model_args"] = network_info(network).settings.get("model_args")
        names = [f"thing {seed + number}" for number in range(classes)]
        write_member(folder / name, network, member_config(network, arch, names, **made))
    return folder


def run_of(name: str, pool: Path, output: Path, *more: str) -> None:
    method_class = find_method(name)
    words = [*OPTIONS[name].split(), "--pool", str(pool), "--output_dir", str(output), "--ways", "3"]
    words += ["--check_members", "false", "--log_with", "none", *more]
    run(method_class, *parse(method_class, RunConfig, words), argv=["test"])


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        *((name, "auto") for name in METHODS if name != "dro"),
        *((name, "test_vit") for name in ("bidf_mkd", "purer")),
        *(pytest.param(name, "test_vit", marks=pytest.mark.slow) for name in ("free", "pool_distillation", "tgr")),
    ],
)
def test_a_method_that_makes_images_runs_to_its_end(name, arch, pool, tmp_path, monkeypatch):
    """Also with a transformer as the meta-model, under MAML's second derivatives."""
    size = "0"
    if arch == "test_vit":
        size = "32"
        monkeypatch.setattr(find_method(name), "pictures", lambda *_: [])  # They are those of the other runs.
    run_of(name, pool, tmp_path / "run", "--arch", arch, "--image_size", size)
    meta = MetaModel.from_pretrained(tmp_path / "run")
    assert network_info(meta.network).architecture == {"auto": "conv4_16"}.get(arch, arch)


def test_a_method_that_works_on_weights_refuses_before_a_member_is_loaded(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelPool, "load", lambda self, member: pytest.fail(f"{member} was loaded"))
    monkeypatch.setattr(ModelPool, "usable", lambda self: self)
    with pytest.raises(ValueError, match="needs members of one architecture and head size, found 3: conv4_16 with 2"):
        run_of("dro", pool, tmp_path / "run", "--check_members", "true")
    with pytest.raises(ValueError, match="needs members of one architecture and head size, found 3"):
        run_of("purer", pool, tmp_path / "run", "--average", "true")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


class Stairs(torch.autograd.Function):
    """An activation without a second derivative."""

    @staticmethod
    def forward(context, inputs):
        return inputs.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        return gradient


@pytest.mark.parametrize("name", ["bidf_mkd", "free", "purer", "tgr"])
def test_a_network_that_cannot_learn_is_refused_before_any_work(name, pool, tmp_path, monkeypatch):
    """MAML needs second derivatives, which a layer of somebody else's may not have."""

    def built(*arguments) -> nn.Module:
        network = meta_network(*arguments)
        network.act1.forward = Stairs.apply
        return network

    monkeypatch.setattr("hf_dfml.pipeline.meta_network", built)
    with pytest.raises(ValueError, match="test_resnet with images of 32 pixels cannot be the meta-model of this"):
        run_of(name, pool, tmp_path / "run", "--arch", "test_resnet", "--image_size", "32")
    assert not list((tmp_path / "run").glob("*/*"))
