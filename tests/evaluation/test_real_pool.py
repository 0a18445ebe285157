"""One number on real images: a member's frozen features know something about classes it was never trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from hf_dfml.data import load_dataset
from hf_dfml.evaluation import EvaluationProtocol, evaluate_features
from hf_dfml.pool import ModelPool


def test_prototypes_on_a_member_of_the_ready_pool(shared_dir: Path) -> None:
    dataset = load_dataset("cifar-fs", "validation", data_dir=shared_dir / "data")
    teacher = ModelPool.from_dir(shared_dir / "pools" / "cifar-fs-conv4").load(0)
    protocol = EvaluationProtocol(head="prototype", bn="running", episodes=200)
    one, five = evaluate_features(teacher.features, dataset, protocol, method="member 000")
    # 36.0 and 48.0 over 600 episodes, +-0.8; the evaluation is the same on every machine.
    assert one.mean == pytest.approx(36.0, abs=2)
    assert five.mean == pytest.approx(48.0, abs=2)
