"""Members in folders of this disk: `dir:pools/x`, `zoo:glyphs`, or any name of a folder that exists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hf_dfml import zoo
from hf_dfml.pool.entry import CONFIG_NAME, WEIGHTS_NAME, PoolEntry, PoolSource
from hf_dfml.pool.formats.loading import PICKLE_SUFFIXES, missing_weights
from hf_dfml.pool.formats.reading import read_entry
from hf_dfml.pool.sources.near import did_you_mean

PREFIX = "dir:"


class Folder(PoolSource):
    """A folder with a sub-folder for each member, sorted by name; or the one member that the folder itself is."""

    @staticmethod
    def matches(name: str) -> bool:
        """Also what can only be a path, so that a misspelt one is not looked for on the Hub."""
        return name.startswith((PREFIX, zoo.PREFIX, ".", "/", "~")) or Path(name).is_dir()

    def entries(self, name: str) -> list[PoolEntry]:
        """Members whose files are there; of each that has none, the reason."""
        if name.startswith(zoo.PREFIX):
            name = str(zoo.folder_of(name))
        folder = Path(name.removeprefix(PREFIX)).expanduser().absolute()
        if not folder.is_dir():
            expected = "expected one with a sub-folder for each pool member"
            raise FileNotFoundError(f"There is no folder {folder}: {expected}.{did_you_mean(name)}")
        if (folder / CONFIG_NAME).is_file():
            return [with_weights(read_entry(folder.name, folder))]
        # A hidden folder is one that a build has not finished.
        folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        entries = [with_weights(read_entry(path.name, path)) for path in folders if _looks_like_member(path)]
        if not entries:
            expected = f"expected sub-folders with {CONFIG_NAME} and {WEIGHTS_NAME}"
            raise FileNotFoundError(f"{folder} holds no pool member: {expected}.")
        return entries


def with_weights(entry: PoolEntry) -> PoolEntry:
    """The entry of a folder, with a problem if there are no weights in it."""
    if entry.problem is None and entry.location is not None and not entry.on_disk:
        return replace(entry, problem=missing_weights(path.name for path in entry.location.iterdir()))
    return entry


def _looks_like_member(folder: Path) -> bool:
    names = [path.name for path in folder.iterdir()]
    return any(name == CONFIG_NAME or name.endswith((".safetensors", *PICKLE_SUFFIXES)) for name in names)
