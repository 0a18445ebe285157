"""The head `prototype` and easyfsl's SimpleShot with normalised features: the same scores on the same episodes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hf_dfml.data import load_dataset
from hf_dfml.evaluation import Adaptation, EvaluationProtocol, evaluate
from hf_dfml.evaluation.heads import HEADS
from hf_dfml.evaluation.heads.prototype import COSINE_SCALE
from hf_dfml.evaluation.protocol import draw_episodes, episode_labels
from hf_dfml.meta_model import MetaModel
from hf_dfml.networks.functional import normalise
from hf_dfml.networks.info import network_info
from hf_dfml.utils.images import to_unit

methods = pytest.importorskip("easyfsl.methods", reason="easyfsl is an extra: pip install 'hf_dfml[peers]'")


class Features(nn.Module):
    """Penultimate features of images in [0, 1], as easyfsl takes a backbone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return network_info(self.network).features(normalise(self.network, images))


def test_scores_and_accuracy_are_those_of_easyfsl():
    network = MetaModel.from_pretrained("zoo:glyphs").network
    data = load_dataset("glyphs", "test")
    protocol = EvaluationProtocol(shots=[5], episodes=12, head="prototype", bn="running")
    support, query = draw_episodes(data, protocol, 5)
    labels, truth = episode_labels(protocol, 5, torch.device("cpu"))
    theirs = methods.SimpleShot(backbone=Features(network), feature_normalization=2).eval()
    head = HEADS["prototype"](network, 5, Adaptation(bn="running", head="prototype"))
    right = []
    for rows, queries in zip(support, query, strict=True):
        examples, asked = to_unit(data.images[rows]), to_unit(data.images[queries])
        with torch.no_grad():
            theirs.process_support_set(examples, labels)
            scores = theirs(asked)
            ours = head.logits(head.fit(examples, labels), examples, asked) / COSINE_SCALE
        torch.testing.assert_close(ours, scores, atol=1e-5, rtol=1e-4)
        right.append((scores.argmax(-1) == truth).float().mean())
    (row,) = evaluate(network, data, protocol, method="ours")
    assert row.mean == pytest.approx(100 * float(torch.stack(right).mean()), abs=1e-3)
