"""The price gamma of DRO's ball."""

from __future__ import annotations

from figures import WAYS, Measured, accuracy_of, fresh_network, interval

from hf_dfml.data import FewShotDataset
from hf_dfml.evaluation import EvaluationProtocol
from hf_dfml.methods.base import Context
from hf_dfml.methods.dro import DRO, DROConfig
from hf_dfml.pool import ModelPool
from hf_dfml.utils.seeding import fork
from mechanism.options import Options
from mechanism.shared import plot, run_epochs


def measure_gamma(found: Measured[Options], pool: ModelPool, classes: FewShotDataset) -> None:
    """Accuracy and width of the search against gamma, by the same episodes and seeds."""
    options = found.options
    protocol = EvaluationProtocol(
        ways=pool[0].num_classes or WAYS, shots=[5], episodes=options.episodes, split=classes.split
    )
    accuracies, widths = {}, {}
    for gamma in options.gammas:
        method = DRO(DROConfig(epochs=options.dro_epochs, gamma=gamma), fresh_network(pool, options))
        context = Context(fork(options.seed, "gamma"))
        method.setup(pool, context)
        last = run_epochs(method, context, 0, options.dro_epochs)[-1]
        widths[gamma] = last["wasserstein"]
        accuracies[gamma] = accuracy_of(found, method.snapshot(context), classes, protocol, f"DRO, gamma {gamma:g}")
        print(f"gamma {gamma:g}: {100 * accuracies[gamma].mean():.2f} %, {last}", flush=True)
    found.note(
        "gamma_width_ratio",
        max(widths.values()) / max(min(widths.values()), 1e-12),
        f"widest over narrowest mean search distance, gamma {', '.join(f'{gamma:g}' for gamma in options.gammas)}",
    )
    order = sorted(options.gammas, key=lambda gamma: accuracies[gamma].mean().item())
    gap = 100 * (accuracies[order[-1]] - accuracies[order[0]])
    found.note(
        "gamma_range", gap.mean().item(), f"points of accuracy between gamma {order[-1]:g} and {order[0]:g} (5-shot)"
    )
    found.note(
        "gamma_ratio",
        gap.mean().item() / max(interval(gap.tolist()), 1e-9),
        "that range over half its paired 95 % interval",
    )
    if path := found.picture("dro_gamma"):
        points = {"5-shot": [(gamma, 100 * accuracies[gamma].mean().item()) for gamma in options.gammas]}
        plot(points, path, "gamma", "accuracy (%), validation classes", log=True, least_span=10)
