"""Building a pool: many small classifiers, each trained on a few classes drawn from one split of a data set."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_dfml.data.few_shot import FewShotDataset, load_dataset
from hf_dfml.networks import create_network
from hf_dfml.networks.info import network_info
from hf_dfml.networks.stages import Trained
from hf_dfml.pool.backbone import open_backbone, started_from
from hf_dfml.pool.building.training import PoolRecipe, fine_tune_member, train_member
from hf_dfml.pool.building.writing import member_config, write_member
from hf_dfml.pool.entry import CONFIG_NAME
from hf_dfml.pool.formats.checks import read_json
from hf_dfml.pool.formats.reading import read_entry
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.teacher import Teacher
from hf_dfml.utils.memory import keep_freed_memory
from hf_dfml.utils.progress import progress
from hf_dfml.utils.seeding import fork

logger = logging.getLogger(__name__)


def build_pool(
    dataset: str | FewShotDataset,
    *,
    output: Path | str,
    num_models: int = 100,
    arch: str = "conv4",
    ways: int | tuple[int, int] = 5,
    split: str = "train",
    data_dir: Path | str | None = None,
    image_size: int | None = None,
    recipe: PoolRecipe | None = None,
    epochs: int | None = None,
    backbone: str | None = None,
    trained: Trained = "all",
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ModelPool:
    """Train `num_models` classifiers, each of `ways` classes drawn without replacement from the split.

    Every member's random numbers depend on `seed` and its index alone, and a member's folder appears when it is
    complete. So a build that was interrupted goes on where it stopped, and its members are bit for bit those of a
    build that was not; a larger `num_models` adds members to a pool.

    Args:
        dataset: a data set's name, or a data set whose classes are drawn from.
        output: the pool's folder; one sub-folder a member.
        num_models: how many members the pool has in the end.
        arch: a timm architecture, ours included.
        ways: classes of a member; or the least and the most, between which each member draws its own.
        split: which classes are drawn from, where `dataset` is a name.
        data_dir: see `hf_dfml.data.load_dataset`.
        image_size: see `hf_dfml.data.load_dataset`.
        recipe: how members are trained; default the published recipe of `arch`.
        epochs: replaces the recipe's number of epochs.
        backbone: members are fine-tuned from this network (`hf_dfml.pool.backbone.open_backbone`), whose architecture
            and normalisation they have; `arch` plays no part.
        trained: what of the backbone is trained.
        seed: of the whole pool.
        device: where to train.

    Returns:
        The pool of these members.

    Raises:
        ValueError: if no member is asked for, the architecture is unknown, the split has fewer than `ways` classes, a
            class has too few images, or `output` holds a member that was built with other settings.
    """
    if num_models < 1:
        raise ValueError(f"num_models={num_models}: a pool has at least one member.")
    if isinstance(dataset, str):
        dataset = load_dataset(dataset, split, data_dir=data_dir, image_size=image_size)
    least, most = ways if isinstance(ways, tuple) else (ways, ways)
    if not 2 <= least <= most <= len(dataset.class_names):
        raise ValueError(
            f"ways={ways}: data set '{dataset.name}' ({dataset.split}) has {len(dataset.class_names)} classes, "
            f"expected 2 to {len(dataset.class_names)} classes a member."
        )
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    teacher = open_backbone(backbone) if backbone else None
    # The name of its network, wherever it lies: a folder's path says nothing to others.
    origin = {"from": teacher.entry.id, "trained": trained} if teacher else {}
    if teacher:
        arch = teacher.architecture
    recipe = recipe or (PoolRecipe.fine_tuning() if teacher else PoolRecipe.published(arch))
    if epochs is not None:
        recipe = replace(recipe, epochs=epochs)
    output = Path(output)
    built = 0
    kind = f"{dataset.name}-{arch}" + (f"-{trained}" if teacher else "")
    folders = [output / f"{kind}-{index:03d}" for index in range(num_models)]
    bar = progress(folders, description=f"Building {output.name}", unit="member")
    try:
        for index, folder in enumerate(bar):
            own = _draw_ways(least, most, fork(seed, "ways", index))
            settings = {"seed": seed, "index": index, "ways": own, "image_size": dataset.image_size, **origin}
            settings |= asdict(recipe)
            settings = json.loads(json.dumps(settings))  # As it reads back: tuples are lists in JSON.
            if folder.is_dir():
                _check_settings(folder, settings, dataset)
                continue
            accuracy = _build_member(folder, dataset, teacher or arch, recipe, settings, torch.device(device))
            bar.set_postfix(accuracy=f"{accuracy:.3f}")
            built += 1
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped by Ctrl-C after {sum(folder.is_dir() for folder in folders)} of {num_models} members; they are "
            f"in {output}, and the same command goes on with the next one."
        ) from None
    logger.info("Built %d members, found %d, in %s.", built, num_models - built, output)
    return ModelPool(read_entry(folder.name, folder.absolute()) for folder in folders)


def draw_classes(dataset: FewShotDataset, ways: int, generator: torch.Generator) -> list[int]:
    """`ways` different classes of the data set at random, as indices into its `class_names`."""
    return torch.randperm(len(dataset.class_names), generator=generator)[:ways].tolist()


def _draw_ways(least: int, most: int, generator: torch.Generator) -> int:
    return int(torch.randint(least, most + 1, (), generator=generator))


def _build_member(
    folder: Path,
    dataset: FewShotDataset,
    start: Teacher | str,
    recipe: PoolRecipe,
    settings: dict[str, Any],
    device: torch.device,
) -> float:
    generator = fork(settings["seed"], "member", settings["index"])
    classes = draw_classes(dataset, settings["ways"], generator)
    names = [dataset.class_names[label] for label in classes]
    train, held_out = _train_and_held_out(dataset, names, recipe.train_fraction, device)
    if isinstance(start, str):
        arch, model_args, mean, std = start, {}, dataset.mean, dataset.std
        network = create_network(arch, num_classes=len(names), image_size=dataset.image_size, generator=generator)
        train_on = train_member
    else:
        arch = start.architecture
        mean, std = start.entry.mean, start.entry.std  # type: ignore[assignment]
        network = started_from(start, num_classes=len(names), image_size=dataset.image_size, generator=generator)
        model_args = network_info(network).settings["model_args"]
        train_on = partial(fine_tune_member, trained=settings["trained"])  # type: ignore[assignment]
    accuracy = train_on(
        network.to(device),
        train=train,
        held_out=held_out,
        mean=mean,
        std=std,
        recipe=recipe,
        generator=generator,
    )
    config = member_config(
        network, arch, names, image_size=dataset.image_size, mean=mean, std=std, model_args=model_args
    )
    config["dfml"] = {
        "dataset": dataset.name,
        "split": dataset.split,
        "classes": classes,
        "val_accuracy": accuracy,
        "build": settings,
    }
    write_member(folder, network, config, note=_origin(settings))
    return accuracy


def _origin(settings: dict[str, Any]) -> str:
    """What a member's card says of its start."""
    what = {"head": "its classifier", "last_stage": "its last stage and classifier", "all": "all of it"}
    return f"Fine-tuned from `{settings['from']}`, {what[settings['trained']]}." if "from" in settings else ""


def _train_and_held_out(
    dataset: FewShotDataset, names: list[str], fraction: float, device: torch.device
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The first `fraction` of every class's images with their labels, and the rest."""
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for name in names:
        images = dataset.by_class(name)
        count = round(fraction * len(images))
        if not 0 < count < len(images):
            raise ValueError(
                f"Class '{name}' of data set '{dataset.name}' has {len(images)} images: too few to train on "
                f"{fraction:.0%} of them and hold out the rest."
            )
        parts[0].append(images[:count])
        parts[1].append(images[count:])

    def joined(images: list[Tensor]) -> tuple[Tensor, Tensor]:
        counts = torch.tensor([len(part) for part in images])
        return torch.cat(images).to(device), torch.arange(len(images)).repeat_interleave(counts).to(device)

    return joined(parts[0]), joined(parts[1])


def _check_settings(folder: Path, settings: dict[str, Any], dataset: FewShotDataset) -> None:
    config = read_json(folder.name, folder / CONFIG_NAME)
    facts = config.get("dfml", {})
    found = {**facts.get("build", {}), "split": facts.get("split"), "classes": config.get("label_names")}
    # The same settings draw other classes from another split, or from a folder that has others now.
    drawn = draw_classes(dataset, settings["ways"], fork(settings["seed"], "member", settings["index"]))
    classes = [dataset.class_names[label] for label in drawn]
    for name, wanted in {**settings, "split": dataset.split, "classes": classes}.items():
        if found.get(name) != wanted:
            raise ValueError(
                f"{folder} was built with {name}={found.get(name)!r}, not {wanted!r}: give the settings it was built "
                f"with, or another output folder."
            )
