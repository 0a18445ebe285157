"""Publishing a pool: one model repository a member, in timm's own layout."""

from __future__ import annotations

import hashlib
import logging

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from hf_dfml.pool.building.member_card import member_card
from hf_dfml.pool.entry import CONFIG_NAME, PREPROCESSOR_NAME, WEIGHTS_NAME, PoolEntry
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.sources.client import USUAL, models_of, retry
from hf_dfml.pool.sources.parallel import quiet_uploads
from hf_dfml.utils.progress import progress

logger = logging.getLogger(__name__)

README_NAME = "README.md"


def push_pool(
    pool: ModelPool,
    org: str,
    *,
    private: bool = False,
    overwrite: bool = False,
    message: str = "Upload pool member with hf_dfml",
) -> list[str]:
    """Upload every usable member to `org/<member's name>`.

    Files that are there unchanged are not sent again, and a member that is there unchanged gets no commit (one request
    finds out): a push that was interrupted is simply repeated. A self-hosted Hub needs `HF_HUB_DISABLE_XET=1`.

    Args:
        pool: members in folders or of the Hub; unusable ones are left out with a warning.
        org: the user or organisation whose repositories they become.
        private: whether the repositories may be read by `org` alone.
        overwrite: whether repositories of these names that hold other weights are given these. Their earlier commits
            stay, and a warning names them.
        message: the commits' message.

    Returns:
        The commit sha of every member, in the pool's order.

    Raises:
        ValueError: if two members would get one repository name, or `private` is asked for and a repository of that
            name is public already.
        FileExistsError: if a repository of such a name holds other weights, without `overwrite`; nothing is sent.
    """
    api = USUAL.api()
    pool = pool.usable(weights=True)
    targets = [f"{org}/{entry.id.split('/')[-1]}" for entry in pool]
    for target in targets:
        validate_repo_id(target)
        if targets.count(target) > 1:
            raise ValueError(f"Two members would both become {target}: push their pools to different organisations.")
    shas = []
    with quiet_uploads():
        there = {info.id: info for info in models_of(org)}
        public = [target for target in targets if target in there and not there[target].private]
        if private and public:
            raise ValueError(
                f"{public[0]} exists and is public: make it private on {api.endpoint}, or push elsewhere."
            )
        pairs = list(zip(pool, targets, strict=True))
        stored = {target: _stored(api, target) for target in targets if target in there}
        replaced = [target for entry, target in pairs if target in stored and _differs(pool, entry, stored[target])]
        if replaced and not overwrite:
            more = f" (and {len(replaced) - 1} more)" if len(replaced) > 1 else ""
            raise FileExistsError(
                f"{replaced[0]}{more} holds another member's weights already: replace them with --overwrite, or push "
                "to another organisation, or give the members' folders other names."
            )
        for entry, target in progress(pairs, description=f"Pushing to {org}", total=len(pool), unit="member"):
            with pool.on_disk(entry) as here:
                files = _files(here, target)
            old = there.get(target)
            shas.append(_push_member(api, files, target, old, stored.get(target), private=private, message=message))
            if target in replaced and old:
                logger.warning("Replaced: what %s held is still there as %s@%s.", target, target, old.sha)
    logger.info("%d members are at %s/%s.", len(shas), api.endpoint, org)
    return shas


def _stored(api: HfApi, target: str) -> dict[str, RepoFile]:
    """The files of a member that a repository has, by name."""
    names = [CONFIG_NAME, PREPROCESSOR_NAME, README_NAME, WEIGHTS_NAME]
    known = retry(lambda: api.get_paths_info(target, names))
    return {file.path: file for file in known if isinstance(file, RepoFile)}


def _differs(pool: ModelPool, entry: PoolEntry, stored: dict[str, RepoFile]) -> bool:
    """Whether a repository has weights, and others than the member."""
    if WEIGHTS_NAME not in stored:
        return False
    with pool.on_disk(entry) as here:
        assert here.location is not None
        return not _is_same((here.location / WEIGHTS_NAME).read_bytes(), stored[WEIGHTS_NAME])


def _push_member(
    api: HfApi,
    files: dict[str, bytes],
    target: str,
    there: ModelInfo | None,
    stored: dict[str, RepoFile] | None,
    *,
    private: bool,
    message: str,
) -> str:
    if there is None or stored is None:
        retry(lambda: api.create_repo(target, private=private, exist_ok=True))
    else:
        files = {name: content for name, content in files.items() if not _is_same(content, stored.get(name))}
        if not files:
            assert there.sha is not None
            return there.sha

    def commit() -> str:
        # An operation is spent when it was tried. What a first try has stored is not sent again.
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        return api.create_commit(target, operations, commit_message=message).oid

    return retry(commit)


def _files(entry: PoolEntry, target: str) -> dict[str, bytes]:
    """What is published of a member: the files we know, never whatever else lies in its folder."""
    assert entry.location is not None
    names = (CONFIG_NAME, PREPROCESSOR_NAME, README_NAME, WEIGHTS_NAME)
    files = {name: (entry.location / name).read_bytes() for name in names if (entry.location / name).is_file()}
    if README_NAME not in files and entry.library == "timm":
        files[README_NAME] = member_card(target.split("/")[-1], entry).encode()
    return files


def _is_same(content: bytes, remote: RepoFile | None) -> bool:
    """Whether the repository has that content already, by the hash that it keeps of the file."""
    if remote is None:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == hashlib.sha256(content).hexdigest()
    return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
