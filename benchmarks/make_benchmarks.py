"""Runs the benchmarks that fit a CPU, one after the other, and writes docs/benchmarks.md from their sections.

    python benchmarks/make_benchmarks.py                        # all: 10 to 25 minutes on 2 cores
    python benchmarks/make_benchmarks.py --only replay scaling  # some; the other sections stay as they were

Sections are kept in --output_dir, with the minutes that each took and how busy the machine was before it.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from textwrap import fill

import psutil

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
SCRIPTS = {
    "evaluate": "",
    "replay": "",
    "roofline": "",
    "teachers": "",
    "fisher": "",
    "baselines": "",
    "end_to_end": "",
    "recovery": "--members 2 --recovery_steps 40 --warmup 10 "
    "--recoveries generator-64 generator-16x20n40 generator-16cx20n40 pixels@0.1 free-5 free-2",
    "pool_scale": "--members 200",
    "scaling": "--repeats 2 --recovery_steps 16",
}
BUSY_SECONDS = 3.0
"""For which other work is watched before a script."""
HEAD = """# Benchmarks

Written by `make benchmark`. Each section is the work of one script, which compares both sides in
turns within one run; where one thread does everything, seconds are the CPU's, so that other work on the machine counts
for little.
"""
FURTHER = """## Against an earlier commit

Does a whole run take less time than it did, and is it as good? In a clone, the run of a method by the recipe of an
earlier commit (a hash, branch or tag) and by the present one, in turns, on the same pool: accuracies and CPU seconds
side by side.

```bash
python benchmarks/end_to_end.py --against f6a4f5a --methods pool-distillation --old_options yardsticks=false
```

## Size

How seconds and memory grow with members, classes and image size, up to 5,000 members and 224 pixels, is in
[results.md](results.md#how-the-cost-of-pool-distillation-grows), made by a script that takes longer:

```bash
python benchmarks/scale.py --output_dir docs/results --picture docs/pictures/scale.png
```

## Accelerators

No figures: none could be had. One command measures on a card what is worth most within so many minutes, without
network or data: recovery, replay, the evaluation, asking members, a whole pool distillation, each beside its baseline
on the same card, and the first steps of FREE_5 with the paper's schedule and what the whole would take. It writes
`gpu.json` and, for `docs/results`, `gpu.md` with the names of card and PyTorch version and the command of each part:

```bash
python benchmarks/gpu.py --budget_minutes 8 --output_dir runs/gpu
```

Each script uses an accelerator where there is one (and `--device cpu` does not):

```bash
python benchmarks/evaluate.py --episodes 600 --num_threads 1
python benchmarks/replay.py --steps 20
python benchmarks/schedule.py --method free --size paper --seconds 300
python benchmarks/recovery.py --generator_width 64 --images_per_class 30
accelerate launch --multi_gpu benchmarks/scaling.py --generator_width 64 --recovery_steps 200
```
"""


def run(name: str, folder: Path) -> None:
    """Run a script, which writes its section into `folder`."""
    command = [sys.executable, f"benchmarks/{name}.py", *SCRIPTS[name].split(), "--output_dir", str(folder)]
    print(f"\n{name}", flush=True)
    subprocess.run(command, cwd=ROOT, check=True)


def note(times: dict[str, dict[str, float]]) -> str:
    """How long the sections took, and how busy other work kept the machine.

    Args:
        times: of each script its `minutes`, and the `busy` cores before it.
    """
    spent = ", ".join(f"{name} {times[name]['minutes']:.1f}" for name in SCRIPTS if name in times)
    busy = max(each["busy"] for each in times.values())
    shared = ": times on the clock are those of a shared machine." if busy > 0.3 else "."
    total = sum(each["minutes"] for each in times.values())
    return (
        f"Minutes: {spent}; {total:.1f} in all. Just before each of them other "
        f"work kept at most {busy:.1f} of {os.cpu_count()} cores busy{shared}"
    )


def page(folder: Path, about: str) -> str:
    """The whole page, of the sections that there are."""
    paths = [folder / f"{name}.md" for name in SCRIPTS]
    sections = [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
    return "\n".join([HEAD, f"{fill(about, 119)}\n", *sections, FURTHER])


def main() -> None:
    """Run and write; what was done stays done when a later script fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS), help="Scripts to run.")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "benchmarks", help="Folder of sections.")
    options = parser.parse_args()
    folder = options.output_dir.resolve()
    kept = folder / "times.json"
    times = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    for name in options.only:
        busy = psutil.cpu_percent(interval=BUSY_SECONDS) / 100 * (os.cpu_count() or 1)
        started = time.perf_counter()
        run(name, folder)
        times[name] = {"minutes": (time.perf_counter() - started) / 60, "busy": busy}
        kept.write_text(json.dumps(times, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(folder, note(times)), encoding="utf-8")
    print(f"Wrote {PAGE}.")


if __name__ == "__main__":
    main()
