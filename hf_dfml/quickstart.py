"""See it work: a pool on the embedded glyphs, TGR, evaluation, a model and its card; no network, no data, minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hf_dfml.evaluation import Result
from hf_dfml.methods.tgr import TGR, TGRConfig
from hf_dfml.pipeline import run
from hf_dfml.pool.building.build import build_pool
from hf_dfml.pool.building.training import PoolRecipe
from hf_dfml.run_config import RunConfig

NUM_MEMBERS = 60
"""With five classes each of 64, a class is known to about five members, so that replay cannot go by one's style."""


def run_quickstart(output_dir: Path | str, seed: int = 42) -> list[Result]:
    """Build a small pool, meta-learn from it, is evaluated, write everything below `output_dir`.

    Run again after an interruption: finished members are kept and training goes on from the last checkpoint.
    """
    folder = Path(output_dir)
    print(f"1. A pool: {NUM_MEMBERS} conv4 classifiers of 5 glyph classes each, in {folder / 'pool'}.")
    recipe = replace(PoolRecipe.fast(flip=False), epochs=6, batch_size=32)
    build_pool("glyphs", output=folder / "pool", num_models=NUM_MEMBERS, recipe=recipe, seed=seed)
    print("2. TGR: meta-learning from these classifiers alone; then evaluation on classes that none of them has seen.")
    results = run(TGR, quickstart_config(), quickstart_run(folder, seed), argv=["hf-dfml", "quickstart"])
    print(
        f"3. Look: {folder / 'README.md'} is the model card, {folder / 'pictures'} shows what was recovered.\n"
        f"   Adapt it: hf-dfml adapt {folder} --support FOLDER_WITH_A_FOLDER_FOR_EACH_CLASS --query IMAGES"
    )
    return results


def quickstart_config() -> TGRConfig:
    """TGR for minutes on two cores: pixels instead of a generator, short recoveries, few steps."""
    return TGRConfig(
        steps=4,
        recovery="pixels",
        recovery_steps=60,
        recovery_lr=0.1,
        images_per_class=10,
        tv_weight=0.1,
        shift=2,
        flip=False,
        probe="average",
        embedding_batches=1,
        keep_embedded=True,
        second_order=False,
        bn="support",
        inner_lr=0.05,
        outer_lr=0.003,
        replay_batch=4,
        replay_patience=125,
        replay_max_batches=125,
    )


def quickstart_run(folder: Path, seed: int) -> RunConfig:
    """The run of the quickstart."""
    return RunConfig(
        pool=str(folder / "pool"),
        dataset="glyphs",
        output_dir=str(folder),
        seed=seed,
        episodes=100,
        validation_episodes=40,
        validate_every=2,
        checkpoint_every=1,
        resume_from_checkpoint="latest",
        log_with="none",
    )
