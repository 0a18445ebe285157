"""The outer step of a replay against a plain loop over its episodes: episodes a second, and the same weights.

    python benchmarks/replay.py                                     # episodes of glyphs, a fresh conv4, one minute
    python benchmarks/replay.py --steps 20 --num_threads 2 --shots 5 --second_only true

The plain loop is what one writes first: for each episode the inner SGD steps by `torch.func.functional_call` on the
module in training mode, `create_graph=True` where the order is second, images in PyTorch's usual layout, the published
order convolution - batch norm - ReLU - pooling; then one step of Adam. The library is
`hf_dfml.learning.replay.replay_step`, as TGR, FREE, BiDf-MKD and PURER call it, from a bank of images that stand for
recovered ones. ANIL adapts the last layer alone; no recipe offers it, so that its row is of `divided_meta_gradient`.
Both take the same outer steps in turns; the gradients are compared once more in double precision.

The convolution peak is that of `evaluate.py`; the work of an episode is that of the plain loop. Below the table stands
what the library's outer step spends its time on. Seconds are those of the process where it has one CPU thread, and
else the clock's. The last line is a JSON object; `ratio` is the smallest of MAML of second order.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from measuring import (
    Measurement,
    convolution_peak,
    operations,
    plain_network,
    run,
    table,
    time_shares,
    timed,
    write_section,
)
from torch import Tensor, nn

from hf_dfml.data import load_dataset
from hf_dfml.data.episodes import Episodes
from hf_dfml.learning.inner_loop import InnerLoop, Parameters
from hf_dfml.learning.optimisation import apply_gradients
from hf_dfml.learning.replay import EpisodeConfig, divided_meta_gradient
from hf_dfml.networks import create_network
from hf_dfml.networks.functional import normalise
from hf_dfml.networks.info import network_info
from hf_dfml.recovery.bank import MemoryBank
from hf_dfml.recovery.task import Task
from hf_dfml.settings import option
from hf_dfml.utils.processes import ALONE
from hf_dfml.utils.provenance import describe_machine
from hf_dfml.utils.seeding import fork

HEADER = (
    "shots | inner loop | order | plain loop, episodes a second | hf_dfml | ratio | of the convolution peak "
    "| largest difference of a gradient in float64"
)


class Options(Measurement):
    """Episodes as TGR replays them, and how many."""

    network: str = option("conv4", "Architecture of the meta-model.")
    ways: int = option(5, "Classes of an episode.", least=2)
    shots: list[int] = option([1, 5], "Support images a class.", least=1)
    second_only: bool = option(False, "MAML of second order alone, which the papers train with.")
    queries: int = option(15, "Query images a class; they are normalised together.", least=1)
    inner_steps: int = option(5, "Inner SGD steps.", least=0)
    inner_lr: float = option(0.01, "Their learning rate.", above=0)
    batch: int = option(16, "Episodes an outer step.")
    steps: int = option(3, "Outer steps by each of the two, in turns.", least=0)

    @property
    def config(self) -> EpisodeConfig:
        """The same in the library's words; the shots are those of a row."""
        return EpisodeConfig(
            inner_lr=self.inner_lr,
            inner_steps=self.inner_steps,
            replay_queries=self.queries,
            replay_batch=self.batch,
        )


@dataclass(frozen=True)
class Row:
    """What was measured for one inner loop; rates are episodes a second."""

    shots: int
    scope: str
    second_order: bool
    plain: float
    ours: float
    ratio: float
    peak_share_plain: float
    peak_share: float
    difference: float


def plain_gradient(network: nn.Module, episodes: Episodes, loop: InnerLoop) -> Parameters:
    """MAML's gradient, summed over the episodes, one after the other."""
    params = dict(network.named_parameters())
    adapting = [name for name in params if loop.scope == "all" or name.startswith("fc.")]
    total = {name: torch.zeros_like(value) for name, value in params.items()}
    pairs = zip(episodes.support, episodes.support_labels, episodes.query, episodes.query_labels, strict=True)
    for support, labels, query, truth in pairs:
        fast = dict(params)
        for _ in range(loop.steps):
            loss = F.cross_entropy(outputs(network, fast, support), labels)
            moving = [fast[name] for name in adapting]
            gradients = torch.autograd.grad(loss, moving, create_graph=loop.second_order)
            steps = zip(adapting, gradients, strict=True)
            fast |= {name: fast[name] - loop.lr * gradient for name, gradient in steps}
        loss = F.cross_entropy(outputs(network, fast, query), truth)
        for name, gradient in zip(params, torch.autograd.grad(loss, list(params.values())), strict=True):
            total[name] += gradient
    return total


def outputs(network: nn.Module, params: Parameters, images: Tensor) -> Tensor:
    """Logits under the statistics of `images`, whose stored ones are not touched."""
    return torch.func.functional_call(network, params, normalise(network, images))


def bank_of(settings: Options, size: int, device: torch.device) -> MemoryBank:
    """Glyphs of the training classes in place of recovered images: what the pixels show costs nothing."""
    dataset = load_dataset("glyphs", "train", image_size=size)
    bank = MemoryBank(capacity=100)
    for name in dataset.class_names[:20]:
        images = dataset.by_class(name)[:100].to(device).float() / 255
        bank.add(Task(images, torch.zeros(len(images), dtype=torch.long, device=device), (name,), "glyphs"))
    return bank


def race(network: nn.Module, bank: MemoryBank, settings: Options, loop: InnerLoop, shots: int) -> Row:
    """Both in turns, each from the same weights on the same episodes."""
    device = next(network.parameters()).device
    models = {"plain": stateless(plain_network(network)), "ours": copy.deepcopy(network)}
    ways = {
        "plain": lambda episodes: plain_gradient(models["plain"], episodes, loop),
        "ours": lambda episodes: divided_meta_gradient(models["ours"], episodes, loop, ALONE)[0],
    }
    optimizers = {
        name: torch.optim.Adam(model.parameters(), settings.config.outer_lr) for name, model in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    stream = fork(settings.seed, "episodes")

    def outer_step(name: str, episodes: Episodes) -> None:
        apply_gradients(optimizers[name], models[name], ways[name](episodes))

    for step in range(settings.steps + 1):
        count = settings.batch if step else 2  # The first one warms up.
        episodes = bank.sample(count, stream, ways=settings.ways, shots=shots, queries=settings.queries)
        for name in ways:
            _, spent = timed(device, lambda name=name, episodes=episodes: outer_step(name, episodes))  # type: ignore[misc]
            if step:
                seconds[name].append(spent / count)
    rate = {name: 1 / median(values) for name, values in seconds.items()}
    share = operations(lambda: plain_gradient(models["plain"], episodes[:1], loop)) / convolution_peak(device)
    return Row(
        shots,
        loop.scope,
        loop.second_order,
        round(rate["plain"], 3),
        round(rate["ours"], 3),
        round(rate["ours"] / rate["plain"], 2),
        float(f"{share * rate['plain']:.3g}"),
        float(f"{share * rate['ours']:.3g}"),
        difference_in_double(network, episodes[:2], loop),
    )


def stateless(network: nn.Module) -> nn.Module:
    """The network in training mode, without statistics of its own."""
    for module in network.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    return network


def difference_in_double(network: nn.Module, episodes: Episodes, loop: InnerLoop) -> float:
    """The largest difference of an element of the two gradients, relative to the largest element."""
    network = copy.deepcopy(network).double()
    exact = replace(episodes, support=episodes.support.double(), query=episodes.query.double())
    ours = divided_meta_gradient(network, exact, loop, ALONE)[0]
    plain = plain_gradient(stateless(plain_network(network)), exact, loop)
    # The plain network's blocks are numbered otherwise; the order is the same.
    pairs = zip(ours.values(), plain.values(), strict=True)
    largest = max(value.abs().max().item() for value in plain.values())
    return max((one - other).abs().max().item() for one, other in pairs) / largest


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and give the object of the last line."""
    return run(Options, measure, argv, __doc__)


def measure(settings: Options, device: torch.device) -> dict[str, Any]:
    """All inner loops, the table, and the object of the last line."""
    network = create_network(settings.network, num_classes=settings.ways, generator=fork(settings.seed, "network"))
    network = network.to(device)
    bank = bank_of(settings, network_info(network).image_size, device)
    about = (
        f"{settings.network}, {settings.ways}-way with {settings.queries} queries a class, {settings.inner_steps} "
        f"inner steps, {settings.batch} episodes an outer step, {settings.steps} outer steps by each. "
        f"{describe_machine(device)}. In pairs: the plain loop first."
    )
    print(about, HEADER, sep="\n", flush=True)
    rows = []
    kinds = [("all", True), *([] if settings.second_only else [("all", False), ("head", True), ("head", False)])]
    for shots in settings.shots:
        for scope, second_order in kinds:
            loop = replace(settings.config.inner_loop, scope=scope, second_order=second_order)
            rows.append(race(network, bank, settings, loop, shots))
            print(*cells(rows[-1]), sep=" | ", flush=True)
    shots = max(settings.shots)
    stream = fork(settings.seed, "profile")
    episodes = bank.sample(4, stream, ways=settings.ways, shots=shots, queries=settings.queries)
    loop = settings.config.inner_loop
    shares = time_shares(device, lambda: divided_meta_gradient(network, episodes, loop, ALONE))
    to_answers = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in shares.items())
    where = f"Where the time of hf_dfml's MAML of second order goes with {shots} shots: {to_answers}."
    limit = [where] if shares else []  # An accelerator's time is not divided so.
    print(*limit)
    shown = table(HEADER, [cells(row) for row in rows])
    write_section(settings.output_dir, "replay", "Replay: the outer step", about, shown, *limit)
    headline = min((row for row in rows if row.scope == "all" and row.second_order), key=lambda row: row.ratio)
    return {
        "benchmark": "replay",
        "ratio": headline.ratio,
        "baseline": headline.plain,
        "ours": headline.ours,
        "unit": "episodes a second",
        "rows": [asdict(row) for row in rows],
        "shares": shares,
    }


def cells(row: Row) -> list[str]:
    """A row of the table."""
    return [
        f"{row.shots}",
        "all parameters (MAML)" if row.scope == "all" else "last layer (ANIL)",
        "second" if row.second_order else "first",
        f"{row.plain:.2f}",
        f"{row.ours:.2f}",
        f"{row.ratio:.2f}",
        f"{100 * row.peak_share_plain:.0f} % and {100 * row.peak_share:.0f} %",
        f"{row.difference:.0e}",
    ]


if __name__ == "__main__":
    main()
