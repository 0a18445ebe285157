"""benchmarks/gpu.py and schedule.py: every part runs, what is measured is kept, and the budget holds."""

import io
import json
import subprocess
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_dfml.arguments import parse_into
from tests.recipes.test_inversion_recipes import glyph_pool


@pytest.fixture
def gpu(script, monkeypatch):
    """The script, whose parts run in this process: the imports of a process take longer than a tiny part."""
    module, ran = script("gpu"), []

    def run(command, timeout, **options):
        ran.append((Path(command[1]).stem, timeout))
        printed = io.StringIO()
        with redirect_stdout(printed):
            script(Path(command[1]).stem).main(command[2:])
        return subprocess.CompletedProcess(command, 0, printed.getvalue(), "")

    replaced = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(module, "subprocess", replaced)
    return SimpleNamespace(module=module, ran=ran, processes=replaced)


@pytest.fixture
def words(tmp_path):
    pool = str(glyph_pool(tmp_path / "pool"))
    return ["--device", "cpu", "--quick", "true", "--pool", pool, "--output_dir", str(tmp_path / "out")]


def test_every_part_is_measured_once_and_kept(gpu, words, tmp_path, capsys):
    result = gpu.module.main(words)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert list(result["parts"]) == list(gpu.module.PARTS)
    assert [part.get("skipped") for part in result["parts"].values()] == [None] * 6
    assert [name for name, _ in gpu.ran] == [part.script for part in gpu.module.PARTS.values()]
    assert all(0 < timeout <= 480 for _, timeout in gpu.ran)
    assert result["ratio"] == result["parts"]["recovery"]["result"]["ratio"]
    page = (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8")
    assert page.count("\n### ") == 6 and f"PyTorch {result['torch']}" in page and "Left out" not in page
    assert str(tmp_path) not in page.replace(words[5], "").replace(words[7], ""), "no path of this machine"
    assert gpu.module.main(words)["parts"] == result["parts"] and len(gpu.ran) == 6


def test_the_schedule_is_projected_from_steps_of_both_kinds(script, words, capsys):
    short = ["--options", "generator_width=8", "images_per_class=4", "teachers_per_step=1", "ways=3", "replay_batch=2"]
    short += ["replay_queries=2", "replay_max_batches=1", "steps=12", "warmup=3", "--network", "conv4_16"]
    result = script("schedule").main([*short, "--pool", words[5], "--seconds", "0.01"])
    warm, after = result["seconds_a_step"].values()
    assert result["steps"] == 12 and result["measured_steps"] == 2
    assert result["baseline"] == pytest.approx(result["setup"] + 3 * warm + 9 * after, abs=0.02)
    assert result["ratio"] == pytest.approx(result["ours"] / result["baseline"], abs=0.02) and warm < after


def test_what_the_budget_does_not_hold_is_left_out_with_a_sentence(gpu, words, tmp_path):
    result = gpu.module.main([*words, "--budget_minutes", "0.5"])
    assert not gpu.ran and result["ratio"] is None
    assert "It may take 100 seconds, and 30 of the budget were left." in str(result["parts"]["recovery"])
    assert (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8").count("of the budget were left") == 6


def test_a_part_that_fails_or_takes_too_long_ends_nothing_else(gpu, words):
    def failing(command, timeout, **options):
        if "replay.py" in command[1]:
            return subprocess.CompletedProcess(command, 1, "", "Traceback\nRuntimeError: no kernel image")
        raise subprocess.TimeoutExpired(command, timeout)

    whole, gpu.processes.run = gpu.processes.run, failing
    words += ["--parts", "replay", "asking members"]
    parts = gpu.module.main(words)["parts"]
    assert parts["replay"]["skipped"] == "It ended with code 1: RuntimeError: no kernel image"
    assert parts["asking members"]["skipped"].startswith("It was stopped after 70 seconds")
    gpu.processes.run = whole
    assert all("result" in part for part in gpu.module.main(words)["parts"].values()), "it is tried again"


def test_what_was_measured_of_less_work_is_not_taken_for_the_whole(gpu, words):
    words += ["--parts", "asking members"]
    gpu.module.main(words)
    kept = gpu.module.main([*words, "--quick", "false", "--budget_minutes", "0.1"])["parts"]["asking members"]
    assert "result" not in kept and len(gpu.ran) == 1


def test_a_device_that_there_is_not_is_named(script):
    with pytest.raises(SystemExit, match="--device cuda: PyTorch finds no CUDA device"):
        script("measuring").device_of("cuda")


def test_the_words_of_every_part_can_be_read_by_its_script(gpu, script):
    """The quick words are run; those of an accelerator are read at least."""
    settings = gpu.module.Options(device="cpu", pool="pools/x")
    for part in gpu.module.PARTS.values():
        name, *words = gpu.module.command_of(part, settings, 100.0)
        module = script(Path(name).stem)
        (options,) = parse_into([module.Options], [*words, "--output_dir", "x"], module.__doc__)
        assert options.output_dir == "x", name


def test_parts_of_other_members_are_measured_again(gpu, words, tmp_path, capsys):
    words = [*words, "--parts", "asking members"]
    gpu.module.main(words)
    gpu.module.main([*words, "--pool", str(glyph_pool(tmp_path / "other", 3))])
    assert len(gpu.ran) == 2
