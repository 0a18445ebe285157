"""What is known of a pool member before its weights are touched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hf_dfml.pool.names import class_keys

CONFIG_NAME = "config.json"
PREPROCESSOR_NAME = "preprocessor_config.json"
WEIGHTS_NAME = "model.safetensors"
META_BLOCK = "hf_dfml"
"""The block of a `config.json` that makes it a meta-model's; what stands in it is `hf_dfml.meta_config`'s affair."""
IS_META_MODEL = "is a meta-model of hf_dfml, not a pool member"

_MAX_REASON = 400
_VERBS = ("is", "has", "was", "takes", "cannot")
"""First words of a reason that goes on from the member's name."""


class MemberError(ValueError):
    """A pool member that cannot be used.

    Attributes:
        id: the member.
        reason: one line that says what is wrong with it.
    """

    def __init__(self, id: str, reason: str) -> None:
        reason = " ".join(reason.split())  # It may quote a foreign file.
        if len(reason) > _MAX_REASON:
            reason = reason[: _MAX_REASON - 3] + "..."
        goes_on = reason.partition(" ")[0] in _VERBS
        super().__init__(f"{id} {reason}" if goes_on else f"{id}: {reason}")
        self.id = id
        self.reason = reason


class PoolSource(ABC):
    """One kind of place where members come from. A pool's name goes to the first source that matches it.

    Another kind is one class, put before the others: see `hf_dfml.pool.sources.registry`.

    Args:
        options: `hf_dfml.pool.sources.client.HubOptions`, for sources that ask the Hub.
    """

    def __init__(self, options: Any = None) -> None:
        self.options = options

    @staticmethod
    @abstractmethod
    def matches(name: str) -> bool:
        """Whether a pool's name is one for this source, by its look or by what exists on this disk; asks nobody."""

    @abstractmethod
    def entries(self, name: str) -> list[PoolEntry]:
        """The members; their configs need not be read if this source is their `source`.

        A member that cannot be used is an entry with a problem.

        Raises:
            FileNotFoundError: if there is no pool of that name, or no member in it.
        """

    def fetch(
        self, entry: PoolEntry, name: str, *, limit: int, admit: Callable[[int], None] | None = None
    ) -> PoolEntry:
        """The entry with one of its files in its `location` on this disk; here for members whose files are there.

        Args:
            entry: one of those that `entries` gave.
            name: the file: `config.json`, `model.safetensors`, `preprocessor_config.json`.
            limit: bytes that it may have at most.
            admit: to be called with its bytes before it takes room on this disk; may refuse by raising.

        Raises:
            MemberError: if the member has no such file, or one that is too large or may not be read.
        """
        return entry


@dataclass(frozen=True)
class PoolEntry:
    """The metadata of one pool member.

    Members of a Hub organisation are listed without a request per repository: until a member is used, its entry holds
    only what the list says (`resolved` is False) and the fields that come from its config are None or empty.

    Attributes:
        id: `org/name` on the Hub (`org/name@revision` where the pool has several commits of it), or the folder's name.
        location: the folder that holds the member's files; None while they are only on the Hub.
        revision: the commit sha on the Hub that config and weights are both read from.
        library: `timm` or `transformers`.
        architecture: a timm model name, or the class that a transformers config names.
        num_classes: the number of logits.
        input_size: (3, height, width) in pixels.
        mean: per channel, of pixels in [0, 1]; subtracted before the network.
        std: per channel, of pixels in [0, 1]; divided by before the network.
        channels: in what order the stored first layer takes them: `rgb`, `bgr`, or `grey` (their mean). The network is
            loaded so that it takes RGB.
        label_names: class names in the order of the logits; empty where the member does not say.
        model_args: further arguments of the timm model.
        fixed_input_size: whether the network takes images of `input_size` only (timm's key of that name).
        dataset: the data set it was trained on, a hint.
        classes: the global ids of its classes in that data set, a hint.
        val_accuracy: accuracy of the stored weights on held-out images, in [0, 1].
        sha256: what its files must hash to, by file name; empty where no lock file says so.
        problem: why the member cannot be used; None if nothing is known against it.
        source: brings its files to this disk; None where they are there already.
    """

    id: str
    location: Path | None = None
    revision: str | None = None
    library: str = "timm"
    architecture: str | None = None
    num_classes: int | None = None
    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: Literal["rgb", "bgr", "grey"] = "rgb"
    label_names: tuple[str, ...] = ()
    model_args: dict[str, Any] = field(default_factory=dict, hash=False)
    fixed_input_size: bool = False
    dataset: str | None = None
    classes: tuple[int, ...] | None = None
    val_accuracy: float | None = None
    sha256: dict[str, str] = field(default_factory=dict, hash=False)
    problem: str | None = None
    source: PoolSource | None = field(default=None, repr=False, compare=False)

    @property
    def repository(self) -> str:
        """The repository on the Hub: the id without a revision."""
        return self.id.partition("@")[0]

    @property
    def on_disk(self) -> bool:
        """Whether the member's config and weights need not be fetched."""
        return self.location is not None and (self.location / WEIGHTS_NAME).is_file()

    @property
    def resolved(self) -> bool:
        """Whether the member's config has been read (or found unusable)."""
        return self.architecture is not None or self.problem is not None

    @property
    def identity(self) -> tuple[str, str]:
        """What makes it this member and no other, whether its config has been read or not."""
        return (self.repository, self.revision) if self.revision else (self.id, str(self.location))

    @property
    def class_names(self) -> tuple[str, ...]:
        """`label_names`, or names that no other member has (`<id>#<k>`) where the member has none.

        Names tie the classes of different members together, so a class without a name is nobody else's class.
        """
        return self.label_names or tuple(f"{self.id}#{k}" for k in range(self.num_classes or 0))

    @property
    def class_keys(self) -> tuple[str, ...]:
        """What `class_names` are compared by, so that classes of different members are one: `hf_dfml.pool.names`."""
        return class_keys(self.class_names) if self.label_names else self.class_names
