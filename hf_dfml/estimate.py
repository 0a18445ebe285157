"""Pool distillation made to measure: its size from the pool, and what it will cost, before it starts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_dfml.networks.info import network_info
from hf_dfml.networks.timm_network import is_model
from hf_dfml.pool import ModelPool, opening
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.settings import options_of
from hf_dfml.utils.progress import duration

PROBED_IMAGES = 8
"""Images of a batch by which the speed of a network is measured."""
IMAGES_OF_A_MEMBER = 200
"""Images recovered at once from a member of many classes, which has fewer of each."""
FEWEST_IMAGES = 4000
"""Training images where they are large."""


class Cost(NamedTuple):
    """What a run is expected to take.

    Attributes:
        seconds: without the evaluation.
        memory: bytes beside those of the program itself.
    """

    seconds: float
    memory: int

    def __str__(self) -> str:
        return f"about {duration(self.seconds)} without the evaluation, and {self.memory / 1e9:.1f} GB of memory"


def fitted_to_pool(config: Any, typed: Mapping[str, Any]) -> dict[str, Any]:
    """Architecture, images and passes of pool distillation for a pool, printed; the method's defaults fit 32 pixels.

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
    values: dict[str, Any] = {"arch": student_of(entries, size)}
    each = values["images_per_class"] = max(1, min(usual["images_per_class"], IMAGES_OF_A_MEMBER // classes))
    recovered = each * sum(entry.num_classes or 0 for entry in entries)
    images = usual["num_images"] * min(1.0, (32 / size) ** 2)
    values["num_images"] = int(min(usual["num_images"], max(FEWEST_IMAGES, images), max(1000, 10 * recovered)))
    values["steps"] = usual["steps"] if size <= 40 else max(4, usual["steps"] // (2 if size <= 100 else 4))
    final = values | dict(typed)
    print(
        f"From the pool: {len(entries)} members of up to {classes} classes at {size} pixels -> --arch {final['arch']} "
        f"--images_per_class {final['images_per_class']} --num_images {final['num_images']} --steps {final['steps']}"
    )
    return values


def answers_only(typed: Mapping[str, Any]) -> bool:
    """Whether a command line names black boxes."""
    return opening.is_service(str(typed.get("pool") or "")) or typed.get("black_box", "none") != "none"


def without_batch_terms(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Of black boxes nothing but answers is known: the terms of an objective that need more are off."""
    return dict.fromkeys(("bn_weight", "tv_weight", "l2_weight"), 0.0) if answers_only(typed) else {}


def student_of(entries: list[PoolEntry], size: int) -> str:
    """The most common architecture that timm builds; else a small one for the size."""
    counts = Counter(entry.architecture for entry in entries if entry.library == "timm" and entry.architecture)
    for architecture, _ in counts.most_common():
        if is_model(architecture):
            return architecture
    return "conv4" if size <= 84 else "resnet18"


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
    memory = 0
    names: set[str] = set()
    for count, entry in _kinds(pool):
        teacher = pool.load(entry)  # type: ignore[arg-type]
        classes = entry.num_classes or 1
        names.update(entry.class_names)
        batch = classes * int(options["images_per_class"])
        forth, back, activations = _speed(teacher, teacher.device, size)
        once = (forth + back) * batch * int(options["recovery_steps"])
        recovery += count * int(options["recoveries"]) * once
        looking += count * forth * images
        memory = max(memory, batch * activations)
        # Each class is moved by the members that know it, one an update.
        recovery += (
            count
            * once
            / int(options["recovery_steps"])
            * int(options.get("joint_rounds") or 0)
            * (int(options.get("joint_updates") or 0) / max(1.0, _members_a_class(pool)))
        )
    forth, back, activations = _speed(student, next(student.parameters()).device, size)
    learning = (forth + back) * images * int(options["steps"])
    memory = max(memory, int(options["batch_size"]) * activations) + 2 * 3 * size * size * images
    return Cost(recovery + looking + learning, memory)


def _kinds(pool: TeacherPool) -> Iterator[tuple[int, PoolEntry]]:
    """One member of each architecture and number of classes, and how many there are."""
    kinds: dict[tuple, list[PoolEntry]] = {}
    for entry in pool:
        kinds.setdefault((entry.architecture, entry.num_classes), []).append(entry)
    for members in kinds.values():
        yield len(members), members[0]


def _members_a_class(pool: TeacherPool) -> float:
    names = [name for entry in pool for name in entry.class_names]
    return len(names) / max(1, len(set(names)))


def _speed(network: Any, device: torch.device, size: int) -> tuple[float, float, int]:
    """Seconds an image of a forward and of a backward pass, and bytes an image that are kept between them."""
    images = torch.full((PROBED_IMAGES, 3, size, size), 0.5, device=device, requires_grad=True)
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    best = (float("inf"), float("inf"))
    was_training = network.training if isinstance(network, nn.Module) else False
    if isinstance(network, nn.Module):
        network.eval()
    for _ in range(2):  # The first one warms up.
        kept.clear()
        started = _now(device)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            total = network(images).sum()
        between = _now(device)
        torch.autograd.grad(total, images)
        best = min(best[0], between - started), min(best[1], _now(device) - between)
    if isinstance(network, nn.Module):
        network.train(was_training)
    return best[0] / PROBED_IMAGES, best[1] / PROBED_IMAGES, sum(kept) // PROBED_IMAGES


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
