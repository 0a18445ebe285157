"""All members as one network: features and answers side by side, of one pass each."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from hf_dfml.classifier.all_members import AllMembers
from hf_dfml.pool import ModelPool
from tests.pool.members import write_pool


def test_features_and_answers_of_a_member_are_of_one_pass(tmp_path: Path) -> None:
    pool, images = ModelPool.from_dir(write_pool(tmp_path / "pool", 2)), torch.rand(4, 3, 16, 16)
    features, answers = (AllMembers(pool, seen).forward_features(images) for seen in ("features", "answers"))
    passed: list[str] = []
    for entry in pool:
        first = next(module for module in pool.load(entry).modules() if isinstance(module, torch.nn.Conv2d))
        first.register_forward_hook(lambda *_, id=entry.id: passed.append(id))
    both = AllMembers(pool, "both").forward_features(images)
    assert passed == [entry.id for entry in pool]
    assert torch.equal(both, torch.cat([F.normalize(features, dim=-1), F.normalize(answers, dim=-1)], dim=-1))
