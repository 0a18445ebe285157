"""The last part of a network, to train it alone: which parameters it has, and the network cut in two before it.

What comes before the cut is the same for an image in every pass, so that it is computed once.
"""

from __future__ import annotations

import copy
import re
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from hf_dfml.networks.info import network_info

Trained = Literal["head", "last_stage", "all"]
"""What is trained of a network: its classifier; also its last stage; everything."""

DROP_PATHS = ("DropPath", "DropBlock2d", "PatchDropout", "PatchDropoutWithIndices", "StochasticDepth")
"""Ends of the names of layers (of timm, torchvision, transformers) that drop whole parts in training mode."""

LAST_SHARE = 0.25
"""The last stage is made of so many groups of layers, from the back, that it has this share of the weights."""
_GROUP = re.compile(r"\w+(?:\.\d+)?")


def trained_parameters(network: nn.Module, trained: Trained) -> list[str]:
    """Names of the parameters that are trained, in the order of the network.

    Groups of layers are timm's (`group_matcher`): the stages of a convolutional network, the blocks of a transformer.

    Raises:
        ValueError: for another `trained`.
    """
    info = network_info(network)
    parameters = dict(network.named_parameters())
    if trained == "all":
        return list(parameters)
    head = [name for name in parameters if info.in_classifier(name)]
    if trained == "head":
        return head
    if trained != "last_stage":
        raise ValueError(f"trained='{trained}': expected head, last_stage or all.")
    body = {name: value.numel() for name, value in parameters.items() if name not in head}
    groups = _groups(network)
    chosen: set[Any] = set()
    for group in reversed(list(dict.fromkeys(groups[name] for name in body))):
        chosen.add(group)
        if sum(size for name, size in body.items() if groups[name] in chosen) >= LAST_SHARE * sum(body.values()):
            break
    return [name for name in parameters if name in head or groups[name] in chosen]


def freeze(network: nn.Module, trained: Trained) -> None:
    """Let gradients flow to the parameters of `trained_parameters` and to no others."""
    kept = set(trained_parameters(network, trained))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in kept)


def train_mode(network: nn.Module) -> None:
    """Training mode; batch norm whose weights are frozen keeps its statistics.

    Nothing is dropped at random: that would come from PyTorch's global numbers, which a resumed run does not have.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, _DropoutNd) or type(module).__name__.endswith(DROP_PATHS):
            module.eval()
        if isinstance(module, _BatchNorm) and not any(value.requires_grad for value in module.parameters()):
            module.train(not module.affine)


class Split(nn.Module):
    """The layers before the first trained one, and a network of the others; see `split`.

    Attributes:
        rest: takes what `forward` gives, and has the API of the whole network.
    """

    def __init__(self, whole: nn.Module, cut: str, rest: nn.Module) -> None:
        super().__init__()
        self.whole, self.cut, self.rest = whole, cut, rest

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised images `(B, C, H, W)` -> what the first trained layer is given."""
        return _before(self.whole, self.cut, pixels)[0]

    def join(self) -> None:
        """Put the weights of `rest` back into the whole network."""
        self.whole.load_state_dict(self.whole.state_dict() | self.rest.state_dict())


def split(network: nn.Module) -> Split | None:
    """A frozen network cut before the first layer that is trained; None where it cannot be cut.

    The layers before the cut become identities in a copy. A network that does more between its layers than to call
    them in turn, as most transformers do before their first block, gives other logits then, and is not cut.
    """
    frozen = [name for name, value in network.named_parameters() if not value.requires_grad]
    first = next((name for name, value in network.named_parameters() if value.requires_grad), "")
    parents = [first.rsplit(".", depth)[0] for depth in range(first.count("."), 0, -1)]
    cut = next((name for name in parents if not any(each.startswith(f"{name}.") for each in frozen)), None)
    if not frozen or cut is None:
        return None
    was_training = network.training
    network.eval()
    try:
        sample = torch.linspace(0, 1, 2 * 3 * network_info(network).image_size ** 2)
        pixels = sample.view(2, 3, *[network_info(network).image_size] * 2).to(next(network.parameters()))
        with torch.no_grad():
            given, done = _before(network, cut, pixels)
            rest = copy.deepcopy(network)
            for name in done:
                rest.set_submodule(name, nn.Identity())
            same = torch.allclose(rest(given), network(pixels), rtol=1e-3, atol=1e-4)
    except Exception:  # An identity in place of a layer makes an architecture raise anything at all.
        return None
    finally:
        network.train(was_training)
    return Split(network, cut, rest) if same and set(rest.state_dict()) <= set(network.state_dict()) else None


class _ReachedError(Exception):
    """The forward pass has come to the cut."""


def _before(network: nn.Module, cut: str, pixels: Tensor) -> tuple[Tensor, list[str]]:
    """What the module `cut` is given, and the outermost modules that have ended before it."""
    done: list[str] = []
    seen: list[Tensor] = []

    def stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise _ReachedError

    hooks = [network.get_submodule(cut).register_forward_pre_hook(stop)]
    for name, module in network.named_modules():
        hooks.append(module.register_forward_hook(lambda *_, name=name: done.append(name)))
    try:
        network(pixels)
    except _ReachedError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    outermost = [name for name in done if not any(name.startswith(f"{other}.") for other in done)]
    return seen[0], outermost


def _groups(network: nn.Module) -> dict[str, Any]:
    """A group of layers for each parameter."""
    matcher = getattr(network, "group_matcher", None)
    if matcher is not None:
        from timm.models import group_parameters

        return group_parameters(network, matcher(coarse=True), reverse=True)
    return {name: _GROUP.match(name)[0] for name, _ in network.named_parameters()}  # type: ignore[index]
