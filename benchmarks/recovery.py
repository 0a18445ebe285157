"""What a recovery costs and what it is good for: generators of several widths, pixels, and FREE's few steps.

    python benchmarks/recovery.py                                    # a small pool of glyphs, minutes
    python benchmarks/recovery.py --pool pools/cifar-fs --dataset cifar-fs --recoveries generator-64 pixels@0.1

All ways recover the same number of images from the same members, in the same number of steps but for FREE's and where
the name says another (`pixels@0.1x240n40`: 240 steps, 40 images a class), side by side in one run, under the same
objective (no boundary term, as there is no meta-model here; pixels need a total variation and another rate).
`generator-64` is the default of `RecoveryConfig`, `generator-16@0.005` its option `generator_width=16` with a rate of
0.005, `generator-16c` that with `compile_generator`, `pixels@0.1` its `recovery="pixels"`; `free-5` adapts a
meta-generator of --generator_width. For each:
- the time of a task (with one CPU thread that of this process, so that other work on the machine does not count);
  FREE's includes the meta-generator's own step, its warm-up (and a compilation) is paid once and named separately;
- one pass, forward and backward, through its generator, and the share of the convolution peak that it reaches;
- what the images are good for: the accuracy, on real images that the member was not trained on, of a student distilled
  from them. It needs --dataset; without one (and with a pool of your own) it is left out.

Below stand the teacher's pass, the gradient of the objective by a member as it is and by its copy with folded batch
norm (which `recover` uses), and what a step of the first two recoveries spends its time on.

The last line is a JSON object; `ratio` is how many times faster the second of --recoveries is than the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from measuring import (
    GLYPHS,
    Measurement,
    convolution_peak,
    counts_own_time,
    open_pool,
    operations,
    run,
    table,
    time_shares,
    timed,
    write_section,
)
from torch import Tensor, nn

from hf_dfml.data import FewShotDataset, load_dataset
from hf_dfml.learning.distillation import distillation_loss
from hf_dfml.networks import create_network
from hf_dfml.networks.functional import normalise
from hf_dfml.networks.generator import Generator
from hf_dfml.pool import ModelPool
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.augment import random_crop_flip
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.recovery.meta_generator import MetaGenerator, MetaGeneratorConfig
from hf_dfml.recovery.objective import inversion_loss
from hf_dfml.recovery.task import Task
from hf_dfml.settings import option, part
from hf_dfml.utils.images import to_unit
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork

HELD_OUT = 0.2

NAME = r"(?:(generator|free)-(\d+)(c)?|pixels)(?:@([\d.]+))?(?:x(\d+))?(?:n(\d+))?"
"""Of a recovery: kind (or pixels), its number, whether compiled, rate, steps, images a class."""


class BothRecoveries(MetaGeneratorConfig):
    """Options of both recoveries, those of the recipes; what they share is set once."""

    inversion: RecoveryConfig = part(RecoveryConfig, images_per_class=20, bn_weight=0.0, generator_width=16)


class Options(Measurement):
    """The pool, and how much is measured."""

    pool: str = option("", f"The teachers; by default glyph members, built in {GLYPHS}.")
    dataset: str | None = option(None, "Data set that the members were trained on (glyphs for the default pool).")
    data_dir: str | None = option(None, "Folder of local copies of the data sets.")
    members: int = option(4, "Members whose tasks are recovered and measured.")
    pool_size: int = option(8, "Members of the default pool.")
    teachers_per_step: int = option(4, "Teachers in a step of the meta-generator.", least=1)
    warmup: int = option(20, "Steps of the meta-generator before anything is measured.", least=0)
    recoveries: list[str] = option(
        [
            "generator-64",
            "generator-16x100n40",
            "generator-16cx100n40",
            "pixels@0.1",
            "free-5",
            "free-2",
        ],
        "`generator-WIDTH`, `pixels` or `free-STEPS`, perhaps c (compiled), @RATE, xSTEPS and nIMAGES (a "
        "class), in this order; the first is the baseline.",
    )
    pixels_tv: float = option(0.1, "Weight of the total variation for pixels.")
    student_steps: int = option(100, "Adam steps by which a student is distilled.")
    meta_generator: BothRecoveries = part(BothRecoveries)


@dataclass
class Way:
    """One way of recovering: its name, seconds a task, its tasks, and the accuracies of their students."""

    name: str
    run: Callable[[list[Teacher]], list[Task]]
    config: RecoveryConfig
    warmup_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


def way_of(name: str, settings: Options, pool: ModelPool, size: int) -> Way:
    """A recovery by its name: a kind and perhaps a number, a rate, steps, images a class."""
    found = re.fullmatch(NAME, name)
    if not found:
        raise SystemExit(
            f"--recoveries {name}: expected generator-WIDTH, pixels or free-STEPS, perhaps c, @RATE, xSTEPS and "
            "nIMAGES."
        )
    kind, number, compiled, rate, steps, images = found.groups()
    if rate:
        settings = replace(settings, recovery_lr=float(rate), adaptation_lr=float(rate))
    settings = replace(
        settings,
        recovery_steps=int(steps or settings.meta_generator.inversion.recovery_steps),
        images_per_class=int(images or settings.meta_generator.inversion.images_per_class),
        compile_generator=bool(compiled),
    )
    if kind == "free":
        return meta_generator_way(name, replace(settings, adaptation_steps=int(number)), pool, size)
    if kind == "generator":
        return scratch_way(name, replace(settings, generator_width=int(number)), pool, size)
    return scratch_way(name, replace(settings, recovery="pixels", tv_weight=settings.pixels_tv), pool, size)


def meta_generator_way(name: str, settings: Options, pool: ModelPool, size: int) -> Way:
    """FREE's recovery, after its warm-up."""
    stream = fork(settings.seed, "meta-generator", settings.meta_generator.adaptation_steps)
    meta = MetaGenerator(settings.meta_generator, size, pool.device)
    meta.reset_parameters(stream)

    def warm_up() -> None:
        for _ in range(settings.warmup):
            drawn = torch.randint(len(pool), (settings.teachers_per_step,), generator=stream).tolist()
            meta.recover([pool.load(index) for index in drawn], stream)

    _, seconds = timed(pool.device, warm_up)
    return Way(name, lambda teachers: meta.recover(teachers, stream)[0], settings.meta_generator.inversion, seconds)


def scratch_way(name: str, settings: Options, pool: ModelPool, size: int) -> Way:
    """The recovery of BiDf-MKD and TGR: each task by itself, after the compilation if there is one."""
    stream, config = fork(settings.seed, "scratch"), settings.meta_generator.inversion
    seconds = 0.0
    if config.compile_generator:
        first = partial(recover, pool.load(0), replace(config, recovery_steps=1), size, fork(settings.seed, "first"))
        seconds = timed(pool.device, first)[1]

    def run(teachers: list[Teacher]) -> list[Task]:
        return [recover(teacher, config, size, stream) for teacher in teachers]

    return Way(name, run, config, seconds)


@dataclass(frozen=True)
class Pass:
    """Milliseconds of one pass, forward and backward, and the share of the convolution peak."""

    ms: float
    peak_share: float

    def __str__(self) -> str:
        return f"{self.ms:.1f} ({100 * self.peak_share:.0f} %)"


def pass_through(network: nn.Module, inputs: Tensor, peak: float, *, compiled: bool = False, repeats: int = 5) -> Pass:
    """What a pass of `inputs` through `network` costs, gradients of the inputs included."""
    inputs = inputs.to(next(network.parameters()).device).requires_grad_()

    def run() -> None:
        network(inputs).sum().backward()

    count = operations(run)
    if compiled:
        network.compile()
        run()
    seconds = median(timed(inputs.device, run)[1] for _ in range(repeats))
    return Pass(1000 * seconds, count / seconds / peak)


def costs_of_passes(ways: list[Way], teacher: Teacher, size: int) -> dict[str, Pass]:
    """A pass through the teacher, and through the generator of each way that has one, with the images of one task."""
    device = teacher.mean.device
    peak = convolution_peak(device)
    config = ways[0].config
    count = teacher.num_classes * config.images_per_class
    images = torch.rand(count, 3, size, size, generator=fork(0, "images"))
    costs = {"teacher": pass_through(teacher, images, peak)}
    for way in ways:
        if way.config.recovery == "generator":
            network = Generator(way.config.latent_dim, way.config.generator_width, size).to(device)
            latent = torch.randn(count, way.config.latent_dim, generator=fork(0, "latent"))
            costs[way.name] = pass_through(network, latent, peak, compiled=way.config.compile_generator)
    return costs


def gradient_costs(teacher: Teacher, config: RecoveryConfig, size: int, turns: int = 5) -> dict[str, float]:
    """Milliseconds of the objective's gradient at the images of a task, by a member as it is and folded, in turns."""
    labels = torch.arange(teacher.num_classes, device=teacher.device).repeat_interleave(config.images_per_class)
    images = torch.rand(len(labels), 3, size, size, generator=fork(0, "images")).to(teacher.device).requires_grad_()
    members = {"as it is": teacher, "folded": teacher.folded(watched=bool(config.objective.bn_weight))}
    spent: dict[str, list[float]] = {name: [] for name in members}

    def gradient(member: Teacher) -> None:
        torch.autograd.grad(inversion_loss(member, images, labels, config.objective)[0], images)

    for turn in range(turns + 1):  # The first one warms up.
        for name, member in members.items():
            seconds = timed(teacher.device, partial(gradient, member))[1]
            spent[name] += [1000 * seconds] if turn else []
    return {name: min(values) for name, values in spent.items()}


def held_out(teacher: Teacher, dataset: FewShotDataset) -> tuple[Tensor, Tensor]:
    """Real images of the member's classes that it was not trained on (the last fifth of each), and their labels."""
    parts = [dataset.by_class(name) for name in teacher.class_names]
    parts = [part[round((1 - HELD_OUT) * len(part)) :] for part in parts]
    device = teacher.mean.device
    labels = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    return to_unit(torch.cat(parts)).to(device), labels.to(device)


def student_accuracy(teacher: Teacher, task: Task, real: tuple[Tensor, Tensor], settings: Options) -> float:
    """Accuracy in percent on real images of a student that saw the task's images and the teacher's answers only."""
    stream = fork(settings.seed, "student", teacher.entry.id)
    size, recovery = task.images.shape[-1], settings.meta_generator.inversion
    student = create_network(
        "conv4",
        num_classes=teacher.num_classes,
        image_size=size,
        mean=teacher.entry.mean,
        std=teacher.entry.std,
        generator=stream,
    ).to(task.images.device)
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    for _ in range(settings.student_steps):
        images = random_crop_flip(task.images, stream, padding=recovery.shift, flip=recovery.flip)
        with torch.no_grad():
            targets = teacher(images)
        loss = distillation_loss(targets, student(normalise(student, images)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.eval()
    return accuracy_of(lambda images: student(normalise(student, images)), real)


@torch.no_grad()
def accuracy_of(classify: Callable[[Tensor], Tensor], real: tuple[Tensor, Tensor]) -> float:
    """Percent of `real` that is classified as it should be."""
    images, labels = real
    parts = zip(images.split(500), labels.split(500), strict=True)
    right = sum(int((classify(part).argmax(1) == truth).sum()) for part, truth in parts)
    return 100 * right / len(labels)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    return run(Options, measure, argv, __doc__)


def measure(settings: Options, device: torch.device) -> dict[str, Any]:
    """All recoveries, the table, and the object of the last line."""
    pool = open_pool(settings.pool, settings.pool_size)
    name = settings.dataset if settings.pool else "glyphs"
    if name == "glyphs":
        settings = replace(settings, flip=False)  # A mirrored glyph may be another glyph.
    recovery = settings.meta_generator.inversion
    pool = pool.to(device)
    size = max(entry.input_size[-1] for entry in pool if entry.input_size)
    members = [pool.load(index) for index in range(min(settings.members, len(pool)))]
    about = (
        f"{len(members)} of {len(pool)} members of {Path(settings.pool).name or 'a pool of glyphs'}, "
        f"{recovery.images_per_class} images a class, {size} pixels, {recovery.recovery_steps} steps. "
        f"{describe_machine(pool.device)}."
    )
    print(about, flush=True)

    ways = [way_of(recovery, settings, pool, size) for recovery in settings.recoveries]
    together = settings.teachers_per_step
    for group in (members[start : start + together] for start in range(0, len(members), together)):
        for way in ways:
            tasks, seconds = timed(pool.device, lambda way=way, group=group: way.run(group))  # type: ignore[misc]
            way.seconds += [seconds / len(group)] * len(group)
            way.tasks += tasks

    teacher_accuracy = None
    if name:
        dataset = load_dataset(name, "train", data_dir=settings.data_dir, image_size=size)
        reals = [held_out(teacher, dataset) for teacher in members]
        teacher_accuracy = mean(accuracy_of(teacher, real) for teacher, real in zip(members, reals, strict=True))
        for way in ways:
            way.accuracies = [
                student_accuracy(teacher, task, real, settings)
                for teacher, task, real in zip(members, way.tasks, reals, strict=True)
            ]
    costs = costs_of_passes(ways, members[0], size)
    scratch = [way for way in ways if not way.warmup_seconds][:2]
    short = {way.name: replace(way.config, recovery_steps=3) for way in scratch}
    shares = {
        name: time_shares(pool.device, partial(recover, members[0], config, size, fork(0)))
        for name, config in short.items()
    }
    gradients = gradient_costs(members[0], recovery, size)
    return report(settings, about, ways, costs, gradients, shares, teacher_accuracy, pool.device)


HEADER = (
    "recovery | s a task | tasks a second | times faster | warm-up, s | one pass of the generator, ms (of the peak) "
    "| student, %"
)


def report(
    settings: Options,
    about: str,
    ways: list[Way],
    costs: dict[str, Pass],
    gradients: dict[str, float],
    shares: dict[str, dict[str, float]],
    teacher: float | None,
    device: torch.device,
) -> dict[str, Any]:
    """Print the table; the object of the last line."""
    seconds = {way.name: mean(way.seconds) for way in ways}
    baseline = seconds[ways[0].name]
    rows = [
        [
            way.name,
            f"{seconds[way.name]:.3f}",
            f"{1 / seconds[way.name]:.3f}",
            f"{baseline / seconds[way.name]:.1f}",
            f"{way.warmup_seconds:.1f}" if way.warmup_seconds else "-",
            costs.get(way.name, "-"),
            f"{mean(way.accuracies):.1f}" if way.accuracies else "-",
        ]
        for way in ways
    ]
    clock = "CPU time of the process" if counts_own_time(device) else "wall clock"
    notes = [
        f"Seconds are {clock}. One pass of the teacher takes {costs['teacher'].ms:.1f} ms and reaches "
        f"{100 * costs['teacher'].peak_share:.0f} % of the convolution peak; the objective's gradient takes "
        f"{gradients['as it is']:.1f} ms by a member as it is and {gradients['folded']:.1f} ms by its folded copy.",
        "No --dataset: what the images are good for was not measured."
        if teacher is None
        else f"The members themselves classify {teacher:.1f} % of the real images that the students are tested on.",
    ]
    for name, parts in shares.items():
        if not parts:
            continue  # An accelerator's time is not divided so.
        to_answers = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in parts.items())
        notes.append(f"Time of a step, {name}: {to_answers}.")
    text = " ".join(notes)
    print(table(HEADER, rows), text, sep="\n\n")
    write_section(settings.output_dir, "recovery", "Recovery of a task", about, table(HEADER, rows), text)
    ours = ways[min(1, len(ways) - 1)].name
    return {
        "benchmark": "recovery",
        "ratio": round(baseline / seconds[ours], 2),
        "baseline": round(baseline, 6),
        "ours": round(seconds[ours], 6),
        "unit": "seconds a task",
        "clock": clock,
        "ratios": {name: round(baseline / value, 2) for name, value in seconds.items()},
        "warmup_seconds": {way.name: round(way.warmup_seconds, 2) for way in ways if way.warmup_seconds},
        "student_accuracy": {way.name: round(mean(way.accuracies), 2) for way in ways if way.accuracies},
        "student_accuracies": {way.name: [round(value, 1) for value in way.accuracies] for way in ways},
        "teacher_accuracy": teacher and round(teacher, 2),
        "passes": {name: asdict(cost) for name, cost in costs.items()},
        "folding": round(gradients["as it is"] / gradients["folded"], 3),
        "shares": shares,
        "recovery_steps": settings.meta_generator.inversion.recovery_steps,
        "images_per_class": settings.meta_generator.inversion.images_per_class,
    }


if __name__ == "__main__":
    main()
