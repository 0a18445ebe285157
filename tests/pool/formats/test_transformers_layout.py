from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from hf_dfml.data import FewShotDataset
from hf_dfml.evaluation import EvaluationProtocol, evaluate, evaluate_features
from hf_dfml.networks import network_info
from hf_dfml.pool import ModelPool, Teacher
from hf_dfml.pool.formats import transformers_layout
from hf_dfml.pool.formats.loading import build_network

LABELS = {0: "cat", 1: "dog", 2: "fox"}
PREPROCESSOR = {
    "size": {"height": 32, "width": 32},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
}


def save(folder: Path, config: transformers.PretrainedConfig, network: type, preprocessor: dict) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network(config).eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pools") / "transformers"
    small = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=LABELS
    )
    save(root / "resnet", small, transformers.ResNetForImageClassification, PREPROCESSOR)
    patches = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    patches.num_labels = 4  # transformers calls them LABEL_0 to LABEL_3.
    save(root / "vit", patches, transformers.ViTForImageClassification, PREPROCESSOR)
    return root


@pytest.fixture(scope="module")
def pool(folder) -> ModelPool:
    return ModelPool.from_dir(folder)


def pixels_of(images: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor(PREPROCESSOR["image_mean"]), torch.tensor(PREPROCESSOR["image_std"])
    return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def test_entries_say_what_config_and_preprocessor_say(pool):
    resnet, vit = pool
    assert [entry.problem for entry in pool] == [None, None]
    assert (resnet.library, resnet.architecture) == ("transformers", "ResNetForImageClassification")
    assert (resnet.num_classes, resnet.class_names, resnet.input_size) == (3, ("cat", "dog", "fox"), (3, 32, 32))
    assert resnet.mean == pytest.approx((0.5, 0.4, 0.3)) and resnet.std == pytest.approx((0.2, 0.3, 0.4))
    assert network_info(build_network(vit)).input_size == (3, 32, 32)
    # Placeholders are nobody's names: LABEL_0 of two members is not one class.
    assert vit.class_names == ("vit#0", "vit#1", "vit#2", "vit#3")


@pytest.mark.parametrize("index", [0, 1])
def test_logits_are_those_of_transformers(pool, folder, index):
    teacher = pool.load(index)
    network = transformers.AutoModelForImageClassification.from_pretrained(folder / pool[index].id).eval()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    torch.testing.assert_close(teacher(images), network(pixel_values=pixels_of(images)).logits)
    teacher(images).sum().backward()
    assert images.grad is not None and not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(("index", "width"), [(0, 16), (1, 16)])
def test_features_are_what_the_classifier_is_given(pool, index, width):
    teacher: Teacher = pool.load(index)
    images = torch.rand(3, 3, 32, 32)
    features = teacher.features(images)
    assert features.shape == (3, width)
    classifier = teacher.network.classifier
    linear = classifier[-1] if isinstance(classifier, torch.nn.Sequential) else classifier
    torch.testing.assert_close(linear(features), teacher(images))


def test_members_are_evaluated_like_those_of_timm(pool):
    """ViT has no batch norm, so that all sources of statistics are one; ResNet's features are the teacher's."""
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, names = torch.arange(8).repeat_interleave(5), tuple("abcdefgh")
    data = FewShotDataset("noise", "validation", images, labels, names, (0.5,) * 3, (0.25,) * 3)

    def mean(index, **how):
        protocol = EvaluationProtocol(ways=5, queries=3, shots=(2,), episodes=6, split="validation", **how)
        return evaluate(pool.load(index).network, data, protocol, method="member", progress=False)[0].mean

    protocol = EvaluationProtocol(ways=5, queries=3, shots=(2,), episodes=6, split="validation", head="prototype")
    for index in (0, 1):
        (row,) = evaluate_features(pool.load(index).features, data, protocol, method="member", progress=False)
        assert mean(index, head="prototype", bn="running") == row.mean
    assert mean(1, head="prototype", bn="support") == mean(1, head="prototype", bn="transductive") == row.mean
    before = {name: value.clone() for name, value in pool.load(1).network.state_dict().items()}
    assert 0 < mean(1, head="finetune", bn="running") < 100  # Five ways; the member has four outputs.
    assert all(torch.equal(before[name], value) for name, value in pool.load(1).network.state_dict().items())


def test_pixels_that_are_not_rescaled_to_one_are_converted(folder, tmp_path):
    entry = _changed(folder / "resnet", tmp_path / "m", preprocessor={"rescale_factor": 1 / 127.5})[0]
    # (2 x - mean) / std = (x - mean / 2) / (std / 2)
    assert entry.mean == pytest.approx((0.25, 0.2, 0.15)) and entry.std == pytest.approx((0.1, 0.15, 0.2))
    entry = _changed(folder / "resnet", tmp_path / "n", preprocessor={"do_normalize": False})[0]
    assert (entry.mean, entry.std) == ((0, 0, 0), (1, 1, 1))


BAD = {
    "auto_map": ({"auto_map": {"AutoModel": "evil.Evil"}}, "names Python code of its own"),
    "kernel": ({"_attn_implementation": "evil/kernel"}, "attention kernel"),
    "second model": ({"backbone": "evil/model", "use_timm_backbone": True}, "around a second model"),
    "text model": ({"architectures": ["BertForSequenceClassification"]}, "expected one ...ForImageClassification"),
    "other model": ({"architectures": ["ViTForImageClassification"]}, "but describes a ResNetForImageClassification"),
    "timm wrapper": ({"model_type": "timm_wrapper"}, "wraps a timm model"),
    "depth": ({"depths": [1, 10**9]}, "more than the 1000 layers"),
    "giant": ({"hidden_sizes": [60_000, 60_000]}, "it describes"),
    "gap in labels": ({"id2label": {"0": "cat", "7": "dog"}}, "does not number its 2 classes"),
    "other weights": ({"transformers_weights": "adapter_model.bin"}, "names a weights file of its own"),
    "other config": ({"configuration_files": ["config.4.0.0.json"]}, "names further configs"),
    "fused layers": ({"fusion_config": {"patch_embeddings": True}}, "asks for fused layers"),
    "wrong class count": ({"id2label": {"0": "cat", "1": "dog"}}, "tensors do not fit|cannot load"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_config_is_refused_in_one_line(folder, tmp_path, name):
    config, expected = BAD[name]
    pool = _changed(folder / "resnet", tmp_path / "m", config=config)
    problem = pool.check(0)
    assert problem is not None and "\n" not in problem
    with pytest.raises(ValueError, match=expected):
        pool.load(0)


def test_a_member_without_preprocessor_is_refused(folder, tmp_path):
    pool = _changed(folder / "resnet", tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    assert ModelPool.from_dir(tmp_path)[0].problem == "has no preprocessor_config.json"
    assert pool[0].problem is None


@pytest.mark.parametrize(
    "changes",
    [
        {"transformers_weights": "adapter_model.bin"},
        {"transformers_weights": "other.safetensors"},
        {"configuration_files": ["config.4.0.0.json"]},
    ],
    ids=str,
)
def test_no_file_but_the_checked_ones_is_opened(folder, tmp_path, changes, monkeypatch):
    """Nor would they be if the keys that name them were not refused."""
    for key in changes:
        monkeypatch.delitem(transformers_layout._FORBIDDEN_KEYS, key, raising=False)
    pool = _changed(folder / "resnet", tmp_path / "m", config=changes)
    expected = ModelPool.from_dir(folder).load("resnet").network.state_dict()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    torch.save(zeros, tmp_path / "m" / "adapter_model.bin")
    save_file(zeros, tmp_path / "m" / "other.safetensors", metadata={"format": "pt"})
    other = json.loads((folder / "resnet" / "config.json").read_text()) | {"hidden_act": "tanh"}
    (tmp_path / "m" / "config.4.0.0.json").write_text(json.dumps(other))
    found = pool.load(0).network
    assert found.config.hidden_act == "relu"
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_half_precision_is_computed_in_float32(folder, tmp_path):
    pool = _changed(folder / "vit", tmp_path / "m", config={"dtype": "float16"})
    assert {tensor.dtype for tensor in pool.load(0).parameters()} == {torch.float32}
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(pool.load(0)(images), ModelPool.from_dir(folder).load("vit")(images))


def test_eight_bit_weights_without_a_scale_are_refused(folder, tmp_path):
    pool = _changed(folder / "vit", tmp_path / "m")
    state = {
        name: tensor.contiguous()
        for name, tensor in ModelPool.from_dir(folder).load("vit").network.state_dict().items()
    }
    state["classifier.weight"] = (100 * state["classifier.weight"]).to(torch.int8)
    save_file(state, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    assert "classifier.weight in model.safetensors is int8" in (pool.check(0) or "")


def test_an_adapter_is_refused(folder, tmp_path):
    _changed(folder / "resnet", tmp_path / "m")
    (tmp_path / "m" / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model"}')
    assert "is an adapter" in (ModelPool.from_dir(tmp_path)[0].problem or "")


def _changed(good: Path, folder: Path, config: dict | None = None, preprocessor: dict | None = None) -> ModelPool:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes())
    for name, changes in (("config.json", config), ("preprocessor_config.json", preprocessor)):
        content = json.loads((good / name).read_text()) | (changes or {})
        (folder / name).write_text(json.dumps(content))
    return ModelPool.from_dir(folder)
