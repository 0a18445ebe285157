"""Is each system's own mechanism alive? One measurement each, beside its definition.

    python benchmarks/mechanisms.py --pool pools/cifar-fs --dataset cifar-fs --data_dir DATA --probe BACKBONE
    python benchmarks/mechanisms.py --quick --only igr gamma

What distinguishes each system from plain inversion and MAML is measured by itself: BELL (FREE), gradient
regularisation and grouping (TGR), the price gamma of DRO's ball, PURER's curriculum and calibration. Accuracies are on
validation classes. The last line is a JSON object of all figures.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from figures import WAYS, Measured, accuracy_of, fresh_network, interval, rank_correlation
from measuring import open_pool
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from hf_dfml.arguments import parse_into
from hf_dfml.data import FewShotDataset, load_dataset
from hf_dfml.evaluation import EvaluationProtocol
from hf_dfml.evaluation.heads.icfil import ICFILConfig
from hf_dfml.learning.filter_fisher import filter_fisher, standardised_dissimilarities
from hf_dfml.learning.gradients import average_gradient, regularised_gradient, sequential_displacement
from hf_dfml.learning.grouping import group_tasks
from hf_dfml.learning.inner_loop import Parameters, TaskLoss, outer_loss
from hf_dfml.learning.optimisation import parameters_of
from hf_dfml.learning.probe import load_probe
from hf_dfml.learning.recognition import confusion, unfamiliarity
from hf_dfml.methods.base import Context
from hf_dfml.methods.dro import DRO, DROConfig
from hf_dfml.methods.free import FREE, FREEConfig
from hf_dfml.methods.inversion import distillation_task
from hf_dfml.methods.purer import PURER, PURERConfig
from hf_dfml.networks.info import network_info
from hf_dfml.pool import ModelPool
from hf_dfml.pool.building.build import build_pool
from hf_dfml.pool.building.training import PoolRecipe
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.settings import Settings, option
from hf_dfml.utils.images import to_uint8, to_unit
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork

MECHANISMS = ("bell", "igr", "gamma", "grouping", "purer")
SMALL_STEP = 1e-3
"""Rate of BELL's inner steps at which its expansion of first order (Lemma 1) should hold."""


class Options(Settings):
    """What is measured, and how much of it."""

    pool: str = option("", "A pool of members of one architecture; else a small one of glyphs, built when missing.")
    dataset: str = option("glyphs", "Data set whose validation classes the accuracies are on.")
    data_dir: str | None = option(None, "Folder of local copies of the data sets.")
    only: list[str] = option(list(MECHANISMS), "Which mechanisms.", choices=MECHANISMS)
    members: int = option(60, "Members that are used.", least=2)
    epochs: int = option(4, "FREE's epochs after the warm-up, and as many with each form of BELL.", least=1)
    draws: int = option(12, "Draws of four tasks for BELL's direction.", least=2)
    gammas: list[float] = option([0.5, 2.0, 10.0, 50.0], "DRO's prices.")
    dro_epochs: int = option(20, "DRO's epochs.", least=1)
    embedded: int = option(24, "Members that are embedded for the grouping.", least=4)
    embedded_images: int = option(10, "Images of each class for an embedding.", least=1)
    groups: int = option(5, "Groups, as in TGR.", least=2)
    probe: str = option("average", "Network that embeds: a folder, a timm model with weights, or `average`.")
    probe_size: int = option(64, "Height and width at which it sees images.", least=0)
    real_images: bool = option(False, "Real images of the members' training classes beside, as an upper guide.")
    mixed: str = option(
        "pools/mechanisms-mixed", "Folder of a small pool of several architectures; built when missing."
    )
    purer_steps: int = option(60, "PURER's steps before the curriculum begins, and again with it.", least=1)
    episodes: int = option(150, "Episodes of an accuracy.", least=2)
    icfil_episodes: int = option(40, "Episodes with and without ICFIL.", least=2)
    quick: bool = option(False, "So little of everything that it only shows that it runs.")
    pictures: str = option("", "Folder for the figures; none without.")
    output_dir: str = option("", "Folder for results.json (rows of accuracies) and mechanisms.md.")
    seed: int = option(0, "Seed of everything random.")
    num_threads: int = option(1, "CPU threads.", least=0)

    @property
    def shortened(self) -> Options:
        """With a little of everything, if it is to be quick."""
        if not self.quick:
            return self
        few = {"epochs": 1, "draws": 2, "dro_epochs": 1, "purer_steps": 2, "episodes": 2, "icfil_episodes": 2}
        return replace(self, members=4, gammas=[0.5, 10.0], embedded_images=2, groups=2, probe_size=0, **few)


# BELL (FREE).


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

    def share(**changes: Any) -> float:
        method = FREE(replace(config, **changes), fresh_network(pool, options))
        method.load_state_dict(copy.deepcopy(state), pool, context)
        context.generator.set_state(draws)
        return mean(row["bell_share"] for row in run_epochs(method, context, first, first + options.epochs))

    of_movement = "length of BELL's movement of the weights in an epoch over that plus the replay's"
    found.note("bell_share", share(), f"{of_movement}; --bell released, an Adam of its own")
    found.note("bell_share_shared", share(bell_optimizer="shared"), "the same, in the replay's Adam (released code)")
    found.note("bell_share_paper", share(bell="paper"), "the same, --bell paper: SGD steps of 0.1 and epsilon 1")
    printed = {"bell": "paper", "bell_lr": 1e-3, "bell_epsilon": 1e-3}
    found.note("bell_share_printed", share(**printed), "the same with the printed alpha = epsilon = 0.001")

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


def run_epochs(method: Any, context: Context, first: int, last: int) -> list[dict[str, float]]:
    """Steps `first` to `last` of a method; their metrics."""
    rows = []
    for context.step in range(first, last):
        rows.append(method.step(context))
    return rows


def flat(params: Parameters) -> Tensor:
    """All in one vector."""
    return torch.cat([value.flatten() for value in params.values()])


def norm(params: Parameters) -> float:
    """Its length."""
    return flat(params).norm().item()


def cosine(first: Parameters, second: Parameters) -> Tensor:
    """Of the angle between two movements."""
    return F.cosine_similarity(flat(first), flat(second), dim=0)


def moved(params: Parameters, way: Parameters, length: float) -> Parameters:
    """So far in that direction."""
    scale = length / norm(way)
    return {name: value + scale * way[name] for name, value in params.items()}


# Gradient regularisation (TGR).


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
    return network


def distillation_loss_of(
    network: nn.Module, images: Tensor, labels: Tensor, answers: Tensor, params: Parameters
) -> Any:
    """KD and cross-entropy, TGR's loss of a task."""
    logits = torch.func.functional_call(network, params, ((images - 0.5) / 0.25,))
    kd = F.kl_div(logits.log_softmax(-1), answers, reduction="batchmean", log_target=True)
    return kd + F.cross_entropy(logits, labels)


# The price gamma (DRO).


def measure_gamma(found: Measured[Options], pool: ModelPool, classes: FewShotDataset) -> None:
    """Accuracy and width of the search against gamma, by the same episodes and seeds."""
    options = found.options
    protocol = EvaluationProtocol(
        ways=pool[0].num_classes or WAYS, shots=[5], episodes=options.episodes, split=classes.split
    )
    accuracies, widths = {}, {}
    for gamma in options.gammas:
        method = DRO(DROConfig(epochs=options.dro_epochs, gamma=gamma), fresh_network(pool, options))
        context = Context(fork(options.seed, "gamma"))
        method.setup(pool, context)
        last = run_epochs(method, context, 0, options.dro_epochs)[-1]
        widths[gamma] = last["wasserstein"]
        accuracies[gamma] = accuracy_of(found, method.snapshot(context), classes, protocol, f"DRO, gamma {gamma:g}")
        print(f"gamma {gamma:g}: {100 * accuracies[gamma].mean():.2f} %, {last}", flush=True)
    found.note(
        "gamma_width_ratio",
        max(widths.values()) / max(min(widths.values()), 1e-12),
        f"widest over narrowest mean search distance, gamma {', '.join(f'{gamma:g}' for gamma in options.gammas)}",
    )
    order = sorted(options.gammas, key=lambda gamma: accuracies[gamma].mean().item())
    gap = 100 * (accuracies[order[-1]] - accuracies[order[0]])
    found.note(
        "gamma_range", gap.mean().item(), f"points of accuracy between gamma {order[-1]:g} and {order[0]:g} (5-shot)"
    )
    found.note(
        "gamma_ratio",
        gap.mean().item() / max(interval(gap.tolist()), 1e-9),
        "that range over half its paired 95 % interval",
    )
    if path := found.picture("dro_gamma"):
        points = {"5-shot": [(gamma, 100 * accuracies[gamma].mean().item()) for gamma in options.gammas]}
        plot(points, path, "gamma", "accuracy (%), validation classes", log=True, least_span=10)


# Grouping (TGR).


def measure_grouping(found: Measured[Options], pool: ModelPool, real: Callable[[], FewShotDataset]) -> None:
    """Whether groups come from what members know, and come out alike from another recovery, by either measure."""
    options = found.options
    members = pool[: options.embedded]
    classes = [set(entry.class_names) for entry in members]
    shared = torch.tensor([[float(len(a & b)) for b in classes] for a in classes])
    ties = torch.rand(shared.shape, generator=fork(options.seed, "ties"))
    best = rank_correlation(shared + 1e-3 * (ties + ties.T), shared)
    found.note("grouping_overlap_ceiling", best, "the most that the next can be, as most pairs share no class")
    probe = load_probe(options.probe, pool, options.probe_size)
    measures: dict[str, Callable[[ModelPool, list[Shown]], Tensor]] = {
        "": partial(by_filters, probe, options),
        "_answers": by_answers,
    }
    recovered = [recovered_images(members, options, f"recovery-{seed}") for seed in (0, 1)]
    mixed = mixed_pool(options)
    kinds = [entry.architecture for entry in mixed]
    other = torch.tensor([[float(a != b) for b in kinds] for a in kinds])
    of_mixed = recovered_images(mixed, options, "mixed")
    photographs = [real_images(members, options, f"real-{seed}", real()) for seed in (0, 1) if options.real_images]
    for suffix, measure in measures.items():
        by = "what members take each other's images for" if suffix else "filters' Fisher information"
        matrices = [measure(members, shown) for shown in recovered]
        found.note(
            f"grouping_overlap{suffix}",
            -rank_correlation(matrices[0], shared),
            f"rank correlation of two members' dissimilarity, by {by}, with minus the number of classes they share "
            f"({len(members)} members, {options.embedded_images} recovered images a class)",
        )
        groups = [group_tasks(matrix, options.groups) for matrix in matrices]
        found.note(
            f"grouping_rand{suffix}",
            rand_index(*groups),
            f"adjusted Rand index of the {options.groups} groups from two recovery seeds",
        )
        found.note(
            f"grouping_within{suffix}",
            mean(shared_within(shared, part) for part in groups),
            "classes that two members of a group share, over what any two share (both seeds): 1 for random groups, "
            "less where unlike members are put together",
        )
        found.note(
            f"grouping_repeats{suffix}",
            rank_correlation(*matrices),
            "rank correlation of the dissimilarities from two recovery seeds",
        )
        if photographs:
            seen = [measure(members, shown) for shown in photographs]
            found.note(
                f"grouping_overlap_real{suffix}",
                -rank_correlation(seen[0], shared),
                f"as grouping_overlap{suffix}, with real images of the members' classes",
            )
            found.note(
                f"grouping_rand_real{suffix}",
                rand_index(*(group_tasks(matrix, options.groups) for matrix in seen)),
                "adjusted Rand index of the groups from two draws of real images",
            )
            found.note(
                f"grouping_recovered_real{suffix}",
                rank_correlation(matrices[0], seen[0]),
                "rank correlation of dissimilarities by recovered and by real images",
            )
        if suffix:
            matrix = measure(mixed, of_mixed)
        else:
            matrix = by_filters(load_probe(options.probe, mixed, options.probe_size), options, mixed, of_mixed)
        found.note(
            f"grouping_architecture{suffix}",
            rank_correlation(matrix, other),
            f"rank correlation of dissimilarity with another architecture ({len(mixed)} members of glyphs, "
            f"{', '.join(dict.fromkeys(map(str, kinds)))})",
        )


def shared_within(shared: Tensor, groups: Sequence[Sequence[int]]) -> float:
    """Mean number of classes shared by two members of a group, over that of any two."""
    pairs = torch.ones_like(shared, dtype=torch.bool).fill_diagonal_(False)
    together = torch.zeros_like(pairs)
    for group in groups:
        rows = torch.tensor(list(group))
        together[rows[:, None], rows] = True
    return float(shared[pairs & together].mean() / shared[pairs].mean())


class Shown(NamedTuple):
    """Images `(N, 3, H, W)` in [0, 1] of a member's classes, and their labels `(N,)`."""

    images: Tensor
    labels: Tensor


def recovered_images(pool: ModelPool, options: Options, name: str) -> list[Shown]:
    """By member what was recovered from it."""
    recovery = RecoveryConfig(
        recovery="pixels",
        recovery_steps=2 if options.quick else 60,
        recovery_lr=0.1,
        images_per_class=options.embedded_images,
        tv_weight=0.1,
        shift=2,
    )
    tasks = (
        recover(pool.load(index), recovery, entry.input_size[-1], fork(options.seed, "grouping", name, index))
        for index, entry in enumerate(pool)
        if entry.input_size
    )
    return [Shown(task.images, task.labels) for task in tasks]


def real_images(pool: ModelPool, options: Options, name: str, real: FewShotDataset) -> list[Shown]:
    """By member as many photographs of its classes."""
    found = []
    for index, entry in enumerate(pool):
        generator, drawn = fork(options.seed, "grouping", name, index), []
        for class_name in entry.class_names:
            rows = (real.labels == real.class_names.index(class_name)).nonzero().flatten()
            drawn.append(rows[torch.randperm(len(rows), generator=generator)[: options.embedded_images]])
        labels = torch.arange(len(drawn)).repeat_interleave(torch.tensor([len(rows) for rows in drawn]))
        found.append(Shown(to_unit(real.images[torch.cat(drawn)]), labels))
    return found


def by_filters(probe: Teacher, options: Options, pool: ModelPool, shown: list[Shown]) -> Tensor:
    """Dissimilarities by the Fisher information of a probe's filters."""
    embeddings = [
        filter_fisher(probe, images, fork(options.seed, "labels", index)) for index, (images, _) in enumerate(shown)
    ]
    return standardised_dissimilarities(torch.stack(embeddings))


def by_answers(pool: ModelPool, shown: list[Shown]) -> Tensor:
    """Dissimilarities by what members take each other's images for."""
    sizes = [entry.num_classes or WAYS for entry in pool]
    return unfamiliarity(
        [
            torch.cat(
                [
                    confusion(pool.load(index), to_uint8(images), labels, size)
                    for (images, labels), size in zip(shown, sizes, strict=True)
                ]
            )
            for index in range(len(pool))
        ]
    )


def rand_index(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> float:
    """Adjusted for chance: 0 on average for random groups, 1 for the same groups."""
    labels = []
    for groups in (first, second):
        group_of = {member: number for number, group in enumerate(groups) for member in group}
        labels.append([group_of[member] for member in sorted(group_of)])
    return float(adjusted_rand_score(*labels))


def mixed_pool(options: Options) -> ModelPool:
    """Members of several architectures on one data set, built when missing."""
    recipe = replace(PoolRecipe.fast(flip=False), epochs=1 if options.quick else 6, batch_size=32)
    folders = []
    for arch in ("conv4", "conv4_64", "resnet10t")[: 2 if options.quick else 3]:
        folders.append(Path(options.mixed) / arch)
        count = 2 if options.quick else 5
        build_pool("glyphs", output=folders[-1], arch=arch, num_models=count, recipe=recipe, seed=options.seed)
    return ModelPool.open(",".join(map(str, folders))).resolve()


# Curriculum and calibration (PURER).


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


# What they share.


def plot(
    lines: dict[str, list[tuple[float, float]]],
    path: Path,
    x_label: str,
    y_label: str,
    *,
    log: bool = False,
    least_span: float = 0.0,
) -> None:
    """Lines with a point for each measurement, on a vertical axis of at least that length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel=x_label, ylabel=y_label, xscale="log" if log else "linear")
    low, high = axes.get_ylim()
    wider = max(0.0, least_span - (high - low)) / 2
    axes.set_ylim(low - wider, high + wider)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the last line's object."""
    (options,) = parse_into([Options], argv, __doc__)
    options = options.shortened
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    pool = open_pool(options.pool).resolve()[: options.members]
    print(f"{len(pool)} members; {describe_machine(pool.device)}.", flush=True)
    found, started = Measured(options), time.monotonic()
    size = pool[0].input_size[-1] if pool[0].input_size else 32
    classes = cache(partial(load_dataset, options.dataset, data_dir=options.data_dir, image_size=size))
    work: dict[str, Callable[[], None]] = {
        "bell": lambda: measure_bell(found, pool),
        "igr": lambda: measure_igr(found, pool),
        "gamma": lambda: measure_gamma(found, pool, classes("validation")),
        "grouping": lambda: measure_grouping(found, pool, lambda: classes("train")),
        "purer": lambda: measure_purer(found, pool, classes("validation")),
    }
    for name in options.only:
        began = time.monotonic()
        work[name]()
        print(f"{name}: {time.monotonic() - began:.0f} seconds.", flush=True)
        found.write("mechanisms", "The mechanisms of the five systems")
    ours, printed = (found.figures.get(name) for name in ("bell_share", "bell_share_printed"))
    summary = {
        "benchmark": "mechanisms",
        "unit": "share of an epoch's movement that is BELL's",
        "baseline": printed,
        "ours": ours,
        "ratio": ours / printed if ours and printed else None,
        **found.figures,
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    print(json.dumps(summary))
    return summary


if __name__ == "__main__":
    main()
