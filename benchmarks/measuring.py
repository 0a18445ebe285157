"""What the scripts of this folder share: their options, clocks, the convolution peak, plain networks, sections."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from math import prod
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from hf_dfml.arguments import parse_into
from hf_dfml.networks.conv4 import Conv4
from hf_dfml.pool import ModelPool
from hf_dfml.pool.building.build import build_pool
from hf_dfml.pool.building.training import PoolRecipe
from hf_dfml.settings import Settings, option
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.provenance import this_command

GLYPHS = Path("pools/benchmark-glyphs")
Device = Literal["auto", "cpu", "cuda"]
ON = "Where: `cpu`, `cuda`, or `auto`: an accelerator where there is one."
Result = TypeVar("Result")


class Measurement(Settings):
    """What the options of every measurement have in common."""

    seed: int = option(0, "Seed of everything random.")
    num_threads: int = option(1, "CPU threads.", least=1)
    device: Device = option("auto", ON)
    output_dir: str = option("", "Where its section of docs/benchmarks.md goes; nowhere by default.")


Chosen = TypeVar("Chosen", bound=Measurement)


def run(
    kind: type[Chosen],
    measure: Callable[[Chosen, torch.device], dict[str, Any]],
    argv: Sequence[str] | None,
    description: str | None,
) -> dict[str, Any]:
    """Measure as a command line says, print the object of the last line, and give it.

    Args:
        kind: the script's options.
        measure: from options and the device to that object; runs on as many threads as they say.
        argv: arguments without the program; those of this process by default.
        description: of the script, for `--help`.
    """
    (settings,) = parse_into([kind], argv, description)
    before = torch.get_num_threads()
    torch.set_num_threads(settings.num_threads)
    try:
        result = measure(settings, device_of(settings.device))
    finally:
        torch.set_num_threads(before)
    print(json.dumps(result))
    return result


def device_of(name: Device) -> torch.device:
    """The device that `--device` names.

    Raises:
        SystemExit: for `cuda` where PyTorch finds none.
    """
    device = Accelerator(cpu=name == "cpu").device
    if name == "cuda" and device.type != "cuda":
        raise SystemExit("--device cuda: PyTorch finds no CUDA device on this machine; leave --device out.")
    return device


def open_pool(pool: str, members: int = 8) -> ModelPool:
    """The usable members of the pool that was named, or the default one: `members` classifiers of glyphs."""
    if pool:
        return ModelPool.open(pool).usable()
    return build_pool("glyphs", output=GLYPHS, num_models=members, recipe=PoolRecipe.fast(flip=False))


def timed(device: torch.device, work: Callable[[], Result]) -> tuple[Result, float]:
    """The result of `work`, and its seconds: of this process where one CPU thread does it all, else by the clock."""
    started = now(device)
    result = work()
    return result, now(device) - started


def now(device: torch.device) -> float:
    """Seconds of the clock of `timed`, when an accelerator has done what it was given."""
    wait(device)
    return time.process_time() if counts_own_time(device) else time.perf_counter()


def counts_own_time(device: torch.device) -> bool:
    """Whether the seconds are those of this process, which other work on the machine hardly changes."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def wait(device: torch.device) -> None:
    """Until an accelerator has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _OneModule(nullcontext):
    """In place of torch's tracker of modules, which fails where `autograd.grad` asks for the gradient of an input."""

    parents = ("Global",)


def _of_convolution_backward(
    grad: Sequence[int], images: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any
) -> int:
    """As of the pass forward for each gradient; torch's own formula counts that of a grouped weight once a group."""
    *_, transposed, _, _, (of_images, of_weight, _) = rest
    return 2 * prod(images if transposed else grad) * prod(weight[1:]) * (of_images + of_weight)


def operations(work: Callable[[], Any]) -> float:
    """Floating-point operations of the convolutions and matrix products of `work`, as torch's counter has them."""
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _of_convolution_backward}
    )
    counter.mod_tracker = _OneModule()  # type: ignore[assignment]
    with counter:
        work()
    return counter.get_total_flops()


@torch.no_grad()
def convolution_peak(device: torch.device, seconds: float = 0.5) -> float:
    """Operations a second of a 3x3 convolution whose data stays in the cache of a CPU, the best of many runs."""
    count, channels, size = (4 * torch.get_num_threads() if device.type == "cpu" else 512), 64, 32
    images = torch.randn(count, channels, size, size, device=device).to(memory_format=torch.channels_last)
    kernel = torch.randn(channels, channels, 3, 3, device=device).to(memory_format=torch.channels_last)
    times: list[float] = []
    while sum(times) < seconds:
        times.append(timed(device, lambda: F.conv2d(images, kernel, padding=1))[1])
    return 2 * images.numel() * channels * 9 / min(times)


def plain_network(network: nn.Module) -> nn.Module:
    """A copy without anything that makes it fast: conv4 in the published order, ReLU before pooling."""
    plain = copy.deepcopy(network)
    if isinstance(plain, Conv4):
        plain.blocks = nn.Sequential(
            *(nn.Sequential(block.conv, block.bn, nn.ReLU(), nn.MaxPool2d(2)) for block in plain.blocks)
        )
    return plain


def time_shares(device: torch.device, work: Callable[[], Any]) -> dict[str, float]:
    """Shares of a CPU's time in convolutions and matrix products, batch norm, all else; nothing on an accelerator."""
    if device.type != "cpu":
        return {}
    kinds = {"convolutions and matrix products": ("conv", "mm"), "batch norm": ("batch_norm",)}
    spent = dict.fromkeys([*kinds, "all else"], 0.0)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    for event in profiler.key_averages():
        kind = next((kind for kind, parts in kinds.items() if any(part in event.key for part in parts)), "all else")
        spent[kind] += event.self_cpu_time_total
    return {kind: round(time / sum(spent.values()), 3) for kind, time in spent.items()}


def write_section(output_dir: str, name: str, title: str, *paragraphs: str) -> None:
    """`output_dir/name.md`, a section of `docs/benchmarks.md` with its command; nothing where no folder was named.

    Args:
        output_dir: the folder, or nothing.
        name: of the script.
        title: of the section.
        paragraphs: of the section, which are wrapped; a table is one of them.
    """
    if output_dir:
        target = Path(output_dir) / f"{name}.md"
        wrapped = (text if text.startswith("|") else fill(text, 119, break_on_hyphens=False) for text in paragraphs)
        # As it is typed in a clone, whatever folder the sections are collected in.
        _, _, options = this_command().partition(f"{name}.py")
        typed = f"python benchmarks/{name}.py{options.partition(' --output_dir')[0]}"
        command = f"```bash\n{typed}\n```"
        atomic_write(target, "\n\n".join([f"## {title}", *wrapped, command]) + "\n")
        print(f"Wrote {target}.", flush=True)


def table(header: str, rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; `header` has its names between vertical bars."""
    lines = [f"| {header} |", "|" + "---|" * (header.count("|") + 1)]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])
