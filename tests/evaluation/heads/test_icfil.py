"""ICFIL: its loss in closed form, what each of its three parts changes, and the evaluation with and without it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hf_dfml.evaluation import EvaluationProtocol, evaluate
from hf_dfml.evaluation.heads import Adaptation, icfil
from hf_dfml.evaluation.heads.finetune import Finetune
from hf_dfml.evaluation.heads.icfil import ICFIL, ICFILConfig, calibrate, contrastive_loss, invert
from hf_dfml.evaluation.reporting import with_comparison
from hf_dfml.learning.inner_loop import InnerLoop, adapt
from hf_dfml.networks import functional_forward
from hf_dfml.recovery.objective import watch_batch_norm

SHORT = ICFILConfig(recovery_steps=3, images_per_class=2, calibration_steps=2, head_steps=2)


@pytest.fixture
def support() -> torch.Tensor:
    """Six images of three classes, those of a class alike."""
    generator = torch.Generator().manual_seed(3)
    prototypes = torch.rand(3, 3, 4, 4, generator=generator).repeat_interleave(4, -1).repeat_interleave(4, -2)
    noise = 0.1 * torch.randn(6, 3, 16, 16, generator=generator)
    return (prototypes[LABELS] + noise).clamp(0, 1)


LABELS = torch.tensor([2, 0, 1, 1, 0, 2])


def parameters(network):
    return {name: value.detach() for name, value in network.named_parameters()}


def test_the_contrastive_loss_has_its_closed_form():
    pseudo_labels = torch.tensor([1, 0, 2, 0, 1, 2])
    pseudo = 7 * torch.eye(3)[pseudo_labels]  # Length does not matter.
    real, labels = 3 * torch.eye(3), torch.arange(3)
    loss = contrastive_loss(real, labels, pseudo, pseudo_labels, temperature=0.5)
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-1 / 0.5)), rel=1e-5)
    wrong = contrastive_loss(real, labels.roll(1), pseudo, pseudo_labels, temperature=0.5)
    assert wrong.item() == pytest.approx(loss.item() + 1 / 0.5, rel=1e-5)
    # An anchor between two classes, with the mean direction of unequal pseudo features.
    pseudo = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    centre = F.normalize(torch.tensor([0.5, 0.5]), dim=0)
    loss = contrastive_loss(centre[None], torch.tensor([0]), pseudo, torch.tensor([0, 0, 1]), temperature=1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-(0.5**0.5) - 1)), rel=1e-5)


def test_without_steps_it_is_fine_tuning(network, support):
    nothing = replace(SHORT, calibration_steps=0, head_steps=0)
    params = parameters(network)
    ours = calibrate(network, params, support, LABELS, bn="support", config=nothing)
    assert all(torch.equal(ours[name], value) for name, value in params.items())


def test_the_body_follows_the_contrastive_loss_and_the_head_the_support_set(network, support):
    params = parameters(network)
    body_only = calibrate(network, params, support, LABELS, bn="support", config=replace(SHORT, head_steps=0))
    moved = {name for name in params if not torch.equal(body_only[name], params[name])}
    assert moved and not {"fc.weight", "fc.bias"} & moved and "blocks.0.conv.weight" in moved
    both = calibrate(network, params, support, LABELS, bn="support", config=SHORT)
    expected = adapt(network, body_only, support, LABELS, InnerLoop(2, 0.01, "support", "head", False))
    assert all(torch.equal(both[name], expected[name]) for name in params)
    assert not torch.equal(both["fc.weight"], params["fc.weight"])


@pytest.mark.parametrize("bn", ["support", "running"])
def test_calibration_brings_real_features_to_their_pseudo_class(network, support, bn):
    config = replace(SHORT, recovery_steps=40, calibration_steps=10, head_steps=0, calibration_lr=3e-3)
    params = parameters(network)
    pseudo = invert(network, params, support, LABELS, bn=bn, config=config)
    source = "running" if bn == "running" else len(support)

    def loss(current):
        both = torch.cat([support, pseudo.images])
        features = functional_forward(network, current, both, source=source, features=True)
        return contrastive_loss(features[:6], LABELS, features[6:], pseudo.labels, temperature=0.1).item()

    after = calibrate(network, params, support, LABELS, bn=bn, config=config)
    assert loss(after) < 0.5 * loss(params)


def test_the_adapted_model_recognises_what_is_inverted_from_it(network, support):
    params = Finetune(network, 3, Adaptation(steps=20, lr=0.1)).fit(support, LABELS)
    config = replace(SHORT, recovery_steps=60, images_per_class=4, shift=0)
    pseudo = invert(network, params, support, LABELS, bn="support", config=config)
    assert pseudo.images.shape == (12, 3, 16, 16) and 0 <= pseudo.images.min() and pseudo.images.max() <= 1
    both = torch.cat([support, pseudo.images])
    logits = functional_forward(network, params, both, source=6)[6:]
    assert (logits.argmax(1) == pseudo.labels).float().mean() > 0.9


def test_the_inverted_teacher_has_the_support_sets_statistics_under_the_adapted_weights(network, support, monkeypatch):
    """R_BN of the support set itself is nearly nothing (but for unbiased variances), of other images it is not."""
    taken = []
    monkeypatch.setattr(icfil, "recover", lambda teacher, config, size, generator: taken.append((teacher, config)))
    params = {name: value + 0.05 for name, value in parameters(network).items()}
    five_shots = torch.cat([support] * 4)
    invert(network, params, five_shots, LABELS.repeat(4), bn="transductive", config=SHORT)
    invert(network, params, five_shots, LABELS.repeat(4), bn="running", config=SHORT)
    (calibrated, config), (stored, _) = taken
    assert config.images_per_class == 8, "as many pseudo images as shots, where these are more"
    distances = []
    for teacher, images in ((calibrated, five_shots), (calibrated, 1 - five_shots), (stored, five_shots)):
        with watch_batch_norm(teacher) as distance:
            logits = teacher(images)
        distances.append(distance.total(logits).item())
    assert distances[0] < 0.05 * min(distances[1:])
    assert torch.equal(stored.network.fc.weight, params["fc.weight"])
    assert torch.equal(stored.network.blocks[0].bn.running_mean, network.blocks[0].bn.running_mean)


@pytest.mark.parametrize("ways", [3, 4])
def test_it_leaves_the_network_as_it_was_and_repeats_itself(network, support, ways):
    before = copy.deepcopy(network.state_dict())
    labels = LABELS if ways == 3 else torch.tensor([2, 0, 1, 3, 0, 2])
    query = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    logits = []
    for _ in range(2):
        head = ICFIL(network, ways, Adaptation(head="icfil"), SHORT)
        with torch.no_grad():  # As an evaluation does.
            logits.append(head.logits(head.fit(support, labels), support, query))
        torch.rand(3)  # Nothing depends on the global seed.
    assert torch.equal(*logits) and logits[0].shape == (4, ways) and not logits[0].requires_grad
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("bn", ["support", "running", "transductive"])
def test_the_evaluation_is_made_with_and_without_it(dataset, network, bn):
    protocol = EvaluationProtocol(ways=3, shots=[2], queries=4, episodes=3, bn=bn, inner_steps=2)
    protocol = replace(protocol, head="icfil", options=SHORT)
    rows = [
        row
        for each in with_comparison(protocol)
        for row in evaluate(network, dataset, each, method="PURER", progress=False)
    ]
    assert [(row.head, row.bn, row.episodes) for row in rows] == [("finetune", bn, 3), ("icfil", bn, 3)]
    nothing = replace(protocol, options=replace(SHORT, calibration_steps=0, head_steps=0))
    assert evaluate(network, dataset, nothing, method="PURER", progress=False)[0].mean == rows[0].mean


def test_options_of_another_head_are_refused(network):
    with pytest.raises(ValueError, match="expected none, found a ICFILConfig"):
        Finetune(network, 3, Adaptation(), SHORT)
