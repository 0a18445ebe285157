"""What a head is: from a support set to a classifier; and how a network is adapted by one."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from hf_dfml.networks.functional import BatchNorm, batch_statistics, functional_forward
from hf_dfml.networks.info import Representation
from hf_dfml.utils.own_code import class_of_file, is_file

BATCH_NORMS: tuple[BatchNorm, ...] = ("support", "running", "transductive")

REPRESENTATIONS: tuple[Representation, ...] = get_args(Representation)

HEADS: dict[str, type[Head]] = {}
"""The heads by name. A class enters when it is defined, also one of a user's own file."""

PAPERS_INNER_LOOP = (10, 0.01)
"""Steps and learning rate of the papers' evaluations (BiDf-MKD, FREE, TGR)."""

Adapted = dict[str, Tensor]
"""What a support set leaves behind, by name; each head has its own."""


class Head(ABC):
    """Turns one network and support sets of `ways` classes into classifiers; the network itself is never changed.

    A subclass with a `name` is a choice of `--head`, of `MetaModel.adapt` and of `EvaluationProtocol` from the moment
    that it is defined. It defines `fit` and `logits`; heads that leave the network as it is are `FeatureHead`s.

    Args:
        network: any that `network_info` knows.
        ways: N, classes of a support set.
        how: batch norm, flips, inner steps.
        options: an instance of `Options`; its defaults without.

    Attributes:
        name: what a user types.
        help: what it does, in a few words.
        Options: dataclass of options of its own, or None.
        on_features: whether it leaves the network as it is, so that images can be passed through it beforehand.
        takes_steps: whether it takes inner steps, which rows then name.
        vectorises: whether `fit` and `logits` run under `torch.func.vmap`.
        by_default: whether it may become the default of a meta-model, if it is the best on the validation classes.
        compared_with: the head that differs in one thing alone, whose rows are shown beside this one's.

    Raises:
        ValueError: if the options are not those of the head.
    """

    name: ClassVar[str] = ""
    help: ClassVar[str] = ""
    Options: ClassVar[type | None] = None
    on_features: ClassVar[bool] = False
    takes_steps: ClassVar[bool] = False
    vectorises: ClassVar[bool] = True
    by_default: ClassVar[bool] = False
    compared_with: ClassVar[str | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        name = vars(cls).get("name")
        if not name:
            return
        known = HEADS.get(name)
        if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"{cls.__qualname__} has the name '{name}' of {known.__qualname__}: choose another name.")
        HEADS[name] = cls

    def __init__(self, network: nn.Module, ways: int, how: Adaptation, options: Any = None) -> None:
        if options is not None and not (self.Options and isinstance(options, self.Options)):
            expected = f"an instance of {self.Options.__name__}" if self.Options else "none"
            raise ValueError(
                f"Options of head='{self.name}': expected {expected}, found a {type(options).__name__}: leave it out."
            )
        self.ways, self.how = ways, how
        self.options = self.Options() if options is None and self.Options else options
        # Dropout is off in an evaluation; a copy leaves the caller's network in its own mode. Tensors that were made
        # under torch.inference_mode() cannot take part in gradients, copies of them can.
        tensors = (*network.parameters(), *network.buffers())
        copied = network.training or any(tensor.is_inference() for tensor in tensors)
        self.network = copy.deepcopy(network).eval() if copied else network
        self.params = {name: value.detach() for name, value in self.network.named_parameters()}

    @abstractmethod
    def fit(self, support: Tensor, labels: Tensor, *, under_vmap: bool = False) -> Adapted:
        """Adapt to a support set `(S, 3, H, W)` in [0, 1] with labels `(S,)` in 0..N-1; perhaps inside of `vmap`."""

    @abstractmethod
    def logits(self, adapted: Adapted, support: Tensor, query: Tensor, *, under_vmap: bool = False) -> Tensor:
        """Logits `(Q, N)` of queries `(Q, 3, H, W)` in [0, 1]; the support set is what `fit` was given."""

    def fit_each(self, support: Tensor, labels: Tensor) -> list[Adapted]:
        """`fit` to each of some support sets `(E, S, 3, H, W)` with the same labels; never inside of `vmap`."""
        return [self.fit(images, labels) for images in support]

    def as_network(self, adapted: Adapted, support: Tensor) -> nn.Module | None:
        """The classifier as one network, so that it can be stored: normalised images -> logits `(B, N)`.

        Its batch-norm statistics are the support set's where `bn` is `support`. None where a classifier of this head
        is more than a network; it then needs its support set to answer.
        """
        return None

    def leave_one_out(self, support: Tensor, labels: Tensor, rows: Sequence[int]) -> Tensor:
        """What is predicted for each of these support images by a classifier that was fitted to all others: `(R,)`."""
        found = []
        for row in rows:
            others = torch.arange(len(support), device=support.device) != row
            adapted = self.fit(support[others], labels[others])
            found.append(self.logits(adapted, support[others], support[row : row + 1]).argmax(-1))
        return torch.cat(found)

    def statistics(self, params: Mapping[str, Tensor], support: Tensor) -> dict[str, Tensor]:
        """The support set's batch-norm statistics by name, where `bn` is `support`; else none."""
        return batch_statistics(self.network, params, support) if self.how.bn == "support" else {}

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features `(B, D)`, under the batch's own statistics unless `bn` is `running`."""
        source: Literal["running", "batch"] = "running" if self.how.bn == "running" else "batch"
        return functional_forward(self.network, self.params, images, source=source, features=True)


def choices() -> str:
    """The heads and what they do, in one line for a help text."""
    return ", ".join(f"`{name}` ({head.help})" for name, head in sorted(HEADS.items()))


def find_head(name: str | None) -> str | None:
    """The name of a head that a user types: a key of `HEADS`, or `path/to/file.py:CLASS`, whose head enters `HEADS`.

    Only for command lines: a file that was downloaded must not name code to be run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file has no such head.
    """
    return class_of_file(name, Head, "head").name if name and is_file(name) else name  # type: ignore[type-abstract]


def heads_on_features() -> list[str]:
    """Names of the heads that leave the network as it is."""
    return sorted(name for name, head in HEADS.items() if head.on_features)


@dataclass(frozen=True)
class Adaptation:
    """How a network is adapted to a support set; the defaults are the papers' steps with a non-transductive norm.

    A meta-model carries its own, with the steps and the learning rate that it was meta-trained with.

    Raises:
        ValueError: if there is no such head or batch norm, the head has no use for flips, or steps or learning rate
            are out of range.
    """

    bn: BatchNorm = field(
        default="support",
        metadata={"help": "Statistics that normalise the queries: of the support set, stored, or of all queries."},
    )
    head: str = field(default="finetune", metadata={"help": "From a support set to a classifier; see `HEADS`."})
    steps: int = field(
        default=PAPERS_INNER_LOOP[0],
        metadata={"help": "SGD steps on the support set of heads that adapt the network."},
    )
    lr: float = field(default=PAPERS_INNER_LOOP[1], metadata={"help": "Learning rate of these steps."})
    flips: bool = field(
        default=False, metadata={"help": "See each image together with its mirror image (heads on features)."}
    )
    representation: Representation = field(
        default="features",
        metadata={
            "help": "What heads on features work with: a network's `features`, the `answers` it predicts, or `both`."
        },
    )

    def __post_init__(self) -> None:
        if self.bn not in BATCH_NORMS:
            raise ValueError(f"bn='{self.bn}': expected one of {', '.join(BATCH_NORMS)}.")
        if self.head not in HEADS:
            raise ValueError(f"head='{self.head}': expected one of {', '.join(sorted(HEADS))}.")
        if self.flips and not HEADS[self.head].on_features:
            raise ValueError(
                f"flips with head='{self.head}': features of images and of their mirror images are taken together, "
                f"which needs a head on features: choose one of {', '.join(heads_on_features())}, or leave flips out."
            )
        if self.representation not in REPRESENTATIONS:
            raise ValueError(f"representation='{self.representation}': expected one of {', '.join(REPRESENTATIONS)}.")
        if self.representation != "features" and not HEADS[self.head].on_features:
            raise ValueError(
                f"representation='{self.representation}' with head='{self.head}': expected a head on features "
                f"({', '.join(heads_on_features())}), or representation='features'."
            )
        if self.steps < 0 or self.lr <= 0:
            raise ValueError(
                f"Fine-tuning needs 0 or more steps at a positive learning rate, found {self.steps} at {self.lr}."
            )

    def but(self, head: str | None = None, **others: Any) -> Adaptation:
        """The same but for what is not None; flips and representation stay with the head they were chosen for."""
        changes = {name: value for name, value in {"head": head, **others}.items() if value is not None}
        if head not in (None, self.head):
            changes = {"flips": False, "representation": "features", **changes}
        return replace(self, **changes)
