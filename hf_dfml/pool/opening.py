"""Whatever kind of pool is named: one whose members are seen, or a service that answers only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_dfml.pool.black_box.endpoints import open_remote
from hf_dfml.pool.model_pool import CACHE_BYTES, ModelPool
from hf_dfml.pool.sources.registry import Spec, names_of, source_of
from hf_dfml.pool.sources.service import Service
from hf_dfml.pool.teacher_pool import TeacherPool

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from hf_dfml.pool.sources.client import HubArguments


def is_service(spec: Spec) -> bool:
    """Whether the pool of that name is a service; nothing is asked of it.

    Raises:
        ValueError: if no pool is named, or services together with pools of other kinds.
    """
    names = names_of(spec)
    services = [name for name in names if source_of(name) is Service]
    if services and len(services) < len(names):
        raise ValueError(f"{services[0]} is a service and other parts of {spec} are not: name one kind of pool.")
    return bool(services)


def open_pool(
    spec: Spec, *, max_queries: int | None = None, cache_bytes: int = CACHE_BYTES, **hub: Unpack[HubArguments]
) -> TeacherPool:
    """The pool of that name.

    Args:
        spec: as `ModelPool.open` takes it, or a service: addresses, or a YAML file of them; see
            `hf_dfml.pool.black_box.endpoints`.
        max_queries: images that may be sent to a service; None for no limit.
        cache_bytes: how many bytes of loaded teachers are kept at most.
        **hub: `token`, `revision`, `cache_dir`, `local_files_only`, as in huggingface_hub.

    Raises:
        FileNotFoundError: if there is no such pool.
        ValueError: if no pool is named, or services together with pools of other kinds.
        ServiceError: if a service does not answer.
    """
    if is_service(spec):
        return open_remote(",".join(names_of(spec)), max_queries=max_queries)
    return ModelPool.open(spec, cache_bytes=cache_bytes, **hub)
