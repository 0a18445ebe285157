"""What is chosen on the validation classes is what is best there."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from hf_dfml.evaluation import Adaptation, EvaluationProtocol, evaluate, selection
from hf_dfml.evaluation.baselines import evaluate_baselines
from hf_dfml.evaluation.reporting import protocols_of_run
from hf_dfml.evaluation.selection import best_head, level_lines, validation
from hf_dfml.pool import ModelPool
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

    def measured(model, dataset, protocol, **options):
        how = (protocol.head, protocol.bn, protocol.flips)
        seen.add(how)
        means = [40.0, 60.0] if how == best else [45.0, 50.0 - len(how[0]) / 10]
        return [
            SimpleNamespace(dataset=dataset.name, shots=shots, mean=mean)
            for shots, mean in zip(protocol.shots, means, strict=True)
        ]

    monkeypatch.setattr(selection, "evaluate", measured)
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
