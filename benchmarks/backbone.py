"""A public backbone, frozen, on a few-shot data set: nearest class means of its features. The honest baseline.

    python benchmarks/backbone.py --backbone timm/tf_efficientnet_lite0.in1k --dataset cifar-fs --image_size 128

The backbone is a pool of one network: a Hub id or a folder. Images are enlarged to `--image_size`, which may be
smaller than that of its training. Nothing is trained. Validation classes unless `--split test` is asked for.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from hf_dfml.data import load_dataset
from hf_dfml.evaluation import EvaluationProtocol, markdown_table, write_results
from hf_dfml.evaluation.frozen_features import evaluate_features
from hf_dfml.networks.functional import normalise
from hf_dfml.networks.info import network_info
from hf_dfml.pool import ModelPool
from hf_dfml.utils.provenance import this_command


def main() -> None:
    """Print the table, and the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True, help="Hub id or folder of one network")
    parser.add_argument("--dataset", default="cifar-fs")
    parser.add_argument("--data_dir", help="local copies of the data sets")
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--images_per_class", type=int, default=600, help="fewer: the first of each class")
    parser.add_argument("--split", default="validation", choices=["validation", "test"])
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--output_dir", type=Path, help="folder for results.json")
    given = parser.parse_args()
    network = ModelPool.open(given.backbone).load(0).network
    data = load_dataset(given.dataset, given.split, data_dir=given.data_dir)
    kept = torch.cat(
        [(data.labels == label).nonzero().flatten()[: given.images_per_class] for label in data.labels.unique()]
    )
    data = replace(data, images=data.images[kept], labels=data.labels[kept])

    @torch.no_grad()
    def features(images: torch.Tensor) -> torch.Tensor:
        large = F.interpolate(images, (given.image_size, given.image_size), mode="bilinear")
        return network_info(network).features(normalise(network, large))

    protocol = EvaluationProtocol(episodes=given.episodes, split=given.split, head="prototype", bn="running")
    parameters = sum(weight.numel() for weight in network.parameters())
    name = f"Frozen {network_info(network).architecture}, {given.image_size} px, {parameters:,} parameters"
    rows = evaluate_features(features, data, protocol, method=name, command=this_command())
    if given.output_dir:
        given.output_dir.mkdir(parents=True, exist_ok=True)
        write_results(given.output_dir, rows)
    print(markdown_table(rows))
    print(json.dumps([row.mean for row in rows]))


if __name__ == "__main__":
    main()
