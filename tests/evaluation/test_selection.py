"""What is chosen on the validation classes is what is best there."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from hf_dfml.evaluation import Adaptation, EvaluationProtocol, evaluate, selection
from hf_dfml.evaluation.baselines import evaluate_baselines
from hf_dfml.evaluation.frozen_features import EpisodeImages
from hf_dfml.evaluation.heads import HEADS
from hf_dfml.evaluation.meta_testing import evaluate_each
from hf_dfml.evaluation.reporting import protocols_of_run
from hf_dfml.evaluation.selection import best_head, level_lines, validation
from hf_dfml.learning.answers import AnswerHeads, with_answers
from hf_dfml.pool import ModelPool
from tests.evaluation.conftest import images_seen
from tests.pool.members import write_pool

PROTOCOL = EvaluationProtocol(ways=3, shots=[1, 2], queries=4, episodes=6, inner_steps=3, inner_lr=0.05)
CANDIDATES = {
    *((head, bn, False) for head in ("finetune", "prototype") for bn in ("support", "running")),
    *(("prototype", bn, True) for bn in ("support", "running")),
}


@pytest.mark.parametrize("best", sorted(CANDIDATES))
def test_the_head_with_the_largest_accuracy_is_chosen(dataset, network, monkeypatch, best):
    """Each of the candidates in turn is the best; another one is better on one number of shots alone."""
    seen = set()

    def measured(dataset, protocol):
        how = (protocol.head, protocol.bn, protocol.flips)
        seen.add(how)
        means = [40.0, 60.0] if how == best else [45.0, 50.0 - len(how[0]) / 10]
        return [
            SimpleNamespace(dataset=dataset.name, shots=shots, mean=mean)
            for shots, mean in zip(protocol.shots, means, strict=True)
        ]

    def each_measured(model, dataset, protocols, **options):
        return [measured(dataset, protocol) for protocol in protocols]

    monkeypatch.setattr(selection, "evaluate_each", each_measured)
    chosen = best_head(network, [dataset], PROTOCOL)
    assert seen == CANDIDATES
    assert chosen == Adaptation(head=best[0], bn=best[1], flips=best[2], steps=3, lr=0.05)


def test_the_chosen_head_is_not_worse_than_any_other(dataset, network):
    chosen = best_head(network, [dataset], PROTOCOL)
    scores = {
        (head, bn, flips): sum(validation([dataset], PROTOCOL, how)(network).values())
        for head, bn, flips in CANDIDATES
        for how in [Adaptation(head=head, bn=bn, flips=flips, steps=3, lr=0.05)]
    }
    assert scores[chosen.head, chosen.bn, chosen.flips] == max(scores.values()) > min(scores.values())


@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.parametrize("bn", ["running", "support", "transductive"])
def test_candidates_on_features_share_their_passes_and_nothing_else_changes(dataset, network, bn, answers):
    """A network is shown each image and its mirror image once; the accuracies are those of each candidate alone."""
    kinds = ("features", "answers", "both") if answers else ("features",)
    if answers:
        generator = torch.Generator().manual_seed(1)
        network = with_answers(network, AnswerHeads(16, [("cat", "dog"), ("dog", "emu")], "name", 5.0, generator))
    seen = images_seen(network)
    protocols = [
        PROTOCOL.under(Adaptation(bn=bn, head="prototype", flips=flips, representation=kind))
        for kind in kinds
        for flips in (False, True)
    ]
    alone = [evaluate(network, dataset, each, method="m", progress=False) for each in protocols]
    before = sum(seen)
    seen.clear()
    together = list(evaluate_each(network, dataset, protocols, method="m", progress=False))
    assert [[replace(row, seconds=0) for row in rows] for rows in together] == [
        [replace(row, seconds=0) for row in rows] for rows in alone
    ]
    assert len({tuple(row.mean for row in rows) for rows in together}) > 1
    if bn == "running":
        once = len(EpisodeImages(dataset, PROTOCOL, "cpu").rows)
    else:
        # The support set is fitted to; where its statistics normalise the queries, it is seen once more for them.
        passes = 2 if bn == "support" else 1
        once = sum(PROTOCOL.episodes * PROTOCOL.ways * (passes * shots + PROTOCOL.queries) for shots in PROTOCOL.shots)
    assert sum(seen) == 2 * once and before == 3 * len(kinds) * once


def test_the_best_head_is_chosen_in_one_pass_of_the_images(dataset, network):
    seen = images_seen(network)
    chosen = best_head(network, [dataset], PROTOCOL, heads=("prototype",), norms=("running",))
    assert sum(seen) == 2 * len(EpisodeImages(dataset, PROTOCOL, "cpu").rows)
    scores = {
        flips: sum(validation([dataset], PROTOCOL, Adaptation("running", "prototype", flips=flips))(network).values())
        for flips in (False, True)
    }
    assert chosen == Adaptation("running", "prototype", 3, 0.05, flips=scores[True] > scores[False])


def test_a_head_with_a_fit_of_its_own_is_not_passed_over(dataset, network):
    """It may share no pass: what it makes of the support set is its own affair."""
    known = dict(HEADS)

    class Contrary(HEADS["prototype"]):
        name = "contrary"

        def fit(self, support, labels, *, under_vmap=False):
            return {name: -value for name, value in super().fit(support, labels, under_vmap=under_vmap).items()}

    try:
        pairs = [(head, flips) for head in ("prototype", "contrary") for flips in (False, True)]
        protocols = [PROTOCOL.under(Adaptation("support", head, flips=flips)) for head, flips in pairs]
        together = list(evaluate_each(network, dataset, protocols, method="m", progress=False))
        for each, rows in zip(protocols, together, strict=True):
            alone = evaluate(network, dataset, each, method="m", progress=False)
            assert [row.mean for row in rows] == [row.mean for row in alone]
        assert together[2][0].mean < 100 / 3 < together[0][0].mean
    finally:
        HEADS.clear()
        HEADS.update(known)


def test_validation_is_the_evaluation_under_the_methods_adaptation(dataset, network):
    how = Adaptation(bn="running", head="prototype", flips=True)
    rows = evaluate(network, dataset, replace(PROTOCOL, bn="running", head="prototype", flips=True), method="m")
    assert validation([dataset], PROTOCOL, how)(network) == {f"{row.shots}-shot": row.mean for row in rows}
    two = validation([dataset, replace(dataset, name="dots")], PROTOCOL, how)(network)
    assert list(two) == ["spots 1-shot", "spots 2-shot", "dots 1-shot", "dots 2-shot"]


def test_a_run_is_evaluated_under_each_protocol_once_the_methods_own_first():
    own, best = Adaptation(bn="running", head="prototype"), Adaptation(head="prototype")
    plain = EvaluationProtocol(episodes=50)
    found = [(each.head, each.bn, each.episodes) for each in protocols_of_run(plain, (own, best), icfil_episodes=50)]
    assert found == [
        ("prototype", "running", 50),
        ("finetune", "support", 50),
        ("finetune", "transductive", 50),
        ("prototype", "support", 50),
        ("icfil", "support", 50),
    ]


def test_level_lines_are_baselines_on_the_episodes_of_the_validation(dataset, tmp_path):
    pool = ModelPool.from_dir(write_pool(tmp_path / "pool", 2))
    rows = evaluate_baselines(pool, dataset, PROTOCOL, progress=False)
    mean = {(row.method, row.shots): row.mean for row in rows if row.representation != "answers"}
    names = ["Random init", "Best member + prototype", "All 2 members + prototype"]
    expected = {name: {f"{shots}-shot": mean[name, shots] for shots in PROTOCOL.shots} for name in names}
    assert level_lines(pool, [dataset], PROTOCOL) == expected
    two = level_lines(pool, [dataset, replace(dataset, name="dots")], PROTOCOL)
    assert list(two["Random init"]) == ["spots 1-shot", "spots 2-shot", "dots 1-shot", "dots 2-shot"]


def test_the_papers_inner_loop_stands_beside_the_methods_own_and_icfil_has_the_own():
    plain = EvaluationProtocol(episodes=50)
    found = protocols_of_run(plain, (Adaptation(steps=5, lr=0.05),), icfil_episodes=20)
    assert [(each.head, each.bn, each.inner_steps, each.inner_lr) for each in found] == [
        ("finetune", "support", 5, 0.05),
        ("finetune", "support", 10, 0.01),
        ("finetune", "transductive", 10, 0.01),
        ("prototype", "support", 10, 0.01),
        ("finetune", "support", 5, 0.05),
        ("icfil", "support", 5, 0.05),
    ]
