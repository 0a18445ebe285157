"""From a state dict and class names to a pool member: `hf-dfml pool add WEIGHTS --arch NAME --labels a,b,c`.

This is the only place where weights other than safetensors are opened: a `.pt` file is the user's own, named by hand,
and read with `torch.load(weights_only=True)`, which makes tensors of it and runs no code. Members of a pool, which
come from strangers, are safetensors or are refused.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_dfml.networks import create_network
from hf_dfml.networks.build import OURS
from hf_dfml.networks.info import network_info
from hf_dfml.pool.building.writing import member_config, write_member
from hf_dfml.pool.entry import MemberError, PoolEntry
from hf_dfml.pool.formats.checks import check_labels, is_lfs_pointer, one_line
from hf_dfml.pool.formats.loading import check_forward, load_teacher, misfit
from hf_dfml.pool.formats.reading import read_entry
from hf_dfml.utils.json_files import read_json

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
"""Keys of a training checkpoint that hold the network's tensors."""
_PREFIXES = ("module.", "model.", "_orig_mod.", "timm_model.")
"""What DataParallel, Lightning, torch.compile and transformers put before every name."""
_COUNTERPARTS = {
    r"mobilenet_v2": "mobilenetv2_100",
    r"mobilenet_v3_(large|small)": r"mobilenetv3_\1_100",
    r"efficientnet_v2_([sml])": r"efficientnetv2_\1",
    r"vit_b_(\d+)": r"vit_base_patch\1_224",
    r"vit_l_(\d+)": r"vit_large_patch\1_224",
    r"swin_t": "swin_tiny_patch4_window7_224",
    r"swin_s": "swin_small_patch4_window7_224",
    r"swin_b": "swin_base_patch4_window7_224",
}
"""Networks that timm has under another name than torchvision. RegNets are not among them: their tensors are in another
order."""


def add_member(
    weights: Path | str,
    *,
    arch: str,
    labels: Sequence[str],
    output: Path | str,
    id: str | None = None,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    model_args: dict[str, Any] | None = None,
) -> PoolEntry:
    """Make a pool member, in timm's layout, of a trained network's state dict.

    The member appears in the pool when it has been loaded as one and has given the same answers as the network that
    the weights come from.

    Args:
        weights: a `.safetensors` file, or a file of `torch.save` that holds a state dict or a training checkpoint.
        arch: a name of timm's, one of ours, or one of torchvision's (`torchvision:NAME` where both have it).
        labels: class names in the order of the network's outputs.
        output: the pool's folder.
        id: the member's name; by default that of the file.
        image_size: height and width that the network was trained on; by default the architecture's own.
        mean: per channel, of pixels in [0, 1], subtracted before the network; by default the architecture's own.
        std: likewise, divided by.
        model_args: further arguments of the architecture, as they were given to `timm.create_model`.

    Returns:
        The member's entry.

    Raises:
        FileNotFoundError: if there is no such file.
        FileExistsError: if the pool has a member of that name.
        ValueError: if the file holds no state dict, or one of another network; the message names the tensor.
    """
    weights = Path(weights).expanduser()
    if not weights.is_file():
        raise FileNotFoundError(f"There is no file {weights}.")
    id = id or weights.stem
    if not re.fullmatch(r"\w[\w.-]*", id):
        raise ValueError(f"id '{id}' is not a valid name of a member: expected letters, digits, '-', '_' and '.'.")
    names = list(check_labels(id, list(labels), len(labels)))
    if len(names) < 2:
        raise ValueError(f"labels are {names}: expected at least 2 class names.")
    folder = Path(output).expanduser().absolute() / id
    if folder.exists():
        raise FileExistsError(f"{folder} exists: choose another name with --id, or remove it.")
    state = read_state(weights)
    network, source, arch, model_args = _with_weights(state, arch, len(names), image_size, model_args or {})
    own = network_info(network)
    size = image_size or own.image_size
    config = member_config(
        network,
        arch,
        names,
        image_size=size,
        mean=mean or own.mean,
        std=std or own.std,
        model_args=model_args,
    )
    if image_size is None or mean is None or std is None:
        used = config["pretrained_cfg"]
        logger.warning(
            "%s is given images of %d pixels with mean %s and std %s; if it was trained on others, name them "
            "(--image_size, --mean, --std).",
            id,
            size,
            used["mean"],
            used["std"],
        )

    def verify(written: Path) -> None:
        _compare(read_entry(id, written), source)

    write_member(folder, network, config, verify)
    return read_entry(id, folder)


def read_labels(text: str) -> list[str]:
    """Class names from a comma list, or from a file: a JSON list, a JSON object of indices and names, or lines.

    Raises:
        ValueError: if a JSON file holds neither.
    """
    path = Path(text).expanduser()
    if not os.path.isfile(path):  # noqa: PTH113  (`Path.is_file` raises for a list longer than names of files may be)
        return [name.strip() for name in text.split(",")]
    if path.suffix != ".json":
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    names = read_json(path)
    if isinstance(names, dict) and sorted(names) == sorted(map(str, range(len(names)))):
        return [names[str(index)] for index in range(len(names))]
    if not isinstance(names, list):
        raise ValueError(f"{path} holds no class names: expected a list, or an object that numbers them from 0.")
    return names


def read_state(path: Path) -> State:
    """The tensors of a file, unwrapped from training checkpoints and without prefixes of wrapper modules.

    Raises:
        ValueError: if the file is no state dict, or cannot be read without running code that it brings along.
    """
    if is_lfs_pointer(path):
        raise ValueError(f"{path} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`.")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, which would run code: save the state dict alone, "
            f"torch.save(network.state_dict(), FILE)."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {one_line(error)}.") from error
    while isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    items = content.items() if isinstance(content, dict) else ()
    state = {name: value for name, value in items if isinstance(value, Tensor)}
    if not state or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path} holds no state dict: expected tensors by name, or one of {', '.join(_WRAPPERS)}.")
    while prefix := next((start for start in _PREFIXES if all(name.startswith(start) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _with_weights(
    state: State, arch: str, num_classes: int, image_size: int | None, model_args: dict[str, Any]
) -> tuple[nn.Module, nn.Module, str, dict[str, Any]]:
    """The member's network, the network that the weights come from, the member's architecture and arguments."""
    name = arch.removeprefix("torchvision:")
    problem = None
    if name == arch and timm.is_model(name):
        network, model_args = _timm_network(name, num_classes, image_size, model_args)
        problem = misfit(_shapes(network.state_dict()), _shapes(state))
        if problem is None:
            network.load_state_dict(state, strict=False)  # Counters of batch norm steps may be absent.
            return network, network, name, model_args
        _check_outputs(lambda count: _timm_network(name, count, image_size, model_args)[0], state, num_classes)
        if not _torchvision_has(name):
            raise ValueError(f"The weights do not fit '{name}' with {num_classes} classes: {problem}.")
    elif not _torchvision_has(name):
        expected = ", ".join(OURS)
        raise ValueError(
            f"Architecture '{arch}' is unknown: expected {expected}, a name from timm.list_models(), or one of "
            f"torchvision's classifiers."
        )
    try:
        return _from_torchvision(state, name, num_classes, image_size, model_args)
    except ValueError as error:
        if problem is None:
            raise
        raise ValueError(f"The weights do not fit timm's '{name}': {problem}. {error}") from error


def _from_torchvision(
    state: State, name: str, num_classes: int, image_size: int | None, model_args: dict[str, Any]
) -> tuple[nn.Module, nn.Module, str, dict[str, Any]]:
    import torchvision

    size = {"image_size": image_size} if image_size and name.startswith("vit_") else {}

    def build(count: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            return torchvision.models.get_model(name, weights=None, num_classes=count, **size).eval()

    source = build(num_classes)
    if problem := misfit(_shapes(source.state_dict()), _shapes(state)):
        _check_outputs(build, state, num_classes)
        raise ValueError(f"The weights do not fit torchvision's '{name}' with {num_classes} classes: {problem}.")
    source.load_state_dict(state, strict=False)
    renamed = (re.sub(old, new, name) for old, new in _COUNTERPARTS.items() if re.fullmatch(old, name))
    arch = next(renamed, name)
    if not timm.is_model(arch):
        raise ValueError(f"torchvision's '{name}' has no counterpart in timm that its weights could be converted to.")
    network, arguments = _timm_network(arch, num_classes, image_size, model_args)
    if (epsilon := _epsilon(source)) != _epsilon(network) and epsilon is not None:
        network, arguments = _timm_network(arch, num_classes, image_size, model_args | {"bn_eps": epsilon})
    network.load_state_dict(_in_order(source.state_dict(), network.state_dict(), name, arch))
    return network, source, arch, arguments


def _check_outputs(build: Callable[[int], nn.Module], state: State, num_classes: int) -> None:
    """Refuse weights that fit but for the number of outputs by what the user sees of it: the number of labels.

    Args:
        build: the architecture with so many outputs.
        state: the weights, which do not fit `build(num_classes)`.
        num_classes: the number of labels.

    Raises:
        ValueError: if they fit with another number of outputs.
    """
    stored = _shapes(state)
    wanted = _shapes(build(num_classes).state_dict())
    resized = {name for name, shape in wanted.items() if stored.get(name, shape) != shape}
    counts = {stored[name][0] for name in resized if stored[name] and stored[name][1:] == wanted[name][1:]}
    for count in counts if len(counts) == 1 else ():
        if count > 1 and misfit(_shapes(build(count).state_dict()), stored) is None:
            raise ValueError(
                f"The network of these weights has {count} outputs, and there are {num_classes} labels: give one "
                "class name for each output, in the order of the outputs (--labels)."
            )


def _timm_network(
    arch: str, num_classes: int, image_size: int | None, model_args: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """A network of timm's or ours, and the arguments that its config must name."""
    default = timm.get_pretrained_cfg(arch, allow_unregistered=True)
    if image_size and default and default.fixed_input_size and arch not in OURS:
        model_args = model_args | {"img_size": image_size}
    settings: dict[str, Any] = {"mean": default.mean, "std": default.std} if default else {}
    size = image_size or (default.input_size[-1] if default else 224)
    try:
        with torch.random.fork_rng(devices=[]):
            network = create_network(arch, num_classes=num_classes, image_size=size, **settings, **model_args)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = f"timm cannot build '{arch}' for {size} pixels with {model_args}: {one_line(error)}."
        raise ValueError(reason) from error
    return network.eval(), model_args


def _in_order(source: State, target: State, name: str, arch: str) -> State:
    """The tensors of `source` under the names of `target`: of each size, the first becomes the first, and so on."""
    found: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for key, tensor in source.items():
        if tensor.is_floating_point():
            found[_size(tensor)].append(key)
    moved = {}
    for key, tensor in target.items():
        if not tensor.is_floating_point():
            moved[key] = tensor
        elif not found[_size(tensor)]:
            shape = list(tensor.shape)
            raise ValueError(f"torchvision's '{name}' has nothing for {key} {shape} of timm's '{arch}'.")
        else:
            moved[key] = source[found[_size(tensor)].pop(0)].reshape(tensor.shape)
    left = [key for keys in found.values() for key in keys]
    if left:
        raise ValueError(f"timm's '{arch}' has no place for {left[0]} of torchvision's '{name}'.")
    return moved


def _size(tensor: Tensor) -> tuple[int, ...]:
    """Outputs and numbers: a linear layer and a 1x1 convolution hold the same."""
    return (*tensor.shape[:1], tensor.numel())


def _epsilon(network: nn.Module) -> float | None:
    return next((layer.eps for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)), None)


def _torchvision_has(name: str) -> bool:
    try:
        import torchvision
    except ImportError:
        return False
    return name in torchvision.models.list_models(module=torchvision.models)


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@torch.no_grad()
def _compare(entry: PoolEntry, source: nn.Module) -> None:
    """Load the member as a pool does and hold its answers against the network's."""
    try:
        teacher = load_teacher(entry)
        check_forward(teacher)
    except MemberError as error:
        raise ValueError(f"The weights make no pool member: {error.reason}.") from error
    assert entry.input_size is not None
    images = torch.rand(4, *entry.input_size, generator=torch.Generator().manual_seed(0))
    expected = source.eval()((images - teacher.mean) / teacher.std)
    distance = float((teacher(images) - expected).abs().max() / expected.abs().max().clamp_min(1e-8))
    if not distance < 1e-3:
        raise ValueError(
            f"As a member the network answers otherwise than the network that the weights come from: logits differ by "
            f"{distance:.1%} of the largest one. timm's '{entry.architecture}' computes something else."
        )
