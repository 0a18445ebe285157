"""Training one pool member: an ordinary classifier of a few classes, with the weights of its best epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.networks.info import network_info
from hf_dfml.networks.stages import Trained, freeze, split, train_mode
from hf_dfml.utils.images import to_unit


@dataclass(frozen=True)
class PoolRecipe:
    """How a member is trained.

    The defaults are those of the published conv4 pools, on which Hu et al. (2023, BiDf-MKD; 2024, TGR) and Wei et al.
    (2024, FREE) meta-learn: their released code has them, their papers do not.
    """

    epochs: int = field(default=60, metadata={"help": "Passes over the training images."})
    batch_size: int = field(default=128, metadata={"help": "Images in a step."})
    optimizer: Literal["adam", "sgd"] = field(default="adam", metadata={"help": "adam or sgd (momentum 0.9)."})
    lr: float = field(default=0.01, metadata={"help": "Learning rate; the highest one of a one_cycle schedule."})
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay."})
    schedule: Literal["steps", "one_cycle"] = field(
        default="steps",
        metadata={"help": "steps: the learning rate is cut at the milestones; one_cycle: up once and down to 0."},
    )
    milestones: tuple[int, ...] = field(
        default=(70,), metadata={"help": "Epochs after which the learning rate is cut to 1/5."}
    )
    clip: float = field(default=50.0, metadata={"help": "Largest norm of the gradient."})
    flip: bool = field(
        default=False, metadata={"help": "Mirror half of the images (not for characters, which change by it)."}
    )
    shift: int = field(default=0, metadata={"help": "Shift images by up to so many pixels, edges repeated."})
    train_fraction: float = field(default=0.8, metadata={"help": "Share of a class's images that is trained on."})

    @classmethod
    def published(cls, arch: str) -> PoolRecipe:
        """The recipe that BiDf-MKD, FREE and TGR have in common for that architecture."""
        if arch.startswith("conv4"):
            return cls()
        return cls(optimizer="sgd", weight_decay=5e-4, milestones=(30, 50, 80))

    @classmethod
    def fast(cls, *, flip: bool = True) -> PoolRecipe:
        """15 epochs that reach higher accuracy than the 60 published ones: one-cycle, shifted, mirrored."""
        return replace(cls(), epochs=15, schedule="one_cycle", flip=flip, shift=2)

    @classmethod
    def fine_tuning(cls, *, flip: bool = True) -> PoolRecipe:
        """Ten epochs from a pretrained network; the images that frozen layers see are neither shifted nor mirrored."""
        return replace(cls(), epochs=10, batch_size=32, lr=1e-3, schedule="one_cycle", flip=flip, shift=4)


def train_member(
    network: nn.Module,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    recipe: PoolRecipe,
    generator: torch.Generator,
) -> float:
    """Train `network` in place and leave it with the weights of the epoch that was best on the held-out images.

    The released systems keep a reference instead of a copy and so store their last epoch under the accuracy of their
    best one; here the accuracy is measured again on the weights that are kept.

    Args:
        network: on the device to train on.
        train: images `(M, 3, H, W)` uint8 and labels `(M,)`, on that device.
        held_out: the same of images that are not trained on.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        recipe: how to train.
        generator: order and augmentation are drawn from it.

    Returns:
        Accuracy of the kept weights on the held-out images, in [0, 1].
    """
    network.to(memory_format=torch.channels_last)
    # Stored with channels last, so that picking, shifting and mirroring a batch is one gather (see `_augmented`).
    images = train[0].permute(0, 2, 3, 1).contiguous()

    def draw(rows: Tensor) -> Tensor:
        return _normalise(_augmented(images, rows, recipe, generator), mean, std)

    def measure() -> float:
        return accuracy_of(network, *held_out, mean=mean, std=std)

    return _fit(network, draw, train[1], measure, recipe, generator)


def fine_tune_member(
    network: nn.Module,
    trained: Trained,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    recipe: PoolRecipe,
    generator: torch.Generator,
) -> float:
    """`train_member` of a part of a pretrained network; what its frozen layers give is computed once for each image.

    A network that cannot be cut before its last stage (`networks.stages.split`) is trained as a whole with frozen
    layers, which is the same but for augmentation and takes longer.
    """
    freeze(network, trained)
    parts = split(network) if trained == "last_stage" else None
    layer = next(iter(network_info(network).classifiers.values()))
    before: Callable[[Tensor], Tensor]
    rest: nn.Module
    if trained == "head" and isinstance(layer, nn.Linear):
        before, rest = network_info(network).features, layer
    elif parts is not None:
        before, rest = parts, parts.rest
    else:
        return train_member(network, train, held_out, mean=mean, std=std, recipe=recipe, generator=generator)
    network.eval()

    @torch.no_grad()
    def seen(images: Tensor) -> Tensor:
        return torch.cat([before(_normalise(batch, mean, std)) for batch in images.split(64)])

    given, kept = seen(train[0]), seen(held_out[0])

    @torch.no_grad()
    def measure() -> float:
        rest.eval()
        right = [rest(batch).argmax(1) for batch in kept.split(512)]
        return float((torch.cat(right) == held_out[1]).float().mean())

    _fit(rest, lambda rows: given[rows.to(given.device)], train[1], measure, recipe, generator)
    if parts is not None:
        parts.join()
    return accuracy_of(network, *held_out, mean=mean, std=std)


def _fit(
    network: nn.Module,
    draw: Callable[[Tensor], Tensor],
    labels: Tensor,
    measure: Callable[[], float],
    recipe: PoolRecipe,
    generator: torch.Generator,
) -> float:
    """Train on batches that `draw` makes of rows, and keep the weights of the epoch that `measure` says is best."""
    optimizer = _optimizer(network, recipe)
    batches = _batches(len(labels), recipe, generator)
    schedule = _schedule(optimizer, recipe, steps_per_epoch=len(batches))
    best, best_state = -1.0, {}
    for epoch in range(recipe.epochs):
        train_mode(network)
        for rows in batches if epoch == 0 else _batches(len(labels), recipe, generator):
            loss = F.cross_entropy(network(draw(rows)), labels[rows.to(labels.device)])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
            optimizer.step()
            schedule.step()
        accuracy = measure()
        if accuracy > best:
            best = accuracy
            best_state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(best_state)
    return measure()


@torch.no_grad()
def accuracy_of(
    network: nn.Module, images: Tensor, labels: Tensor, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> float:
    """Share of `images` `(M, 3, H, W)` uint8 that `network` classifies as `labels`, in eval mode."""
    network.eval()
    right = 0
    for batch, truth in zip(images.split(512), labels.split(512), strict=True):
        right += int((network(_normalise(batch, mean, std)).argmax(1) == truth).sum())
    return right / len(labels)


def _batches(count: int, recipe: PoolRecipe, generator: torch.Generator) -> list[Tensor]:
    batches = list(torch.randperm(count, generator=generator).split(recipe.batch_size))
    # Batch norm has no statistics of one image.
    return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches


def _augmented(images: Tensor, rows: Tensor, recipe: PoolRecipe, generator: torch.Generator) -> Tensor:
    """The images `rows` of `(M, H, W, 3)`, each shifted and mirrored by chance: `(B, 3, H, W)`, channels last."""
    count, (height, width) = len(rows), images.shape[1:3]
    y, x = torch.arange(height).expand(count, -1), torch.arange(width).expand(count, -1)
    if recipe.flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        x = torch.where(mirrored, width - 1 - x, x)
    if recipe.shift:
        by = torch.randint(-recipe.shift, recipe.shift + 1, (2, count, 1), generator=generator)
        y, x = (y + by[0]).clamp(0, height - 1), (x + by[1]).clamp(0, width - 1)
    rows, y, x = (index.to(images.device) for index in (rows, y, x))
    return images[rows[:, None, None], y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)


def _normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    def column(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, device=images.device).view(1, 3, 1, 1)

    return (to_unit(images) - column(mean)) / column(std)


def _optimizer(network: nn.Module, recipe: PoolRecipe) -> torch.optim.Optimizer:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(trained, recipe.lr, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(trained, recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
    raise ValueError(f"optimizer is '{recipe.optimizer}': expected adam or sgd.")


def _schedule(
    optimizer: torch.optim.Optimizer, recipe: PoolRecipe, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=recipe.epochs * steps_per_epoch)
    if recipe.schedule == "steps":
        milestones = [epoch * steps_per_epoch for epoch in recipe.milestones]
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.2)
    raise ValueError(f"schedule is '{recipe.schedule}': expected steps or one_cycle.")
