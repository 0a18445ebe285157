"""What can be refused is refused before the first second of work: data, publishing, disk, the folder of the run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from torch import nn

from hf_dfml.data.few_shot import FewShotDataset, local_copy
from hf_dfml.data.folders import Needs, folder_of, open_data, own_splits
from hf_dfml.data.registry import dataset_info
from hf_dfml.evaluation.protocol import EvaluationProtocol, check_episodes
from hf_dfml.methods.base import Method
from hf_dfml.methods.pool_distillation import PoolDistillation
from hf_dfml.networks.build import check_architecture
from hf_dfml.pool.backbone import find_backbone
from hf_dfml.pool.entry import WEIGHTS_NAME
from hf_dfml.pool.formats.timm_layout import MAX_CLASSES
from hf_dfml.pool.sources.client import USUAL, check_id, retry
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.run_config import AUTO, RunConfig
from hf_dfml.settings import meant

logger = logging.getLogger(__name__)

KEPT_BYTES = 512 << 20
"""Test images that are kept in memory until the evaluation; more are read again."""
SPARE_BYTES = 64 << 20
"""Disk for pictures, card and logs."""


class EvaluationData(NamedTuple):
    """The classes of a run's evaluation; all of them give the episodes that are asked for.

    Attributes:
        validation: to choose checkpoint and head on, in the meta-model's size.
        levels: the same in the size of the baselines, kept or read again.
        tests: data sets for the one look at the end, in the larger of both sizes; likewise.
    """

    validation: list[FewShotDataset]
    levels: list[Callable[[], FewShotDataset]]
    tests: list[Callable[[], FewShotDataset]]

    @property
    def dataset(self) -> str | None:
        """The names of the data sets, by comma."""
        return ",".join(chosen.name for chosen in self.validation) or None

    def level(self) -> Iterator[FewShotDataset]:
        """The validation classes of one data set after the other, for the baselines."""
        return (read() for read in self.levels)

    def test(self) -> Iterator[FewShotDataset]:
        """The test classes of one data set after the other."""
        return (read() for read in self.tests)


def check_names(config: RunConfig) -> None:
    """Make sure that what a run's options name exists, before a member of its pool is opened.

    Raises:
        ValueError: if a data set or architecture is not known, or a cache is not a folder.
        FileNotFoundError: if images, a public network or a checkpoint are not there.
    """
    for name in names_of_datasets(config):
        if config.data:
            folder_of(name)
        else:
            local_copy(dataset_info(name), config.data_dir)
    if config.student_from:
        find_backbone(config.student_from)
    elif config.arch != AUTO:
        check_architecture(config.arch)
    asked = config.resume_from_checkpoint
    if asked and asked != "latest" and not (Path(asked) / "tree.json").is_file():
        raise FileNotFoundError(
            f"--resume_from_checkpoint {asked}: expected latest, or the folder of a checkpoint (such as "
            f"{Path(config.output_dir) / 'checkpoints' / 'step-000020'}).{meant(asked, ['latest'])}"
        )
    if config.recovery_cache:
        cache = Path(config.recovery_cache).absolute()
        nearest = next(each for each in (cache, *cache.parents) if each.exists())
        if not nearest.is_dir():
            raise ValueError(f"--recovery_cache {config.recovery_cache}: {nearest} is a file, expected a folder.")


def names_of_datasets(config: RunConfig) -> list[str]:
    """The data sets of `--dataset`, or the user's own images of `--data`.

    Raises:
        ValueError: if one is not known, or both are given.
    """
    if config.data:
        if config.dataset:
            raise ValueError("Name the images: --dataset for known sets, or --data for your own (not both).")
        return [config.data]
    names = [name.strip() for name in (config.dataset or "").split(",") if name.strip()]
    for name in names:
        dataset_info(name)
    return names


def evaluation_data(
    config: RunConfig, protocol: EvaluationProtocol, image_size: int, baseline_size: int = 0
) -> EvaluationData:
    """Read the classes that a run is validated and tested on; the test images are looked at by nobody before its end.

    Args:
        config: the run.
        protocol: the episodes.
        image_size: of the meta-model, in pixels.
        baseline_size: of the largest baseline; 0 for none. Baselines see the images in their own size.

    Raises:
        ValueError: if a data set is not known, or has too few classes or images for the ways, shots and queries.
        FileNotFoundError: if a data set cannot be had.
    """
    found = EvaluationData([], [], [])
    columns: dict[str, Any] = {"image_column": config.image_column, "label_column": config.label_column}
    needs = Needs(protocol.ways, max(protocol.shots), protocol.queries)
    largest = max(image_size, baseline_size)
    for name in names_of_datasets(config):
        read = partial(open_data, name, data_dir=config.data_dir, needs=needs, **columns)
        choose, look = _splits(name)
        chosen = read(split=choose, image_size=image_size)
        check_episodes(chosen, protocol)
        found.validation.append(chosen)
        as_large = partial(read, image_size=largest)
        found.levels.append(partial(_kept, chosen) if largest == image_size else partial(as_large, split=choose))
        if look == choose:
            logger.warning("%s has no test images: the evaluation is on those that the checkpoint is chosen on.", name)
            found.tests.append(found.levels[-1])
            continue
        test = as_large(split=look)
        check_episodes(test, protocol)
        small = test.images.numel() <= KEPT_BYTES
        found.tests.append(partial(_kept, test) if small else partial(as_large, split=look))
    return found


def _kept(dataset: FewShotDataset) -> FewShotDataset:
    return dataset


def _splits(name: str) -> tuple[str, str]:
    """Which images a checkpoint is chosen on, and which are looked at once, at the end; the same where there are no
    others.

    Raises:
        ValueError: if there are test images alone.
    """
    splits = own_splits(name)
    choose = next((split for split in ("validation", "train") if split in splits), "validation")
    if splits and choose not in splits:
        raise ValueError(f"{name} has test images alone: add a folder 'validation' to choose the checkpoint on.")
    return choose, "test" if "test" in splits else choose


def check_push(repository: str, *, private: bool = False) -> None:
    """Make sure that a model can be published under a name, without making anything.

    Raises:
        ValueError: if the name is not valid or somebody else's, there is no token or one that may only read, or the
            repository is public and a private one was asked for.
    """
    check_id(repository)
    if USUAL.offline:
        raise ValueError(f"Publishing {repository} needs the Hub: unset HF_HUB_OFFLINE, or leave --push_to_hub out.")
    api = USUAL.api()
    try:
        me = retry(lambda: api.whoami(), tries=3)
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        refused = getattr(getattr(error, "response", None), "status_code", HTTPStatus.UNAUTHORIZED)
        if refused not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise  # The Hub is busy or broken, which no other token helps.
        raise ValueError(
            f"Publishing {repository} needs a valid token with write access, and {api.endpoint} knows none of yours: "
            "log in with `hf auth login`, or set HF_TOKEN."
        ) from error
    owner = repository.partition("/")[0] if "/" in repository else me["name"]
    owners = [me["name"], *(each["name"] for each in me.get("orgs") or [])]
    if owner not in owners:
        raise ValueError(f"{repository}: your token is that of {me['name']}, who can publish as {', '.join(owners)}.")
    if ((me.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise ValueError(f"{repository}: your token may only read; make one with write access and log in with it.")
    address = repository if "/" in repository else f"{owner}/{repository}"
    if private and retry(lambda: api.repo_exists(address), tries=3) and not api.model_info(address).private:
        raise ValueError(f"{address} exists and is public: make it private there, or push elsewhere.")


def check_folder(folder: Path) -> None:
    """Make sure that a folder is not that of a finished model that this run could not go on from.

    Raises:
        FileExistsError: if it is.
    """
    if (folder / WEIGHTS_NAME).exists() and not any((folder / "checkpoints").glob("step-*")):
        raise FileExistsError(
            f"{folder} already holds a model ({WEIGHTS_NAME}) and no checkpoint of a run: choose another --output_dir."
        )


def check_outputs(method: Method, pool: TeacherPool) -> None:
    """Make sure that a student with an output for each class of each member is not too large to be loaded again.

    Raises:
        ValueError: if it is; says how many members are few enough.
    """
    if not isinstance(method, PoolDistillation) or method.config.train_student == "beside":
        return
    outputs = list(accumulate(entry.num_classes or 0 for entry in pool))
    if outputs[-1] > MAX_CLASSES:
        raise ValueError(
            f"The student would have {outputs[-1]:,} outputs, one for each class of each of {len(pool)} members, and "
            f"none of more than {MAX_CLASSES:,} can be loaded again: use fewer members (--num_members "
            f"{sum(each <= MAX_CLASSES for each in outputs)} or less), or --train_student beside."
        )


def check_disk(folder: Path, network: nn.Module, kept: int, config: RunConfig, steps: int = 0) -> None:
    """Make sure that the disk has room for a run's checkpoints.

    Args:
        folder: of the run.
        network: the meta-model.
        kept: bytes of images that are part of a checkpoint, at most; see `Method.kept_bytes`.
        config: the run.
        steps: of the run; 0 where they are not known yet.

    Raises:
        ValueError: if it has not; says what is needed and what there is.
    """
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    # Weights, Adam's two moments and the best snapshot; one checkpoint more than are kept while the newest is written.
    count = config.keep_checkpoints
    if steps:  # Those that are due, the first one, and the two newest: so many there are at most.
        count = min(count, steps // config.checkpoint_every + 3)
    needed = (4 * weights + kept) * (count + 1) + SPARE_BYTES
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ValueError(
            f"{folder} needs about {needed / 1e9:.1f} GB for checkpoints, and its disk has {free / 1e9:.1f} GB free: "
            "make room, choose another --output_dir, or lower --keep_checkpoints."
        )
