"""A term of one's own is a function and a weight in one file; everything else takes it from there."""

import importlib.util

import pytest
import torch

from hf_dfml.recovery import objective
from hf_dfml.recovery.inversion import EstimationConfig, RecoveryConfig, recover
from hf_dfml.settings import flat
from tests.methods.pools import make_pool

OWN = '''
from hf_dfml.recovery.objective import TERMS, InversionWeights
from hf_dfml.settings import option


class WithGrey(InversionWeights):
    """The usual terms, and one that takes colours away."""

    grey_weight: float = option(0.0, "Weight of the distance of each pixel to its mean over the channels.")


TERMS["grey_weight"] = lambda seen: (seen.images - seen.images.mean(1, keepdim=True)).square().mean()
'''


@pytest.fixture
def with_grey(tmp_path, monkeypatch):
    """The weights of a file outside the package."""
    monkeypatch.setattr(objective, "TERMS", dict(objective.TERMS))
    (tmp_path / "grey.py").write_text(OWN)
    spec = importlib.util.spec_from_file_location("grey", tmp_path / "grey.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WithGrey


def test_a_term_of_ones_own_moves_the_images(tmp_path, with_grey):
    teacher = make_pool(tmp_path, 1).load(0)

    def colour(weight):
        config = RecoveryConfig(
            recovery="pixels",
            recovery_steps=30,
            recovery_lr=0.1,
            images_per_class=2,
            objective=with_grey(bn_weight=0.0, grey_weight=weight),
        )
        assert flat(config)["grey_weight"] == weight
        images = recover(teacher, config, 16, torch.Generator().manual_seed(0)).images
        return (images - images.mean(1, keepdim=True)).square().mean().item()

    assert colour(1000.0) < 0.2 * colour(0.0)


def test_every_weight_has_a_term():
    assert list(objective.TERMS) == list(flat(objective.InversionWeights()))


@pytest.mark.parametrize("name", objective.OF_A_BATCH)
def test_terms_of_a_batch_cannot_be_estimated_image_by_image(name):
    none = dict.fromkeys(objective.OF_A_BATCH, 0.0)
    estimation = EstimationConfig(gradient="zero_order")
    estimation.check_objective(RecoveryConfig(**none))
    with pytest.raises(ValueError, match=f"set terms of the whole batch to 0, found {name} 0.5"):
        estimation.check_objective(RecoveryConfig(**none | {name: 0.5}))


@pytest.mark.parametrize("moves", [{"shift": 2, "flip": False}, {"shift": 0, "flip": True}])
def test_an_estimator_that_remembers_is_refused_where_images_move(moves):
    none = dict.fromkeys(objective.OF_A_BATCH, 0.0)
    estimation = EstimationConfig(gradient="zero_order", zero_order_estimator="memory")
    estimation.check_objective(RecoveryConfig(**none, shift=0, flip=False))
    with pytest.raises(ValueError, match="memory goes on from the last step's estimate.* --shift 0 --flip false"):
        estimation.check_objective(RecoveryConfig(**none, **moves))
