"""Which part of a student learns a pool's answers, and what its frozen layers give, computed once for each image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from hf_dfml.learning.lora import adapters_of, merged, with_adapters
from hf_dfml.networks.beside import Branch, middle
from hf_dfml.networks.functional import normalise
from hf_dfml.networks.info import network_info
from hf_dfml.networks.stages import Split, freeze, split, train_mode
from hf_dfml.utils.images import resize, to_unit

TrainedPart = Literal["all", "last_stage", "lora", "head", "beside"]
"""Everything; the last stage and the heads; low-rank adapters of all layers and the heads; the heads alone; a branch
beside the frozen network, and the heads."""

HIDDEN, WIDTH = 128, 256
"""Of the branch."""
PIXELS_AT_ONCE = 8 * 224 * 224


class Student:
    """A network of which a part learns.

    Args:
        model: the network; what is not trained of it is frozen.
        trained: see `TrainedPart`.
        generator: seeds the branch or the adapters, on the CPU.
        rank: of the adapters.

    Attributes:
        trained: see above.
        branch: what learns beside the network; None where the network itself does.
        adapted: the network with its adapters, which learn; None where there are none.
        width: length of the features that the heads are on.
        seen: what the frozen layers give of the training images, in half precision; empty where these are run anew in
            every pass. Set by `look`.
    """

    def __init__(self, model: nn.Module, trained: TrainedPart, generator: torch.Generator, rank: int) -> None:
        self.model, self.trained = model, trained
        self.width = network_info(model).num_features
        self.seen = torch.empty(0)
        self.branch: Branch | None = None
        self.adapted: nn.Module | None = None
        self._parts: Split | None = None
        if trained == "beside":
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                self.branch = Branch(self._middle(model), HIDDEN, WIDTH).to(next(model.parameters()).device)
            self.width = WIDTH
        if trained in ("head", "beside", "lora"):
            model.requires_grad_(False).eval()
        if trained == "lora":
            self.adapted = with_adapters(model, rank, generator)
        if trained == "last_stage":
            freeze(model, "last_stage")
            self._parts = split(model)

    @staticmethod
    @torch.no_grad()
    def _middle(model: nn.Module) -> int:
        """Channels of the maps that a branch takes."""
        size = network_info(model).image_size
        images = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
        was_training = model.training
        maps, _ = network_info(model.eval()).maps_and_features(images)
        model.train(was_training)
        return maps.shape[1]

    def parameters(self) -> Iterable[nn.Parameter]:
        """What is trained."""
        if self._parts is not None:
            return (value for value in self._parts.rest.parameters() if value.requires_grad)
        learning = next((each for each in (self.branch, self.adapted) if each is not None), self.model)
        return (value for value in learning.parameters() if value.requires_grad)

    @torch.no_grad()
    def look(self, images: Tensor) -> None:
        """Compute `seen` of the training images `(N, 3, H, W)` uint8."""
        if self.trained in ("all", "lora") or (self.trained == "last_stage" and self._parts is None):
            return
        self.model.eval()
        batch = max(1, PIXELS_AT_ONCE // network_info(self.model).image_size ** 2)
        look: Callable[[Tensor], Tensor] = self._parts or network_info(self.model).features
        if self.trained == "beside":
            info = network_info(self.model)
            look = lambda pixels: middle(info.maps_and_features(pixels)[0])  # noqa: E731
        self.seen = torch.cat([look(pixels_of(self.model, to_unit(part))).half() for part in images.split(batch)])

    def features(self, given: Tensor) -> Tensor:
        """`(B, width)` of rows of `seen`, or where there are none of images `(B, 3, H, W)` in [0, 1]."""
        if self.branch is not None:
            return self.branch(given)
        if self._parts is not None:
            return network_info(self._parts.rest).features(given)
        network = self.model if self.adapted is None else self.adapted
        return given if self.trained == "head" else features_of(network, given)

    def train(self) -> None:
        """Training mode of what learns; adapters have none, and the network around them is used as it is."""
        if self.branch is not None:
            self.branch.train()
        elif self.trained in ("all", "last_stage"):
            train_mode(self._parts.rest if self._parts is not None else self.model)

    def eval(self) -> None:
        """The network as it is used, with what has been learnt."""
        if self.branch is not None:
            self.branch.eval()
        if self._parts is not None:
            self._parts.rest.eval()
            self._parts.join()
        self.model.eval()

    def network(self) -> nn.Module:
        """The network with what has been learnt: itself, or a copy with the adapters in its weights."""
        return self.model if self.adapted is None else merged(self.model, self.adapted)

    def state_dict(self) -> dict[str, Tensor]:
        """What learns outside of the network: a branch or adapters."""
        if self.branch is not None:
            return self.branch.state_dict()
        return {} if self.adapted is None else adapters_of(self.adapted)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave, and the weights of the network where they have been loaded anew."""
        self.restore()
        if self.branch is not None:
            self.branch.load_state_dict(state)
        elif self.adapted is not None:
            self.adapted.load_state_dict(state, strict=False)

    def restore(self) -> None:
        """Take over the weights of the network where they have been loaded anew."""
        if self._parts is not None:
            self._parts.rest.load_state_dict(self.model.state_dict(), strict=False)


def pixels_of(model: nn.Module, images: Tensor) -> Tensor:
    """Images `(B, 3, h, w)` in [0, 1] -> what the network takes: of its size and on its own scale."""
    pixels = normalise(model, resize(images, network_info(model).image_size))
    return pixels.contiguous(memory_format=torch.channels_last) if pixels.device.type == "cpu" else pixels


def features_of(model: nn.Module, images: Tensor) -> Tensor:
    """Penultimate features `(B, D)` of images `(B, 3, H, W)` in [0, 1]; batch norm is in the network's own mode."""
    return network_info(model).features(pixels_of(model, images))
