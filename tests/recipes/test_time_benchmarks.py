"""benchmarks/end_to_end.py and baselines.py on tiny members: what is counted, and that parts add up."""

import json

import pytest
import torch

from tests.recipes.test_inversion_recipes import glyph_pool

TINY = """episodes=2 validation_episodes=2 shots=1 queries=2 ways=3 finetuned_rows=false recovery_steps=2
images_per_class=4 joint_updates=1 num_images=32 batch_size=16 steps=1 replay_max_batches=1 replay_queries=1
arch=conv4_16 check_members=false"""


def test_the_parts_of_a_run_add_up_to_it(script, tmp_path, capsys):
    words = ["--pool", str(glyph_pool(tmp_path / "pool")), "--members", "2", "--output_dir", str(tmp_path)]
    result = script("end_to_end").main([*words, "--options", *TINY.split()])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert list(result["seconds"]) == ["pool-distillation", "tgr"]
    for name, parts in result["seconds"].items():
        assert list(parts) == ["recovery", "asking members", "learning", "evaluation", "setup and files"]
        # TGR asks nobody about images of its own.
        assert [part for part, seconds in parts.items() if not seconds] == ["asking members"] * (name == "tgr")
        assert sum(result["shares"][name].values()) == pytest.approx(1, abs=0.01)
    assert result["ratio"] == max(share for shares in result["shares"].values() for share in shares.values())
    section = (tmp_path / "end_to_end.md").read_text(encoding="utf-8")
    assert "| part | pool-distillation, s | share | tgr, s | share |" in section and "| recovery |" in section


def test_time_inside_of_a_part_is_the_inner_ones(script, monkeypatch):
    module, clock = script("end_to_end"), iter(range(100))
    monkeypatch.setattr(module, "now", lambda device: float(next(clock)))
    watch = module.Stopwatch(torch.device("cpu"))
    inner = watch.of("recovery", lambda: None)
    with watch.part("learning"):
        inner()
    watch.turn()
    assert watch.seconds == {part: 0.0 for part in module.PARTS} | {
        "recovery": 1.0,
        "learning": 2.0,
        "setup and files": 2.0,
    }


def test_what_is_timed_is_given_back(script):
    module = script("end_to_end")
    before = module.pool_images.recover, module.of_run.validation, module.Asking.probabilities
    with (
        pytest.raises(ZeroDivisionError),
        module.watched(module.Stopwatch(torch.device("cpu")), module.find_method("tgr")),
    ):
        assert module.pool_images.recover is not before[0]
        raise ZeroDivisionError
    assert (module.pool_images.recover, module.of_run.validation, module.Asking.probabilities) == before


def test_options_go_to_the_methods_that_have_them(script):
    module = script("end_to_end")
    settings = module.Options(options=["joint_updates=3", "episodes=4"])
    words = {name: module.words_of(settings, module.find_method(name)) for name in ("pool-distillation", "tgr")}
    assert words["pool-distillation"][-4:] == ["--joint_updates", "3", "--episodes", "4"]
    assert words["tgr"][-2:] == ["--episodes", "4"] and "--joint_updates" not in words["tgr"]
    for wrong in ("joint_update=3", "episodes"):
        with pytest.raises(ValueError, match="expected NAME=VALUE with the name of an option"):
            module.words_of(module.Options(options=[wrong]), module.find_method("tgr"))


def test_rows_of_shared_passes_show_members_fewer_images(script, tmp_path, capsys):
    module = script("baselines")
    words = ["--pool", str(glyph_pool(tmp_path / "pool")), "--members", "2", "--output_dir", str(tmp_path)]
    result = module.main([*words, "--episodes", "2", "--turns", "1"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    once = result["images"]["shared"] / 4
    # Two members, plain and mirrored; alone three times as much for features, probabilities, and the best one.
    assert result["images"] == {"each row's own": 3 * (2 + 2 + 1) * once, "shared": 4 * once}
    assert result["same"] and "| shared |" in (tmp_path / "baselines.md").read_text(encoding="utf-8")


def test_work_is_counted_where_gradients_of_images_are_asked_for(script, monkeypatch):
    operations = script("measuring").operations
    assert operations(lambda: torch.ones(2, 3) @ torch.ones(3, 5)) == 2 * 2 * 3 * 5
    images, weight = torch.ones(2, 8, 4, 4), torch.ones(6, 4, 3, 3, requires_grad=True)
    # Two groups, there and back to the weight: each of 2 x 6 x 4 x 4 numbers is a sum over 4 x 3 x 3.
    grouped = operations(lambda: torch.nn.functional.conv2d(images, weight, padding=1, groups=2).sum().backward())
    assert grouped == 2 * 2 * (2 * 6 * 4 * 4) * (4 * 3 * 3)
    # A device that computes in bfloat16 first asks about some images twice: do the answers stay what they are?
    monkeypatch.setattr("hf_dfml.pool.asking.computes_in_bfloat16", lambda _: False)
    module = script("roofline")
    work = module.loops(module.Options(), torch.device("cpu"))
    recovery, asking = operations(work["recovery of pixels"]), operations(work["asking a member"])
    # Five steps of 100 images there and back, and one pass of 200 images.
    assert 1.3 * 5 * asking / 2 < recovery < 3 * 5 * asking / 2 + asking
