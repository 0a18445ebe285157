"""Cost is estimated before it is paid: more work never costs less; what does not fit is refused with what would."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_dfml import estimate
from hf_dfml.estimate import SHRINKING, Cost, check_memory, cost_of_distillation
from hf_dfml.methods.catalogue import METHODS, find_method
from hf_dfml.methods.pool_distillation import PoolDistillation, PoolDistillationConfig
from hf_dfml.methods.tgr import TGR, TGRConfig
from hf_dfml.networks import create_network
from hf_dfml.pipeline import cost_of, run
from hf_dfml.pool import ModelPool
from hf_dfml.preflight import check_disk
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import flat
from hf_dfml.trainer import Trainer
from tests.methods.pools import make_context, make_mixed_pool, make_model
from tests.methods.test_bidf_mkd import TINY as BIDF
from tests.methods.test_free import TINY as FREE
from tests.methods.test_free import write_member
from tests.methods.test_pool_distillation import TINY as DISTILLATION
from tests.methods.test_purer import TINY as PURER
from tests.methods.tiny_tgr import TINY as TGR_OPTIONS

TINY: dict[str, dict[str, Any]] = {
    "bidf_mkd": BIDF,
    "free": FREE | {"warmup": 0},
    "pool_distillation": DISTILLATION,
    "purer": PURER,
    "tgr": TGR_OPTIONS,
}
"""Of the methods that recover images; DRO works on weights."""


def pool_of(folder: Path, members: int, classes: int, size: int) -> ModelPool:
    """Members that know different classes."""
    if not folder.exists():
        for index in range(members):
            names = [f"class {index}-{number}" for number in range(classes)]
            write_member(folder / f"m-{index}", "conv4_16", classes, size, index, names)
    return ModelPool.from_dir(folder)


def student(size: int) -> Any:
    return create_network("conv4_16", num_classes=3, image_size=size)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cost")


@pytest.fixture(scope="module", autouse=True)
def on_any_machine() -> Iterator[None]:
    """Speeds that depend on the size alone, so that no busy machine makes more work cheaper."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "_speed", lambda network, device, size: (1e-6 * size**2, 2e-6 * size**2, 99 * size**2))
        yield


GROWING = [("members", 1, 3), ("classes", 2, 6), ("size", 16, 32)]


@pytest.mark.parametrize("method", TINY)
@pytest.mark.parametrize(("what", "few", "many"), GROWING)
def test_more_members_classes_and_pixels_never_cost_less(place, method, what, few, many):
    found = []
    for count in (few, many):
        how = {"members": 2, "classes": 3, "size": 16} | {what: count}
        pool = pool_of(place / "-".join(map(str, how.values())), **how)
        method_class = find_method(method)
        made = method_class(method_class.Config(**TINY[method]), student(how["size"]))
        kept = method_class.kept_bytes(made.config, pool, how["size"])
        cost = cost_of(made, pool, kept)
        assert cost is not None and cost.memory > 0
        found.append((cost.seconds or 0.0, cost.memory, kept))
    assert all(more >= less for less, more in zip(*found, strict=True))
    # More members are more time or more images that are kept; a larger member is more memory as well.
    assert found[1] > found[0] and (what == "members" or found[1][1] > found[0][1])


@pytest.mark.parametrize(("method", "all_classes"), [("free", True), ("bidf_mkd", False)])
def test_classes_that_are_not_recovered_at_once_cost_nothing(place, method, all_classes):
    """BiDf-MKD recovers as many of a member's classes as an episode has: three."""
    method_class, found = find_method(method), []
    for classes in (3, 6):
        pool = pool_of(place / f"2-{classes}-16", 2, classes, 16)
        found.append(cost_of(method_class(method_class.Config(**TINY[method]), student(16)), pool, 0).memory)
    assert found[1] == pytest.approx(found[0] * (2 if all_classes else 1), rel=0.1)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> ModelPool:
    folder = tmp_path_factory.mktemp("mixed")
    make_mixed_pool(folder)
    return ModelPool.from_dir(folder / "mixed")


def distillation(pool: ModelPool, **changes: Any) -> Cost:
    return cost_of_distillation(pool, make_model(), flat(PoolDistillationConfig(**changes)))


OPTIONS = {
    "num_images": st.integers(1, 10**7),
    "batch_size": st.integers(2, 10**4),
    "images_per_class": st.integers(1, 10**4),
    "classes_per_member": st.integers(1, 10),
    "recoveries": st.integers(0, 5),
    "joint_rounds": st.integers(1, 50),
    "recovery_memory_gb": st.floats(0.1, 50),
}


@settings(max_examples=25, deadline=None)
@given(less=st.fixed_dictionaries(OPTIONS), more=st.fixed_dictionaries(OPTIONS))
def test_more_of_every_option_never_needs_less_memory(mixed, less, more):
    low = {name: min(less[name], more[name]) for name in OPTIONS}
    high = {name: max(less[name], more[name]) for name in OPTIONS}
    assert distillation(mixed, **low).memory <= distillation(mixed, **high).memory


def proposed(refusal: str) -> dict[str, float]:
    """The settings that a sentence proposes."""
    return {name: float(value) for name, value in re.findall(r"--(\w+) (\d+(?:\.\d+)?)", refusal)}


@settings(max_examples=40, deadline=None)
@given(options=st.fixed_dictionaries(OPTIONS), share=st.floats(0.01, 1.5))
def test_what_does_not_fit_is_refused_with_settings_that_do(mixed, options, share):
    wanted = distillation(mixed, **options)
    available = int(share * wanted.memory)
    check_memory(wanted, None)
    if wanted.memory <= available:
        return check_memory(wanted, available)
    with pytest.raises(ValueError, match=r"needs about .* GB of memory .* are available: ") as refused:
        check_memory(wanted, available)
    change = proposed(str(refused.value))
    if change:
        assert change.keys() <= SHRINKING.keys()
        whole = {name: int(value) if isinstance(options[name], int) else value for name, value in change.items()}
        assert distillation(mixed, **options | whole).memory <= available, "what the sentence says is right"
    else:
        assert "use a machine with more" in str(refused.value)
    return None


@pytest.mark.parametrize("method", ["tgr", "free", "bidf_mkd"])
def test_recoveries_that_do_not_fit_are_refused_with_fewer_images(place, method):
    pool = pool_of(place / "wide", 2, 6, 16)
    method_class = find_method(method)

    def cost(**changes: Any) -> Cost:
        made = method_class(method_class.Config(**TINY[method] | changes), student(16))
        found = cost_of(made, pool, method_class.kept_bytes(made.config, pool, 16))
        assert found is not None
        return found

    wanted = cost(images_per_class=1000)
    with pytest.raises(ValueError, match=r"set --images_per_class \d+\.") as refused:
        check_memory(wanted, wanted.memory // 3)
    fewer = int(proposed(str(refused.value))["images_per_class"])
    assert cost(images_per_class=fewer).memory <= wanted.memory // 3


def test_a_run_that_does_not_fit_is_refused_before_its_first_file(place, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_dfml.pipeline.available_memory", lambda: 1 << 20)
    monkeypatch.setattr(Trainer, "fit", lambda self: pytest.fail("work has begun"))
    pool_of(place / "wide", 2, 6, 16)
    config = RunConfig(
        pool=str(place / "wide"), arch="conv4_16", output_dir=str(tmp_path / "run"), log_with="none", ways=3
    )
    for method, options in ((TGR, TGRConfig(probe="average")), (PoolDistillation, PoolDistillationConfig())):
        with pytest.raises(ValueError, match="GB of memory beside the program itself, and 0.0 GB are available"):
            run(method, options, config, argv=["test"])
        assert not (tmp_path / "run").exists()


FULL = {"bank_per_class": 3, "replay_shots": 1, "replay_queries": 2}


@pytest.mark.parametrize("method", TINY)
def test_a_checkpoint_takes_no_more_than_was_estimated(place, tmp_path, method):
    """With a bank that is full after the first step."""
    pool = pool_of(place / "small", 2, 3, 16)
    method_class = find_method(method)
    options = dict(TINY[method], **(FULL if method in ("tgr", "free", "bidf_mkd") else {}))
    made = method_class(method_class.Config(**options), student(16))
    context = make_context()
    made.setup(pool, context)
    made.step(context)
    state = made.state_dict()
    kept = method_class.kept_bytes(made.config, pool, 16)
    images = state["bank"] if "bank" in state else {name: state[name] for name in ("images", "answers")}
    assert 0 < bytes_in(images) <= kept + 64  # And the optimiser's count of its steps.


def bytes_in(tree: Any) -> int:
    if isinstance(tree, dict):
        return sum(map(bytes_in, tree.values()))
    if isinstance(tree, list | tuple):
        return sum(map(bytes_in, tree))
    return tree.nbytes if hasattr(tree, "nbytes") else 0


@settings(max_examples=50, deadline=None)
@given(kept=st.integers(0, 10**11), checkpoints=st.integers(1, 20), free=st.integers(0, 10**12))
def test_a_disk_has_room_or_is_refused(kept, checkpoints, free):
    usage = namedtuple("usage", "total used free")
    network = student(16)
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(free, 0, free))
        try:
            check_disk(Path("run"), network, kept, RunConfig(keep_checkpoints=checkpoints))
        except ValueError as refused:
            assert "make room" in str(refused) and free < (4 * weights + kept) * (checkpoints + 1) + (1 << 27)
        else:
            assert free >= (weights + kept) * checkpoints


def test_every_method_that_recovers_images_is_estimated():
    assert TINY.keys() | {"dro"} == METHODS.keys()
