"""Where the time of a whole run goes: pool distillation and TGR from their pool to their last row, part by part.

    python benchmarks/end_to_end.py                                     # 3 members of glyphs, two minutes
    python benchmarks/end_to_end.py --size cpu --pool pools/cifar-fs --dataset cifar-fs --options data_dir=data

The runs are those of `hf-dfml train METHOD --preset SIZE` with --options in place of the preset's. Parts are
- recovery: images from the members, alone and jointly;
- asking members: their answers to the images of pool distillation;
- learning: the steps of the method, without the recoveries inside of TGR's;
- evaluation: validations, the choice of the head, the test classes, and the baselines of both;
- setup and files: all else: opening and checking the members, TGR's embeddings, mixing images, checkpoints, pictures.

Seconds are those of the process where it has one CPU thread, and else the clock's. The last line is a JSON object;
`ratio` is the largest share of a part in a run, `baseline` the seconds of that run, `ours` those of that part.
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
from measuring import GLYPHS, Measurement, now, open_pool, run, table, write_section

from hf_dfml.arguments import parse
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


def words_of(settings: Options, method: type[Method]) -> list[str]:
    """The command line of a method's run.

    Raises:
        ValueError: if --options has one that is not NAME=VALUE, or that no method and no run has.
    """
    known = options_of(method.Config).keys() | options_of(RunConfig).keys()
    anyones = known.union(*(options_of(find_method(name).Config) for name in ("pool-distillation", "tgr")))
    words = ["--preset", settings.size, "--dataset", settings.dataset]
    for text in settings.options:
        name, equals, value = text.partition("=")
        if not equals or name not in anyones:
            raise ValueError(f"--options {text}: expected NAME=VALUE with the name of an option of a method or a run.")
        words += [f"--{name}", value] if name in known else []
    return words


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
    """All runs, the table, and the object of the last line."""
    open_pool(settings.pool, settings.members)  # Built before the clock runs, if it is to be.
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


if __name__ == "__main__":
    main()
