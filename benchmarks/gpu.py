"""All that is worth measuring on an accelerator within some minutes, the most valuable first.

    python benchmarks/gpu.py --budget_minutes 8 --output_dir runs/gpu
    python benchmarks/gpu.py --device cpu --quick true --output_dir runs/gpu-quick      # to see that it runs, minutes

It needs no network and no data: images are the embedded glyphs, members are built of them or given (--pool). Each part
is a script of this folder in a process of its own, which compares both sides in turns on the device: recovery, replay
of second order, the evaluation, asking members, a whole pool distillation, and as much of FREE_5 with the paper's
schedule as the rest of the budget holds, with the projected time of the whole.

A part is left out, with a sentence, where what is left of the budget is less than the time that it may take, and
stopped when it has taken that. After each part gpu.json and gpu.md, which is fit for docs/results, are written to
--output_dir. The same command later goes on with what gpu.json does not have, with a budget of its own. The last line
is a JSON object; `ratio` is that of the first part that was measured.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measuring import ON, Device, device_of, open_pool, table

from hf_dfml.arguments import parse_into
from hf_dfml.settings import Settings, option
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.provenance import describe_machine, scrub_command, this_command

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Part:
    """A script and how it is called.

    Attributes:
        script: its name.
        words: its arguments.
        quick: the same, of a small piece of the work.
        seconds: that it may take, its imports included.
        on_pool: whether it takes --pool.
        stretches: whether it takes --seconds, and fills the rest of the budget.
    """

    script: str
    words: str
    quick: str
    seconds: float
    on_pool: bool = False
    stretches: bool = False


PARTS = {
    "recovery": Part(
        "recovery",
        "--dataset glyphs --members 2 --recoveries generator-64 generator-16x100n40 pixels@0.1 free-5 free-2",
        "--dataset glyphs --members 1 --recoveries generator-8 pixels@0.1 free-1 --recovery_steps 2 "
        "--images_per_class 2 --warmup 1 --teachers_per_step 1 --student_steps 1",
        100,
        on_pool=True,
    ),
    "replay": Part(
        "replay",
        "--second_only true --shots 1 5 --steps 10",
        "--second_only true --shots 1 --steps 1 --network conv4_16 --ways 3 --queries 2 --inner_steps 1 --batch 2",
        80,
    ),
    "evaluation": Part(
        "evaluate",
        "--episodes 200 --num_threads 1",
        "--episodes 2 --rounds 1 --exact_episodes 2 --num_threads 1 --shots 1 --queries 2 --inner_steps 1 "
        "--network conv4_16",
        80,
    ),
    "asking members": Part(
        "teachers", "--members 4 --images 200000", "--members 1 --images 20 --network conv4_16", 70
    ),
    "pool distillation": Part(
        "end_to_end",
        "--methods pool-distillation --size small --members 8 --options episodes=200 flip=false finetuned_rows=false",
        "--methods pool-distillation --members 2 --options episodes=2 validation_episodes=2 shots=1 queries=2 ways=3 "
        "finetuned_rows=false recovery_steps=2 images_per_class=4 joint_updates=1 num_images=32 batch_size=16 steps=1 "
        "arch=conv4_16 check_members=false",
        100,
        on_pool=True,
    ),
    "FREE_5": Part(
        "schedule",
        "--method free --size paper",
        "--method free --size paper --network conv4_16 --options generator_width=8 images_per_class=4 "
        "teachers_per_step=1 ways=3 replay_batch=2 replay_queries=2 replay_max_batches=1",
        45,
        on_pool=True,
        stretches=True,
    ),
}
"""In the order of their value."""
AROUND_STEPS = 20.0
"""Seconds of a part that fills the rest of the budget which are not steps: imports, setup, a step that is too long."""


class Options(Settings):
    """How long, where, and with which members."""

    budget_minutes: float = option(8.0, "All of it ends within so many minutes.", above=0)
    device: Device = option("auto", ON)
    quick: bool = option(False, "A small piece of each part's work: to see that it runs.")
    parts: list[str] = option(list(PARTS), "Which.", choices=PARTS)
    pool: str = option("", "Members of glyphs; built where none are named.")
    output_dir: str = option("runs/gpu", "Where gpu.json and gpu.md go.")


def command_of(part: Part, settings: Options, rest: float) -> list[str]:
    """The words of a part's command line, from the script's name on."""
    words = [f"{part.script}.py", "--device", settings.device, *(part.quick if settings.quick else part.words).split()]
    if part.on_pool and settings.pool:
        words += ["--pool", settings.pool]
    if part.stretches:
        words += ["--seconds", f"{0.1 if settings.quick else max(1.0, rest - AROUND_STEPS):.1f}"]
    return words


def measure_part(words: list[str], limit: float) -> dict[str, Any]:
    """What a script says in its last line, its section, and the seconds that it took; or `skipped`, a sentence."""
    started = time.monotonic()
    with TemporaryDirectory() as folder:
        command = [sys.executable, str(FOLDER / words[0]), *words[1:], "--output_dir", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return {"skipped": f"It was stopped after {limit:.0f} seconds, which were all that it was given."}
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            return {"skipped": f"It ended with code {done.returncode}: {last}"}
        section = next(Path(folder).glob("*.md")).read_text(encoding="utf-8")
    result = json.loads(done.stdout.splitlines()[-1])
    return {"result": result, "section": section, "seconds": round(time.monotonic() - started, 1)}


def measure(settings: Options, show: Callable[[str], Any] = print) -> dict[str, Any]:
    """Every part that the budget holds; the object of the last line."""
    end = time.monotonic() + 60 * settings.budget_minutes
    device = device_of(settings.device)
    folder = Path(settings.output_dir)
    path = folder / "gpu.json"
    measured = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    about = {
        "device": describe_machine(device),
        "torch": torch.__version__,
        "quick": settings.quick,
        "pool": settings.pool,
    }
    same = all(measured.get(name) == value for name, value in about.items())
    kept: dict[str, Any] = {
        name: part for name, part in measured.get("parts", {}).items() if same and "result" in part
    }
    about["command"] = this_command()
    if any(PARTS[name].on_pool for name in settings.parts if name not in kept):
        open_pool(settings.pool)  # Built before the parts that need it have a limit.
    for name in settings.parts:
        part, rest = PARTS[name], end - time.monotonic()
        if name in kept:
            show(f"{name}: measured before.")
            continue
        if rest < part.seconds:
            kept[name] = {
                "skipped": f"It may take {part.seconds:.0f} seconds, and {max(0.0, rest):.0f} of the budget were left."
            }
        else:
            words = command_of(part, settings, rest)
            command = scrub_command(shlex.join(["python", f"benchmarks/{words[0]}", *words[1:]]))
            show(f"{name}: {command}")
            found = measure_part(words, rest if part.stretches else min(rest, part.seconds))
            kept[name] = {"command": command} | found
        show(f"{name}: {kept[name].get('skipped') or summary(kept[name]['result'])}")
        result = as_result(about, kept)
        atomic_write(path, json.dumps(result, indent=1) + "\n")
        atomic_write(folder / "gpu.md", page(result))
    return as_result(about, kept)


def summary(result: dict[str, Any]) -> str:
    """A result in a line."""
    return f"ratio {result['ratio']}: {result['baseline']} and {result['ours']} {result['unit']}"


def as_result(about: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The object of the last line: the parts in their order; ratio, sides and unit are those of the first measured."""
    parts = {name: found[name] for name in PARTS if name in found}
    first = next((part["result"] for part in parts.values() if "result" in part), {})
    sides = {name: first.get(name) for name in ("ratio", "baseline", "ours", "unit")}
    return {"benchmark": "gpu", **sides, **about, "parts": parts}


def page(result: dict[str, Any]) -> str:
    """All of it for a reader: the machine, a table of the parts, and the section of each."""
    parts = result["parts"]
    rows = []
    for name, part in parts.items():
        of = part.get("result")
        cells = [of["baseline"], of["ours"], of["unit"], of["ratio"], part["seconds"]] if of else ["-"] * 5
        rows.append([name, *cells])
    left_out = [f"- {name}: {part['skipped']}" for name, part in parts.items() if "skipped" in part]
    text = [
        "## Measured on an accelerator",
        f"{result['device']}; PyTorch {result['torch']}.",
        f"```bash\n{result['command']}\n```",
        table("part | baseline | ours | unit | ratio | seconds of the part", rows),
        *(["Left out:\n\n" + "\n".join(left_out)] if left_out else []),
        *(f"#{part['section'].strip()}" for part in parts.values() if "section" in part),
    ]
    return "\n\n".join(text) + "\n"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    (settings,) = parse_into([Options], argv, __doc__)
    result = measure(settings, show=lambda text: print(text, flush=True))
    for part in result["parts"].values():
        part.pop("section", None)  # A page in a line.
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
