"""The trials of benchmarks/student_trials.py: each a student of pool distillation with one of its parts changed."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trial_images import (
    Bench,
    answers_by,
    by_student,
    cut_half,
    recover_all,
    resized_crops,
    shown_to,
    statistics_distance,
    to_disagreement,
)

from hf_dfml.learning.answers import by_member, log_probabilities
from hf_dfml.learning.optimisation import one_cycle
from hf_dfml.learning.student import Student, features_of
from hf_dfml.meta_network import meta_network
from hf_dfml.methods.base import Context
from hf_dfml.methods.pool_distillation import PoolDistillation
from hf_dfml.methods.pool_images import PoolImages
from hf_dfml.recovery.mixing import mix_recovered
from hf_dfml.utils.images import to_unit
from hf_dfml.utils.progress import progress

AS_GIVEN = "as given"
EMA = 0.998
"""Of the averaged weights, each step."""
EPISODES, FINISH_RATE = 200, 1e-3
"""Of an episodic finish."""


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
        return shown_to(self.bench, cut_half(self.bench))


class Crops(Trial):
    """Each mixture is a resized crop of 40 to 100 % of its area."""

    def make_images(self, pool: Any, context: Context) -> PoolImages:
        """See the method."""
        return shown_to(self.bench, resized_crops(self.bench.mixtures(), self.bench.stream("crops")))


class Flipped(Trial):
    """Answers are means over an image and its mirror image."""

    def make_images(self, pool: Any, context: Context) -> PoolImages:
        """See the method."""
        given = self.bench.given()
        mirrored = self.bench.asked(given.images.flip(-1))
        return given._replace(answers=((given.answers.float() + mirrored.float()) / 2).half())


class Weighted(Trial):
    """Weights of members, each image's of its own, in columns behind the answers."""

    @abstractmethod
    def weights(self, given: PoolImages) -> Tensor:
        """`(N, M)` that sum to 1."""

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
        return shown_to(
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
        images = torch.cat([found.images, second])
        return shown_to(self.bench, mix_recovered(images, members, mixing, stream, flip=self.bench.flip))


class CoarseStart(Trial):
    """Joint images have half of their resolution in the first half of their updates."""

    def make_images(self, pool: Any, context: Context) -> PoolImages:
        """See the method."""
        bench = self.bench
        found = recover_all(bench.pool, replace(bench.method, joint_coarse=0.5), bench.config)
        mixing = bench.method.training_set.mixing
        mixed = mix_recovered(found.images, found.members, mixing, bench.stream("mixing"), flip=bench.flip)
        return shown_to(bench, mixed)


class EpisodicFinish(Trial):
    """Episodes of jointly recovered classes follow (prototypes by cosine)."""

    def train(self) -> nn.Module:
        """Go on from the student as it is given."""
        first = self.bench.student(Trial)
        self.model, self.heads = copy.deepcopy((first.model, first.heads))
        self.student = Student(self.model, "all", self.bench.stream("branch"), self.config.lora_rank)
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
    "coarse start": CoarseStart,
    "episodic finish": EpisodicFinish,
    "wide student": Wide,
    "wide, then narrow": WideThenNarrow,
}
