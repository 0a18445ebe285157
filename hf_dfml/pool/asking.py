"""Asking frozen members about many images, as fast as the machine answers.

Batch norm is folded into the convolutions. bfloat16 is used where the device computes with it and a member's answers
stay what they are. Where the work pays for it, members are compiled: one function for all members of a kind, whose
weights are among its inputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hf_dfml.networks.info import TransformersInfo, network_info
from hf_dfml.pool.black_box.pool import BlackBox
from hf_dfml.pool.teacher import Teacher
from hf_dfml.utils.compiling import computes_in_bfloat16, has_compiler
from hf_dfml.utils.images import to_unit

Compile = Literal["auto", "never"]

PIXELS_AT_ONCE = 100 * 32 * 32
"""Pixels (of one channel) that a member answers to at once; with many more conv4 is half as fast on a CPU."""

AGREEMENT = 0.99
"""Share of images on which bfloat16 must leave the most probable class as it is."""

LONG = 54e12
"""Operations of which compiling saves more than the one or two minutes that it takes: half an hour of a CPU core."""


class Asking:
    """How the members of a pool are asked about the same images; one object for all of them.

    Args:
        first: a member, from which the work is estimated.
        members: how many are asked.
        images: how many each is asked about.
        compile: `never`, or `auto`: where the work is long and there is a compiler.

    Attributes:
        choice: what was decided, in words.
    """

    def __init__(self, first: Teacher, members: int, images: int, compile: Compile = "auto") -> None:
        device = first.device
        self.bfloat16 = computes_in_bfloat16(device)
        long = compile == "auto" and members * images * operations(first) > LONG
        self.compiles = long and (device.type != "cpu" or has_compiler())
        self.choice = f"{'bfloat16' if self.bfloat16 else 'float32'}, {'' if self.compiles else 'not '}compiled"
        self._functions: dict[Any, Callable[[dict[str, Tensor], Tensor], Tensor]] = {}

    @torch.no_grad()
    def probabilities(self, teacher: Teacher, images: Tensor) -> Tensor:
        """Probabilities `(N, C)` of images `(N, 3, H, W)` in [0, 1] or uint8, a batch at a time."""
        _, height, width = teacher.entry.input_size or (3, *images.shape[-2:])
        batch = max(1, PIXELS_AT_ONCE // (height * width))
        quick = teacher.folded()
        answer: Callable[[Tensor], Tensor] = self._compiled(quick, batch) if self.compiles else quick
        with self._precision(quick, to_unit(images[:batch])):
            return torch.cat([answer(to_unit(part)).float().softmax(-1) for part in images.split(batch)])

    def _precision(self, teacher: Teacher, images: Tensor) -> AbstractContextManager:
        """In which its answers to all images are computed, by those to a few; what the caller has set stays."""
        coarse = torch.autocast(images.device.type, torch.bfloat16)
        if not self.bfloat16 or torch.is_autocast_enabled(images.device.type):
            return nullcontext()
        return coarse if agreement(teacher, images, coarse) >= AGREEMENT else nullcontext()

    def _compiled(self, teacher: Teacher, batch: int) -> Callable[[Tensor], Tensor]:
        """The member by the function of all members of its kind, which takes batches of one size."""
        network, entry = teacher.network, teacher.entry
        if isinstance(network_info(network), TransformersInfo):
            return teacher
        state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        arguments = json.dumps(entry.model_args, sort_keys=True, default=str)  # Not all of them show in the shapes.
        shapes = tuple((name, tuple(value.shape)) for name, value in state.items())
        kind = (entry.architecture, arguments, entry.input_size, shapes)
        if kind not in self._functions:
            self._functions[kind] = torch.compile(partial(torch.func.functional_call, network), dynamic=False)

        def answer(images: Tensor) -> Tensor:
            missing = batch - len(images)
            whole = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images
            return self._functions[kind](state, (teacher._prepare(whole),))[: len(images)]  # type: ignore[arg-type]

        return answer


@torch.no_grad()
def answers_of(member: Teacher | BlackBox, images: Tensor) -> Tensor:
    """Probabilities `(N, C)` of images `(N, 3, H, W)` uint8 by a member as it is, a batch at a time."""
    _, height, width = member.entry.input_size or (3, *images.shape[-2:])
    parts = images.split(max(1, PIXELS_AT_ONCE // (height * width)))
    return torch.cat([member(to_unit(part)).float().softmax(-1) for part in parts])


def operations(teacher: Teacher) -> int:
    """Additions and multiplications of one image."""
    image = torch.zeros(1, *(teacher.entry.input_size or (3, 32, 32)), device=teacher.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        teacher(image)
    return counter.get_total_flops()


def agreement(teacher: Teacher, images: Tensor, coarse: AbstractContextManager) -> float:
    """Share of images `(B, 3, H, W)` whose most probable class is the same in another precision."""
    exact = teacher(images).argmax(-1)
    with coarse:
        return (teacher(images).argmax(-1) == exact).float().mean().item()
