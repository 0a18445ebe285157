"""The same work by one process and by two, one thread each, side by side in one run: time, and memory of a process.

    python benchmarks/scaling.py                                     # two processes on CPUs, a small pool of glyphs
    python benchmarks/scaling.py --processes 4 --output_dir runs/benchmarks
    accelerate launch --multi_gpu benchmarks/scaling.py --generator_width 64 --recovery_steps 200     # as many as GPUs

Three pieces of work, each done in turns by the first process alone and by all of them together:
- `step`: of TGR: recover a task from each of four members, distil from them, replay episodes with MAML;
- `protocol`: episodes that a network is fine-tuned for, one thread each;
- `answers`: what all members answer, which pool distillation learns from.

A ratio of times on the clock needs cores that nothing else uses. Beside it stands the ratio of CPU times, of the one
process to the busiest of all, which other work on the machine hardly changes and communication does not count in: it
is what the division itself allows. Both ways end in the same weights, which is checked.

The last line is a JSON object; `ratio` is that of `step`. With --output_dir the table is written to `scaling.md`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator
from measuring import GLYPHS, open_pool, table, wait, write_section

from hf_dfml.arguments import parse_into
from hf_dfml.data import load_dataset
from hf_dfml.evaluation import EvaluationProtocol, evaluate
from hf_dfml.methods.base import Context
from hf_dfml.methods.tgr import TGR, TGRConfig
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool
from hf_dfml.pool.asking import answers_of
from hf_dfml.settings import Settings, option
from hf_dfml.utils.processes import ALONE, Processes
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork

Work = Callable[[Processes], Any]


class Options(Settings):
    """The pool, and how much of each work is done."""

    pool: str = option("", f"The teachers; by default glyph members, built in {GLYPHS}.")
    processes: int = option(2, "Processes to compare with one, on CPUs.", least=1)
    repeats: int = option(3, "Times that each work is done by one and by all.")
    recovery_steps: int = option(4, "Steps of a recovery by a generator (200 in the paper).", least=1)
    generator_width: int = option(16, "Channels of the generator (64 in the paper).", least=1)
    images_per_class: int = option(20, "Images of a class in a recovery.", least=1)
    replay_batches: int = option(2, "Batches of 16 episodes that are replayed in a step.")
    episodes: int = option(40, "Episodes of the evaluation (5-way 5-shot, 10 steps).", least=2)
    images: int = option(1000, "Images that the members are asked about.")
    seed: int = option(0, "Seed of everything random.")
    output_dir: str = option("", "Where `scaling.md` goes; nowhere by default.")


@dataclass
class Times:
    """Seconds of one work, repeat by repeat: on the clock, and of the busiest process's CPU."""

    one: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)
    one_cpu: list[float] = field(default_factory=list)
    all_cpu: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """How many times faster all are."""
        return median(self.one) / median(self.all)

    @property
    def cpu_ratio(self) -> float:
        """The same of CPU times."""
        return median(self.one_cpu) / median(self.all_cpu)


def timed(work: Work, processes: Processes, *, together: bool) -> tuple[float, float]:
    """Seconds on the clock and of the busiest process's CPU, of all processes or of the main one alone."""
    processes.first(None)  # All begin at once.
    started, began = time.perf_counter(), time.process_time()
    if together:
        work(processes)
    elif processes.is_main:
        work(ALONE)
    spent = time.process_time() - began
    wait(processes.device)
    seconds = time.perf_counter() - started
    return seconds, max(processes.map(lambda _: spent, range(processes.count)))


def compare(work: Work, processes: Processes, repeats: int) -> Times:
    """Do it by turns, so that what else the machine does falls on both; the first turn of each is not counted."""
    times = Times()
    for repeat in range(repeats + 1):
        for together, clock, cpu in ((False, times.one, times.one_cpu), (True, times.all, times.all_cpu)):
            seconds, spent = timed(work, processes, together=together)
            if repeat:
                clock.append(seconds)
                cpu.append(spent)
    return times


def works(settings: Options, pool: ModelPool, processes: Processes) -> tuple[dict[str, Work], dict[bool, TGR]]:
    """The pieces of work by name; and the method as the main process runs it alone (False) and as all run it."""
    size = max(entry.input_size[-1] for entry in pool if entry.input_size)
    config = TGRConfig(
        grouping="none",
        recovery_steps=settings.recovery_steps,
        generator_width=settings.generator_width,
        images_per_class=settings.images_per_class,
        flip=False,
        replay_max_batches=settings.replay_batches,
        replay_patience=settings.replay_batches,
    )

    def network() -> torch.nn.Module:
        stream = fork(settings.seed, "network")
        return create_network("conv4", num_classes=5, image_size=size, generator=stream).to(pool.device)

    methods = {together: TGR(config, network()) for together in (False, True)}
    contexts = {together: Context(fork(settings.seed, "training"), pool.device) for together in methods}
    for together, method in methods.items():
        method.setup(pool, contexts[together])

    def step(of: Processes) -> None:
        together = of is processes
        contexts[together].processes = of
        methods[together].step(contexts[together])

    protocol = EvaluationProtocol(shots=[5], episodes=settings.episodes, split="validation")
    dataset = load_dataset("glyphs", "validation", image_size=size)
    images = torch.randint(256, (settings.images, 3, size, size), generator=fork(0), dtype=torch.uint8)
    return {
        "step": step,
        "evaluation": lambda of: evaluate(
            network(), dataset, protocol, method="scaling", chunk_size=2, progress=False, processes=of
        ),
        "answers": lambda of: of.map(partial(answers_of, images=images.to(pool.device)), list(pool.stream())),
    }, methods


def measure(settings: Options) -> dict[str, Any]:
    """What each of the processes does."""
    torch.set_num_threads(1)
    imports = peak_memory()
    processes = Processes(Accelerator())
    pool = open_pool(settings.pool).to(processes.device)
    pieces, methods = works(settings, pool, processes)
    times = {name: compare(work, processes, settings.repeats) for name, work in pieces.items()}
    alone, together = (list(methods[way].model.parameters()) for way in (False, True))
    peaks = processes.map(lambda _: peak_memory(), range(processes.count))
    if not processes.is_main:
        return {}
    difference = max(float((one - other).detach().abs().max()) for one, other in zip(alone, together, strict=True))
    return report(settings, processes, times, peaks, imports, difference)


def peak_memory() -> float:
    """The most that this process has held so far, in MB (as Linux counts)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(
    settings: Options,
    processes: Processes,
    times: dict[str, Times],
    peaks: list[float],
    imports: float,
    difference: float,
) -> dict[str, Any]:
    """Print the table and the last line."""
    count = processes.count
    shown = table(
        f"work | 1 process, s | {count} processes, s | times faster | by CPU time",
        [
            (name, *(f"{x:.2f}" for x in (median(time.one), median(time.all), time.ratio, time.cpu_ratio)))
            for name, time in times.items()
        ],
    )
    notes = (
        f"A pool of {settings.pool or 'glyphs'}, one thread a process, medians of "
        f"{settings.repeats}. Peak memory: {', '.join(f'{peak:.0f} MB' for peak in peaks)}, of which a process has "
        f"{imports:.0f} MB before it does anything; the first one holds the run that it makes alone as well. Largest "
        f"difference of a weight after {settings.repeats + 1} steps by one and by {count}: {difference:g}. "
        f"{describe_machine(processes.device)} by each."
    )
    print(shown, notes, sep="\n\n", flush=True)
    write_section(settings.output_dir, "scaling", f"{count} processes against one", notes, shown)
    result = {
        "benchmark": "scaling",
        "ratio": round(times["step"].ratio, 2),
        "baseline": round(median(times["step"].one), 4),
        "ours": round(median(times["step"].all), 4),
        "unit": "seconds a step of TGR",
        "processes": count,
        "ratios": {name: round(time.ratio, 2) for name, time in times.items()},
        "cpu_ratios": {name: round(time.cpu_ratio, 2) for name, time in times.items()},
        "peak_mb": [round(peak) for peak in peaks],
        "imports_mb": round(imports),
        "largest_difference": difference,
    }
    print(json.dumps(result), flush=True)
    return result


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line; starts the processes where none was started."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    (settings,) = parse_into([Options], arguments, __doc__)
    if "RANK" in os.environ:
        return measure(settings)
    open_pool(settings.pool)  # Built once, if at all.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(settings.processes)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", __file__, *arguments]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    to_answers = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    print(to_answers, end="")
    return json.loads(to_answers.splitlines()[-1])


if __name__ == "__main__":
    main()
