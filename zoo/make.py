"""Make entries of the zoo from the folders of finished runs, and publish them.

    python zoo/make.py add runs/quickstart glyphs --summary "Drawn characters."
    python zoo/make.py add runs/mine mine --summary "..." --baselines runs/baselines   # of a run without any
    python zoo/make.py push me                      # a repository for each entry, and a collection of them

An entry is the model of the run with weights in half precision, its config and its card, without pictures. It is
written only if it is small enough and answers as the run's model does.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi

from hf_dfml import MetaModel, zoo
from hf_dfml.evaluation.results import Result, markdown_table, read_results
from hf_dfml.hub_results import default_rows
from hf_dfml.meta_config import MetaConfig
from hf_dfml.model_card import CARD_NAME
from hf_dfml.networks.functional import normalise
from hf_dfml.pool.entry import WEIGHTS_NAME
from hf_dfml.pool.sources.client import HubOptions
from hf_dfml.utils.checkpoint import atomic_write, replace_folder

MOST_BYTES = 500_000
TOLERANCE = 0.02
"""How far half precision may move the features of an image, as a share of their length."""
COLLECTION = "hf-dfml zoo"


def add(run: Path, name: str, summary: str, target: Path = zoo.FOLDER, baselines: Path | None = None) -> dict:
    """Write the entry and its line of the manifest; the line.

    Args:
        run: folder of a finished run.
        name: of the entry.
        summary: one sentence.
        target: folder of the zoo.
        baselines: `results.json`, or its folder, with the rows of baselines, where they were measured by themselves.

    Raises:
        ValueError: for a name that is no plain word, or if the entry would be too large, or would answer otherwise.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"'{name}' is not a valid name: expected lower-case words with dashes.")
    meta = MetaModel.from_pretrained(run)
    card = without_pictures((run / CARD_NAME).read_text(encoding="utf-8"))
    if baselines:
        meta.config = with_baselines(meta.config, read_results(baselines))
    card = with_table(card, meta.config)
    with tempfile.TemporaryDirectory(dir=target, prefix=".") as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        (folder / CARD_NAME).write_text(card, encoding="utf-8")
        half = MetaModel(MetaModel.from_pretrained(run).network.half(), meta.config)
        half.save_pretrained(folder)
        shutil.rmtree(folder / ".eval_results", ignore_errors=True)  # Made again when the entry is published.
        size = (folder / WEIGHTS_NAME).stat().st_size
        if size > MOST_BYTES:
            raise ValueError(
                f"{name} has {size} bytes of weights: expected at most {MOST_BYTES}. Take a smaller network."
            )
        moved = difference(meta, MetaModel.from_pretrained(folder))
        if not moved <= TOLERANCE:
            raise ValueError(
                f"Half precision moves the features of {name} by {moved:.3f} of their length, at most {TOLERANCE}."
            )
        replace_folder(folder, target / name)
    line = described(meta, summary, size)
    path = target / zoo.MANIFEST
    lines = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    atomic_write(path, json.dumps({**lines, name: line}, indent=1, sort_keys=True) + "\n")
    return line


def with_table(card: str, config: MetaConfig) -> str:
    """A card whose table has the rows of a config, in the words of today."""
    return re.sub(
        r"(?<=\n## Results\n\n).*?(?=\n\n`bn` says)", lambda _: markdown_table(config.results), card, flags=re.S
    )


def with_baselines(config: MetaConfig, rows: Sequence[Result]) -> MetaConfig:
    """A config with the rows of other methods that are of the episodes of its own.

    Raises:
        ValueError: if there are none.
    """
    own, name = default_rows(config), config.method or ""
    episodes = {_episodes(row) for row in own}
    found = [row for row in rows if not row.method.startswith(name) and _episodes(row) in episodes]
    if not found:
        raise ValueError(f"No baseline is of the same episodes as the model's rows: expected {sorted(episodes)}.")
    return replace(config, results=(*config.results, *(row for row in found if row not in config.results)))


def _episodes(row: Result) -> tuple[Any, ...]:
    return row.dataset, row.split, row.ways, row.shots, row.episodes, row.seed


def without_pictures(card: str) -> str:
    """A card without its pictures and their captions."""
    return re.sub(r"\n!\[[^\]]*\]\([^)]*\)\n\n[^\n]*\n", "", card).replace("## What it was learnt from\n", "")


@torch.no_grad()
def difference(one: MetaModel, other: MetaModel) -> float:
    """The largest distance of two models' logits for random images, as a share of their length."""
    images = torch.rand(16, *one.config.input_size, generator=torch.Generator().manual_seed(0))
    first, second = (meta.network(normalise(meta.network, images)) for meta in (one, other))
    return float(((first - second).norm(dim=-1) / first.norm(dim=-1)).max())


def described(meta: MetaModel, summary: str, size: int) -> dict:
    """An entry's line of the manifest."""
    config = meta.config
    return {
        "summary": summary,
        "method": config.method,
        "dataset": config.dataset,
        "architecture": config.architecture,
        "image_size": config.input_size[-1],
        "members": len(config.pool),
        "accuracy": {str(row.shots): round(row.mean, 1) for row in default_rows(config)},
        "bytes": size,
    }


def push(user: str, api: HfApi | None = None) -> str:
    """Publish every entry as `USER/hf-dfml-NAME`, and a collection of them; the collection's slug."""
    api = api or HubOptions().api()
    collection = api.create_collection(COLLECTION, namespace=user, exists_ok=True)
    for name in zoo.manifest():
        repository = f"{user}/hf-dfml-{name}"
        MetaModel.from_pretrained(f"{zoo.PREFIX}{name}").push_to_hub(repository)
        api.add_collection_item(collection.slug, repository, "model", exists_ok=True)
        print(f"Published {repository}.")
    return collection.slug


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    adding = commands.add_parser("add", help="make an entry from a run")
    adding.add_argument("run", type=Path, help="folder of a finished run")
    adding.add_argument("name", help="the entry: zoo:NAME")
    adding.add_argument("--baselines", type=Path, help="results.json of baselines, for a run without")
    adding.add_argument("--summary", required=True, help="one sentence: what kind of images it is for")
    pushing = commands.add_parser("push", help="publish all entries")
    pushing.add_argument("user", help="Hub user or organisation")
    given = parser.parse_args()
    if given.command == "add":
        print(json.dumps(add(given.run, given.name, given.summary, baselines=given.baselines), indent=1))
    else:
        print(f"The collection is {push(given.user)}.")


if __name__ == "__main__":
    main()
