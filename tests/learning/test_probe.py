"""The probe network: from the Hub through the pool's own loader, or the pool itself where there is none."""

import json
import logging

import pytest
import timm
import torch
from safetensors.torch import save

from hf_dfml.learning.probe import load_probe
from hf_dfml.pool import ModelPool
from tests.pool.members import config_of, write_member
from tests.recipes.test_inversion_recipes import glyph_pool

NAME = "test_resnet.r160_in1k"


@pytest.fixture
def pool(tmp_path):
    return ModelPool.open(str(glyph_pool(tmp_path / "pool", 2)))


def publish(hub, network, weights="model.safetensors"):
    settings = {"input_size": [3, 160, 160], "mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": settings}
    files = {"config.json": json.dumps(config).encode(), weights: save(network.state_dict())}
    hub.add_repo(f"timm/{NAME}", files)


def test_a_probe_of_timm_is_read_from_the_hub_and_sees_images_of_the_pool_s_size(hub, pool):
    network = timm.create_model("test_resnet").eval()
    publish(hub, network)
    probe = load_probe(NAME, pool)
    assert probe.entry.input_size == pool[0].input_size and probe.entry.mean == (0.5,) * 3
    images = torch.rand(2, 3, *pool[0].input_size[1:])
    with torch.no_grad():
        assert probe(images).allclose(network((images - 0.5) / 0.25), atol=1e-5)


def test_tasks_of_several_sizes_are_seen_at_the_largest(hub, tmp_path):
    publish(hub, timm.create_model("test_resnet"))
    write_member(tmp_path / "a-small")
    write_member(tmp_path / "b-large", pretrained_cfg=config_of()["pretrained_cfg"] | {"input_size": [3, 24, 24]})
    assert load_probe(NAME, ModelPool.open(str(tmp_path)).resolve()).entry.input_size == (3, 24, 24)


def test_where_there_are_no_safe_weights_the_pool_s_average_is_the_probe(hub, pool, caplog):
    publish(hub, timm.create_model("test_resnet"), weights="pytorch_model.bin")
    with caplog.at_level(logging.WARNING):
        assert load_probe(NAME, pool).entry.id == "average"
    assert "\n" not in caplog.messages[-1] and "safetensors" in caplog.messages[-1]


def test_out_of_reach_one_line_says_so(hub, pool, caplog, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        assert load_probe(NAME, pool).entry.id == "average"
    (message,) = caplog.messages
    assert NAME in message and "the pool itself serves as probe" in message


def test_the_average_of_one_member_is_that_member(pool):
    images = torch.rand(2, 3, *pool[0].input_size[1:])
    with torch.no_grad():
        assert load_probe("average", pool[:1])(images).allclose(pool.load(0)(images), atol=1e-5)
        assert not load_probe("average", pool)(images).allclose(pool.load(0)(images), atol=1e-3)


def test_other_names_are_refused(pool):
    assert load_probe(pool[1].id, pool).entry.id == pool[1].id
    with pytest.raises(ValueError, match="neither 'average', nor a member"):
        load_probe("nothing", pool)
    with pytest.raises(ValueError, match="timm has no weights for the probe 'test_maxvit'"):
        load_probe("test_maxvit", pool)
