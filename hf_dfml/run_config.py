"""The options of every run, beside its method's hyper-parameters."""

from __future__ import annotations

from typing import Literal

from hf_dfml.settings import Settings, option

AUTO = "auto"
"""The architecture that fits the pool."""


class RunConfig(Settings):
    """The run: the pool, the evaluation, where the product goes, how often it is saved, and when it stops."""

    pool: str = option(
        "",
        "The teachers: a folder, a pool.lock.json, a Hub user or organisation, a collection, ids by "
        "comma, the URL of a served pool, or Inference Endpoints: URLs by comma or a YAML file.",
        common=True,
    )
    pool_memory_gb: float = option(
        2.0, "Memory for loaded teachers that are kept in case they are wanted again.", least=0
    )
    pool_disk_gb: float = option(
        0.0,
        "Disk for the weights of a Hub pool in the local cache: those used longest ago make room; 0: no "
        "limit. A run of several processes cannot keep one, and is refused.",
        least=0,
    )
    num_members: int = option(0, "Use the first so many members only; 0 for all.", least=0)
    check_members: bool = option(
        True, "Leave out members that answer alike to every image, are copies, or contradict the others."
    )
    black_box: Literal["none", "logits", "probs", "topk", "label"] = option(
        "none", "Treat the members as prediction-only services with this output and nothing else."
    )
    top_k: int = option(3, "Classes whose probabilities `--black_box topk` returns.", least=1)
    max_queries: int = option(
        0,
        "Images that black boxes may be sent, all together; 0: no limit. At the end of the budget the run "
        "stops with a checkpoint; a resumed run may have a larger one.",
        least=0,
    )
    dataset: str | None = option(
        None, "Data set of the evaluation (cifar-fs, ...), or several by comma. Without: no evaluation.", common=True
    )
    data_dir: str | None = option(
        None, "Folder of local copies of the data sets; else HF_DFML_DATA, else the Hub.", common=True
    )
    data: str | None = option(
        None,
        "In place of --dataset, your own images: a folder of class folders (or of train, validation and test with "
        "class folders in each), or an image data set of the Hub. The checkpoint is chosen on its validation images, "
        "or all; the evaluation is on its test images, if there are any.",
        common=True,
    )
    image_column: str | None = option(None, "Of a data set in --data: its column of images.")
    label_column: str | None = option(None, "Of a data set in --data: its column of classes.")
    arch: str = option(
        AUTO,
        "Network of the meta-model: conv4, conv4_64, resnet12, any timm name, or `auto`: that of most members, "
        "conv4 where they only answer.",
    )
    student_from: str | None = option(
        None,
        "Start the meta-model from this public network, not a fresh one of `arch`: a folder, a Hub id or a timm name.",
        common=True,
    )
    image_size: int = option(
        0,
        "Height and width of the meta-model's images; 0: the largest of the members of its architecture, else of all, "
        "or the public network's own.",
        least=0,
    )
    ways: int = option(5, "Classes of an episode.", least=2, most=100_000, common=True)
    shots: list[int] = option([1, 5], "Support images a class in the evaluation.", least=1, common=True)
    queries: int = option(15, "Query images a class in the evaluation.", least=1)
    eval_inner_loop: Literal["trained", "papers"] = option(
        "trained",
        "Steps and learning rate of fine-tuning in validations, the evaluation and the published model: those that it "
        "was meta-trained with, or the papers' 10 steps of 0.01 (whose rows the evaluation has in either case).",
    )
    eval_inner_steps: int | None = option(None, "Or so many steps,", least=0)
    eval_inner_lr: float | None = option(None, "with this learning rate.", above=0)
    episodes: int = option(
        600, "Episodes of the evaluation on the test classes, once at the end.", least=2, most=10**7
    )
    icfil_episodes: int = option(
        0, "Episodes of another evaluation, with and without PURER's calibration (slow); 0: none.", least=0
    )
    baselines: bool = option(
        True, "Evaluate random initialisation, average and members too; `false` where their rows exist."
    )
    finetuned_rows: bool = option(
        True,
        "Evaluate fine-tuning too; `false`: nearest class means alone, and the meta-model's own adaptation is chosen "
        "among those under running statistics, in a small part of the time.",
    )
    validation_episodes: int = option(100, "Episodes of each look at the validation classes.", least=2, most=10**7)
    num_threads: int = option(0, "CPU threads of a process; 0 leaves PyTorch's choice.", least=0, most=1024)
    mixed_precision: Literal["no", "bf16", "auto"] | None = option(
        None,
        "`bf16`: recover and replay in bfloat16; `auto`: only where the processor or GPU has instructions for it "
        "(others are several times slower so); `no`; by default what `accelerate launch` says.",
    )
    patience_minutes: float = option(
        30.0, "Of several processes: minutes that one waits for the others before it stops.", above=0
    )
    push_to_hub: str | None = option(None, "Publish the meta-model as this Hub repository.", common=True)
    private: bool = option(False, "Publish it as a private repository.")
    output_dir: str = option("runs/dfml", "Folder of the run: checkpoints, model, card, results.", common=True)
    seed: int = option(42, "Seed of everything random in the run.", common=True)
    validate_every: int = option(20, "Steps between two looks at the validation classes.", least=1)
    checkpoint_every: int = option(20, "Steps between two checkpoints.", least=1)
    keep_checkpoints: int = option(
        2, "Newest checkpoints kept on disk, one in each `checkpoint_every` steps.", least=1
    )
    resume_from_checkpoint: str | None = option(
        None, "`latest`, or the folder of a checkpoint: go on exactly where it was written.", common=True
    )
    max_minutes: float = option(
        0.0, "Stop after so many minutes, setup included, ready to go on (the evaluation is later); 0: never.", least=0
    )
    recovery_cache: str = option(
        "",
        "Folder of recovered images for pool distillation: what another run has recovered from the same "
        "member with the same options and seed is not recovered again.",
    )
    log_with: str = option("tensorboard", "Tracker for Accelerate (`tensorboard`, `wandb`, ...) or `none`.")
