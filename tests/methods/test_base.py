"""What a method is given by default, and what it must say itself."""

from dataclasses import dataclass
from importlib import import_module

import pytest
import torch

from hf_dfml.evaluation import Adaptation
from hf_dfml.methods.base import Method, NoOptions, Paper, refuse_black_boxes
from hf_dfml.methods.baselines import OTA
from hf_dfml.methods.catalogue import METHODS
from hf_dfml.methods.maml_reference import MAML
from hf_dfml.methods.mfgp import MFGP
from hf_dfml.sinusoids.baselines import RandomInit
from tests.methods.own import Nudge, NudgeConfig
from tests.methods.pools import make_context, make_model, make_pool


def test_two_functions_must_be_there_and_nothing_else():
    assert Method.__abstractmethods__ == {"setup", "step"}

    class Half(Method):
        def setup(self, pool, context): ...

    with pytest.raises(TypeError, match="step"):
        Half(NoOptions(), make_model())


def test_the_defaults():
    method = Nudge(NudgeConfig(steps=7), make_model())
    assert (Nudge.name, method.num_steps, method.data_free, method.black_boxes) == ("Nudge", 7, True, False)
    assert (method.eval_head, method.eval_bn, method.pictures(None)) == ("finetune", "support", [])
    assert method.adaptation == Adaptation() and (method.adaptation.steps, method.adaptation.lr) == (10, 0.01)
    assert RandomInit(RandomInit.Config(), make_model()).num_steps == 0, "no such option"


def test_a_subclass_has_a_name_of_its_own():
    class Shove(Nudge):
        pass

    class Push(Nudge):
        name = "A push"

    assert (Shove.name, Push.name, Nudge.name) == ("Shove", "A push", "Nudge")


def test_the_default_state_is_the_meta_model_and_a_snapshot_is_a_copy_of_it(tmp_path):
    pool, context = make_pool(tmp_path, 2), make_context()
    one, other = Nudge(NudgeConfig(), make_model(1)), Nudge(NudgeConfig(), make_model(2))
    one.model.train()
    snapshot = one.snapshot(context)
    state = {name: value.clone() for name, value in one.state_dict()["model"].items()}
    one.step(context)
    assert not snapshot.training and one.model.training
    assert all(torch.equal(value, state[name]) for name, value in snapshot.state_dict().items())
    other.load_state_dict({"model": state}, pool, context)
    assert all(torch.equal(value, state[name]) for name, value in other.model.state_dict().items())
    assert other.pool is pool


def test_one_that_needs_weights_refuses_black_boxes():
    with pytest.raises(ValueError, match="Nudge needs the weights of its teachers"):
        refuse_black_boxes(Nudge)


@pytest.mark.parametrize("name", METHODS)
def test_every_published_method_cites_its_paper(name):
    module = import_module(f"hf_dfml.methods.{name}")
    paper = getattr(module, METHODS[name]).paper
    if name == "pool_distillation":
        assert paper is None
        return
    heading = " ".join(module.__doc__.split("\n\n")[0].split())
    assert paper.title.removesuffix(".") in heading.removesuffix(".") or paper.title.startswith(heading[:20])
    words = " ".join(module.__doc__.split())
    assert all(author in words for author in paper.authors.split(", "))
    assert f"{paper.venue} {paper.year}" in words and (paper.arxiv or "") in words


def test_a_citation_names_authors_title_venue_and_preprint():
    assert OTA.paper.citation == (
        "Sidak Pal Singh, Martin Jaggi. Model Fusion via Optimal Transport. NeurIPS 2020, arXiv 1910.05653"
    )
    assert "arXiv" not in Paper("T", "A", "UAI", 2022).citation
    assert MAML.paper.arxiv == "1703.03400" and MFGP.paper.venue == "UAI" and RandomInit.paper is None


def test_a_config_need_not_have_steps():
    @dataclass(frozen=True)
    class Odd:
        rounds: int = 3

    class Rounds(Nudge):
        Config = Odd

        def __init__(self, config, model):
            super().__init__(config, model)
            self.num_steps = config.rounds

    assert Rounds(Odd(), make_model()).num_steps == 3
