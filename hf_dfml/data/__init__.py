"""What a task is: few-shot data sets split by class, episodes drawn from them, the embedded `glyphs`."""

from hf_dfml.data.episodes import Episodes, EpisodeSampler
from hf_dfml.data.few_shot import FewShotDataset, load_dataset
from hf_dfml.data.folders import Needs, open_data
from hf_dfml.data.registry import DATASETS, SPLITS, DatasetInfo, dataset_info

__all__ = [
    "DATASETS",
    "SPLITS",
    "DatasetInfo",
    "EpisodeSampler",
    "Episodes",
    "FewShotDataset",
    "Needs",
    "dataset_info",
    "load_dataset",
    "open_data",
]
