"""All models of a user or organisation of the Hub: `org`, or `hf:org` where a folder has that name too."""

from __future__ import annotations

from dataclasses import replace

from huggingface_hub import ModelInfo

from hf_dfml.pool.entry import CONFIG_NAME, IS_META_MODEL, WEIGHTS_NAME, MemberError, PoolEntry
from hf_dfml.pool.formats.loading import missing_weights
from hf_dfml.pool.sources.client import check_id, endpoint, is_sha, models_of, printable
from hf_dfml.pool.sources.ids import PREFIX, HubIds, list_ids
from hf_dfml.pool.sources.local_cache import cached_ids


class HubAuthor(HubIds):
    """The models of a user or organisation, sorted by id, by one paged call: nothing is asked of single repositories.

    Offline: those of them that are in the local cache. With a `revision`, that one of each, by one request each.
    """

    @staticmethod
    def matches(name: str) -> bool:
        """Any word without a slash."""
        return "/" not in name

    def entries(self, name: str) -> list[PoolEntry]:
        """What the list itself speaks against is an entry with a problem, and is not asked for again."""
        author, options = name.removeprefix(PREFIX), self.options
        if options.offline:
            entries = list_ids(cached_ids(author, options), options)
        else:
            infos = models_of(author, options)
            entries = list_ids((i.id for i in infos), options) if options.revision else list(map(self._listed, infos))
        if not entries:
            where = "the local cache (offline: HF_HUB_OFFLINE or local_files_only)" if options.offline else endpoint()
            raise FileNotFoundError(
                f"'{author}' has no models on {where}: expected the name of a user or organisation."
            )
        # A repository that changes while pages are read can be on two of them.
        return sorted({entry.id: entry for entry in reversed(entries)}.values(), key=lambda entry: entry.id)

    def _listed(self, info: ModelInfo) -> PoolEntry:
        entry = PoolEntry(id=printable(info.id), revision=info.sha, source=self)
        try:
            check_id(entry.id)
        except MemberError as error:
            return replace(entry, problem=error.reason)
        files = [sibling.rfilename for sibling in info.siblings or []]
        if not is_sha(info.sha):
            return super().entries(info.id)[0]
        if info.library_name in ("hf-dfml", "hf_dfml"):
            problem = IS_META_MODEL
        elif info.library_name not in (None, "timm", "transformers"):
            problem = f"is a model of {info.library_name}; expected timm or transformers"
        elif info.pipeline_tag not in (None, "image-classification"):
            problem = f"is a model for {info.pipeline_tag}; expected image-classification"
        elif files and CONFIG_NAME not in files:
            problem = f"has no {CONFIG_NAME}"
        elif files and WEIGHTS_NAME not in files:
            problem = missing_weights(files)
        else:
            return entry
        return replace(entry, problem=problem)
