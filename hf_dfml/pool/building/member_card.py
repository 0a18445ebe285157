"""The README of a pool member, for a person who meets it on the Hub."""

from __future__ import annotations

from huggingface_hub import EvalResult, ModelCardData

from hf_dfml.data.registry import DATASETS, dataset_info
from hf_dfml.pool.entry import PoolEntry

_TEXT = """---
{metadata}
---

# {name}

A classifier of {ways} classes of {dataset}, a member of a pool for data-free meta-learning with `hf_dfml`.

| class | name |
|---|---|
{classes}

Network: `{architecture}`, {size} pixels, normalised with mean {mean} and std {std}.{accuracy}{note}

```python
import hf_dfml
import timm

network = timm.create_model("hf-hub:<this repository>", pretrained=True)
```
"""


def member_card(name: str, entry: PoolEntry, note: str = "") -> str:
    """A README with the Hub's metadata, made of what a member's config says.

    Args:
        name: what the member is called.
        entry: read from its config, without a problem.
        note: a further sentence.
    """
    assert entry.input_size is not None and entry.mean is not None and entry.std is not None
    dataset, accuracy = entry.dataset, entry.val_accuracy
    known = dataset_info(dataset) if dataset and dataset in DATASETS else None
    labels = entry.label_names or [f"class {index}" for index in range(entry.num_classes or 0)]
    metadata = ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["hf-dfml", "hf_dfml", "timm", "image-classification"],
        datasets=[known.hub_id] if known and known.hub_id else None,
        model_name=name if dataset and accuracy is not None else None,
        eval_results=_results(dataset, accuracy) if dataset and accuracy is not None else None,
    )
    return _TEXT.format(
        metadata=metadata.to_yaml(),
        name=name,
        ways=entry.num_classes,
        dataset=f"`{dataset}`" if dataset else "a data set that it does not name",
        classes="\n".join(f"| {index} | {label} |" for index, label in enumerate(labels)),
        architecture=entry.architecture,
        size="x".join(str(side) for side in entry.input_size[1:]),
        mean=list(entry.mean),
        std=list(entry.std),
        note=f" {note}" if note else "",
        accuracy=f" Accuracy on held-out images of its classes: {100 * accuracy:.1f} %."
        if accuracy is not None
        else "",
    )


def _results(dataset: str, accuracy: float) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=f"{dataset}, held-out images of the member's classes",
            metric_type="accuracy",
            metric_value=round(accuracy, 4),
        )
    ]
