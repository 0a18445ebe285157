"""Rows of results: what they hold, how they are written, and the table that a person reads."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from hf_dfml.evaluation.heads.base import PAPERS_INNER_LOOP
from hf_dfml.evaluation.published import Published, published
from hf_dfml.settings import options_of
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.json_files import read_json
from hf_dfml.utils.pictures import bar_chart
from hf_dfml.utils.provenance import scrub_command

if TYPE_CHECKING:
    from rich.console import Console

RESULTS_NAME = "results.json"
NARROWEST = 140
"""Columns of a table that goes to a file or a pipe."""


@dataclass(frozen=True)
class Result:
    """One number and how it was obtained: a row of `results.json`.

    Attributes:
        method: who was evaluated.
        dataset: on which data set.
        ways: classes of an episode; None for regression.
        shots: support images a class.
        bn: whose statistics normalised the queries (`support`, `running`, `transductive`); None without batch norm.
        head: name of one of `hf_dfml.evaluation.heads`.
        flips: whether each image was seen together with its mirror image.
        representation: what a head on features worked with: `features`, `answers` or `both`.
        inner_steps: SGD steps on the support set; None for heads without, and where an older file does not say.
        inner_lr: their learning rate; likewise.
        episodes: how many.
        metric: `accuracy` in percent, or `mse`.
        mean: mean over the episodes.
        ci95: half the width of the 95 % interval of that mean.
        seed: of the episodes.
        split: `test`, `validation` or `train`.
        seconds: wall time of the evaluation that gave the row, shared equally by the rows that it gave.
        command: what a user types to get the row again.
        image_size: pixels of a side of the images; None where an older file does not say.
        pool: what kind of pool the row is over (`pool_kind`); None for none, and where that is not known.
        model: which model or pool was evaluated, where a file has rows of several; None where it is clear.
        architecture: of the one network that was evaluated; None for several side by side, and where it is not known.
    """

    method: str
    dataset: str
    ways: int | None
    shots: int
    bn: str | None
    head: str | None
    flips: bool = field(default=False, kw_only=True)
    representation: str = field(default="features", kw_only=True)
    inner_steps: int | None = field(default=None, kw_only=True)
    inner_lr: float | None = field(default=None, kw_only=True)
    episodes: int
    metric: Literal["accuracy", "mse"]
    mean: float
    ci95: float
    seed: int
    split: str
    seconds: float
    command: str
    image_size: int | None = None
    pool: str | None = None
    model: str | None = None
    architecture: str | None = None

    @property
    def how(self) -> str:
        """The head with all that belongs to it: `finetune, 5 x 0.05`, or `prototype, answers, flips`.

        The papers' steps are called so: `finetune, 10 x 0.01 (papers)`.
        """
        papers = " (papers)" if self._papers_inner_loop else ""
        steps = [f"{self.inner_steps} x {self.inner_lr:g}{papers}"] if self.inner_steps is not None else []
        answers = {"features": [], "answers": ["answers"], "both": ["features and answers"]}[self.representation]
        return ", ".join([self.head or "-", *steps, *answers, *["flips"] * self.flips])

    @property
    def paper(self) -> Published | None:
        """What a paper reports for the same thing.

        None on other than test classes, with flips, for answers, and with other inner steps than the papers'.
        """
        if self.inner_steps is not None and not self._papers_inner_loop:
            return None
        if self.split != "test" or self.flips or self.representation != "features":
            return None
        keys = {"head": self.head, "bn": self.bn, "image_size": self.image_size, "pool": self.pool}
        keys |= {"architecture": self.architecture}
        return published(self.method, self.dataset, self.ways, self.shots, **keys)  # type: ignore[arg-type]

    @property
    def _papers_inner_loop(self) -> bool:
        return (self.inner_steps, self.inner_lr) == PAPERS_INNER_LOOP


Record = Callable[[list[Result]], Any]
"""Is given each list of new rows as it is measured, so that a failure later loses none."""


def ignore(rows: list[Result]) -> None:
    """A `Record` that keeps nothing."""


def mean_and_interval(values: Tensor) -> tuple[float, float]:
    """Mean of `(E,)` values and half the width of its 95 % interval, 1.96 standard deviations over sqrt(E).

    Examples:
        >>> import torch
        >>> mean, interval = mean_and_interval(torch.tensor([0.0, 2.0]))
        >>> mean, round(interval, 2)
        (1.0, 1.96)
    """
    values = values.double()
    return values.mean().item(), (1.96 * values.std() / len(values) ** 0.5).item()


def merged(earlier: Iterable[Result], newer: Iterable[Result]) -> list[Result]:
    """The newer rows, and before them those of the earlier ones that are of another evaluation or contestant."""
    newer = list(newer)
    replaced = {_contestant(row) for row in newer}
    return [*(row for row in earlier if _contestant(row) not in replaced), *newer]


def _contestant(row: Result) -> tuple:
    """Who was evaluated how: all of a row but what came out, what it cost, and what the contestant is made of."""
    outcome = ("mean", "ci95", "seconds", "command", "image_size", "pool", "architecture")
    return tuple(getattr(row, each.name) for each in fields(row) if each.name not in outcome)


def write_results(folder: Path | str, results: Iterable[Result]) -> Path:
    """Write `results.json` into `folder`; the path written."""
    path = Path(folder) / RESULTS_NAME
    rows = [{**asdict(result), "command": scrub_command(result.command)} for result in results]
    atomic_write(path, json.dumps(rows, indent=1) + "\n")
    return path


def read_results(path: Path | str) -> list[Result]:
    """Read what `write_results` wrote, given the file or its folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is not a list of such rows.
    """
    path = Path(path)
    path = path / RESULTS_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}: an evaluation (`hf-dfml evaluate`) writes it.")
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of result rows, found a JSON {type(rows).__name__}.")
    return [result_from_json(row, str(path)) for row in rows]


def result_from_json(row: object, where: str) -> Result:
    """A row from JSON; rows of earlier versions lack the fields that have a default, or name the head `mirrored`.

    Raises:
        ValueError: if it does not have the fields of `Result`; `where` says whose row it is.
    """
    optional = {each.name for each in fields(Result) if each.default is not MISSING}
    needed = {each.name for each in fields(Result)} - optional
    if not isinstance(row, dict) or not needed <= set(row) <= needed | optional:
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where}: expected result rows with the fields {sorted(needed | optional)}, found {found}.")
    row = with_todays_head(row)
    try:
        return Result(**{name: _value(name, value) for name, value in row.items()})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _value(name: str, value: Any) -> Any:
    """A value of a row, checked; an interval of one episode is no number."""
    unknown = isinstance(value, float) and math.isnan(value)
    return value if unknown else options_of(Result)[name].read(value)


def with_todays_head(row: dict[str, Any]) -> dict[str, Any]:
    """A stored row or adaptation, with `prototype` and flips for what was the head `mirrored` in earlier versions."""
    return {**row, "head": "prototype", "flips": True} if row["head"] == "mirrored" else row


def print_table(results: Sequence[Result], console: Console | None = None) -> None:
    """Print one table for each evaluation among `results`, the papers' figures beside ours.

    Args:
        results: rows, in the order in which methods are to be listed.
        console: where to; a fresh one on stdout by default.
    """
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    if console.width < NARROWEST and not console.is_terminal:
        console.width = NARROWEST  # a file or a pipe does not break lines
    for title, header, rows, sources in tables(results):
        # Not the table's own title, which would be broken to the table's width.
        console.print(title, style="table.title", soft_wrap=True)
        table = Table(caption_justify="left")
        kept = [index for index, name in enumerate(header) if name != "paper"]
        for index in kept:
            table.add_column(header[index], justify="left" if index < 3 else "right", no_wrap=index > 0)
        for row in rows:
            table.add_row(*(_with_paper(header, row, index) for index in kept))
        if sources:
            table.caption = "\n".join(f"In brackets: {source}." for source in sources)
        console.print(table)


def _with_paper(header: list[str], row: list[str], index: int) -> str:
    """A cell, and below it the paper's figure: a terminal has no room for columns of these."""
    has_paper = header[index + 1 : index + 2] == ["paper"] and row[index + 1] != "-"
    return f"{row[index]}\n({row[index + 1]})" if has_paper else row[index]


def markdown_table(results: Sequence[Result]) -> str:
    """The same tables as Markdown."""
    parts = []
    for title, header, rows, sources in tables(results):
        lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
        lines += [line for source in sources for line in ("", f"paper: {source}.")]
        parts.append("\n".join([f"**{title}**", "", *lines]))
    return "\n\n".join(parts)


Table = tuple[str, list[str], list[list[str]], list[str]]


def tables(results: Sequence[Result]) -> list[Table]:
    """Title, header, rows and sources of the papers' figures of a table for each evaluation.

    A table has one row a method and head, one column a number of shots.
    """
    protocols: dict[tuple, list[Result]] = {}
    for result in [*results, *means_over_domains(results)]:
        protocol = (result.dataset, result.split, result.ways, result.episodes, result.seed, result.metric)
        protocols.setdefault(protocol, []).append(result)
    return [_table(rows) for rows in protocols.values()]


def means_over_domains(results: Sequence[Result]) -> list[Result]:
    """For runs over a pool of several domains, the mean of each method's rows on all data sets, as papers report it.

    The interval is that of the mean of independent evaluations.
    """
    datasets = sorted({result.dataset for result in results})
    kinds: dict[tuple, list[Result]] = {}
    for result in results:
        if result.pool == "several domains":
            kinds.setdefault(_contestant(replace(result, dataset="")), []).append(result)
    return [
        replace(
            rows[0],
            dataset=", ".join(datasets),
            mean=sum(row.mean for row in rows) / len(rows),
            ci95=sum(row.ci95**2 for row in rows) ** 0.5 / len(rows),
        )
        for rows in kinds.values()
        if len(rows) == len(datasets) > 1
    ]


def results_chart(results: Sequence[Result], path: Path | str) -> Path:
    """Draw the rows of one evaluation as bars with their 95 % intervals; the path written."""
    title, *_ = tables(results)[0]
    bars: dict[str, dict[str, tuple[float, float]]] = {}
    for result in results:
        # "Best member + prototype" says its head itself.
        said = result.head if result.head and result.head in result.method else ""
        how = [result.how.removeprefix(said).removeprefix(", "), f"bn {result.bn}" if result.bn else ""]
        name = "\n".join([result.method, ", ".join(filter(None, how))])
        bars.setdefault(name, {})[f"{result.shots}-shot"] = (result.mean, result.ci95)
    label = "accuracy (%)" if results[0].metric == "accuracy" else "mean squared error"
    return bar_chart(bars, path, title=title, label=label)


def _table(results: Sequence[Result]) -> Table:
    first = results[0]
    unit = "accuracy in %" if first.metric == "accuracy" else "mean squared error"
    ways = f"{first.ways}-way, " if first.ways else ""
    title = f"{first.dataset}, {first.split} classes, {ways}{first.episodes} episodes, seed {first.seed}: {unit}"
    shots = sorted({result.shots for result in results})
    sources = list(dict.fromkeys(result.paper.source for result in results if result.paper))
    header = ["method", "head", "bn"]
    for count in shots:
        header += [f"{count}-shot", "paper"] if sources else [f"{count}-shot"]
    digits = 2 if first.metric == "accuracy" else 3
    cells: dict[tuple[str, ...], dict[int, Result]] = {}
    for result in results:
        cells.setdefault((result.method, result.how, result.bn or "-"), {})[result.shots] = result
    rows = []
    for key, ours in cells.items():
        row = list(key)
        for count in shots:
            found = ours.get(count)
            row.append(_figure(found.mean, found.ci95, digits) if found else "-")
            if sources:
                paper = found.paper if found else None
                row.append(_figure(paper.mean, paper.spread, digits) if paper else "-")
        rows.append(row)
    return title, header, rows, sources


def _figure(mean: float, spread: float | None, digits: int) -> str:
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")
