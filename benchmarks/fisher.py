"""The Fisher embedding of a task against a plain backward pass of the same probe: seconds an image, and memory.

    python benchmarks/fisher.py
    python benchmarks/fisher.py --networks resnet34 --image_size 32 --images 256

The embedding needs the square of every single image's gradient, the plain backward pass the gradient of their sum;
both take as many images at a time. Probes have drawn weights, which cost as much as others. Seconds are those of the
process where it has one CPU thread, and else the clock's; memory is the highest of the process, beside what it had
before. The last line is a JSON object; `ratio` is the largest of the embedding's seconds to the other's.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from measuring import Measurement, run, table, timed, write_section

import hf_dfml.networks  # noqa: F401 (registers its architectures with timm)
from hf_dfml.learning.embedding import fisher_embedding, images_at_once
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher import Teacher
from hf_dfml.settings import option
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork

HEADER = "probe | plain backward, ms an image | Fisher embedding | times | MB more than before"
CPU = torch.device("cpu")


class Options(Measurement):
    """Probes and images."""

    networks: list[str] = option(["resnet34", "efficientnet_lite0"], "Names of timm's.")
    image_size: int = option(84, "Height and width of the images.", least=16)
    images: int = option(24, "How many.", least=5)


def race(name: str, settings: Options) -> tuple[float, float, float]:
    """Seconds an image of the plain backward pass and of the embedding; megabytes that the embedding adds."""
    size = settings.image_size
    entry = PoolEntry(
        id=name, architecture=name, num_classes=5, input_size=(3, size, size), mean=(0.5,) * 3, std=(0.25,) * 3
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        probe = Teacher(entry, timm.create_model(name, num_classes=5))
    generator = fork(settings.seed, "images")
    images = torch.rand(settings.images, 3, size, size, generator=generator)
    labels = torch.arange(settings.images) % 5
    at_once = images_at_once(images)

    def plain() -> None:
        for some, answers in zip(images.split(at_once), labels.split(at_once), strict=True):
            F.cross_entropy(probe(some), answers).backward()

    def embedding() -> None:
        # No epochs: the linear head is neither's work.
        fisher_embedding(probe, images, labels, generator, head_epochs=0)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    embedding()
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    times: dict[str, list[float]] = {"embedding": [], "plain": []}
    for _ in range(2):
        times["embedding"].append(timed(CPU, embedding)[1])
        probe.network.requires_grad_(True)
        times["plain"].append(timed(CPU, plain)[1])
        probe.network.requires_grad_(False).zero_grad()
    return min(times["plain"]) / settings.images, min(times["embedding"]) / settings.images, more


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    return run(Options, lambda settings, _: measure(settings), argv, __doc__)


def measure(settings: Options) -> dict[str, Any]:
    """All probes, on the CPU, whose memory is measured; the table, and the object of the last line."""
    found = {name: race(name, settings) for name in settings.networks}
    rows = [
        [name, f"{1000 * plain:.1f}", f"{1000 * ours:.1f}", f"{ours / plain:.2f}", f"{more:.0f}"]
        for name, (plain, ours, more) in found.items()
    ]
    about = f"{settings.images} images of {settings.image_size} pixels. {describe_machine(CPU)}."
    shown = table(HEADER, rows)
    print(about, shown, sep="\n")
    write_section(settings.output_dir, "fisher", "The Fisher embedding of TGR", about, shown)
    slowest = max(found.values(), key=lambda row: row[1] / row[0])
    return {
        "benchmark": "fisher",
        "ratio": round(slowest[1] / slowest[0], 2),
        "baseline": round(slowest[0], 5),
        "ours": round(slowest[1], 5),
        "unit": "seconds an image",
    }


if __name__ == "__main__":
    main()
