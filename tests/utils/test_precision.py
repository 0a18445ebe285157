"""bfloat16 is used by itself only where there are instructions for it, and the run says which it came to."""

import pytest
import torch
import yaml

from hf_dfml.arguments import presets
from hf_dfml.methods.tgr import TGR, TGRConfig
from hf_dfml.pipeline import run
from hf_dfml.run_config import RunConfig
from hf_dfml.utils.compiling import settled_precision
from tests.methods.tiny_tgr import TINY
from tests.pool.members import write_pool


@pytest.mark.parametrize(("fast", "auto"), [(True, "bf16"), (False, "no")])
def test_auto_asks_the_device(monkeypatch, fast, auto):
    monkeypatch.setattr("hf_dfml.utils.compiling.computes_in_bfloat16", lambda device: fast)
    assert [settled_precision(asked) for asked in ("auto", "bf16", "no", None)] == [auto, "bf16", "no", None]


@pytest.mark.parametrize(
    ("asked", "fast", "said", "computed"),
    [
        ("auto", False, "Precision: float32: this device has no instructions for bfloat16.", torch.float32),
        ("auto", True, "Precision: bfloat16.", torch.bfloat16),
        ("bf16", False, "Precision: bfloat16, for which this device has no instructions", torch.bfloat16),
    ],
)
def test_a_run_says_its_precision(tmp_path, monkeypatch, capsys, asked, fast, said, computed):
    for place in ("hf_dfml.utils.compiling", "hf_dfml.pipeline"):
        monkeypatch.setattr(f"{place}.computes_in_bfloat16", lambda device: fast)
    seen = []
    recover = TGR._recover

    def watched(self, item):
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return recover(self, item)

    monkeypatch.setattr(TGR, "_recover", watched)
    config = {"pool": str(write_pool(tmp_path / "pool", 2)), "output_dir": str(tmp_path / "run"), "log_with": "none"}
    method = TGRConfig(**{**TINY, "grouping": "none", "steps": 1})
    run(TGR, method, RunConfig(**config, ways=3, arch="conv4_16", mixed_precision=asked), argv=["test"])
    assert said in capsys.readouterr().out
    assert set(seen) == {computed}


def test_presets_leave_it_to_the_device():
    found = [yaml.safe_load(file.read_text(encoding="utf-8")).get("mixed_precision") for file in presets().values()]
    assert "auto" in found and "bf16" not in found
