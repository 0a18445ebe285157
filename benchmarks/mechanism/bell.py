"""BELL (FREE): how much of an epoch's movement it is, and in which direction it goes."""

from __future__ import annotations

import copy
from dataclasses import replace
from statistics import mean
from typing import Any

import torch
from figures import Measured, fresh_network, interval

from hf_dfml.learning.gradients import average_gradient, sequential_displacement
from hf_dfml.learning.optimisation import parameters_of
from hf_dfml.methods.base import Context
from hf_dfml.methods.free import FREE, FREEConfig
from hf_dfml.methods.inversion import distillation_task
from hf_dfml.pool import ModelPool
from hf_dfml.utils.seeding import fork
from mechanism.options import Options
from mechanism.shared import cosine, moved, norm, run_epochs

SMALL_STEP = 1e-3
"""Rate of BELL's inner steps at which its expansion of first order (Lemma 1) should hold."""


def measure_bell(found: Measured[Options], pool: ModelPool) -> None:
    """How much of an epoch's movement is BELL's, and whether its direction is the one of Lemma 1."""
    options = found.options
    warmup = 1 if options.quick else 10
    config = FREEConfig(
        steps=10**6,
        warmup=warmup,
        generator_width=16,
        bn_weight=0.1,
        adaptation_lr=0.005,
        latent_lr=0.01,
        meta_generator_lr=0.005,
        images_per_class=10,
        shift=2,
        second_order=False,
        replay_batch=4,
    )
    if options.quick:
        config = replace(config, replay_max_batches=1, images_per_class=8, replay_queries=2)
    start, context = FREE(config, fresh_network(pool, options)), Context(fork(options.seed, "bell"))
    start.setup(pool, context)
    first = warmup + options.epochs
    run_epochs(start, context, 0, first)
    state, draws = copy.deepcopy(start.state_dict()), context.generator.get_state()

    def shares(**changes: Any) -> list[float]:
        method = FREE(replace(config, **changes), fresh_network(pool, options))
        method.load_state_dict(copy.deepcopy(state), pool, context)
        context.generator.set_state(draws)
        return [row["bell_share"] for row in run_epochs(method, context, first, first + options.epochs)]

    of_movement = "length of BELL's movement of the weights in an epoch over that plus the replay's"
    released = shares()
    found.note("bell_share", mean(released), f"{of_movement}; --bell released, an Adam of its own")
    if len(released) > 1:
        found.note("bell_share_ci95", interval(released), f"half the 95 % interval of it over {len(released)} epochs")
    in_replay, paper = shares(bell_optimizer="shared"), shares(bell="paper")
    found.note("bell_share_shared", mean(in_replay), "the same, in the replay's Adam (released code)")
    found.note("bell_share_paper", mean(paper), "the same, --bell paper: SGD steps of 0.1 and epsilon 1")
    printed = shares(bell="paper", bell_lr=1e-3, bell_epsilon=1e-3)
    found.note("bell_share_printed", mean(printed), "the same with the printed alpha = epsilon = 0.001")

    params = {name: value.detach() for name, value in parameters_of(start.model).items()}
    generator, angles = fork(options.seed, "tasks"), []
    gains: dict[float, list[float]] = {config.bell_lr: [], SMALL_STEP: []}
    for _ in range(options.draws):
        chosen = torch.randperm(len(pool), generator=generator)[:4].tolist()
        teachers = [pool.load(index) for index in chosen]
        tasks, _ = start.meta_generator.recover(teachers, generator)
        losses = [
            distillation_task(start.model, *each, config.distillation, config.meta_generator.inversion, generator)
            for each in zip(teachers, tasks, strict=True)
        ]
        mean_gradient, _ = average_gradient(losses, params)
        erm = {name: -value for name, value in mean_gradient.items()}
        for lr, found_there in gains.items():
            bell, _ = sequential_displacement(losses, params, lr=lr)
            if lr == config.bell_lr:
                angles.append(torch.rad2deg(torch.arccos(cosine(bell, erm).clamp(-1, 1))).item())
            after = [
                average_gradient(losses, moved(params, way, norm(bell)))[1]["gradient_inner_product"]
                for way in (bell, erm)
            ]
            found_there.append((after[0] - after[1]) / norm(mean_gradient) ** 2)
    found.note("bell_angle", mean(angles), "degrees between BELL's movement (SGD, 0.1) and ERM's, on the same tasks")
    for name, lr in (("bell_agreement", config.bell_lr), ("bell_agreement_small", SMALL_STEP)):
        found.note(
            name,
            mean(gains[lr]),
            "mean inner product of two tasks' gradients after BELL's movement less that after ERM's as far, "
            f"over the square of the length of their mean before, steps of {lr:g} (Lemma 1: above 0)",
        )
        found.note(f"{name}_ci95", interval(gains[lr]), "half the 95 % interval of it over draws of four members")
