"""Launches that would go wrong in silence are refused in a sentence."""

import pytest
from accelerate import Accelerator

from hf_dfml.methods.tgr import TGR, TGRConfig
from hf_dfml.pipeline import run
from hf_dfml.run_config import RunConfig


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started and each believes to be alone.*ACCELERATE_USE_CPU"):
        run(TGR, TGRConfig(), RunConfig(output_dir=str(tmp_path), log_with="none"))


def test_a_budget_of_disk_is_kept_by_one_process_only(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="--pool_disk_gb 5 is kept by each process for itself"):
        run(TGR, TGRConfig(), RunConfig(output_dir=str(tmp_path), log_with="none", pool_disk_gb=5))


def test_half_precision_without_scaled_losses_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")
    with pytest.raises(ValueError, match="mixed_precision='fp16': expected bf16 or no"):
        run(TGR, TGRConfig(), RunConfig(output_dir=str(tmp_path), log_with="none"))
