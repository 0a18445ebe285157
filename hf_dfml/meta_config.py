"""What a meta-model's `config.json` says: timm's own layout, and where the model came from in the block `hf_dfml`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from hf_dfml.evaluation.heads import Adaptation
from hf_dfml.evaluation.results import Result, result_from_json, with_todays_head
from hf_dfml.networks.info import network_info
from hf_dfml.networks.timm_network import OURS
from hf_dfml.pool.entry import META_BLOCK, PoolEntry
from hf_dfml.pool.formats.checks import reading_block
from hf_dfml.utils.provenance import scrub_command, scrub_values
from hf_dfml.version import __version__

FORMAT = 1
"""Version of the block that `MetaConfig.to_json` writes; higher ones hold what this library cannot know of."""
MODEL_TYPE = "hf_dfml_meta_model"
BLOCK_KEYS = {"format", "version", "method", "method_config", "pool", "adapt", "answers", "dataset", "results"}
MAX_STEPS = 1000
"""Fine-tuning steps that a config may ask for; a downloaded file must not keep a machine busy for ever."""


@dataclass(frozen=True)
class Source:
    """A pool member that a meta-model was made from: its id and, on the Hub, the commit sha."""

    id: str
    revision: str | None = None


@dataclass(frozen=True)
class MetaConfig:
    """Everything about a meta-model but its weights.

    Attributes:
        architecture: a timm name.
        num_classes: outputs of the network; `adapt` rebuilds the head for any other number.
        num_features: length of the penultimate features.
        input_size: (3, height, width) that images are resized to.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        model_args: further arguments of the architecture.
        method: the system that learnt it.
        method_config: that system's hyper-parameters.
        pool: what it was learnt from.
        adapt: how `MetaModel.adapt` works by default.
        answers: classes of each pool member whose answers the outputs predict, in their order; empty where they do
            not (`hf_dfml.learning.answers`).
        dataset: data set of the evaluation; None where there was none.
        results: rows of the evaluation, baselines included.
        version: of this library.
    """

    architecture: str
    num_classes: int
    num_features: int
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    model_args: dict[str, Any] = field(default_factory=dict)
    method: str = ""
    method_config: dict[str, Any] = field(default_factory=dict)
    pool: tuple[Source, ...] = ()
    adapt: Adaptation = field(default_factory=Adaptation)
    answers: tuple[int, ...] = ()
    dataset: str | None = None
    results: tuple[Result, ...] = ()
    version: str = __version__

    def to_json(self) -> dict[str, Any]:
        """The content of `config.json`: `timm.create_model("hf-hub:...")` reads it too."""
        return {
            # transformers refuses what it does not know: it would take a meta-model for a classifier.
            "model_type": MODEL_TYPE,
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "num_features": self.num_features,
            "model_args": self.model_args,
            "pretrained_cfg": {
                "input_size": list(self.input_size),
                # timm would give the size to any architecture as an argument, which few have.
                "fixed_input_size": "img_size" in self.model_args,
                "interpolation": "bilinear",
                "crop_pct": 1.0,
                "mean": list(self.mean),
                "std": list(self.std),
                "num_classes": self.num_classes,
            },
            META_BLOCK: {
                "format": FORMAT,
                "version": self.version,
                "method": self.method,
                "method_config": scrub_values(self.method_config),
                "pool": [asdict(source) for source in self.pool],
                "adapt": asdict(self.adapt),
                "answers": list(self.answers),
                "dataset": self.dataset,
                "results": [{**asdict(row), "command": scrub_command(row.command)} for row in self.results],
            },
        }


def from_json(content: dict[str, Any], entry: PoolEntry) -> MetaConfig:
    """The config of a model whose timm part has been read (and checked) as `entry`.

    Raises:
        ValueError: if the block `hf_dfml` is missing, of a newer format, or not what `MetaConfig.to_json` writes.
    """
    block = content.get(META_BLOCK)
    if not isinstance(block, dict):
        raise ValueError(
            f"{entry.id} is not a meta-model: its config.json has no block '{META_BLOCK}'. A plain timm model is a "
            "pool member (`ModelPool`), or becomes a meta-model with `MetaModel.of(network, ...)`."
        )
    _check_format(block, entry)
    with reading_block(entry.id, META_BLOCK):
        adapt = Adaptation(**with_todays_head(block["adapt"]))
        if adapt.steps > MAX_STEPS:
            raise ValueError(f"adapt.steps is {adapt.steps}, at most {MAX_STEPS} are done.")
        return MetaConfig(
            architecture=entry.architecture or "",
            num_classes=entry.num_classes or 0,
            num_features=int(content["num_features"]),
            input_size=entry.input_size or (3, 0, 0),
            mean=entry.mean or (),
            std=entry.std or (),
            model_args=entry.model_args,
            method=str(block["method"]),
            method_config=dict(block["method_config"]),
            pool=tuple(Source(**source) for source in block["pool"]),
            adapt=adapt,
            answers=_answers(block.get("answers", []), entry),
            dataset=block["dataset"],
            results=tuple(result_from_json(row, entry.id) for row in block["results"]),
            version=str(block["version"]),
        )


def _answers(sizes: list[int], entry: PoolEntry) -> tuple[int, ...]:
    if sizes and sum(sizes) != entry.num_classes:
        raise ValueError(f"answers lists {sum(sizes)} classes: expected {entry.num_classes}, one for each output.")
    return tuple(sizes)


def _check_format(block: dict[str, Any], entry: PoolEntry) -> None:
    """Refuse what only another version of this library can read."""
    written = block.get("format", 1)
    if not isinstance(written, int) or written > FORMAT:
        raise ValueError(
            f"{entry.id} was written by hf_dfml {block.get('version', '(unknown)')} in format {written}. This is "
            f"hf_dfml {__version__}, which reads formats up to {FORMAT}: install a newer version "
            "(pip install --upgrade hf-dfml)."
        )
    unknown = sorted(set(block) - BLOCK_KEYS)
    if unknown:
        raise ValueError(
            f"{entry.id}: the block '{META_BLOCK}' of its config.json has unknown keys: {', '.join(unknown)}. "
            f"Expected {', '.join(sorted(BLOCK_KEYS))}: correct the name, or remove the key."
        )


def describe_network(network: nn.Module, model_args: dict[str, Any] | None = None) -> dict[str, Any]:
    """The fields of a `MetaConfig` that describe its network.

    Args:
        network: made by `create_network` or `timm.create_model`.
        model_args: arguments beyond its number of outputs that it was made with; for our own architectures the image
            size is known.
    """
    info = network_info(network)
    if model_args is None:
        model_args = info.settings.get("model_args") or (
            {"img_size": info.image_size} if info.architecture in OURS else {}
        )
    fields = ("architecture", "num_classes", "num_features", "input_size", "mean", "std", "answers")
    return {name: getattr(info, name) for name in fields} | {"model_args": model_args}
