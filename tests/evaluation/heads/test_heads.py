"""Heads against closed forms, plain PyTorch and scikit-learn."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_dfml.evaluation.heads import HEADS, Adaptation, Head, class_means, with_flips
from hf_dfml.evaluation.heads.finetune import prototype_weights
from hf_dfml.evaluation.heads.linear import logistic_regression
from hf_dfml.networks import normalise


def head_of(network: nn.Module, ways: int, how: Adaptation) -> Head:
    return HEADS[how.head](network, ways, how)


FAST = {"finetune": False, "prototype": False, "prototype, flips": True, "linear": False}
"""Heads without steps of inversion, with and without flips."""


def fast(bn: str, name: str, **steps) -> Adaptation:
    return Adaptation(bn=bn, head=name.split(",")[0], flips=FAST[name], **steps)


@pytest.fixture
def episode() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Six support images of three classes in no order, and ten queries."""
    generator = torch.Generator().manual_seed(3)
    support, query = torch.rand(16, 3, 16, 16, generator=generator).split([6, 10])
    return support, torch.tensor([2, 0, 1, 1, 0, 2]), query


def test_finetune_is_plain_sgd_on_all_parameters(network: nn.Module, episode) -> None:
    support, labels, query = episode
    head = head_of(network, 3, Adaptation(bn="transductive", steps=4, lr=0.05))
    ours = head.logits(head.fit(support, labels), support, query)

    twin = copy.deepcopy(network).train()  # Train mode: batch statistics, as in a transductive evaluation.
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(twin(normalise(twin, support)), labels).backward()
        optimizer.step()
    torch.testing.assert_close(ours, twin(normalise(twin, query)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("bn", ["running", "support"])
def test_a_network_made_of_an_adapted_head_answers_as_the_head_does(network: nn.Module, episode, bn, flips) -> None:
    support, labels, query = episode
    head = head_of(network, 3, Adaptation(bn=bn, head="prototype", flips=flips))
    adapted = head.fit(support, labels)
    made = head.as_network(adapted, support)
    torch.testing.assert_close(made(normalise(network, query)), head.logits(adapted, support, query))


def test_finetune_of_other_ways_starts_at_nearest_class_mean(network: nn.Module, episode) -> None:
    support, _, query = episode
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    head = head_of(network, 4, Adaptation(bn="running", steps=0))
    ours = head.logits(head.fit(support, labels), support, query)
    means = class_means(head.features(support), labels, 4)
    assert ours.shape == (10, 4)
    assert torch.equal(ours.argmax(-1), torch.cdist(head.features(query), means).argmin(-1))
    assert network.num_classes == 3  # The caller's network keeps its head.


def test_rebuilt_head_learns(network: nn.Module, episode) -> None:
    support, _, _ = episode
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    losses = []
    for steps in (0, 10):
        head = head_of(network, 4, Adaptation(bn="support", steps=steps))
        logits = head.logits(head.fit(support, labels), support, support)
        losses.append(F.cross_entropy(logits, labels).item())
    assert losses[1] < 0.9 * losses[0]


def test_prototype_weights_are_distances_in_units_of_the_classes_distance() -> None:
    features, labels = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 0, 1])
    weight, bias = prototype_weights(features, labels, 2)  # Means (1, 0) and (0, 4): squared distance 17.
    query = torch.tensor([[3.0, -1.0]])
    logits = torch.nn.functional.linear(query, weight, bias)[0]
    to_first, to_second = 4 + 1, 9 + 25
    torch.testing.assert_close(logits[0] - logits[1], torch.tensor((to_second - to_first) / 17))
    torch.testing.assert_close(weight.sum(0), torch.zeros(2))  # Relative to the mean of all classes.


@pytest.mark.parametrize("name", FAST)
def test_support_norm_makes_a_query_independent_of_the_others(network: nn.Module, episode, name: str) -> None:
    support, labels, query = episode
    logits = {}
    for bn in ("support", "transductive"):
        head = head_of(network, 3, fast(bn, name))
        adapted = head.fit(support, labels)
        logits[bn] = [head.logits(adapted, support, query[:count])[0] for count in (2, 10)]
    torch.testing.assert_close(*logits["support"], rtol=1e-4, atol=1e-4)
    assert (logits["transductive"][0] - logits["transductive"][1]).abs().max() > 1e-3


def test_running_norm_uses_the_stored_statistics(network: nn.Module, episode) -> None:
    support, labels, query = episode
    head = head_of(network, 3, Adaptation(bn="running", head="prototype"))
    logits = head.logits(head.fit(support, labels), support, query)
    features = [F.normalize(network.blocks(normalise(network, part)).flatten(1)) for part in (support, query)]
    means = torch.stack([features[0][labels == way].mean(0) for way in range(3)])
    torch.testing.assert_close(logits, 10 * features[1] @ F.normalize(means).T)


@pytest.mark.parametrize("bn", ["support", "running"])
def test_flips_do_not_see_which_way_images_face(network: nn.Module, episode, bn: str) -> None:
    support, labels, query = episode
    ways = [(support, query), (support.flip(-1), query.flip(-1))]
    if bn == "running":  # Else the support set is also what normalises, as it stands beside the queries.
        ways += [(support.flip(-1), query), (support, query.flip(-1))]
    logits = {}
    for flips in (False, True):
        head = head_of(network, 3, Adaptation(bn=bn, head="prototype", flips=flips))
        logits[flips] = [head.logits(head.fit(part, labels), part, asked) for part, asked in ways]
    first, *others = logits[True]
    for other in others:
        torch.testing.assert_close(first, other, rtol=1e-4, atol=1e-4)
    assert (logits[False][0] - logits[False][1]).abs().max() > 1e-2


def test_flipped_features_of_the_evaluation_are_those_of_the_head(network: nn.Module, episode) -> None:
    """The evaluation sees each image once under stored statistics, the head each episode."""
    support, labels, query = episode
    head = head_of(network, 3, Adaptation(bn="running", head="prototype", flips=True))
    logits = head.logits(head.fit(support, labels), support, query)
    extract = with_flips(lambda images: network.blocks(normalise(network, images)).flatten(1))
    features = [F.normalize(extract(part)) for part in (support, query)]
    means = torch.stack([features[0][labels == way].mean(0) for way in range(3)])
    torch.testing.assert_close(logits, 10 * features[1] @ F.normalize(means).T)


@pytest.mark.parametrize("ways", [2, 4])
def test_logistic_regression_in_the_support_span_is_the_full_one(ways: int) -> None:
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(5)
    features = F.normalize(torch.randn(12, 40, generator=generator), dim=1)
    labels = torch.arange(12) % ways
    query = F.normalize(torch.randn(30, 40, generator=generator), dim=1)
    weight, bias = logistic_regression(features, labels)
    expected = LogisticRegression(max_iter=1000).fit(features, labels).predict_proba(query)
    assert weight.shape == (ways, 40)
    torch.testing.assert_close(
        F.linear(query, weight, bias).softmax(-1), torch.from_numpy(expected).float(), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("name", [name for name in FAST if HEADS[name.split(",")[0]].vectorises])
@pytest.mark.parametrize("bn", ["support", "running", "transductive"])
@pytest.mark.parametrize("ways", [3, 4])
def test_vectorised_over_episodes_is_one_after_the_other(network: nn.Module, name: str, bn: str, ways: int) -> None:
    """Accelerators take the first path, CPUs the second."""
    generator = torch.Generator().manual_seed(7)
    support, query = torch.rand(4, 4 + 5, 3, 16, 16, generator=generator).split([4, 5], dim=1)
    labels = torch.arange(4) % ways
    head = head_of(network, ways, fast(bn, name, steps=3))

    def one(support: torch.Tensor, query: torch.Tensor, under_vmap: bool = False) -> torch.Tensor:
        return head.logits(head.fit(support, labels, under_vmap=under_vmap), support, query)

    together = torch.func.vmap(partial(one, under_vmap=True))(support, query)
    torch.testing.assert_close(together, torch.stack(list(map(one, support, query))), rtol=1e-3, atol=1e-4)


def test_network_is_left_as_it_was(network: nn.Module, episode) -> None:
    support, labels, query = episode
    network.train()
    before = copy.deepcopy(network.state_dict())
    for name in FAST:
        head = head_of(network, 3, fast("support", name))
        head.logits(head.fit(support, labels), support, query)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bn": "batch"}, "expected one of support"),
        ({"head": "svm"}, "expected one of finetune"),
        ({"lr": 0.0}, "0.0"),
        ({"flips": True}, "choose one of linear, prototype"),
    ],
)
def test_unknown_modes_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adaptation(**wrong)


def test_flips_stay_with_the_head_that_they_were_chosen_for() -> None:
    ours = Adaptation(bn="running", head="prototype", flips=True, steps=3)
    assert ours.but() == ours.but(head="prototype") == ours
    assert ours.but(head="finetune", bn="support") == Adaptation(bn="support", head="finetune", steps=3)
    assert ours.but(head="linear", flips=True).flips and not ours.but(flips=False).flips
