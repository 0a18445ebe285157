"""Predicted answers as what heads on features work with."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hf_dfml.evaluation import EvaluationProtocol, evaluate
from hf_dfml.evaluation.heads import HEADS, Adaptation, class_means
from hf_dfml.learning.answers import AnswerHeads, predicted_answers, representation_of, with_answers
from hf_dfml.networks import create_network
from hf_dfml.networks.functional import functional_forward

NAMES = [("cat", "dog"), ("dog", "emu", "yak")]


@pytest.fixture
def network():
    plain = create_network("conv4_16", num_classes=3, image_size=16, generator=torch.Generator().manual_seed(0)).eval()
    return with_answers(plain, AnswerHeads(16, NAMES, "name", 5.0, torch.Generator().manual_seed(1)))


def test_prototypes_are_means_of_answers(network):
    generator = torch.Generator().manual_seed(2)
    support, query = (torch.rand(count, 3, 16, 16, generator=generator) for count in (4, 5))
    labels = torch.tensor([0, 0, 1, 1])
    how = Adaptation(bn="running", head="prototype", representation="answers")
    head = HEADS["prototype"](network, 2, how)
    with torch.no_grad():
        logits = head.logits(head.fit(support, labels), support, query)
        seen = [
            F.normalize(
                predicted_answers(network, functional_forward(network, {}, images, source="running", features=True)),
                dim=-1,
            )
            for images in (support, query)
        ]
    means = F.normalize(class_means(seen[0], labels, 2), dim=-1)
    torch.testing.assert_close(logits, 10 * seen[1] @ means.T)


def test_both_are_two_halves_of_the_same_length(network):
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features = functional_forward(network, {}, images, source="running", features=True)
        both = representation_of(network, features, "both")
    assert representation_of(network, features, "features") is features
    torch.testing.assert_close(both[:, :16], F.normalize(features, dim=-1))
    torch.testing.assert_close(both[:, 16:], F.normalize(predicted_answers(network, features), dim=-1))
    assert Adaptation(head="prototype", bn="running", representation="both")


def test_rows_say_what_they_are_of(network, dataset):
    protocol = EvaluationProtocol(ways=3, shots=[1], queries=4, episodes=8, head="prototype", representation="answers")
    frozen, batch, features = (
        evaluate(network, dataset, replace(protocol, **changes), method="m")[0]
        for changes in ({"bn": "running"}, {"bn": "support"}, {"bn": "running", "representation": "features"})
    )
    assert frozen.how == batch.how == "prototype, answers" and frozen.paper is None
    assert features.how == "prototype" and features.mean != frozen.mean


def test_what_cannot_be_is_refused(network, dataset):
    with pytest.raises(ValueError, match="representation='answers' with head='finetune': expected a head on features"):
        Adaptation(representation="answers")
    with pytest.raises(ValueError, match="expected one of features, answers, both"):
        Adaptation(head="prototype", representation="logits")
    plain = create_network("conv4_16", num_classes=3, image_size=16)
    protocol = EvaluationProtocol(
        ways=3, shots=[1], queries=4, episodes=4, bn="running", head="prototype", representation="answers"
    )
    with pytest.raises(ValueError, match="predicts no answers of a pool's members"):
        evaluate(plain, dataset, protocol, method="m")


def test_the_representation_stays_with_its_head():
    how = Adaptation(bn="running", head="prototype", representation="answers", flips=True)
    assert how.but("finetune") == Adaptation(bn="running")
    assert how.but("linear", flips=True).representation == "features"
    assert how.but(flips=False).representation == "answers" and how.but(representation="features").flips
