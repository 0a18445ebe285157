"""What the papers report, as data, to be printed beside our own rows where these mean the same."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

ALIASES = {
    "random initialisation": "random init",
    "random": "random init",
    "finetuning": "random init",
    "pool average": "average",
    "va": "average",
    "best-model": "best member",
    "bidf": "bidf-mkd",
    "bidf_mkd": "bidf-mkd",
    "dro (online)": "dro-online",
    "dro online": "dro-online",
    "free (k=2)": "free-2",
}


class Published(NamedTuple):
    """A figure of a paper.

    Attributes:
        mean: accuracy in percent, or a mean squared error.
        spread: what the paper prints after the plus-minus sign; None where it prints nothing.
        source: paper, table, schedule and selection, and what the spread is.
    """

    mean: float
    spread: float | None
    source: str


def published(
    method: str,
    dataset: str,
    ways: int | None,
    shots: int,
    *,
    head: str | None = "finetune",
    bn: str | None = None,
    image_size: int | None = None,
    pool: str | None = None,
    architecture: str | None = None,
) -> Published | None:
    """The figure that a paper reports for the same thing, or None (TGR: no figure was reachable).

    A key that a paper's table leaves open (null in the file) is met by any value.

    Args:
        method: as our tables call it; what follows a comma ("Average, 60 of 100 members") is left aside.
        dataset: a name of `hf_dfml.data.DATASETS`, `sinusoid`, or several names in the order of the alphabet,
            separated by ", ", for the mean over these data sets.
        ways: classes of an episode; None for regression.
        shots: support images a class.
        head: see `Result`, as all that follow.
        bn: of the queries.
        image_size: in pixels.
        pool: what kind of pool the row is over.
        architecture: of the network that was evaluated.

    Examples:
        >>> keys = {"head": "finetune", "bn": "transductive", "image_size": 32, "pool": "one architecture"}
        >>> keys |= {"architecture": "conv4"}
        >>> published("FREE", "cifar-fs", 5, 1, **keys)[:2]
        (39.13, 0.85)
        >>> published("FREE", "cifar-fs", 5, 1, **{**keys, "head": "prototype"}) is None
        True
    """
    key = method.split(",")[0].strip().lower()
    key = ALIASES.get(key, key)
    wanted = {"dataset": dataset, "ways": ways, "head": head, "bn": bn, "image_size": image_size, "pool": pool}
    wanted |= {"architecture": architecture}
    for table in _tables():
        matches = all(table[name] in (None, value) for name, value in wanted.items())
        if matches and shots in table["shots"] and key in table["figures"]:
            mean, spread = table["figures"][key][table["shots"].index(shots)]
            return Published(mean, spread, table["source"])
    return None


@cache
def _tables() -> list[dict[str, Any]]:
    """The tables of all papers."""
    found = []
    for file in sorted(resources.files(__package__).iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            paper = json.loads(file.read_text(encoding="utf-8"))
            about = f"{paper['schedule']}; ± {paper['spread']}"
            found += [{**table, "source": f"{paper['paper']}, {table['table']}: {about}"} for table in paper["tables"]]
    return found
