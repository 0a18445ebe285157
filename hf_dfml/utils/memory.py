"""Memory: how much there is, what a network keeps for its backward pass, and what becomes of freed tensors."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says what a container may take."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep up to 512 MB of freed memory for the next tensors; elsewhere nothing happens.

    Left alone it gives the memory of a large tensor back and asks for it again at once, page by page: in a fresh
    process 14 % of the time in which conv4 is fine-tuned, 15 to 25 % of an outer step of MAML on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # glibc takes no more.
        mallopt(M_TRIM_THRESHOLD, 512 << 20)


def bytes_for_backward(network: Callable[[Tensor], Tensor], size: int, device: torch.device | str) -> int:
    """Bytes that a network keeps of one image `(3, size, size)` between its forward and its backward pass."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    def of(count: int) -> int:
        kept.clear()
        images = torch.full((count, 3, size, size), 0.5, device=device, requires_grad=True)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            network(images)
        return sum(kept.values())

    # The weights are kept as well, once for all images.
    return max(0, of(2) - of(1))


def available_memory() -> int | None:
    """Bytes that this process may still take: what is free, within the limits of a container and of `ulimit -v`.

    None where the system does not say (it is asked as Linux has it).
    """
    found = []
    try:
        import resource

        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")]
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            found.append(limit - pages * resource.getpagesize())
        if (most := (CGROUP / "memory.max")).is_file() and most.read_text(encoding="ascii").strip() != "max":
            used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
            parts = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines())
            # Files that were read are kept for as long as nobody needs the room.
            found.append(int(most.read_text(encoding="ascii")) - used + int(parts.get("inactive_file", 0)))
    except (ImportError, OSError, ValueError):
        pass
    return max(0, min(found)) if found else None
