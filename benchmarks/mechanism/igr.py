"""Gradient regularisation (TGR): its first and its second order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from figures import WAYS, Measured, fresh_network
from torch import Tensor, nn

from hf_dfml.learning.gradients import average_gradient, regularised_gradient
from hf_dfml.learning.inner_loop import Parameters, TaskLoss
from hf_dfml.networks.info import network_info
from hf_dfml.pool import ModelPool
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.utils.seeding import fork
from mechanism.options import Options
from mechanism.shared import cosine, norm, plot


def measure_igr(found: Measured[Options], pool: ModelPool) -> None:
    """Whether the displaced gradients (first order) are the derivative of the regulariser (second order)."""
    options = found.options
    generator = fork(options.seed, "igr")
    recovery = RecoveryConfig(
        recovery="pixels", recovery_steps=2 if options.quick else 40, recovery_lr=0.1, images_per_class=5
    )
    tasks = []
    for index in range(4):
        teacher = pool.load(index)
        task = recover(teacher, recovery, network_info(fresh_network(pool, options)).image_size, generator)
        with torch.no_grad():
            answers = teacher(task.images).log_softmax(-1).double()
        tasks.append((task.images.double(), task.labels, answers))
    strengths = [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2]
    lines: dict[str, list[float]] = {}
    for name, smooth in (("conv4", False), ("smooth", True)):
        network = plain_conv4(pool[0].num_classes or WAYS, smooth, fork(options.seed, "weights"), tasks[0][0]).double()
        losses = [partial(distillation_loss_of, network, *task) for task in tasks]
        params = dict(network.named_parameters())
        plain, _ = average_gradient(losses, params)
        exact = regulariser(losses, params, plain, 1.0, "second")
        first = {strength: regulariser(losses, params, plain, strength, "first") for strength in strengths}
        lines[name] = [cosine(each, exact).item() for each in first.values()]
        suffix = "" if name == "conv4" else "_smooth"
        where = "conv4" if name == "conv4" else "conv4 with softplus and average pooling"
        found.note(
            f"igr_agreement{suffix}",
            cosine(first[1e-3], exact).item(),
            f"cosine of the first-order regulariser's gradient with the exact one, lambda 0.001, {where}, float64",
        )
        found.note(f"igr_norm_ratio{suffix}", norm(first[1e-3]) / norm(exact), "its length over the exact one's")
    found.note(
        "igr_agreement_small",
        lines["conv4"][0],
        "the same cosine on conv4 with lambda 1e-7, which crosses hardly a kink",
    )
    if path := found.picture("igr_agreement"):
        points = {name: list(zip(strengths, values, strict=True)) for name, values in lines.items()}
        plot(points, path, "lambda", "cosine of first and second order", log=True)


def regulariser(losses: Sequence[TaskLoss], params: Parameters, plain: Parameters, strength: float, order: Any) -> Any:
    """What the regularisation adds to the mean gradient, over lambda."""
    combined, _ = regularised_gradient(losses, params, strength=strength, order=order)
    return {name: (value - plain[name]) / strength for name, value in combined.items()}


def plain_conv4(classes: int, smooth: bool, generator: torch.Generator, images: Tensor) -> nn.Sequential:
    """A conv4 in a few lines, with kinks (ReLU, max pooling) or without (softplus, average pooling)."""
    layers: list[nn.Module] = []
    for channels in (3, 32, 32, 32):
        layers += [nn.Conv2d(channels, 32, 3, padding=1), nn.BatchNorm2d(32, track_running_stats=False)]
        layers += [nn.Softplus(beta=5), nn.AvgPool2d(2)] if smooth else [nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * (images.shape[-1] // 16) ** 2, classes))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.normal_(0, module.weight[0].numel() ** -0.5, generator=generator)
                module.bias.zero_()  # Theirs would be drawn from what no seed of ours decides.
    return network


def distillation_loss_of(
    network: nn.Module, images: Tensor, labels: Tensor, answers: Tensor, params: Parameters
) -> Any:
    """KD and cross-entropy, TGR's loss of a task."""
    logits = torch.func.functional_call(network, params, ((images - 0.5) / 0.25,))
    kd = F.kl_div(logits.log_softmax(-1), answers, reduction="batchmean", log_target=True)
    return kd + F.cross_entropy(logits, labels)
