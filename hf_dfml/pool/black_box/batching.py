"""One forward pass for requests that arrive together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future

import torch
from torch import Tensor

Forward = Callable[[Hashable, Tensor], Tensor]
"""A member and images `(B, 3, h, w)` -> its answers `(B, C)`."""


class Batcher:
    """Answers many threads with few forward passes: what arrives while one runs goes into the next ones together.

    Requests are not delayed to fill a batch, so a single request costs no more than without one. Members take turns in
    the order of their first waiting request.

    Args:
        forward: called in one thread, never twice at a time.
        most: images of one pass; a request with more of them has one of its own.

    Attributes:
        passes: forward passes so far.
    """

    def __init__(self, forward: Forward, most: int = 256) -> None:
        if most < 1:
            raise ValueError(f"most={most}: expected 1 image or more.")
        self.passes = 0
        self._forward, self._most = forward, most
        self._waiting: deque[tuple[Hashable, Tensor, Future[Tensor]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="hf_dfml-batches", daemon=True)
        self._thread.start()

    def __call__(self, member: Hashable, images: Tensor) -> Tensor:
        """The answers `(B, C)` to images of one size `(B, 3, h, w)`.

        Raises:
            Exception: what `forward` raised, to all whose images were in that pass.
        """
        future: Future[Tensor] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("The server is being shut down.")
            self._waiting.append((member, images, future))
            self._changed.notify()
        return future.result()

    def close(self) -> None:
        """Answer what waits and end the thread: a process that ends under it, within PyTorch, would be aborted."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (jobs := self._take()) is not None:
            sizes = [len(images) for _, images, _ in jobs]
            try:
                self.passes += 1
                answers = self._forward(jobs[0][0], torch.cat([images for _, images, _ in jobs])).split(sizes)
            except Exception as error:  # Whoever waits gets it.
                for _, _, future in jobs:
                    future.set_exception(error)
            else:
                for (_, _, future), answer in zip(jobs, answers, strict=True):
                    future.set_result(answer)

    def _take(self) -> list[tuple[Hashable, Tensor, Future[Tensor]]] | None:
        """The requests of the next pass: the first that waits, and others for the same member; None at the end."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            taken = [self._waiting.popleft()]
            room = self._most - len(taken[0][1])
            rest: deque[tuple[Hashable, Tensor, Future[Tensor]]] = deque()
            for job in self._waiting:
                if job[0] == taken[0][0] and len(job[1]) <= room:
                    taken.append(job)
                    room -= len(job[1])
                else:
                    rest.append(job)
            self._waiting = rest
            return taken
