"""Asking the members of a pool about many images: each as it is, against the library's way.

    python benchmarks/teachers.py                                              # 4 conv4 of drawn weights, 2,000 images
    python benchmarks/teachers.py --pool pools/cifar-fs --members 10 --images 16000

Both ask the same members about the same images, in turns, and give probabilities. As it is: `answers_of`, the member
in evaluation mode. The library's way: `Asking`, as pool distillation uses it, with folded batch norm, bfloat16 where
the processor computes with it and the answers agree, and compiled members where `--compile auto` finds that this pays.
Folding is part of the time. The peak is that of `evaluate.py`. Seconds are those of the process where it has one CPU
thread, and else the clock's. The last line is a JSON object.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from measuring import Measurement, convolution_peak, run, table, timed, write_section

from hf_dfml.networks import create_network
from hf_dfml.networks.info import batch_norms
from hf_dfml.pool import ModelPool
from hf_dfml.pool.asking import Asking, Compile, answers_of, operations
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher import Teacher
from hf_dfml.settings import option
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork

HEADER = "how | images a second | of the convolution peak | same most probable class | largest difference"


class Options(Measurement):
    """Members and images."""

    pool: str = option("", "The pool; by default networks of drawn weights and statistics.")
    network: str = option("conv4", "Architecture of the default members.")
    members: int = option(4, "Members that are asked.", least=1)
    images: int = option(2000, "Images that each is asked about.", least=1)
    image_size: int = option(32, "Their height and width.", least=16)
    compile: Compile = option("auto", "As of `hf-dfml train pool-distillation`.")


def drawn_member(settings: Options, index: int, classes: int = 5) -> Teacher:
    """A member that has learnt nothing: what it answers costs the same."""
    generator, size = fork(settings.seed, "member", index), settings.image_size
    entry = PoolEntry(
        id=f"drawn-{index}",
        architecture=settings.network,
        num_classes=classes,
        input_size=(3, size, size),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    network = create_network(settings.network, num_classes=classes, image_size=size, generator=generator)
    for layer in batch_norms(network).values():
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.copy_(0.1 * torch.randn(layer.running_mean.shape, generator=generator))
        layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.1)
    return Teacher(entry, network)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    return run(Options, measure, argv, __doc__)


def measure(settings: Options, device: torch.device) -> dict[str, Any]:
    """Both ways, the table, and the object of the last line."""
    if settings.pool:
        pool = ModelPool.open(settings.pool).usable()[: settings.members].to(device)
        members = [pool.load(index) for index in range(len(pool))]
    else:
        members = [drawn_member(settings, index).to(device) for index in range(settings.members)]
    size, count = settings.image_size, settings.images
    drawn = torch.randint(256, (count, 3, size, size), generator=fork(settings.seed, "images"), dtype=torch.uint8)
    images = drawn.to(device)
    asking = Asking(members[0], len(members), count, settings.compile)
    seconds: dict[str, list[float]] = {"as it is": [], "hf_dfml": []}
    same, difference = 0.0, 0.0
    answers_of(members[0], images[:100])
    _, first = timed(device, lambda: asking.probabilities(members[0], images[:100]))  # compiles, if anything does
    for member in members:
        plain, spent = timed(device, lambda member=member: answers_of(member, images))  # type: ignore[misc]
        seconds["as it is"].append(spent)
        ours, spent = timed(device, lambda member=member: asking.probabilities(member, images))  # type: ignore[misc]
        seconds["hf_dfml"].append(spent)
        same += (plain.argmax(-1) == ours.argmax(-1)).float().mean().item() / len(members)
        difference = max(difference, (plain - ours).abs().max().item())
    rate = {name: count / median(values) for name, values in seconds.items()}
    share = operations(members[0]) / convolution_peak(device)
    rows = [
        [name, f"{value:.0f}", f"{100 * share * value:.0f} %", *(("-", "-") if name != "hf_dfml" else ())]
        for name, value in rate.items()
    ]
    rows[-1] += [f"{100 * same:.1f} %", f"{difference:.0e}"]
    about = (
        f"{len(members)} members ({members[0].architecture}), {count} images of {size} pixels each. hf_dfml: "
        f"{asking.choice}; its first answer took {first:.1f} s. {describe_machine(device)}."
    )
    shown = table(HEADER, rows)
    print(about, shown, sep="\n")
    write_section(settings.output_dir, "teachers", "Asking the members", about, shown)
    return {
        "benchmark": "teachers",
        "ratio": round(rate["hf_dfml"] / rate["as it is"], 2),
        "baseline": round(rate["as it is"]),
        "ours": round(rate["hf_dfml"]),
        "unit": "images a second",
        "choice": asking.choice,
        "same": same,
        "peak_share": round(share * rate["hf_dfml"], 3),
    }


if __name__ == "__main__":
    main()
