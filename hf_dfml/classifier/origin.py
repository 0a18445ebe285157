"""What a classifier was made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["network", "meta-model", "member", "pool"]


@dataclass(frozen=True)
class Origin:
    """What a classifier was made from, as its config and its card say.

    Attributes:
        kind: a meta-model, a member of a pool, a whole pool, or any network.
        name: its Hub id, or the name of its folder.
        revision: its commit on the Hub.
        method: the system that learnt a meta-model.
        pool: the members, of a whole pool or of the one that a meta-model was learnt from, as `id` or `id@revision`.
        model_args: arguments of the architecture that the network was built with.
    """

    kind: Kind = "network"
    name: str = ""
    revision: str | None = None
    method: str = ""
    pool: tuple[str, ...] = ()
    model_args: dict[str, Any] = field(default_factory=dict)
