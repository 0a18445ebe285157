"""Cross-task replay: MAML on episodes that mix the classes of different teachers (BiDf-MKD, FREE Eq. 4, TGR)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_dfml.data.episodes import Episodes
from hf_dfml.learning.inner_loop import InnerLoop, Parameters, episodes_at_once, meta_gradient
from hf_dfml.learning.optimisation import apply_gradients, parameters_of
from hf_dfml.networks.functional import BatchStatistics
from hf_dfml.networks.info import network_info
from hf_dfml.pool.formats.checks import one_line
from hf_dfml.recovery.bank import RecoveredImages
from hf_dfml.settings import Settings, option, part
from hf_dfml.utils.processes import ALONE, Processes


class EpisodeConfig(Settings):
    """MAML on episodes of recovered images; the defaults are those of TGR's released scripts."""

    outer_lr: float = option(1e-3, "Learning rate of the meta-model's Adam.", above=0)
    inner_lr: float = option(0.01, "Learning rate of the inner SGD steps.", above=0)
    inner_steps: int = option(5, "Inner SGD steps in meta-training.", least=0)
    second_order: bool = option(True, "MAML (True) or first-order MAML (False).")
    bn: BatchStatistics = option(
        "transductive", "Batch norm of the replayed queries: `transductive` as the papers, or `support`."
    )
    replay_shots: int = option(1, "Support images a class in a replayed episode.", least=1)
    replay_queries: int = option(15, "Query images a class in a replayed episode.", least=1)
    replay_batch: int = option(16, "Episodes an outer step.", least=1)

    @property
    def inner_loop(self) -> InnerLoop:
        """The inner loop of the replayed episodes."""
        return InnerLoop(self.inner_steps, self.inner_lr, self.bn, "all", self.second_order)


class ReplayConfig(Settings):
    """The replay of recovered tasks from a bank; the defaults are those of TGR's released scripts."""

    episode: EpisodeConfig = part(EpisodeConfig)
    bank_per_class: int = option(600, "Recovered images kept for each class name.", least=1)
    bank_memory_gb: float = option(
        2.0, "Memory for them on the device: with many classes fewer of each are kept.", least=0
    )
    replay_patience: int = option(4, "Outer steps without a better accuracy that end a replay.", least=1)
    replay_max_batches: int = option(0, "Most outer steps in one replay; 0 for no limit.", least=0)


def replay_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    bank: RecoveredImages,
    config: EpisodeConfig,
    generator: torch.Generator,
    *,
    ways: int,
    processes: Processes = ALONE,
) -> tuple[float, float]:
    """One outer step of MAML on a batch of episodes from the bank; mean query loss and accuracy."""
    gradients, loss, accuracy = replay_gradient(
        model, bank, config, generator, ways=ways, count=config.replay_batch, processes=processes
    )
    apply_gradients(optimizer, model, gradients)
    return loss, accuracy


def replay_gradient(
    model: nn.Module,
    bank: RecoveredImages,
    config: EpisodeConfig,
    generator: torch.Generator,
    *,
    ways: int,
    count: int,
    processes: Processes = ALONE,
) -> tuple[Parameters, float, float]:
    """MAML's gradient, summed over `count` episodes from the bank; mean query loss and accuracy."""
    episodes = bank.sample(count, generator, ways=ways, shots=config.replay_shots, queries=config.replay_queries)
    return divided_meta_gradient(model, episodes, config.inner_loop, processes)


def divided_meta_gradient(
    model: nn.Module, episodes: Episodes, loop: InnerLoop, processes: Processes
) -> tuple[Parameters, float, float]:
    """`meta_gradient` at the parameters of `model`, its episodes divided among the processes."""
    params = parameters_of(model)
    count = len(episodes)
    # On a CPU as many as by one process, so that there are the same sums to add up however many there are;
    # of one length, so that two processes are done at the same time.
    on_cpu = episodes.support.device.type == "cpu"
    number = -(-count // episodes_at_once(model, episodes, loop)) if on_cpu else processes.count
    at_once = -(-count // number)

    def of_some(some: Episodes) -> list[Tensor]:
        gradients, loss, accuracy = meta_gradient(model, params, some, loop)
        means = torch.tensor([loss, accuracy], device=some.support.device)
        return [*gradients.values(), len(some) * means]

    parts = [episodes[first : first + at_once] for first in range(0, count, at_once)]
    *gradients, totals = processes.sum(of_some, parts, like=[*params.values(), episodes.support.new_empty(2)])
    loss, accuracy = (totals / count).tolist()
    return dict(zip(params, gradients, strict=True)), loss, accuracy


def check_episode(model: nn.Module, loop: InnerLoop) -> None:
    """Take MAML's gradient on one episode of noise, so that what a network cannot do is found before any work.

    Args:
        model: the meta-model.
        loop: the inner loop of its episodes.

    Raises:
        ValueError: if the network cannot take these steps, such as one of layers without a second derivative, or one
            that is too deep for its images.
    """
    info = network_info(model)
    device, ways = next(model.parameters()).device, info.num_classes
    images = torch.rand(2, 1, ways, *info.input_size, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(ways, device=device)[None]
    try:
        meta_gradient(model, parameters_of(model), Episodes(images[0], labels, images[1], labels), loop)
    except Exception as error:  # Somebody else's layers raise anything at all.
        order = ", or give --second_order false" if loop.second_order else ""
        raise ValueError(
            f"{info.architecture} with images of {info.image_size} pixels cannot be the meta-model of this method, as "
            f"an episode of noise shows ({one_line(error)}): name another --arch{order}."
        ) from error


def replay_until_plateau(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    bank: RecoveredImages,
    config: ReplayConfig,
    generator: torch.Generator,
    *,
    ways: int,
    processes: Processes = ALONE,
) -> dict[str, float]:
    """Outer steps until the query accuracy has not improved for `replay_patience` of them.

    The replay of FREE (Wei et al., CVPR 2024, Eq. 4) and TGR, with the stopping rule of their released code.

    Nothing happens while the bank has fewer than `ways` classes with enough images.
    """
    episode = config.episode
    if len(bank.ready(episode.replay_shots + episode.replay_queries)) < ways:
        return {"replay_batches": 0.0}
    best, waited, batches, losses, accuracies = -1.0, 0, 0, [], []
    while waited < config.replay_patience and not (config.replay_max_batches and batches >= config.replay_max_batches):
        loss, accuracy = replay_step(model, optimizer, bank, episode, generator, ways=ways, processes=processes)
        waited = 0 if accuracy > best else waited + 1
        best = max(best, accuracy)
        batches += 1
        losses.append(loss)
        accuracies.append(accuracy)
    return {
        "replay_batches": float(batches),
        "replay_loss": sum(losses) / batches,
        "replay_accuracy": sum(accuracies) / batches,
    }
