"""The check runs what a run runs: a member that passes breaks no method, and what a method refuses it refuses first.

Members are drawn: of networks of three libraries, of any number of classes, channels, sizes (also such as are not
square) and labels.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from hf_dfml.errors import explain
from hf_dfml.meta_network import meta_network
from hf_dfml.methods.catalogue import METHODS, find_method
from hf_dfml.pool import ModelPool
from hf_dfml.run_config import RunConfig
from tests.methods.pools import make_context
from tests.methods.test_free import write_member
from tests.properties.test_cost_estimated import TINY

OPTIONS: dict[str, dict[str, Any]] = TINY | {"dro": {"epochs": 1, "embedding_dim": 4}}
WORDS = ["ant", "Bee", "bee", "cow", "d_o_g", "eel", "fox 1", "gnu"]
OURS = ["conv4_16", "conv4", "conv4_global", "resnet10", "resnet12"]
TIMM: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "resnet18": {"in_chans": 1},
    "mobilenetv3_small_050": {},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
}


def labels_of(count: int, draw: random.Random) -> list[str]:
    """Names that some members share, in any order; two of them differ in case alone."""
    return draw.sample(WORDS, count)


def write_any(folder: Path, draw: random.Random) -> None:
    """A member of any kind."""
    kind, classes = draw.choice(("ours", "ours", "timm", "transformers")), draw.randint(2, 6)
    names = labels_of(classes, draw) if draw.random() < 0.7 else None
    if kind == "ours":
        arch, size = draw.choice(OURS), draw.choice((16, 20, 32))
        write_member(folder, arch, classes, size, draw.randrange(100), names)
        if not arch.startswith("conv4") and draw.random() < 0.5:
            config = json.loads((folder / "config.json").read_text())
            config["pretrained_cfg"]["input_size"] = [3, 20, 32]
            (folder / "config.json").write_text(json.dumps(config))
    elif kind == "timm":
        name = draw.choice(sorted(TIMM))
        network = timm.create_model(name, num_classes=classes, **TIMM[name])
        if "img_size" not in TIMM[name]:
            network.pretrained_cfg["input_size"] = (TIMM[name].get("in_chans", 3), 32, draw.choice((32, 40)))
        save_for_hf(network, folder, {"label_names": names} if names else {}, TIMM[name], safe_serialization=True)
    else:
        said = {"id2label": dict(enumerate(names or [f"LABEL_{index}" for index in range(classes)]))}
        if draw.random() < 0.5:
            options = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
            network = transformers.ResNetForImageClassification(transformers.ResNetConfig(**options, **said))
        else:
            options = {"image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1}
            options |= {"num_attention_heads": 2, "intermediate_size": 32}
            network = transformers.ViTForImageClassification(transformers.ViTConfig(**options, **said))
        network.save_pretrained(folder)
        size = {"height": 32, "width": 32}
        processor = {"size": size, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def spoil(folder: Path, draw: random.Random) -> None:
    """Something that a check may pass and a run trip over."""
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    what = draw.choice(("head", "zeros", "constant", "huge", "half", "layers", "size"))
    if what in ("zeros", "huge"):
        weights = {name: tensor * (0 if what == "zeros" else 1e4) for name, tensor in weights.items()}
    elif what == "half":
        weights = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    elif what in ("head", "constant"):
        last = list(weights)[-1]
        weights[last] = torch.zeros_like(weights[last]) if what == "constant" else weights[last][:-1].clone()
    elif what == "layers":
        weights.pop(draw.choice(sorted(weights)))
    elif what == "size" and "pretrained_cfg" in config:
        config["pretrained_cfg"]["input_size"] = [3, draw.choice((1, 8, 17)), draw.choice((1, 8, 17))]
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", params=range(2))
def pool(request, tmp_path_factory) -> ModelPool:
    """The drawn members that pass the check; half of the pools have damaged ones among them."""
    draw, folder = random.Random(request.param), tmp_path_factory.mktemp("drawn")
    with torch.random.fork_rng():
        torch.manual_seed(request.param)
        for index in range(4):
            write_any(folder / f"m-{index}", draw)
            if request.param % 2 and index % 2:
                spoil(folder / f"m-{index}", draw)
    members = ModelPool.from_dir(folder)
    passed = [entry.id for entry in members if members.check(entry.id) is None]
    assert passed and (request.param % 2 or len(passed) == 4), "sound members pass"
    return members.filter(lambda entry: entry.id in passed)


@pytest.mark.parametrize("method", METHODS)
def test_what_passes_the_check_is_learned_from_or_refused_before_the_first_step(pool, method):
    method_class, config = find_method(method), RunConfig(ways=3, arch="conv4_16")
    begun = False
    try:
        options = method_class.config_for(method_class.Config(**OPTIONS[method]), pool)
        made = method_class(options, meta_network(pool, config))
        context = make_context()
        made.setup(pool, context)
        begun = True
        metrics = made.step(context)
        assert all(value == value for value in metrics.values()), metrics
        snapshot = made.snapshot(context)
    except Exception as error:
        assert explain(error) and not begun, repr(error)
        return
    size = snapshot.pretrained_cfg["input_size"]
    assert torch.isfinite(snapshot(torch.rand(2, *size))).all()


def test_drawn_members_are_of_many_kinds(tmp_path):
    """Else the draw above would show little."""
    for seed in range(12):
        write_any(tmp_path / f"m-{seed}", random.Random(seed))
    entries = list(ModelPool.from_dir(tmp_path))
    assert {entry.library for entry in entries} == {"timm", "transformers"}
    assert len({entry.architecture for entry in entries}) > 5
    assert len({entry.num_classes for entry in entries}) > 3
