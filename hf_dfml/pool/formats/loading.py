"""From an entry to a teacher, trusting nothing: only safetensors is opened, and only what fits the config is used.

The network is first built without memory (on the meta device) and compared with the header of the weights file, so a
config that describes a giant, or a file that describes one, is refused before anything is allocated.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hf_dfml.networks.info import network_info
from hf_dfml.pool.entry import WEIGHTS_NAME, MemberError, PoolEntry
from hf_dfml.pool.formats import timm_layout as timm_members
from hf_dfml.pool.formats import transformers_layout as transformers_members
from hf_dfml.pool.formats.checks import is_lfs_pointer, one_line
from hf_dfml.pool.teacher import Teacher

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
Shapes = dict[str, tuple[int, ...]]
_WRAPPER = "timm_model."
"""Before every name in the file where transformers has saved a timm network (`TimmWrapperForImageClassification`)."""


def load_teacher(entry: PoolEntry) -> Teacher:
    """Load a member whose files are in `entry.location`.

    Raises:
        MemberError: one line that names the member and says why it cannot be used.
    """
    if entry.problem is not None:
        raise MemberError(entry.id, entry.problem)
    if entry.location is None or not entry.resolved:
        raise ValueError(f"{entry.id} is not on this disk yet: load it through its pool, which fetches it.")
    weights = find_weights(entry.id, entry.location)
    shapes = _read_shapes(entry.id, weights)
    # Constructors draw initial weights; the caller's random numbers must not depend on which members were loaded.
    with torch.random.fork_rng(devices=[]):
        if entry.library == "transformers":
            network = _load_transformers(entry, weights, shapes)
        else:
            network = _load_timm(entry, weights, shapes)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise MemberError(entry.id, f"tensor {name} in {WEIGHTS_NAME} has values that are NaN or infinite")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise MemberError(entry.id, f"variance {name} in {WEIGHTS_NAME} is negative: every answer would be NaN")
    return Teacher(entry, network)


@torch.no_grad()
def check_forward(teacher: Teacher) -> None:
    """Classify an image of the member's own size, as every method does.

    Raises:
        MemberError: if that fails, or if the logits or features are not what the entry says.
    """
    id, shape = teacher.entry.id, teacher.entry.input_size
    assert shape is not None
    image = torch.linspace(0, 1, math.prod(shape), device=teacher.device).view(1, *shape)
    try:
        logits, features = teacher(image), teacher.features(image)
        classifiers = network_info(teacher.network).classifiers
    except Exception as error:  # A network of unknown origin raises anything at all.
        size = "x".join(map(str, shape))
        raise MemberError(id, f"cannot classify an image of its own size {size}: {one_line(error)}") from error
    if not isinstance(logits, Tensor) or logits.shape != (1, teacher.num_classes):
        found = list(logits.shape[1:]) if isinstance(logits, Tensor) else type(logits).__name__
        raise MemberError(id, f"has {teacher.num_classes} classes but its output for an image is {found}")
    if not classifiers:
        raise MemberError(id, f"its network '{teacher.architecture}' has no layer that is its classifier")
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 1:
        found = list(features.shape[1:]) if isinstance(features, Tensor) else type(features).__name__
        raise MemberError(id, f"its features of an image are {found}, expected one vector")
    if not bool(torch.isfinite(logits).all() and torch.isfinite(features).all()):
        raise MemberError(id, "its output for an image of values in [0, 1] is NaN or infinite")


def build_network(entry: PoolEntry) -> nn.Module:
    """The network that the entry's config describes, with random weights.

    Raises:
        MemberError: if it cannot be built.
    """
    return transformers_members.build(entry) if entry.library == "transformers" else timm_members.build(entry)


def find_weights(id: str, folder: Path) -> Path:
    """The member's safetensors file.

    Raises:
        MemberError: if there is none, in particular if the weights are a pickle.
    """
    path = folder / WEIGHTS_NAME
    if path.is_file():
        return path
    raise MemberError(id, missing_weights(file.name for file in folder.iterdir()))


def missing_weights(files: Iterable[str]) -> str:
    """Why a member with these files has no usable weights."""
    files = sorted(files)
    if f"{WEIGHTS_NAME}.index.json" in files:
        return f"its weights are split over several files; expected one {WEIGHTS_NAME}"
    pickles = [name for name in files if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        return (
            f"its weights are a pickle ({pickles[0]}), which is never opened; expected {WEIGHTS_NAME} "
            "(timm.models.save_for_hf(..., safe_serialization=True), or `hf-dfml pool add`)"
        )
    return f"has no {WEIGHTS_NAME}"


def _load_timm(entry: PoolEntry, weights: Path, shapes: Shapes) -> nn.Module:
    network = _skeleton(entry)
    like = network.state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in like.items()}
    prefix = _WRAPPER if shapes and all(name.startswith(_WRAPPER) for name in shapes) else ""
    shapes = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    grey = [name for name in shapes.keys() & wanted.keys() if _sees_grey(shapes[name], wanted[name])]
    if entry.channels == "grey":
        shapes |= {name: wanted[name] for name in grey}
    if problem := misfit(wanted, shapes):
        raise MemberError(entry.id, f"tensors do not fit the config: {problem}")
    state = _read_tensors(entry.id, weights, like, prefix)
    if entry.channels == "grey":
        # The network sees the mean of the three channels; zeros around an image stay zeros.
        state |= {name: state[name].expand(wanted[name]) / 3 for name in grey}
    _assign(network, state)
    if _has_meta_tensors(network):
        # Some networks compute tensors that they do not store: those need a network built in earnest.
        network = timm_members.build(entry)
        _assign(network, state)
    return network


def _sees_grey(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether these are the weights of a first convolution over one channel where one over RGB is wanted."""
    return len(stored) == len(wanted) == 4 and stored[1] == 1 and wanted == (stored[0], 3, *stored[2:])


def _skeleton(entry: PoolEntry) -> nn.Module:
    try:
        with torch.device("meta"):
            return timm_members.build(entry)
    except MemberError:
        # timm before 1.0.30 cannot build all architectures without memory. One whose arguments are words, switches
        # and rates is as large as its name says in timm, so that it may be built with memory.
        if not all(
            isinstance(value, str) or (isinstance(value, int | float) and 0 <= value <= 1)
            for value in entry.model_args.values()
        ):
            raise
        return timm_members.build(entry)


def _assign(network: nn.Module, state: dict[str, Tensor]) -> None:
    network.load_state_dict(state, strict=False, assign=True)
    for module in network.modules():
        counter = getattr(module, "num_batches_tracked", None)
        if isinstance(counter, Tensor) and counter.is_meta:
            module.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))


def _has_meta_tensors(network: nn.Module) -> bool:
    held = [tensor for tensor in (*network.parameters(), *network.buffers())]
    # Tensors that a module keeps as a plain attribute, neither parameter nor buffer.
    held += [value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return any(tensor.is_meta for tensor in held)


def _load_transformers(entry: PoolEntry, weights: Path, shapes: Shapes) -> nn.Module:
    with torch.device("meta"):
        network = transformers_members.build(entry)
    # transformers renames old tensors while loading, so only the sizes can be compared beforehand.
    described = sum(tensor.numel() for tensor in network.state_dict().values())
    stored = sum(math.prod(shape) for shape in shapes.values())
    if described > 1.1 * stored + 1000:
        reason = f"it describes {described:,} numbers, {WEIGHTS_NAME} has {stored:,}"
        raise MemberError(entry.id, f"tensors do not fit the config: {reason}")
    outputs = getattr(network.config, "num_labels", None)
    if outputs != entry.num_classes:
        raise MemberError(entry.id, f"has {entry.num_classes} label names but {outputs} classes")
    state = _read_tensors(entry.id, weights, network.state_dict(), all_names=True)
    return transformers_members.load(entry, network, state)


def _read_shapes(id: str, path: Path) -> Shapes:
    """Names and shapes from the header; safetensors itself refuses a header that the file's length contradicts."""
    if is_lfs_pointer(path):
        raise MemberError(id, f"{path.name} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise MemberError(id, f"{path.name} is damaged or cut off ({one_line(error)})") from error


def _read_tensors(
    id: str, path: Path, like: dict[str, Tensor], prefix: str = "", *, all_names: bool = False
) -> dict[str, Tensor]:
    """The network's tensors, those of floating point in float32, copied out of the file's memory map.

    Args:
        id: of the member.
        path: the file.
        like: the network's own.
        prefix: of their names in the file.
        all_names: whether others are taken too: of some, transformers makes the network's.
    """
    state = {}
    try:
        with safe_open(path, framework="pt") as file:
            for stored in file.keys():  # noqa: SIM118
                name = stored.removeprefix(prefix)
                if name not in like and not all_names:
                    continue
                tensor = file.get_tensor(stored)
                wanted = like.get(name, tensor)
                if wanted.is_floating_point() and not tensor.is_floating_point():
                    kind = str(tensor.dtype).removeprefix("torch.")
                    reason = f"tensor {name} in {path.name} is {kind}, expected floating-point numbers"
                    raise MemberError(id, f"{reason} (quantised weights are not supported)")
                state[name] = tensor.to(torch.float32 if wanted.is_floating_point() else wanted.dtype, copy=True)
    except MemberError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise MemberError(id, f"{path.name} cannot be read ({one_line(error)})") from error
    return state


def misfit(wanted: Shapes, stored: Shapes) -> str | None:
    """How stored tensors differ from those of a network, on one line; None where they are its state dict.

    Args:
        wanted: names and shapes of the network's state dict; counters of batch norm steps may be absent.
        stored: names and shapes of the tensors at hand.
    """
    missing = [name for name in wanted if name not in stored and not _is_counter(name)]
    extra = [name for name in stored if name not in wanted]
    wrong = [name for name in wanted if name in stored and stored[name] != wanted[name]]
    if wrong:
        name = wrong[0]
        found = f"{name} is {list(stored[name])}, expected {list(wanted[name])}"
    elif missing:
        name = missing[0]
        found = f"{name} is missing"
        near = [other for other in extra if stored[other] == wanted[name]]
        nearest = difflib.get_close_matches(name, near or extra, 1, cutoff=0)
        if nearest:
            found += f" (perhaps named {nearest[0]} here)"
    elif extra:
        found = f"{extra[0]} is not part of the network"
    else:
        return None
    more = len(missing) + len(extra) + len(wrong) - 1
    return found + (f" (and {more} more)" if more else "")


def _is_counter(name: str) -> bool:
    # Batch norm's step counter plays no part in eval mode, and some exporters leave it out.
    return name.endswith("num_batches_tracked")
