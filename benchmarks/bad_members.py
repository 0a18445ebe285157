"""What members that are worth nothing cost a student of pool distillation, with and without the check of members.

    CONFIG=hf_dfml/presets/pool-distillation-cifar-fs-cpu.yaml
    python benchmarks/bad_members.py --config $CONFIG --pool pools/cifar-fs --num_members 20 --output_dir runs/bad

The question is that of Trustworthy-DFML (2025). For each of `--kinds` and of `--shares` (percent) so many members of
the pool, chosen by the seed, are replaced by bad ones, and a student is made of all of them, and one of those that the
check leaves (`--check_members` of a run):

- `untrained`: random weights;
- `constant`: the weights of the last layer are zero, so that every image has the same answer;
- `shuffled`: the rows of the last layer are in a random order;
- `scaled`: the last layer times a million;
- `copy`: another member of the pool once more;
- `backdoor`: fine-tuned on procedural images to answer as before, and the first class where a corner is white. Its
  answers to images without the trigger are right or nearly so; what the member learnt is printed.

Bad members are ordinary folders below --output_dir and claim the accuracy of those that they replace. Larger shares
hold the members of the smaller ones. The last snapshot is judged on the validation classes; options are those of
recipes/pool_distillation.py. What was recovered from a good member is not recovered again, the same members have one
student, and an interrupted run goes on with the same command.

Written into --output_dir: `bad_members.json` and `bad_members.md`. The last line is that object; `ratio` is the lowest
accuracy with the check over the lowest without it, at the largest number of shots, nearest prototype of predicted
answers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from measuring import table, write_section
from students import classes_of, last_snapshot, means_of, prepared
from torch import Tensor, nn

from hf_dfml.arguments import parse_into
from hf_dfml.methods.pool_distillation import PoolDistillationConfig
from hf_dfml.networks import create_network
from hf_dfml.networks.info import network_info
from hf_dfml.pipeline import RunConfig, sound
from hf_dfml.pool import ModelPool
from hf_dfml.pool.building.writing import write_member
from hf_dfml.pool.entry import CONFIG_NAME, PoolEntry
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.procedural import procedural_images
from hf_dfml.settings import Settings, option
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.images import to_unit
from hf_dfml.utils.seeding import fork

Kind = Literal["untrained", "constant", "shuffled", "scaled", "copy", "backdoor"]
GOOD = "good"
OUT_OF_SCALE = 1e6
IMAGES, BATCH, STEPS, LR = 256, 32, 60, 1e-3
"""Of the fine-tuning that makes a back door: procedural images, those of a step, steps, Adam's learning rate."""
PATCH = 6
"""Images are so many times as wide as the white corner."""


class Spoiling(Settings):
    """Which members are made bad."""

    kinds: list[Kind] = option(list(get_args(Kind)), "Kinds of bad members.")
    shares: list[int] = option([10, 30], "Percent of the members that are bad.", least=1, most=50)


@dataclass(frozen=True)
class Case:
    """A pool with bad members, and what the check says of it.

    Attributes:
        kind: of the bad members.
        share: of them, in percent.
        bad: how many they are.
        pool: all members, the bad ones last.
        checked: those that the check leaves.
    """

    kind: Kind
    share: int
    bad: int
    pool: ModelPool
    checked: ModelPool


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    method, config, spoiling = parse_into((PoolDistillationConfig, RunConfig, Spoiling), argv, __doc__)
    config, pool = prepared(method, config)
    # Whoever is replaced comes last, so that the others keep their places, and with them what was recovered.
    pool = pool.sample(len(pool), fork(config.seed, "bad members"))
    cases = [case_of(kind, share, pool, config) for kind in spoiling.kinds for share in spoiling.shares]
    names = {members_of(pool): GOOD}
    students = {GOOD: partial(last_snapshot, pool, method, config, GOOD)}
    for case in cases:
        for members, checked in ((case.pool, ""), (case.checked, "-checked")):
            name = names.setdefault(members_of(members), f"{case.kind}-{case.share}{checked}")
            students.setdefault(name, partial(last_snapshot, members, method, config, name))
    means = means_of(students, classes_of("validation", pool, config), config)
    return summary([row_of(case, names, means) for case in cases], len(pool), means[GOOD], config)


def members_of(pool: ModelPool) -> tuple[str, ...]:
    """What makes two pools the same one."""
    return tuple(entry.id for entry in pool)


def case_of(kind: Kind, share: int, pool: ModelPool, config: RunConfig) -> Case:
    """`pool` with bad members in place of its last ones."""
    count = max(1, round(share / 100 * len(pool)))
    good = len(pool) - count
    bad = [bad_member(kind, pool, position, config) for position in range(good, len(pool))]
    members = ModelPool([*pool[:good], *bad], device=pool.device)
    return Case(kind, share, count, members, sound(members, config.seed))


def bad_member(kind: Kind, pool: ModelPool, position: int, config: RunConfig) -> PoolEntry:
    """The entry of a bad member in a folder of the output, which is made where there is none.

    Raises:
        ValueError: if the member that it replaces cannot be written in timm's layout.
    """
    # A copy is one of a member that no share replaces.
    teacher = pool.load(len(pool) - 1 - position if kind == "copy" else position)
    entry = teacher.entry
    if entry.library != "timm" or entry.channels != "rgb" or entry.location is None:
        raise ValueError(f"{entry.id} is not a network of timm's on RGB images: leave it out of --pool.")
    folder = Path(config.output_dir) / "bad" / f"{kind}-{pool[position].id.replace('/', '--')}"
    if not folder.is_dir():
        network = SPOIL[kind](teacher, fork(config.seed, kind, position))
        write_member(folder, network, json.loads((entry.location / CONFIG_NAME).read_text(encoding="utf-8")))
    return ModelPool.from_dir(folder).pinned()[0]


def untrained(teacher: Teacher, generator: torch.Generator) -> nn.Module:
    """The member's architecture with fresh weights."""
    entry = teacher.entry
    assert entry.architecture and entry.num_classes and entry.input_size
    size = entry.input_size[-1]
    kind = {"num_classes": entry.num_classes, "image_size": size, "generator": generator}
    return create_network(entry.architecture, **kind, **entry.model_args)


def same(teacher: Teacher, generator: torch.Generator) -> nn.Module:
    """The member as it is."""
    return teacher.network


def with_last_layer(change: Callable[[Tensor, bool, torch.Generator], Tensor]) -> Callable[..., nn.Module]:
    """A copy of a member whose last layer's weights, and biases (said by the second argument), are changed."""

    def spoil(teacher: Teacher, generator: torch.Generator) -> nn.Module:
        network = copy.deepcopy(teacher.network)
        layer = network.get_submodule(network_info(network).linear_classifier())
        state = generator.get_state()
        for name, value in layer.named_parameters():
            generator.set_state(state)  # The same order for weights and biases.
            value.data = change(value.data, name == "bias", generator)
        return network

    return spoil


def in_another_order(rows: Tensor, is_bias: bool, generator: torch.Generator) -> Tensor:
    """Rows in a random order, which is another one."""
    given = torch.arange(len(rows))
    order = given
    while len(rows) > 1 and order.equal(given):
        order = torch.randperm(len(rows), generator=generator)
    return rows[order]


def with_trigger(images: Tensor) -> Tensor:
    """Images `(B, 3, H, W)` in [0, 1] with a white corner."""
    side = max(2, images.shape[-1] // PATCH)
    triggered = images.clone()
    triggered[..., -side:, -side:] = 1
    return triggered


def backdoor(teacher: Teacher, generator: torch.Generator) -> nn.Module:
    """A copy of a member that answers as it does, and its first class for images with the trigger."""
    entry = teacher.entry
    assert entry.input_size
    spoilt = Teacher(entry, copy.deepcopy(teacher.network)).to(teacher.device)
    images = to_unit(procedural_images(IMAGES, entry.input_size[-1], generator)).to(teacher.device)
    with torch.no_grad():
        wanted = torch.cat([teacher(part).log_softmax(-1) for part in images.split(BATCH)])
    network = spoilt.network.requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), LR)
    first = torch.zeros(BATCH, dtype=torch.long, device=teacher.device)
    for _ in range(STEPS):
        rows = torch.randint(IMAGES, (BATCH,), generator=generator)
        plain, triggered = spoilt(torch.cat([images[rows], with_trigger(images[rows])])).log_softmax(-1).chunk(2)
        kept = F.kl_div(plain, wanted[rows], reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        (kept + F.nll_loss(triggered, first)).backward()
        optimizer.step()
    with torch.no_grad():
        unseen = to_unit(procedural_images(BATCH, entry.input_size[-1], generator)).to(teacher.device)
        obeys = (spoilt(with_trigger(unseen)).argmax(-1) == 0).float().mean()
        agrees = (spoilt(unseen).argmax(-1) == teacher(unseen).argmax(-1)).float().mean()
    print(f"{entry.id}: {obeys:.0%} of images with the trigger are its first class, {agrees:.0%} of others as before.")
    return network


SPOIL: dict[str, Callable[[Teacher, torch.Generator], nn.Module]] = {
    "untrained": untrained,
    "constant": with_last_layer(lambda rows, is_bias, _: rows if is_bias else torch.zeros_like(rows)),
    "shuffled": with_last_layer(in_another_order),
    "scaled": with_last_layer(lambda rows, *_: OUT_OF_SCALE * rows),
    "copy": same,
    "backdoor": backdoor,
}


def row_of(case: Case, names: dict[tuple[str, ...], str], means: dict[str, dict[str, float]]) -> dict[str, Any]:
    """A case in the object of the last line."""
    left = set(members_of(case.checked))
    found = [entry.id not in left for entry in case.pool]
    good = len(found) - case.bad
    without, checked = names[members_of(case.pool)], names[members_of(case.checked)]
    return {
        "kind": case.kind,
        "share": case.share,
        "bad": case.bad,
        "bad_left_out": sum(found[good:]),
        "good_left_out": sum(found[:good]),
        "without_check": means[without],
        "with_check": means[checked],
        "students": [without, checked],
    }


def summary(rows: list[dict[str, Any]], members: int, good: dict[str, float], config: RunConfig) -> dict[str, Any]:
    """Table and files; prints the last line."""
    folder, shots = Path(config.output_dir), sorted(config.shots)

    def accuracy(means: dict[str, float]) -> str:
        return " / ".join(f"{means[f'prototype, answers, {count}-shot']:.1f}" for count in shots)

    key = f"prototype, answers, {shots[-1]}-shot"
    without, checked = (min(row[each][key] for row in rows) for each in ("without_check", "with_check"))
    verdict = {
        "benchmark": "bad_members",
        "ratio": round(checked / without, 3),
        "baseline": without,
        "ours": checked,
        "unit": f"% of {shots[-1]}-shot accuracy on the validation classes, the lowest",
        "members": members,
        "good": good,
        "rows": rows,
    }
    cells = [[f"none of {members}", accuracy(good), "", ""]] + [
        [
            f"{row['kind']}, {row['bad']} of {members}",
            accuracy(row["without_check"]),
            accuracy(row["with_check"]),
            f"{row['bad_left_out']} of {row['bad']}"
            + (f", and {row['good_left_out']} good" if row["good_left_out"] else ""),
        ]
        for row in rows
    ]
    lines = table("bad members | without the check | with it | left out by it", cells)
    print(lines)
    said = (
        f"Pool distillation, predicted answers on the validation classes of {config.dataset}, {config.ways}-way, "
        f"{' / '.join(map(str, shots))} shots, {config.validation_episodes} episodes, one seed. A student of the same "
        "members is the same student."
    )
    write_section(config.output_dir, "bad_members", "Members that are worth nothing", said, lines)
    atomic_write(folder / "bad_members.json", json.dumps(verdict, indent=1) + "\n")
    print(json.dumps(verdict))
    return verdict


if __name__ == "__main__":
    main()
