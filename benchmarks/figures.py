"""What the benchmarks of the papers' figures share: figures with their definitions, and the accuracies behind them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev
from typing import Generic, Protocol, TypeVar

import torch
from measuring import write_section
from scipy.stats import spearmanr
from torch import Tensor, nn

from hf_dfml.data import FewShotDataset
from hf_dfml.evaluation import RESULTS_NAME, EvaluationProtocol, merged, read_results, write_results
from hf_dfml.evaluation.meta_testing import episode_accuracies
from hf_dfml.evaluation.protocol import result_row
from hf_dfml.evaluation.results import Result
from hf_dfml.networks import create_network
from hf_dfml.networks.info import network_info
from hf_dfml.pool import ModelPool
from hf_dfml.utils.seeding import fork

WAYS = 5


class Written(Protocol):
    """Options that say where figures go, and what everything random comes from."""

    @property
    def output_dir(self) -> str:
        """Folder of the rows of accuracies and of the table; none without."""

    @property
    def pictures(self) -> str:
        """Folder of the pictures; none without."""

    @property
    def seed(self) -> int:
        """Seed of everything random."""


Options = TypeVar("Options", bound=Written)


class Measured(Generic[Options]):
    """Figures with their definitions, and the rows of accuracies behind them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.figures: dict[str, float] = {}
        self.definitions: dict[str, str] = {}
        self.rows: list[Result] = []

    def note(self, name: str, value: float, definition: str) -> None:
        """Keep one figure and print it beside what it is."""
        self.figures[name], self.definitions[name] = float(f"{value:.4g}"), definition
        print(f"{name} = {value:.4g}: {definition}.", flush=True)

    def take(self, part: Measured[Options]) -> None:
        """Add what was measured apart from this."""
        self.figures |= part.figures
        self.definitions |= part.definitions
        self.rows += part.rows

    def write(self, name: str, title: str) -> None:
        """The rows, beside those of earlier commands, and a section of that title, if there is a folder."""
        folder = self.options.output_dir
        if not folder:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        earlier = read_results(folder) if (Path(folder) / RESULTS_NAME).is_file() else []
        write_results(folder, merged(earlier, self.rows))
        lines = [f"| `{each}` | {value:g} | {self.definitions[each]} |" for each, value in self.figures.items()]
        table = "\n".join(["| figure | value | what it is |", "|---|---|---|", *lines])
        write_section(folder, name, title, table)

    def picture(self, name: str) -> Path | None:
        """Where a figure goes, if figures are wanted."""
        return Path(self.options.pictures) / f"{name}.png" if self.options.pictures else None


def accuracy_of(
    found: Measured[Options], network: nn.Module, classes: FewShotDataset, protocol: EvaluationProtocol, name: str
) -> Tensor:
    """Accuracies `(E,)` in [0, 1], and a row of results."""
    (shots,), started = protocol.shots, time.monotonic()
    accuracies = episode_accuracies(network, classes, protocol, shots)
    seconds = time.monotonic() - started
    size = network_info(network).image_size
    found.rows.append(result_row(classes, protocol, shots, name, accuracies, seconds, None, size))
    return accuracies


def fresh_network(pool: ModelPool, options: Written) -> nn.Module:
    """A meta-model of the members' kind."""
    first = pool[0]
    return create_network(
        first.architecture or "conv4",
        num_classes=first.num_classes or WAYS,
        image_size=first.input_size[-1] if first.input_size else 32,
        mean=first.mean,
        std=first.std,
        generator=fork(options.seed, "network"),
    )


def interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean."""
    return 1.96 * stdev(values) / len(values) ** 0.5


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's, over the pairs of different members."""
    rows, columns = torch.triu_indices(len(first), len(first), 1)
    return float(spearmanr(first[rows, columns].numpy(), second[rows, columns].numpy()).statistic)
