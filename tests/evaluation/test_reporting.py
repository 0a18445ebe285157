"""What a run says of itself at its end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hf_dfml.evaluation import Adaptation, EvaluationProtocol, Result, evaluate
from hf_dfml.evaluation.frozen_features import EpisodeImages
from hf_dfml.evaluation.reporting import beside_one_member, meta_test, protocols_of_run
from hf_dfml.pool import ModelPool
from tests.evaluation.conftest import images_seen
from tests.pool.members import write_pool

OURS = Result("FREE", "cub", 5, 5, "running", "prototype", 100, "accuracy", 60.0, 1.0, 0, "test", 1.0, "x")
MEMBER = replace(OURS, method="Best member + prototype")
ALL = replace(OURS, method="All 9 members + prototype", mean=99.0)


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        (50.0, "10.0 points above the best member alone (60.0 and 50.0 % with 5 images a class)."),
        (61.5, "Not distinguishable from the best member alone (60.0 and 61.5 % with 5 images a class)."),
        (62.5, "Warning: 2.5 points below the best member alone (60.0 and 62.5 % with 5 images a class). Nothing was"),
    ],
)
def test_a_run_is_compared_with_its_best_member(accuracy, said):
    fewer = replace(OURS, shots=1, mean=0.0)
    sentence = beside_one_member([fewer, OURS], [ALL, replace(MEMBER, mean=accuracy), replace(MEMBER, shots=1)])
    assert sentence is not None and sentence.startswith(said)


def test_without_the_member_nothing_is_said():
    assert beside_one_member([OURS], [ALL, replace(MEMBER, dataset="cifar-fs")]) is None
    assert beside_one_member([], [MEMBER]) is None


def test_protocols_share_their_passes_and_have_the_rows_of_each_alone_in_turn(dataset, network, tmp_path):
    pool = ModelPool.from_dir(write_pool(tmp_path / "pool", 1))
    plain = EvaluationProtocol(ways=3, shots=[1, 2], queries=4, episodes=6, inner_steps=3, inner_lr=0.05)
    how = [Adaptation(bn, "prototype", 3, 0.05, flips) for bn in ("running", "support") for flips in (False, True)]
    protocols = [*protocols_of_run(plain, how), replace(plain, episodes=4, head="prototype")]
    seen, costs, alone = images_seen(network), [], []
    for each in protocols:
        alone.append(evaluate(network, dataset, each, method="m", command="c", progress=False))
        costs.append(sum(seen))
        seen.clear()
    recorded, shown = [], []

    def record(rows):
        recorded.append([replace(row, seconds=0) for row in rows])
        shown.append(sum(seen))

    meta_test(network, [dataset], protocols, pool, method="m", command="c", record=record)
    assert recorded == [[replace(row, seconds=0, pool="one architecture") for row in rows] for rows in alone]
    once = len(EpisodeImages(dataset, plain, "cpu").rows)
    assert shown[0] == 2 * once, "rows come as soon as they are known, before all passes are done"
    # The images once more with flips, and likewise under the statistics of a support set.
    names = [(each.bn, each.head, each.flips, each.episodes) for each in protocols]
    twice = [("running", "prototype", False, 6), ("support", "prototype", False, 6)]
    assert sum(seen) == sum(costs) - sum(costs[names.index(name)] for name in twice) and len(set(names)) == len(names)
