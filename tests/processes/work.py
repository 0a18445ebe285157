"""What one process and two are to do alike: every method for some steps, and an evaluation.

    python -m tests.processes.work FOLDER                                                            # one process
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 -m tests.processes.work FOLDER               # two

Each process leaves the weights of its meta-models in `<method>-<rank>.safetensors`, and in `shared-<rank>.json` rows
of evaluations and what `Processes` gave.
"""

from __future__ import annotations

import json
import math
import sys
import threading
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from hf_dfml.data import glyphs, load_dataset
from hf_dfml.evaluation import EvaluationProtocol, Result, evaluate
from hf_dfml.methods.bidf_mkd import BiDfMKD, BiDfMKDConfig
from hf_dfml.methods.free import FREE, FREEConfig
from hf_dfml.methods.pool_distillation import PoolDistillation, PoolDistillationConfig
from hf_dfml.methods.purer import PURER, PURERConfig
from hf_dfml.methods.tgr import TGR, TGRConfig
from hf_dfml.networks import create_network
from hf_dfml.pipeline import run
from hf_dfml.pool import ModelPool
from hf_dfml.pool.queries import QueryBudgetError
from hf_dfml.recovery.task import Task
from hf_dfml.run_config import RunConfig
from hf_dfml.trainer import Trainer
from hf_dfml.utils.processes import Processes

STEPS = 8
EPISODES: dict[str, Any] = {"replay_queries": 2, "replay_batch": 3, "inner_steps": 2}
RECOVERY: dict[str, Any] = {"recovery": "pixels", "recovery_steps": 2, "recovery_lr": 0.1, "images_per_class": 4}
REPLAY: dict[str, Any] = {"replay_patience": 1, "replay_max_batches": 2}
MAKE: dict[str, Any] = {
    "tgr": partial(TGR, TGRConfig(**RECOVERY, **EPISODES, **REPLAY, probe="average", embedding_batches=1,
                                  num_groups=2, teachers_per_step=3, keep_embedded=True, second_order=False,
                                  steps=STEPS)),
    "free": partial(FREE, FREEConfig(**EPISODES, **REPLAY, generator_width=8, latent_dim=16, images_per_class=4,
                                     adaptation_steps=2, teachers_per_step=3, warmup=2, second_order=False,
                                     steps=STEPS)),
    "purer": partial(PURER, PURERConfig(**EPISODES, images_per_class=4, warmup=2, patience=2, steps=STEPS)),
    "bidf-mkd": partial(BiDfMKD, BiDfMKDConfig(**RECOVERY, **EPISODES, replay_patience=2, replay_max_batches=3,
                                               boundary_start=4, distillation_steps=2, steps=STEPS)),
    "pool-distillation": partial(PoolDistillation, PoolDistillationConfig(
        recovery_steps=2, images_per_class=4, num_images=48, joint_rounds=3, joint_updates=2, crop_padding=2,
        batch_size=16, steps=STEPS)),
}  # fmt: skip


def trained(name: str, pool: ModelPool, folder: Path, accelerator: Accelerator) -> nn.Module:
    """The meta-model of a method after its steps."""
    network = create_network("conv4_16", num_classes=3, image_size=16, generator=torch.Generator().manual_seed(9))
    config = RunConfig(output_dir=str(folder / name), checkpoint_every=5, log_with="none")
    return Trainer(MAKE[name](network), pool, config, accelerator).fit().model


def evaluation_rows(model: nn.Module, processes: Processes) -> list[Result]:
    """An evaluation whose episodes are divided one by one, and one of features."""
    dataset = load_dataset("glyphs", "validation")
    protocol = EvaluationProtocol(ways=3, shots=[1, 2], queries=3, episodes=5, split="validation")
    protocols = [protocol, replace(protocol, head="prototype", bn="running"), replace(protocol, head="linear")]
    return [
        row
        for one in protocols
        for row in evaluate(model, dataset, one, method="x", chunk_size=1, processes=processes)
    ]


def whole_run(folder: Path) -> list[Result]:
    """A recipe from the pool to the rows of `results.json`, validation and baselines included."""
    method = PURERConfig(**EPISODES, images_per_class=4, warmup=2, patience=2, steps=4)
    config = RunConfig(
        pool=str(folder.parent / "pool"),
        dataset="glyphs",
        arch="conv4_16",
        ways=3,
        shots=[1],
        episodes=6,
        validation_episodes=4,
        validate_every=2,
        output_dir=str(folder / "run"),
        log_with="none",
    )
    return run(PURER, method, config, argv=["test"])


def shared(processes: Processes) -> dict[str, Any]:
    """What all processes should know alike, although each has done a part."""

    def fail(item: int) -> int:
        if item == 1:
            raise QueryBudgetError(spent=5, asked=3, allowed=6)
        return item

    found = {}
    for items in ([7, 0, 2], [1], []):
        found[f"map {items}"] = processes.map(lambda item: 10 * item, items)
        (total,) = processes.sum(lambda item: [torch.full((2, 2), item / 3)], items, like=[torch.empty(2, 2)])
        found[f"sum {items}"] = total.tolist()
    images = torch.arange(24.0).view(1, 2, 3, 4).permute(0, 3, 1, 2)
    sent = {7: (Task(images, torch.tensor([1]), ("cat",), "m"), -math.inf, [torch.ones(9)[2:4].bfloat16()]), "ü": None}
    for got in processes.map(lambda _: sent, range(2)):
        (task, least, (part,)), nothing = got[7], got["ü"]
        found["kinds"] = [type(task).__name__, task.member, list(task.class_names), least, nothing, part.tolist()]
        found["same"] = torch.equal(task.images, images) and task.images.stride() == images.stride()
    asked: list[int] = []
    found["once"] = processes.once(lambda: asked.append(1) or {"a": [torch.ones(2), "b"]})["a"][0].tolist()
    found["asked"] = sum(map(len, processes.map(lambda _: asked, range(processes.count))))
    found["first"] = processes.first(None if processes.is_main and processes.count > 1 else "last")
    try:
        processes.map(fail, [0, 1])
    except QueryBudgetError as error:
        found["error"] = str(error).partition(" (process")[0]
    if processes.count > 1:
        try:
            processes.map(lambda item: threading.Lock() if item else None, [0, 1])
        except TypeError as error:
            found["refused"] = str(error)
    return found


def main(folder: Path, accelerator: Accelerator) -> None:
    """Everything, into `folder`; the pool is `folder.parent / "pool"`."""
    torch.set_num_threads(1)
    rank, processes = accelerator.process_index, Processes(accelerator)
    pool = ModelPool.from_dir(folder.parent / "pool").usable()
    for name in MAKE:
        model = trained(name, pool, folder, accelerator)
        save_file(dict(model.named_parameters()), folder / f"{name}-{rank}.safetensors")
    found = shared(processes)
    # As in the fixture `few_glyphs`, in each of the processes.
    with patch.object(glyphs, "draw_classes", partial(glyphs.draw_classes, images_per_class=20)):
        rows = evaluation_rows(model, processes) + whole_run(folder)
    found["rows"] = [asdict(replace(row, seconds=0.0, command="")) for row in rows]
    (folder / f"shared-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Accelerator())
