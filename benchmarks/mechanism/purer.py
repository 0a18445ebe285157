"""PURER's curriculum and its calibration in meta-testing (ICFIL)."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import torch
from figures import Measured, accuracy_of, fresh_network, interval
from torch import Tensor

from hf_dfml.data import FewShotDataset
from hf_dfml.evaluation import EvaluationProtocol
from hf_dfml.evaluation.heads.icfil import ICFILConfig
from hf_dfml.learning.inner_loop import outer_loss
from hf_dfml.learning.optimisation import parameters_of
from hf_dfml.methods.base import Context
from hf_dfml.methods.purer import PURER, PURERConfig
from hf_dfml.pool import ModelPool
from hf_dfml.utils.seeding import fork
from mechanism.options import Options
from mechanism.shared import run_epochs


def measure_purer(found: Measured[Options], pool: ModelPool, classes: FewShotDataset) -> None:
    """The curriculum's feedback and ICFIL, each on and off, with the same seeds."""
    options = found.options
    methods = {}
    for curriculum in (False, True):
        config = PURERConfig(
            steps=10**6,
            members_per_step=4,
            warmup=options.purer_steps,
            patience=3,
            curriculum=curriculum,
            images_per_class=16,
            recovery_lr=0.1,
            bn_weight=1.0,
            tv_weight=0.1,
            inner_steps=5,
            second_order=False,
            bn="support",
            inner_lr=0.05,
            outer_lr=0.003,
            replay_shots=1,
        )
        method, context = PURER(config, fresh_network(pool, options)), Context(fork(options.seed, "purer"))
        method.setup(pool, context)
        rows = run_epochs(method, context, 0, 2 * options.purer_steps)
        methods[curriculum] = method
    found.note("eci_steps", sum(row["adversarial"] for row in rows), "steps with the curriculum's feedback")
    judge = methods[False]
    losses = {on: losses_on(method, judge, options) for on, method in methods.items()}
    gap = (losses[True] - losses[False]).tolist()
    found.note(
        "eci_shift",
        mean(gap),
        "nats of outer loss that episodes of the images learnt with the feedback have above those without, for one "
        "and the same meta-model (that of the run without)",
    )
    found.note("eci_shift_ci95", interval(gap), "half the 95 % interval of it over episodes")

    network = judge.snapshot(context)
    protocol = EvaluationProtocol(
        ways=judge.ways, shots=[5], episodes=options.icfil_episodes, split=classes.split, inner_steps=5, inner_lr=0.05
    )
    short = ICFILConfig(recovery_steps=2) if options.quick else None
    without = accuracy_of(found, network, classes, protocol, "PURER")
    with_it = accuracy_of(found, network, classes, replace(protocol, head="icfil", options=short), "PURER")
    gain = (100 * (with_it - without)).tolist()
    found.note("icfil_gain", mean(gain), "points of accuracy of ICFIL above fine-tuning, the same 5-shot episodes")
    found.note("icfil_gain_ci95", interval(gain), "half the paired 95 % interval of it")


def losses_on(method: PURER, judge: PURER, options: Options) -> Tensor:
    """Outer losses `(E,)` of one meta-model on episodes of the images of a run."""
    config = judge.config.episode
    episodes = method.bank.sample(
        4 if options.quick else 60,
        fork(options.seed, "judge"),
        ways=judge.ways,
        shots=config.replay_shots,
        queries=config.replay_queries,
    )
    params = {name: value.detach().requires_grad_() for name, value in parameters_of(judge.model).items()}
    tensors = zip(
        episodes.support,
        episodes.support_labels.expand(len(episodes), -1),
        episodes.query,
        episodes.query_labels.expand(len(episodes), -1),
        strict=True,
    )
    return torch.stack([outer_loss(judge.model, params, config.inner_loop, *each)[0].detach() for each in tensors])
