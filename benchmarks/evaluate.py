"""The evaluation's fine-tuning against a plain loop over episodes: episodes a second, and the same accuracies.

    python benchmarks/evaluate.py                                           # glyphs, a fresh conv4, one minute
    python benchmarks/evaluate.py --episodes 600 --shots 5 --model runs/tgr --dataset cifar-fs --data_dir data

The plain loop is what one writes first: for each episode a copy of the module, `torch.optim.SGD` on all parameters,
images in PyTorch's usual layout, the published order convolution - batch norm - ReLU - pooling, and at the end the
statistics of the support set in `eval` mode. The library is `hf_dfml.evaluation.meta_testing.episode_accuracies`. Both
get the same episodes in turns, for each number of CPU threads; the accuracies are compared once more in double
precision.

The convolution peak is the rate at which the same threads (or the accelerator) run a 3x3 convolution with 64 channels,
channels last; the work of an episode is that of the plain loop.

Seconds are those of the process where it has one CPU thread, so that other work on the machine hardly counts, and else
the clock's. The last line is a JSON object; `ratio` is that of the largest number of shots and threads.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from measuring import ON, Device, convolution_peak, device_of, operations, plain_network, table, timed, write_section
from torch import Tensor, nn

from hf_dfml.arguments import parse_into
from hf_dfml.data import FewShotDataset, load_dataset
from hf_dfml.evaluation.meta_testing import episode_accuracies
from hf_dfml.evaluation.protocol import EvaluationProtocol, draw_episodes
from hf_dfml.meta_model import MetaModel
from hf_dfml.networks import BatchNorm, create_network
from hf_dfml.networks.info import network_info
from hf_dfml.settings import Settings, option
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork

HEADER = (
    "shots | threads | plain loop, episodes a second | hf_dfml | ratio | of the convolution peak | accuracy "
    "| the same in float64"
)


class Options(Settings):
    """The network, its evaluation, and how much of it is measured."""

    network: str = option("conv4", "Architecture of a fresh network.")
    model: str = option("", "A meta-model to examine instead: a folder or a Hub id.")
    dataset: str = option("glyphs", "Data set of the episodes.")
    data_dir: str | None = option(None, "Folder of local copies of the data sets.")
    ways: int = option(5, "Classes of an episode.", least=2)
    shots: list[int] = option([1, 5], "Support images a class.", least=1)
    queries: int = option(15, "Query images a class.", least=1)
    bn: BatchNorm = option("support", "Whose statistics normalise the queries.")
    inner_steps: int = option(10, "SGD steps on the support set.", least=0)
    inner_lr: float = option(0.01, "Learning rate of these steps.", above=0)
    episodes: int = option(24, "Episodes for each number of shots and threads.", least=2)
    rounds: int = option(4, "Parts of them, after each of which the two take turns.")
    exact_episodes: int = option(8, "Episodes that are compared in double precision.")
    num_threads: list[int] = option(sorted({1, torch.get_num_threads()}), "Numbers of CPU threads.", least=0)
    seed: int = option(0, "Seed of network and episodes.")
    device: Device = option("auto", ON)
    output_dir: str = option("", "Where `evaluate.md` goes; nowhere by default.")

    def protocol(self, episodes: int, part: int = 0) -> EvaluationProtocol:
        """A part of the evaluation, with episodes of its own."""
        return EvaluationProtocol(
            self.ways,
            self.shots,
            self.queries,
            episodes,
            self.bn,
            inner_steps=self.inner_steps,
            inner_lr=self.inner_lr,
            seed=self.seed + part,
        )


@dataclass(frozen=True)
class Row:
    """What was measured for one number of shots and threads; rates are episodes a second, accuracies percent."""

    shots: int
    threads: int
    plain: float
    ours: float
    ratio: float
    peak_share_plain: float
    peak_share: float
    accuracy_plain: float
    accuracy: float


def plain_episode(
    network: nn.Module, support: Tensor, labels: Tensor, query: Tensor, protocol: EvaluationProtocol
) -> Tensor:
    """Logits of the queries after fine-tuning; images on the network's own scale."""
    model = copy.deepcopy(network).train(protocol.bn != "running")
    optimizer = torch.optim.SGD(model.parameters(), protocol.inner_lr)
    for _ in range(protocol.inner_steps):
        optimizer.zero_grad()
        F.cross_entropy(model(support), labels).backward()
        optimizer.step()
    with torch.no_grad():
        if protocol.bn == "support":
            store_statistics(model, support)
            model.eval()
        return model(query)


def store_statistics(model: nn.Module, images: Tensor) -> None:
    """Make the running statistics those by which training mode normalises `images`."""
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    counts: dict[nn.Module, float] = {}
    for layer in layers:
        layer.momentum = 1.0
        layer.register_forward_pre_hook(
            lambda layer, inputs: counts.update({layer: inputs[0].numel() / inputs[0].shape[1]})
        )
    model(images)
    for layer in layers:
        # PyTorch normalises by the variance and stores the unbiased one.
        layer.running_var *= (counts[layer] - 1) / counts[layer]  # type: ignore[operator]


def plain_accuracies(network: nn.Module, dataset: FewShotDataset, protocol: EvaluationProtocol, shots: int) -> Tensor:
    """Accuracies `(E,)` of one episode after the other."""
    weights = next(network.parameters())
    info = network_info(network)
    mean, std = (torch.tensor(value).to(weights)[:, None, None] for value in (info.mean, info.std))
    ways = torch.arange(protocol.ways, device=weights.device)
    labels, truth = ways.repeat_interleave(shots), ways.repeat_interleave(protocol.queries)
    accuracies = []
    for rows in zip(*draw_episodes(dataset, protocol, shots), strict=True):
        support, query = (
            ((dataset.images[part].to(weights.device).float() / 255).to(weights) - mean) / std for part in rows
        )
        logits = plain_episode(network, support, labels, query, protocol)
        accuracies.append((logits.argmax(1) == truth).float().mean().item())
    return torch.tensor(accuracies)


def work_of_an_episode(plain: nn.Module, settings: Options, shots: int) -> float:
    """Floating-point operations of convolutions and matrix products."""
    weights = next(plain.parameters())
    images = [
        weights.new_zeros(settings.ways * count, *network_info(plain).input_size)
        for count in (shots, settings.queries)
    ]
    labels = torch.arange(settings.ways, device=weights.device).repeat_interleave(shots)
    return operations(lambda: plain_episode(plain, images[0], labels, images[1], settings.protocol(2)))


def race(
    network: nn.Module, plain: nn.Module, dataset: FewShotDataset, settings: Options, shots: int, threads: int
) -> Row:
    """Both ways in turns, each on the same episodes."""
    torch.set_num_threads(threads)
    device = next(network.parameters()).device
    ways: dict[str, Callable[[EvaluationProtocol], Tensor]] = {
        "plain": lambda protocol: plain_accuracies(plain, dataset, protocol, shots),
        "ours": lambda protocol: episode_accuracies(network, dataset, protocol, shots),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    accuracies: dict[str, list[Tensor]] = {name: [] for name in ways}
    count = max(2, settings.episodes // settings.rounds)
    for way in ways.values():
        way(settings.protocol(2))
    for part in range(settings.rounds):
        for name, way in ways.items():
            found, elapsed = timed(device, lambda way=way, part=part: way(settings.protocol(count, part)))  # type: ignore[misc]
            seconds[name].append(elapsed / count)
            accuracies[name].append(found)
    rate = {name: 1 / median(values) for name, values in seconds.items()}
    mean = {name: 100 * torch.cat(values).mean().item() for name, values in accuracies.items()}
    share = work_of_an_episode(plain, settings, shots) / convolution_peak(device)
    return Row(
        shots,
        threads,
        round(rate["plain"], 3),
        round(rate["ours"], 3),
        round(rate["ours"] / rate["plain"], 2),
        float(f"{share * rate['plain']:.3g}"),
        float(f"{share * rate['ours']:.3g}"),
        round(mean["plain"], 3),
        round(mean["ours"], 3),
    )


def same_in_double(
    network: nn.Module, plain: nn.Module, dataset: FewShotDataset, protocol: EvaluationProtocol, shots: int
) -> int:
    """How many episodes have the same accuracy in double precision."""
    network, plain = copy.deepcopy(network).double(), copy.deepcopy(plain).double()
    theirs = plain_accuracies(plain, dataset, protocol, shots)
    return int((theirs == episode_accuracies(network, dataset, protocol, shots).cpu()).sum())


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    (settings,) = parse_into([Options], argv, __doc__)
    device = device_of(settings.device)
    before = torch.get_num_threads()
    network = open_network(settings).to(device)
    plain = plain_network(network)
    dataset = load_dataset(
        settings.dataset, "test", data_dir=settings.data_dir, image_size=network_info(network).input_size[-1]
    ).to(device)
    all_threads = settings.num_threads if device.type == "cpu" else settings.num_threads[-1:]
    print(
        f"{type(network).__name__}, {settings.ways}-way on {dataset.name}, {settings.inner_steps} steps, "
        f"bn={settings.bn}, {settings.episodes} episodes; {describe_machine(device)}.",
        flush=True,
    )
    try:
        rows, same = [], {}
        print(HEADER)
        for shots in settings.shots:
            exact = settings.protocol(settings.exact_episodes)
            same[shots] = same_in_double(network, plain, dataset, exact, shots)
            for threads in all_threads:
                rows.append(race(network, plain, dataset, settings, shots, threads))
                print(*cells(rows[-1], same[shots], settings.exact_episodes), sep=" | ", flush=True)
    finally:
        torch.set_num_threads(before)
    return report(settings, rows, same, describe_machine(device))


def open_network(settings: Options) -> nn.Module:
    """The meta-model that was named, or a fresh network."""
    if settings.model:
        return MetaModel.from_pretrained(settings.model).network.eval()
    stream = fork(settings.seed, "network")
    return create_network(settings.network, num_classes=settings.ways, generator=stream).eval()


def cells(row: Row, same: int, of: int) -> list[str]:
    """A row of the table."""
    return [
        f"{row.shots}",
        f"{row.threads}",
        f"{row.plain:.2f}",
        f"{row.ours:.2f}",
        f"{row.ratio:.2f}",
        f"{100 * row.peak_share_plain:.0f} % and {100 * row.peak_share:.0f} %",
        f"{row.accuracy_plain:.2f} and {row.accuracy:.2f}",
        f"{same} of {of}",
    ]


def report(settings: Options, rows: list[Row], same: dict[int, int], machine: str) -> dict[str, Any]:
    """Write what was asked for and print the last line."""
    headline = max(rows, key=lambda row: (row.shots, row.threads))
    result = {
        "benchmark": "evaluate",
        "ratio": headline.ratio,
        "baseline": headline.plain,
        "ours": headline.ours,
        "unit": "episodes a second",
        "rows": [asdict(row) for row in rows],
        "same_accuracies_float64": {str(shots): [count, settings.exact_episodes] for shots, count in same.items()},
    }
    what = settings.model or f"a fresh {settings.network}"
    write_section(
        settings.output_dir,
        "evaluate",
        "The evaluation: fine-tuning on many episodes",
        f"{what[0].upper()}{what[1:]}, {settings.ways}-way on {settings.dataset}, {settings.queries} "
        f"queries a class, {settings.inner_steps} SGD steps, `bn={settings.bn}`, {settings.episodes} episodes a row "
        f"in {settings.rounds} turns. In pairs: the plain loop first, then hf_dfml. {machine}.",
        table(HEADER, [cells(row, same[row.shots], settings.exact_episodes) for row in rows]),
    )
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
