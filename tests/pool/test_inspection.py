from __future__ import annotations

import io

import pytest
from rich.console import Console

from hf_dfml import MetaModel
from hf_dfml.cli import main
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool, check_pool, inspection, pool_table
from hf_dfml.pool.inspection import draw_map
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


def test_check_warns_of_classes_that_are_called_by_numbers_alone(tmp_path, caplog):
    for index in range(3):
        write_member(tmp_path / f"m-{index}", label_names=["0", "1", "class_2"] if index else ["cat", "1", "2"])
    assert [problem for _, problem in check_pool(ModelPool.from_dir(tmp_path)[:2])] == [None, None]
    assert caplog.messages == [], "one member ties nothing together"
    check_pool(ModelPool.from_dir(tmp_path))
    (message,) = caplog.messages
    assert message.startswith("m-1 and 1 other member call their classes by numbers alone")


def test_check_loads_every_member(members, tmp_path):
    folder = write_member(tmp_path / "x-cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    pool = ModelPool.from_dir(members) + ModelPool.from_dir(tmp_path)
    found = {entry.id: problem for entry, problem in check_pool(pool)}
    assert [id for id, problem in found.items() if problem] == ["x-cut"]
    assert pool.cache.loads == 5


def test_the_map_is_of_the_usable_members(members, tmp_path, monkeypatch):
    write_member(tmp_path / "more" / "bad", architecture="nothing")
    write_member(tmp_path / "more" / "birds", dfml={}, label_names=["Owl", "emu", "jay"])
    pool = ModelPool.from_dir(members) + ModelPool.from_dir(tmp_path / "more")
    seen = {}

    def drawn(classes, groups, path, **options):
        seen.update(classes=classes, groups=groups, **options)
        return path

    monkeypatch.setattr(inspection, "member_map", drawn)
    draw_map(pool, tmp_path / "map.png")
    assert seen["names"] == [*(f"m-{index}" for index in range(5)), "birds"]
    assert seen["classes"][-1] == ("owl", "emu", "jay") and seen["groups"] == ["pets"] * 5 + ["data set not known"]
    assert seen["kinds"] == ["conv4_16"] * 6 and seen["title"].startswith("6 members of 6 classes")
    with pytest.raises(ValueError, match="two members or more that can be used, found 1"):
        draw_map(ModelPool.from_dir(tmp_path / "more"), tmp_path / "map.png")


def test_the_map_is_a_command(members, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pool", "map", str(members), "--output", str(tmp_path / "map.png")])
    assert not stop.value.code and capsys.readouterr().out == f"Wrote the map to {tmp_path / 'map.png'}.\n"
    assert (tmp_path / "map.png").stat().st_size > 1000
