"""Every configuration in hf_dfml/presets is read by its recipe; the command line wins over it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_dfml.arguments import parse
from hf_dfml.methods.tgr import TGR
from hf_dfml.run_config import RunConfig
from hf_dfml.settings import flat

CONFIGS = Path(__file__).parents[1] / "hf_dfml" / "presets"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("tgr-*.yaml")), ids=lambda path: path.stem)
def test_configurations_of_tgr_are_read(path):
    method, run = parse(TGR, RunConfig, ["--config", str(path), "--pool", "x", "--steps", "7"])
    assert method.steps == 7 and run.pool == "x" and run.dataset == "cifar-fs"


def test_the_defaults_are_the_papers():
    config, run = parse(TGR, RunConfig, [])
    method = SimpleNamespace(**flat(config))
    assert (method.steps, method.recovery, method.recovery_steps, method.images_per_class) == (
        1200,
        "generator",
        200,
        30,
    )
    assert (method.num_groups, method.teachers_per_step, method.igr_strength) == (5, 4, 1e-3)
    assert (method.inner_steps, method.inner_lr, method.outer_lr, method.second_order) == (5, 0.01, 1e-3, True)
    assert (run.ways, run.shots, run.episodes, run.seed) == (5, [1, 5], 600, 42)
