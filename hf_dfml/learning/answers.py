r"""Learning the answers of many teachers at once: one network, one head for each member of a pool.

The student's loss is the mean, over images and members, of :math:`KL(p_m(x) \Vert q_m(x))`: :math:`p_m` are the
probabilities that member :math:`m` gives (Hinton et al., 2015, with many teachers: You et al., KDD 2017), :math:`q_m`
those of the student's head for this member. A head has one row for each of the member's classes; its logits are the
cosines between features and rows, times a scale. All heads are one matrix, so that 100 members cost one product.

Members' outputs are concatenated in the order of the pool: `sizes` says how many each has, `K` is their sum.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.networks.info import Representation, network_info, set_input

Heads = Literal["member", "name"]
"""A row for each class of each member, or one for each class name, shared by all members that know it."""


def by_member(values: Tensor, sizes: Sequence[int], fill: float) -> Tensor:
    """Concatenated outputs `(..., K)` with an axis for the members, `(..., M, C)`; `fill` where one has fewer than C.

    Examples:
        >>> by_member(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), [2, 3], 0.0).tolist()
        [[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]
    """
    if len(set(sizes)) == 1:
        return values.unflatten(-1, (len(sizes), sizes[0]))
    widest = max(sizes)
    return torch.stack(
        [F.pad(part, (0, widest - part.shape[-1]), value=fill) for part in values.split(list(sizes), -1)], -2
    )


def log_probabilities(logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """Logits `(..., K)` of all heads -> logarithms of the probabilities, a softmax for each member: `(..., M, C)`.

    Where a member has fewer than C classes, the logarithms are minus infinity.
    """
    return by_member(logits, sizes, float("-inf")).log_softmax(-1)


def probabilities(logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """The answers of all heads: logits `(..., K)` -> probabilities `(..., K)`, of which each member's add up to 1."""
    if len(set(sizes)) == 1:
        return log_probabilities(logits, sizes).exp().flatten(-2)
    return torch.cat([part.softmax(-1) for part in logits.split(list(sizes), -1)], -1)


def softened(answers: Tensor, sizes: Sequence[int], temperature: float) -> Tensor:
    """Probabilities `(..., K)` as they would be if the logits had been divided by `temperature` (Hinton et al., 2015).

    Examples:
        >>> softened(torch.tensor([0.8, 0.2]), [2], 2.0)
        tensor([0.6667, 0.3333])
    """
    if temperature == 1:
        return answers
    powers = by_member(answers, sizes, 0.0) ** (1 / temperature)
    powers = powers / powers.sum(-1, keepdim=True)
    return torch.cat([powers[..., index, :size] for index, size in enumerate(sizes)], -1)


def answer_loss(logits: Tensor, answers: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mean over images and members of KL(answer || head): zero where all heads answer as their members do.

    Args:
        logits: `(B, K)` of the student's heads.
        answers: `(B, K)` the members' probabilities; zeros and one-hot answers are fine.
        sizes: classes of each member.
    """
    ours = log_probabilities(logits, sizes)
    theirs = by_member(answers, sizes, 0.0)
    # Zero times minus infinity is not a number where a member has fewer classes than another.
    products = theirs * torch.where(theirs > 0, ours, 0.0)
    return (torch.xlogy(theirs, theirs) - products).sum() / (len(logits) * len(sizes))


class AnswerHeads(nn.Module):
    """Cosine classifiers of all members on the same features.

    Args:
        width: D, length of the features.
        class_names: the members' class names.
        kind: `member`: a row for each class of each member; `name`: classes of the same name share their row, so that
            a member's head is the softmax over all names restricted to its own classes.
        scale: cosines are multiplied by it.
        generator: of the initial rows, on the CPU.
    """

    columns: Tensor

    def __init__(
        self,
        width: int,
        class_names: Sequence[Sequence[str]],
        kind: Heads,
        scale: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.sizes = [len(names) for names in class_names]
        self.scale = scale
        outputs = [name for names in class_names for name in names]
        rows = list(dict.fromkeys(outputs)) if kind == "name" else outputs
        place = {name: row for row, name in enumerate(rows)}
        columns = [place[name] for name in outputs] if kind == "name" else list(range(len(outputs)))
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.rows = nn.Parameter(torch.randn(len(rows), width, generator=generator))

    def forward(self, features: Tensor) -> Tensor:
        """Features `(B, D)` -> logits `(B, K)`."""
        cosines = F.normalize(features, dim=-1) @ F.normalize(self.rows, dim=-1).T
        shared = len(self.rows) < len(self.columns)
        return self.scale * (cosines.index_select(-1, self.columns) if shared else cosines)


def with_answers(model: nn.Module, heads: AnswerHeads) -> nn.Module:
    """A copy of a network in eval mode whose classifier is the heads of all members; plain timm loads it.

    Of *L2-normalised* features the classifier gives the heads' logits; see `predicted_answers`.

    Args:
        model: with one linear layer as its classifier.
        heads: on its features.

    Raises:
        ValueError: if the classifier is another.
    """
    copied = copy.deepcopy(model).eval()
    info = network_info(copied)
    weight = heads.scale * F.normalize(heads.rows.detach(), dim=-1)[heads.columns]
    with torch.random.fork_rng(devices=[]):
        info.reset_classifier(len(weight))
    classifier = copied.get_submodule(info.linear_classifier())
    with torch.no_grad():
        for name, value in classifier.named_parameters():
            value.copy_(weight) if name == "weight" else value.zero_()
    set_input(copied, info.input_size, info.mean, info.std, num_classes=len(weight), answers=tuple(heads.sizes))
    return copied.to(weight.device)


def representation_of(network: nn.Module, features: Tensor, representation: Representation) -> Tensor:
    """What a network that was made with `with_answers` gives heads on features: its features `(B, D)`, the answers
    `(B, K)` that it predicts from them, or both, each of length 1, side by side.

    Raises:
        ValueError: if answers are asked for and the network has no heads of members.
    """
    if representation == "features":
        return features
    answers = predicted_answers(network, features)
    if representation == "answers":
        return answers
    return torch.cat([F.normalize(features, dim=-1), F.normalize(answers, dim=-1)], dim=-1)


def predicted_answers(network: nn.Module, features: Tensor) -> Tensor:
    """What a network from `with_answers` expects all members to answer: features `(B, D)` -> probabilities `(B, K)`.

    Raises:
        ValueError: if the network has no heads of members.
    """
    info = network_info(network)
    if not info.answers:
        raise ValueError(
            f"representation='answers' or 'both': this {type(network).__name__} predicts no answers of a pool's "
            "members (pool distillation makes networks that do): use representation='features'."
        )
    (classifier,) = info.classifiers.values()
    logits = F.linear(F.normalize(features, dim=-1), classifier.weight, classifier.bias)  # type: ignore[arg-type]
    return probabilities(logits, info.answers)
