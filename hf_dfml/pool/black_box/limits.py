"""What keeps a server's memory and threads bounded whatever clients send: a budget of bytes, a deadline to send."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

CHUNK = 64 << 10
"""Bytes of a body that are read at once."""


class BusyError(RuntimeError):
    """The server has no room for a request now; the same request may be answered later."""


class Budget:
    """Bytes that all requests together may hold; who finds no room waits for it.

    Args:
        total: bytes.
        seconds: the longest wait.
    """

    def __init__(self, total: int, seconds: float) -> None:
        self.total, self.seconds = total, seconds
        self._free = total
        self._changed = threading.Condition()

    def take(self, count: int) -> None:
        """Wait for room for `count` bytes, and take it.

        Raises:
            BusyError: if there is none in time.
        """
        with self._changed:
            # What is more than the whole waits until nobody else holds anything.
            count = min(count, self.total)
            if not self._changed.wait_for(lambda: self._free >= count, self.seconds):
                raise BusyError("the server is busy: send the request again later")
            self._free -= count

    def give(self, count: int) -> None:
        """Return `count` bytes that were taken."""
        with self._changed:
            self._free += min(count, self.total)
            self._changed.notify_all()

    @contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Take `count` bytes for the time of the block."""
        self.take(count)
        try:
            yield
        finally:
            self.give(count)


class DeadlineReader(io.RawIOBase):
    """Reads from a connection, each request within a number of seconds from its first byte, however it trickles in.

    Args:
        connection: of the client; waiting for a request's first byte takes as long at most.
        seconds: for one request.
    """

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._seconds = connection, seconds
        self.next_request()

    def next_request(self) -> None:
        """Begin anew with the time."""
        self._deadline, self._begun = time.monotonic() + self._seconds, False

    def readable(self) -> bool:
        """As in the base class."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """As in the base class; raises TimeoutError when the time is over."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long to arrive")
        self._connection.settimeout(left)
        try:
            count = self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(self._seconds)  # For what is sent back.
        if not self._begun:
            self._deadline, self._begun = time.monotonic() + self._seconds, True
        return count


def read_body(file: io.BufferedIOBase, length: int, budget: Budget) -> bytes:
    """A body of `length` bytes, taken from the budget as it arrives; the caller gives `length` back.

    Raises:
        BusyError: if there is no room; what was taken is given back.
        EOFError: if the client ends before; likewise.
        TimeoutError: if it is too slow; likewise.
    """
    body, taken = bytearray(), 0
    try:
        while len(body) < length:
            wanted = min(CHUNK, length - len(body))
            budget.take(wanted)
            taken += wanted
            chunk = file.read(wanted)
            if len(chunk) < wanted:
                raise EOFError(f"the body ends after {len(body) + len(chunk)} of {length} bytes")
            body += chunk
    except BaseException:
        budget.give(taken)
        raise
    return bytes(body)


def linger(connection: socket.socket, seconds: float = 2.0) -> None:
    """Read what a refused client still sends, for a while: else the connection's end would erase the answer to it."""
    end = time.monotonic() + seconds
    try:
        connection.shutdown(socket.SHUT_WR)
        while (left := end - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(CHUNK):
                return
    except OSError:
        return
