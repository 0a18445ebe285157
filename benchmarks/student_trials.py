"""What else could make a pool's student better? One idea at a time, several seeds, judged on the validation classes.

    CONFIG=hf_dfml/presets/pool-distillation-small.yaml
    python benchmarks/student_trials.py --config $CONFIG --pool pools/cifar-fs --output_dir runs/trials

Recovered images are those of --seed for all; mixtures, heads and order are drawn anew with each of --seeds. Every
student sees as many images as often as that of the recipe, from the same start, but for what its class says. Options
are those of recipes/pool_distillation.py. The test classes are not looked at. A trial that was judged is not repeated:
the same command goes on.

Written into --output_dir: `student_trials.json` and `student_trials.md`. The last line is that object; `ratio` is the
best trial's accuracy at the largest number of shots over that of the recipe as it is given, by features and predicted
answers side by side and with flips.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from measuring import table, write_section
from students import EPISODES_SEED, classes_of, prepared
from torch import Tensor, nn

from hf_dfml.arguments import parse_into
from hf_dfml.data import FewShotDataset
from hf_dfml.evaluation import EvaluationProtocol
from hf_dfml.evaluation.meta_testing import evaluate_each
from hf_dfml.learning.answers import by_member, log_probabilities, probabilities
from hf_dfml.learning.optimisation import one_cycle
from hf_dfml.learning.student import Student, features_of
from hf_dfml.meta_network import meta_network
from hf_dfml.methods.base import Context
from hf_dfml.methods.pool_distillation import PoolDistillation, PoolDistillationConfig
from hf_dfml.methods.pool_images import PoolImages, recover_member, recover_round
from hf_dfml.pipeline import RunConfig
from hf_dfml.pool import ModelPool
from hf_dfml.pool.asking import Asking
from hf_dfml.recovery.joint import joint_classes
from hf_dfml.recovery.mixing import mix_recovered, mixing_coefficients
from hf_dfml.recovery.objective import total_variation, watch_batch_norm
from hf_dfml.settings import Settings, option
from hf_dfml.utils.checkpoint import atomic_write
from hf_dfml.utils.images import resize, to_uint8, to_unit
from hf_dfml.utils.progress import progress
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork

AS_GIVEN = "as given"
ALL = "all"
EMA = 0.998
"""Of the averaged weights, each step."""
ASKED = 3
"""Members, drawn for each batch, whose disagreement with the student moves images."""
STEPS, RATE = 5, 0.03
"""Of this movement, in pixels of [0, 1]."""
SECOND_STEPS, SECOND_IMAGES = 100, 20
"""Updates, and images of a class, of a second recovery by the student."""
EPISODES, FINISH_RATE = 200, 1e-3
"""Of an episodic finish."""


class Trials(Settings):
    """What is tried."""

    trials: list[str] = option([ALL], "Which of the trials, by name, in quotes; or all.")
    seeds: list[int] = option([1, 2, 3], "Seeds of mixtures, heads and order.")


class Recovered(NamedTuple):
    """What the members gave.

    Attributes:
        images: `(R, 3, H, W)` uint8.
        members: `(R,)` which member each was recovered from; of joint recovery the number of members.
        bank: `(classes, images, 3, H, W)` uint8, those of joint recovery, by class name.
    """

    images: Tensor
    members: Tensor
    bank: Tensor


@dataclass
class Bench:
    """What the trials of one seed have in common."""

    pool: ModelPool
    method: PoolDistillationConfig
    config: RunConfig
    recovered: Recovered
    seed: int
    asking: Asking
    kept: dict[str, Any] = field(default_factory=dict)

    def stream(self, name: str) -> torch.Generator:
        """A source of randomness of that name."""
        return fork(self.seed, name)

    def asked(self, images: Tensor) -> Tensor:
        """All members' answers `(N, K)` to images `(N, 3, H, W)` uint8."""
        members = progress(self.pool.stream(), description="Asking", total=len(self.pool), unit="member")
        return torch.cat([self.asking.probabilities(member, images).half() for member in members], -1)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """`compute()`, which other trials of this seed need as well."""
        if name not in self.kept:
            self.kept[name] = compute()
        return self.kept[name]

    def mixtures(self) -> Tensor:
        """The images of the recipe as it is given."""
        options, found = self.method.training_set.mixing, self.recovered
        return self.once("mixtures", lambda: mix_recovered(*found[:2], options, self.stream("mixing")))

    def given(self) -> PoolImages:
        """The same, with the answers."""
        return self.once("given", lambda: _shown(self, self.mixtures()))

    def student(self, kind: Callable[[Bench], Trial]) -> Trial:
        """The trained student of a kind that other trials go on from."""

        def trained() -> Trial:
            student = kind(self)
            student.train()
            return student

        return self.once(str(kind), trained)


class Trial(PoolDistillation):
    """A student of the recipe as it is given; trials change one of its parts.

    Args:
        bench: what all have in common.
    """

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench.method, meta_network(bench.pool, replace(bench.config, seed=bench.seed)))
        self.bench = bench

    def make_images(self, pool: Any, context: Context) -> PoolImages:
        """See the method."""
        return self.bench.given()

    def train(self) -> nn.Module:
        """The student after the last pass."""
        bench = self.bench
        context = Context(bench.stream("run"), seed=bench.seed)
        self.setup(bench.pool, context)
        self.begin()
        for context.step in range(self.num_steps):
            self.step(context)
        return self.finished(context)

    def begin(self) -> None:
        """Called before the first pass."""

    def finished(self, context: Context) -> nn.Module:
        """The student that is judged."""
        return self.snapshot(context)


class AsGiven(Trial):
    """The recipe; trials go on from its student."""

    def train(self) -> nn.Module:
        """See `Trial`."""
        first = self.bench.student(Trial)
        return first.snapshot(Context(self.bench.stream("run")))


class Average(Trial):
    """The average of the weights over the steps (EMA)."""

    def begin(self) -> None:
        """Follow the weights with an average after each step."""
        self.averaged = copy.deepcopy((self.model, self.heads))
        self.optimizer.register_step_post_hook(lambda *_: self._follow())

    @torch.no_grad()
    def _follow(self) -> None:
        for averaged, own in zip(self.averaged, (self.model, self.heads), strict=True):
            for old, new in zip(averaged.state_dict().values(), own.state_dict().values(), strict=True):
                old.lerp_(new, 1 - EMA) if old.is_floating_point() else old.copy_(new)

    def finished(self, context: Context) -> nn.Module:
        """See `Trial`."""
        self.model, self.heads = self.averaged
        return self.snapshot(context)


class LearnedScale(Trial):
    """The scale of the heads' cosines is learnt."""

    def begin(self) -> None:
        """Make it a parameter."""
        scale = nn.Parameter(torch.tensor(self.heads.scale))
        del self.heads.scale
        self.heads.scale = scale  # type: ignore[assignment]
        self.optimizer.add_param_group({"params": [scale]})

    def finished(self, context: Context) -> nn.Module:
        """See `Trial`."""
        learnt = self.heads.scale.item()  # type: ignore[attr-defined]
        print(f"learnt scale: {learnt:.1f}")
        del self.heads.scale
        self.heads.scale = learnt
        return self.snapshot(context)


class Cut(Trial):
    """Half of the mixtures are a rectangle of one image in the other (CutMix, Yun et al. 2019)."""

    def make_images(self, pool: Any, context: Context) -> PoolImages:
        """See the method."""
        return _shown(self.bench, cut_half(self.bench))


class Crops(Trial):
    """Each mixture is a resized crop of 40 to 100 % of its area."""

    def make_images(self, pool: Any, context: Context) -> PoolImages:
        """See the method."""
        return _shown(self.bench, resized_crops(self.bench.mixtures(), self.bench.stream("crops")))


class Flipped(Trial):
    """Answers are means over an image and its mirror image."""

    def make_images(self, pool: Any, context: Context) -> PoolImages:
        """See the method."""
        given = self.bench.given()
        mirrored = self.bench.asked(given.images.flip(-1))
        return given._replace(answers=((given.answers.float() + mirrored.float()) / 2).half())


class Weighted(Trial):
    """Weights of members, each image's of its own, in columns behind the answers."""

    def weights(self, given: PoolImages) -> Tensor:
        """`(N, M)` that sum to 1."""
        raise NotImplementedError

    def make_images(self, pool: Any, context: Context) -> PoolImages:
        """See the method."""
        given = self.bench.given()
        return given._replace(answers=torch.cat([given.answers, self.weights(given).half()], -1))

    def loss(self, given: Tensor, answers: Tensor) -> Tensor:
        """See the method."""
        sizes = self.heads.sizes
        theirs, weights = by_member(answers[:, : sum(sizes)], sizes, 0.0), answers[:, sum(sizes) :]
        ours = log_probabilities(self.heads(self.student.features(given).float()), sizes)
        products = theirs * torch.where(theirs > 0, ours, 0.0)
        return (weights * (torch.xlogy(theirs, theirs) - products).sum(-1)).sum(-1).mean()


class ByConfidence(Weighted):
    """Members weighted by how sure they are of an image: less entropy, more weight."""

    def weights(self, given: PoolImages) -> Tensor:
        """See `Weighted`."""
        theirs = by_member(given.answers.float(), self.heads.sizes, 0.0)
        return torch.xlogy(theirs, theirs).sum(-1).softmax(-1)


class ByStatistics(Weighted):
    """Members weighted by how near their batch-norm statistics are to an image's."""

    def weights(self, given: PoolImages) -> Tensor:
        """See `Weighted`."""
        members = progress(self.bench.pool.stream(), description="Statistics", total=len(self.bench.pool))
        distances = torch.stack([statistics_distance(member, given.images) for member in members], -1)
        return (-distances / distances.std(-1, keepdim=True)).softmax(-1)


class Disagreement(Trial):
    """Half of the images are moved to where a first student and members disagree."""

    def make_images(self, pool: Any, context: Context) -> PoolImages:
        """See the method."""
        given, first = self.bench.given(), self.bench.student(Trial)
        half = len(given.images) // 2
        moved = to_disagreement(self.bench, first, given.images[:half])
        return _shown(
            self.bench, torch.cat([moved, given.images[half:]]), [self.bench.asked(moved), given.answers[half:]]
        )


class SecondRound(Trial):
    """A first student recovers images of every class name, too, and these are mixed with the others."""

    def make_images(self, pool: Any, context: Context) -> PoolImages:
        """See the method."""
        found, mixing = self.bench.recovered, self.bench.method.training_set.mixing
        second = by_student(self.bench, self.bench.student(Trial))
        members = torch.cat([found.members, torch.full((len(second),), len(self.bench.pool) + 1)])
        stream = self.bench.stream("mixing")
        return _shown(self.bench, mix_recovered(torch.cat([found.images, second]), members, mixing, stream))


class EpisodicFinish(Trial):
    """Episodes of jointly recovered classes follow (prototypes by cosine)."""

    def train(self) -> nn.Module:
        """Go on from the student as it is given."""
        first = self.bench.student(Trial)
        self.model, self.heads = copy.deepcopy((first.model, first.heads))
        self.student = Student(self.model, "all", self.bench.stream("branch"))
        on_episodes(self.model, self.bench.recovered.bank, self.bench.stream("episodes"))
        return self.snapshot(Context(self.bench.stream("run")))


class WideStudent(Trial):
    """A student of 64 channels."""

    def __init__(self, bench: Bench) -> None:
        wide = replace(bench.config, arch="conv4_64", seed=bench.seed)
        PoolDistillation.__init__(self, bench.method, meta_network(bench.pool, wide))
        self.bench = bench


class Wide(Trial):
    """A conv4 with 64 channels, from a random start: four times the work."""

    def train(self) -> nn.Module:
        """See `Trial`."""
        return self.bench.student(WideStudent).snapshot(Context(self.bench.stream("run")))


class WideThenNarrow(Trial):
    """The mean of the members' answers and of those of a wide student is learnt."""

    def make_images(self, pool: Any, context: Context) -> PoolImages:
        """See the method."""
        given, wide = self.bench.given(), self.bench.student(WideStudent)
        with torch.no_grad():
            parts = [answers_by(wide, to_unit(part)) for part in given.images.split(500)]
        return given._replace(answers=((given.answers.float() + torch.cat(parts)) / 2).half())


TRIALS: dict[str, Callable[[Bench], Trial]] = {
    AS_GIVEN: AsGiven,
    "average of weights": Average,
    "learnt scale": LearnedScale,
    "CutMix": Cut,
    "resized crops": Crops,
    "answers with flips": Flipped,
    "weighted by confidence": ByConfidence,
    "weighted by statistics": ByStatistics,
    "disagreement": Disagreement,
    "second round": SecondRound,
    "episodic finish": EpisodicFinish,
    "wide student": Wide,
    "wide, then narrow": WideThenNarrow,
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    method, config, options = parse_into((PoolDistillationConfig, RunConfig, Trials), argv, __doc__)
    config, pool = prepared(method, config)
    names = list(dict.fromkeys([AS_GIVEN, *(TRIALS if ALL in options.trials else options.trials)]))
    unknown = [name for name in names if name not in TRIALS]
    if unknown:
        raise ValueError(f"--trials {', '.join(unknown)}: expected some of {', '.join(TRIALS)}.")
    dataset = classes_of("validation", pool, config)
    recovered = recover_all(pool, method, config)
    asking = Asking(pool.load(0), len(pool), method.training_set.mixing.num_images, "never")
    folder = Path(config.output_dir)
    for seed in options.seeds:
        bench = Bench(pool, method, config, recovered, seed, asking)
        for name in names:
            file = folder / f"seed-{seed}" / f"{name}.json"
            if file.is_file():
                continue
            began = time.process_time()
            trial = TRIALS[name](bench)
            rows = judged(trial.train(), dataset, config)
            minutes = (time.process_time() - began) / 60
            print(f"seed {seed}, {name}: {rows}, {minutes:.1f} core-minutes.", flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, json.dumps({"accuracy": rows, "minutes": round(minutes, 1)}) + "\n")
    return summary(folder, names, options.seeds, config)


def recover_all(pool: ModelPool, method: PoolDistillationConfig, config: RunConfig) -> Recovered:
    """Images of each member and of joint rounds, from the cache where another run has made them."""
    context = Context(fork(config.seed, "run"), seed=config.seed, cache=Path(str(config.recovery_cache)))
    options, size = method.training_set, max(entry.input_size[-1] for entry in pool if entry.input_size)
    members = progress(range(len(pool)), description="Recovering images", unit="member")
    alone = [recover_member(pool, options, size, context, index)["images"] for index in members]
    rounds = progress(range(options.joint_rounds), description="Recovering jointly", unit="round")
    bank = torch.cat([recover_round(pool, options, size, context, index)["images"] for index in rounds], 1)
    owners = [torch.full((len(images),), index) for index, images in enumerate(alone)]
    jointly = bank.flatten(0, 1)
    return Recovered(torch.cat([*alone, jointly]), torch.cat([*owners, torch.full((len(jointly),), len(pool))]), bank)


def judged(model: nn.Module, dataset: FewShotDataset, config: RunConfig) -> dict[str, float]:
    """Accuracies (%) on the validation classes, by how the student is seen."""
    protocol = partial(
        EvaluationProtocol,
        ways=config.ways,
        shots=config.shots,
        episodes=config.episodes,
        bn="running",
        head="prototype",
        seed=EPISODES_SEED,
        split="validation",
        flips=True,
    )
    each = [protocol(representation=how) for how in ("features", "answers", "both")]
    rows = evaluate_each(model, dataset, each, method="student", progress=False)
    return {
        f"{protocol.representation}, {row.shots}-shot": round(row.mean, 2)
        for protocol, found in zip(each, rows, strict=True)
        for row in found
    }


def summary(folder: Path, names: Sequence[str], seeds: Sequence[int], config: RunConfig) -> dict[str, Any]:
    """Table and files; prints the last line."""
    found = {
        name: [json.loads((folder / f"seed-{seed}" / f"{name}.json").read_text()) for seed in seeds] for name in names
    }
    keys = [f"both, {shots}-shot" for shots in config.shots]
    lines, verdicts = [], {}
    for name, each in found.items():
        cells = []
        for kind in ("features", "answers", "both"):
            means = [mean(one["accuracy"][f"{kind}, {shots}-shot"] for one in each) for shots in config.shots]
            cells.append(" / ".join(f"{value:.1f}" for value in means))
        gains = [
            [one["accuracy"][key] - base["accuracy"][key] for one, base in zip(each, found[AS_GIVEN], strict=True)]
            for key in keys
        ]
        spread = (f"{mean(gain):+.1f} ± {stdev(gain) if len(gain) > 1 else 0:.1f}" for gain in gains)
        cells.append("" if name == AS_GIVEN else " / ".join(spread))
        lines.append((f"{name}: {TRIALS[name].__doc__}", *cells, f"{mean(one['minutes'] for one in each):.1f}"))
        verdicts[name] = {key: round(mean(one["accuracy"][key] for one in each), 2) for key in keys}
    best = max(names, key=lambda name: verdicts[name][keys[-1]])
    shots = " / ".join(str(each) for each in config.shots)
    head = f"what | features | answers | both | both, less as given ({len(seeds)} seeds) | core-minutes"
    write_section(
        str(folder),
        "student_trials",
        "One thing changed at a time",
        f"Accuracy (%) with {shots} shots on the validation classes, {config.episodes} episodes, nearest class mean, "
        f"flips; mean of {len(seeds)} seeds. {describe_machine('cpu')}.",
        table(head, lines),
    )
    verdict = {
        "benchmark": "student_trials",
        "ratio": round(verdicts[best][keys[-1]] / verdicts[AS_GIVEN][keys[-1]], 3),
        "baseline": verdicts[AS_GIVEN][keys[-1]],
        "ours": verdicts[best][keys[-1]],
        "unit": f"% of {max(config.shots)}-shot accuracy on the validation classes",
        "best": best,
        "trials": verdicts,
    }
    atomic_write(folder / "student_trials.json", json.dumps(verdict, indent=1) + "\n")
    print(json.dumps(verdict))
    return verdict


def _shown(bench: Bench, images: Tensor, answers: Sequence[Tensor] = ()) -> PoolImages:
    known = torch.cat(list(answers)) if answers else bench.asked(images)
    return PoolImages(images, known, {"images": images[:0], "titles": []})


# Images.


def cut_half(bench: Bench) -> Tensor:
    """The recipe's mixtures, every second one cut: a rectangle of one crop in place of a share of both."""
    mixing, found = bench.method.training_set.mixing, bench.recovered
    alone = replace(mixing, mix_alpha=0.0)
    first, second = (mix_recovered(*found[:2], alone, bench.stream(name)) for name in ("first", "second"))
    stream, size = bench.stream("rectangles"), first.shape[-1]
    share = mixing_coefficients(len(first), 1.0, stream)
    side = ((1 - share).sqrt() * size).round().long()
    top, left = (torch.rand(2, len(first), generator=stream) * (size - side + 1)).long()
    places = torch.arange(size)
    within = [(places >= start[:, None]) & (places < (start + side)[:, None]) for start in (top, left)]
    mask = (within[0][:, :, None] & within[1][:, None, :])[:, None]
    images = bench.mixtures().clone()
    images[1::2] = torch.where(mask, second, first)[1::2]
    return images


def resized_crops(images: Tensor, generator: torch.Generator) -> Tensor:
    """A square of 40 to 100 % of each image's area, at the image's size: uint8 to uint8."""
    size = images.shape[-1]
    sides = ((0.4 + 0.6 * torch.rand(len(images), generator=generator)).sqrt() * size).round().long()
    places = (torch.rand(2, len(images), generator=generator) * (size - sides + 1)).long().T.tolist()
    crops = [
        resize(to_unit(image[None, :, top : top + side, left : left + side]), size)
        for image, side, (top, left) in zip(images, sides.tolist(), places, strict=True)
    ]
    return to_uint8(torch.cat(crops))


@torch.no_grad()
def statistics_distance(member: Any, images: Tensor) -> Tensor:
    """Mean squared distance, in deviations, of each image's channel means from a member's stored ones: `(N,)`."""
    norms = [layer for layer in member.modules() if isinstance(layer, nn.BatchNorm2d)]
    found: list[Tensor] = []

    def observe(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        away = inputs[0].mean((2, 3)) - layer.running_mean  # type: ignore[operator]
        found.append((away.square() / (layer.running_var + 1e-5)).mean(-1))  # type: ignore[operator]

    hooks = [layer.register_forward_pre_hook(observe) for layer in norms]
    parts = []
    for part in images.split(200):
        found.clear()
        member(to_unit(part))
        parts.append(torch.stack(found).mean(0))
    for hook in hooks:
        hook.remove()
    return torch.cat(parts)


def answers_by(student: PoolDistillation, images: Tensor) -> Tensor:
    """Probabilities `(B, K)` that a student predicts of images `(B, 3, H, W)` in [0, 1]."""
    return probabilities(student.heads(features_of(student.model, images).float()), student.heads.sizes)


def to_disagreement(bench: Bench, student: PoolDistillation, images: Tensor) -> Tensor:
    """Images moved uphill on the divergence of some members from the student: uint8 to uint8."""
    student.model.eval()
    stream, moved = bench.stream("disagreement"), []
    ends = torch.tensor(student.heads.sizes).cumsum(0).tolist()
    for part in progress(images.split(100), description="Disagreement", unit="batch"):
        pixels = to_unit(part).clone().requires_grad_()
        chosen = torch.randperm(len(bench.pool), generator=stream)[:ASKED].tolist()
        optimizer = torch.optim.Adam([pixels], RATE)
        for _ in range(STEPS):
            logits = student.heads(features_of(student.model, pixels).float())
            loss = 0.01 * total_variation(pixels).mean()
            for index in chosen:
                ours = logits[:, ends[index] - student.heads.sizes[index] : ends[index]].log_softmax(-1)
                theirs = bench.pool.load(index)(pixels).log_softmax(-1)
                loss = loss - F.kl_div(ours, theirs, reduction="batchmean", log_target=True) / ASKED
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                pixels.clamp_(0, 1)
        moved.append(to_uint8(pixels.detach()))
    return torch.cat(moved)


def by_student(bench: Bench, student: PoolDistillation) -> Tensor:
    """Images of every class name by a student's heads and batch norm, pixels by Adam: `(classes * images, 3, H, W)`.

    The logit of a name is the mean of its rows' cosines, over the members that know it.
    """
    student.model.eval()
    names = [name for entry in bench.pool for name in entry.class_keys]
    known = list(joint_classes(bench.pool))
    place = {name: index for index, name in enumerate(known)}
    members = F.one_hot(torch.tensor([place[name] for name in names])).T.float()
    mean_of_rows = members / members.sum(-1, keepdim=True)
    rows = F.normalize(student.heads.rows.detach(), dim=-1)[student.heads.columns]
    stream, size, done = bench.stream("second"), bench.recovered.images.shape[-1], []
    labels = torch.arange(len(known)).repeat(SECOND_IMAGES)
    for part in progress(labels.split(128), description="Second round", unit="batch"):
        pixels = (0.5 + 0.25 * torch.randn(len(part), 3, size, size, generator=stream)).clamp(0, 1).requires_grad_()
        optimizer = torch.optim.Adam([pixels], 0.03, betas=(0.9, 0.99))
        for update in range(SECOND_STEPS):
            optimizer.param_groups[0]["lr"] = 0.03 * one_cycle(update / SECOND_STEPS)
            with watch_batch_norm(student.model) as distance:
                features = features_of(student.model, pixels)
            logits = student.heads.scale * F.normalize(features, dim=-1) @ rows.T @ mean_of_rows.T
            loss = F.cross_entropy(logits, part) + distance.total(pixels) + 0.1 * total_variation(pixels).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                pixels.clamp_(0, 1)
        done.append(to_uint8(pixels.detach()))
    return torch.cat(done)


def on_episodes(model: nn.Module, bank: Tensor, generator: torch.Generator, shots: int = 1, queries: int = 5) -> None:
    """Move a network by episodes of five classes of a bank `(classes, images, 3, H, W)` uint8."""
    optimizer = torch.optim.Adam(model.parameters(), FINISH_RATE)
    ways = min(5, len(bank))
    labels = torch.arange(ways).repeat_interleave(queries)
    model.train()
    for episode in progress(range(EPISODES), description="Episodes", unit="episode"):
        optimizer.param_groups[0]["lr"] = FINISH_RATE * one_cycle(episode / EPISODES)
        classes = torch.randperm(len(bank), generator=generator)[:ways]
        chosen = torch.rand(ways, bank.shape[1], generator=generator).argsort(-1)[:, : shots + queries]
        images = to_unit(bank[classes[:, None], chosen])
        features = F.normalize(features_of(model, images.flatten(0, 1)), dim=-1).view(ways, shots + queries, -1)
        means = F.normalize(features[:, :shots].mean(1), dim=-1)
        loss = F.cross_entropy(10 * features[:, shots:].flatten(0, 1) @ means.T, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


if __name__ == "__main__":
    main()
