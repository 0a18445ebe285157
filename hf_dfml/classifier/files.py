"""A classifier on disk and on the Hub.

`config.json`, `model.safetensors` and a card, in timm's layout where the classifier is one network of timm's or ours.
One on the members of a pool has `pool.lock.json` beside its linear layer, and small members themselves.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from safetensors.torch import load_file
from torch import nn

from hf_dfml.classifier.accuracy import Accuracy
from hf_dfml.classifier.all_members import AllMembers
from hf_dfml.classifier.card import CARD_NAME, make_card
from hf_dfml.classifier.classifier import Classifier
from hf_dfml.classifier.origin import Origin
from hf_dfml.evaluation.heads import Adaptation
from hf_dfml.networks.info import Representation, TransformersInfo, network_info
from hf_dfml.networks.linear_on_features import ARCHITECTURE, LinearOnFeatures, with_linear_layer
from hf_dfml.pool.entry import CONFIG_NAME, META_BLOCK, PREPROCESSOR_NAME, WEIGHTS_NAME, MemberError
from hf_dfml.pool.formats.checks import is_count, read_json, reading_block
from hf_dfml.pool.formats.loading import load_teacher
from hf_dfml.pool.formats.reading import is_transformers, read_entry
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.sources.client import HubOptions, looking_for
from hf_dfml.pool.sources.download import download, resolve_revision
from hf_dfml.pool.sources.ids import without_page
from hf_dfml.pool.sources.lock import LOCK_NAME, files_beside, is_folder_name, published_lock, write_lock
from hf_dfml.pool.sources.repository import create_repository, locate, put_together, upload
from hf_dfml.utils.checkpoint import atomic_write, replace_folder, save_tensors
from hf_dfml.utils.images import to_uint8, to_unit
from hf_dfml.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from hf_dfml.pool.sources.client import HubArguments

BLOCK = "hf_dfml_classifier"
"""The block of a `config.json` that makes it a classifier's."""
FORMAT = 1
SUPPORT_NAME = "support.safetensors"
SMALL = 100 << 20
"""Bytes of a pool's members in folders up to which they are stored with the classifier; more are referred to."""
_HUB_ID = re.compile(r"[\w.\-]+/[\w.\-]+(@.+)?")


def write(classifier: Classifier, folder: Path, *, store_support: bool = False, for_elsewhere: bool = False) -> Path:
    """`Classifier.save_pretrained`; `for_elsewhere`: so that it can be loaded on any machine.

    Raises:
        ValueError: as `Classifier.save_pretrained`, or if a member that it works with can be had on this machine only.
    """
    check_folder(folder)
    if classifier.network is None:
        raise ValueError(
            f"head='{classifier.how.head}' cannot be stored: define its `as_network`, or choose another head."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _write_into(temporary, classifier, folder.name, store_support)
        if for_elsewhere and (temporary / LOCK_NAME).is_file():
            _forget_this_machine(temporary)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def read(name: str | Path, device: torch.device | str, **hub: Unpack[HubArguments]) -> Classifier:
    """`Classifier.from_pretrained`."""
    options = HubOptions(**hub)
    folder, id, sha = locate(name, "classifier", options)
    config = read_json(id, folder / CONFIG_NAME)
    block = _check(config, id, str(name))
    with reading_block(id, BLOCK):
        classes, left_out = tuple(block["classes"]), block["left_out"]
        known: dict[str, Any] = {
            "how": Adaptation(**block["how"]),
            "size": _size(block["size"]),
            "origin": Origin(**{**block["origin"], "pool": tuple(block["origin"]["pool"])}),
            "shots": tuple(map(int, block["shots"])),
            "left_out": left_out and Accuracy(*map(int, left_out)),
        }
        seen, has_support = block["seen"], block["support"]
    for extra in [SUPPORT_NAME] * bool(has_support) + [PREPROCESSOR_NAME] * (is_transformers(config) and not seen):
        if sha:
            download(id, extra, sha, options)
    if seen:
        if sha:
            _fetch_members(id, sha, options)
        network: nn.Module = _read_on_members(folder, id, seen, len(classes), device, hub)
    else:
        network = load_teacher(read_entry(id, folder, sha)).network.to(device)
        if network_info(network).num_classes != len(classes):
            raise MemberError(id, f"has {len(classes)} classes but {network_info(network).num_classes} outputs")
    if has_support:
        stored = load_file(folder / SUPPORT_NAME)
        images = stored["images"]
        known["support"] = to_unit(images) if images.dtype == torch.uint8 else images
        known["ways"] = stored["ways"]
    return Classifier(network, classes, **known)


def publish(
    classifier: Classifier,
    repo_id: str,
    *,
    private: bool | None,
    token: str | bool | None,
    branch: str | None,
    message: str,
    store_support: bool,
) -> str:
    """`Classifier.push_to_hub`."""
    options = HubOptions(token=token)
    with put_together(repo_id) as place:
        # First what can fail here; the repository is made when there is something to put into it.
        folder = place / repo_id.split("/")[-1]
        write(classifier, folder, store_support=store_support, for_elsewhere=True)
        address = create_repository(options.api(), repo_id, private)
        atomic_write(folder / CARD_NAME, make_card(classifier, str(address.repo_id)))
        upload(address.repo_id, folder, options, (SUPPORT_NAME, LOCK_NAME), revision=branch, commit_message=message)
    return str(address)


def is_classifier(name: str) -> bool:
    """Whether a folder, `org/name`, `org/name@revision` (with `hf:` before it or not) or page is a stored classifier.

    Of the Hub one file is fetched.

    Raises:
        ValueError: for a page of the Hub that is none of a model, user or collection.
    """
    name = without_page(name)
    on_hub = name.removeprefix("hf:")
    if on_hub == name and Path(name).expanduser().is_dir():
        return _is_classifier(Path(name).expanduser())
    if not _HUB_ID.fullmatch(on_hub):
        return False
    id, _, tag = on_hub.partition("@")
    options = HubOptions()
    try:
        with looking_for(name):
            _, sha = resolve_revision(id, tag or None, options)
        return BLOCK in read_json(id, download(id, CONFIG_NAME, sha, options))
    except MemberError:
        return False


def check_folder(folder: Path) -> None:
    """Refuse to replace anything but a classifier.

    Raises:
        FileExistsError: if the folder holds something else.
    """
    if folder.exists() and not (_is_classifier(folder) or (folder.is_dir() and not any(folder.iterdir()))):
        raise FileExistsError(f"{folder} holds something else than a classifier: choose another folder.")


def label_names(classifier: Classifier) -> list[str]:
    """The names of the classes as other libraries have them.

    Raises:
        ValueError: if the labels are not words or numbers, or two have one name.
    """
    names = [str(label) for label in _json_labels(classifier)]
    if len(set(names)) < len(names):
        raise ValueError(f"Two classes have one name, '{max(names, key=names.count)}': rename one of them.")
    return names


def _write_into(folder: Path, classifier: Classifier, name: str, store_support: bool) -> None:
    network, members = classifier.network, classifier.members
    assert network is not None
    if members:
        config = _on_members(classifier)
    elif isinstance(network_info(network), TransformersInfo):
        config = _transformers_config(classifier, network, folder)
    else:
        config = _timm_config(classifier, network)
    if classifier.how.bn == "transductive":
        # transformers refuses what it does not know: it would normalise by other statistics.
        config["model_type"] = "hf_dfml_transductive_classifier"
    left_out = classifier.left_out
    config[BLOCK] = {
        "format": FORMAT,
        "version": __version__,
        "classes": _json_labels(classifier),
        "size": list(classifier.size),
        "how": asdict(classifier.how),
        "seen": members and members.seen,
        "shots": list(classifier.shots),
        "support": store_support,
        "left_out": left_out and list(left_out),
        "origin": asdict(classifier.origin),
    }
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    save_tensors(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    atomic_write(folder / CONFIG_NAME, json.dumps(config, indent=1) + "\n")
    if members:
        _write_members(members, folder)
    else:
        load_teacher(read_entry(name, folder))  # What could not be read again is refused now.
    if store_support:
        if classifier.support is None or classifier.ways is None:
            raise ValueError("store_support=True: the support images were not stored with this classifier before.")
        images = classifier.support.cpu()
        small = to_uint8(images)
        exact = torch.equal(to_unit(small), images)
        stored = {"images": (small if exact else images).contiguous(), "ways": classifier.ways.cpu()}
        save_tensors(stored, folder / SUPPORT_NAME)
    atomic_write(folder / CARD_NAME, make_card(classifier, name))


def _timm_config(classifier: Classifier, network: nn.Module) -> dict[str, Any]:
    """What timm and transformers read."""
    names, info = label_names(classifier), network_info(network)
    arguments = dict(classifier.origin.model_args)
    if isinstance(network, LinearOnFeatures):
        backbone = network_info(network.backbone)
        if isinstance(backbone, TransformersInfo):
            raise ValueError("Features of a bare network of transformers: adapt the member instead (`hf_dfml.adapt`).")
        own: dict[str, Any] = {"backbone": backbone.architecture}
        taken = {"answers": network.answers, "with_features": network.with_features} if network.answers else {}
        own |= {"flips": network.flips, "mirror_backbone": network.mirror is not None}
        arguments = {**own, **taken, **arguments}
    return {
        "architecture": ARCHITECTURE if isinstance(network, LinearOnFeatures) else info.architecture,
        "num_classes": len(names),
        "num_features": info.num_features,
        "label_names": names,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [3, *classifier.size],
            "fixed_input_size": bool(info.settings.get("fixed_input_size", False)),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            # The whole image, resized without keeping its aspect.
            "crop_mode": "squash",
            "mean": list(info.mean),
            "std": list(info.std),
            "num_classes": len(names),
            "first_conv": info.settings.get("first_conv"),
            "classifier": info.settings.get("classifier"),
        },
    }


def _transformers_config(classifier: Classifier, network: Any, folder: Path) -> dict[str, Any]:
    """What transformers reads of a network of its own; its preprocessor goes into `folder`."""
    names, info, (height, width) = label_names(classifier), network_info(network), classifier.size
    preprocessor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 2,  # Bilinear.
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(info.mean),
        "image_std": list(info.std),
    }
    atomic_write(folder / PREPROCESSOR_NAME, json.dumps(preprocessor, indent=1) + "\n")
    named = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    config = network.config.to_dict()
    # Where it was loaded from: a folder of this machine, or nothing that a reader could use.
    config.pop("_name_or_path", None)
    return config | {"architectures": [info.architecture], **named}


def _on_members(classifier: Classifier) -> dict[str, Any]:
    names = label_names(classifier)
    return {"model_type": "hf_dfml_pool_classifier", "num_classes": len(names), "label_names": names}


def _write_members(members: AllMembers, folder: Path) -> None:
    """The pool's lock file, and its members in folders if they are small."""
    pool = members.pool
    if not isinstance(pool, ModelPool):
        if pool.lock(folder) is None:
            raise ValueError("The members of this pool only answer, at an address that is not stored: save the pool.")
        return
    local = {entry.id: entry.location for entry in pool if entry.revision is None and entry.location}
    files = {
        (id, name): path / name
        for id, path in local.items()
        for name in (CONFIG_NAME, WEIGHTS_NAME, PREPROCESSOR_NAME)
        if is_folder_name(id) and (path / name).is_file()
    }
    entries = list(pool)
    if sum(path.stat().st_size for path in files.values()) <= SMALL:
        for (id, name), path in files.items():
            (folder / id).mkdir(exist_ok=True)
            shutil.copyfile(path, folder / id / name)
        copied = {id for id, _ in files}
        entries = [replace(entry, location=folder / entry.id) if entry.id in copied else entry for entry in entries]
    write_lock(entries, folder)


def _read_on_members(
    folder: Path, id: str, seen: Any, outputs: int, device: torch.device | str, hub: HubArguments
) -> LinearOnFeatures:
    if seen not in get_args(Representation):
        raise MemberError(id, f"takes '{str(seen)[:80]}' of a pool's members, expected features, answers or both")
    options: HubArguments = {**hub, "revision": None}
    pool = ModelPool.from_lock(folder / LOCK_NAME, **options).to(device)
    state = load_file(folder / WEIGHTS_NAME, device=str(device))
    if state.keys() != {"fc.weight", "fc.bias"} or len(state["fc.bias"]) != outputs:
        raise MemberError(id, f"{WEIGHTS_NAME} is not a linear layer of {outputs} outputs")
    return with_linear_layer(AllMembers(pool, seen), state["fc.weight"], state["fc.bias"])


def _fetch_members(id: str, sha: str, options: HubOptions) -> None:
    """Download the lock file and the members that are stored beside it."""
    for name in files_beside(id, download(id, LOCK_NAME, sha, options)):
        download(id, name, sha, options)


def _forget_this_machine(folder: Path) -> None:
    """Make the lock file one for other machines."""
    lock = folder / LOCK_NAME
    for row in read_json(folder.name, lock)["members"]:
        if "revision" not in row and not (folder / row["id"]).is_dir():
            raise ValueError(
                f"The pool's member {row['id']} is neither on the Hub nor small: push the pool first (`hf-dfml pool "
                "push`), and adapt it by its name there."
            )
    atomic_write(lock, published_lock(lock))


def _is_classifier(folder: Path) -> bool:
    try:
        return BLOCK in read_json(folder.name, folder / CONFIG_NAME)
    except MemberError:
        return False


def _check(config: dict[str, Any], id: str, name: str) -> dict[str, Any]:
    block = config.get(BLOCK)
    if block is None and META_BLOCK in config:
        raise MemberError(
            id,
            "is a meta-model, which has no classes before it is adapted: `hf-dfml adapt "
            f"{name} --support PHOTOS --save my-classifier` makes a classifier of it",
        )
    if not isinstance(block, dict):
        raise MemberError(
            id, f"is not a classifier: its config.json has no block '{BLOCK}' (`hf-dfml adapt --save` makes one)"
        )
    written = block.get("format")
    if written != FORMAT:
        raise MemberError(
            id,
            f"was written by hf_dfml {block.get('version', '(unknown)')} in format {written}, this is {__version__} "
            f"and reads format {FORMAT}: install a newer version (pip install --upgrade hf_dfml)",
        )
    return block


def _size(sides: Any) -> tuple[int, int]:
    if not (isinstance(sides, list) and len(sides) == 2 and all(is_count(side) and side <= 4096 for side in sides)):
        raise ValueError(f"size is {sides!r}, expected height and width of 1 to 4096 pixels")
    return sides[0], sides[1]


def _json_labels(classifier: Classifier) -> list[Any]:
    for label in classifier.classes:
        if not isinstance(label, str | int | float):
            raise ValueError(f"Label {label!r} is a {type(label).__name__}: expected words or numbers to store them.")
    return list(classifier.classes)
