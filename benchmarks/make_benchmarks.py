"""Runs the benchmarks that fit a CPU, one after the other, and writes docs/benchmarks.md from their sections.

    python benchmarks/make_benchmarks.py                        # all, under 10 minutes on 2 cores
    python benchmarks/make_benchmarks.py --only replay scaling  # some; the other sections stay as they were

Sections are kept in --output_dir. The page says how busy the machine was before the first of them.
"""

import argparse
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
HEAD = """# Benchmarks

Written by `make benchmark`. Each section is the work of one script, which compares both sides in
turns within one run; where one thread does everything, seconds are the CPU's, so that other work on the machine counts
for little.
"""
ACCELERATORS = """## Accelerators

No figures: none could be had. The same scripts use one where there is one:

```bash
python benchmarks/evaluate.py --episodes 600 --num_threads 1
python benchmarks/replay.py --steps 20
python benchmarks/recovery.py --generator_width 64 --images_per_class 30
accelerate launch --multi_gpu benchmarks/scaling.py --generator_width 64 --recovery_steps 200
```
"""


def run(name: str, folder: Path) -> float:
    """Run a script, which writes its section into `folder`; minutes."""
    command = [sys.executable, f"benchmarks/{name}.py", *SCRIPTS[name].split(), "--output_dir", str(folder)]
    print(f"\n{name}", flush=True)
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True)
    return (time.perf_counter() - started) / 60


def page(folder: Path, note: str) -> str:
    """The whole page, of the sections that there are."""
    paths = [folder / f"{name}.md" for name in SCRIPTS]
    sections = [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
    return "\n".join([HEAD, f"{fill(note, 119)}\n", *sections, ACCELERATORS])


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS), help="Scripts to run.")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs" / "benchmarks", help="Folder of sections.")
    options = parser.parse_args()
    busy = psutil.cpu_percent(interval=5) / 100 * (os.cpu_count() or 1)
    minutes = {name: run(name, options.output_dir.resolve()) for name in options.only}
    to_answers = ", ".join(f"{name} {spent:.1f}" for name, spent in minutes.items())
    shared = ": times on the clock are those of a shared machine." if busy > 0.3 else "."
    note = (
        f"Minutes of the last run: {to_answers}; {sum(minutes.values()):.1f} in all. Just before it other work kept "
        f"{busy:.1f} of {os.cpu_count()} cores busy{shared}"
    )
    PAGE.write_text(page(options.output_dir, note), encoding="utf-8")
    print(f"Wrote {PAGE}.")


if __name__ == "__main__":
    main()
