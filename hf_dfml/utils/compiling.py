"""What a machine can do for `torch.compile`, and in bfloat16."""

from __future__ import annotations

import os
import shutil

import torch


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which code for a CPU needs."""
    return any(map(shutil.which, (os.environ.get("CXX") or "g++", "clang++")))


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 by itself; others are slower so than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(ask() for name in known if (ask := getattr(torch.cpu, name, None)))


def settled_precision(asked: str | None) -> str | None:
    """What `auto` comes to on the device of this process: `bf16` or `no`; all else as it is."""
    if asked != "auto":
        return asked
    uses_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true")
    return "bf16" if computes_in_bfloat16(torch.device("cuda" if uses_gpu else "cpu")) else "no"
