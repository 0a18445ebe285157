"""Randomness is explicit: every stream of random numbers is a `torch.Generator` forked from one seed by name."""

from __future__ import annotations

import hashlib

import torch


def fork(seed: int, *keys: int | str) -> torch.Generator:
    """A CPU generator that depends on `seed` and `keys` alone, so that two streams never share their numbers.

    Args:
        seed: the run's seed.
        keys: the names of the stream, for example `("member", 7)`.

    Examples:
        >>> a, b = fork(0, "member", 1), fork(0, "member", 2)
        >>> bool((torch.randn(3, generator=a) == torch.randn(3, generator=b)).any())
        False
    """
    name = "/".join(str(key) for key in (seed, *keys))
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def spawn(generator: torch.Generator, count: int) -> list[torch.Generator]:
    """A CPU generator for each of `count` items of work, seeded by `generator`, which they advance by `count` numbers.

    Items that have streams of their own give the same results in any order and on any process.
    """
    seeds = torch.randint(2**62, (count,), generator=generator).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def deterministic(seed: int) -> None:
    """Fix the global seed and ask for deterministic kernels where others exist; for a recipe's entry point only.

    On a CPU nothing that a step uses depends on the order of threads, and PyTorch's switch would make the second
    derivative of max pooling hundreds of times slower.
    """
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
