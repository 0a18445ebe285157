"""How good estimated gradients are against the true one, for the queries that they cost.

    python benchmarks/zero_order.py                                        # a small pool of glyphs, built when missing
    python benchmarks/zero_order.py --pool pools/cifar-fs --output docs/zero_order.png

A member's recovery is walked along its true gradient; at each of its steps every estimator is asked for the gradient
of the same loss at the same images (32 x 32, d = 3072), and its cosine with the true one is noted. Estimators that
remember (`memory`) so see what they would see in a recovery without shifts. Theory of the sphere: sqrt(q / (d + q)).
Then each estimator recovers by itself, with the same seed: printed is the member's cross-entropy on what it has found,
and the accuracy in its eyes.

The last line is a JSON object; `ratio` is how many times fewer queries the best estimator needs for the cosine that
the sphere has with --reference of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from math import sqrt
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from measuring import GLYPHS, open_pool
from torch import Tensor

from hf_dfml.arguments import parse_into
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.gradient_source import ESTIMATORS, Estimator, ImageLosses, ZeroOrderGradient, autograd_gradient
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.settings import Settings, option
from hf_dfml.utils.pictures import curves
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork


class Options(Settings):
    """What is measured, and how much of it."""

    pool: str = option("", f"A pool of 32-pixel members; else glyphs, built in {GLYPHS}.")
    members: int = option(2, "Members that are asked.")
    directions: list[int] = option([5, 10, 20, 100], "Numbers of directions (central: half of it).")
    mu: float = option(0.01, "Length of the differences, in pixels of [0, 1].")
    reference: int = option(100, "Directions of the sphere that the ratio is about; one of --directions.")
    recovery_steps: int = option(30, "Steps of a recovery.", least=1)
    images_per_class: int = option(1, "Images recovered for each class.", least=1)
    recovery: str = option("pixels", "What is optimised: `pixels` or `generator`.")
    recovery_lr: float = option(0.1, "Learning rate of Adam in the recovery.", above=0)
    recovered_directions: list[int] = option([10, 100], "Directions of the recoveries by estimates.")
    output: str = option("runs/zero_order.png", "Where the figure goes.")
    seed: int = option(0, "Seed of everything random.")
    num_threads: int = option(1, "CPU threads.", least=1)

    @property
    def recipe(self) -> RecoveryConfig:
        """The recovery: cross-entropy alone, which is what black boxes answer, without shifts."""
        return RecoveryConfig(
            recovery=self.recovery,  # type: ignore[arg-type]
            recovery_steps=self.recovery_steps,
            recovery_lr=self.recovery_lr,
            images_per_class=self.images_per_class,
            generator_width=16,
            bn_weight=0.0,
            shift=0,
            flip=False,
        )


def source_of(name: Estimator, directions: int, mu: float) -> ZeroOrderGradient:
    """An estimator of about `directions` queries an image; the centre comes on top."""
    options = ESTIMATORS[name]
    count = max(1, directions // 2) if options.get("central") else directions
    return ZeroOrderGradient(count, mu, directions_at_once=20, **options)


def cosines(teacher: Teacher, settings: Options) -> dict[tuple[Estimator, int], float]:
    """Mean cosine with the true gradient over images and the second half of a recovery's steps."""
    asked = {(name, q): source_of(name, q, settings.mu) for name in ESTIMATORS for q in settings.directions}
    found: dict[tuple[Estimator, int], list[float]] = {key: [] for key in asked}
    streams = {key: fork(settings.seed, teacher.entry.id, *key) for key in asked}

    def watched(losses: ImageLosses, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        loss, true = autograd_gradient(losses, images, generator)
        for key, source in asked.items():
            _, estimate = source(losses, images, streams[key])
            found[key].append(F.cosine_similarity(estimate.flatten(1), true.flatten(1)).mean().item())
        return loss, true

    recover(teacher, settings.recipe, 32, fork(settings.seed, "walk", teacher.entry.id), source=watched)
    return {key: mean(values[len(values) // 2 :]) for key, values in found.items()}


@torch.no_grad()
def recovered(teacher: Teacher, settings: Options, source: Any) -> tuple[float, float]:
    """Cross-entropy, and accuracy in percent, of a member on what is recovered by a source of gradients."""
    with torch.enable_grad():
        task = recover(teacher, settings.recipe, 32, fork(settings.seed, "own", teacher.entry.id), source=source)
    logits = teacher(task.images)
    right = (logits.argmax(1) == task.labels).float().mean().item()
    return F.cross_entropy(logits, task.labels).item(), 100 * right


def queries_for(cosine: float, points: Sequence[tuple[float, float]]) -> float | None:
    """Queries at which an estimator's curve of (queries, cosine) passes `cosine`, squares interpolated linearly."""
    if cosine <= points[0][1]:
        return points[0][0]
    for (q0, c0), (q1, c1) in zip(points, points[1:], strict=False):
        if c0 < cosine <= c1:
            return q0 + (q1 - q0) * (cosine**2 - c0**2) / (c1**2 - c0**2)
    return None


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, draw, and give the object of the last line."""
    (settings,) = parse_into([Options], argv, __doc__)
    if settings.reference not in settings.directions:
        asked = ", ".join(map(str, settings.directions))
        raise SystemExit(f"--reference {settings.reference}: expected one of --directions, {asked}.")
    torch.set_num_threads(settings.num_threads)
    pool = open_pool(settings.pool, max(8, settings.members))
    teachers = [pool.load(index) for index in range(min(settings.members, len(pool)))]
    print(
        f"{len(teachers)} members, {settings.recovery_steps} steps of {settings.recovery}, "
        f"{settings.images_per_class} images a class; {describe_machine(pool.device)}.",
        flush=True,
    )

    each = [cosines(teacher, settings) for teacher in teachers]
    lines: dict[str, list[tuple[float, float]]] = {
        name: [
            (source_of(name, q, settings.mu).queries_per_image, mean(member[name, q] for member in each))
            for q in settings.directions
        ]
        for name in ESTIMATORS
    }
    theory = [(q + 1, sqrt(q / (3072 + q))) for q in settings.directions]
    print("Cosine with the true gradient, for so many queries an image and step:")
    print(f"{'estimator':16}" + "".join(f"{q + 1:>9}" for q in settings.directions))
    for name, points in {"theory, sphere": theory, **lines}.items():
        print(f"{name:16}" + "".join(f"{value:9.3f}" for _, value in points), flush=True)

    print("What each finds by itself: the member's cross-entropy and accuracy on it.")
    sources: dict[str, partial | Any] = {"autograd": lambda: autograd_gradient}
    for q in settings.recovered_directions:
        sources |= {
            f"{name}, {source_of(name, q, settings.mu).queries_per_image}": partial(source_of, name, q, settings.mu)
            for name in ESTIMATORS
        }
    usefulness = {}
    for title, make in sources.items():
        losses, accuracies = zip(*(recovered(teacher, settings, make()) for teacher in teachers), strict=True)
        usefulness[title] = {"loss": round(mean(losses), 4), "accuracy": round(mean(accuracies), 1)}
        print(f"{title:22} {mean(losses):9.3f} {mean(accuracies):7.1f} %", flush=True)

    shown = curves(
        {"theory, sphere": theory, **lines},
        settings.output,
        title="Estimated gradients at 32 x 32 pixels",
        xlabel="queries an image and step",
        ylabel="cosine with the true gradient",
    )
    print(f"Wrote {shown}.")
    result = verdict(lines, settings) | {"cosines": {k: [[q, round(c, 4)] for q, c in v] for k, v in lines.items()}}
    result |= {"recovered": usefulness, "recovery": settings.recovery, "seed": settings.seed}
    print(json.dumps(result))
    return result


def verdict(lines: dict[str, list[tuple[float, float]]], settings: Options) -> dict[str, Any]:
    """Queries for the sphere's cosine at `reference` directions: the sphere's and those of the best estimator."""
    baseline = settings.reference + 1
    wanted = dict(lines["sphere"])[baseline]
    needed = {name: queries_for(wanted, points) for name, points in lines.items() if name != "sphere"}
    reached = {name: count for name, count in needed.items() if count is not None}
    best = min(reached, key=lambda name: reached[name]) if reached else "sphere"
    ours = reached.get(best, baseline)
    return {
        "benchmark": "zero_order",
        "ratio": round(baseline / ours, 2),
        "baseline": baseline,
        "ours": round(ours, 2),
        "unit": f"queries an image and step for a cosine of {wanted:.3f}",
        "estimator": best,
    }


if __name__ == "__main__":
    main()
