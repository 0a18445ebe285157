"""The evaluation's rows of frozen members: passes that all rows share, against each row's own.

    python benchmarks/baselines.py                                       # 4 members of glyphs, under a minute
    python benchmarks/baselines.py --pool pools/cifar-fs --dataset cifar-fs --data_dir data --flips false

The rows are the best member's features, all members' features and all members' probabilities under nearest class
means, with --flips also of images together with their mirror images. Alone, each row passes all images of the episodes
through its members (`evaluate_features`; probabilities are then of length 1, which costs the same). The library makes
all rows of one pass, and one of mirror images (`evaluate_baselines`). Both in turns; rows of features are compared.
Seconds are those of the process where it has one CPU thread, and else the clock's. The last line is a JSON object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from measuring import GLYPHS, Measurement, open_pool, run, table, timed, write_section

from hf_dfml.data import FewShotDataset, load_dataset
from hf_dfml.evaluation import EvaluationProtocol, Result, evaluate_baselines, evaluate_features
from hf_dfml.evaluation.baselines import all_answers, all_features, best_features, best_member, probabilities_of
from hf_dfml.pool import ModelPool
from hf_dfml.pool.teacher import Teacher
from hf_dfml.settings import option
from hf_dfml.utils.provenance import describe_machine

ROWS = (best_features, all_features, all_answers)
HEADER = "passes | images that members are shown | seconds | times faster"


class Options(Measurement):
    """Members and episodes."""

    pool: str = option("", f"The teachers; by default glyph members, built in {GLYPHS}.")
    members: int = option(4, "The first so many of them.", least=1)
    dataset: str = option("glyphs", "Data set of the episodes.")
    data_dir: str | None = option(None, "Folder of local copies of the data sets.")
    episodes: int = option(10, "Episodes of 5 classes, of 1 and of 5 shots.", least=2)
    flips: bool = option(True, "Rows with mirror images too, as where a run's default adaptation has flips.")
    turns: int = option(1, "Times that each is measured; the fastest counts.", least=1)


def each_alone(pool: ModelPool, dataset: FewShotDataset, protocol: EvaluationProtocol, flips: bool) -> list[Result]:
    """Each row by passes of its own."""
    best, _ = best_member(pool)
    members = [pool.load(entry) for entry in pool]
    kinds = [
        [pool.load(best).features],
        [member.features for member in members],
        [partial(probabilities_of, member) for member in members],
    ]
    return [
        row
        for extractors in kinds
        for mirrored in (False, True)[: 1 + flips]
        for row in evaluate_features(
            extractors,
            dataset,
            replace(protocol, flips=mirrored),
            method="alone",
            device=pool.device,
            progress=False,
        )
    ]


def counted(work: Callable[[], list[Result]]) -> tuple[list[Result], int]:
    """What `work` gives, and how many images all members together are shown by it."""
    shown, prepare = [], Teacher._prepare

    def counting(member: Teacher, images: torch.Tensor) -> torch.Tensor:
        shown.append(len(images))
        return prepare(member, images)

    with patch.object(Teacher, "_prepare", counting):
        return work(), sum(shown)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    return run(Options, measure, argv, __doc__)


def measure(settings: Options, device: torch.device) -> dict[str, Any]:
    """Both ways, the table, and the object of the last line."""
    pool = open_pool(settings.pool, settings.members)[: settings.members].resolve().to(device)
    size = max(entry.input_size[-1] for entry in pool if entry.input_size)
    dataset = load_dataset(settings.dataset, "test", data_dir=settings.data_dir, image_size=size)
    protocol = EvaluationProtocol(episodes=settings.episodes, head="prototype", bn="running", seed=settings.seed)
    ways: dict[str, Callable[[EvaluationProtocol], list[Result]]] = {
        "each row's own": lambda protocol: each_alone(pool, dataset, protocol, settings.flips),
        "shared": lambda protocol: evaluate_baselines(
            pool, dataset, protocol, baselines=ROWS, flips=settings.flips, device=device, progress=False
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    shown: dict[str, int] = {}
    found: dict[str, list[float]] = {}
    for way in ways.values():
        way(replace(protocol, episodes=2, shots=[1], queries=1))  # Warms up.
    for _ in range(settings.turns):
        for name, way in ways.items():
            (rows, shown[name]), spent = timed(device, partial(counted, partial(way, protocol)))
            seconds[name].append(spent)
            found[name] = [row.mean for row in rows[: 4 * (1 + settings.flips)]]
    best = {name: min(values) for name, values in seconds.items()}
    alone, shared = best.values()
    same = len(set(map(tuple, found.values()))) == 1
    cells = [[name, f"{shown[name]:,}", f"{best[name]:.2f}", f"{alone / best[name]:.2f}"] for name in ways]
    about = (
        f"{len(pool)} members on {dataset.name}, {settings.episodes} episodes of 1 and of 5 shots, "
        f"{'with and without' if settings.flips else 'without'} mirror images. The rows of features are "
        f"{'the same' if same else 'not the same'}. {describe_machine(device)}."
    )
    print(about, table(HEADER, cells), sep="\n")
    write_section(settings.output_dir, "baselines", "Rows of frozen members", about, table(HEADER, cells))
    return {
        "benchmark": "baselines",
        "ratio": round(alone / shared, 2),
        "baseline": round(alone, 3),
        "ours": round(shared, 3),
        "unit": "seconds",
        "images": shown,
        "same": same,
    }


if __name__ == "__main__":
    main()
