"""The product: a network that becomes a classifier of new classes from a few images of each.

meta = MetaModel.from_pretrained("someone/tgr-cifar-fs-conv4")
classifier = meta.adapt(images, labels)
classifier.predict(queries)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor, nn

from hf_dfml.classifier import Classifier, Origin
from hf_dfml.classifier.files import SUPPORT_NAME
from hf_dfml.data.registry import DATASETS
from hf_dfml.evaluation.heads import Adaptation, Representation
from hf_dfml.evaluation.results import RESULTS_NAME, Result
from hf_dfml.hub_results import EVAL_RESULTS_FOLDER, write_eval_results
from hf_dfml.meta_config import MetaConfig, Source, describe_network, from_json
from hf_dfml.model_card import CAPTIONS, CARD_NAME, LIBRARY_NAME, TAGS, THIS_REPOSITORY, make_card
from hf_dfml.networks.functional import BatchNorm
from hf_dfml.networks.info import set_input
from hf_dfml.pool.entry import CONFIG_NAME, WEIGHTS_NAME, MemberError, PoolEntry
from hf_dfml.pool.formats.checks import read_json
from hf_dfml.pool.formats.loading import build_network, load_teacher
from hf_dfml.pool.formats.reading import read_entry
from hf_dfml.pool.sources.client import HubOptions
from hf_dfml.pool.sources.lock import LOCK_NAME, published_lock
from hf_dfml.pool.sources.repository import create_repository, locate, put_together, upload
from hf_dfml.utils.checkpoint import atomic_write, save_tensors
from hf_dfml.utils.inputs import Images
from hf_dfml.utils.text import counted

OWN_FILES = (
    SUPPORT_NAME,
    RESULTS_NAME,
    LOCK_NAME,
    *(f"{EVAL_RESULTS_FOLDER}/{name}.yaml" for name in DATASETS),
    *(f"pictures/{name}{dataset}.png" for name in CAPTIONS for dataset in ("", *(f"-{each}" for each in DATASETS))),
)
"""What an earlier push may have left beside config, weights and card, of a classifier too."""


class MetaModel(ModelHubMixin, library_name=LIBRARY_NAME, tags=list(TAGS), pipeline_tag="image-classification"):
    """A meta-learnt network and everything needed to adapt, save and publish it.

    `save_pretrained(folder)` is huggingface_hub's: it writes `config.json`, `model.safetensors` and, where there is
    none yet, a card.

    Args:
        network: with timm's API.
        config: what `config.json` says of it.

    Attributes:
        folder: where it was loaded from or saved to last; its card and pictures lie there.
        name: its Hub id, or its folder's name; empty before it is stored.
        revision: its commit on the Hub.
    """

    def __init__(self, network: nn.Module, config: MetaConfig) -> None:
        self.network = network.eval()
        self.config = config
        self.folder: Path | None = None
        self.name = ""
        self.revision: str | None = None

    @classmethod
    def of(
        cls,
        network: nn.Module,
        *,
        method: str,
        method_config: dict[str, Any] | None = None,
        pool: Iterable[PoolEntry] = (),
        dataset: str | None = None,
        results: Sequence[Result] = (),
        adapt: Adaptation | None = None,
        model_args: dict[str, Any] | None = None,
    ) -> MetaModel:
        """A meta-model from a trained network.

        Args:
            network: made by `create_network` or `timm.create_model`.
            method: the system that learnt it.
            method_config: that system's hyper-parameters, JSON values.
            pool: the members that it was learnt from.
            dataset: data set of the evaluation.
            results: rows of the evaluation.
            adapt: defaults of `MetaModel.adapt`.
            model_args: arguments beyond the number of outputs that the network was made with.

        Raises:
            ValueError: if the network could not be built again from what the config would say.
        """
        config = MetaConfig(
            **describe_network(network, model_args),
            method=method,
            method_config=method_config or {},
            pool=tuple(Source(entry.id, entry.revision) for entry in pool),
            dataset=dataset,
            results=tuple(results),
            adapt=adapt or Adaptation(),
        )
        _check_rebuilds(network, config)
        return cls(network, config)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        device: torch.device | str = "cpu",
    ) -> MetaModel:
        """Load a meta-model from a folder or from the Hub. Only safetensors is opened.

        Args:
            pretrained_model_name_or_path: a folder, `org/name`, `org/name@revision`, the address of its page on the
                Hub, or `zoo:NAME` for a model that comes with the library (`hf_dfml.zoo.manifest`).
            revision: branch, tag or commit on the Hub; it is resolved to a commit once, so that config and weights are
                of the same one.
            token: of the user; None or True: the stored one; False: none is sent.
            cache_dir: where downloaded files are kept; None: the usual folder.
            local_files_only: whether only what is in the cache is used.
            force_download: whether files are downloaded although they are in the cache.
            device: where the network goes.

        Raises:
            FileNotFoundError: if the folder does not exist.
            ValueError: if there is no such repository or what is there is not a sound meta-model; one line says why.
        """
        options = HubOptions(token, revision, cache_dir, local_files_only)
        if force_download and options.offline:
            raise ValueError("force_download=True needs the Hub, and local_files_only or HF_HUB_OFFLINE is set.")
        folder, id, sha = locate(pretrained_model_name_or_path, "meta-model", options, force=force_download)
        entry = read_entry(id, folder, sha, meta_model=True)
        if entry.problem is None and entry.library != "timm":
            raise MemberError(id, "is a transformers model, not a meta-model")
        network = load_teacher(entry).network.requires_grad_(True)
        config = from_json(read_json(id, folder / CONFIG_NAME), entry)
        set_input(network, config.input_size, config.mean, config.std, answers=config.answers)
        meta = cls(network.to(device), config)
        meta.folder, meta.name, meta.revision = folder, id, sha
        return meta

    def __repr__(self) -> str:
        config = self.config
        parts = [
            config.method or "meta-model",
            config.architecture,
            "x".join(map(str, config.input_size)),
            f"learnt from {counted(len(config.pool), 'member')}",
            f"head={config.adapt.head}",
            f"bn={config.adapt.bn}",
        ]
        return f"MetaModel({', '.join(parts)})"

    def adapt(
        self,
        images: Images,
        labels: Sequence[Hashable] | Tensor | np.ndarray | None = None,
        *,
        head: str | None = None,
        bn: BatchNorm | None = None,
        steps: int | None = None,
        lr: float | None = None,
        flips: bool | None = None,
        representation: Representation | None = None,
    ) -> Classifier:
        """Learn new classes from a few images of each.

        Any number of classes (from two) and of images of a class (from one) will do. A head for another number of
        classes than the network has outputs is rebuilt from the support set.

        Args:
            images: the support set: a tensor `(S, C, H, W)` or NumPy array `(S, H, W, C)`, in [0, 1] or uint8; a list
                of PIL images, arrays, tensors or files; or a folder with one folder of images for each class, of which
                files that cannot be read are left out with a warning. Grey images and mixed sizes are fine.
            labels: the class of each image, anything hashable; left out with a folder.
            head: a name of `hf_dfml.evaluation.HEADS`, each of which has a line of `help`; the config's by default.
            bn: whose batch-norm statistics normalise the queries; the config's by default. `support`: those of the
                support set, so that a prediction does not depend on what else is asked. `running`: the stored ones.
                `transductive`: those of all queries of a call to `predict` together, as in the papers' evaluations.
            steps: SGD steps of heads that adapt the network.
            lr: their learning rate.
            flips: whether each image is seen together with its mirror image (heads on features); the config's by
                default, where the head is the config's too.
            representation: what heads on features work with: `features`, or the `answers` of a pool that a student
                predicts (pool distillation); likewise.

        Raises:
            ValueError: for fewer than two classes, a class folder without images, more or fewer labels than
                images, or images that cannot be used.
        """
        how = self.config.adapt.but(head, flips=flips, representation=representation, bn=bn, steps=steps, lr=lr)
        origin = Origin(
            "meta-model",
            self.name,
            self.revision,
            self.config.method,
            tuple(source.id + (f"@{source.revision}" if source.revision else "") for source in self.config.pool),
            self.config.model_args,
        )
        return Classifier.adapted(self.network, images, labels, how, self.config.input_size[1:], origin=origin)

    def _save_pretrained(self, save_directory: Path) -> None:
        """What the mixin's `save_pretrained` writes beside the card: weights, config and the Hub's result files.

        timm loads the folder too (`timm.create_model("local-dir:<folder>", pretrained=True)` after `import hf_dfml`).
        """
        temporary = save_directory / f".{WEIGHTS_NAME}.partial"
        state = {
            name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.network.state_dict().items()
        }
        save_tensors(state, temporary, metadata={"format": "pt"})
        temporary.replace(save_directory / WEIGHTS_NAME)
        atomic_write(save_directory / CONFIG_NAME, json.dumps(self.config.to_json(), indent=1) + "\n")
        write_eval_results(save_directory, self.config)
        self.folder = save_directory

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card of a model whose folder has none yet; arguments as those of `hf_dfml.model_card.make_card`."""
        return make_card(self.config, *args, **kwargs)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        folder: str | Path | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        commit_message: str | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        config: Any = None,
        **further: Any,
    ) -> str:
        """Publish weights, config, card, pictures, results and lock file in one commit; the repository's address.

        What an earlier push has left there and this one lacks, such as its results, is deleted; not so where the model
        was itself loaded from the Hub, of which only the weights were fetched. The history of the repository keeps it.

        Args:
            repo_id: `org/name`; the repository is made if it does not exist.
            folder: where card, pictures, `results.json` and `pool.lock.json` lie; by default where the model was
                loaded from or saved.
            private: whether a new repository is private; None: the organisation's setting.
            token: a token with write access; by default the one that `hf auth login` stored.
            branch: an existing branch; None: the default branch.
            commit_message: of the commit.
            model_card_kwargs: of `generate_model_card`, where the folder has no card.
            config: what the mixin passes on; the model's own config is published.
            **further: options of `HfApi.upload_folder`, such as `create_pr`.

        Raises:
            ValueError: if `repo_id` is not valid, or the repository is public and a private one was asked for.
        """
        options = HubOptions(token=token)
        source = Path(folder) if folder is not None else self.folder
        further |= {
            "revision": branch,
            "commit_message": commit_message or f"Meta-model ({self.config.method or LIBRARY_NAME})",
        }
        with put_together(repo_id) as staged:
            if source is not None:
                _copy_card(source, staged)
            copy = MetaModel(self.network, self.config)
            copy.save_pretrained(staged, model_card_kwargs=model_card_kwargs)
            # The repository is made when there is something to put into it.
            address = create_repository(options.api(), repo_id, private)
            # The card was written before it was known where it would be published.
            card = (staged / CARD_NAME).read_text(encoding="utf-8").replace(THIS_REPOSITORY, str(address.repo_id))
            atomic_write(staged / CARD_NAME, card)
            own = OWN_FILES if self.revision is None or folder is not None else ()
            upload(address.repo_id, staged, options, own, **further)
        return str(address)


def _check_rebuilds(network: nn.Module, config: MetaConfig) -> None:
    entry = PoolEntry(
        id="the meta-model",
        architecture=config.architecture,
        num_classes=config.num_classes,
        input_size=config.input_size,
        mean=config.mean,
        std=config.std,
        model_args=config.model_args,
    )
    with torch.device("meta"):
        twin = build_network(entry)
    ours = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f"'{config.architecture}' with model_args {config.model_args} has {name} of shape {theirs.get(name)}, the "
            f"network has {ours.get(name)}: pass the model_args that the network was made with."
        )


def _copy_card(source: Path, target: Path) -> None:
    """The card, what it shows, and the pool's lock file: not checkpoints, logs or anything else of a run's folder."""
    for name in (CARD_NAME, RESULTS_NAME):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for folder in ("pictures", EVAL_RESULTS_FOLDER):
        for file in sorted((source / folder).glob("*")):
            if file.suffix in (".png", ".yaml") and file.is_file():
                (target / folder).mkdir(exist_ok=True)
                shutil.copyfile(file, target / folder / file.name)
    if (source / LOCK_NAME).is_file():
        atomic_write(target / LOCK_NAME, published_lock(source / LOCK_NAME))
