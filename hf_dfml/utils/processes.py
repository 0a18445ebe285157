"""The processes of a run, among which work is divided. All communication goes through Accelerate, and through here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_dfml.utils.transport import class_of, name_of, pack, unpack

if TYPE_CHECKING:
    from accelerate import Accelerator

Item = TypeVar("Item")
Result = TypeVar("Result")


class ProcessLostError(ConnectionError):
    """Another process of the run has died, or did not answer in time."""


class Processes:
    """Divides work so that N processes come to the result of one, and all of them know it.

    Every process calls the same methods with the same items in the same order, and keeps the whole state of the run.
    Whatever is random about an item comes with it (`hf_dfml.utils.seeding.spawn`), so that it does not matter who
    works on it. An error that one process meets is raised by all. One process that is alone does everything itself.

    Args:
        accelerator: knows the processes; None for one that is alone.

    Attributes:
        count: how many processes there are.
        is_main: whether this is the one that writes and prints.
        device: where its tensors live.

    Examples:
        >>> alone = Processes()
        >>> alone.map(lambda item: 10 * item, [1, 2, 3])
        [10, 20, 30]
        >>> alone.sum(lambda item: [torch.ones(2) * item], [1, 2, 3], like=[torch.empty(2)])
        [tensor([6., 6.])]
    """

    def __init__(self, accelerator: Accelerator | None = None) -> None:
        self.accelerator = accelerator
        self.count = accelerator.num_processes if accelerator else 1
        self._index = accelerator.process_index if accelerator else 0
        self.is_main = self._index == 0
        device = accelerator.device if accelerator else torch.device("cpu")
        # One of several processes on CPUs is told "cpu:0", which safetensors does not know.
        self.device = torch.device("cpu") if device.type == "cpu" else device

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """`function(item)` of each item, in the order of the items; tensors come on this process's device.

        Raises:
            TypeError: of several processes, for a result that cannot go from one to another; see
                `hf_dfml.utils.transport`.
        """
        if self.count == 1:
            return [function(item) for item in items]
        message = self._attempt(lambda: pack([function(item) for item in self._share(items)]))
        parts = [unpack(part, self.device) for part in self._gather(message)]
        results: list[Any] = [None] * sum(map(len, parts))
        for index, part in enumerate(parts):
            results[index :: self.count] = part
        return results

    def once(self, function: Callable[[], Result]) -> Result:
        """`function()`, called by the main process alone: for work that cannot be divided, and for files."""
        return self.map(lambda _: function(), [None])[0]

    def sum(
        self, function: Callable[[Item], Sequence[Tensor]], items: Iterable[Item], like: Sequence[Tensor]
    ) -> list[Tensor]:
        """The sum over the items of the tensors that `function(item)` gives.

        On a CPU it is formed in double precision. In single precision it would depend on the order of the items, and
        Adam makes whole steps of such differences where a gradient is zero but for rounding (a bias before a batch
        norm has such a gradient).

        Args:
            function: an item -> tensors.
            items: of the work.
            like: tensors of the same shapes and types, for a process that has no item.
        """

        def my_part() -> list[Tensor]:
            total = [torch.zeros_like(tensor, dtype=_exact(tensor)) for tensor in like]
            for item in self._share(items):
                for tensor, addend in zip(total, function(item), strict=True):
                    tensor += addend
            return total

        total = self._attempt(my_part)
        if self.accelerator and self.count > 1:
            # One message instead of one a tensor.
            flat = torch.cat([tensor.flatten() for tensor in total])
            parts = self._connected(self.accelerator.reduce, flat, "sum").split([tensor.numel() for tensor in like])
            total = [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]
        return [part.to(tensor.dtype) for part, tensor in zip(total, like, strict=True)]

    def first(self, value: Item | None) -> Item | None:
        """What the first process that has a value (not None) has, for decisions that all must take alike."""
        if self.count == 1:
            return value
        return next((found for found in map(unpack, self._gather(pack(value))) if found is not None), None)

    def _share(self, items: Iterable[Item]) -> Iterator[Item]:
        return islice(items, self._index, None, self.count)

    def _attempt(self, work: Callable[[], Result]) -> Result:
        """`work()`; the error that any process met is raised by all."""
        if self.count == 1:
            return work()
        mine = None
        try:
            result = work()
        except Exception as error:
            mine = error
        # The class and the words: what else an error holds may not be fit for a journey.
        to_answers = self._gather(pack((name_of(type(mine)), str(mine)) if mine else None))
        errors = [unpack(message) for message in to_answers]
        place = next((index for index, found in enumerate(errors) if found), None)
        if place is None:
            return result
        if mine is not None and place == self._index:
            raise mine
        name, words = errors[place]
        kind = class_of(name)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            kind, words = RuntimeError, f"{name.rpartition(':')[2]}: {words}"
        # Without __init__, which may want more than words.
        raise kind.__new__(kind, f"{words} (process {place} of {self.count})") from mine

    def _gather(self, message: bytes) -> list[bytes]:
        """The message of each process."""
        assert self.accelerator is not None
        device, gather = self.accelerator.device, self.accelerator.gather
        mine = torch.frombuffer(bytearray(message), dtype=torch.uint8).to(device)
        sizes = self._connected(gather, torch.tensor([len(mine)], device=device)).tolist()
        # Of one length, as the processes' parts of one tensor are.
        padded = F.pad(mine, (0, max(sizes) - len(mine)))
        parts = self._connected(gather, padded).cpu().view(self.count, -1)
        return [part[:size].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]

    def _connected(self, communicate: Callable[..., Result], *arguments: Any) -> Result:
        try:
            return communicate(*arguments)
        except RuntimeError as error:
            raise ProcessLostError(
                f"process {self._index} of {self.count} has lost another one: it died (look for its own message) or "
                "did not answer within --patience_minutes"
            ) from error


ALONE = Processes()


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.device.type == "cpu" else tensor.dtype
