"""See it work: a pool on the embedded glyphs, pool distillation, TGR beside it; no network, no data, minutes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_dfml.data import load_dataset
from hf_dfml.evaluation import EvaluationProtocol, Result, evaluate, print_table, write_results
from hf_dfml.evaluation.results import ignore, merged
from hf_dfml.meta_model import MetaModel
from hf_dfml.methods.pool_distillation import PoolDistillation, PoolDistillationConfig
from hf_dfml.methods.tgr import TGR, TGRConfig
from hf_dfml.pipeline import RunResults, run
from hf_dfml.pool.building.build import build_pool
from hf_dfml.pool.building.training import PoolRecipe
from hf_dfml.run_config import RunConfig

NUM_MEMBERS = 30
"""With five classes each of 64, a class is known to two members or three, so that replay cannot go by one's style."""
EPISODES = 100
VALIDATION_EPISODES = 40
INNER_LR = 0.05
"""Of TGR, where it learns and where it is evaluated."""
COMMAND = ["hf-dfml", "quickstart"]


def run_quickstart(output_dir: Path | str, seed: int = 42) -> RunResults:
    """Build a small pool, learn from it by pool distillation and by TGR, evaluate, write all below `output_dir`.

    Run again after an interruption: finished members are kept and training goes on from the last checkpoint.

    Returns:
        The rows of the table; none, and an exit code, where a training was stopped before its end.
    """
    folder = Path(output_dir)
    print(f"1. A pool: {NUM_MEMBERS} conv4 classifiers of 5 glyph classes each, in {folder / 'pool'}.")
    recipe = replace(PoolRecipe.fast(flip=False), epochs=4, batch_size=32)
    build_pool("glyphs", output=folder / "pool", num_models=NUM_MEMBERS, recipe=recipe, seed=seed)
    print("2. TGR, a published method, learns from these classifiers alone (three steps of thousands).")
    tgr = run(TGR, tgr_config(), _run_config(folder, seed, output_dir=str(folder / "tgr"), dataset=None), argv=COMMAND)
    if tgr.exit_code:
        return tgr
    print("3. Pool distillation learns from the same classifiers; then evaluation on classes that none of them knows.")
    rows = run(PoolDistillation, distillation_config(), _run_config(folder, seed), argv=COMMAND, show=ignore)
    if rows.exit_code:
        return rows
    rows[:] = merged(_of_tgr(folder), rows)
    write_results(folder, rows)
    print_table(in_short(rows, folder))
    print(
        "Accuracy in % on classes that no member knows, from 1 or 5 images of each (5 classes: chance is 20). Pool\n"
        f"distillation is one small network, to be set against the best member; all members cost {NUM_MEMBERS} times "
        "as much.\n"
        f"Model, card and pictures of what was recovered are in {folder}. Next, with your own pictures:\n\n"
        f"    hf-dfml adapt {folder} --support FOLDER_WITH_A_FOLDER_FOR_EACH_CLASS --query IMAGES\n"
    )
    return rows


def in_short(rows: list[Result], folder: Path) -> list[Result]:
    """One row a contestant: each under the adaptation that suits it, the meta-model's as its config says."""
    ours = MetaModel.from_pretrained(str(folder)).config.adapt
    chosen = [row for row in rows if row.method == PoolDistillation.name]
    settled = (ours.bn, ours.head, ours.flips, ours.representation)
    chosen = [row for row in chosen if (row.bn, row.head, row.flips, row.representation) == settled]
    others = [row for row in rows if row.method in ("TGR", "Random init")]
    members = [row for row in rows if row.method.endswith("+ prototype") and row.flips == ours.flips]
    return [*chosen, *others, *members]


def _of_tgr(folder: Path) -> list[Result]:
    network = MetaModel.from_pretrained(str(folder / "tgr")).network
    protocol = EvaluationProtocol(episodes=EPISODES, inner_lr=INNER_LR)
    return evaluate(network, load_dataset("glyphs", "test"), protocol, method=TGR.name, command=" ".join(COMMAND))


def distillation_config() -> PoolDistillationConfig:
    """Pool distillation for two or three minutes on two slow cores."""
    return PoolDistillationConfig(
        steps=12,
        recoveries=1,
        recovery_steps=25,
        images_per_class=8,
        joint_rounds=1,
        joint_updates=25,
        num_images=4000,
        flip=False,
    )


def tgr_config() -> TGRConfig:
    """TGR for a minute on two slow cores: pixels instead of a generator, short recoveries, few steps."""
    return TGRConfig(
        steps=3,
        recovery="pixels",
        recovery_steps=10,
        recovery_lr=0.1,
        images_per_class=5,
        tv_weight=0.1,
        shift=2,
        flip=False,
        probe="average",
        embedding_batches=1,
        keep_embedded=True,
        second_order=False,
        bn="support",
        inner_lr=INNER_LR,
        outer_lr=0.003,
        replay_batch=4,
        replay_patience=30,
        replay_max_batches=30,
    )


def _run_config(folder: Path, seed: int, **changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "pool": str(folder / "pool"),
        "dataset": "glyphs",
        "output_dir": str(folder),
        "seed": seed,
        "episodes": EPISODES,
        "validation_episodes": VALIDATION_EPISODES,
        "finetuned_rows": False,
        "validate_every": 6,
        "checkpoint_every": 1,
        "resume_from_checkpoint": "latest",
        "log_with": "none",
    }
    return RunConfig(**{**values, **changes})
