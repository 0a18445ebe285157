"""A served pool under clients that behave and clients that do not: status codes, memory, threads.

    python benchmarks/load.py                                  # 200 clients, about a minute on 2 cores
    python benchmarks/load.py --clients 20 --requests 3

The server is a process of its own, with members of random weights, and half of the clients behave. Of the others some
send a byte now and then, declare more than is allowed, never stop, have a wrong token, send no image, or leave in the
middle. The last line is one JSON object: the codes that each kind got, threads before and after; `ratio` is the
server's largest resident memory over that before the first client, in megabytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import torch

from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool
from hf_dfml.pool.black_box.server import PoolServer
from hf_dfml.pool.black_box.wire import as_png
from hf_dfml.pool.building.writing import member_config, write_member

TOKEN = "open-sesame"
MAX_BYTES = 1 << 20
KINDS = ("slow", "oversized", "endless", "wrong token", "no image", "leaves")
"""Clients that do not behave."""
EXPECTED = {
    "good": {200},
    "slow": {408},
    "oversized": {413},
    "endless": {411},
    "wrong token": {401},
    "no image": {400},
    "leaves": {0},
}
"""Codes for each kind of client; 0: none was waited for."""


async def client(url: str, kind: str, requests: int, image: bytes) -> list[int]:
    """The codes that one client got."""
    address = urlsplit(url)
    codes: list[int] = []
    for _ in range(requests):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            codes.append(await one_request(reader, writer, kind, image))
        except (ConnectionError, asyncio.IncompleteReadError):
            codes.append(-1)
        finally:
            writer.close()
    return codes


async def one_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str, image: bytes) -> int:
    """The code of one request; what is still being sent then is given up."""
    length = {"oversized": MAX_BYTES + 1, "slow": 1000, "leaves": 1000}.get(kind, len(image))
    token = "guess" if kind == "wrong token" else TOKEN
    size = "Transfer-Encoding: chunked" if kind == "endless" else f"Content-Length: {length}"
    writer.write(f"POST /models/m-0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{size}\r\n\r\n".encode())
    if kind == "leaves":
        writer.write(b"half an image")
        await writer.drain()
        return 0
    sending = asyncio.create_task(send(writer, kind, image))
    try:
        return int((await reader.readuntil(b"\r\n")).split()[1])
    finally:
        sending.cancel()


async def send(writer: asyncio.StreamWriter, kind: str, image: bytes) -> None:
    """The body."""
    try:
        if kind == "endless":
            while True:
                writer.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
                await writer.drain()
        if kind == "slow":
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.5)
        body = {"oversized": bytes(MAX_BYTES + 1), "no image": bytes(len(image))}.get(kind, image)
        writer.write(body)
        await writer.drain()
    except ConnectionError:
        pass


async def attack(url: str, clients: int, requests: int, image: bytes) -> dict[str, Counter[int]]:
    """The codes of each kind of client, half of which behave; all at the same time."""
    kinds = ["good" if index % 2 else KINDS[index // 2 % len(KINDS)] for index in range(clients)]
    # Those that are slow do it once: they are there as long as the others.
    asked = [client(url, kind, 1 if kind == "slow" else requests, image) for kind in kinds]
    found: dict[str, Counter[int]] = {}
    for kind, codes in zip(kinds, await asyncio.gather(*asked), strict=True):
        found.setdefault(kind, Counter()).update(codes)
    return found


def wrong_codes(found: dict[str, Counter[int]]) -> dict[str, dict[int, int]]:
    """The codes that were not expected; a server that is full may say so (503)."""
    wrong = {
        kind: {code: count for code, count in codes.items() if code not in EXPECTED[kind] | {503}}
        for kind, codes in found.items()
    }
    return {kind: codes for kind, codes in wrong.items() if codes}


def an_image() -> bytes:
    """A PNG file."""
    return as_png(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))[0]


def serve(folder: Path, seconds: float) -> None:
    """Serve a member of random weights until this process is ended; prints the address."""
    names, scale = [f"class {index}" for index in range(10)], {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    network = create_network("conv4", num_classes=10, generator=torch.Generator().manual_seed(0), **scale)
    write_member(folder / "m-0", network, member_config(network, "conv4", names, image_size=32, **scale))
    pool = ModelPool.from_dir(folder)
    with PoolServer(pool, port=0, token=TOKEN, max_bytes=MAX_BYTES, seconds=seconds) as server:
        print(server.url, flush=True)
        server.serve_forever()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200, help="at a time")
    parser.add_argument("--requests", type=int, default=10, help="of each client, on connections of their own")
    parser.add_argument("--seconds", type=float, default=10, help="that a request may take to arrive")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.serve:
        serve(options.serve, options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--serve", folder, "--seconds", str(options.seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            try:
                found = measure(server.stdout.readline().strip(), psutil.Process(server.pid), options)
            finally:
                server.kill()
    print(json.dumps(found))
    return found


def measure(url: str, server: psutil.Process, options: argparse.Namespace) -> dict[str, Any]:
    """Warm up, attack, and wait for the threads to end."""
    image = an_image()
    asyncio.run(client(url, "good", 3, image))
    before, threads = server.memory_info().rss, server.num_threads()
    largest, started = 0, time.monotonic()

    async def watched() -> dict[str, Counter[int]]:
        nonlocal largest
        work = asyncio.create_task(attack(url, options.clients, options.requests, image))
        while not work.done():
            largest = max(largest, server.memory_info().rss)
            await asyncio.sleep(0.05)
        return work.result()

    codes = asyncio.run(watched())
    took = time.monotonic() - started
    end = time.monotonic() + 2 * options.seconds
    while server.num_threads() > threads and time.monotonic() < end:
        time.sleep(0.1)
    return {
        "benchmark": "load",
        "ratio": round(largest / before, 2),
        "baseline": round(before / 1e6, 1),
        "ours": round(largest / 1e6, 1),
        "unit": "MB of the server, before the first client and at most",
        "clients": options.clients,
        "codes": {kind: dict(sorted(counts.items())) for kind, counts in codes.items()},
        "wrong_codes": wrong_codes(codes),
        "threads": {"before": threads, "after": server.num_threads()},
        "seconds": round(took, 1),
    }


if __name__ == "__main__":
    main()
