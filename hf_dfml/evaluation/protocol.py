"""The protocol of an evaluation: its settings, its episodes, and the rows of its result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from hf_dfml.data.episodes import EpisodeSampler
from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.evaluation.heads import HEADS, Adaptation, Representation, choices
from hf_dfml.evaluation.results import Result, mean_and_interval
from hf_dfml.networks.functional import BatchNorm
from hf_dfml.utils.images import resize, to_unit
from hf_dfml.utils.progress import progress as progress_bar
from hf_dfml.utils.provenance import this_command
from hf_dfml.utils.seeding import fork

Item = TypeVar("Item")


@dataclass(frozen=True)
class EvaluationProtocol:
    """The meta-testing protocol; the defaults are the papers' but for the batch norm (theirs is transductive)."""

    ways: int = field(default=5, metadata={"help": "Classes of an episode."})
    shots: list[int] = field(default_factory=lambda: [1, 5], metadata={"help": "Support images a class."})
    queries: int = field(default=15, metadata={"help": "Query images a class."})
    episodes: int = field(default=600, metadata={"help": "Number of episodes."})
    bn: BatchNorm = field(
        default="support",
        metadata={"help": "Statistics that normalise the queries: of the support set, stored, or of all queries."},
    )
    head: str = field(default="finetune", metadata={"help": f"From a support set to a classifier: {choices()}."})
    inner_steps: int = field(
        default=10, metadata={"help": "SGD steps on the support set of heads that adapt the network."}
    )
    inner_lr: float = field(default=0.01, metadata={"help": "Learning rate of these steps."})
    flips: bool = field(
        default=False, metadata={"help": "See each image together with its mirror image (heads on features)."}
    )
    representation: Representation = field(
        default="features",
        metadata={
            "help": "What heads on features work with: a network's `features`, the `answers` it predicts, or `both`."
        },
    )
    seed: int = field(default=0, metadata={"help": "Seed of the episodes: with the same seed all get the same ones."})
    split: str = field(
        default="test", metadata={"help": "Classes to load: validation to choose, test once at the end."}
    )
    options: Any = field(default=None, metadata={"help": "The head's own options, where it has any."})

    def __post_init__(self) -> None:
        if self.episodes < 2:
            raise ValueError(f"An evaluation of {self.episodes} episodes has no interval: expected at least 2.")
        if self.ways < 2:
            raise ValueError(f"An episode of {self.ways} class has nothing to tell apart: expected at least 2 ways.")
        if self.queries < 1 or not self.shots:
            raise ValueError(
                f"An evaluation needs queries and shots, found {self.queries} queries and shots {self.shots}."
            )
        # The other fields are checked where they are used; these here so that a typo costs no training run.
        _ = self.adaptation

    @property
    def adaptation(self) -> Adaptation:
        """How a network is adapted to a support set in this evaluation."""
        return Adaptation(self.bn, self.head, self.inner_steps, self.inner_lr, self.flips, self.representation)

    def under(self, how: Adaptation) -> EvaluationProtocol:
        """The same episodes under another adaptation; options of a head stay with that head."""
        options = self.options if how.head == self.head else None
        return replace(
            self,
            bn=how.bn,
            head=how.head,
            inner_steps=how.steps,
            inner_lr=how.lr,
            flips=how.flips,
            representation=how.representation,
            options=options,
        )


def check_episodes(dataset: FewShotDataset, protocol: EvaluationProtocol) -> None:
    """Make sure that a data set has the classes and images that episodes need.

    Raises:
        ValueError: if it has not; says what there is.
    """
    for shots in protocol.shots:
        EpisodeSampler(dataset, protocol.ways, shots, protocol.queries)


def draw_episodes(dataset: FewShotDataset, protocol: EvaluationProtocol, shots: int) -> tuple[Tensor, Tensor]:
    """Rows of `dataset.images`, support `(E, N*K)` and query `(E, N*Q)`: the same for all contestants."""
    sampler = EpisodeSampler(dataset, protocol.ways, shots, protocol.queries)
    return sampler.sample_indices(protocol.episodes, fork(protocol.seed, "exam", dataset.split, protocol.ways, shots))


def episode_labels(protocol: EvaluationProtocol, shots: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Labels of an episode's support `(N*K,)` and queries `(N*Q,)`, both ordered by class."""
    ways = torch.arange(protocol.ways, device=device)
    return ways.repeat_interleave(shots), ways.repeat_interleave(protocol.queries)


def images_of_rows(dataset: FewShotDataset, rows: Tensor, size: tuple[int, int], device: torch.device) -> Tensor:
    """Images `(*rows.shape, 3, H, W)` in [0, 1], of the network's input size."""
    images = to_unit(dataset.images[rows.flatten().to(dataset.images.device)].to(device))
    return resize(images, size).unflatten(0, rows.shape)


def result_row(
    dataset: FewShotDataset,
    protocol: EvaluationProtocol,
    shots: int,
    method: str,
    accuracies: Tensor,
    seconds: float,
    command: str | None,
    image_size: int,
) -> Result:
    """The row of one contestant and number of shots; accuracies `(E,)` in [0, 1]."""
    mean, interval = mean_and_interval(100 * accuracies)
    adapts = HEADS[protocol.head].takes_steps
    return Result(
        method=method,
        dataset=dataset.name,
        ways=protocol.ways,
        shots=shots,
        bn=protocol.bn,
        head=protocol.head,
        flips=protocol.flips,
        representation=protocol.representation,
        inner_steps=protocol.inner_steps if adapts else None,
        inner_lr=protocol.inner_lr if adapts else None,
        episodes=protocol.episodes,
        metric="accuracy",
        mean=round(mean, 4),
        ci95=round(interval, 4),
        seed=protocol.seed,
        split=dataset.split,
        seconds=round(seconds, 2),
        command=command or this_command(),
        image_size=image_size,
    )


def watched(items: Iterable[Item], description: str, total: int | None, unit: str, shown: bool) -> Iterable[Item]:
    """The items, with a bar if it is to be shown."""
    return progress_bar(items, description=description, total=total, unit=unit) if shown else items
