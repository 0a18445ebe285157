from __future__ import annotations

import io

import pytest
from rich.console import Console

from hf_dfml import MetaModel
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool, check_pool, pool_table
from tests.pool.members import write_member


def text_of(pool: ModelPool) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(pool_table(pool))
    return console.file.getvalue()


def test_the_table_says_what_the_configs_say(members):
    text = text_of(ModelPool.from_dir(members))
    assert all(word in text for word in ("5 members", "m-3", "conv4_16", "3x16x16", "75.0 %"))
    assert "problem" not in text and "revision" not in text  # Nothing to say: no column.


def test_the_table_shows_problems_as_text(tmp_path):
    write_member(tmp_path / "bad", architecture="[bold]evil[/bold]")
    assert "architecture '[bold]evil[/bold]' is not one" in text_of(ModelPool.from_dir(tmp_path))


def test_a_meta_model_is_no_member(members, tmp_path):
    """It is said of a run's folder, and of one among members, and none is learnt from."""
    network = create_network("conv4_16", num_classes=3, image_size=16)
    MetaModel.of(network, method="TGR").save_pretrained(tmp_path / "run")
    for folder in (tmp_path, tmp_path / "run"):
        pool = ModelPool.from_dir(folder)
        text = text_of(pool)
        assert "0 members, 1 skipped" in text and "is a meta-model of hf_dfml, not a pool member" in text
        with pytest.raises(ValueError, match="none can be used"):
            pool.usable()
    assert "5 members, 1 skipped" in text_of(ModelPool.from_dir(members) + ModelPool.from_dir(tmp_path))
    assert text_of(ModelPool.from_dir(members)[:1]).splitlines()[0].strip() == "1 member"


def test_check_loads_every_member(members, tmp_path):
    folder = write_member(tmp_path / "x-cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    pool = ModelPool.from_dir(members) + ModelPool.from_dir(tmp_path)
    found = {entry.id: problem for entry, problem in check_pool(pool)}
    assert [id for id, problem in found.items() if problem] == ["x-cut"]
    assert pool.cache.loads == 5
