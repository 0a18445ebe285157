"""No option is offered that does nothing: the code of each method reads every option of its `--help`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hf_dfml
from hf_dfml import settings
from hf_dfml.methods.catalogue import METHODS, find_method
from hf_dfml.methods.dro import DRO, DROConfig
from hf_dfml.networks import create_network
from hf_dfml.settings import Settings, _own_options, flat, options_of
from tests.methods.pools import make_context, make_model, make_pool, run_steps
from tests.properties.test_cost_estimated import TINY

PACKAGE = str(Path(hf_dfml.__file__).parent)
MACHINERY = settings.__file__
"""Where options are stored, copied and written to files, which is no use of them."""
GENERATOR = {"recovery": "generator", "recovery_steps": 1, "generator_width": 4, "latent_dim": 4}
QUERIES = {"gradient": "zero_order", "recovery_steps": 1, "zero_order_directions": 1}
FROM_ANSWERS = QUERIES | dict.fromkeys(("bn_weight", "tv_weight", "joint_rounds"), 0)
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "bidf_mkd": [{}, GENERATOR, QUERIES, {"boundary_start": 0}],
    "dro": [{"epochs": 1, "embedding_dim": 2}],
    "free": [{}, {"bell": "paper"}, {"bell": "erm"}],
    "pool_distillation": [{}, GENERATOR, FROM_ANSWERS, {"prior": "POOL/m-0", "train_student": "beside"}],
    "purer": [{"warmup": 0}],
    "tgr": [{}, GENERATOR | {"grouping": "none"}],
}
"""What is changed in a tiny run so that options are read that belong to a choice of another; POOL is its folder."""


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of the options that the package reads from now on."""
    names: set[str] = set()

    def noting(self: Settings, name: str) -> Any:
        reader = sys._getframe(1).f_code.co_filename
        if reader.startswith(PACKAGE) and reader != MACHINERY:
            names.update(_own_options(type(self)) if name == "__dict__" else [name])  # `vars(weights)`.
        return object.__getattribute__(self, name)

    monkeypatch.setattr(Settings, "__getattribute__", noting)
    return names


def run(name: str, changes: dict[str, Any], folder: Path, read: set[str]) -> None:
    """A step of a method and what it gives out."""
    method_class, pool, context = find_method(name), make_pool(folder, 2), make_context()
    where = {key: str(value).replace("POOL", str(folder / "pool")) for key, value in changes.items() if key == "prior"}
    config = method_class.config_for(method_class.Config(**TINY.get(name, {}) | changes | where), pool)
    frozen = changes.get("train_student") == "beside"
    network = create_network("resnet10t", num_classes=3, image_size=32) if frozen else make_model()
    # What was asked to check the options is not what they are for.
    read.clear()
    method = method_class(config, network)
    method.setup(pool, context)
    run_steps(method, context, 0, 1)
    method.snapshot(context)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_of_a_method_is_read_by_it(name: str, tmp_path: Path, read: set[str]) -> None:
    used: set[str] = set()
    for number, changes in enumerate(VARIANTS[name]):
        run(name, changes, tmp_path / str(number), read)
        used |= read
    assert sorted(options_of(find_method(name).Config).keys() - used) == []


def test_whoever_copies_compares_or_stores_options_does_not_read_them(read: set[str]) -> None:
    config = replace(DROConfig(), lr=0.1, gamma=3.0)
    assert flat(config)["gamma"] == config.ball.gamma == 3 and config != DROConfig() and "lr=0.1" in repr(config)
    assert not read
    DRO(config, make_model())
    assert {"online", "epochs"} <= read and not {"lr", "gamma"} & read, "its constructor has no use of these"
