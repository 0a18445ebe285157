"""What a method's whole schedule would take: the first steps of a preset, some after its warm-up, and a projection.

    python benchmarks/schedule.py                                       # FREE_5 with the paper's schedule, a minute
    python benchmarks/schedule.py --method tgr --size paper --seconds 300 --pool pools/cifar-fs

The method is that of `hf-dfml train METHOD --preset SIZE`, with --options in place of the preset's, on the pool's
members, in float32; validation, checkpoints and the evaluation are left out. Steps of the warm-up and steps after it
get half of --seconds each, and one step at least; where there are more, the first of a kind warms up and is not
counted. Seconds are those of the process where it has one CPU thread, and else the clock's. The last line is a JSON
object; `ratio` is the share of the schedule that was measured, `baseline` the seconds of the whole, `ours` those that
were measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch
from measuring import GLYPHS, Measurement, open_pool, run, table, timed, write_section

from hf_dfml.arguments import parse
from hf_dfml.methods.base import Context, Method
from hf_dfml.methods.catalogue import METHODS, find_method
from hf_dfml.networks import create_network
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import flat, option
from hf_dfml.utils.progress import duration
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork


class Options(Measurement):
    """The schedule, and how much of it is run."""

    method: str = option("free", "Whose schedule.", choices=[name.replace("_", "-") for name in METHODS])
    size: str = option("paper", "Preset of the method: tiny, small, cpu, gpu, paper, ...")
    options: list[str] | None = option(None, "Options in place of the preset's, NAME=VALUE each.")
    pool: str = option("", f"The teachers; by default glyph members, built in {GLYPHS}.")
    members: int = option(8, "Members of the default pool.", least=1)
    network: str = option("conv4", "Architecture of the meta-model.")
    seconds: float = option(60.0, "Time on the clock for the steps.", above=0)


def seconds_of_steps(method: Method, context: Context, steps: range, budget: float) -> list[float]:
    """Seconds of each of the first of `steps`, as many as `budget` seconds on the clock allow, one at least."""
    spent: list[float] = []
    end = time.monotonic() + budget
    for step in steps:
        if spent and time.monotonic() > end:
            break
        context.step = step
        spent.append(timed(context.device, lambda: method.step(context))[1])
    return spent


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    return run(Options, measure, argv, __doc__)


def measure(settings: Options, device: torch.device) -> dict[str, Any]:
    """Some steps of each kind, the table, and the object of the last line."""
    pool = open_pool(settings.pool, settings.members).to(device)
    kind = find_method(settings.method)
    changes = settings.options or []
    words = ["--preset", settings.size, *(f"--{text}" for text in changes)]
    config, run_config = parse(kind, RunConfig, words, program="schedule.py")
    size = max(entry.input_size[-1] for entry in pool if entry.input_size)
    stream = fork(settings.seed, "network")
    network = create_network(settings.network, num_classes=run_config.ways, image_size=size, generator=stream)
    method = kind(kind.config_for(config, pool), network.to(device))
    context = Context(fork(settings.seed, "training"), device, settings.seed)
    _, setup = timed(device, lambda: method.setup(pool, context))
    warmup = min(flat(config).get("warmup", 0), method.num_steps)
    kinds = {"warm-up": range(warmup), "after it": range(warmup, method.num_steps)}
    kinds = {name: steps for name, steps in kinds.items() if steps}
    rows, whole, measured, done = [["setup", "1", "1", f"{setup:.2f}", duration(setup)]], setup, setup, 0
    each: dict[str, float] = {}
    for name, steps in kinds.items():
        spent = seconds_of_steps(method, context, steps, settings.seconds / len(kinds))
        each[name] = mean(spent[1:] or spent)
        whole += len(steps) * each[name]
        measured += sum(spent)
        done += len(spent)
        rows.append([name, f"{len(steps)}", f"{len(spent)}", f"{each[name]:.3f}", duration(len(steps) * each[name])])
        print(*rows[-1], sep=" | ", flush=True)
    changed = f" ({', '.join(changes)})" if changes else ""
    about = (
        f"{method.name}, preset {settings.size}{changed}, {len(pool)} members at {size} pixels, in float32. Of "
        f"{method.num_steps} steps {done} were run; the whole would take {duration(whole)} without validation and "
        f"evaluation. {describe_machine(device)}."
    )
    shown = table("part | steps of the schedule | measured | s a step | the whole of it", rows)
    print(about, shown, sep="\n")
    write_section(settings.output_dir, "schedule", f"The schedule of {method.name}", about, shown)
    return {
        "benchmark": "schedule",
        "ratio": round(measured / whole, 5),
        "baseline": round(whole, 2),
        "ours": round(measured, 2),
        "unit": "seconds",
        "steps": method.num_steps,
        "measured_steps": done,
        "setup": round(setup, 3),
        "seconds_a_step": {name: round(value, 4) for name, value in each.items()},
    }


if __name__ == "__main__":
    main()
