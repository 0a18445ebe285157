"""Baselines: what they are made of, on a pool of two members whose better one is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.evaluation import EvaluationProtocol, evaluate, evaluate_baselines, evaluate_features
from hf_dfml.evaluation.baselines import (
    BASELINES,
    all_answers,
    all_features,
    average_network,
    largest_kind,
    pool_kind,
    random_network,
)
from hf_dfml.evaluation.frozen_features import EpisodeImages
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool
from hf_dfml.pool.entry import PoolEntry

PROTOCOL = EvaluationProtocol(ways=3, shots=[2], queries=4, episodes=6, inner_steps=2)


def write_member(folder: Path, seed: int, architecture: str = "conv4_16", accuracy: float | None = None) -> None:
    network = create_network(architecture, num_classes=3, image_size=16, generator=torch.Generator().manual_seed(seed))
    folder.mkdir(parents=True)
    config = {
        "architecture": architecture,
        "num_classes": 3,
        "model_args": {"img_size": 16},
        "pretrained_cfg": {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.25] * 3},
        "dfml": {} if accuracy is None else {"val_accuracy": accuracy},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), folder / "model.safetensors")


@pytest.fixture
def pool(tmp_path: Path) -> ModelPool:
    write_member(tmp_path / "pool" / "weak", 0, accuracy=0.5)
    write_member(tmp_path / "pool" / "strong", 1, accuracy=0.9)
    return ModelPool.from_dir(tmp_path / "pool")


def test_rows_are_those_of_the_networks_they_name(pool: ModelPool, dataset: FewShotDataset) -> None:
    *all_rows, answers = evaluate_baselines(pool, dataset, PROTOCOL)
    rows = {row.method: row for row in all_rows}
    assert list(rows) == [
        "Random init",
        "Average",
        "Best member",
        "Best member + prototype",
        "All 2 members + prototype",
    ]
    assert (answers.method, answers.how) == ("All 2 members + prototype", "prototype, answers")
    assert {row.representation for row in all_rows} == {"features"}
    strong = pool.load("strong")
    assert rows["Best member"].mean == evaluate(strong.network, dataset, PROTOCOL, method="m")[0].mean
    frozen = replace(PROTOCOL, head="prototype", bn="running")
    features = evaluate_features(strong.features, dataset, frozen, method="m")[0]
    assert rows["Best member + prototype"].mean == features.mean
    assert (features.head, features.bn) == ("prototype", "running")
    both = evaluate_features([pool.load(id).features for id in ("weak", "strong")], dataset, frozen, method="m")[0]
    assert rows["All 2 members + prototype"].mean == both.mean

    def answers_of(images):
        return torch.cat([pool.load(id)(images).softmax(-1) for id in ("strong", "weak")], -1)

    def mirrored_too(images):
        both = [[pool.load(id)(view).softmax(-1) for view in (images, images.flip(-1))] for id in ("strong", "weak")]
        return torch.cat([sum(F.normalize(view, dim=-1) for view in views) for views in both], -1)

    one_by_one = replace(frozen, shots=[1])
    members = evaluate_baselines(pool, dataset, one_by_one, baselines=(all_answers,), flips=True)
    for row, extract in zip(members, (answers_of, mirrored_too), strict=True):
        assert row.mean == evaluate_features(extract, dataset, one_by_one, method="m")[0].mean
    assert {row.head for row in rows.values()} == {"finetune", "prototype"}
    assert {row.pool for row in rows.values()} == {"one architecture"}


def test_rows_with_flips_are_made_on_request_and_each_baseline_is_recorded(pool, dataset) -> None:
    recorded: list[list] = []
    rows = evaluate_baselines(pool, dataset, PROTOCOL, flips=True, record=recorded.append)
    assert [row for new in recorded for row in new] == rows and len(recorded) == len(BASELINES)
    frozen = replace(PROTOCOL, head="prototype", bn="running", flips=True)
    features = evaluate_features(pool.load("strong").features, dataset, frozen, method="m")[0]
    ours = {(row.method, row.how): row.mean for row in rows}
    assert ours["Best member + prototype", "prototype, flips"] == features.mean
    of_all = {how for method, how in ours if method.startswith("All")}
    assert of_all == {"prototype", "prototype, flips", "prototype, answers", "prototype, answers, flips"}


@pytest.mark.parametrize("flips", [False, True])
def test_an_image_passes_through_a_member_once_and_once_mirrored_for_all_rows(pool, dataset, flips) -> None:
    passed = dict.fromkeys(("strong", "weak"), 0)

    def count(id: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            passed[id] += len(inputs[0])

        return hook

    for id in passed:
        pool.load(id).network.blocks[0].conv.register_forward_pre_hook(count(id))
    rows = evaluate_baselines(pool, dataset, PROTOCOL, baselines=BASELINES[3:], flips=flips)
    once = len(EpisodeImages(dataset, PROTOCOL, "cpu").rows)
    assert len(rows) == 3 * (1 + flips)
    assert passed == dict.fromkeys(passed, (1 + flips) * once)


@pytest.mark.parametrize("flips", [False, True])
def test_rows_that_share_passes_are_those_that_are_made_alone(pool, dataset, flips) -> None:
    protocol = replace(PROTOCOL, shots=[1, 2])
    together = evaluate_baselines(pool, dataset, protocol, baselines=BASELINES[3:], flips=flips)
    alone = [
        row
        for each in BASELINES[3:]
        for row in evaluate_baselines(pool, dataset, protocol, baselines=[each], flips=flips)
    ]
    assert [replace(row, seconds=0.0) for row in together] == [replace(row, seconds=0.0) for row in alone]


def test_progress_counts_the_members(pool: ModelPool, dataset: FewShotDataset, bars: None, capsys) -> None:
    evaluate_baselines(pool, dataset, PROTOCOL, baselines=(all_features,))
    assert "All 2 members + prototype: 2 of 2 members" in capsys.readouterr().err


def test_kinds_of_pools_are_told_apart() -> None:
    conv4 = PoolEntry(id="a", architecture="conv4", dataset="cifar-fs", num_classes=5, input_size=(3, 32, 32))
    others = [replace(conv4, id=name, architecture=name) for name in ("resnet10", "resnet18")]
    kinds = [[conv4], [conv4, others[0]], [conv4, *others], [conv4, replace(conv4, id="b", dataset="cub")]]
    assert pool_kind(ModelPool([conv4]).as_black_box("probs")) == "black boxes"
    assert [pool_kind(ModelPool(entries)) for entries in kinds] == [
        "one architecture",
        "2 architectures",
        "three architectures",
        "several domains",
    ]


def test_no_row_is_shown_twice(pool: ModelPool, dataset: FewShotDataset) -> None:
    rows = evaluate_baselines(pool, dataset, replace(PROTOCOL, head="prototype", bn="running"))
    to_answers = [(row.method, row.how, row.shots) for row in rows]
    assert "Best member" not in {method for method, *_ in to_answers} and len(set(to_answers)) == len(to_answers)
    assert "Best member + prototype" in {method for method, *_ in to_answers}


def test_networks_are_seen_by_features_where_the_meta_model_is_seen_by_answers(pool, dataset) -> None:
    by_features = replace(PROTOCOL, head="prototype", bn="running")
    for representation in ("answers", "both"):
        rows = evaluate_baselines(pool, dataset, replace(by_features, representation=representation))
        plain = evaluate_baselines(pool, dataset, by_features)
        assert [(row.how, row.mean) for row in rows] == [(row.how, row.mean) for row in plain]


def test_average_is_the_mean_of_every_tensor(pool: ModelPool) -> None:
    average = average_network(pool).state_dict()
    states = [pool.load(id).network.state_dict() for id in ("weak", "strong")]
    for name, value in average.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (states[0][name] + states[1][name]) / 2)


def test_random_network_is_the_seeds_own_and_leaves_the_global_seed(pool: ModelPool) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (random_network(pool[0], replace(PROTOCOL, seed=seed, ways=4)) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.num_classes == 4
    assert torch.equal(first.fc.weight, again.fc.weight)
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_mixed_pool_averages_its_largest_kind_and_says_so(tmp_path: Path, dataset: FewShotDataset) -> None:
    for index, architecture in enumerate(("conv4_16", "conv4_64", "conv4_16")):
        write_member(tmp_path / "mixed" / f"m{index}", index, architecture)
    pool = ModelPool.from_dir(tmp_path / "mixed")
    kind = largest_kind(pool)
    assert kind is not None and [entry.id for entry in kind] == ["m0", "m2"]
    names = [row.method for row in evaluate_baselines(pool, dataset, PROTOCOL, baselines=BASELINES[:4])]
    # No member stores an accuracy, so none is called the best.
    first = "First member (no accuracy stored)"
    assert names == ["Random init", "Average, 2 of 3 members", first, f"{first} + prototype"]


def test_empty_pool_is_refused(pool: ModelPool, dataset: FewShotDataset) -> None:
    with pytest.raises(ValueError, match="no member"):
        evaluate_baselines(pool[:0], dataset, PROTOCOL)


def test_member_networks_are_not_changed(pool: ModelPool, dataset: FewShotDataset) -> None:
    network: nn.Module = pool.load("strong").network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    evaluate_baselines(pool, dataset, PROTOCOL, baselines=BASELINES[:4])
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
