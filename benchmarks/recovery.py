"""Recovering a task in 5 (and 2) steps of FREE's meta-generator against 200 steps of a generator from scratch.

    python benchmarks/recovery.py                                    # a small pool of glyphs, CPU-sized generator
    python benchmarks/recovery.py --pool pools/cifar-fs --dataset cifar-fs --generator_width 64   # the paper's size

Both ways recover the same number of images from the same members under the same objective (cross-entropy and whatever
weights are given; no boundary term, as there is no meta-model here), side by side in one run. Printed are
- the time of a task (with one CPU thread that of this process, so that other work on the machine does not count);
  FREE's includes the meta-generator's own step, its warm-up is paid once and named separately;
- the time of one pass through generator and teacher, forward and backward, of which both ways consist;
- what the images are good for: the accuracy, on real images that the member was not trained on, of a student distilled
  from them. It needs --dataset; without one (and with a pool of your own) it is left out.

The last line is a JSON object; `ratio` is how many times faster the 5 steps are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median
from typing import Any

import torch
from accelerate import Accelerator
from measuring import GLYPHS, counts_own_time, open_pool, parse, timed
from torch import Tensor

from hf_dfml.data import FewShotDataset, load_dataset
from hf_dfml.learning.distillation import distillation_loss
from hf_dfml.networks import create_network
from hf_dfml.networks.functional import normalise
from hf_dfml.networks.generator import Generator
from hf_dfml.pool import ModelPool
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.augment import random_crop_flip
from hf_dfml.recovery.inversion import recover
from hf_dfml.recovery.meta_generator import MetaGenerator, MetaGeneratorConfig
from hf_dfml.recovery.task import Task
from hf_dfml.utils.images import to_unit
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork

HELD_OUT = 0.2


@dataclass(frozen=True)
class Settings(MetaGeneratorConfig):
    """The pool, and how much is measured; the options of both recoveries are those of the recipes."""

    pool: str = field(default="", metadata={"help": f"The teachers; by default glyph members, built in {GLYPHS}."})
    dataset: str | None = field(
        default=None, metadata={"help": "Data set that the members were trained on (glyphs for the default pool)."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of local copies of the data sets."})
    members: int = field(default=4, metadata={"help": "Members whose tasks are recovered and measured."})
    pool_size: int = field(default=8, metadata={"help": "Members of the default pool."})
    teachers_per_step: int = field(default=4, metadata={"help": "Teachers in a step of the meta-generator."})
    warmup: int = field(default=20, metadata={"help": "Steps of the meta-generator before anything is measured."})
    student_steps: int = field(default=100, metadata={"help": "Adam steps by which a student is distilled."})
    generator_width: int = field(default=16, metadata={"help": "Channels of the generator (64 in the paper)."})
    seed: int = field(default=0, metadata={"help": "Seed of everything random."})
    num_threads: int = field(default=1, metadata={"help": "CPU threads."})


@dataclass
class Way:
    """One way of recovering: its name, seconds a task, its tasks, and the accuracies of their students."""

    name: str
    run: Callable[[list[Teacher]], list[Task]]
    warmup_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)


def meta_generator_way(settings: Settings, pool: ModelPool, size: int, steps: int) -> Way:
    """FREE's recovery in `steps` steps, after its warm-up."""
    stream = fork(settings.seed, "meta-generator", steps)
    meta = MetaGenerator(replace(settings, adaptation_steps=steps), size, pool.device)
    meta.reset_parameters(stream)

    def warm_up() -> None:
        for _ in range(settings.warmup):
            drawn = torch.randint(len(pool), (settings.teachers_per_step,), generator=stream).tolist()
            meta.recover([pool.load(index) for index in drawn], stream)

    _, seconds = timed(pool.device, warm_up)
    return Way(f"FREE, {steps} steps", lambda teachers: meta.recover(teachers, stream)[0], seconds)


def scratch_way(settings: Settings, size: int) -> Way:
    """The recovery of BiDf-MKD and TGR: a fresh generator for each task."""
    stream = fork(settings.seed, "scratch")
    return Way(
        f"from scratch, {settings.recovery_steps} steps",
        lambda teachers: [recover(teacher, settings, size, stream) for teacher in teachers],
    )


def costs_of_a_pass(settings: Settings, teacher: Teacher, size: int, repeats: int = 5) -> dict[str, float]:
    """Seconds of one pass, forward and backward, of generator and teacher on the images of one task."""
    device = teacher.mean.device
    count = teacher.num_classes * settings.images_per_class
    network = Generator(settings.latent_dim, settings.generator_width, size).to(device)
    latent = torch.randn(count, settings.latent_dim, generator=fork(0, "latent")).to(device).requires_grad_()
    images = torch.rand(count, 3, size, size, generator=fork(0, "images")).to(device).requires_grad_()
    passes = {"generator": lambda: network(latent).sum(), "teacher": lambda: teacher(images).sum()}
    return {
        name: median(timed(device, lambda run=run: run().backward())[1] for _ in range(repeats + 1))  # type: ignore[misc]
        for name, run in passes.items()
    }


def held_out(teacher: Teacher, dataset: FewShotDataset) -> tuple[Tensor, Tensor]:
    """Real images of the member's classes that it was not trained on (the last fifth of each), and their labels."""
    parts = [dataset.by_class(name) for name in teacher.class_names]
    parts = [part[round((1 - HELD_OUT) * len(part)) :] for part in parts]
    device = teacher.mean.device
    labels = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    return to_unit(torch.cat(parts)).to(device), labels.to(device)


def student_accuracy(teacher: Teacher, task: Task, real: tuple[Tensor, Tensor], settings: Settings) -> float:
    """Accuracy in percent on real images of a student that saw the task's images and the teacher's answers only."""
    stream = fork(settings.seed, "student", teacher.entry.id)
    size = task.images.shape[-1]
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
        images = random_crop_flip(task.images, stream, padding=settings.shift, flip=settings.flip)
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
    settings = parse(Settings, __doc__, argv)
    torch.set_num_threads(settings.num_threads)
    pool = open_pool(settings.pool, settings.pool_size)
    name = settings.dataset if settings.pool else "glyphs"
    if name == "glyphs":
        settings = replace(settings, flip=False)  # A mirrored glyph may be another glyph.
    pool = pool.to(Accelerator().device)
    size = max(entry.input_size[-1] for entry in pool if entry.input_size)
    members = [pool.load(index) for index in range(min(settings.members, len(pool)))]
    print(
        f"{len(members)} of {len(pool)} members, {settings.images_per_class} images a class, {size} pixels, generator "
        f"{settings.generator_width} wide; {describe_machine(pool.device)}, {settings.num_threads} threads.",
        flush=True,
    )

    ways = [meta_generator_way(settings, pool, size, steps) for steps in (5, 2)] + [scratch_way(settings, size)]
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
    clock = "CPU time of the process" if counts_own_time(pool.device) else "wall clock"
    return report(settings, ways, costs_of_a_pass(settings, members[0], size), teacher_accuracy, clock)


def report(
    settings: Settings, ways: list[Way], costs: dict[str, float], teacher: float | None, clock: str
) -> dict[str, Any]:
    """Print the table and the last line."""
    five, two, scratch = ways
    print(f"{'recovery':28} {'s a task':>9} {'times faster':>13} {'warm-up, s':>11} {'student, %':>11}")
    for way in ways:
        shown = f"{mean(way.accuracies):11.1f}" if way.accuracies else f"{'-':>11}"
        faster = mean(scratch.seconds) / mean(way.seconds)
        print(f"{way.name:28} {mean(way.seconds):9.3f} {faster:13.1f} {way.warmup_seconds:11.1f} {shown}")
    print(f"Seconds are {clock}.")
    print(" ".join(f"One pass, {name}: {1000 * seconds:.1f} ms." for name, seconds in costs.items()))
    if teacher is None:
        print("No --dataset: what the images are good for was not measured.")
    else:
        print(f"The members themselves classify {teacher:.1f} % of the same real images.")
    saved = mean(scratch.seconds) - mean(five.seconds)
    if saved > 0:
        print(f"The warm-up of the 5 steps is paid back after {five.warmup_seconds / saved:.1f} tasks.")
    result = {
        "benchmark": "recovery",
        "ratio": round(mean(scratch.seconds) / mean(five.seconds), 2),
        "baseline": round(mean(scratch.seconds), 6),
        "ours": round(mean(five.seconds), 6),
        "unit": "seconds a task",
        "clock": clock,
        "ratio_two_steps": round(mean(scratch.seconds) / mean(two.seconds), 2),
        "warmup_seconds": round(five.warmup_seconds, 2),
        "student_accuracy": {way.name: round(mean(way.accuracies), 2) for way in ways if way.accuracies},
        "student_accuracies": {way.name: [round(value, 1) for value in way.accuracies] for way in ways},
        "teacher_accuracy": teacher and round(teacher, 2),
        "pass_seconds": {name: round(seconds, 5) for name, seconds in costs.items()},
        "images_per_class": settings.images_per_class,
        "generator_width": settings.generator_width,
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
