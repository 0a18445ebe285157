"""What timm itself saves, of ten families, is a member that answers as timm's own loading of it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf

from hf_dfml.pool import ModelPool
from hf_dfml.pool.formats.reading import read_entry

LABELS = ["cat", "dog", "fox"]
TRANSFORMER = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
SMALL_STAGES = {"depths": (1, 1, 1, 1), "drop_path_rate": 0.1}
FAMILIES = {
    "resnet10t": {"global_pool": "max", "drop_rate": 0.2},
    "mobilenetv3_small_050": {"act_layer": "relu"},
    "efficientnet_b0": {"drop_rate": 0.3},
    "convnext_atto": SMALL_STAGES | {"dims": (8, 16, 24, 32)},
    "vit_tiny_patch16_224": TRANSFORMER | {"in_chans": 1, "global_pool": "avg", "class_token": False, "fc_norm": True},
    "swin_tiny_patch4_window7_224": SMALL_STAGES
    | {"img_size": 64, "window_size": 2, "embed_dim": 12, "num_heads": (1, 1, 2, 2)},
    "regnetx_002": {"drop_rate": 0.2, "zero_init_last": False},
    "densenet121": {"growth_rate": 4, "block_config": (1, 1, 1, 1), "num_classes": 5},
    "repvgg_a0": {"in_chans": 1},
    "mixer_s32_224": {"img_size": 64, "drop_rate": 0.1},
}
NAMES_AS = {
    "resnet10t": {"2": "fox", "0": "cat", "1": "dog"},
    "convnext_atto": "cat dog fox",
    "swin_tiny_patch4_window7_224": "cat, dog, fox",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("pools") / "timm"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, args in FAMILIES.items():
            network = timm.create_model(name, **{"num_classes": len(LABELS)} | args)
            if "img_size" not in args:
                network.pretrained_cfg["input_size"] = (args.get("in_chans", 3), 64, 64)
            names = {"label_names": LABELS, "label_descriptions": dict.fromkeys(LABELS, "an animal")}
            model_config = names if network.num_classes == len(LABELS) else {}
            save_for_hf(network, root / name, model_config, args, safe_serialization=True)
    for name, labels in NAMES_AS.items():
        rewrite(root / name, lambda config, labels=labels: config.update(label_names=labels))
    return root


def rewrite(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_of_timm(folder, name):
    pool = ModelPool.from_dir(folder)
    assert pool.check(name) is None
    teacher = pool.load(name)
    theirs = timm.create_model(f"local-dir:{folder / name}", pretrained=False).eval()
    theirs.load_state_dict(load_file(folder / name / "model.safetensors"))
    assert teacher.entry.label_names == (() if name == "densenet121" else tuple(LABELS))
    assert teacher.entry.input_size == (3, *[FAMILIES[name].get("img_size", 64)] * 2)
    images = torch.rand(2, *teacher.entry.input_size)
    pixels = images if theirs.in_chans == 3 else images.mean(1, keepdim=True)
    mean, std = (torch.tensor(theirs.pretrained_cfg[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    if theirs.in_chans == 1:
        mean, std = mean.mean(), std.mean()
    torch.testing.assert_close(teacher(images), theirs((pixels - mean) / std), rtol=1e-5, atol=1e-5)
    features, logits = teacher.features_and_logits(images)
    assert torch.equal(logits, teacher(images)) and torch.equal(features, teacher.features(images))


def changed(good: Path, tmp_path: Path, change) -> str | None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text((good / "config.json").read_text())
    rewrite(tmp_path / "m", change)
    return read_entry("m", tmp_path / "m").problem


def args(**values):
    return lambda config: config.setdefault("model_args", {}).update(values)


def settings(**values):
    return lambda config: config["pretrained_cfg"].update(values)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (args(num_classes=4), "has 3 classes but model_args says 4"),
        (args(in_chans=4), "images of 4 channels"),
        (args(pretrained=True), "sets 'pretrained'"),
        (args(checkpoint_path="evil.pt"), "sets 'checkpoint_path'"),
        (args(norm_layer="https://evil.example/x"), "looks like a file or an address"),
        (args(stem_type="../evil"), "looks like a file or an address"),
        (args(layers=[1, 2000]), "more than the 1000 layers"),
        (args(num_heads=[1] * 2000), "more than the 1000 layers"),
        (settings(colour_space="BGR"), "timm does not know: 'colour_space'"),
        (lambda config: config.update(problem_type="multi_label_classification"), "gives each image one class"),
        (lambda config: config.update(num_classes=1), "num_classes is 1, expected 2 to"),
        (lambda config: config.update(label_names={"0": "cat", "7": "dog"}), "numbers a class '7', expected 0 to 2"),
        (lambda config: config.update(label_names="cat dog"), "has 3 classes but 2 label names"),
    ],
)
def test_what_contradicts_or_reaches_out_is_a_reason(folder, tmp_path, change, expected):
    assert expected in (changed(folder / "resnet10t", tmp_path, change) or "accepted")


@pytest.mark.parametrize(
    "change",
    [
        args(pretrained=False, checkpoint_path="", scriptable=True, features_only=False, cardinality=None),
        settings(custom_load=True, label_offset=None),
        lambda config: config.update(problem_type="single_label_classification"),
        lambda config: config.update(config.pop("pretrained_cfg")),  # As older versions of timm have it.
    ],
)
def test_what_is_switched_off_is_passed_over(folder, tmp_path, change):
    assert changed(folder / "resnet10t", tmp_path, change) is None


def test_an_object_of_names_may_leave_gaps(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "resnet10t" / "config.json").read_text())
    rewrite(tmp_path, lambda config: config.update(label_names={"2": "fox", "0": "cat"}))
    assert read_entry("m", tmp_path).class_names == ("cat", "m#1", "fox")


def test_a_network_of_grey_images_normalises_with_one_number(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "repvgg_a0" / "config.json").read_text())
    rewrite(tmp_path, settings(mean=[0.1, 0.2, 0.3], std=[0.5]))
    entry = read_entry("m", tmp_path)
    assert entry.mean == pytest.approx((0.2, 0.2, 0.2)) and entry.std == (0.5, 0.5, 0.5)
