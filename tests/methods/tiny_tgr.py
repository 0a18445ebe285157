"""TGR in seconds, for the tests of its steps and of the trainer's promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_dfml.methods.tgr import TGR, TGRConfig
from hf_dfml.pool import ModelPool
from hf_dfml.trainer import RunConfig, Trainer
from tests.methods.pools import make_model

TINY: dict[str, Any] = {
    "recovery": "pixels",
    "recovery_steps": 2,
    "recovery_lr": 0.1,
    "images_per_class": 4,
    "probe": "average",
    "embedding_batches": 1,
    "num_groups": 2,
    "teachers_per_step": 2,
    "replay_queries": 2,
    "replay_batch": 2,
    "replay_patience": 1,
    "inner_steps": 2,
    "steps": 5,
}


def trainer_of(
    pool: ModelPool, folder: Path, resume: str | None = "latest", max_minutes: float = 0.0, **changes: Any
) -> Trainer:
    """TGR on one process that writes a checkpoint after each step; `changes` are to `TINY`."""
    config = RunConfig(
        output_dir=str(folder),
        checkpoint_every=1,
        resume_from_checkpoint=resume,
        max_minutes=max_minutes,
        log_with="none",
    )
    return Trainer(TGR(TGRConfig(**{**TINY, **changes}), make_model(9)), pool, config, Accelerator(cpu=True))
