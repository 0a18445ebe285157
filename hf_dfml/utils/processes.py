"""The processes of a run, among which work is divided. All communication goes through Accelerate, and through here."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

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
        # One of several processes on CPUs has the device "cpu:0", which safetensors does not know.
        self.device = torch.device("cpu") if device.type == "cpu" else device

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """`function(item)` of each item, in the order of the items; tensors come on this process's device.

        Raises:
            Exception: of several processes, that of pickle for a result that cannot be pickled.
        """
        if self.count == 1:
            return [function(item) for item in items]
        parts = self._outcomes(lambda: [function(item) for item in self._share(items)])
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
            total = [torch.zeros_like(one, dtype=torch.float64 if one.device.type == "cpu" else None) for one in like]
            for item in self._share(items):
                for tensor, addend in zip(total, function(item), strict=True):
                    tensor += addend
            return total

        if self.accelerator is None or self.count == 1:
            total = my_part()
        else:
            total = []
            self._outcomes(lambda: total.extend(my_part()))
            # One message instead of one a tensor.
            flat = torch.cat([tensor.flatten() for tensor in total])
            parts = self._connected(self.accelerator.reduce, flat, "sum").split([tensor.numel() for tensor in like])
            total = [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]
        return [part.to(tensor.dtype) for part, tensor in zip(total, like, strict=True)]

    def first(self, value: Item | None) -> Item | None:
        """What the first process that has a value (not None) has, for decisions that all must take alike."""
        return next((found for found in self._gather(value) if found is not None), None)

    def _share(self, items: Iterable[Item]) -> Iterator[Item]:
        return islice(items, self._index, None, self.count)

    def _outcomes(self, work: Callable[[], Result]) -> list[Result]:
        """The result of `work()` in each process; the error that any process met is raised by all."""
        mine: Exception | None = None
        outcome: bytes | tuple[type[Exception], str]
        try:
            # Pickled here: an error while gathering would leave the other processes waiting.
            outcome = pickle.dumps(_moved(work(), torch.device("cpu")))
        except Exception as error:
            mine = error
            # What else an error holds may not be fit for pickling, nor is a class that is local to a function.
            outcome = (RuntimeError if "<locals>" in type(error).__qualname__ else type(error), str(error))
        outcomes = self._gather(outcome)
        for place, found in enumerate(outcomes):
            if isinstance(found, tuple):
                if mine is not None and place == self._index:
                    raise mine
                kind, words = found
                # Without __init__, which may want more than words.
                raise kind.__new__(kind, f"{words} (process {place} of {self.count})") from mine
        return [_moved(pickle.loads(found), self.device) for found in outcomes]  # type: ignore[arg-type]

    def _gather(self, value: Item) -> list[Item]:
        """The value of each process."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return self._connected(gather_object, [value])

    def _connected(self, communicate: Callable[..., Result], *arguments: Any) -> Result:
        try:
            return communicate(*arguments)
        except RuntimeError as error:
            raise ProcessLostError(
                f"process {self._index} of {self.count} has lost another one: it died (look for its own message) or "
                "did not answer within --patience_minutes"
            ) from error


ALONE = Processes()


def _moved(value: Any, device: torch.device) -> Any:
    """A value whose tensors, also in containers and dataclasses, are copies on `device` without a graph."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)  # Else a view would be pickled with all that it is a view of.
    if isinstance(value, list | tuple):
        return type(value)([_moved(item, device) for item in value])
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _moved(getattr(value, field.name), device) for field in fields(value)})
    return value
