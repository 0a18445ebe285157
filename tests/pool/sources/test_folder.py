from __future__ import annotations

import timm
import torch

from hf_dfml.pool import ModelPool
from tests.pool.members import images


def test_plain_timm_loads_a_member_from_a_folder(members):
    network = timm.create_model(f"local-dir:{members / 'm-0'}", pretrained=True).eval()
    teacher = ModelPool.from_dir(members).load(0)
    assert torch.equal(network(images()), teacher.network(images()))
    assert network.pretrained_cfg["label_names"] == ["cat", "dog", "fox"]
