"""Our pixels are those of transformers' own processors, or the member is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from hf_dfml.pool import MemberError, ModelPool
from hf_dfml.pool.formats.processors import preprocessing

SMALL = {"size": {"height": 24, "width": 32}}
EDGE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
ODD = {
    "BeitImageProcessor": SMALL | {"do_reduce_labels": False},
    "BitImageProcessor": EDGE,
    "CLIPImageProcessor": EDGE,
    "ConvNextImageProcessor": {"size": {"shortest_edge": 32}},
    "DeiTImageProcessor": {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}},
    "DonutImageProcessor": SMALL,
    "EfficientNetImageProcessor": SMALL,
    "LevitImageProcessor": EDGE,
    "MobileNetV1ImageProcessor": EDGE,
    "MobileNetV2ImageProcessor": EDGE,
    "MobileViTImageProcessor": EDGE,
    "PPLCNetImageProcessor": EDGE,
    "PerceiverImageProcessor": SMALL | {"crop_size": {"height": 40, "width": 40}},
    "PoolFormerImageProcessor": EDGE,
    "PvtImageProcessor": SMALL,
    "SegformerImageProcessor": SMALL,
    "SiglipImageProcessor": SMALL,
    "TextNetImageProcessor": {"size": {"shortest_edge": 32}},
    "ViTImageProcessor": SMALL,
}
VARIANTS = [
    *((name, {}) for name in ODD),
    ("ViTImageProcessor", {"do_normalize": False}),
    ("ViTImageProcessor", {"do_rescale": False}),
    ("ViTImageProcessor", {"rescale_factor": 1 / 127.5}),
    ("ViTImageProcessor", {"image_mean": 0.4, "image_std": 0.2}),
    ("EfficientNetImageProcessor", {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
    ("EfficientNetImageProcessor", {"include_top": False}),
    ("EfficientNetImageProcessor", {"do_normalize": False, "image_std": [0.2, 0.3, 0.4]}),
    ("MobileViTImageProcessor", {"do_flip_channel_order": False}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=lambda value: str(value)[:40])
def test_pixels_are_those_of_the_processor(name, changes):
    processor = getattr(transformers, name)(**ODD[name] | changes)
    ours = preprocessing("me", json.loads(processor.to_json_string()))
    _, height, width = ours["input_size"]
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    # What is compared is the normalisation of an image that has the member's size already.
    skip = {key: False for key in vars(processor) if key in ("do_resize", "do_center_crop", "do_thumbnail", "do_pad")}
    theirs = processor(Image.fromarray(pixels), return_tensors="pt", **skip)["pixel_values"][0]
    images = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(ours[key]).view(3, 1, 1) for key in ("mean", "std"))
    expected = (images - mean) / std
    assert ours["channels"] == ("bgr" if theirs.sub(expected).abs().max() > 1e-3 else "rgb")
    torch.testing.assert_close(
        expected if ours["channels"] == "rgb" else expected.flip(0), theirs, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ODD)
def test_the_size_is_that_of_the_processor(name):
    processor = getattr(transformers, name)(**ODD[name])
    square = Image.fromarray(np.zeros((48, 48, 3), dtype=np.uint8))
    theirs = processor(square, return_tensors="pt")["pixel_values"][0]
    assert preprocessing("me", json.loads(processor.to_json_string()))["input_size"] == theirs.shape


GOOD = {"size": 32, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
BAD = {
    "colour clusters": ({"do_color_quantize": True}, "sets 'do_color_quantize', whose effect is not known"),
    "unknown key": ({"do_solarize": True}, "sets 'do_solarize'"),
    "other processor": ({"image_processor_type": "ImageGPTImageProcessor"}, "made by 'ImageGPTImageProcessor'"),
    "code of its own": ({"auto_map": {"AutoImageProcessor": "evil.Evil"}}, "sets 'auto_map'"),
    "no scale": ({"rescale_factor": 0}, "rescale_factor is 0"),
    "factor of text": ({"rescale_factor": "1/255"}, "rescale_factor is '1/255'"),
    "no size": ({"size": {"longest_edge": 32}}, "input_size is"),
    "no mean": ({"image_mean": None}, "mean is None"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_understood_is_a_reason(name):
    changes, expected = BAD[name]
    with pytest.raises(MemberError, match=expected):
        preprocessing("me", GOOD | changes)


def test_what_is_switched_off_or_without_effect_is_passed_over():
    off = {"do_solarize": False, "crop_pct": 0.9, "resample": 3, "transformers_version": "4.0", "do_pad": None}
    assert preprocessing("me", GOOD | off) == preprocessing("me", GOOD)


def test_a_member_for_bgr_images_answers_as_in_transformers(tmp_path):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", id2label={0: "a", 1: "b"}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.ResNetForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    transformers.MobileViTImageProcessor(**EDGE).save_pretrained(tmp_path)
    pool = ModelPool.from_dir(tmp_path)
    assert pool.check(0) is None
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(pool.load(0)(images), network(pixel_values=images.flip(1)).logits)
