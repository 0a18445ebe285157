"""The models of a collection of the Hub: its slug, or `collection:` and the slug."""

from __future__ import annotations

import re

from huggingface_hub.errors import HfHubHTTPError

from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.sources.client import endpoint, retry
from hf_dfml.pool.sources.ids import HubIds, list_ids

PREFIX = "collection:"
_SLUG = re.compile(r"[^/]+/(.+-)?[0-9a-f]{24}")


class HubCollection(HubIds):
    """The models of a collection, in its order; its other items are passed over."""

    @staticmethod
    def matches(name: str) -> bool:
        """By the 24 hexadecimal digits that a collection's slug ends with, or by the prefix."""
        return name.startswith(PREFIX) or _SLUG.fullmatch(name.removeprefix("hf:")) is not None

    def entries(self, name: str) -> list[PoolEntry]:
        """Its models, each pinned to a commit now by one request. Offline it cannot be listed."""
        slug = name.removeprefix("hf:").removeprefix(PREFIX)
        if self.options.offline:
            raise FileNotFoundError(
                f"The collection '{slug}' cannot be listed, since HF_HUB_OFFLINE or local_files_only is set and only "
                "the Hub knows what is in it: name its members (org/name) or a lock file (pool.lock.json)."
            )
        try:
            collection = retry(lambda: self.options.api().get_collection(slug))
        except HfHubHTTPError as error:
            if error.response.status_code not in (401, 403, 404):
                raise
            raise FileNotFoundError(f"There is no collection '{slug}' on {endpoint()} that may be read.") from error
        ids = [item.item_id for item in collection.items if item.item_type == "model"]
        if not ids:
            raise FileNotFoundError(f"The collection '{slug}' on {endpoint()} has no models.")
        return list_ids(ids, self.options)
