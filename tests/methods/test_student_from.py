"""A student that starts from a public network: what learns, what stays, and the network that comes out."""

from __future__ import annotations

import shutil
import sys
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from hf_dfml import MetaModel
from hf_dfml.data.unlabelled import unlabelled_images
from hf_dfml.learning.lora import adaptable_layers
from hf_dfml.learning.student import features_of
from hf_dfml.meta_network import meta_network
from hf_dfml.methods.pool_distillation import PoolDistillation, PoolDistillationConfig
from hf_dfml.networks import create_network
from hf_dfml.networks.info import network_info
from hf_dfml.pool.building.writing import member_config, write_member
from hf_dfml.run_config import RunConfig
from tests.methods.pools import make_context, make_mixed_pool, make_pool, run_steps

TINY = {"training_images": "procedural", "num_images": 64, "batch_size": 16, "steps": 4}
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture(scope="module")
def public(tmp_path_factory) -> str:
    """A random ResNet of 32 pixels in a folder."""
    folder = tmp_path_factory.mktemp("public") / "resnet"
    network = create_network("resnet10t", num_classes=7, image_size=32, generator=torch.Generator().manual_seed(1))
    names = [f"n{index}" for index in range(7)]
    write_member(folder, network, member_config(network, "resnet10t", names, image_size=32, mean=MEAN, std=STD))
    return str(folder)


def method_of(pool, public: str, image_size: int = 0, **options) -> PoolDistillation:
    network = meta_network(pool, RunConfig(student_from=public, image_size=image_size))
    config = PoolDistillation.config_for(PoolDistillationConfig(**{**TINY, **options}), pool)
    return PoolDistillation(config, network)


@pytest.mark.parametrize("trained", ["all", "last_stage", "lora", "head", "beside"])
def test_what_is_frozen_stays_the_public_networks(tmp_path, public, trained):
    pool, context = make_mixed_pool(tmp_path), make_context()
    method = method_of(pool, public, train_student=trained)
    start = {name: value.clone() for name, value in method.model.state_dict().items()}
    method.setup(pool, context)
    assert method.images.shape[-1] == 20, "images are as large as the members', and the student enlarges them"
    losses = [row["loss"] for row in run_steps(method, context, 0, 4)]
    assert losses[-1] < losses[0]
    changed = {
        name.split(".")[0]
        for name, value in method.model.state_dict().items()
        if name not in ("fc.weight", "fc.bias") and not value.equal(start[name])
    }
    everything = {name.split(".")[0] for name in start} - {"fc"}
    assert changed == ({"all": everything, "last_stage": {"layer4"}}.get(trained) or set())


@pytest.mark.parametrize("trained", ["last_stage", "lora", "beside"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, public, trained):
    pool = make_pool(tmp_path, 2)
    whole, context = method_of(pool, public, train_student=trained), make_context()
    whole.setup(pool, context)
    run_steps(whole, context, 0, 2)
    state, later = whole.state_dict(), make_context()
    later.generator.set_state(context.generator.get_state())
    again = method_of(pool, public, train_student=trained)
    again.load_state_dict(deepcopy(state), pool, later)
    assert run_steps(again, later, 2, 4) == run_steps(whole, context, 2, 4)
    ours, theirs = whole.snapshot(context).state_dict(), again.snapshot(later).state_dict()
    assert all(value.equal(theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("arch", ["test_vit", "test_efficientnet"])
def test_adapters_in_the_weights_answer_as_beside_them(tmp_path, arch):
    pool, context = make_mixed_pool(tmp_path), make_context()
    network = create_network(arch, num_classes=3, image_size=32, generator=torch.Generator().manual_seed(1))
    config = PoolDistillationConfig(**TINY, train_student="lora", lora_rank=2, answer_heads="name")
    method = PoolDistillation(PoolDistillation.config_for(config, pool), network)
    method.setup(pool, context)
    images = torch.rand(5, 3, 32, 32)
    before = features_of(network, images)
    torch.testing.assert_close(method.student.features(images), before)
    run_steps(method, context, 0, 2)
    ours, snapshot = method.student.features(images), method.snapshot(context)
    assert (ours - before).abs().max() > 1e-2 * before.abs().max()
    torch.testing.assert_close(features_of(snapshot, images), ours, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(features_of(network, images), before)
    # Of each adapted layer no more has changed than the rank allows; batch norm and all else is as it was.
    start, end, info = network.state_dict(), snapshot.state_dict(), network_info(network)
    moved = {name for name in start if not info.in_classifier(name) and not end[name].equal(start[name])}
    assert moved == {f"{name}.weight" for name in adaptable_layers(network)}
    for name in moved:
        change = (end[name] - start[name]).flatten(1)
        assert torch.linalg.matrix_rank(change, rtol=1e-3) <= 2, name
    MetaModel.of(snapshot, method="Pool distillation", pool=pool).save_pretrained(tmp_path / "meta")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'meta'}", pretrained=True).eval()
    torch.testing.assert_close(features_of(loaded, images), features_of(snapshot, images))


def test_layers_that_an_adapter_would_change_are_left_out():
    names = set(adaptable_layers(timm.create_model("tf_efficientnet_lite0")))
    assert {"blocks.1.0.conv_pw", "conv_head"} <= names, "1 x 1 convolutions"
    assert not {"conv_stem", "blocks.1.0.conv_dw", "classifier"} & names, "padded by itself, grouped, not trained"
    assert adaptable_layers(create_network("conv4_16")) == [f"blocks.{index}.conv" for index in range(4)]


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    config = PoolDistillationConfig(**TINY, train_student="lora")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'hf_dfml\[lora\]'"):
        PoolDistillation.check_names(config)


def test_answers_beside_the_backbone_are_one_network_that_plain_timm_loads(tmp_path, public):
    pool, context = make_mixed_pool(tmp_path), make_context()
    method = method_of(pool, public, image_size=48, train_student="beside", answer_weight=0.5)
    method.setup(pool, context)
    run_steps(method, context, 0, 4)
    network = method.snapshot(context)
    images = torch.rand(5, 3, 48, 48)
    pixels = (images - 0.5) / 0.25
    info = network_info(network)
    features = info.features(pixels)
    maps, frozen = network_info(method.model).maps_and_features(pixels)
    torch.testing.assert_close(frozen, network_info(method.model).features(pixels))
    assert info.num_features == frozen.shape[1] + 8 and features.shape == (5, info.num_features)
    torch.testing.assert_close(features[:, :-8], F.normalize(frozen, dim=-1))
    # Beside them what the heads answer, with half of the weight.
    torch.testing.assert_close(features[:, -8:].norm(dim=-1), torch.full((5,), 0.5))
    logits = method.heads(method.student.branch(maps))
    answers = torch.cat([part.softmax(-1) for part in logits.split(method.heads.sizes, -1)], -1)
    torch.testing.assert_close(features[:, -8:], 0.5 * F.normalize(answers, dim=-1), atol=1e-5, rtol=1e-4)
    meta = MetaModel.of(network, method="Pool distillation", pool=pool)
    meta.save_pretrained(tmp_path / "meta")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'meta'}", pretrained=True).eval()
    torch.testing.assert_close(network_info(loaded).features(pixels), features)
    classifier = MetaModel.from_pretrained(tmp_path / "meta").adapt(images[:4], ["a", "a", "b", "b"], head="prototype")
    assert set(classifier.predict(images)) <= {"a", "b"}


def test_features_that_hold_the_answers_are_what_is_used(tmp_path, public):
    pool = make_pool(tmp_path, 12)
    assert method_of(pool, public, train_student="beside").eval_representation == "features"
    assert method_of(pool, public).eval_representation == "both"
    with pytest.raises(ValueError, match="leave --representation answers out"):
        method_of(pool, public, train_student="beside", representation="answers")


def test_a_folder_of_any_images_is_the_training_set(tmp_path, public, caplog):
    folder = tmp_path / "photos"
    for index in range(6):
        (folder / f"sub-{index % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (40 * index, 0, 0)).save(folder / f"sub-{index % 2}" / f"{index}.png")
    (folder / "notes.txt").write_text("no image")
    every = unlabelled_images(folder, 100, 8, torch.Generator().manual_seed(0))
    assert sorted(every[:, 0, 0, 0].tolist()) == [0, 40, 80, 120, 160, 200] and every.shape == (6, 3, 8, 8)
    assert len(unlabelled_images(folder, 4, 8, torch.Generator())) == 4
    (folder / "cut.png").write_bytes((folder / "sub-0" / "0.png").read_bytes()[:40])
    assert len(unlabelled_images(folder, 6, 8, torch.Generator())) == 6, "another one stands in for it"
    assert "Left out: " in caplog.text and "cut.png is not readable as an image" in caplog.text
    pool, context = make_pool(tmp_path, 2), make_context()
    method = method_of(pool, public, images=str(folder), training_images="auto")
    method.setup(pool, context)
    assert method.images.shape == (64, 3, 16, 16) and not method.images[:, 1:].any(), "red ones and their mixtures"
    assert method.unlabelled and method.pictures(tmp_path / "pictures") == [], "a card's pictures are published"
    with pytest.raises(FileNotFoundError, match="holds no image"):
        unlabelled_images(tmp_path / "pool", 4, 8, torch.Generator())
    shutil.rmtree(folder / "sub-0")
    shutil.rmtree(folder / "sub-1")
    with pytest.raises(ValueError, match=r"None of the 1 image files in .* can be read: .*cut\.png is not readable"):
        unlabelled_images(folder, 4, 8, torch.Generator())


def test_a_network_without_a_middle_has_no_branch(tmp_path):
    pool = make_pool(tmp_path, 2)
    method = PoolDistillation(PoolDistillationConfig(**TINY, train_student="beside"), create_network("conv4_16"))
    with pytest.raises(ValueError, match="conv4_16 does not give the maps of its middle"):
        method.setup(pool, make_context())


def test_a_student_whose_last_layer_cannot_be_published_is_refused_before_any_work():
    network = create_network("levit_128s", num_classes=3)
    with pytest.raises(ValueError, match="levit_128s cannot be the student: The last layer of .* expected one Linear"):
        PoolDistillation(PoolDistillationConfig(**TINY), network).check_model()
