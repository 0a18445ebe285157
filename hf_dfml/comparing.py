"""Which is best on *your* images: a member, all members, meta-models, or a public backbone, by nearest class means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.data.folders import open_data
from hf_dfml.evaluation.baselines import best_member
from hf_dfml.evaluation.heads import class_means
from hf_dfml.evaluation.heads.features import combined, views
from hf_dfml.evaluation.protocol import EvaluationProtocol, draw_episodes, episode_labels
from hf_dfml.evaluation.results import mean_and_interval
from hf_dfml.meta_model import MetaModel
from hf_dfml.networks.functional import functional_forward
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.teacher import Teacher
from hf_dfml.utils.images import resize, to_unit
from hf_dfml.utils.progress import progress

See = Callable[[Tensor], Sequence[Tensor]]
"""Images `(B, 3, H, W)` in [0, 1] -> one or more features `(B, D)`, of one pass."""

Through = Callable[[See], list[Tensor]]
"""The features `(M, D)` of all images by what sees them a batch at a time."""

AT_ONCE = 64


class Contestants(NamedTuple):
    """Contestants whose features come from the same passes of the images.

    Attributes:
        size: of the images that they want.
        features: of all images, `(M, D)`, by what tables call each contestant.
    """

    size: int
    features: Callable[[Through], dict[str, Tensor]]


@dataclass(frozen=True)
class Comparison:
    """A contestant on a user's images.

    Attributes:
        name: what tables call it.
        right: images whose class is found when each is left out of the class means once.
        images: how many were.
        accuracy: mean accuracy in percent over episodes of these images, by shots; empty where there are too few.
        ci95: half of its 95 % interval, by shots.
        behind: by shots, how many points it is behind the first one, paired by episode, and the interval of that.
    """

    name: str
    right: int
    images: int
    accuracy: dict[int, float]
    ci95: dict[int, float]
    behind: dict[int, tuple[float, float]]

    def as_json(self) -> dict[str, Any]:
        """For a tool that reads."""
        return asdict(self)


def compare(
    support: Path | str,
    *,
    pool: str | None = None,
    models: Sequence[str] = (),
    backbone: str | None = None,
    ways: int = 5,
    shots: Sequence[int] = (1, 5),
    queries: int = 15,
    episodes: int = 200,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **data: Any,
) -> list[Comparison]:
    """Compare by leave-one-out and by episodes, the same for all; the best with the most shots comes first.

    Args:
        support: as `hf_dfml.data.open_data`.
        pool: its best member and all its members take part.
        models: meta-models, by folder or id.
        backbone: a pool of one public network (folder or id).
        ways: classes of an episode; fewer where there are fewer.
        shots: support images a class; numbers that the images do not allow are passed over.
        queries: query images a class; fewer where there are fewer.
        episodes: how many.
        seed: of the episodes.
        device: where.
        **data: of `open_data`.

    Raises:
        ValueError: if nothing is to be compared, or the images have fewer than two classes.
    """
    contestants = list(_contestants(pool, models, backbone, device))
    if not contestants:
        raise ValueError("Nothing to compare: give --pool, --models or --backbone.")
    images = open_data(support, "train", image_size=max(each.size for each in contestants), **data)
    counts = torch.bincount(images.labels)
    ways = min(ways, len(counts))
    allowed = [number for number in shots if int(counts.min()) > number]
    drawn = {}
    for number in allowed:
        protocol = EvaluationProtocol(
            ways=ways, shots=[number], episodes=episodes, queries=min(queries, int(counts.min()) - number), seed=seed
        )
        drawn[number] = (
            *draw_episodes(images, protocol, number),
            *episode_labels(protocol, number, torch.device("cpu")),
        )
    found = []
    for some in progress(contestants, description="Comparing", unit="part"):
        for name, features in some.features(partial(_through, images, device)).items():
            right = leave_one_out(features, images.labels)
            found.append((name, right, {k: _accuracies(features, *v) for k, v in drawn.items()}))
    most = max(allowed, default=None)
    found.sort(key=lambda each: (float(each[2][most].mean()) if most else 0.0, int(each[1].sum())), reverse=True)
    first = found[0][2]
    return [
        Comparison(
            name,
            int(right.sum()),
            len(right),
            {number: mean_and_interval(100 * values)[0] for number, values in accuracies.items()},
            {number: mean_and_interval(100 * values)[1] for number, values in accuracies.items()},
            {number: mean_and_interval(100 * (first[number] - values)) for number, values in accuracies.items()},
        )
        for name, right, accuracies in found
    ]


def verdict(rows: Sequence[Comparison]) -> str:
    """Which one to use, and whether the difference to the next is more than noise."""
    if len(rows) == 1:
        return f"Only {rows[0].name} was compared."
    best, second = rows[0], rows[1]
    if not second.behind:
        return (
            f"{best.name} has {best.right} and {second.name} {second.right} of {best.images} images right. A "
            "class has too few images for episodes, so that this says little: add some."
        )
    number = max(second.behind)
    points, interval = second.behind[number]
    doubt = "more than chance" if points > interval else "which may be chance: take the smaller or faster of the two"
    ahead = f"{points:.1f} ± {interval:.1f} points ahead of {second.name}"
    return f"Use {best.name}: with {number} images a class it is {ahead}, {doubt}."


def leave_one_out(features: Tensor, labels: Tensor) -> Tensor:
    """Whether each of `features` `(M, D)` is nearest, by cosine, to the mean of the others of its class: `(M,)` bool.

    An image that is its class's only one is wrong, as nothing is known of its class without it.
    """
    ways = int(labels.max()) + 1
    features = F.normalize(features, dim=-1)
    sums = torch.zeros(ways, features.shape[1]).index_add_(0, labels, features)
    cosines = features @ F.normalize(sums, dim=-1).T
    own = (features * F.normalize(sums[labels] - features, dim=-1)).sum(-1)
    alone = torch.bincount(labels, minlength=ways)[labels] == 1
    cosines[torch.arange(len(labels)), labels] = torch.where(alone, -torch.inf, own)
    return cosines.argmax(-1) == labels


def _accuracies(features: Tensor, support: Tensor, query: Tensor, labels: Tensor, truth: Tensor) -> Tensor:
    """Accuracy of each episode `(E,)`; rows of the support `(E, N*K)` and of the queries `(E, N*Q)`."""
    features = F.normalize(features, dim=-1)
    means = class_means(features[support], labels, int(labels.max()) + 1)
    cosines = features[query] @ F.normalize(means, dim=-1).mT
    return (cosines.argmax(-1) == truth).float().mean(-1)


@torch.no_grad()
def _through(images: FewShotDataset, device: torch.device | str, see: See) -> list[Tensor]:
    batches = (to_unit(batch).to(device) for batch in images.images.split(AT_ONCE))
    parts = [[features.cpu().float() for features in see(batch)] for batch in batches]
    return [torch.cat(features) for features in zip(*parts, strict=True)]


def _contestants(
    pool: str | None, models: Sequence[str], backbone: str | None, device: torch.device | str
) -> Iterator[Contestants]:
    if pool:
        members = ModelPool.open(pool).usable().to(device)
        yield Contestants(members.image_size, partial(_of_pool, members))
    for model in models:
        meta = MetaModel.from_pretrained(model, device=device)
        name = f"{meta.config.method} ({Path(model).name})"
        yield Contestants(meta.config.input_size[-1], partial(_alone, name, partial(_seen_by_meta_model, meta)))
    if backbone:
        one = ModelPool.open(backbone).usable().to(device)
        if len(one) != 1:
            raise ValueError(f"--backbone {backbone} has {len(one)} networks: name one.")
        seen = one.load(0).features
        size = (one[0].input_size or (3, 224, 224))[-1]
        yield Contestants(size, partial(_alone, f"Backbone {one[0].id}", lambda images: [seen(images)]))


def _alone(name: str, see: See, through: Through) -> dict[str, Tensor]:
    """Features of a contestant that shares its passes with no other."""
    (features,) = through(see)
    return {name: features}


def _of_pool(members: ModelPool, through: Through) -> dict[str, Tensor]:
    """Features of the best member, and of all members side by side; a pass gives a member's features and answers."""
    best, name = best_member(members)
    found: dict[str, Tensor] = {}
    features, answers = [], []
    for entry in members:
        plain, normalised, probabilities = through(partial(_seen_by_member, members.load(entry)))
        features.append(normalised)
        answers.append(probabilities)
        if entry is best:
            found[name] = plain
    count = f"All {len(members)} members"
    sides = {f"{count}, features": features, f"{count}, answers": answers}
    return found | {side: torch.cat(parts, dim=1) for side, parts in sides.items()}


def _seen_by_member(member: Teacher, images: Tensor) -> list[Tensor]:
    """Its features, the same of length 1, and its probabilities."""
    features, logits = member.features_and_logits(images)
    return [features, F.normalize(features, dim=-1), logits.softmax(-1)]


def _seen_by_meta_model(meta: MetaModel, images: Tensor) -> list[Tensor]:
    """Features as `adapt` takes them by default, under stored statistics."""
    size, how = meta.config.input_size[1:], meta.config.adapt

    def features(images: Tensor) -> Tensor:
        return functional_forward(meta.network, {}, resize(images, size), source="running", features=True)

    return [combined(meta.network, views(features, how.flips, images), how)]
