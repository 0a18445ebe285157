"""Meta-testing: the same episodes for all, known accuracies for known networks, numbers that no short cut changes."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.evaluation import EvaluationProtocol, evaluate, evaluate_features
from hf_dfml.evaluation.protocol import draw_episodes
from hf_dfml.evaluation.reporting import evaluate_stored
from hf_dfml.evaluation.selection import validation
from hf_dfml.utils.images import resize, to_uint8, to_unit

PROTOCOL = EvaluationProtocol(ways=3, shots=[1, 2], queries=4, episodes=12)
FROZEN = replace(PROTOCOL, head="prototype", bn="running")


def numbers(results) -> list[tuple[float, float]]:
    return [(result.mean, result.ci95) for result in results]


def test_an_oracle_has_100_percent_and_a_blind_network_chance(dataset: FewShotDataset) -> None:
    # Pixels that name the class, so that an oracle can read it off the first one.
    marked = replace(dataset, images=dataset.labels.to(torch.uint8)[:, None, None, None].expand_as(dataset.images))

    def oracle(images: Tensor) -> Tensor:
        return F.one_hot((images[:, 0, 0, 0] * 255).round().long(), 8).float()

    assert numbers(evaluate_features(oracle, marked, FROZEN, method="oracle")) == [(100.0, 0.0)] * 2
    blind = evaluate_features(lambda images: torch.ones(len(images), 4), marked, FROZEN, method="blind")
    assert [result.mean for result in blind] == [pytest.approx(100 / 3, abs=1e-3)] * 2


def test_features_computed_once_are_those_of_each_episode(dataset: FewShotDataset, network: nn.Module) -> None:
    """The fast path against a loop that knows nothing of chunks, indices or streams."""
    fast = evaluate(network, dataset, FROZEN, method="fast")
    for shots, result in zip(PROTOCOL.shots, fast, strict=True):
        accuracies = []
        for support, query in zip(*draw_episodes(dataset, FROZEN, shots), strict=True):
            with torch.no_grad():
                pixels = (dataset.images[torch.cat([support, query])].float() / 255 - 0.5) / 0.5
                features = F.normalize(network.blocks(pixels).flatten(1))
            means = F.normalize(features[: len(support)].reshape(3, shots, -1).mean(1))
            predicted = (features[len(support) :] @ means.T).argmax(1)
            accuracies.append((predicted == torch.arange(3).repeat_interleave(4)).float().mean())
        values = 100 * torch.stack(accuracies)
        assert result.mean == pytest.approx(values.mean().item(), abs=1e-3)
        assert result.ci95 == pytest.approx(1.96 * values.std().item() / 12**0.5, abs=1e-3)


@pytest.mark.parametrize("head", ["prototype", "linear"])
def test_several_extractors_are_their_features_side_by_side(dataset: FewShotDataset, head: str) -> None:
    generator = torch.Generator().manual_seed(0)
    # Of different length and size: each is normalised before it is put beside the other.
    maps = [scale * torch.randn(3 * 256, width, generator=generator) for scale, width in ((1.0, 9), (50.0, 17))]
    extractors = [lambda images, m=m: images.flatten(1) @ m for m in maps]

    def together(images: Tensor) -> Tensor:
        return torch.cat([F.normalize(extract(images), dim=1) for extract in extractors], dim=1)

    protocol = replace(FROZEN, head=head)
    apart = evaluate_features(iter(extractors), dataset, protocol, method="two", num_extractors=2)
    assert [row.mean for row in apart] == pytest.approx(
        [row.mean for row in evaluate_features(together, dataset, protocol, method="one")], abs=0.8
    )
    # One query more or less of 144 may flip where half precision is kept (linear); none does otherwise.
    if head == "prototype":
        assert numbers(apart) == numbers(evaluate_features(together, dataset, protocol, method="one"))
    assert numbers(apart) != numbers(evaluate_features(extractors[1], dataset, protocol, method="one alone"))


@pytest.mark.parametrize("bn", ["support", "running", "transductive"])
@pytest.mark.parametrize(
    ("head", "flips"), [("finetune", False), ("prototype", False), ("prototype", True), ("linear", False)]
)
def test_chunks_do_not_matter(dataset: FewShotDataset, network: nn.Module, bn: str, head: str, flips: bool) -> None:
    protocol = replace(PROTOCOL, bn=bn, head=head, flips=flips, episodes=4, shots=[2], inner_steps=2)
    one, three = (evaluate(network, dataset, protocol, method="m", chunk_size=size) for size in (1, 3))
    assert numbers(one) == numbers(three)
    assert (one[0].bn, one[0].head, one[0].flips) == (bn, head, flips)


def test_rows_say_how_they_were_obtained(dataset: FewShotDataset, network: nn.Module) -> None:
    rows = evaluate(network, dataset, PROTOCOL, method="TGR", command="python recipes/tgr.py")
    assert [row.shots for row in rows] == [1, 2]
    first = rows[0]
    assert (first.method, first.dataset, first.split, first.ways) == ("TGR", "spots", "validation", 3)
    assert (first.bn, first.head, first.episodes, first.seed) == ("support", "finetune", 12, 0)
    assert (first.inner_steps, first.inner_lr, first.flips, first.image_size) == (10, 0.01, False, 16)
    assert first.command == "python recipes/tgr.py"
    started = time.monotonic()
    frozen = evaluate(network, dataset, replace(FROZEN, flips=True), method="TGR", command="python x.py")[0]
    assert (frozen.inner_steps, frozen.inner_lr, frozen.flips, frozen.image_size) == (None, None, True, 16)
    assert frozen.command == "python x.py" and 0 <= frozen.seconds <= time.monotonic() - started


def test_progress_counts_chunks_of_the_contestant(dataset, network, bars, capsys) -> None:
    evaluate(network, dataset, replace(PROTOCOL, episodes=4, shots=[1]), method="TGR", chunk_size=2)
    assert "TGR, 1-shot: 2 of 2 chunks" in capsys.readouterr().err
    evaluate(network, dataset, replace(PROTOCOL, episodes=4, shots=[1]), method="TGR", chunk_size=2, progress=False)
    assert not capsys.readouterr().err


def test_a_validation_shows_no_progress(dataset, network, bars, capsys) -> None:
    validation([dataset], replace(PROTOCOL, episodes=4), PROTOCOL.adaptation)(network)
    assert not capsys.readouterr().err


def test_an_evaluation_says_where_its_rows_are_and_what_stands_beside_them(dataset, network, tmp_path, capsys) -> None:
    for seed, expected in ((0, "results.json."), (1, f"results.json, beside {len(FROZEN.shots)} earlier rows.")):
        evaluate_stored(network, dataset, replace(FROZEN, seed=seed, episodes=4), tmp_path, method="TGR")
        assert capsys.readouterr().out.splitlines()[-1].endswith(expected)


@pytest.mark.parametrize(
    ("bn", "flips", "stored"),
    [
        ("running", False, [48.1944, 50.6944]),
        ("running", True, [48.0556, 55.4167]),
        ("support", False, [45.9722, 53.75]),
        ("support", True, [48.75, 57.3611]),
    ],
)
def test_numbers_of_prototypes_are_those_that_were_stored(dataset, network, bn, flips, stored) -> None:
    """Measured before flips were an option, with flips under the name `mirrored`."""
    protocol = replace(FROZEN, bn=bn, flips=flips, episodes=60)
    rows = evaluate(network, dataset, protocol, method="m", progress=False)
    assert [row.mean for row in rows] == pytest.approx(stored, abs=0.15)  # One query of 720 on another machine.


def test_fine_tuning_learns_and_more_shots_teach_more(dataset: FewShotDataset, network: nn.Module) -> None:
    protocol = replace(PROTOCOL, shots=[1, 10], inner_lr=0.1)
    one, ten = evaluate(network, dataset, protocol, method="m")
    assert one.mean > 100 / 3 + 15
    assert ten.mean > one.mean + 10


def test_everybody_sits_the_same_evaluation_and_a_seed_is_another_one(dataset: FewShotDataset) -> None:
    first, again = (
        draw_episodes(dataset, protocol, 1)[0]
        for protocol in (PROTOCOL, replace(PROTOCOL, head="linear", bn="running"))
    )
    other = draw_episodes(dataset, replace(PROTOCOL, seed=1), 1)[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_longer_evaluations_begin_with_the_shorter_one(dataset: FewShotDataset) -> None:
    short, long = (draw_episodes(dataset, replace(PROTOCOL, episodes=count), 1)[1] for count in (5, 9))
    assert torch.equal(short, long[:5])


def test_images_are_brought_to_the_size_of_the_network(dataset: FewShotDataset, network: nn.Module) -> None:
    large = replace(dataset, images=dataset.images.repeat_interleave(2, -1).repeat_interleave(2, -2))
    small = replace(dataset, images=to_uint8(resize(to_unit(large.images), 16)))
    for protocol in (FROZEN, replace(PROTOCOL, head="prototype")):
        rows = [evaluate(network, data, protocol, method="m") for data in (large, small)]
        # The same pixels but for their rounding to 8 bits.
        assert [row.mean for row in rows[0]] == pytest.approx([row.mean for row in rows[1]], abs=2)


def test_what_cannot_be_examined_is_refused(dataset: FewShotDataset) -> None:
    assert replace(PROTOCOL, ways=2).ways == 2
    with pytest.raises(ValueError, match="cannot be fine-tuned"):
        evaluate_features(lambda images: images.flatten(1), dataset, PROTOCOL, method="m")
    with pytest.raises(ValueError, match="expected at least 2"):
        EvaluationProtocol(episodes=1)
    with pytest.raises(ValueError, match="head='svm'"):
        EvaluationProtocol(head="svm")  # type: ignore[arg-type]
