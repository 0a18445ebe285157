"""TGR's figures of what makes members unlike (Wei et al., ICML 2024): their similarity, and what a second one adds.

    python benchmarks/tgr_figures.py --pool pools/cifar-fs --dataset cifar-fs --data_dir DATA --pictures docs/pictures
    python benchmarks/tgr_figures.py --quick --only cka

- `cka`, Figure 1: linear CKA of every two members' features of the same images. There are no data, so that the images
  are procedural ones, or recovered from all members alike.
- `overlap`, Figure 2: a meta-model learns from two members, a basic and an auxiliary one that share none, one, two or
  more of their classes. The accuracy gain is its accuracy minus that of a meta-model that learns from the basic member
  twice, on the same episodes of validation classes.

As in the released study each member gives 20 images a class, an outer step of MAML takes one episode of each of the
two members (5 shots, 15 queries), and there are 50 steps of Adam from the same fresh network. That study trains 60
auxiliary members, ten for each overlap of 0 to 5 among ten classes; here members are those of the pool, and --trained
FOLDER trains more for the overlaps that the pool does not hold, on the data set's training classes. It recovers by
generators, and its classes have the same labels in all episodes. The last line is a JSON object of all figures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from figures import WAYS, Measured, accuracy_of, fresh_network, interval, rank_correlation
from measuring import open_pool
from torch import Tensor, nn

from hf_dfml.arguments import parse_into
from hf_dfml.data import FewShotDataset, load_dataset
from hf_dfml.evaluation import EvaluationProtocol
from hf_dfml.learning.grouping import group_tasks
from hf_dfml.learning.optimisation import apply_gradients
from hf_dfml.learning.replay import EpisodeConfig, replay_gradient
from hf_dfml.learning.student import features_of
from hf_dfml.pool import ModelPool, PoolEntry
from hf_dfml.pool.building.build import build_pool
from hf_dfml.pool.building.training import PoolRecipe
from hf_dfml.recovery.bank import MemoryBank
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.recovery.procedural import procedural_images
from hf_dfml.recovery.task import Task
from hf_dfml.settings import Settings, option, part
from hf_dfml.utils.images import to_unit
from hf_dfml.utils.pictures import heat_map, strip_chart
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork

FIGURES = ("cka", "overlap")
IMAGES = ("procedural", "recovered")
EPISODE = EpisodeConfig(replay_shots=5)
"""MAML of the released study: second order, 5 inner steps of 0.01, queries normalised together, Adam of 0.001."""


class Options(Settings):
    """What is measured, and how much of it."""

    pool: str = option("", "A pool of members of one architecture; else a small one of glyphs, built when missing.")
    dataset: str = option("glyphs", "Data set whose validation classes the accuracies are on.")
    data_dir: str | None = option(None, "Folder of local copies of the data sets.")
    only: list[str] = option(list(FIGURES), "Which figures.", choices=FIGURES)
    members: int = option(100, "Members that are used.", least=2)
    images: list[str] = option(list(IMAGES), "Images of which members' features are compared.", choices=IMAGES)
    image_count: int = option(500, "So many of them at most.", least=2)
    recovered_each: int = option(2, "Of these, images recovered for each class of each member.", least=1)
    groups: int = option(5, "Groups of like members in the picture.", least=1)
    basics: int = option(1, "Basic members: those that share the most different numbers of classes.", least=1)
    auxiliaries: int = option(1, "Auxiliary members of each for each number of shared classes, at most.", least=1)
    trained: str = option(
        "", "Folder of auxiliary members that are trained for the overlaps that the pool lacks; none without."
    )
    meta_steps: int = option(50, "Outer steps of a meta-model.", least=1)
    episodes: int = option(100, "Episodes of an accuracy.", least=2)
    inversion: RecoveryConfig = part(
        RecoveryConfig,
        recovery="pixels",
        recovery_steps=60,
        recovery_lr=0.1,
        images_per_class=20,
        tv_weight=0.1,
        shift=2,
    )
    quick: bool = option(False, "So little of everything that it only shows that it runs.")
    pictures: str = option("", "Folder for the pictures; none without.")
    output_dir: str = option("", "Folder for results.json (rows of accuracies) and tgr_figures.md.")
    seed: int = option(0, "Seed of everything random.")
    num_threads: int = option(1, "CPU threads.", least=0)

    @property
    def shortened(self) -> Options:
        """With a little of everything, if it is to be quick."""
        if not self.quick:
            return self
        few = {"members": 4, "image_count": 20, "basics": 1, "auxiliaries": 1, "meta_steps": 1, "episodes": 2}
        return replace(self, **few, groups=2, recovery_steps=2)


# Figure 1: the similarity of members.


def measure_cka(found: Measured[Options], pool: ModelPool) -> None:
    """Linear CKA of every two members, and whether it follows the classes that they share."""
    options, shared, similarities = found.options, classes_shared(pool), []
    rows, columns = torch.triu_indices(len(pool), len(pool), 1)
    counts = shared[rows, columns]
    for kind in options.images:
        images = (procedural if kind == "procedural" else recovered)(pool, options)
        untrained = fresh_network(pool, options).eval()
        with torch.no_grad():
            features = [member.features(images) for member in pool.stream()]
            *similarity, floor = linear_cka([*features, features_of(untrained, images)])[:, : len(pool)]
        similarity = torch.stack(similarity)
        similarities.append(similarity)
        values = similarity[rows, columns]
        of = f"linear CKA of two members' features of {len(images)} {kind} images"
        found.note(f"cka_{kind}", values.mean().item(), f"mean {of}, {len(pool)} members")
        found.note(f"cka_{kind}_untrained", floor.mean().item(), "the same with an untrained network")
        found.note(f"cka_{kind}_least", values.min().item(), "the least of any two members")
        found.note(f"cka_{kind}_most", values.max().item(), "the most")
        for count in counts.unique().tolist():
            some = values[counts == count]
            of_these = f"its mean of the {len(some)} pairs that share {count:.0f} classes"
            found.note(f"cka_{kind}_shared_{count:.0f}", some.mean().item(), of_these)
        found.note(
            f"cka_{kind}_overlap", rank_correlation(similarity, shared), "its rank correlation with the classes shared"
        )
        if path := found.picture(f"tgr_cka_{kind}"):
            groups = group_tasks(similarity, options.groups)
            order = [member for group in groups for member in group]
            heat_map(
                similarity[order][:, order],
                path,
                title=f"Linear CKA of members' features of {kind} images, group by group",
                label="member",
                groups=[len(group) for group in groups],
            )
    if len(similarities) == 2:
        both = " and ".join(options.images)
        found.note("cka_agreement", rank_correlation(*similarities), f"rank correlation of CKA by {both} images")


def linear_cka(features: Sequence[Tensor]) -> Tensor:
    r"""Linear centred kernel alignment (Kornblith et al., ICML 2019, Section 3) of every two networks.

    :math:`\lVert Y^T X\rVert_F^2 / (\lVert X^T X\rVert_F \lVert Y^T Y\rVert_F)` of centred features: 1 where one is a
    rotation of the other, up to a factor, and 0 where they have nothing in common.

    Args:
        features: of each network `(n, D)`, of the same `n` images; `D` may differ.

    Returns:
        `(M, M)` in [0, 1], symmetric, ones on the diagonal.
    """
    centred = [each - each.mean(0) for each in features]
    # Each is scaled so that its similarity with itself is 1.
    scaled = [each / (each.T @ each).norm().sqrt().clamp_min(1e-12) for each in centred]
    widths = [each.shape[1] for each in scaled]
    side_by_side = torch.cat(scaled, dim=1)
    products = [(each.T @ side_by_side).square().sum(0).split(widths) for each in scaled]
    return torch.stack([torch.stack([part.sum() for part in parts]) for parts in products])


def procedural(pool: ModelPool, options: Options) -> Tensor:
    """Images `(N, 3, H, W)` in [0, 1] that show no class."""
    return to_unit(procedural_images(options.image_count, size_of(pool), fork(options.seed, "procedural")))


def recovered(pool: ModelPool, options: Options) -> Tensor:
    """Images `(N, 3, H, W)` in [0, 1] of which each member has given as many."""
    recovery = replace(options.inversion, images_per_class=options.recovered_each)
    images = torch.cat([task_of(pool, index, recovery, options.seed).images for index in range(len(pool))])
    return images[torch.randperm(len(images), generator=fork(options.seed, "chosen"))[: options.image_count]]


# Figure 2: accuracy gain against the overlap of classes.


class Pair(NamedTuple):
    """Two members and the number of class names that they share."""

    basic: int
    auxiliary: int
    shared: int


def measure_overlap(found: Measured[Options], pool: ModelPool, load: Callable[[str], FewShotDataset]) -> None:
    """What an auxiliary member adds, against the number of classes that it shares with the basic one."""
    options = found.options
    pairs = choose_pairs(classes_shared(pool), options.basics, options.auxiliaries, fork(options.seed, "pairs"))
    classes, held = load("validation"), len(pool)
    if options.trained:
        pool, pairs = with_all_overlaps(pool, pairs, load("train"), options)
    protocol = EvaluationProtocol(
        ways=pool[0].num_classes or WAYS, shots=[5], episodes=options.episodes, split=classes.split
    )

    @cache
    def bank_of(index: int) -> MemoryBank:
        bank = MemoryBank(options.inversion.images_per_class)
        bank.add(task_of(pool, index, options.inversion, options.seed))
        return bank

    def accuracy(first: int, second: int, name: str) -> Tensor:
        network = meta_learnt(fresh_network(pool, options), [bank_of(first), bank_of(second)], options)
        return 100 * accuracy_of(found, network, classes, protocol, name)

    @cache
    def alone(basic: int) -> Tensor:
        return accuracy(basic, basic, f"{pool[basic].id} alone")

    gains: dict[int, list[float]] = {}
    reached: list[float] = []
    for pair in pairs:
        name = f"{pool[pair.basic].id} with {pool[pair.auxiliary].id}, {pair.shared} classes shared"
        single = alone(pair.basic)
        both = accuracy(pair.basic, pair.auxiliary, name)
        gain = (both - single).mean().item()
        print(f"{name}: {gain:+.2f}.", flush=True)
        gains.setdefault(pair.shared, []).append(gain)
        reached.append(both.mean().item())
    found.note(
        "accuracy_alone",
        mean(alone(basic).mean().item() for basic in {pair.basic: None for pair in pairs}),
        f"5-shot accuracy (%) of a meta-model of one member, mean over {len({pair.basic for pair in pairs})}",
    )
    found.note("accuracy_together", mean(reached), f"the same of two members, mean over {len(pairs)} pairs")
    for count, values in sorted(gains.items()):
        own = any(pair.shared == count and pair.auxiliary >= held for pair in pairs)
        of = f"{len(values)} pairs that share {count}" + (", auxiliary members trained for it" if own else "")
        found.note(f"gain_shared_{count}", mean(values), f"accuracy gain in points, {of}")
        if len(values) > 1:
            found.note(f"gain_shared_{count}_ci95", interval(values), "half its 95 % interval over these pairs")
    if path := found.picture("tgr_overlap"):
        strip_chart(
            {str(count): values for count, values in sorted(gains.items())},
            path,
            title="What a second member adds to one, by the classes that both know",
            xlabel="classes shared",
            ylabel="accuracy gain (points)",
        )


def choose_pairs(shared: Tensor, basics: int, auxiliaries: int, generator: torch.Generator) -> list[Pair]:
    """Basic members that find as many different overlaps as possible, each with auxiliary members of every overlap.

    Args:
        shared: classes that two members share, `(M, M)`.
        basics: how many basic members, ties at random.
        auxiliaries: how many auxiliary members for each basic one and overlap, at most, at random.
        generator: draws the order in which members are taken.
    """
    order = torch.randperm(len(shared), generator=generator).tolist()
    counts = {basic: {other: int(shared[basic, other]) for other in order if other != basic} for basic in order}
    chosen = sorted(order, key=lambda basic: -len(set(counts[basic].values())))[:basics]
    return [
        Pair(basic, other, count)
        for basic in chosen
        for count in sorted(set(counts[basic].values()))
        for other in [other for other in order if counts[basic].get(other) == count][:auxiliaries]
    ]


def with_all_overlaps(
    pool: ModelPool, pairs: list[Pair], train: FewShotDataset, options: Options
) -> tuple[ModelPool, list[Pair]]:
    """The pool and the pairs with auxiliary members that are trained for the overlaps that a basic one lacks."""
    pairs, members = list(pairs), pool
    for basic in {pair.basic: None for pair in pairs}:
        found = {pair.shared for pair in pairs if pair.basic == basic}
        for count in sorted(set(range(len(pool[basic].class_names) + 1)) - found):
            for number in range(options.auxiliaries):
                pairs.append(Pair(basic, len(members), count))
                members += train_auxiliary(pool[basic], count, number, train, options)
    return members, pairs


def train_auxiliary(basic: PoolEntry, count: int, number: int, train: FewShotDataset, options: Options) -> ModelPool:
    """A new member that shares `count` classes with a basic one, trained as by `hf-dfml pool build --fast`."""
    generator = fork(options.seed, "auxiliary", basic.id, count, number)

    def some(names: Sequence[str], wanted: int) -> list[str]:
        return [names[index] for index in torch.randperm(len(names), generator=generator)[:wanted].tolist()]

    others = [name for name in train.class_names if name not in basic.class_names]
    names = some(basic.class_names, count) + some(others, len(basic.class_names) - count)
    parts = [train.by_class(name) for name in names]
    name = f"{basic.id}-shares-{count}-{number}"
    return build_pool(
        replace(
            train,
            name=name,
            images=torch.cat(parts),
            labels=torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts])),
            class_names=tuple(names),
        ),
        output=Path(options.trained) / name,
        num_models=1,
        arch=basic.architecture or "conv4",
        ways=len(names),
        recipe=PoolRecipe.fast(flip=options.inversion.flip),
        epochs=1 if options.quick else None,
        seed=int(torch.randint(2**31, (), generator=generator)),
    )


def meta_learnt(network: nn.Module, banks: Sequence[MemoryBank], options: Options) -> nn.Module:
    """The network after outer steps of MAML, each on one episode of every bank; the same draws for whatever banks."""
    optimizer = torch.optim.Adam(network.parameters(), EPISODE.outer_lr)
    generator = fork(options.seed, "episodes")
    for _ in range(options.meta_steps):
        found = [
            replay_gradient(network, bank, EPISODE, generator, ways=len(bank.class_names), count=1)[0]
            for bank in banks
        ]
        apply_gradients(optimizer, network, {name: sum(each[name] for each in found) for name in found[0]})
    return network.eval()


# What they share.


def classes_shared(pool: ModelPool) -> Tensor:
    """How many class names every two members share, `(M, M)`."""
    classes = [set(entry.class_names) for entry in pool]
    return torch.tensor([[float(len(first & second)) for second in classes] for first in classes])


def task_of(pool: ModelPool, index: int, recovery: RecoveryConfig, seed: int) -> Task:
    """What is recovered from a member."""
    return recover(pool.load(index), recovery, size_of(pool), fork(seed, "recovery", index))


def size_of(pool: ModelPool) -> int:
    """Height and width of the members' images."""
    return pool[0].input_size[-1] if pool[0].input_size else 32


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the last line's object."""
    (options,) = parse_into([Options], argv, __doc__)
    options = options.shortened
    if options.dataset == "glyphs":
        options = replace(options, flip=False)  # A mirrored glyph may be another glyph.
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    pool = open_pool(options.pool).resolve()[: options.members]
    print(f"{len(pool)} members; {describe_machine(pool.device)}.", flush=True)
    load = partial(load_dataset, options.dataset, data_dir=options.data_dir, image_size=size_of(pool))
    found, started = Measured(options), time.monotonic()
    work: dict[str, Callable[[], None]] = {
        "cka": lambda: measure_cka(found, pool),
        "overlap": lambda: measure_overlap(found, pool, load),
    }
    for name in options.only:
        began = time.monotonic()
        work[name]()
        print(f"{name}: {time.monotonic() - began:.0f} seconds.", flush=True)
        found.write("tgr_figures", "TGR's figures of what makes members unlike")
    alone, together = found.figures.get("accuracy_alone"), found.figures.get("accuracy_together")
    summary = {
        "benchmark": "tgr_figures",
        "unit": "5-shot accuracy in percent of a meta-model of one member, and of two",
        "baseline": alone,
        "ours": together,
        "ratio": together / alone if alone and together else None,
        **found.figures,
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    print(json.dumps(summary))
    return summary


if __name__ == "__main__":
    main()
