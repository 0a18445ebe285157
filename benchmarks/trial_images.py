"""Images, and what members say of them, for the trials of benchmarks/student_trials.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.learning.answers import probabilities
from hf_dfml.learning.optimisation import one_cycle
from hf_dfml.learning.student import features_of
from hf_dfml.methods.base import Context
from hf_dfml.methods.pool_distillation import PoolDistillation, PoolDistillationConfig
from hf_dfml.methods.pool_images import PoolImages, recover_member, recover_round
from hf_dfml.pipeline import RunConfig
from hf_dfml.pool import ModelPool
from hf_dfml.pool.asking import Asking
from hf_dfml.recovery.joint import joint_classes
from hf_dfml.recovery.mixing import mix_recovered, mixing_coefficients
from hf_dfml.recovery.objective import total_variation, watch_batch_norm
from hf_dfml.utils.images import resize, to_uint8, to_unit
from hf_dfml.utils.progress import progress
from hf_dfml.utils.seeding import fork

ASKED = 3
"""Members, drawn for each batch, whose disagreement with the student moves images."""
STEPS, RATE = 5, 0.03
"""Of this movement, in pixels of [0, 1]."""
SECOND_STEPS, SECOND_IMAGES = 100, 20
"""Updates, and images of a class, of a second recovery by the student."""


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

    @property
    def flip(self) -> bool:
        """Whether images may be mirrored."""
        return self.method.training_set.inversion.flip

    def mixtures(self) -> Tensor:
        """The images of the recipe as it is given."""
        options, found = self.method.training_set.mixing, self.recovered
        return self.once("mixtures", lambda: mix_recovered(*found[:2], options, self.stream("mixing"), flip=self.flip))

    def given(self) -> PoolImages:
        """The same, with the answers."""
        return self.once("given", lambda: shown_to(self, self.mixtures()))

    def student(self, kind: Callable[[Bench], Any]) -> Any:
        """The trained student of a kind that other trials go on from."""

        def trained() -> Any:
            student = kind(self)
            student.train()
            return student

        return self.once(str(kind), trained)


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


def shown_to(bench: Bench, images: Tensor, answers: Sequence[Tensor] = ()) -> PoolImages:
    known = torch.cat(list(answers)) if answers else bench.asked(images)
    return PoolImages(images, known, {"images": images[:0], "titles": []})


def cut_half(bench: Bench) -> Tensor:
    """The recipe's mixtures, every second one cut: a rectangle of one crop in place of a share of both."""
    mixing, found = bench.method.training_set.mixing, bench.recovered
    alone = replace(mixing, mix_alpha=0.0)
    first, second = (
        mix_recovered(*found[:2], alone, bench.stream(name), flip=bench.flip) for name in ("first", "second")
    )
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
    for part in progress(images.split(100), description="Disagreement", unit="part"):
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
    for part in progress(labels.split(128), description="Second round", unit="part"):
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
