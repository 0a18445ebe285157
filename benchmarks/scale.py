"""How the cost of pool distillation grows with members, classes and image size: seconds and memory of its main parts.

    python benchmarks/scale.py                                      # conv4 members of drawn weights, minutes
    python benchmarks/scale.py --members 10 100 --seconds_a_point 10 --parts joint

One thing grows at a time, from the first value of each. The parts are those of the method:
- `asking`: all members are asked about --images procedural images, and their answers put side by side;
- `joint`: one update of each image of a round of joint recovery, of 10 images for each class name;
- `student`: one step of the student, a batch of 100 images, with a head for every member.

No class is known by two members, which is the most that joint recovery can have to do: with shared names its cost is
that of as many names. Members are folders of drawn weights; reading them is part of the time, listing them is not. Of
members with more than 50 classes joint recovery shows 50, as by default.

Each point is measured in a fresh process that has done the same for one member before. Seconds are those of its CPU
where it has one thread, else the clock's; memory is the most that it holds at a time beyond what it held then (of an
accelerator: what PyTorch has allocated there). A point is left out where those before it say that it would take longer
than --seconds_a_point or more than --memory_gb; a model stands for it: a fixed cost and one for each member, class or
pixel, fitted to what was measured by least squares of relative errors.

The last line is a JSON object; `ratio` is how many times more the most members that were measured take to be asked
than the fewest.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from measuring import Measurement, device_of, run, table, timed, write_section
from pool_scale import peak, reset_peak
from safetensors.torch import save_file
from teachers import Options as TeacherOptions
from teachers import drawn_member

from hf_dfml.methods import pool_distillation
from hf_dfml.methods.base import Context
from hf_dfml.methods.pool_distillation import PoolDistillation, PoolDistillationConfig
from hf_dfml.methods.pool_images import PoolImages, PoolImagesConfig, pool_images, recover_round
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool
from hf_dfml.settings import option
from hf_dfml.utils.pictures import Growth, growth_curves
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork

PARTS = {
    "asking": "asking the members about {images} images",
    "joint": "an update of joint recovery",
    "student": "a step of the student",
}
AXES = {"members": "member", "classes": "class", "image_size": "pixel"}
"""What grows, and what one more of it is."""
LABELS = {"members": "members", "classes": "classes of each member", "image_size": "height and width of images"}
QUANTITIES = {"seconds": "seconds", "megabytes": "MB of memory"}
BATCHES = 3
"""Steps of the student that are timed together."""
DRAWN = 8
"""Members whose weights are drawn; the files of the others are the same, under other names."""


class Options(Measurement):
    """What grows, and where it ends."""

    members: list[int] = option([10, 100, 1000, 5000], "Members of a pool.", least=1)
    classes: list[int] = option([5, 20, 100, 500], "Classes of each member.", least=2)
    image_sizes: list[int] = option([32, 64, 128, 224], "Height and width of images.", least=16)
    parts: list[str] = option(list(PARTS), "What is measured.", choices=PARTS)
    network: str = option("conv4", "Architecture of the members and of the student.")
    images: int = option(100, "Images that members are asked about.", least=1)
    seconds_a_point: float = option(30.0, "Points that would take longer are left to the model.", above=0)
    memory_gb: float = option(3.0, "Points that would take more memory likewise.", above=0)
    picture: str = option("", "PNG file of the six panels; none by default.")

    @property
    def values(self) -> dict[str, list[int]]:
        """Of what grows, from the value that it has while another grows."""
        return {"members": self.members, "classes": self.classes, "image_size": self.image_sizes}


@dataclass(frozen=True)
class Point:
    """What was measured.

    Attributes:
        seconds: that it took.
        megabytes: of memory that it took at most.
    """

    seconds: float
    megabytes: float


@dataclass(frozen=True)
class Model:
    """A cost that grows along a line.

    Attributes:
        fixed: what it is where nothing grows.
        each: what one member, one class or one pixel adds.
        deviation: the largest relative error at a point that was measured; None where there are no more points than
            parts of the model.
    """

    fixed: float
    each: float
    deviation: float | None

    def at(self, amount: float) -> float:
        """The cost of an amount."""
        return self.fixed + self.each * amount


Found = Mapping[str, Mapping[str, Mapping[int, Point]]]
"""By axis, part, and the value of what grows."""
Models = Mapping[str, Mapping[str, Mapping[str, Model]]]
"""By axis, part and quantity."""
TIME = {"s": 1.0, "ms": 1e-3, "µs": 1e-6, "ns": 1e-9}
MEMORY = {"MB": 1.0, "kB": 1e-3, "bytes": 1e-6}


def fit(points: Sequence[tuple[float, float]]) -> Model:
    """The line through points (amount, cost) of the least squares of relative errors; neither part is negative."""
    amounts, costs = torch.tensor(points, dtype=torch.float64).T
    relative = torch.stack([torch.ones_like(costs), amounts], 1) / costs[:, None]
    target = torch.ones_like(costs)[:, None]
    tries = []
    for kept in ([0, 1], [1], [0]) if len(points) > 1 else ([1],):
        parts = torch.zeros(2, 1, dtype=torch.float64)
        parts[kept] = torch.linalg.lstsq(relative[:, kept], target).solution
        if float(parts.min()) >= 0:
            errors = (relative @ parts - target).abs()
            deviation = float(errors.max()) if len(points) > len(kept) else None
            model = Model(float(parts[0]), float(parts[1]), deviation)
            tries.append((float(errors.square().sum()), model))
    return min(tries, key=lambda each: each[0])[1]


def write_pool(folder: Path, members: int, settings: Options, classes: int, size: int) -> ModelPool:
    """A folder of members none of whose classes has the name of another's."""
    drawn = TeacherOptions(network=settings.network, image_size=size, seed=settings.seed)
    for index in range(members):
        (folder / f"member-{index:05d}").mkdir(parents=True)
        file = folder / f"member-{index:05d}" / "model.safetensors"
        if index < DRAWN:
            save_file(drawn_member(drawn, index, classes).network.state_dict(), file)
        else:
            os.link(folder / f"member-{index % DRAWN:05d}" / "model.safetensors", file)
        config = {
            "architecture": settings.network,
            "num_classes": classes,
            "label_names": [f"class {way} of {index}" for way in range(classes)],
            "pretrained_cfg": {"input_size": [3, size, size], "mean": [0.5] * 3, "std": [0.25] * 3},
            "model_args": {"img_size": size} if settings.network.startswith("conv4") else {},
        }
        (file.parent / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return ModelPool.from_dir(folder)


def work_of(part: str, pool: ModelPool, settings: Options, size: int) -> tuple[Callable[[], Any], int]:
    """A part of pool distillation with a pool, and how often it does what is counted."""
    context = Context(fork(settings.seed, "run"), pool.device, settings.seed)
    config = PoolImagesConfig(
        training_images="procedural", num_images=settings.images, compile="never", joint_updates=1
    )
    if part == "asking":
        return partial(pool_images, pool, config, size, context), 1
    if part == "joint":
        return partial(recover_round, pool, config, size, context, 0), 1
    outputs, stream = sum(entry.num_classes or 0 for entry in pool), fork(settings.seed, "answers")
    distillation = PoolDistillationConfig(start="random")
    count = BATCHES * distillation.batch_size
    images = torch.randint(256, (count, 3, size, size), generator=stream, dtype=torch.uint8).to(pool.device)
    # What is learnt does not matter to what it costs: all members say that all of their classes are as probable.
    answers = torch.full((count, outputs), len(pool) / outputs, dtype=torch.float16, device=pool.device)
    network = create_network(settings.network, num_classes=5, image_size=size, generator=stream).to(pool.device)
    method = PoolDistillation(distillation, network)
    given = PoolImages(images, answers, {"images": images[:0], "titles": []})
    with patch.object(pool_distillation, "pool_images", lambda *_: given):
        method.setup(pool, context)
    return partial(method.step, context), BATCHES


def measure_here(pipe: Connection, settings: Options, part: str, members: int, classes: int, size: int) -> None:
    """Send the seconds and megabytes of a point, measured in this process."""
    torch.set_num_threads(settings.num_threads)
    device = device_of(settings.device)
    with TemporaryDirectory() as folder:
        pool = write_pool(Path(folder), members, settings, classes, size).to(device)
        warm, _ = work_of(part, pool[:1], settings, size)
        warm()
        del warm
        before = used(device)
        work, times = work_of(part, pool, settings, size)
        _, seconds = timed(device, work)
        # Pages are counted in kilobytes: of less than 0.1 MB nothing is known.
        pipe.send((seconds / times, max(0.1, (most_used(device) - before) / 1e6)))


def used(device: torch.device) -> float:
    """Bytes in use; the most that is used is counted from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # What the warm-up has freed would hide as much of what comes.
    return reset_peak()


def most_used(device: torch.device) -> float:
    """The most bytes since `used`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak()


def measure_apart(settings: Options, part: str, members: int, classes: int, size: int) -> Point:
    """A point, in a process of its own, which is a copy of one that has imported everything and done nothing."""
    context = multiprocessing.get_context("forkserver")
    mine, its = context.Pipe()
    process = context.Process(target=measure_here, args=(its, settings, part, members, classes, size))
    process.start()
    its.close()  # So that a process that dies is noticed.
    try:
        return Point(*mine.recv())
    except EOFError:
        raise SystemExit(
            f"The process of {part}, {members} members of {classes} classes at {size} pixels died."
        ) from None
    finally:
        process.join()


def amount(axis: str, part: str, value: int) -> float:
    """What a cost is a line in: members, the classes that are shown, pixels of an image."""
    if axis == "image_size":
        return float(value**2)
    shown = PoolImagesConfig().classes_per_member
    return float(min(value, shown) if axis == "classes" and part == "joint" else value)


def fits(settings: Options, axis: str, part: str, found: Mapping[int, Point], value: int) -> bool:
    """Whether the next point is within the limits, by the points before it."""
    if not found:
        return True
    seconds, megabytes = (line(axis, part, found, quantity).at(amount(axis, part, value)) for quantity in QUANTITIES)
    return seconds <= settings.seconds_a_point and megabytes <= 1000 * settings.memory_gb


def line(axis: str, part: str, found: Mapping[int, Point], quantity: str) -> Model:
    """The model of seconds or megabytes along an axis; of a single point it has no fixed part."""
    seconds = quantity == "seconds"
    points = [(amount(axis, part, value), at.seconds if seconds else at.megabytes) for value, at in found.items()]
    return fit(points)


def measure_all(settings: Options) -> dict[str, dict[str, dict[int, Point]]]:
    """For each axis and part the points that are within the limits, by the value of what grows."""
    values = settings.values
    base = {axis: of[0] for axis, of in values.items()}
    known: dict[tuple, Point] = {}
    found: dict[str, dict[str, dict[int, Point]]] = {axis: {part: {} for part in settings.parts} for axis in AXES}
    for part in settings.parts:
        for axis, of in values.items():
            for value in sorted(of):
                if not fits(settings, axis, part, found[axis][part], value):
                    break
                at = (part, *(base | {axis: value}).values())
                if at not in known:
                    known[at] = measure_apart(settings, *at)
                    print(*at, f"{known[at].seconds:.3f} s", f"{known[at].megabytes:.0f} MB", sep="  ", flush=True)
                found[axis][part][value] = known[at]
    return found


def measure(settings: Options, device: torch.device) -> dict[str, Any]:
    """All points, their models, the tables, the picture, and the object of the last line."""
    found = measure_all(settings)
    models = {
        axis: {part: {name: line(axis, part, points, name) for name in QUANTITIES} for part, points in parts.items()}
        for axis, parts in found.items()
    }
    about = (
        f"{settings.network} members of drawn weights; what does not grow is {settings.members[0]} members of "
        f"{settings.classes[0]} classes at {settings.image_sizes[0]} pixels. No two members know the same class. "
        "Reading members is part of the time; memory is what a process holds at most beyond what it held after a "
        "warm-up. In parentheses: by the model. "
        f"{describe_machine(device)}."
    )
    limit = PoolImagesConfig().classes_per_member
    run_of = PoolDistillationConfig()
    images, steps = run_of.training_set.mixing.num_images, run_of.steps
    explained = (
        "The models, fitted to the measured points, are a fixed cost and one for each member, class or pixel; beside "
        "them stands the largest relative error at a measured point. Of a member of more classes joint recovery shows "
        f"{limit}. A whole run asks about {images:,} images, makes {run_of.training_set.joint_rounds} x "
        f"{run_of.training_set.joint_updates} updates and {steps * images // run_of.batch_size:,} steps; its answers "
        "take 2 bytes for each image and class of a member. Loaded members are kept up to 2 GB."
    )
    shown = table(header(settings), list(rows(settings, found, models)))
    said = table("what grows | part | seconds | error | memory | error", list(lines(models)))
    print(shown, said, sep="\n\n")
    pictured: list[str] = []
    if settings.picture:
        draw(settings, found, models)
        pictured.append(f"![Cost against members, classes and image size](pictures/{Path(settings.picture).name})")
    title = "How the cost of pool distillation grows"
    write_section(settings.output_dir, "scale", title, about, *pictured, shown, explained, said)
    part = settings.parts[0]
    points = found["members"][part]
    fewest, most = min(points), max(points)
    return {
        "benchmark": "scale",
        "ratio": round(points[most].seconds / points[fewest].seconds, 2),
        "baseline": round(points[fewest].seconds, 4),
        "ours": round(points[most].seconds, 4),
        "unit": f"seconds, {part}, {most} members against {fewest}",
        "measured": {
            axis: {part: {str(value): asdict(point) for value, point in of.items()} for part, of in parts.items()}
            for axis, parts in found.items()
        },
        "models": {
            axis: {part: {name: asdict(model) for name, model in of.items()} for part, of in parts.items()}
            for axis, parts in models.items()
        },
    }


def header(settings: Options) -> str:
    """Of the table of points."""
    names = [PARTS[part].format(images=settings.images) for part in settings.parts]
    return " | ".join(["what grows", "to", *(f"{name}, s | MB" for name in names)])


def rows(settings: Options, found: Found, models: Models) -> Iterator[list[str]]:
    """Every value of what grows, with what was measured or, in parentheses, is the model's."""
    for axis, values in settings.values.items():
        for value in sorted(values):
            cells = [LABELS[axis], f"{value:,}"]
            for part in settings.parts:
                point = found[axis][part].get(value)
                if point:
                    cells += [f"{point.seconds:.3g}", f"{point.megabytes:,.0f}"]
                else:
                    of = models[axis][part]
                    seconds, megabytes = (of[name].at(amount(axis, part, value)) for name in QUANTITIES)
                    cells += [f"({seconds:.3g})", f"({megabytes:,.0f})"]
            yield cells


def lines(models: Models) -> Iterator[list[str]]:
    """The models in words."""
    for axis, parts in models.items():
        for part, of in parts.items():
            cells = [LABELS[axis], part]
            for name, units in (("seconds", TIME), ("megabytes", MEMORY)):
                each = f"{in_units(of[name].each, units)} a {AXES[axis]}"
                off = of[name].deviation
                cells += [f"{in_units(of[name].fixed, units)} + {each}", "-" if off is None else f"{100 * off:.0f} %"]
            yield cells


def in_units(value: float, units: Mapping[str, float]) -> str:
    """In the largest unit of which it is one or more."""
    name = next((name for name, size in units.items() if value >= size), next(iter(units)))
    return f"{value / units[name]:.3g} {name}"


def draw(settings: Options, found: Found, models: Models) -> None:
    """Seconds above, memory below."""
    panels = []
    for name, label in QUANTITIES.items():
        for axis, values in settings.values.items():
            measured, model = {}, {}
            for part in settings.parts:
                of, title = models[axis][part][name], PARTS[part].format(images=settings.images)
                measured[title] = [(value, asdict(point)[name]) for value, point in found[axis][part].items()]
                model[title] = [(value, of.at(amount(axis, part, value))) for value in sorted(values)]
            panels.append(Growth("", LABELS[axis], label if axis == "members" else "", measured, model))
    growth_curves(panels, settings.picture)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    return run(Options, measure, argv, __doc__)


if __name__ == "__main__":
    main()
