"""What share of this machine's arithmetic each hot loop reaches, and what bounds it.

    python benchmarks/roofline.py

Two ceilings are measured: a product of matrices, and a 3x3 convolution whose data stays in the cache. The work of a
loop is counted by torch (convolutions and matrix products only, as they are done); its share is
that work a second over the convolution's ceiling. A loop whose time goes into convolutions is bound by them; where
much goes into all else, by passes over maps, that is by memory. `its convolutions alone` are those of replay of first
order on maps of the same shapes, with nothing between them: what is left to gain around them. Seconds are those of the
process where it has one CPU thread, and else the clock's. The last line is a JSON object; `ratio` is the least share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from measuring import Measurement, convolution_peak, operations, run, table, time_shares, timed, write_section
from replay import Options as ReplayOptions
from replay import bank_of
from teachers import Options as TeacherOptions
from teachers import drawn_member

from hf_dfml.learning.inner_loop import InnerLoop, adapt_each, episodes_at_once
from hf_dfml.learning.replay import divided_meta_gradient
from hf_dfml.networks import create_network
from hf_dfml.pool.asking import Asking
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.settings import option
from hf_dfml.utils.processes import ALONE
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork

HEADER = "loop | of the convolution peak | time in convolutions and products | in batch norm | in all else"
NOTE = """`its convolutions alone` are those of replay of first order, there and back, on maps of the same shapes,
with nothing between them: no other way of calling PyTorch's convolutions makes replay faster than that."""
WALL = """Why replay of first order is no faster: with 5 shots its convolutions alone take over half of its time, and a
ratio of 2 to the plain loop (1.6 on a quiet machine) needs the rest to shrink by two fifths; no piece of it is large.
Timed one by one, on a busy machine, a step on the 2 x 25 images of two episodes has 34 ms of convolutions (8 of them
the first layer's, whose weights' gradient runs at half the rate of the second layer's), 2.5 ms of pooling, 3.6 ms of
slopes at maxima, and its share of the patches' statistics, 3 to 6 ms. Tried without gain: episodes one by one in place
of groups (as fast with 25 images each; with 5, the last layers take up to twice as long), the first layer in PyTorch's
usual layout (1.5 times as long forward) or as products with unfolded patches (as fast with 25 images), and statistics
of patches from 4x4 windows (2.8 times faster, which is 3 % of a 5-shot episode) with pooling's own pass back: 0.98
times as fast over 12 pairs of 5-shot episodes, from 0.85 to 1.18, and 1.03 over 8 of 1-shot episodes. Winograd's
convolution has a quarter of the products, and loses as well: for 200 maps of the second layer (32 channels, 16 pixels)
PyTorch's own takes 14.5 ms, tiles of 4 x 4 transformed and multiplied by PyTorch 41 ms (6.7 of them the products), and
NNPACK's 29 ms: the passes over memory around the products cost more than they save."""
TUNING = InnerLoop(10, 0.01, "support", second_order=False)
Work = Callable[[], Any]


class Options(Measurement):
    """How long it takes."""

    repeats: int = option(3, "Times that each loop is timed; the fastest counts.", least=1)


def loops(settings: Options, device: torch.device) -> dict[str, Work]:
    """The hot loops by name, on conv4 and images of 32 pixels."""
    network = create_network("conv4", num_classes=5, generator=fork(settings.seed, "network")).to(device)
    found: dict[str, Work] = {}
    for shots in (1, 5):
        replay = ReplayOptions(seed=settings.seed)
        episodes = bank_of(replay, 32, device).sample(4, fork(shots, "episodes"), ways=5, shots=shots, queries=15)
        for order, second in (("second", True), ("first", False)):
            loop = replace(replay.config.inner_loop, second_order=second)
            found[f"replay, {order} order, {shots}-shot"] = lambda episodes=episodes, loop=loop: divided_meta_gradient(
                network, episodes, loop, ALONE
            )
        at_once = min(len(episodes), episodes_at_once(network, episodes, loop))
        support = (at_once, len(episodes.support_labels[0]), loop.steps * len(episodes) // at_once)
        queries = (1, len(episodes.query_labels[0]), len(episodes))
        found[f"its convolutions alone, {shots}-shot"] = convolutions_alone([support, queries], device)
        params = [{name: value.detach() for name, value in network.named_parameters()}] * len(episodes)
        found[f"fine-tuning, {shots}-shot"] = lambda episodes=episodes, params=params: adapt_each(
            network, params, episodes.support, episodes.support_labels, TUNING
        )
    teacher = drawn_member(TeacherOptions(seed=settings.seed), 0).to(device)
    images = torch.randint(256, (200, 3, 32, 32), generator=fork(settings.seed, "images"), dtype=torch.uint8)
    asking = Asking(teacher, 1, len(images), "never")
    found["asking a member"] = lambda: asking.probabilities(teacher, images.to(device))
    pixels = RecoveryConfig(recovery="pixels", recovery_steps=5, images_per_class=20)
    found["recovery of pixels"] = lambda: recover(teacher, pixels, 32, fork(settings.seed, "recovery"))
    return found


def convolutions_alone(passes: Sequence[tuple[int, int, int]], device: torch.device) -> Work:
    """The convolutions of conv4, there and back, on random maps of their shapes.

    Args:
        passes: networks side by side, images of each, and how many such passes.
        device: where.
    """

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(memory_format=torch.channels_last)

    calls = [
        (times, groups, drawn(images, groups * channels, size, size), drawn(groups * 32, channels, 3, 3))
        for groups, images, times in passes
        for channels, size in ((3, 32), (32, 16), (32, 8), (32, 4))
    ]

    @torch.no_grad()
    def work() -> None:
        one = (1, 1)
        for times, groups, x, weight in calls:
            wanted = (weight.shape[1] > 3, True, False)  # Nobody needs the gradient of the images.
            for _ in range(times):
                y = F.conv2d(x, weight, padding=1, groups=groups)
                torch.ops.aten.convolution_backward(y, x, weight, None, one, one, one, False, (0, 0), groups, wanted)

    return work


def product_peak(device: torch.device) -> float:
    """Operations a second of a product of two matrices."""
    one, other = torch.randn(1024, 1024, device=device), torch.randn(1024, 1024, device=device)
    return 2 * 1024**3 / min(timed(device, lambda: one @ other)[1] for _ in range(10))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    return run(Options, measure, argv, __doc__)


def measure(settings: Options, device: torch.device) -> dict[str, Any]:
    """All loops, the table, and the object of the last line."""
    peak, products = convolution_peak(device), product_peak(device)
    about = (
        f"conv4 with 32 channels, images of 32 pixels. The peaks: {peak / 1e9:.0f} billion operations a second of a "
        f"convolution, {products / 1e9:.0f} of a product of matrices. {describe_machine(device)}."
    )
    print(about, HEADER, sep="\n", flush=True)
    rows, shares = [], {}
    for name, work in loops(settings, device).items():
        count = operations(work)
        seconds = min(timed(device, work)[1] for _ in range(settings.repeats))
        shares[name] = count / seconds / peak
        times = time_shares(device, work)
        parts = [f"{100 * share:.0f} %" for share in times.values()] or ["-"] * 3
        rows.append([name, f"{100 * shares[name]:.0f} %", *parts])
        print(*rows[-1], sep=" | ", flush=True)
    write_section(settings.output_dir, "roofline", "The machine's arithmetic", about, table(HEADER, rows), NOTE, WALL)
    slowest = min(shares, key=lambda name: shares[name])
    return {
        "benchmark": "roofline",
        "ratio": round(shares[slowest], 3),
        "baseline": round(peak / 1e9, 1),
        "ours": round(shares[slowest] * peak / 1e9, 1),
        "unit": "billion operations a second",
        "shares": {name: round(share, 3) for name, share in shares.items()},
    }


if __name__ == "__main__":
    main()
