"""Unknown means no: a member answers as in the library that has made it, or is left out with a reason that names why.

Every key of a config and of a processor is set to values that it may have, alone and together. What is accepted is
compared with timm and transformers themselves, so that no list of ours says what is right.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from timm.models import save_for_hf

from hf_dfml.pool import MemberError, ModelPool
from hf_dfml.pool.formats.processors import preprocessing
from tests.pool.formats.test_processors import EDGE, ODD

GEOMETRY = ("do_resize", "do_center_crop", "do_thumbnail", "do_pad")
"""Steps that bring an image to the member's size; here each image is resized to it as a whole."""
KEYS: dict[str, list[Any]] = {
    "size": [32, {"height": 24, "width": 32}, {"shortest_edge": 32}, {"shortest_edge": 40}, {"longest_edge": 32}],
    "crop_size": [24, {"height": 32, "width": 32}, None],
    "do_center_crop": [True, False, None],
    "do_pad": [True, False],
    "pad_size": [{"height": 64, "width": 64}, {"height": 32, "width": 32}],
    "size_divisor": [1, 16, 48],
    "resize_short": [32, 40],
    "do_rescale": [True, False, None],
    "rescale_factor": [1 / 255, 1 / 127.5, 1.0],
    "rescale_offset": [True, False],
    "do_normalize": [True, False, None],
    "image_mean": [0.4, [0.1, 0.2, 0.3], None],
    "image_std": [0.2, [0.3, 0.2, 0.1]],
    "include_top": [True, False],
    "do_flip_channel_order": [True, False, None],
    "do_reduce_labels": [True, False],
    "do_convert_rgb": [True, False],
    "resample": [0, 2, 3],
    "crop_pct": [0.5, 0.875],
    "default_to_square": [True, False],
    "device": ["cpu"],
    "do_solarize": [True, False],
    "gamma": [2.2, None],
    "auto_map": [{"AutoImageProcessor": "evil.Evil"}],
}
WORDS = {"size": "input_size", "image_mean": "mean", "image_std": "std"}
"""What a reason calls a key that is not there, or has a value that is not understood."""


def of_square(processor: Any, side: int = 48) -> tuple[int, ...]:
    """The shape of what a processor makes of a square image."""
    square = Image.fromarray(np.zeros((side, side, 3), dtype=np.uint8))
    return tuple(processor(square, return_tensors="pt")["pixel_values"][0].shape)


def their_pixels(processor: Any, pixels: np.ndarray) -> torch.Tensor:
    """What a processor makes of an image that has the member's size already; bytes, if it does not rescale them."""
    skip = {key: False for key in GEOMETRY if getattr(processor, key, None)}
    return processor(Image.fromarray(pixels), return_tensors="pt", **skip)["pixel_values"].float()


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@example("MobileViTImageProcessor", {"do_rescale": 1}, [])  # Bytes.
@given(
    name=st.sampled_from(sorted(ODD)),
    changes=st.dictionaries(st.sampled_from(sorted(KEYS)), st.integers(0, 9), max_size=4),
    missing=st.lists(st.sampled_from(sorted(KEYS)), max_size=2, unique=True),
)
def test_a_processor_makes_the_same_pixels_or_is_refused_by_the_name_of_a_key(name, changes, missing):
    config = json.loads(getattr(transformers, name)(**ODD[name]).to_json_string())
    config = {key: value for key, value in config.items() if key not in missing}
    config |= {key: KEYS[key][index % len(KEYS[key])] for key, index in changes.items()}
    try:
        ours = preprocessing("me", config)
    except MemberError as error:
        assert any(word in error.reason for key in (*changes, *missing) for word in (key, WORDS.get(key, key)))
        return
    theirs = getattr(transformers, name).from_dict(config)
    try:
        their_size = of_square(theirs)
    except (AttributeError, TypeError, ValueError):
        return reject()  # Transformers has no use for this configuration either: no pixels to compare with.
    assert tuple(ours["input_size"]) == their_size
    pixels = noise(*ours["input_size"][1:])
    images = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(ours[key]).view(3, 1, 1) for key in ("mean", "std"))
    found = (images - mean) / std
    found = found.flip(0) if ours["channels"] == "bgr" else found
    torch.testing.assert_close(found, their_pixels(theirs, pixels)[0], rtol=1e-4, atol=1e-4)


LABELS = {0: "cat", 1: "dog", 2: "fox"}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
PATCHES = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PATCHES |= {"intermediate_size": 32}
PYRAMID = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
FOUR = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
SQUARE = {"size": {"height": 32, "width": 32}}
ARCHITECTURES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    # The name before `Config` and `ForImageClassification`; a tiny config; a processor, and what is odd about it.
    "ResNet": (STAGES | {"embedding_size": 8, "layer_type": "basic"}, "MobileViT", EDGE),
    "RegNet": (FOUR | {"embedding_size": 8, "groups_width": 8}, "ConvNext", {"size": {"shortest_edge": 32}}),
    "ViT": (PATCHES, "ViT", SQUARE | {"do_normalize": False}),
    "DeiT": (PATCHES, "DeiT", {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}}),
    "Beit": (PATCHES, "Beit", SQUARE | {"do_reduce_labels": True}),
    "Data2VecVision": (PATCHES, "Beit", SQUARE | {"image_std": 0.2}),
    "Swin": (WINDOWS, "ViT", SQUARE | {"rescale_factor": 1 / 127.5}),
    "Swinv2": (WINDOWS, "ViT", SQUARE | {"do_rescale": False}),
    "ConvNext": (FOUR, "ConvNext", {"size": {"shortest_edge": 32}, "crop_pct": 0.5}),
    "ConvNextV2": (FOUR, "ConvNext", {"size": {"shortest_edge": 32}, "image_mean": 0.1}),
    "MobileNetV1": ({"depth_multiplier": 0.25, "image_size": 32}, "MobileNetV1", EDGE),
    "MobileNetV2": ({"depth_multiplier": 0.25, "image_size": 32}, "MobileNetV2", EDGE | {"do_rescale": False}),
    "MobileViT": (
        {"image_size": 32, "hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [8] * 7, "num_attention_heads": 2},
        "MobileViT",
        EDGE | {"do_flip_channel_order": False},
    ),
    "MobileViTV2": (
        {"image_size": 64, "width_multiplier": 0.25},
        "MobileViT",
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
    ),
    "PoolFormer": (FOUR, "PoolFormer", EDGE | {"crop_pct": 0.9}),
    "Segformer": (PYRAMID | {"decoder_hidden_size": 8}, "Segformer", SQUARE | {"image_mean": 0.3}),
    "EfficientNet": (
        {"image_size": 32, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
        "EfficientNet",
        SQUARE | {"rescale_offset": True, "rescale_factor": 1 / 127.5},
    ),
    "FocalNet": (
        {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "focal_levels": [1, 1], "focal_windows": [3, 3]},
        "Bit",
        EDGE | {"do_normalize": False},
    ),
    "Levit": (
        {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1]}
        | {"key_dim": [8, 8, 8]},
        "Levit",
        {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
    ),
    "Pvt": (PYRAMID | {"image_size": 32}, "Pvt", SQUARE | {"image_std": [0.3, 0.2, 0.1]}),
    "PvtV2": (PYRAMID | {"image_size": 32}, "ConvNext", {"size": {"shortest_edge": 32}, "do_normalize": False}),
    "Bit": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_groups": 2}, "Bit", EDGE),
    "Dinov2": (PATCHES | {"mlp_ratio": 2}, "ViT", SQUARE | {"do_pad": True, "pad_size": {"height": 64, "width": 64}}),
    "ViTMSN": (PATCHES, "ViT", SQUARE | {"do_flip_channel_order": True}),
    "SwiftFormer": (
        {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "image_size": 32},
        "ViT",
        SQUARE | {"do_convert_rgb": False},
    ),
    "Cvt": (
        {"embed_dim": [8, 8, 16], "num_heads": [1, 1, 2], "depth": [1, 2, 3]},
        "ConvNext",
        {"size": {"shortest_edge": 32}, "resample": 0},
    ),
}
NAMED = {"Dinov2": "do_pad"}
"""Those whose odd processor is a reason, which names it."""


def processor(kind: str, options: dict[str, Any]) -> Any:
    return getattr(transformers, f"{kind}ImageProcessor")(**options)


def calibrate(network: torch.nn.Module, *shape: int) -> None:
    """Batch norm with statistics of its own: fresh deep networks without answer all images with zeros."""
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    for layer in norms:
        layer.train().momentum = 1.0
    with torch.no_grad():
        network(pixel_values=torch.randn(16, *shape))
    network.eval()


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> Callable[[str], Path]:
    """Writes a member as transformers does; its folder."""

    def write(name: str) -> Path:
        options, kind, odd = ARCHITECTURES[name]
        folder = tmp_path_factory.mktemp(name) / name
        config = getattr(transformers, f"{name}Config")(**options, id2label=LABELS, num_labels=3)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = getattr(transformers, f"{name}ForImageClassification")(config).eval()
            calibrate(network, *of_square(processor(kind, odd)))
        network.save_pretrained(folder)
        processor(kind, odd).save_pretrained(folder)
        return folder

    return write


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_of_transformers_with_odd_processors_answer_as_there(members, name):
    folder = members(name)
    pool = ModelPool.from_dir(folder)
    problem = pool.check(0)
    if name in NAMED:
        assert NAMED[name] in (problem or "accepted")
        return
    assert problem is None
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    own = transformers.AutoImageProcessor.from_pretrained(folder)
    assert tuple(pool[0].input_size or ()) == of_square(own)
    pixels = noise(*pool[0].input_size[1:])
    expected = theirs(pixel_values=their_pixels(own, pixels)).logits
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    answers, other = pool.load(0)(image), pool.load(0)((0.9 * image).flip(1))
    # Fresh networks answer much alike to all images: the fault is compared with what a few levels of grey change.
    change = (answers - other).abs().max()
    assert 0.02 * change > (answers - expected).abs().max() and change > 0


def test_twenty_architectures_answer_as_in_transformers():
    assert len(ARCHITECTURES.keys() - NAMED.keys()) >= 20


TIMM_KEYS: dict[str, dict[str, list[Any]]] = {
    "": {
        "num_classes": [3, 4, None],
        "label_names": [["a", "b", "c"], "a b c", ["a", "b"], {"0": "a", "1": "b", "2": "c"}],
        "label_descriptions": [{"a": "x"}],
        "global_pool": ["avg", "max"],
        "num_features": [512, 7],
        "problem_type": ["multi_label_classification", "single_label_classification"],
    },
    "pretrained_cfg": {
        "input_size": [[3, 48, 48], [1, 32, 32], [3, 24, 32]],
        "test_input_size": [[3, 64, 64]],
        "min_input_size": [[3, 16, 16]],
        "fixed_input_size": [True, False],
        "interpolation": ["bicubic", "nearest"],
        "crop_pct": [0.5],
        "crop_mode": ["center", "border"],
        "mean": [[0.1, 0.2, 0.3], 0.5],
        "std": [[0.3, 0.2, 0.1], [0.0, 1.0, 1.0]],
        "num_classes": [3, 4],
        "label_offset": [1, None],
        "label_names": [["a", "b", "c"]],
        "pool_size": [[1, 1]],
        "first_conv": ["nothing"],
        "classifier": ["nothing", "fc"],
        "custom_load": [True],
        "url": ["https://evil.example/x"],
        "hf_hub_id": ["evil/x"],
        "source": ["hf-hub"],
        "license": ["mit"],
        "gamma": [2.2],
    },
    "model_args": {
        "global_pool": ["max", "avg"],
        "drop_rate": [0.3],
        "act_layer": ["silu"],
        "num_classes": [3, 4],
        "in_chans": [3, 1],
        "output_stride": [16, 32],
        "zero_init_last": [True],
        "gamma": [2.2],
        "pretrained": [True],
        "features_only": [True],
        "checkpoint_path": ["evil.pt"],
    },
}


@pytest.fixture(scope="module")
def residual(tmp_path_factory) -> Path:
    """A member that timm has saved."""
    folder = tmp_path_factory.mktemp("timm") / "m"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("resnet10t", num_classes=3).eval()
        network.pretrained_cfg["input_size"] = (3, 32, 32)
        save_for_hf(network, folder, {"label_names": ["cat", "dog", "fox"]}, {}, safe_serialization=True)
    return folder


@pytest.mark.parametrize("seed", range(30))
def test_a_timm_config_gives_the_same_answers_or_is_refused_with_a_reason(residual, tmp_path, seed):
    draw = random.Random(seed)
    config = json.loads((residual / "config.json").read_text())
    places = [(block, key) for block, keys in TIMM_KEYS.items() for key in keys]
    for block, key in draw.sample(places, draw.choice((1, 1, 2))):
        inside = config.setdefault(block, {}) if block else config
        inside[key] = draw.choice(TIMM_KEYS[block][key])
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "model.safetensors").hardlink_to(residual / "model.safetensors")
    pool = ModelPool.from_dir(tmp_path / "m")
    problem = pool.check(0)
    if problem is not None:
        assert len(problem.split()) > 3 and "\n" not in problem
        return
    theirs = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=False).eval()
    theirs.load_state_dict(load_file(residual / "model.safetensors"))
    data, entry = resolve_model_data_config(theirs), pool[0]
    assert entry.input_size == tuple(data["input_size"]) and entry.num_classes == theirs.num_classes
    images = torch.rand(2, *entry.input_size, generator=torch.Generator().manual_seed(seed))
    mean, std = (torch.tensor(data[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(pool.load(0)(images), theirs((images - mean) / std), rtol=1e-5, atol=1e-5)
