"""Rows of results: what they hold, how they are written, and the table that a person reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from hf_dfml.evaluation.published import Figure, published
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.pictures import bar_chart
from hf_dfml.utils.provenance import scrub_command

if TYPE_CHECKING:
    from rich.console import Console

RESULTS_NAME = "results.json"
PAPER_NOTE = (
    "paper: as printed there; FREE's tables (1 and 5 shots) are transductive, fine-tuned, with the checkpoint chosen "
    "on the test classes."
)
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
        head: `finetune`, `prototype`, `linear` or `icfil`.
        episodes: how many.
        metric: `accuracy` in percent, or `mse`.
        mean: mean over the episodes.
        ci95: half the width of the 95 % interval of that mean.
        seed: of the episodes.
        split: `test`, `validation` or `train`.
        seconds: wall time of the evaluation that gave the row, shared equally by its shots.
        command: what a user types to get the row again.
    """

    method: str
    dataset: str
    ways: int | None
    shots: int
    bn: str | None
    head: str | None
    episodes: int
    metric: Literal["accuracy", "mse"]
    mean: float
    ci95: float
    seed: int
    split: str
    seconds: float
    command: str

    @property
    def paper(self) -> Figure | None:
        """The figure of the papers for this method in this evaluation; None on other classes than the test classes."""
        return published(self.method, self.dataset, self.ways, self.shots) if self.split == "test" else None


Record = Callable[[list[Result]], Any]
"""Is given all rows so far, whenever an evaluation has new ones, so that a failure later loses none."""


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
    """Who was evaluated how: everything about a row but what came out and what it cost."""
    outcome = ("mean", "ci95", "seconds", "command")
    return tuple(getattr(row, field.name) for field in fields(row) if field.name not in outcome)


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
    try:
        rows = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    return [result_from_json(row, str(path)) for row in rows]


def result_from_json(row: object, where: str) -> Result:
    """A row from JSON.

    Raises:
        ValueError: if it does not have exactly the fields of `Result`; `where` says whose row it is.
    """
    names = {field.name for field in fields(Result)}
    if not isinstance(row, dict) or set(row) != names:
        found = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{where}: expected result rows with the fields {sorted(names)}, found {found}.")
    return Result(**row)


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
    for title, header, rows in tables(results):
        # Not the table's own title, which would be broken to the table's width.
        console.print(title, style="table.title", soft_wrap=True)
        table = Table(caption_justify="left")
        kept = [index for index, name in enumerate(header) if name != "paper"]
        for index in kept:
            table.add_column(header[index], justify="left" if index < 3 else "right", no_wrap=index > 0)
        for row in rows:
            table.add_row(*(_with_paper(header, row, index) for index in kept))
        if "paper" in header:
            table.caption = f"In brackets, paper{PAPER_NOTE.removeprefix('paper')}"
        console.print(table)


def _with_paper(header: list[str], row: list[str], index: int) -> str:
    """A cell, and below it the paper's figure: a terminal has no room for columns of these."""
    has_paper = header[index + 1 : index + 2] == ["paper"] and row[index + 1] != "-"
    return f"{row[index]}\n({row[index + 1]})" if has_paper else row[index]


def markdown_table(results: Sequence[Result]) -> str:
    """The same tables as Markdown."""
    parts = []
    for title, header, rows in tables(results):
        lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
        if "paper" in header:
            lines += ["", PAPER_NOTE]
        parts.append("\n".join([f"**{title}**", "", *lines]))
    return "\n\n".join(parts)


def tables(results: Sequence[Result]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of a table for each evaluation: one row a method, one column a number of shots."""
    protocols: dict[tuple, list[Result]] = {}
    for result in results:
        protocol = (result.dataset, result.split, result.ways, result.episodes, result.seed, result.metric)
        protocols.setdefault(protocol, []).append(result)
    return [_table(rows) for rows in protocols.values()]


def results_chart(results: Sequence[Result], path: Path | str) -> Path:
    """Draw the rows of one evaluation as bars with their 95 % intervals; the path written."""
    title = tables(results)[0][0]
    bars: dict[str, dict[str, tuple[float, float]]] = {}
    for result in results:
        # "Best member + prototype" says its head itself.
        how = [result.head] if result.head and result.head not in result.method else []
        how += [f"bn {result.bn}"] if result.bn else []
        name = "\n".join([result.method, ", ".join(how)])
        bars.setdefault(name, {})[f"{result.shots}-shot"] = (result.mean, result.ci95)
    label = "accuracy (%)" if results[0].metric == "accuracy" else "mean squared error"
    return bar_chart(bars, path, title=title, label=label)


def _table(results: Sequence[Result]) -> tuple[str, list[str], list[list[str]]]:
    first = results[0]
    unit = "accuracy in %" if first.metric == "accuracy" else "mean squared error"
    ways = f"{first.ways}-way, " if first.ways else ""
    title = f"{first.dataset}, {first.split} classes, {ways}{first.episodes} episodes, seed {first.seed}: {unit}"
    shots = sorted({result.shots for result in results})
    with_paper = any(result.paper for result in results)
    header = ["method", "head", "bn"]
    for count in shots:
        header += [f"{count}-shot", "paper"] if with_paper else [f"{count}-shot"]
    digits = 2 if first.metric == "accuracy" else 3
    rows = []
    for key in dict.fromkeys((result.method, result.head, result.bn) for result in results):
        row = [str(part or "-") for part in key]
        ours = {result.shots: result for result in results if (result.method, result.head, result.bn) == key}
        for count in shots:
            result = ours.get(count)
            row.append(_figure((result.mean, result.ci95), digits) if result else "-")
            if with_paper:
                row.append(_figure(result.paper, digits) if result and result.paper else "-")
        rows.append(row)
    return title, header, rows


def _figure(figure: Figure, digits: int) -> str:
    mean, interval = figure
    return f"{mean:.{digits}f}" + (f" ± {interval:.{digits}f}" if interval is not None else "")
