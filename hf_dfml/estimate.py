"""What a run will cost, before it starts; and pool distillation made to measure: its size from the pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from hf_dfml.networks.info import network_info
from hf_dfml.pool import ModelPool, opening
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.recovery.information import questions
from hf_dfml.recovery.objective import OF_A_BATCH
from hf_dfml.settings import options_of
from hf_dfml.utils.clock import now
from hf_dfml.utils.memory import bytes_for_backward
from hf_dfml.utils.progress import duration

PROBED_IMAGES = 8
"""Images of a batch by which the speed of a network is measured."""
IMAGES_OF_A_MEMBER = 200
"""Images recovered at once from a member of many classes, which has fewer of each."""
SHRINKING = {
    "num_images": (1000, 0),
    "batch_size": (8, 0),
    "classes_per_member": (5, 0),
    "recovery_memory_gb": (0.2, 1),
    "images_per_class": (1, 0),
    "bank_memory_gb": (0.1, 1),
}
"""Options that the memory depends on: the least value worth proposing, and its decimals."""
LARGE_PIXELS = 100
RECOVERING = frozenset("training_images recovery recovery_steps recoveries joint_rounds joint_updates".split())
"""Options by which a user asks for recovered images."""
LARGE_IMAGES_AT_ONCE = 32
"""Images of a batch of the student where they are large."""
FEWEST_IMAGES = 4000
"""Training images where they are large."""


class Cost(NamedTuple):
    """What a run is expected to take.

    Attributes:
        seconds: without the evaluation; None where it is not estimated.
        memory: bytes beside those of the program itself.
        settings: the options that the memory depends on, and their values.
        needs: the memory with other values of them.
    """

    seconds: float | None
    memory: int
    settings: dict[str, float]
    needs: Callable[[Mapping[str, float]], int]

    def __str__(self) -> str:
        memory = f"{self.memory / 1e9:.1f} GB of memory"
        if self.seconds is None:
            return f"about {memory}"
        return f"about {duration(self.seconds)} without the evaluation, and {memory}"


def fitted_to_pool(config: Any, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Images and passes of pool distillation for a pool, printed; the method's defaults fit 32 pixels.

    Args:
        config: the class of the method's options.
        typed: what was said on the command line.

    Raises:
        FileNotFoundError: if there is no such pool.
    """
    name = str(typed.get("pool") or "")
    if not name or answers_only(typed):
        return {}
    pool = ModelPool.open(name).resolve()
    if typed.get("num_members"):
        pool = pool[: typed["num_members"]]
    entries = [entry for entry in pool if entry.problem is None and entry.input_size and entry.num_classes]
    if not entries:
        return {}  # What is wrong with the pool is said where it is opened.
    usual = {each: option.default for each, option in options_of(config).items()}
    size = max(entry.input_size[-1] for entry in entries if entry.input_size)
    classes = max(entry.num_classes or 0 for entry in entries)
    values: dict[str, Any] = {}
    most = int(typed.get("classes_per_member", usual["classes_per_member"])) or classes
    each = values["images_per_class"] = max(
        1, min(usual["images_per_class"], IMAGES_OF_A_MEMBER // min(classes, most))
    )
    recovered = each * sum(min(most, entry.num_classes or 0) for entry in entries)
    images = usual["num_images"] * min(1.0, (32 / size) ** 2)
    values["num_images"] = int(min(usual["num_images"], max(FEWEST_IMAGES, images), max(1000, 10 * recovered)))
    if size > LARGE_PIXELS:
        values |= {"batch_size": LARGE_IMAGES_AT_ONCE, "joint_rounds": 0}
        if not RECOVERING & typed.keys():
            # Recovery goes forth and back through a member some hundred times an image.
            values["training_images"] = "drawn"
    values["steps"] = usual["steps"] if size <= 40 else max(4, usual["steps"] // (2 if size <= 100 else 4))
    final = values | dict(typed)
    said = " ".join(f"--{name} {final[name]}" for name in values)
    print(f"From the pool: {len(entries)} members of up to {classes} classes at {size} pixels -> {said}")
    return values


def answers_only(typed: Mapping[str, Any]) -> bool:
    """Whether a command line names black boxes."""
    return opening.is_service(str(typed.get("pool") or "")) or typed.get("black_box", "none") != "none"


def without_batch_terms(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Of black boxes nothing but answers is known: the terms of an objective that need more are off."""
    return dict.fromkeys(OF_A_BATCH, 0.0) if answers_only(typed) else {}


def cost_of_distillation(pool: TeacherPool, student: nn.Module, options: Mapping[str, Any]) -> Cost:
    """Time and memory of pool distillation, from the speed of one member of each architecture and of the student.

    Args:
        pool: members whose weights are seen.
        student: the meta-model.
        options: the method's, by name.
    """
    info = network_info(student)
    size, images = info.image_size, int(options["num_images"])
    recovery = looking = 0.0
    member_activations, classes = 0, [entry.num_classes or 1 for entry in pool]
    most, each = int(options["classes_per_member"]), int(options["images_per_class"])
    recovers = options["training_images"] in ("auto", "recovered") and not options["images"]
    asks = options["training_images"] == "drawn" and not options["images"]
    asked = images + (questions(len(pool)) / len(pool) if asks else 0)  # Images, of a member in the mean.
    for count, entry in _kinds(pool):
        teacher = pool.load(entry)  # type: ignore[arg-type]
        batch = min(most or entry.num_classes or 1, entry.num_classes or 1) * each if recovers else 0
        forth, back, activations = _speed(teacher, teacher.device, size)
        once = (forth + back) * batch * int(options["recovery_steps"])
        recovery += count * int(options["recoveries"]) * once
        looking += count * forth * asked
        member_activations = max(member_activations, activations)
        # Each class is moved by the members that know it, one an update.
        recovery += (
            count
            * once
            / int(options["recovery_steps"])
            * int(options.get("joint_rounds") or 0)
            * (int(options.get("joint_updates") or 0) / max(1.0, _members_a_class(pool)))
        )
    forth, back, activations = _speed(student, next(student.parameters()).device, size)
    passes_of_images = int(options["steps"])
    if options["train_student"] in ("head", "beside"):
        passes_of_images, back = 1, 0.0  # The frozen network sees each image once.
    learning = (forth + back) * images * passes_of_images
    pixels, rounds, recoveries = 3 * size * size, int(options["joint_rounds"]), int(options["recoveries"])
    twice = max(1.0, _members_a_class(pool))

    def needs(values: Mapping[str, float]) -> int:
        shown = [min(values["classes_per_member"] or outputs, outputs) if recovers else 0 for outputs in classes]
        names = sum(shown) / twice
        # Pixels and Adam's moments of a round; of a member also the gradient and the cheapest images so far.
        floats = 4 * pixels * each * max(3 * names * bool(rounds), 5 * max(shown) * bool(recoveries))
        passes = min(max(shown) * each * member_activations, values["recovery_memory_gb"] * 1e9)
        kept = pixels * each * (names * rounds + sum(shown) * recoveries) + 2 * pixels * values["num_images"]
        return int(max(values["batch_size"] * activations, floats + passes) + kept)

    names = ("num_images", "batch_size", "classes_per_member", "recovery_memory_gb")
    values = {name: float(options[name]) for name in names} | {"classes_per_member": float(most or max(classes))}
    return Cost(recovery + looking + learning, needs(values), values, needs)


def cost_of_recovery(
    pool: TeacherPool, student: nn.Module, options: Mapping[str, Any], kept: int, *, most: int | None = None
) -> Cost:
    """Memory of a method that recovers `images_per_class` images of all classes of one member after the other.

    Args:
        pool: members whose weights are seen.
        student: the meta-model, of whose size the images are.
        options: the method's, by name.
        kept: bytes of images that the method keeps, at most; see `Method.kept_bytes`.
        most: classes of a member that are recovered at once; None: all.
    """
    size = network_info(student).image_size
    kinds: dict[int, int] = {}  # Bytes for an image of the most demanding member of so many classes.
    for _, entry in _kinds(pool):
        teacher = pool.load(entry)  # type: ignore[arg-type]
        activations, classes = bytes_for_backward(teacher, size, teacher.device), entry.num_classes or 1
        classes = min(classes, most or classes)
        kinds[classes] = max(kinds.get(classes, 0), activations)
    # Of an image itself: its gradient, Adam's moments and the cheapest one so far.
    image = 5 * 4 * 3 * size * size

    def needs(values: Mapping[str, float]) -> int:
        each = values.get("images_per_class", options["images_per_class"])
        bank = min(kept, values["bank_memory_gb"] * 1e9) if "bank_memory_gb" in values else kept
        return int(max(classes * each * (activations + image) for classes, activations in kinds.items()) + bank)

    # Without a bank the images are those of the episodes, which may not be fewer.
    names = ("images_per_class", "bank_memory_gb") if "bank_memory_gb" in options else ()
    values = {name: float(options[name]) for name in names}
    return Cost(None, needs(values), values, needs)


def check_memory(cost: Cost, available: int | None) -> None:
    """Make sure that a run fits into the memory that there is.

    Args:
        cost: of the run.
        available: bytes; None where that is not known.

    Raises:
        ValueError: if it does not; names the setting that would.
    """
    if available is None or cost.memory <= available:
        return
    tries = [
        {name: _smaller(name, value, share / 10) for name, value in cost.settings.items() if name in chosen}
        for chosen in (*([name] for name in cost.settings), list(cost.settings))
        for share in range(9, -1, -1)
    ]
    fitting = [change for change in tries if cost.needs({**cost.settings, **change}) <= available]
    # Alone and as little as possible, if one option is enough.
    fitting.sort(key=lambda change: (len(change), -min(change[name] / cost.settings[name] for name in change)))
    options = " ".join(f"--{name} {value:g}" for name, value in fitting[0].items()) if fitting else ""
    fits = f"set {options}" if fitting else "use a machine with more, or smaller images and members"
    raise ValueError(
        f"The run needs about {cost.memory / 1e9:.1f} GB of memory beside the program itself, and "
        f"{available / 1e9:.1f} GB are available: {fits}."
    )


def _smaller(name: str, value: float, share: float) -> float:
    least, digits = SHRINKING[name]
    return min(value, max(least, round(value * share, digits or None)))


def _kinds(pool: TeacherPool) -> Iterator[tuple[int, PoolEntry]]:
    """One member of each architecture and number of classes, and how many there are."""
    kinds: dict[tuple, list[PoolEntry]] = {}
    for entry in pool:
        kinds.setdefault((entry.architecture, entry.num_classes), []).append(entry)
    for members in kinds.values():
        yield len(members), members[0]


def _members_a_class(pool: TeacherPool) -> float:
    names = [name for entry in pool for name in entry.class_keys]
    return len(names) / max(1, len(set(names)))


def _speed(network: Any, device: torch.device, size: int) -> tuple[float, float, int]:
    """Seconds an image of a forward and of a backward pass, and bytes an image that are kept between them."""
    images = torch.full((PROBED_IMAGES, 3, size, size), 0.5, device=device, requires_grad=True)
    best = (float("inf"), float("inf"))
    was_training = network.training if isinstance(network, nn.Module) else False
    if isinstance(network, nn.Module):
        network.eval()
    for _ in range(2):  # The first one warms up.
        started = now(device)
        with torch.enable_grad():
            total = network(images).sum()
        between = now(device)
        torch.autograd.grad(total, images)
        best = min(best[0], between - started), min(best[1], now(device) - between)
    kept = bytes_for_backward(network, size, device)
    if isinstance(network, nn.Module):
        network.train(was_training)
    return best[0] / PROBED_IMAGES, best[1] / PROBED_IMAGES, kept
