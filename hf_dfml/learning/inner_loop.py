"""Inner loops: MAML (Finn et al., ICML 2017) and ANIL (Raghu et al., ICLR 2020), vectorised over episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.data.episodes import Episodes
from hf_dfml.learning.conv4_gradient import Conv4Gradient, Patches, applies_to
from hf_dfml.networks.conv4 import biases_before_batch_norm
from hf_dfml.networks.functional import (
    BatchNorm,
    batch_norm_from,
    batch_statistics,
    functional_forward,
    normalise,
    prepare,
    with_parameters,
)
from hf_dfml.networks.info import network_info
from hf_dfml.networks.side_by_side import apart, beside, how_many, joined, side_by_side

Parameters = dict[str, Tensor]

TaskLoss = Callable[[Parameters], Tensor]
"""The loss of one task as a function of the meta-model's parameters."""


@dataclass(frozen=True)
class InnerLoop:
    """How a network is fitted to a support set (the papers: SGD, learning rate 0.01, 5 steps, 10 in meta-testing)."""

    steps: int = field(default=5, metadata={"help": "SGD steps on the support set."})
    lr: float = field(default=0.01, metadata={"help": "Rate of these steps."})
    bn: BatchNorm = field(default="transductive", metadata={"help": "Whose statistics normalise the queries."})
    scope: Literal["all", "head"] = field(
        default="all", metadata={"help": "What adapts: all parameters (MAML) or the last layer alone (ANIL)."}
    )
    second_order: bool = field(
        default=True, metadata={"help": "Differentiate through the steps (MAML) or not (FOMAML)."}
    )


def adapt(
    model: nn.Module,
    params: Parameters,
    support: Tensor,
    labels: Tensor,
    loop: InnerLoop,
    *,
    under_vmap: bool = False,
) -> Parameters:
    """Fit `params` to one support set by gradient descent on the cross-entropy.

    Differentiable with respect to `params`: through the steps if `loop.second_order`, else as if they were constants.

    Args:
        model: the network whose forward pass is used; its own weights are not touched.
        params: the initial parameters by name.
        support: `(N*K, 3, H, W)` in [0, 1].
        labels: `(N*K,)` integers.
        loop: steps, learning rate, scope and batch-norm mode.
        under_vmap: whether the call comes from inside `torch.func.vmap`.

    Returns:
        The adapted parameters by name.
    """
    if not (loop.second_order or under_vmap):
        return _gradient_descent(model, [params], support[None], labels[None], loop)[0]

    def loss(current: Parameters) -> Tensor:
        twice = loop.second_order and under_vmap
        logits = functional_forward(model, params | current, support, source=_support_norm(loop), second_order=twice)
        return F.cross_entropy(logits, labels)

    moving = {name: params[name] for name in _moving_names(model, params, loop)}
    return params | unroll(
        loss, moving, steps=loop.steps, lr=loop.lr, second_order=loop.second_order, under_vmap=under_vmap
    )


def adapt_each(
    model: nn.Module, params: Sequence[Parameters], support: Tensor, labels: Tensor, loop: InnerLoop
) -> list[Parameters]:
    """`adapt` to each of `E` support sets, to first order; several at once where that is faster.

    Args:
        model: the network.
        params: the initial parameters of each episode.
        support: `(E, N*K, 3, H, W)` in [0, 1].
        labels: `(E, N*K)` integers.
        loop: the inner loop.

    Returns:
        The adapted parameters of each.
    """
    adapted: list[Parameters] = []
    size = how_many(model, support[0, :, 0].numel())
    for first in range(0, len(params), size):
        some = slice(first, first + size)
        adapted += _gradient_descent(model, params[some], support[some], labels[some], loop)
    return adapted


def _gradient_descent(
    model: nn.Module, params: Sequence[Parameters], support: Tensor, labels: Tensor, loop: InnerLoop
) -> list[Parameters]:
    """`adapt_each`, all at once: the numbers of `unroll` with one set-up for all steps and one copy of the parameters.

    A step of conv4 on one CPU thread takes 0.9 times as long with 25 images, 0.7 times with 5.
    """
    count = len(params)
    own = dict(model.named_buffers()) | dict(model.named_parameters())
    state = joined([{name: value.detach() for name, value in (own | each).items()} for each in params])
    leaves = {name: _copy_to_move(state[name]) for name in _moving_names(model, params[0], loop)}
    images = beside(normalise(model, support)) if count > 1 else prepare(model, support[0])
    targets = labels.T.flatten()
    forward = network_info(model).logits

    def written_out() -> None:
        patches = Patches(images, count)
        for _ in range(loop.steps):
            step = Conv4Gradient(model, state | leaves, images, labels, twice=False, patches=patches)
            for name, gradient in step.gradients.items():
                leaves[name].detach().sub_(gradient, alpha=loop.lr)

    def all_steps() -> None:
        for _ in range(loop.steps):
            logits = forward(images).unflatten(1, (count, -1)).flatten(0, 1)
            # The mean over the images of each episode, summed over the episodes, which do not meet.
            loss = count * F.cross_entropy(logits, targets)
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            with torch.no_grad():
                for leaf, gradient in zip(leaves.values(), gradients, strict=True):
                    leaf.sub_(gradient, alpha=loop.lr)
            torch.clear_autocast_cache()  # It holds the parameters as they were.

    if _is_written_out(model, support, loop):
        written_out()
    else:
        norm = batch_norm_from(model, _support_norm(loop), second_order=False)
        with torch.enable_grad(), side_by_side(model, count), norm:
            with_parameters(model, state | leaves, all_steps)
    moved = apart({name: leaf.detach() - state[name] for name, leaf in leaves.items()}, count)
    # What the steps add is a constant to whoever differentiates.
    return [
        each | {name: each[name] + way for name, way in ways.items()} for each, ways in zip(params, moved, strict=True)
    ]


def _copy_to_move(value: Tensor) -> Tensor:
    """A leaf to be updated; a convolution's kernel in the layout of the images that it meets on a CPU."""
    on_cpu = value.dim() == 4 and value.device.type == "cpu"
    return value.clone(memory_format=torch.channels_last if on_cpu else torch.preserve_format).requires_grad_()


def _support_norm(loop: InnerLoop) -> Literal["running", "batch"]:
    return "running" if loop.bn == "running" else "batch"


def unroll(
    loss: TaskLoss, params: Parameters, *, steps: int, lr: float, second_order: bool, under_vmap: bool = False
) -> Parameters:
    """Where `steps` SGD steps of size `lr` lead from `params`, differentiable through the steps if `second_order`."""
    gradient = torch.func.grad(loss) if second_order or under_vmap else partial(_constant_gradient, loss)
    for _ in range(steps):
        gradients = gradient(params)
        if not second_order:
            gradients = {name: value.detach() for name, value in gradients.items()}
        params = {name: value - lr * gradients[name] for name, value in params.items()}
    return params


def _constant_gradient(loss: TaskLoss, params: Parameters) -> Parameters:
    """`torch.func.grad(loss)(params)` without a graph, in 0.7 of its time (conv4 on a CPU)."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(leaves), list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))


def query_outputs(
    model: nn.Module,
    params: Parameters,
    support: Tensor,
    query: Tensor,
    bn: BatchNorm,
    *,
    features: bool = False,
    second_order: bool = True,
    under_vmap: bool = False,
) -> Tensor:
    """Logits `(N*Q, N)` or features of the queries of one episode, normalised as `bn` says.

    `support`: the statistics of the support set, recomputed under `params`; `transductive`: of all queries together;
    `running`: those stored in the network.
    """
    forward = partial(functional_forward, model, features=features)
    if bn == "transductive":
        return forward(params, query, second_order=second_order and under_vmap)
    if bn == "support" and (under_vmap or torch.is_grad_enabled()):
        # All in one pass, through which the statistics have a derivative.
        return forward(params, torch.cat([support, query]), source=len(support))[len(support) :]
    if bn == "support":
        params = params | batch_statistics(model, params, support)
    return forward(params, query, source="running")


def outer_loss(
    model: nn.Module,
    params: Parameters,
    loop: InnerLoop,
    support: Tensor,
    support_labels: Tensor,
    query: Tensor,
    query_labels: Tensor,
    *,
    under_vmap: bool = False,
) -> tuple[Tensor, Tensor]:
    """Query loss and accuracy (two scalars) of one episode after adaptation to its support set.

    Differentiable with respect to `params` and, through the unrolled steps if `loop.second_order`, to the images.
    """
    adapted = adapt(model, params, support, support_labels, loop, under_vmap=under_vmap)
    logits = query_outputs(
        model, adapted, support, query, loop.bn, second_order=loop.second_order, under_vmap=under_vmap
    )
    return F.cross_entropy(logits, query_labels), (logits.argmax(-1) == query_labels).float().mean()


def meta_gradient(
    model: nn.Module, params: Parameters, episodes: Episodes, loop: InnerLoop, *, chunk_size: int | None = None
) -> tuple[Parameters, float, float]:
    """Gradient of the summed query losses with respect to the initial parameters (the outer step of MAML).

    Args:
        model: the network.
        params: the meta-parameters by name.
        episodes: a batch of `E` episodes.
        loop: the inner loop.
        chunk_size: episodes held in memory at a time; by default as many as `episodes_at_once` says.

    Returns:
        gradients by name (sum over the episodes), mean query loss, mean query accuracy in [0, 1].
    """
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    total = {name: torch.zeros_like(value) for name, value in leaves.items()}
    losses, hits = [], []
    size = chunk_size or episodes_at_once(model, episodes, loop)
    if _is_written_out(model, episodes.support, loop):
        for first in range(0, len(episodes), size):
            gradients, loss, accuracy = _by_products(model, params, episodes[first : first + size], loop)
            for name, gradient in gradients.items():
                total[name] += gradient
            losses.append(loss)
            hits.append(accuracy)
        return total, torch.cat(losses).mean().item(), torch.cat(hits).mean().item()

    tensors = (episodes.support, episodes.support_labels, episodes.query, episodes.query_labels)
    for part in zip(*(tensor.split(size) for tensor in tensors), strict=True):
        loss, accuracy = _over_episodes(partial(outer_loss, model, leaves, loop), part)
        found = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True)
        for name, slope in zip(leaves, found, strict=True):
            if slope is not None:
                total[name] += slope
        losses.append(loss.detach())
        hits.append(accuracy)
    return total, torch.cat(losses).mean().item(), torch.cat(hits).mean().item()


def episodes_at_once(model: nn.Module, episodes: Episodes, loop: InnerLoop) -> int:
    """Episodes whose meta-gradient is best taken together.

    All on an accelerator. One on a CPU, which has enough to do with one and where `vmap` costs more than it saves
    (conv4, 5-shot: 2.3 times slower), but for conv4, whose small support sets stand side by side: eight at most, so
    that two processes have something to do with the 16 of a batch.
    """
    if episodes.support.device.type != "cpu":
        return len(episodes)
    if not _is_written_out(model, episodes.support, loop):
        return 1
    return min(8, how_many(model, episodes.support[0, :, 0].numel()))


def _is_written_out(model: nn.Module, images: Tensor, loop: InnerLoop) -> bool:
    """Whether `Conv4Gradient` takes the steps of this loop."""
    return loop.scope == "all" and loop.bn != "running" and applies_to(model, images)


@torch.no_grad()
def _by_products(
    model: nn.Module, params: Parameters, episodes: Episodes, loop: InnerLoop
) -> tuple[Parameters, Tensor, Tensor]:
    """MAML's gradient summed over the episodes, and the query loss and accuracy of each, by `Conv4Gradient`.

    From the last step to the first, the gradient of the query loss loses `lr` times its product with the Hessian.
    """
    count = len(episodes)
    own = dict(model.named_parameters()) | params
    state = joined([{name: value.detach() for name, value in own.items()}] * count)
    images = beside(normalise(model, episodes.support))
    patches = Patches(images, count)
    steps: list[Conv4Gradient] = []
    for _ in range(loop.steps):
        step = Conv4Gradient(model, state, images, episodes.support_labels, twice=loop.second_order, patches=patches)
        state = state | {name: state[name] - loop.lr * gradient for name, gradient in step.gradients.items()}
        if loop.second_order:
            steps.append(step)
    adapted = apart(state, count)
    found = [_query_gradient(model, each, episodes, index, loop) for index, each in enumerate(adapted)]
    way = joined([gradient for gradient, _, _ in found])
    while steps:
        products = steps.pop().along(way)
        way = {name: way[name] - loop.lr * product for name, product in products.items()}
    gradients = {name: value.unflatten(0, (count, -1)).sum(0) for name, value in way.items()}
    losses, hits = torch.stack([loss for _, loss, _ in found]), torch.stack([accuracy for _, _, accuracy in found])
    return gradients, losses, hits


def _query_gradient(
    model: nn.Module, params: Parameters, episodes: Episodes, index: int, loop: InnerLoop
) -> tuple[Parameters, Tensor, Tensor]:
    """Gradient of the query loss of one episode at its adapted parameters, without biases; loss and accuracy."""
    query, labels = episodes.query[index], episodes.query_labels[index]
    if loop.bn == "transductive":
        at = Conv4Gradient(model, params, prepare(model, query), labels[None], twice=False)
        return at.gradients, at.losses[0], (at.logits[0].argmax(-1) == labels).float().mean()
    idle = biases_before_batch_norm(model)
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    wanted = [name for name in leaves if name not in idle]
    with torch.enable_grad():
        logits = query_outputs(model, leaves, episodes.support[index], query, loop.bn, second_order=False)
        loss = F.cross_entropy(logits, labels)
        gradients = torch.autograd.grad(loss, [leaves[name] for name in wanted])
    hits = (logits.argmax(-1) == labels).float().mean()
    return dict(zip(wanted, gradients, strict=True)), loss.detach(), hits


def _over_episodes(function: Callable, tensors: tuple[Tensor, ...]) -> Any:
    """`function` of each episode, results stacked along the first axis."""
    if len(tensors[0]) > 1:
        return torch.func.vmap(partial(function, under_vmap=True))(*tensors)
    result = function(*(tensor[0] for tensor in tensors))
    return tuple(part[None] for part in result) if isinstance(result, tuple) else result[None]


def _moving_names(model: nn.Module, params: Parameters, loop: InnerLoop) -> list[str]:
    """Names of the parameters that adapt."""
    if loop.scope == "head":
        in_classifier = network_info(model).in_classifier
        return [name for name in params if in_classifier(name)]
    # A batch norm takes out again what a bias before it adds, so that its gradient is zero but for rounding.
    idle = set() if loop.bn == "running" else biases_before_batch_norm(model)
    return [name for name in params if name not in idle]
