"""Pools of which nothing but answers can be seen: prediction-only services, here or behind HTTP.

A black box takes images and returns, for each, one of:

| output | what crosses, for each image | what a loss works from |
|---|---|---|
| `logits` | the logits | the logits |
| `probs` | the probabilities of all classes | their logarithms (of at least 1e-12) |
| `topk` | the `top_k` largest probabilities | likewise; the missing mass is spread evenly over the other classes |
| `label` | the most probable class | likewise, of a one-hot answer smoothed by `SMOOTHING` |

Logarithms of probabilities are logits of the same distribution, so losses need not know which of these they are given.
Every image that is sent is counted, and a budget can end it. Answers of a remote service are kept, so that the same
image is not sent, nor counted, a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_dfml.pool.black_box.answers import AnswerCache
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.queries import Output, QueryCount
from hf_dfml.pool.teacher_pool import Member, TeacherPool
from hf_dfml.utils.images import to_unit
from hf_dfml.utils.text import counted

Lock = Callable[[Sequence[PoolEntry], Path], Path]
"""Pins the members of these entries in a file, or the folder that it goes into; the file."""
Ask = Callable[[PoolEntry, Tensor], Tensor]
"""Images `(B, 3, h, w)` in [0, 1] to a member -> its answers `(B, C)`, zero for classes not returned."""

SMOOTHING = 0.1
"""Probability mass that a bare label leaves for all classes together."""
LABEL_RESOLUTION = 0.02
"""The typical change of a pixel, in [0, 1], below which labels do not turn often enough to be a slope."""
_LEAST = 1e-12


class BlackBox(Member):
    """A member of a black-box pool: what `Teacher` is, with nothing but the answers.

    Images lose their graph on the way in; there are no parameters, statistics or features.

    Attributes:
        entry: what is publicly known of the member: id, class names, image size; never where its files are.
        device: where answers are put.
    """

    __slots__ = ("_ask", "_cache", "_count", "_output", "device", "entry")
    answers_only = True

    def __init__(
        self,
        entry: PoolEntry,
        ask: Ask,
        output: Output,
        count: QueryCount,
        device: torch.device | str = "cpu",
        cache: AnswerCache | None = None,
    ) -> None:
        self.entry, self.device = entry, torch.device(device)
        self._ask, self._output, self._count, self._cache = ask, output, count, cache

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Ask.

        Args:
            images: `(B, 3, h, w)` in [0, 1] (or uint8), of any size.

        Returns:
            `(B, num_classes)` without a graph: logits, or logarithms of probabilities (see the module's docstring).

        Raises:
            QueryBudgetError: if so many images are more than is allowed; none is sent.
        """
        return to_logits(self._answers(to_unit(images.detach())).to(self.device), self._output)

    def _answers(self, images: Tensor) -> Tensor:
        def send(new: Tensor) -> Tensor:
            self._count.spend(self.entry.id, len(new))
            return self._ask(self.entry, new)

        if self._cache is None:
            return send(images)
        answers, known = self._cache.ask(self.entry.id, images, send)
        self._count.cached[self.entry.id] += known
        return answers

    forward = __call__

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{self.entry.id} is a black box: nothing but its answers crosses, it has no '{name}'.")


class BlackBoxPool(TeacherPool):
    """A pool whose members answer and show nothing else. Made by `ModelPool.as_black_box` or `open_remote`.

    Pools made from this one (slices, `to`) share its count and budget.

    Args:
        entries: what is known of the members.
        ask: sends images to one of them.
        output: what answers are.
        queries: count of the images sent, with their budget.
        resolution: root mean square change of a pixel, in [0, 1], below which answers hardly distinguish two images:
            0 where pixels arrive as they are, 1 / 255 where they travel as PNG. Zero-order gradients take their
            differences over no less.
        cache: of answers, which so cost nothing a second time; None: every image is sent.
        lock: pins members whose files are at hand; None where nothing but answers is.
        device: where answers are put.
    """

    output: Output
    queries: QueryCount

    def __init__(
        self,
        entries: Iterable[PoolEntry],
        ask: Ask,
        output: Output,
        queries: QueryCount,
        *,
        resolution: float = 0.0,
        cache: AnswerCache | None = None,
        lock: Lock | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_answers(output)
        super().__init__(map(public, entries), device)
        self._ask, self.output, self.queries = ask, output, queries  # type: ignore[assignment]
        self._lock = lock
        self.resolution = max(resolution, LABEL_RESOLUTION) if output == "label" else resolution
        self.cache = cache

    def __repr__(self) -> str:
        members = counted(len(self), "member")
        return f"BlackBoxPool({members}, {self.output}, {self.queries.total} of {self.queries.allowed} queries)"

    def load(self, member: int | str | PoolEntry) -> BlackBox:
        """The black box of a member, given by its index, id or entry.

        Raises:
            KeyError: if the pool has no member of that id.
            IndexError: if it has none of that index.
        """
        entry = self._entry(member.id if isinstance(member, PoolEntry) else member)
        return BlackBox(entry, self._ask, self.output, self.queries, self.device, self.cache)

    def lock(self, path: Path | str) -> Path | None:
        """Pin the members where this process has their files; None for a remote service."""
        return self._lock(self, Path(path)) if self._lock else None

    def _like(self, entries: Iterable[PoolEntry]) -> BlackBoxPool:
        shared: dict[str, Any] = {"resolution": self.resolution, "cache": self.cache, "lock": self._lock}
        return BlackBoxPool(entries, self._ask, self.output, self.queries, device=self.device, **shared)


def check_answers(output: str, top_k: int = 1) -> None:
    """Refuse answers that cannot be given.

    Raises:
        ValueError: for another `output`, or a `top_k` below 1.
    """
    if output not in get_args(Output):
        raise ValueError(f"output='{output}': expected one of {', '.join(get_args(Output))}.")
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: expected at least 1 class.")


def public(entry: PoolEntry) -> PoolEntry:
    """What may be known of a black box: id and revision, class names, image size. Not its network, files, accuracy.

    Its normalisation is its own affair; recoveries that start from a noise of the usual range are given a usual one.
    """
    return PoolEntry(
        id=entry.id,
        revision=entry.revision,
        library="black box",
        architecture="black box",
        num_classes=entry.num_classes,
        input_size=entry.input_size,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        label_names=entry.label_names,
    )


def to_answers(logits: Tensor, output: Output, top_k: int) -> Tensor:
    """The answer `(B, C)` that a service makes of logits `(B, C)`, zero for classes not returned."""
    if output == "logits":
        return logits
    probabilities = logits.softmax(-1)
    if output == "probs":
        return probabilities
    values, classes = probabilities.topk(min(top_k, logits.shape[-1]) if output == "topk" else 1, dim=-1)
    values = values if output == "topk" else torch.ones_like(values)
    return torch.zeros_like(probabilities).scatter(-1, classes, values)


def to_logits(answers: Tensor, output: Output) -> Tensor:
    """What losses are given for answers `(B, C)`: logits, or logarithms of probabilities that sum to one."""
    if output == "logits":
        return answers
    if output == "topk":
        hidden = answers == 0
        missing = (1 - answers.sum(-1, keepdim=True)).clamp(min=0)
        answers = torch.where(hidden, missing / hidden.sum(-1, keepdim=True).clamp(min=1), answers)
    elif output == "label":
        classes = answers.shape[-1]
        answers = (1 - SMOOTHING) * F.one_hot(answers.argmax(-1), classes).to(answers.dtype) + SMOOTHING / classes
    return answers.clamp(min=_LEAST).log()
