"""What every recipe is told beside its method's hyper-parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class TrainerConfig:
    """Where a run lives, how often it looks up from its work, and when it stops."""

    output_dir: str = field(
        default="runs/dfml", metadata={"help": "Folder of the run: checkpoints, model, card, results."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of everything random in the run."})
    validate_every: int = field(default=20, metadata={"help": "Steps between two looks at the validation classes."})
    checkpoint_every: int = field(default=20, metadata={"help": "Steps between two checkpoints."})
    keep_checkpoints: int = field(default=2, metadata={"help": "Newest checkpoints kept on disk."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "`latest`, or the folder of a checkpoint: go on exactly where it was written."}
    )
    max_minutes: float = field(
        default=0.0,
        metadata={
            "help": "Stop after so many minutes, setup included, ready to go on (the evaluation is later); 0: never."
        },
    )
    recovery_cache: str = field(
        default="",
        metadata={
            "help": "Folder of recovered images for pool distillation: what another run has recovered from the same "
            "member with the same options and seed is not recovered again."
        },
    )
    log_with: str = field(
        default="tensorboard", metadata={"help": "Tracker for Accelerate (`tensorboard`, `wandb`, ...) or `none`."}
    )


@dataclass(frozen=True)
class RunConfig(TrainerConfig):
    """What every recipe is told: the pool, the evaluation, and where the product goes."""

    pool: str = field(
        default="",
        metadata={
            "help": "The teachers: a folder, a pool.lock.json, a Hub user or organisation, a collection, ids by "
            "comma, the URL of a served pool, or Inference Endpoints: URLs by comma or a YAML file."
        },
    )
    pool_memory_gb: float = field(
        default=2.0, metadata={"help": "Memory for loaded teachers that are kept in case they are wanted again."}
    )
    pool_disk_gb: float = field(
        default=0.0,
        metadata={
            "help": "Disk for the weights of a Hub pool in the local cache: those used longest ago make room; 0: no "
            "limit. A run of several processes cannot keep one, and is refused."
        },
    )
    num_members: int = field(default=0, metadata={"help": "Use the first so many members only; 0 for all."})
    black_box: Literal["none", "logits", "probs", "topk", "label"] = field(
        default="none",
        metadata={"help": "Take the members for prediction-only services that tell this much, and nothing else."},
    )
    top_k: int = field(default=3, metadata={"help": "Classes whose probabilities `--black_box topk` tells."})
    max_queries: int = field(
        default=0,
        metadata={
            "help": "Images that black boxes may be sent, all together; 0: no limit. At the end of the budget the run "
            "stops with a checkpoint; a resumed run may have a larger one."
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "Data set of the evaluation (cifar-fs, ...), or several by comma. Without: no evaluation."},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of local copies of the data sets; else HF_DFML_DATA, else the Hub."}
    )
    arch: str = field(default="conv4", metadata={"help": "Network of the meta-model: conv4, conv4_64, resnet12, ..."})
    ways: int = field(default=5, metadata={"help": "Classes of an episode."})
    shots: list[int] = field(
        default_factory=lambda: [1, 5], metadata={"help": "Support images a class in the evaluation."}
    )
    episodes: int = field(
        default=600, metadata={"help": "Episodes of the evaluation on the test classes, once at the end."}
    )
    icfil_episodes: int = field(
        default=0,
        metadata={"help": "Episodes of another evaluation, with and without PURER's calibration (slow); 0: none."},
    )
    baselines: bool = field(
        default=True,
        metadata={"help": "Let random initialisation, average and members is evaluated too; `false` where they have."},
    )
    validation_episodes: int = field(
        default=100, metadata={"help": "Episodes of each look at the validation classes."}
    )
    num_threads: int = field(default=0, metadata={"help": "CPU threads of a process; 0 leaves PyTorch's choice."})
    mixed_precision: str | None = field(
        default=None,
        metadata={"help": "`bf16`: recover and replay in bfloat16; `no`; by default what `accelerate launch` says."},
    )
    patience_minutes: float = field(
        default=30.0,
        metadata={"help": "Of several processes: how long one waits for the others before it gives them up for dead."},
    )
    push_to_hub: str | None = field(default=None, metadata={"help": "Publish the meta-model as this Hub repository."})
    private: bool = field(default=False, metadata={"help": "Publish it as a private repository."})
