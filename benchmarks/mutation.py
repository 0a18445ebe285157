"""Do the tests notice? A seeded sample of small faults in the code that the numbers come from, and the share caught.

    make mutation                                          # 150 mutants, at most 40 minutes on 2 cores
    python benchmarks/mutation.py --mutants 300 --seed 1

`mutmut` (settings in setup.cfg) writes the faults (mutants): a sign turned, a bound moved, an argument left out, in
`learning/`, `recovery/`, `evaluation/` and `methods/`. Each is run against the tests that reach its function. Mutants
that change nothing a user could see are listed, with the reason, in `benchmarks/mutation_equivalents.txt` and are left
out of the share. The last line is one JSON object; survivors are printed before it as differences.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MUTANTS = ROOT / "mutants" / "hf_dfml"
EQUIVALENTS = Path(__file__).with_name("mutation_equivalents.txt")
BATCH = 30
KILLED, TIMED_OUT = (1, 3), (-24, 24, 36, 37, 152, 255)
"""Exit codes that mutmut stores where a test has failed, and where the mutant ran out of time."""


def main() -> None:
    """Write the mutants, run a sample of them, print the share that the tests have killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=150, help="How many are drawn.")
    parser.add_argument("--seed", type=int, default=0, help="Which ones.")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="How many are tested at a time.")
    parser.add_argument("--minutes", type=float, default=40.0, help="When to stop, with those that are done.")
    arguments = parser.parse_args()
    started = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_DFML_SHARED": str(ROOT / "none")}
    if not any(MUTANTS.rglob("*.meta")):
        mutmut(["run", "hf_dfml.learning.grouping.x_group_tasks__mutmut_1"], environment)
    every = sorted(exit_codes())
    sample = sorted(random.Random(arguments.seed).sample(every, min(arguments.mutants, len(every))))
    equivalent = known_equivalents()
    deadline = started + 60 * arguments.minutes
    for first in range(0, len(sample), BATCH):
        if time.monotonic() > deadline:
            break
        mutmut(["run", "--max-children", str(arguments.workers), *sample[first : first + BATCH]], environment)
        print(f"{min(first + BATCH, len(sample))} of {len(sample)} mutants tested", file=sys.stderr, flush=True)
    codes = exit_codes()
    tested = [name for name in sample if codes[name] is not None and name not in equivalent]
    survivors = [name for name in tested if codes[name] not in KILLED + TIMED_OUT]
    for name in survivors:
        print(f"\nSurvived: {name}\n{difference(name, environment)}")
    killed = len(tested) - len(survivors)
    print(
        json.dumps(
            {
                "benchmark": "mutation",
                "ratio": round(killed / max(1, len(tested)), 3),
                "baseline": len(tested),
                "ours": killed,
                "unit": "mutants killed",
                "of": len(every),
                "seed": arguments.seed,
                "left_out_as_equivalent": len([name for name in sample if name in equivalent]),
                "minutes": round((time.monotonic() - started) / 60, 1),
            }
        )
    )


def mutmut(words: list[str], environment: dict[str, str]) -> str:
    """What a call of mutmut prints; exit codes of single mutants are in its files."""
    command = [sys.executable, "-m", "mutmut", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        sys.exit(f"mutmut failed ({done.returncode}): {done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def exit_codes() -> dict[str, int | None]:
    """Of each mutant the exit code of its tests; None where it was not tested."""
    found: dict[str, int | None] = {}
    for path in MUTANTS.rglob("*.meta"):
        found |= json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    return found


def difference(name: str, environment: dict[str, str]) -> str:
    """The changed lines of a mutant."""
    lines = mutmut(["show", name], environment).splitlines()
    return "\n".join(line for line in lines if re.match(r"[-+@]", line))


def known_equivalents() -> set[str]:
    """Names in the list of equivalent mutants: `NAME: reason` on each line, `#` begins a comment."""
    if not EQUIVALENTS.is_file():
        return set()
    lines = EQUIVALENTS.read_text(encoding="utf-8").splitlines()
    return {line.split(": ", 1)[0].strip() for line in lines if line.strip() and not line.startswith("#")}


if __name__ == "__main__":
    main()
