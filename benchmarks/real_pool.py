"""From a mixed pool of real networks to one model: kinds of images, parts of the student that learn, all baselines.

    python benchmarks/real_pool.py --pool pools/real --dataset cub --data_dir DATA \
        --student_from timm/tf_efficientnet_lite0.in1k --image_size 128 \
        --kinds recovered procedural photos --images PHOTOS --parts beside last_stage --output_dir runs/real

For each kind of image the members are asked once, and a student of each part learns the answers: `recovered` from the
members, `recovered with a prior` (--prior), `recovered with patches` (--patch_weight), or both, `procedural`,
`strokes`, or `photos` of the folder --images. The student that is best on the validation classes at the largest number
of shots, and the member that is (whatever accuracy it stores), meet on the test classes, once, beside all members'
features and answers and the frozen public network; without --student_from the student starts from the members or at
random, and its random weights stand in place of that network. --architectures takes the members of these alone. Only
--photos_per_class images of each class are used. Options are those of recipes/pool_distillation.py too. What is done
is kept: the same command goes on; other members need another --output_dir.

Written into --output_dir: `real_pool.json` and `real_pool.md`. The last line is that object; `ratio` is the student's
accuracy over that of the best member, `core_minutes` those of images, answers and learning, and `peak_mb` the largest
resident memory of the process, which is little where all was kept.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from measuring import table, write_section
from students import GivenImages, prepared, prototypes
from torch import Tensor, nn

from hf_dfml.arguments import parse_into
from hf_dfml.data import FewShotDataset, load_dataset
from hf_dfml.evaluation.frozen_features import EpisodeImages, Scorer
from hf_dfml.evaluation.heads.base import Adaptation
from hf_dfml.evaluation.heads.features import combined
from hf_dfml.meta_network import meta_network
from hf_dfml.methods.base import Context
from hf_dfml.methods.pool_distillation import PoolDistillation, PoolDistillationConfig
from hf_dfml.methods.pool_images import PoolImages
from hf_dfml.networks.functional import functional_forward
from hf_dfml.networks.info import network_info
from hf_dfml.pipeline import RunConfig
from hf_dfml.pool import ModelPool
from hf_dfml.pool.backbone import open_backbone
from hf_dfml.settings import Settings, option
from hf_dfml.utils.checkpoint import Tree, atomic_write, load_tree, save_tree
from hf_dfml.utils.images import resize
from hf_dfml.utils.progress import progress
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork

KINDS: dict[str, dict[str, Any]] = {
    "recovered": {"training_images": "recovered", "images": None, "prior": None, "patch_weight": 0.0},
    "recovered with a prior": {"training_images": "recovered", "images": None, "patch_weight": 0.0},
    "recovered with patches": {"training_images": "recovered", "images": None, "prior": None},
    "recovered with a prior and patches": {"training_images": "recovered", "images": None},
    "procedural": {"training_images": "procedural", "images": None, "prior": None},
    "strokes": {"training_images": "strokes", "images": None, "prior": None},
    "photos": {"prior": None},
}
"""What is made of the options for each kind of image."""
WEIGHTS = (0.2, 0.5)
"""Of the members' own answers beside a frozen network: what a student beside it could reach."""

UNTRAINED = "random weights of the student's architecture"


class Options(Settings):
    """What is compared."""

    kinds: list[str] = option(["recovered", "procedural"], "Kinds of images.", choices=tuple(KINDS))
    parts: list[str] = option(["all"], "Values of --train_student.")
    architectures: list[str] = option(["all"], "Only members of these architectures take part.")
    photos_per_class: int = option(30, "Images of each class of the evaluation.", least=20)


class Minutes(NamedTuple):
    """Core-minutes of a student: making images, asking the members about them, and learning their answers."""

    images: float = 0.0
    answers: float = 0.0
    learning: float = 0.0


@dataclass
class TimedContext(Context):
    """A context that takes the time of answers.

    Attributes:
        answering: core-minutes in which the members were asked.
    """

    answering: float = 0.0

    def map_members(self, name: str, *arguments: Any) -> list[Tree]:
        """See `Context`."""
        began = time.process_time()
        parts = super().map_members(name, *arguments)
        if name == "answers":
            self.answering += (time.process_time() - began) / 60
        return parts


@dataclass
class Found:
    """Of a contestant: accuracies of each episode by numbers of shots, and core-minutes of making it."""

    accuracies: dict[int, Tensor]
    minutes: Minutes = Minutes()

    def mean(self, shots: int) -> float:
        """In %."""
        return 100 * float(self.accuracies[shots].mean())

    @property
    def cell(self) -> str:
        """Accuracies as they stand in a table."""
        return " / ".join(f"{self.mean(shots):.1f}" for shots in self.accuracies)

    def beyond(self, other: Found) -> str:
        """The difference to another, episode by episode, with its 95 % interval."""
        cells = []
        for shots, own in self.accuracies.items():
            away = 100 * (own - other.accuracies[shots])
            cells.append(f"{float(away.mean()):+.1f} ± {1.96 * float(away.std()) / len(away) ** 0.5:.1f}")
        return " / ".join(cells)


class Members(NamedTuple):
    """What is found by each member's features, by its id, all members' features, and all members' answers.

    The answers of the split's images, side by side and of length 1, are `told`.
    """

    alone: dict[str, Found]
    features: Found
    answers: Found
    told: Tensor


class Exam:
    """A split of the data set, and the scores of what sees it.

    Args:
        split: `validation` or `test`.
        pool: the members.
        config: data set and episodes.
        each: images of a class.
    """

    def __init__(self, split: str, pool: ModelPool, config: RunConfig, each: int) -> None:
        size = max(entry.input_size[-1] for entry in pool if entry.input_size)
        data = load_dataset(str(config.dataset), split, data_dir=config.data_dir, image_size=size)
        kept = torch.cat([(data.labels == label).nonzero().flatten()[:each] for label in data.labels.unique()])
        self.data: FewShotDataset = replace(data, images=data.images[kept], labels=data.labels[kept])
        self.protocol = prototypes(config, config.episodes, split)
        self.images = EpisodeImages(self.data, self.protocol, pool.device)

    def score(self, features: Iterable[Tensor]) -> Found:
        """What is found by features of the split's images, side by side."""
        scorer = self.images.scorer(self.protocol)
        for part in features:
            scorer.add(part)
        return self.found(scorer)

    def found(self, scorer: Scorer) -> Found:
        """The scorer's accuracies."""
        return Found({shots: scorer.accuracies(shots) for shots in self.protocol.shots})

    def members(self, pool: ModelPool, folder: Path) -> Members:
        """What is found by the members; kept in a folder."""
        folder /= f"members-{self.data.split}"
        if not folder.exists():
            save_tree(folder, self._members(pool))
        tree = load_tree(folder)
        alone = {id: Found(accuracies) for id, accuracies in tree["alone"].items()}
        return Members(alone, Found(tree["features"]), Found(tree["answers"]), tree["told"])

    def _members(self, pool: ModelPool) -> Tree:
        alone, told, features, answers = {}, [], *(self.images.scorer(self.protocol) for _ in range(2))
        for teacher in progress(pool.stream(), description=f"Members, {self.data.split}", total=len(pool)):
            seen, said = self.images.through(partial(_of_member, teacher))
            alone[teacher.entry.id] = self.score([seen]).accuracies
            features.add(seen)
            answers.add(said)
            told.append(said)
        found = {"features": self.found(features).accuracies, "answers": self.found(answers).accuracies}
        return {"alone": alone, "told": F.normalize(torch.cat(told, -1), dim=-1), **found}

    def beside(self, network: nn.Module, told: Tensor) -> dict[str, Found]:
        """What is found by a network's features alone, and with the members' own answers beside them."""
        (features,) = self.images.through(partial(self._see, network, [self.protocol.adaptation]))
        found = {"frozen public network": self.score([features])}
        for weight in WEIGHTS:
            name = f"frozen public network and {weight} x the members' own answers"
            found[name] = self.score([torch.cat([features, weight * told], -1)])
        return found

    def network(self, network: nn.Module, ways: Sequence[str] = ("features",)) -> dict[str, Found]:
        """What is found by a network's features, its predicted answers, or both."""
        hows = [replace(self.protocol, representation=way).adaptation for way in ways]  # type: ignore[arg-type]
        seen = self.images.through(partial(self._see, network, hows))
        return {way: self.score([features]) for way, features in zip(ways, seen, strict=True)}

    @staticmethod
    def _see(network: nn.Module, hows: Sequence[Adaptation], images: Tensor) -> list[Tensor]:
        pixels = resize(images, network_info(network).input_size[1:])
        given = functional_forward(network, {}, pixels, source="running", features=True)
        return [F.normalize(combined(network, [given], how).float(), dim=-1) for how in hows]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    method, config, options = parse_into((PoolDistillationConfig, RunConfig, Options), argv, __doc__)
    if "photos" in options.kinds and not method.training_set.images:
        raise ValueError("--kinds photos: name a folder of unlabelled images, --images FOLDER.")
    for kind in options.kinds:
        if "prior" in kind and not method.training_set.prior:
            raise ValueError(f"--kinds '{kind}': name a public network with batch norm, --prior NETWORK.")
        if "patches" in kind and not method.training_set.inversion.objective.patch_weight > 0:
            raise ValueError(f"--kinds '{kind}': expected a --patch_weight above 0, such as 0.1.")
    config, pool = prepared(method, config, options, but=("kinds", "parts"))
    pool = of_architectures(pool, options.architectures)
    validation = Exam("validation", pool, config, options.photos_per_class)
    students: dict[str, Callable[[], nn.Module]] = {}
    judged: dict[tuple[str, str], Found] = {}
    for kind in options.kinds:
        shown, asked = images_of(kind, pool, method, config)
        for part in options.parts:
            name = f"{part}, {kind}"
            student = Kept(pool, replace(method, train_student=part, **KINDS[kind]), config, shown, name)
            students[name] = student.network
            ways = ("features",) if part == "beside" else ("features", "answers", "both")
            for way, found in validation.network(student.network(), ways).items():
                found.minutes = asked._replace(learning=student.minutes)
                judged[name, way] = found
                print(f"validation: {name}, {way}: {found.cell}", flush=True)
    most = max(config.shots)
    alone, features, answers, told = validation.members(pool, Path(config.output_dir))
    before = {"all members' features": features, "all members' answers": answers}
    public = open_backbone(config.student_from).network if config.student_from else None
    if public is not None:
        before |= validation.beside(public, told)
    else:
        before |= {UNTRAINED: validation.network(meta_network(pool, config))["features"]}
    best = max(alone, key=lambda id: alone[id].mean(most))
    name, way = max(judged, key=lambda key: judged[key].mean(most))
    rows = [(f"student: {each}, {how}", found) for (each, how), found in judged.items()]
    rows += [(f"best member: {best}", alone[best]), *before.items()]
    lines = [
        (
            each,
            found.cell,
            found.beyond(alone[best]),
            *(f"{part:.1f}" if any(found.minutes) else "" for part in found.minutes),
        )
        for each, found in rows
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    test = Exam("test", pool, config, options.photos_per_class)
    others, features, answers, told = test.members(pool, Path(config.output_dir))
    chosen = test.network(students[name](), [way])[way]
    last = {
        f"student: {name}, {way}": chosen,
        f"best member: {best}": others[best],
        "all members' features": features,
        "all members' answers": answers,
    }
    if public is not None:
        last |= test.beside(public, told)
    else:
        last |= {UNTRAINED: test.network(meta_network(pool, config))["features"]}
    shots = " / ".join(map(str, config.shots))
    head = f"what | accuracy, {shots} shots | less the best member | images | answers | learning"
    write_section(
        config.output_dir,
        "real_pool",
        f"{len(pool)} members on {config.dataset}",
        f"{config.ways}-way, nearest class mean, {config.episodes} episodes, {options.photos_per_class} images of a "
        f"class; differences episode by episode with their 95 % interval. {describe_machine('cpu')}, "
        f"{peak:.0f} MB at most. Images, answers and learning in core-minutes.",
        "Validation classes:",
        table(head, lines),
        "Test classes, what was best on validation:",
        table(
            f"what | accuracy, {shots} shots | student less this",
            [(each, found.cell, "" if found is chosen else chosen.beyond(found)) for each, found in last.items()],
        ),
    )
    verdict = {
        "benchmark": "real_pool",
        "ratio": round(chosen.mean(most) / others[best].mean(most), 3),
        "baseline": round(others[best].mean(most), 2),
        "ours": round(chosen.mean(most), 2),
        "unit": f"% of {most}-shot accuracy on the test classes of {config.dataset}",
        "test": {each: found.cell for each, found in last.items()},
        "validation": {each: found.cell for each, found in rows},
        "core_minutes": {
            each: {part: round(value, 2) for part, value in found.minutes._asdict().items()}
            for each, found in rows
            if any(found.minutes)
        },
        "peak_mb": round(peak),
    }
    atomic_write(Path(config.output_dir) / "real_pool.json", json.dumps(verdict, indent=1) + "\n")
    print(json.dumps(verdict))
    return verdict


def of_architectures(pool: ModelPool, names: Sequence[str]) -> ModelPool:
    """The members of these architectures, or `all`.

    Raises:
        ValueError: if no member has one of them.
    """
    if names == ["all"]:
        return pool
    known = sorted({str(entry.architecture) for entry in pool})
    for name in names:
        if name not in known:
            raise ValueError(f"--architectures {name}: no member is of it; expected some of {', '.join(known)}.")
    return pool.filter(lambda entry: entry.architecture in names)


def images_of(
    kind: str, pool: ModelPool, method: PoolDistillationConfig, config: RunConfig
) -> tuple[PoolImages, Minutes]:
    """Images of a kind with the members' answers, made once for all students; and what all tries at them took."""
    folder = Path(config.output_dir) / "images" / kind.replace(" ", "-")
    if not folder.exists():
        began = time.process_time()
        learner = PoolDistillation(replace(method, **KINDS[kind]), meta_network(pool, config))
        cache = Path(str(config.recovery_cache))
        stages = Path(config.output_dir) / "images" / f"{kind.replace(' ', '-')}-parts"
        context = TimedContext(fork(config.seed, "run"), seed=config.seed, cache=cache, scratch=stages)
        tries = folder.with_name(f"{folder.name}-minutes.json")
        spent = json.loads(tries.read_text()) if tries.is_file() else {"minutes": 0.0, "answering": 0.0}
        try:
            shown = learner.make_images(pool, context)
        finally:
            spent["minutes"] += (time.process_time() - began) / 60 - context.answering
            spent["answering"] += context.answering
            folder.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(tries, json.dumps(spent) + "\n")
        save_tree(folder, {**shown._asdict(), **spent})
    tree = load_tree(folder)
    # Folders of earlier versions hold `members`, and older ones no `answering`.
    taken, kept = Minutes(tree.pop("minutes"), tree.pop("answering", 0.0)), tree.pop("members", None)
    if kept and kept != [entry.id for entry in pool]:
        raise ValueError(f"{folder} holds answers of {len(kept)} other members: choose another --output_dir.")
    print(
        f"{kind}: {len(tree['images'])} images, {taken.images:.1f} core-minutes, and {taken.answers:.1f} for answers.",
        flush=True,
    )
    return PoolImages(**tree), taken


class Kept:
    """A student that is trained once, and kept.

    Args:
        pool: the members.
        method: how it learns.
        config: of the run.
        shown: what it learns from.
        name: of its folder.
    """

    def __init__(
        self, pool: ModelPool, method: PoolDistillationConfig, config: RunConfig, shown: PoolImages, name: str
    ) -> None:
        began = time.process_time()
        context = Context(fork(config.seed, "run"), seed=config.seed)
        self.learner = GivenImages(method, meta_network(pool, config), shown)
        folder = Path(config.output_dir) / "students" / name.replace(", ", "-").replace(" ", "-")
        if folder.exists():
            tree = load_tree(folder)
            self.learner.load_state_dict(tree["state"], pool, context)
            self.minutes = tree["minutes"]
        else:
            self.learner.setup(pool, context)
            for context.step in progress(range(self.learner.num_steps), description=name, unit="step"):
                self.learner.step(context)
            self.minutes = (time.process_time() - began) / 60
            save_tree(folder, {"state": self.learner.state_dict(), "minutes": self.minutes})
        self.context = context

    def network(self) -> nn.Module:
        """The student."""
        return self.learner.snapshot(self.context)


def _of_member(teacher: Any, images: Tensor) -> list[Tensor]:
    features, logits = teacher.features_and_logits(images)
    return [F.normalize(features.float(), dim=-1), logits.softmax(-1)]


if __name__ == "__main__":
    main()
