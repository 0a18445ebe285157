"""Time that a device's work takes."""

from __future__ import annotations

import time

import torch


def now(device: torch.device) -> float:
    """Seconds of a clock, when an accelerator has done what it was given: differences are the time of that work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
