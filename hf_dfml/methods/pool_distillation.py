"""Pool distillation: one network that represents images as the whole pool does, learnt from images of the pool's own.

A system of this library. Recovery: DeepInversion (Yin et al., CVPR 2020, arXiv 1912.08795); mix-up (Zhang et al.,
ICLR 2018, arXiv 1710.09412); similarities: Tung and Mori, ICCV 2019, arXiv 1907.09682; neighbours: Fang et al. (SEED),
ICLR 2021, arXiv 2101.04731.

0. Recover images of every class of every pool member, and make one training set of crops and mixtures of all of them.
1. See it through the eyes of all members side by side, and keep this joint representation in a few hundred dimensions.
2. Each step: one pass over the training set in which the student's features, through a linear map, point to the
   targets, are as similar to each other as the targets are, and have the same neighbours.

Steps 0 and 1 are in `methods/pool_view.py`. A pool of black boxes is seen through its probabilities, and nothing is
recovered from it unless that is asked for.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from hf_dfml.learning.distillation import cosine_distance, neighbour_loss, similarity_loss
from hf_dfml.learning.ensemble_features import whitened
from hf_dfml.learning.optimisation import one_cycle
from hf_dfml.methods.base import Context, Method
from hf_dfml.methods.ensemble_view import SHOWN, EnsembleView, EnsembleViewConfig, view_of
from hf_dfml.networks.functional import normalise
from hf_dfml.networks.info import network_info
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.settings import Settings, flat, option, part
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.images import to_unit
from hf_dfml.utils.seeding import fork


class PoolDistillationConfig(Settings):
    """Hyper-parameters of pool distillation; the defaults fit a pool of 32-pixel networks and a CPU."""

    steps: int = option(40, "Passes over the training set.", least=0, common=True)
    batch_size: int = option(100, "Images of a batch; an incomplete one is left out.", least=2)
    lr: float = option(3e-3, "Highest learning rate of the student's Adam (one cycle over the run).", above=0)
    start: Literal["member", "random"] = option(
        "member", "Start from the best member of the student's architecture (if there is one), or at random."
    )
    gram_weight: float = option(40.0, "Weight of the difference of similarities.")
    neighbour_weight: float = option(0.5, "Weight of the divergence of neighbours.")
    neighbour_temperature: float = option(
        0.05, "Temperature of the student's cosines: the smaller, the fewer neighbours count.", above=0
    )
    neighbour_target_temperature: float = option(0.1, "Temperature of the targets' cosines in it.", above=0)
    neighbour_equalise: float = option(0.3, "`whiten` of the targets whose neighbours are taken over.")
    view: EnsembleViewConfig = part(EnsembleViewConfig)


class PoolDistillation(Method):
    """The student of a pool's joint representation; see the module's docstring.

    Attributes:
        images: `(N, 3, H, W)` uint8, the training set.
        targets: `(N, target_dim)` in half precision, the pool's view of it.
        spread: `(target_dim,)`, the variances of the targets' directions relative to the first one's.
        agreement: correlation of the targets' inner products with those of the full ensemble features.
        objective: the student and the linear map from its features to the targets.
    """

    name = "Pool distillation"
    black_boxes = True
    Config = PoolDistillationConfig
    config: PoolDistillationConfig
    # Trained as a representation under running statistics, it is used as one.
    eval_head = "prototype"
    eval_bn = "running"

    def __init__(self, config: PoolDistillationConfig, model: nn.Module) -> None:
        if config.view.mixing.num_images < config.batch_size:
            raise ValueError(
                f"{config.view.mixing.num_images} images make no batch of {config.batch_size}: raise --num_images."
            )
        super().__init__(config, model)
        info = network_info(model.eval())
        self.size, self.width = info.image_size, info.num_features
        # Nothing here trains the classifier. From zero, fine-tuning starts with the features alone.
        for layer in info.classifiers.values():
            for weight in layer.parameters():
                nn.init.zeros_(weight)
        # Without a bias, so that what all images have in common is in the student's features too.
        device = next(model.parameters()).device
        linear = nn.Linear(self.width, config.view.target.target_dim, bias=False, device=device)
        self.objective = nn.ModuleDict({"student": model, "map": linear})
        self.optimizer = torch.optim.Adam(self.objective.parameters(), config.lr)
        self.images = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        self.targets = torch.empty(0, config.view.target.target_dim, dtype=torch.float16)
        self.spread = torch.ones(config.view.target.target_dim)
        self.agreement = 0.0
        self.recovered: Tree = {"images": self.images, "titles": []}

    @classmethod
    def config_for(cls, config: PoolDistillationConfig, pool: TeacherPool) -> PoolDistillationConfig:
        """From probabilities, and with estimated gradients, for members that only answer."""
        return replace(config, **flat(config.view.for_black_boxes())) if pool.answers_only else config

    def setup(self, pool: TeacherPool, context: Context) -> None:
        """Recover, mix, and look at the mixtures through all members (steps 0 and 1).

        Raises:
            ValueError: if there are too few images for the targets' dimensions; or if several processes would ask
                black boxes, whose questions only one can count.
            QueryBudgetError: if black boxes may not be asked for the next member's part; none of it was asked.
        """
        config = self.config
        # Drawn on the CPU, where the generator is: the same start on every device.
        start = torch.empty(config.view.target.target_dim, self.width)
        nn.init.kaiming_uniform_(start, a=5**0.5, generator=fork(context.seed, "map"))
        self.objective["map"].load_state_dict({"weight": start})
        if config.start == "member" and not pool.answers_only:
            start_from_member(self.model, pool)
        view = self.view(pool, context)
        self.images, self.recovered = view.images, view.sample
        self.targets, self.agreement, self.spread = view.targets

    def view(self, pool: TeacherPool, context: Context) -> EnsembleView:
        """The training set and its targets; raises as `setup`."""
        return view_of(pool, self.config.view, self.size, context)

    def order(self, context: Context) -> Tensor:
        """Rows of the training set in the order of the next pass."""
        return torch.randperm(len(self.images), generator=context.generator)

    def step(self, context: Context) -> dict[str, float]:
        """One pass over the training set (step 2).

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        config = self.config
        batches = len(self.images) // config.batch_size
        order = self.order(context).to(self.images.device)
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
        # The targets are whitened already, as `whiten` says.
        flatter = whitened(targets, self.spread, config.neighbour_equalise - config.view.target.whiten)
        neighbours = neighbour_loss(
            features, flatter, config.neighbour_temperature, config.neighbour_target_temperature
        )
        return torch.stack([direction, similarity_loss(features, targets), neighbours])

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

    def load_state_dict(self, state: Tree, pool: TeacherPool, context: Context) -> None:
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
        drawn = []
        if len(shown):
            columns = len(shown) // len(set(titles))
            drawn += [image_grid(to_unit(shown), folder / "recovered.png", columns=columns, titles=titles)]
        if len(self.images):
            drawn += [image_grid(to_unit(self.images[: SHOWN * SHOWN]), folder / "training_set.png", columns=SHOWN)]
        return drawn


def start_from_member(model: nn.Module, pool: TeacherPool) -> None:
    """Give `model` the weights, but for the classifier's, of the best member that has the same ones.

    Members of its architecture are tried in the order of their stored accuracies; where none fits, it stays as it is.
    """
    info = network_info(model)
    candidates = [index for index, entry in enumerate(pool) if entry.architecture == info.architecture]
    own = {name: value for name, value in model.state_dict().items() if not info.in_classifier(name)}
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
    return network_info(model).features(pixels)
