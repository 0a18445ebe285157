"""Pool distillation: one network that represents images as the whole pool does, learnt from images of the pool's own.

A system of this library. Recovery: DeepInversion (Yin et al., CVPR 2020, arXiv 1912.08795); mix-up (Zhang et al.,
ICLR 2018, arXiv 1710.09412); similarities: Tung and Mori, ICCV 2019, arXiv 1907.09682; neighbours: Fang et al. (SEED),
ICLR 2021, arXiv 2101.04731.

0. Recover images of every class of every pool member, and make one training set of crops and mixtures of all of them.
1. See it through the eyes of all members side by side, and keep this joint representation in a few hundred dimensions.
2. Each step: one pass over the training set in which the student's features, through a linear map, point to the
   targets, are as similar to each other as the targets are, and have the same neighbours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from hf_dfml.learning.distillation import cosine_distance, neighbour_loss, similarity_loss
from hf_dfml.learning.joint_features import (
    JointProducts,
    Probabilities,
    TargetConfig,
    add_products,
    equalised,
    joint_products,
    joint_targets,
)
from hf_dfml.learning.optimisation import one_cycle
from hf_dfml.methods.base import Context
from hf_dfml.networks.functional import normalise
from hf_dfml.pool.digests import weights_digest
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.recovery.mixing import MixingConfig, mix_recovered
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.images import to_uint8, to_unit
from hf_dfml.utils.progress import progress
from hf_dfml.utils.seeding import fork

MEMBERS_AT_ONCE = 100
"""Members whose part in the targets is computed between two savings of an interrupted setup."""

SHOWN = 10
"""Rows and columns of the pictures."""


@dataclass(frozen=True)
class PoolDistillationConfig(TargetConfig, MixingConfig, RecoveryConfig):
    """Hyper-parameters of pool distillation; the defaults fit a pool of 32-pixel networks and a CPU."""

    recovery: Literal["generator", "pixels"] = field(
        default="pixels", metadata={"help": "What is optimised: a generator and its inputs, or the pixels."}
    )
    recovery_steps: int = field(default=120, metadata={"help": "Adam steps for one task."})
    recovery_lr: float = field(default=0.1, metadata={"help": "Rate of Adam in the recovery."})
    images_per_class: int = field(default=10, metadata={"help": "Images of a class in one recovery."})
    recoveries: int = field(default=2, metadata={"help": "Recoveries from each member."})
    tv_weight: float = field(default=0.1, metadata={"help": "Weight of the total variation."})
    shift: int = field(default=2, metadata={"help": "Pixels of random shift in the recovery."})
    equalise: float = field(
        default=0.1,
        metadata={"help": "a: principal directions are scaled by their variance to the power -a/2; 0: as found."},
    )
    steps: int = field(default=40, metadata={"help": "Passes over the training set."})
    batch_size: int = field(default=100, metadata={"help": "Images of a batch; an incomplete one is left out."})
    lr: float = field(default=3e-3, metadata={"help": "Highest rate of the student's Adam (one cycle over the run)."})
    start: Literal["member", "random"] = field(
        default="member",
        metadata={"help": "Start from the best member of the student's architecture (if there is one), or at random."},
    )
    gram_weight: float = field(default=40.0, metadata={"help": "Weight of the difference of similarities."})
    neighbour_weight: float = field(default=0.5, metadata={"help": "Weight of the divergence of neighbours."})
    neighbour_temperature: float = field(
        default=0.05,
        metadata={"help": "Temperature of the student's cosines: the smaller, the fewer neighbours count."},
    )
    neighbour_target_temperature: float = field(
        default=0.1, metadata={"help": "Temperature of the targets' cosines in it."}
    )
    neighbour_equalise: float = field(
        default=0.3, metadata={"help": "`equalise` of the targets whose neighbours are taken over."}
    )


class PoolDistillation:
    """The student of a pool's joint representation; see the module's docstring.

    Attributes:
        images: `(N, 3, H, W)` uint8, the training set.
        targets: `(N, target_dim)` in half precision, the pool's view of it.
        spread: `(target_dim,)`, the variances of the targets' directions relative to the first one's.
        agreement: correlation of the targets' inner products with those of the full joint features.
        objective: the student and the linear map from its features to the targets.
    """

    name = "Pool distillation"
    data_free = True
    Config = PoolDistillationConfig
    # Trained as a representation under running statistics, it is used as one.
    exam_head = "prototype"
    exam_bn = "running"

    def __init__(self, config: PoolDistillationConfig, model: nn.Module) -> None:
        self.config, self.model = config, model
        self.num_steps = config.steps
        self.size = int(model.pretrained_cfg["input_size"][-1])  # type: ignore[index,union-attr]
        parameter = next(model.parameters())
        with torch.no_grad():
            self.width = features_of(model.eval(), parameter.new_zeros(1, 3, self.size, self.size)).shape[1]
        # Nothing here trains the classifier. From zero, fine-tuning starts with the features alone.
        for weight in model.get_classifier().parameters():  # type: ignore[operator]
            nn.init.zeros_(weight)
        # Without a bias, so that what all images have in common is in the student's features too.
        linear = nn.Linear(self.width, config.target_dim, bias=False, device=parameter.device)
        self.objective = nn.ModuleDict({"student": model, "map": linear})
        self.optimizer = torch.optim.Adam(self.objective.parameters(), config.lr)
        self.images = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        self.targets = torch.empty(0, config.target_dim, dtype=torch.float16)
        self.spread = torch.ones(config.target_dim)
        self.agreement = 0.0
        self.recovered: Tree = {"images": self.images, "titles": []}

    def setup(self, pool: ModelPool, context: Context) -> None:
        """Recover, mix, and look at the mixtures through all members (steps 0 and 1).

        Raises:
            ValueError: if the training set has no complete batch, or too few images for the targets' dimensions.
        """
        config = self.config
        if config.num_images < config.batch_size:
            raise ValueError(f"{config.num_images} images make no batch of {config.batch_size}: raise --num_images.")
        # Drawn on the CPU, where the generator is: the same start on every device.
        start = torch.empty(config.target_dim, self.width)
        nn.init.kaiming_uniform_(start, a=5**0.5, generator=fork(context.seed, "map"))
        self.objective["map"].load_state_dict({"weight": start})
        if config.start == "member":
            start_from_member(self.model, pool)
        parts = context.map_members("recovered", partial(self._recover, pool, context), pool, "Recovering images")
        members = torch.cat([torch.full((len(part["images"]),), index) for index, part in enumerate(parts)])
        self.recovered = _first_of(parts, pool)
        recovered = torch.cat([part["images"] for part in parts])
        self.images = mix_recovered(recovered, members, config, fork(context.seed, "mixing"), flip=config.flip)
        starts = range(0, len(pool), MEMBERS_AT_ONCE)
        blocks = [
            context.memo(f"targets-{first:04d}", partial(self._products, pool, first, context)) for first in starts
        ]
        products = add_products(JointProducts(*block) for block in blocks)
        self.targets, self.agreement, self.spread = joint_targets(products, config)

    def _recover(self, pool: ModelPool, context: Context, index: int) -> Tree:
        generator = fork(context.seed, "recovery", index)
        teacher = pool.load(index)

        def recovered() -> Tree:
            tasks = [recover(teacher, self.config, self.size, generator) for _ in range(self.config.recoveries)]
            return {
                "images": to_uint8(torch.cat([task.images for task in tasks])),
                "labels": torch.cat([task.labels for task in tasks]),
            }

        options = {option.name: getattr(self.config, option.name) for option in fields(RecoveryConfig)}
        with context.autocast():
            precision = torch.is_autocast_enabled(context.device.type)
            whole = {"recoveries": self.config.recoveries, "size": self.size, "bf16": precision}
            origin = {"member": weights_digest(teacher.entry), "seed": context.seed, "index": index}
            return context.cached(options | whole | origin, recovered)

    def _products(self, pool: ModelPool, first: int, context: Context) -> Tree:
        indices = range(first, min(first + MEMBERS_AT_ONCE, len(pool)))

        def members() -> Iterator[tuple[int, Teacher | Probabilities]]:
            teachers = zip(indices, pool.stream(indices), strict=True)
            bar = progress(teachers, description="Computing the targets", total=len(indices), unit="member")
            for index, teacher in bar:
                yield index, teacher if self.config.target_outputs == "features" else partial(_probabilities, teacher)

        return joint_products(members(), self.images, self.config, context.seed, context.processes)

    def step(self, context: Context) -> dict[str, float]:
        """One pass over the training set (step 2).

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        config = self.config
        batches = len(self.images) // config.batch_size
        order = torch.randperm(len(self.images), generator=context.generator).to(self.images.device)
        weights = torch.tensor([1.0, config.gram_weight, config.neighbour_weight], device=self.images.device)
        totals = torch.zeros(3, device=self.images.device)
        self.model.train()
        for index in range(batches):
            rows = order[index * config.batch_size : (index + 1) * config.batch_size]
            rate = config.lr * one_cycle((context.step * batches + index) / (self.num_steps * batches))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            losses = self.losses(to_unit(self.images[rows]), self.targets[rows].float())
            self.optimizer.zero_grad(set_to_none=True)
            (weights @ losses).backward()
            self.optimizer.step()
            totals += losses.detach()
        self.model.eval()
        loss = float(weights @ totals) / batches
        direction, similarity, neighbours = (totals / batches).tolist()
        if not math.isfinite(loss):
            raise FloatingPointError("The loss is not finite (NaN or infinity): lower --lr.")
        return {
            "loss": loss,
            "direction_loss": direction,
            "similarity_loss": similarity,
            "neighbour_loss": neighbours,
            "lr": rate,
            "target_agreement": self.agreement,
        }

    def losses(self, images: Tensor, targets: Tensor) -> Tensor:
        """Cosine distance through the map, squared difference of similarities, divergence of neighbours: `(3,)`.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            targets: `(B, target_dim)`.
        """
        features = features_of(self.model, images)
        direction = cosine_distance(self.objective["map"](features), targets)
        config = self.config
        # The targets are equalised already, as `equalise` says.
        flatter = equalised(targets, self.spread, config.neighbour_equalise - config.equalise)
        neighbours = neighbour_loss(
            features, flatter, config.neighbour_temperature, config.neighbour_target_temperature
        )
        return torch.stack([direction, similarity_loss(features, targets), neighbours])

    def snapshot(self, context: Context) -> nn.Module:
        """A copy of the student, with the running statistics of its training."""
        return copy.deepcopy(self.model).eval()

    def state_dict(self) -> Tree:
        """Student, map, optimiser and the training set with its targets."""
        return {
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "images": self.images,
            "targets": self.targets,
            "spread": self.spread,
            "agreement": self.agreement,
            "recovered": self.recovered,
        }

    def load_state_dict(self, state: Tree, pool: ModelPool, context: Context) -> None:
        """Take over what `state_dict` gave, in place of `setup`."""
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.images, self.targets = state["images"].to(context.device), state["targets"].to(context.device)
        self.spread, self.agreement = state["spread"].to(context.device), state["agreement"]
        self.recovered = state["recovered"]

    def pictures(self, folder: Path) -> list[Path]:
        """Recovered images, one row a class, and images of the training set."""
        from hf_dfml.utils.pictures import image_grid

        shown, titles = self.recovered["images"], self.recovered["titles"]
        if not len(shown):
            return []
        columns = len(shown) // len(set(titles))
        return [
            image_grid(to_unit(shown), folder / "recovered.png", columns=columns, titles=titles),
            image_grid(to_unit(self.images[: SHOWN * SHOWN]), folder / "training_set.png", columns=SHOWN),
        ]


def start_from_member(model: nn.Module, pool: ModelPool) -> None:
    """Give `model` the weights, but for the classifier's, of the best member that has the same ones.

    Members of its architecture are tried in the order of their stored accuracies; where none fits, it stays as it is.
    """
    architecture = model.pretrained_cfg["architecture"]  # type: ignore[index]
    candidates = [index for index, entry in enumerate(pool) if entry.architecture == architecture]
    head = {id(value) for value in model.get_classifier().state_dict(keep_vars=True).values()}  # type: ignore[operator]
    own = {name: value for name, value in model.state_dict(keep_vars=True).items() if id(value) not in head}
    for index in sorted(candidates, key=lambda index: -(pool[index].val_accuracy or 0.0)):
        weights = pool.load(index).network.state_dict()
        if all(name in weights and weights[name].shape == value.shape for name, value in own.items()):
            model.load_state_dict(model.state_dict() | {name: weights[name] for name in own})
            return


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """Penultimate features `(B, D)` of images `(B, 3, H, W)` in [0, 1]; batch norm is in the network's own mode."""
    pixels = normalise(model, images)
    if pixels.device.type == "cpu":
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    return model.forward_head(model.forward_features(pixels), pre_logits=True)  # type: ignore[operator]


def _probabilities(teacher: Teacher, images: Tensor) -> Tensor:
    return teacher(images).softmax(-1)


def _first_of(parts: list[Tree], pool: ModelPool) -> Tree:
    """Images of one class of each of the first members, and its name above each."""
    rows, titles = [], []
    for entry, part in zip(pool, parts[:SHOWN], strict=False):
        row = part["images"][part["labels"] == 0][:SHOWN]
        rows.append(row)
        titles += [f"{entry.id}: {entry.class_names[0]}"] * len(row)
    return {"images": torch.cat(rows).cpu(), "titles": titles}
