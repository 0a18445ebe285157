"""Ways to make a training set for pool distillation, side by side on the validation classes.

    CONFIG=hf_dfml/presets/pool-distillation-cifar-fs-cpu.yaml
    python benchmarks/training_sets.py --config $CONFIG --pool pools/cifar-fs --sets repelled disagreement

A recipe with `--recoveries 2` recovers twice from each member. Every set starts from the first of the two, and says
what is done with it, or what takes the place of the second; `--help` lists them. Seed, number of images, schedule and
evaluation are the same for all; the last snapshot is judged, nothing is chosen, and the test classes are not looked
at. Sets that ask where a student is weak ask that of `half`, which is trained first. `real` are crops of real images
of the training classes: no data-free set, but what one could hope for.

Options are those of recipes/pool_distillation.py. An interrupted run goes on with the same command. Written into
--output_dir: `training_sets.json`. The last line is that object; `ratio` is the best set's accuracy at the largest
number of shots over that of the recipe (`second`, which is always there), nearest prototype, `real` apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from students import classes_of, last_snapshot, prepared, trial
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur, resized_crop

from hf_dfml.arguments import parse_into
from hf_dfml.data import FewShotDataset
from hf_dfml.methods.base import Context
from hf_dfml.methods.ensemble_view import EnsembleView, ensemble_view, recover_member
from hf_dfml.methods.pool_distillation import PoolDistillation, PoolDistillationConfig, features_of
from hf_dfml.pipeline import RunConfig
from hf_dfml.pool.black_box.pool import BlackBoxPool
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.recovery.inversion import recover
from hf_dfml.recovery.mixing import MixingConfig, mix_recovered
from hf_dfml.settings import Settings, option
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.images import to_uint8, to_unit
from hf_dfml.utils.seeding import fork

SETS = {
    "second": "the recipe: both recoveries",
    "half": "the first recovery alone",
    "repelled": "in place of the second, images of a class pushed apart and from the first in the member's features",
    "disagreement": "in place of the second, images whose cosines the student of `half` gets wrong, for two members",
    "worst": "in place of the second, two from the half of the members that the student of `half` gets most wrong",
    "often": "both, of which each pass draws images in proportion to their loss",
    "curriculum": "both, in passes that grow from the third of the images with the least loss to all",
    "rectangles": "both, mixed by rectangles (CutMix) in place of weighted means",
    "blurred": "both, seen through a Gaussian of 0.8 pixels",
    "sharpened": "both, with what that takes away added again",
    "enlarged": "both, and half of the mixtures' images enlarged by up to 2",
    "real": "crops and mixtures of real images of the training classes",
}
GIVEN = "second"
ORDERED = ("often", "curriculum")
"""Sets whose passes depend on the student's loss."""
REPULSION = 2.0
"""Weight of the mean cosine of images of a class."""
DISAGREEMENT = 30.0
"""Weight of the mean squared difference of cosines."""
COMMITTEE = 2
"""Members whose cosines the student's are held against."""


class Sets(Settings):
    """What is measured."""

    sets: list[str] = option(
        [name for name in SETS if name != "real"],
        "; ".join(f"`{name}`: {text}" for name, text in SETS.items()) + ".",
        choices=SETS,
    )


class Trial(PoolDistillation):
    """Pool distillation from another training set.

    Args:
        kind: one of `SETS`.
        weak: the student of `half`, where the set is made against it.
        real: `(N, 3, H, W)` uint8 real images, for `real`.
    """

    def __init__(
        self,
        config: PoolDistillationConfig,
        model: nn.Module,
        kind: str,
        weak: nn.Module | None = None,
        real: Tensor | None = None,
    ) -> None:
        super().__init__(config, model)
        self.kind, self.weak, self.real = kind, weak, real

    def view(self, pool: ModelPool | BlackBoxPool, context: Context) -> EnsembleView:
        """The set, and what the pool makes of it."""
        assert isinstance(pool, ModelPool)
        if self.real is not None:
            images, members = self.real, torch.zeros(len(self.real), dtype=torch.long)
        else:
            images, members = self.recovered_set(pool, context)
        view = self.config.view
        mix = _rectangles if self.kind == "rectangles" else mix_recovered
        if self.kind in ("blurred", "sharpened"):
            plain = to_unit(images)
            smooth = gaussian_blur(plain, [5, 5], [0.8, 0.8])
            images = to_uint8((smooth if self.kind == "blurred" else 2 * plain - smooth).clamp(0, 1))
        elif self.kind == "enlarged":
            images = torch.cat([images, _enlarged(images, fork(context.seed, "enlarged"))])
            members = members.repeat(2)
        mixed = mix(images, members, view.mixing, fork(context.seed, "mixing"), flip=view.inversion.flip)
        return EnsembleView(mixed, ensemble_view(pool, mixed, view, context), {"images": images[:0], "titles": []})

    def recovered_set(self, pool: ModelPool, context: Context) -> tuple[Tensor, Tensor]:
        """`(R, 3, H, W)` uint8 and the member each is from, `(R,)`."""
        recovery = partial(recover_member, pool, self.config.view, self.size, context)
        parts = context.map_members("recovered", recovery, pool, "Recovering images")
        half = [len(part["images"]) // 2 for part in parts]
        sets = [(part["images"][: half[index]], index) for index, part in enumerate(parts)]
        if self.kind in ("second", "rectangles", "blurred", "sharpened", "enlarged", *ORDERED):
            sets += [(part["images"][half[index] :], index) for index, part in enumerate(parts)]
        elif self.kind in ("repelled", "disagreement"):
            again = context.map_members("again", partial(self._again, pool, context, sets), pool, "Recovering again")
            sets += [(part["images"], index) for index, part in enumerate(again)]
        elif self.kind == "worst":
            errors = context.memo("errors", lambda: {"errors": self._errors(pool, sets)})["errors"]
            worst = errors.argsort(descending=True)[: len(pool) // 2].sort().values.tolist()
            again = [context.memo(f"again-{index:04d}", partial(self._twice, pool, context, index)) for index in worst]
            sets += [(part["images"], index) for index, part in zip(worst, again, strict=True)]
        members = torch.cat([torch.full((len(images),), index) for images, index in sets])
        return torch.cat([images for images, _ in sets]), members

    def order(self, context: Context) -> Tensor:
        """The next pass; of some sets it depends on the student's loss."""
        if self.kind not in ORDERED:
            return super().order(context)
        batches = zip(self.images.split(500), self.targets.split(500), strict=True)
        with torch.no_grad():
            ours = [(self.objective["map"](features_of(self.model, to_unit(rows))), goal) for rows, goal in batches]
            losses = torch.cat([1 - F.cosine_similarity(seen, goal.float()) for seen, goal in ours]).cpu()
        count = len(losses)
        if self.kind == "often":
            # A cosine may be rounded to more than 1.
            return torch.multinomial(losses.clamp_min(1e-6), count, replacement=True, generator=context.generator)
        share = min(1.0, (1 + 2 * context.step / max(1, self.num_steps // 2)) / 3)
        easy = losses.argsort()[: int(share * count)]
        rounds = -(-count // len(easy))
        drawn = [easy[torch.randperm(len(easy), generator=context.generator)] for _ in range(rounds)]
        return torch.cat(drawn)[:count]

    def _again(self, pool: ModelPool, context: Context, sets: list[tuple[Tensor, int]], index: int) -> Tree:
        """A second recovery from a member, with a term of the set's own."""
        generator, teacher = fork(context.seed, self.kind, index), pool.load(index)
        if self.kind == "repelled":
            with torch.no_grad():
                first = F.normalize(teacher.features(to_unit(sets[index][0])), dim=-1)
            labels_of_first = torch.arange(teacher.num_classes).repeat_interleave(
                self.config.view.inversion.images_per_class
            )

            def term(images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
                ours = F.normalize(teacher.features(images), dim=-1)
                same = (labels[:, None] == labels).fill_diagonal_(False)
                alike = labels[:, None] == labels_of_first
                near = ((ours @ ours.T) * same).sum(1) / same.sum(1) + ((ours @ first.T) * alike).sum(1) / alike.sum(1)
                return REPULSION * near

        else:
            others = torch.randperm(len(pool), generator=generator)[: COMMITTEE - 1].tolist()
            committee = [teacher, *(pool.load(other) for other in others)]
            assert self.weak is not None
            student = self.weak

            def term(images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
                joint = torch.stack([_cosines(member.features(images)) for member in committee]).mean(0)
                return -DISAGREEMENT * (_cosines(features_of(student, images)) - joint).square().mean(1)

        return {"images": to_uint8(recover(teacher, self.config.view.inversion, self.size, generator, term).images)}

    def _twice(self, pool: ModelPool, context: Context, index: int) -> Tree:
        generator, teacher = fork(context.seed, self.kind, index), pool.load(index)
        tasks = [recover(teacher, self.config.view.inversion, self.size, generator) for _ in range(2)]
        return {"images": to_uint8(torch.cat([task.images for task in tasks]))}

    def _errors(self, pool: ModelPool, sets: list[tuple[Tensor, int]]) -> Tensor:
        """Of each member's images, how far the student's cosines with all images are from the pool's: `(M,)`."""
        images = to_unit(torch.cat([part for part, _ in sets]))
        assert self.weak is not None
        with torch.no_grad():
            features = torch.cat([features_of(self.weak, rows) for rows in images.split(500)])
            joint = torch.zeros(len(images), len(images))
            for index in range(len(pool)):
                teacher = pool.load(index)
                joint += _cosines(torch.cat([teacher.features(rows) for rows in images.split(500)])) / len(pool)
            wrong = (_cosines(features) - joint).square().mean(1)
        counts = [len(part) for part, _ in sets]
        return torch.stack([part.mean() for part in wrong.split(counts)])


def _cosines(features: Tensor) -> Tensor:
    unit = F.normalize(features, dim=-1)
    return unit @ unit.T


def _rectangles(
    images: Tensor, members: Tensor, config: MixingConfig, generator: torch.Generator, *, flip: bool
) -> Tensor:
    """Crops with a rectangle of another one in them (CutMix, Yun et al., ICCV 2019), of a uniform share."""
    plain = replace(config, mix_alpha=0.0)
    mixed = mix_recovered(images, members, plain, generator, flip=flip)
    others = mix_recovered(images, members, plain, generator, flip=flip)
    side = images.shape[-1]
    for row, share in enumerate(torch.rand(len(mixed), generator=generator).sqrt().tolist()):
        length = round(side * share)
        top, left = torch.randint(0, side - length + 1, (2,), generator=generator).tolist()
        inside = (row, slice(None), slice(top, top + length), slice(left, left + length))
        mixed[inside] = others[inside]
    return mixed


def _enlarged(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random part of each of `(B, 3, H, W)`, from half to all of its sides, as large as the whole."""
    side = images.shape[-1]
    parts = []
    for image, share in zip(images, torch.rand(len(images), generator=generator).tolist(), strict=True):
        length = round(side * (1 + share) / 2)
        top, left = torch.randint(0, side - length + 1, (2,), generator=generator).tolist()
        parts.append(resized_crop(image, top, left, length, length, [side, side], antialias=True))
    return torch.stack(parts)


def _real(dataset: FewShotDataset, count: int, seed: int) -> Tensor:
    """`count` images of a split, drawn by chance: `(count, 3, H, W)` uint8."""
    return dataset.images[torch.randperm(len(dataset), generator=fork(seed, "real"))[:count]]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    method, config, wanted = parse_into((PoolDistillationConfig, RunConfig, Sets), argv, __doc__)
    if method.view.recoveries != 2:
        raise ValueError(
            f"--recoveries {method.view.recoveries}: expected 2, of which the second is what is replaced."
        )
    config, pool = prepared(method, config)
    # As many as are recovered.
    count = sum(2 * entry.num_classes * method.view.inversion.images_per_class for entry in pool if entry.num_classes)

    def student(name: str) -> nn.Module:
        against_half = name in ("disagreement", "worst")
        weak = last_snapshot(pool, method, config, "half", partial(Trial, kind="half")) if against_half else None
        real = _real(classes_of("train", pool, config), count, config.seed) if name == "real" else None
        return last_snapshot(pool, method, config, name, partial(Trial, kind=name, weak=weak, real=real))

    students = {name: partial(student, name) for name in SETS if name in {GIVEN, *wanted.sets}}
    dataset = classes_of("validation", pool, config)
    return trial("training_sets", "sets", students, GIVEN, dataset, config, beside="real")


if __name__ == "__main__":
    main()
