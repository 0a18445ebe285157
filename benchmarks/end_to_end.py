"""Where the time of a whole run goes: pool distillation and TGR from their pool to their last row, part by part.

    python benchmarks/end_to_end.py                                     # 3 members of glyphs, two minutes
    python benchmarks/end_to_end.py --size cpu --pool pools/cifar-fs --dataset cifar-fs --options data_dir=data
    python benchmarks/end_to_end.py --against f6a4f5a --methods pool-distillation --old_options yardsticks=false

The runs are those of `hf-dfml train METHOD --preset SIZE` with --options in place of the preset's. Parts are
- recovery: images from the members, alone and jointly;
- asking members: their answers to the images of pool distillation;
- learning: the steps of the method, without the recoveries inside of TGR's;
- evaluation: validations, the choice of the head, the test classes, and the baselines of both;
- setup and files: all else: opening and checking the members, TGR's embeddings, mixing images, checkpoints, pictures.

Seconds are those of the process where it has one CPU thread, and else the clock's. The last line is a JSON object;
`ratio` is the largest share of a part in a run, `baseline` the seconds of that run, `ours` those of that part.

`--against COMMIT` (a hash, branch or tag; the script must be that of a git clone) compares whole runs on the CPU with
those of an earlier commit, in turns: `recipes/METHOD.py` of each, the same pool, which the present files build, the
same values of preset and options. Options that the earlier recipe does not have are left out there and named;
`--old_options` gives it others. Side by side stand accuracies on the test classes, and CPU seconds of all processes of
a run, imports included. `ratio` is the earlier commit's seconds in multiples of ours, the smallest of the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
import yaml
from against import Commit, Run, Side, checked_out, in_turns
from measuring import GLYPHS, Measurement, now, open_pool, run, table, write_section

from hf_dfml.arguments import parse, presets
from hf_dfml.evaluation import of_run
from hf_dfml.evaluation.results import ignore
from hf_dfml.methods import pool_images, tgr
from hf_dfml.methods.base import Method
from hf_dfml.methods.catalogue import find_method
from hf_dfml.pipeline import run as run_method
from hf_dfml.pool.asking import Asking
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import option, options_of
from hf_dfml.utils.provenance import describe_machine

REST = "setup and files"
PARTS = ("recovery", "asking members", "learning", "evaluation", REST)


class Options(Measurement):
    """The runs."""

    pool: str = option("", f"The teachers; by default glyph members, built in {GLYPHS}.")
    members: int = option(3, "The first so many of them.", least=2)
    dataset: str = option("glyphs", "Data set of the evaluation.")
    methods: list[str] = option(["pool-distillation", "tgr"], "Whose runs.", choices=("pool-distillation", "tgr"))
    size: str = option("tiny", "Preset of the methods: tiny, small, cpu, ...")
    options: list[str] = option(
        ["episodes=10", "validation_episodes=5", "flip=false", "finetuned_rows=false"],
        "Options in place of the preset's, NAME=VALUE each; those that a method does not have are for the other.",
    )
    against: str = option("", "A commit of the repository, whose runs are compared with those of the present files.")
    old_options: list[str] | None = option(
        None, "With --against: options of the earlier commit's runs alone, NAME=VALUE each, by its own names."
    )
    turns: int = option(1, "With --against: runs by each, in turns; the seed grows by 1 from turn to turn.", least=1)


class Stopwatch:
    """Seconds by part. Where one part is inside of another, they are those of the inner one.

    Args:
        device: whose work is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._open = [REST]
        self._since = now(device)

    def turn(self) -> None:
        """Add what has passed to the part that is open."""
        self._since, before = now(self.device), self._since
        self.seconds[self._open[-1]] += self._since - before

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The time of the block is that of a part."""
        self.turn()
        self._open.append(name)
        try:
            yield
        finally:
            self.turn()
            self._open.pop()

    def of(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time is that of a part."""

        @wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*arguments, **options)

        return timed


@contextmanager
def watched(watch: Stopwatch, method: type[Method]) -> Iterator[None]:
    """Time the parts of a run inside the block."""
    functions: list[tuple[str, Any, str]] = [
        ("recovery", pool_images, "recover"),
        ("recovery", pool_images, "recover_jointly"),
        ("recovery", tgr, "recover"),
        ("asking members", Asking, "probabilities"),
        ("learning", method, "step"),
        ("evaluation", of_run.RunEvaluation, "evaluate"),
    ]
    validation = of_run.validation

    def validating(*arguments: Any) -> Callable[..., Any]:
        return watch.of("evaluation", validation(*arguments))

    with ExitStack() as patches:
        for part, owner, name in functions:
            patches.enter_context(patch.object(owner, name, watch.of(part, getattr(owner, name))))
        patches.enter_context(patch.object(of_run, "validation", validating))
        yield


def names_of(method: type[Method]) -> set[str]:
    """The options of a method's run."""
    return set(options_of(method.Config)) | set(options_of(RunConfig))


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """Names and values of an option that takes NAME=VALUE.

    Raises:
        ValueError: for a text without `=`.
    """
    for text in texts:
        if "=" not in text:
            raise ValueError(f"{option} {text}: expected NAME=VALUE with the name of an option, found no =.")
    return dict(text.split("=", 1) for text in texts)


def given(settings: Options, method: type[Method]) -> dict[str, str]:
    """Those of --options that a method's run has.

    Raises:
        ValueError: if --options has one that is not NAME=VALUE, or that no method and no run has.
    """
    anyones = names_of(method).union(*(names_of(find_method(name)) for name in ("pool-distillation", "tgr")))
    values = pairs("--options", settings.options)
    for name in values.keys() - anyones:
        raise ValueError(f"--options {name}: expected NAME=VALUE with the name of an option of a method or a run.")
    return {name: value for name, value in values.items() if name in names_of(method)}


def words_of(settings: Options, method: type[Method]) -> list[str]:
    """The command line of a method's run."""
    options = {"preset": settings.size, "dataset": settings.dataset} | given(settings, method)
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def seconds_of(name: str, settings: Options, device: torch.device) -> dict[str, float]:
    """Seconds of each part of a method's run."""
    method = find_method(name)
    config, run_config = parse(method, RunConfig, words_of(settings, method), program="end_to_end.py")
    with TemporaryDirectory() as folder:
        changes = {"output_dir": f"{folder}/run", "num_threads": settings.num_threads, "seed": settings.seed}
        changes |= {"pool": settings.pool or str(GLYPHS), "num_members": settings.members, "log_with": "none"}
        watch = Stopwatch(device)
        with watched(watch, method):
            run_method(method, config, replace(run_config, **changes), show=ignore)
        watch.turn()
    return watch.seconds


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    return run(Options, measure, argv, __doc__)


def measure(settings: Options, device: torch.device) -> dict[str, Any]:
    """The table, and the object of the last line."""
    open_pool(settings.pool, settings.members)  # Built before the clock runs, if it is to be.
    return side_by_side(settings, device) if settings.against else part_by_part(settings, device)


def part_by_part(settings: Options, device: torch.device) -> dict[str, Any]:
    """Where the time of the present files' runs goes."""
    spent = {name: seconds_of(name, settings, device) for name in settings.methods}
    totals = {name: sum(parts.values()) for name, parts in spent.items()}
    shares = {name: {part: value / totals[name] for part, value in spent[name].items()} for name in spent}
    rows = [
        [part, *(cell for name in spent for cell in (f"{spent[name][part]:.1f}", f"{100 * shares[name][part]:.0f} %"))]
        for part in PARTS
    ]
    rows.append(["all", *(cell for name in spent for cell in (f"{totals[name]:.1f}", "100 %"))])
    header = " | ".join(["part", *(cell for name in spent for cell in (f"{name}, s", "share"))])
    changed = ", ".join(settings.options)
    about = (
        f"Preset {settings.size} ({changed}) of {settings.members} members on {settings.dataset}. "
        f"{describe_machine(device)}."
    )
    shown = table(header, rows)
    print(about, shown, sep="\n")
    write_section(settings.output_dir, "end_to_end", "A whole run, part by part", about, shown)
    slowest, part = max(((name, part) for name in spent for part in PARTS), key=lambda at: shares[at[0]][at[1]])
    return {
        "benchmark": "end_to_end",
        "ratio": round(shares[slowest][part], 3),
        "baseline": round(totals[slowest], 2),
        "ours": round(spent[slowest][part], 2),
        "unit": f"seconds, {part} of {slowest}",
        "seconds": {name: {part: round(value, 4) for part, value in parts.items()} for name, parts in spent.items()},
        "shares": {name: {part: round(value, 3) for part, value in parts.items()} for name, parts in shares.items()},
    }


def side_by_side(settings: Options, device: torch.device) -> dict[str, Any]:
    """The runs of an earlier commit and of the present files."""
    runs = [run_of(settings, name) for name in settings.methods]
    with checked_out(settings.against) as old:
        sides = {
            each.title: in_turns(old, each, turns=settings.turns, seed=settings.seed, threads=settings.num_threads)
            for each in runs
        }
    header = f"method | data set | shots | head | bn | {old.name} | present files"
    rows = [row for title, (before, now, _) in sides.items() for row in comparison(title, before, now)]
    own = f"; there {', '.join(settings.old_options)}" if settings.old_options else ""
    about = (
        f"Preset {settings.size} ({', '.join(settings.options)}{own}) of {settings.members} members, "
        f"{settings.turns} run{'s' * (settings.turns > 1)} by each, in turns. Accuracies in % are means of the runs, "
        f"seconds of CPU time medians. {describe_machine(device)}."
    )
    lacking = "; ".join(f"{title}: {', '.join(names)}" for title, (_, _, names) in sides.items() if names)
    notes = [f"Options that {old.name} does not have, left out there: {lacking}."] if lacking else []
    shown = table(header, rows)
    print(about, shown, *notes, sep="\n")
    write_section(settings.output_dir, "end_to_end", f"A whole run against {old.name}", about, shown, *notes)
    return result_against(old, {title: (before, now) for title, (before, now, _) in sides.items()})


def run_of(settings: Options, name: str) -> Run:
    """The run of a method as its recipe is given it; the options are checked as those of the present files."""
    method = find_method(name)
    parse(method, RunConfig, words_of(settings, method), program="end_to_end.py")
    own = presets(name)
    preset = own.get(settings.size) or own[f"{name}-{settings.size}"]
    options = {"pool": settings.pool or str(GLYPHS), "num_members": str(settings.members), "dataset": settings.dataset}
    options |= {"log_with": "none"} | given(settings, method)
    old_options = pairs("--old_options", settings.old_options or [])
    return Run(name, method.name, names_of(method), yaml.safe_load(preset.read_bytes()), options, old_options)


def comparison(title: str, before: Side, now: Side) -> list[list[str]]:
    """Rows of the table: each accuracy, and the seconds."""

    def cell(side: Side, row: Any) -> str:
        found = side.mean(row)
        return f"{found[0]:.1f} ± {found[1]:.1f}" if found else "-"

    keys = sorted(dict.fromkeys([*now.accuracies, *before.accuracies]), key=lambda row: row[:2])
    rows = [[title, *map(str, key), cell(before, key), cell(now, key)] for key in keys]
    seconds = [f"{side.usual_seconds:.1f}" for side in (before, now)]
    faster = f"{before.usual_seconds / now.usual_seconds:.2f}"
    for text, cells in (("CPU seconds", seconds), ("times faster", ["1.00", faster])):
        rows.append([f"{title}: {text}", *4 * [""], *cells])
    return rows


def rounded(figure: tuple[float, float] | None) -> list[float] | None:
    """Accuracy and interval as they stand in the object of the last line."""
    return [round(value, 2) for value in figure] if figure else None


def result_against(old: Commit, sides: dict[str, tuple[Side, Side]]) -> dict[str, Any]:
    """The object of the last line."""
    seconds = {title: [side.usual_seconds for side in both] for title, both in sides.items()}
    least = min(seconds, key=lambda title: seconds[title][0] / seconds[title][1])
    before, now = seconds[least]
    return {
        "benchmark": "end_to_end",
        "against": old.name,
        "ratio": round(before / now, 3),
        "baseline": round(before, 2),
        "ours": round(now, 2),
        "unit": f"CPU seconds of a run, {least}",
        "seconds": {title: [side.seconds for side in both] for title, both in sides.items()},
        "accuracies": [
            {"method": title, "row": list(row), "old": rounded(before.mean(row)), "new": rounded(now.mean(row))}
            for title, (before, now) in sides.items()
            for row in dict.fromkeys([*now.accuracies, *before.accuracies])
        ],
    }


if __name__ == "__main__":
    main()
