"""What a member's check runs: one forward pass, as every method does."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from hf_dfml.pool import MemberError, ModelPool
from hf_dfml.pool.formats.loading import check_forward
from tests.pool.members import write_member


def test_a_network_of_another_size_than_it_says_is_refused_by_the_check(tmp_path):
    args = {"img_size": 64, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": args}
    config["pretrained_cfg"] = {"input_size": [3, 32, 32], "fixed_input_size": False}
    folder = write_member(tmp_path / "m", **config)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3, **args)
    save_file(network.state_dict(), folder / "model.safetensors")
    pool = ModelPool.from_dir(tmp_path / "m")
    assert "cannot classify an image of its own size 3x32x32" in (pool.check(0) or "")
    with pytest.raises(ValueError, match="none can be used"):
        pool.usable()


@pytest.fixture
def teacher(tmp_path):
    return ModelPool.from_dir(write_member(tmp_path / "m")).load(0)


def test_a_good_member_passes_and_no_random_number_is_drawn(teacher):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    check_forward(teacher)
    assert torch.equal(torch.rand(3), expected)


def unpooled(network):
    """Let the features be maps."""
    head = network.forward_head
    network.forward_head = lambda x, pre_logits=False: x if pre_logits else head(x)


class Maps(nn.Module):
    """Pooling that does not pool."""

    def forward(self, x):
        return x.repeat(1, 1, 2, 2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda network: setattr(network, "fc", nn.Linear(16, 7)),
            r"has 3 classes but its output for an image is \[7\]",
        ),
        (lambda network: setattr(network, "global_pool", Maps()), "cannot classify an image of its own size 3x16x16"),
        (lambda network: network.fc.bias.fill_(float("inf")), "NaN or infinite"),
        (lambda network: setattr(network, "forward", lambda x: (x, x)), "its output for an image is tuple"),
        (unpooled, r"features of an image are \[16, 1, 1\]"),
        (lambda network: setattr(network, "get_classifier", lambda: nn.Identity()), "no layer that is its classifier"),
    ],
)
def test_what_a_method_could_not_use_is_refused(teacher, spoil, message):
    with torch.no_grad():
        spoil(teacher.network)
    with pytest.raises(MemberError, match=message):
        check_forward(teacher)
