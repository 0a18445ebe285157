"""Can recovered images be recognised? The accuracy on them of a classifier that learnt the classes from photographs.

    python benchmarks/recognisability.py --pool pools/cifar-fs --backbone timm/tf_efficientnet_lite0.in1k

The classifier is a logistic regression on a frozen public backbone's features of real images of the pool's classes; it
is used here alone and never in training. Images are recovered from each member alone, and jointly by all members that
know a class, with and without the members' batch-norm statistics. Real images that the classifier has not seen are
what one could hope for; one class in all of them is chance. The last line is JSON.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from hf_dfml.data import FewShotDataset, load_dataset
from hf_dfml.methods.pool_images import PoolImagesConfig
from hf_dfml.networks.functional import normalise
from hf_dfml.networks.info import network_info
from hf_dfml.pool import ModelPool, TeacherPool
from hf_dfml.pool.backbone import open_backbone
from hf_dfml.pool.names import class_keys
from hf_dfml.pool.teacher import Teacher
from hf_dfml.recovery.inversion import recover
from hf_dfml.recovery.joint import joint_classes, recover_jointly
from hf_dfml.utils.images import to_unit
from hf_dfml.utils.seeding import fork

AT_ONCE = 64


class Judge:
    """Names images by what it learnt from photographs.

    Args:
        backbone: a frozen public network.
        photos: images `(N, 3, H, W)` uint8 with labels and class names.
        size: pixels that images are enlarged to.
        images: photographs of each class that it learns from; as many others are kept for `real`.
    """

    def __init__(self, backbone: Teacher, photos: FewShotDataset, size: int, images: int) -> None:
        self.network, self.size = backbone.network, size
        self.names = [class_keys((name,))[0] for name in photos.class_names]
        rows = [(photos.labels == label).nonzero().flatten() for label in range(len(self.names))]
        seen, unseen = (torch.cat([each[start : start + images] for each in rows]) for start in (0, images))
        self.classifier = LogisticRegression(C=1.0, max_iter=300)
        self.classifier.fit(self.features(to_unit(photos.images[seen])), photos.labels[seen].numpy())
        self.real = self.accuracy(
            to_unit(photos.images[unseen]), [self.names[label] for label in photos.labels[unseen]]
        )

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` in [0, 1] -> `(B, D)` of length 1."""
        parts = []
        for part in images.split(AT_ONCE):
            large = F.interpolate(part, (self.size, self.size), mode="bilinear")
            parts.append(network_info(self.network).features(normalise(self.network, large)))
        return F.normalize(torch.cat(parts), dim=-1)

    def accuracy(self, images: Tensor, names: list[str]) -> float:
        """The share, in percent, of images that are taken for what they are to be; of classes that it knows."""
        known = [index for index, name in enumerate(names) if name in self.names]
        labels = torch.tensor([self.names.index(names[index]) for index in known])
        return 100 * float(self.classifier.score(self.features(images[known]), labels.numpy()))


def recovered(
    pool: TeacherPool, config: PoolImagesConfig, size: int, seed: int
) -> Iterator[tuple[str, Tensor, list[str]]]:
    """Each way of recovery: its name, images and the names of their classes."""
    without = replace(config, bn_weight=0.0)
    for name, options in {"": config, ", without batch-norm statistics": without}.items():
        images, names = [], []
        for index, entry in enumerate(pool):
            task = recover(pool.load(index), options.inversion, size, fork(seed, "recovery", index))
            images.append(task.images)
            names += [entry.class_keys[label] for label in task.labels.tolist()]
        yield f"each member alone{name}", to_unit(torch.cat(images)), names
        joint = recover_jointly(pool, options.joint, size, fork(seed, "joint", 0))
        of = [name for name in joint_classes(pool) for _ in range(joint.shape[1])]
        yield f"jointly{name}", joint.flatten(0, 1), of


def main() -> None:
    """Print the accuracy on each kind of image, and all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", required=True)
    parser.add_argument("--dataset", default="cifar-fs")
    parser.add_argument("--data_dir", help="local copies of the data sets")
    parser.add_argument("--backbone", required=True, help="folder, Hub id or timm name of the judge's network")
    parser.add_argument("--image_size", type=int, default=96, help="pixels that the judge sees")
    parser.add_argument("--photos", type=int, default=100, help="photographs of each class that the judge learns from")
    parser.add_argument("--num_members", type=int, default=0, help="the first so many; 0: all")
    parser.add_argument("--joint_updates", type=int, default=200)
    parser.add_argument("--recovery_steps", type=int, default=120)
    parser.add_argument("--images_per_class", type=int, default=10)
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    pool = ModelPool.open(given.pool).usable()[: given.num_members or None]
    size = max(entry.input_size[-1] for entry in pool if entry.input_size)
    photos = load_dataset(given.dataset, "train", data_dir=given.data_dir, image_size=size)
    judge = Judge(open_backbone(given.backbone), photos, given.image_size, given.photos)
    config = PoolImagesConfig(
        joint_updates=given.joint_updates,
        recovery_steps=given.recovery_steps,
        images_per_class=given.images_per_class,
    )
    found = {"real photographs": judge.real}
    print(
        f"{len(judge.names)} classes, chance {100 / len(judge.names):.1f} %; real photographs {judge.real:.1f} %.",
        flush=True,
    )
    for name, images, names in recovered(pool, config, size, given.seed):
        found[name] = judge.accuracy(images, names)
        print(f"{name}: {found[name]:.1f} % of {len(images)} images", flush=True)
    print(json.dumps({name: round(value, 1) for name, value in found.items()}))


if __name__ == "__main__":
    main()
