"""A pool of 1,000 repositories: requests sent, seconds and peak memory, with an empty cache and with a full one.

    python benchmarks/pool_scale.py                         # 1,000 members of conv4_16; minutes
    python benchmarks/pool_scale.py --members 100 --arch conv4 --image_size 32

The Hub is the tests' own server in a process on this machine, so that seconds are those of the client and of Python's
HTTP server, not of a network; requests are what a real Hub would count against its rate limit. Side by side, each in a
fresh process that goes through all members once and asks each one a question:

- ours: `ModelPool.from_hub(org)`, then `pool.stream()`, the cache of loaded teachers limited to `--kept` members;
- plain: the organisation's list and `timm.create_model("hf-hub:...", pretrained=True)` for every id, kept in a list.

Peak memory is what the process has grown by since its imports. Ours is measured with a tenth of the members as well:
it must not grow with their number. The last line is a JSON object; `ratio` is how many times fewer requests ours sends
when everything is cached already.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

ORG = "org"


def serve(pipe: Connection, members: int, arch: str, image_size: int, classes: int) -> None:
    """The Hub: sends its address, then for each message the number of requests since the last one."""
    import torch
    from safetensors.torch import save

    from hf_dfml.networks import create_network
    from tests.hub_server import HubServer

    generator = torch.Generator().manual_seed(0)
    with HubServer(page_size=100) as hub:
        state = create_network(arch, num_classes=classes, image_size=image_size, generator=generator).state_dict()
        last = [name for name, tensor in state.items() if tensor.is_floating_point()][-1]
        settings = {"input_size": [3, image_size, image_size], "mean": [0.5] * 3, "std": [0.25] * 3}
        args = {"img_size": image_size} if arch.startswith("conv4") else {}
        config = {"architecture": arch, "num_classes": classes, "pretrained_cfg": settings, "model_args": args}
        for index in range(members):
            # One tensor of its own makes every member's file another.
            state[last] = torch.rand(state[last].shape, generator=generator)
            files = {"config.json": json.dumps(config).encode(), "model.safetensors": save(state)}
            hub.add_repo(f"{ORG}/member-{index:05d}", files)
        pipe.send(hub.url)
        while pipe.recv():
            pipe.send(len(hub.requests))
            hub.requests.clear()


def ours(members: int, kept: int, lock: Path) -> None:
    import torch

    from hf_dfml import ModelPool

    pool = ModelPool.open(lock) if lock.is_file() else ModelPool.from_hub(ORG)
    pool = pool[:members]
    first = pool.load(0)
    pool.cache.max_bytes = kept * sum(tensor.nbytes for tensor in (*first.parameters(), *first.buffers()))
    with torch.no_grad():
        for teacher in pool.stream():
            teacher(torch.rand(1, *teacher.entry.input_size))


def listing(members: int, kept: int, lock: Path) -> None:
    from hf_dfml import ModelPool

    assert len(ModelPool.from_hub(ORG)) >= members


def write_lock(members: int, kept: int, lock: Path) -> None:
    from hf_dfml import ModelPool

    ModelPool.from_hub(ORG).resolve().lock(lock)


def plain(members: int, kept: int, lock: Path) -> None:
    import timm
    import torch
    from huggingface_hub import HfApi

    infos = sorted(HfApi().list_models(author=ORG), key=lambda info: info.id)
    networks = [timm.create_model(f"hf-hub:{info.id}", pretrained=True).eval() for info in infos[:members]]
    with torch.no_grad():
        for network in networks:
            network(torch.rand(1, *network.pretrained_cfg["input_size"]))


def measure(pipe: Connection, work: Callable[..., None], arguments: tuple[Any, ...], settings: dict[str, str]) -> None:
    """Do the work in this process and send its seconds and the megabytes that it grew by."""
    os.environ.update(settings)
    import timm  # noqa: F401
    import torch

    import hf_dfml
    import hf_dfml.pool  # noqa: F401

    torch.set_num_threads(1)
    before = reset_peak()
    start = time.perf_counter()
    work(*arguments)
    seconds = time.perf_counter() - start
    pipe.send((seconds, (peak() - before) / 1e6))


def reset_peak() -> float:
    """Bytes in use now, from which the peak is counted."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # Linux: forget the peak that the imports have left.
    return peak()


def peak() -> float:
    """The largest number of bytes that this process had in memory."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * float(line.split()[1])
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(usage if sys.platform == "darwin" else 1024 * usage)


def cells(row: dict[str, float]) -> list[str]:
    """Requests, seconds and megabytes of one way."""
    return [f"{row['requests']:,}", f"{row['seconds']:.1f}", f"{row['megabytes']:.1f}"]


def main() -> dict[str, Any]:
    # Here, so that the processes that are measured do not import all of this before they begin.
    from measuring import table, write_section

    from hf_dfml.utils.provenance import describe_machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=1000, help="Repositories of the organisation.")
    parser.add_argument("--arch", default="conv4_16", help="Their architecture.")
    parser.add_argument("--image_size", type=int, default=16, help="Pixels of a side of their images.")
    parser.add_argument("--classes", type=int, default=5, help="Their classes.")
    parser.add_argument("--output_dir", default="", help="Where `pool_scale.md` goes; nowhere by default.")
    parser.add_argument("--kept", type=int, default=16, help="Loaded teachers that ours keeps in memory at most.")
    options = parser.parse_args()

    spawn = multiprocessing.get_context("spawn")
    pipe, other = spawn.Pipe()
    server = spawn.Process(
        target=serve, args=(other, options.members, options.arch, options.image_size, options.classes), daemon=True
    )
    server.start()
    url = pipe.recv()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(title: str, work: Callable[..., None], cache: str, members: int, lock: str = "none") -> None:
            settings = {"HF_ENDPOINT": url, "HF_HUB_CACHE": str(folder / cache), "HF_HUB_DISABLE_XET": "1"}
            settings |= {
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "HF_HUB_OFFLINE": "0",
                "HF_TOKEN": "",
                "OMP_NUM_THREADS": "1",
            }
            settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
            mine, its = spawn.Pipe()
            arguments = (members, options.kept, folder / lock)
            process = spawn.Process(target=measure, args=(its, work, arguments, settings))
            process.start()
            its.close()  # So that a process that dies is noticed.
            seconds, megabytes = mine.recv()
            process.join()
            pipe.send(True)
            rows[title] = {"requests": pipe.recv(), "seconds": seconds, "megabytes": megabytes}
            row = rows[title]
            print(f"{title:34} " + " ".join(f"{cell:>9}" for cell in cells(row)), flush=True)

        count, tenth = options.members, max(1, options.members // 10)
        print(f"{options.members} members, {options.arch} at {options.image_size} pixels, {os.cpu_count()} cores")
        print(f"{'':34} {'requests':>9} {'seconds':>9} {'MB':>9}")
        run("list", listing, "ours", count)
        run("ours, empty cache", ours, "ours", count)
        run("ours, all cached", ours, "ours", count)
        run("ours, a tenth, all cached", ours, "ours", tenth)
        run("write the lock file", write_lock, "ours", count, "pool.lock.json")
        run("ours, lock file, all cached", ours, "ours", count, "pool.lock.json")
        run("plain timm, empty cache", plain, "plain", count)
        run("plain timm, all cached", plain, "plain", count)
        run("plain timm, a tenth, all cached", plain, "plain", tenth)
    pipe.send(False)
    server.join()

    baseline, warm = rows["plain timm, all cached"], rows["ours, all cached"]
    write_section(
        options.output_dir,
        "pool_scale",
        f"A pool of {options.members:,} repositories",
        f"{options.arch} at {options.image_size} "
        "pixels from a Hub on the same machine. Memory is what a process grows by; `pool.stream()` keeps "
        f"{options.kept} loaded teachers at most. {describe_machine()}.",
        table("| requests | seconds | MB", [(title, *cells(row)) for title, row in rows.items()]),
    )
    result = {
        "benchmark": "pool_scale",
        "ratio": round(baseline["requests"] / warm["requests"], 1),
        "baseline": baseline["requests"],
        "ours": warm["requests"],
        "unit": "requests for all members, cached",
        "members": options.members,
        "memory_growth_ratio": round(warm["megabytes"] / max(rows["ours, a tenth, all cached"]["megabytes"], 0.1), 2),
        "rows": {title: {name: round(value, 2) for name, value in row.items()} for title, row in rows.items()},
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
