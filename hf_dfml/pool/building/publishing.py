"""Publishing a pool: one model repository a member, in timm's own layout."""

from __future__ import annotations

import hashlib
import logging

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from hf_dfml.pool.building.member_card import member_card
from hf_dfml.pool.entry import CONFIG_NAME, PREPROCESSOR_NAME, WEIGHTS_NAME, PoolEntry
from hf_dfml.pool.formats.loading import PICKLE_SUFFIXES
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.sources.client import USUAL, models_of, retry
from hf_dfml.pool.sources.parallel import quiet_uploads
from hf_dfml.utils.progress import progress

logger = logging.getLogger(__name__)

README_NAME = "README.md"
_WEIGHTS = (*PICKLE_SUFFIXES, ".safetensors", ".h5", ".keras", ".msgpack", ".onnx", ".gguf", ".pb", ".tflite")
"""How the names of files with weights end, whatever wrote them."""


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
        private: whether the repositories may be read by `org` alone; if not, new ones are as `org` has set for itself.
        overwrite: whether repositories of these names that hold other models are given these members, and README files
            that are there already are replaced. Their earlier commits stay, and a warning names them.
        message: the commits' message.

    Returns:
        The commit sha of every member, in the pool's order.

    Raises:
        ValueError: if two members would get one repository name, or `private` is asked for and a repository of that
            name is public already.
        FileExistsError: if a repository of such a name holds another model, without `overwrite`; nothing is sent.
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
        replaced = [
            target
            for entry, target in pairs
            if target in stored and _differs(pool, entry, stored[target], there[target])
        ]
        if replaced and not overwrite:
            more = f" (and {len(replaced) - 1} more)" if len(replaced) > 1 else ""
            raise FileExistsError(
                f"{replaced[0]}{more} holds another member's weights or another model already: replace it with "
                "--overwrite, or push to another organisation, or give the members' folders other names."
            )
        for entry, target in progress(pairs, description=f"Pushing to {org}", total=len(pool), unit="member"):
            with pool.on_disk(entry) as here:
                files = _files(here, target)
            if not overwrite and README_NAME in stored.get(target, {}):
                files.pop(README_NAME, None)  # Its owner may have written more into it.
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


def _differs(pool: ModelPool, entry: PoolEntry, stored: dict[str, RepoFile], there: ModelInfo) -> bool:
    """Whether a repository holds another model: other weights, or without `model.safetensors` another config.

    A config alone may change: of a member whose weights are there, it is a correction.
    """
    if WEIGHTS_NAME not in stored and any(file.rfilename.endswith(_WEIGHTS) for file in there.siblings or []):
        return True
    name = WEIGHTS_NAME if WEIGHTS_NAME in stored else CONFIG_NAME
    if name not in stored:
        return False
    with pool.on_disk(entry) as here:
        assert here.location is not None
        return not _is_same((here.location / name).read_bytes(), stored[name])


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
        # None, not False: False would make it public whatever the organisation's setting is.
        retry(lambda: api.create_repo(target, private=private or None, exist_ok=True))
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
