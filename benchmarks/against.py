"""Runs of a method by an earlier commit of this repository and by the present files, in turns.

What `end_to_end.py --against COMMIT` does. `recipes/METHOD.py` is what every commit has, and does what `hf-dfml train
METHOD` does; unlike `python -m` it imports nothing from the folder that it is run in.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml

from hf_dfml.evaluation import read_results

ROOT = Path(__file__).parents[1]

Row = tuple[str, int, str, str]
"""Data set, shots, head with its representation, and batch norm of an accuracy."""


class Commit(NamedTuple):
    """A commit: the first digits of its hash with its date, and the folder that has its files."""

    name: str
    folder: Path


@dataclass(frozen=True)
class Run:
    """A run that both make.

    Attributes:
        method: as the recipe's file, with dashes.
        title: of the method in the rows of results.
        known: names of the options of the present recipe.
        preset: values of options by name.
        options: likewise; these win.
        old_options: of the earlier commit alone, whose own words they are; these win there.
    """

    method: str
    title: str
    known: set[str]
    preset: Mapping[str, Any]
    options: Mapping[str, str]
    old_options: Mapping[str, str]


@dataclass(frozen=True)
class Side:
    """The runs of one of the two.

    Attributes:
        seconds: of CPU time of each run, of all its processes.
        accuracies: in percent, and half the width of the interval, of each run.
    """

    seconds: list[float] = field(default_factory=list)
    accuracies: dict[Row, list[tuple[float, float]]] = field(default_factory=dict)

    @property
    def usual_seconds(self) -> float:
        """The median of the runs."""
        return median(self.seconds)

    def mean(self, row: Row) -> tuple[float, float] | None:
        """Accuracy and interval, each the mean of the runs; None where there is no such row."""
        found = self.accuracies.get(row)
        return (fmean(mean for mean, _ in found), fmean(interval for _, interval in found)) if found else None


@contextmanager
def checked_out(commit: str) -> Iterator[Commit]:
    """The files of a commit in a temporary git worktree, which is gone after the block however that ends.

    Args:
        commit: a hash, branch or tag of this repository.

    Raises:
        SystemExit: without git, outside of a clone, or for a commit that there is not; the sentence says what to do.
    """
    if shutil.which("git") is None:
        raise SystemExit("--against needs git, which is not installed on this machine: install it, or leave it out.")
    top = _git("rev-parse", "--show-toplevel")
    if top.returncode or Path(top.stdout.strip()).resolve() != ROOT.resolve():
        raise SystemExit(
            f"--against needs a git clone of the repository, and {ROOT} is not one: `git clone` it, and run the "
            "script of the clone."
        )
    found = _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    if found.returncode:
        raise SystemExit(
            f"--against {commit}: expected a hash, branch or tag of the repository in {ROOT}, found none of that "
            "name; `git log --oneline` lists them, and `git fetch --unshallow` gets the older ones of a shallow clone."
        )
    full = found.stdout.strip()
    name = _git("log", "-1", "--format=%h (%cs)", full).stdout.strip()
    with TemporaryDirectory(prefix="hf-dfml-") as folder:
        tree = Path(folder) / "tree"
        added = _git("worktree", "add", "--detach", str(tree), full)
        try:
            if added.returncode:
                raise SystemExit(f"--against {commit}: git gave no worktree of it: {added.stderr.strip()}")
            yield Commit(name, tree)
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)


def in_turns(old: Commit, run: Run, *, turns: int, seed: int, threads: int) -> tuple[Side, Side, list[str]]:
    """Both make the run `turns` times, with the seeds `seed`, `seed` + 1, ...

    Args:
        old: the earlier commit.
        run: what both do.
        turns: how often.
        seed: of the first turn.
        threads: of each process.

    Returns:
        The earlier commit's runs, those of the present files, and the options that the earlier recipe does not have.

    Raises:
        SystemExit: if the earlier commit has no such recipe, or a run fails.
    """
    before, now = Side(), Side()
    known = options_of_recipe(old.folder, run.method)
    for turn in range(turns):
        given = dict(run.options) | {"seed": str(seed + turn), "num_threads": str(threads)}
        for side, tree, names, own in ((before, old.folder, known, run.old_options), (now, ROOT, run.known, {})):
            with TemporaryDirectory() as folder:
                words = recipe_words(names, run.preset, given, Path(folder) / "preset.yaml")
                words += [word for name, value in own.items() for word in (f"--{name}", value)]
                _add(side, run, tree, words, Path(folder) / "run", threads)
        spent = f"{before.seconds[-1]:.1f} s by {old.name}, {now.seconds[-1]:.1f} s by the present files"
        print(f"{run.method}, turn {turn + 1} of {turns}: {spent}.", flush=True)
    return before, now, sorted((run.preset.keys() | run.options.keys()) - known - run.old_options.keys())


def _add(side: Side, run: Run, tree: Path, words: Sequence[str], output: Path, threads: int) -> None:
    started = cpu_seconds_of_children()
    run_recipe(tree, run.method, [*words, "--output_dir", str(output)], threads)
    side.seconds.append(cpu_seconds_of_children() - started)
    for row in read_results(output):
        if row.method == run.title and row.split == "test":
            key = (row.dataset, row.shots, row.how, row.bn or "-")
            side.accuracies.setdefault(key, []).append((row.mean, row.ci95))


def options_of_recipe(tree: Path, method: str) -> set[str]:
    """The options of a recipe, as its help lists them; raises as `run_recipe`."""
    listed = run_recipe(tree, method, ["--help"])
    if "--help_advanced" in listed:
        listed = run_recipe(tree, method, ["--help_advanced"])
    return set(re.findall(r"^ +--(\w+)", listed, re.MULTILINE))


def recipe_words(known: set[str], preset: Mapping[str, Any], options: Mapping[str, str], config: Path) -> list[str]:
    """The command line of a recipe that has the options `known`.

    The preset goes into the file `config`, for presets of one name have changed from commit to commit.
    """
    config.write_text(yaml.safe_dump({name: value for name, value in preset.items() if name in known}), "utf-8")
    given = (word for name, value in options.items() if name in known for word in (f"--{name}", value))
    return ["--config", str(config), *given]


def run_recipe(tree: Path, method: str, words: Sequence[str], threads: int = 1) -> str:
    """Run `recipes/METHOD.py` of the files in `tree` by their own package on the CPU, and give what it prints.

    Raises:
        SystemExit: if there is no such recipe, or it fails: with the last line that it has printed.
    """
    script = tree / "recipes" / f"{method.replace('-', '_')}.py"
    if not script.is_file():
        raise SystemExit(f"That commit has no {script.relative_to(tree)}: choose a later one, or other --methods.")
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        last = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "it printed nothing")
        raise SystemExit(
            f"{script} {' '.join(words)}\nended with exit code {done.returncode}: {last}\nOptions of earlier commits "
            "may have other names or values: --old_options gives them, for the earlier commit alone."
        )
    return done.stdout


def cpu_seconds_of_children() -> float:
    """Seconds of CPU time of all processes that this one has started and waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
