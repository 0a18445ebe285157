"""A head of one's own: one file, and it is a choice everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_dfml.cli import main
from hf_dfml.data.few_shot import FewShotDataset
from hf_dfml.evaluation import HEADS, Adaptation, EvaluationProtocol, evaluate
from hf_dfml.evaluation.heads import choices, find_head
from hf_dfml.evaluation.selection import best_head
from hf_dfml.meta_model import MetaModel

OWN = """
import torch
from torch import cdist

from hf_dfml.evaluation.heads import FeatureHead, Head, class_means


class Ridge(FeatureHead):
    name = "ridge"
    help = "ridge regression on features"
    by_default = True

    @staticmethod
    def classifier(features, labels, ways):
        targets = torch.nn.functional.one_hot(labels, ways).to(features.dtype)
        gram = features @ features.T + 0.1 * torch.eye(len(features))
        return torch.linalg.solve(gram, targets).T @ features, features.new_zeros(ways)


class Distance(Head):
    name = "distance"
    help = "nearest class mean by distance"

    def fit(self, support, labels, *, under_vmap=False):
        return {"means": class_means(self.features(support), labels, self.ways)}

    def logits(self, adapted, support, query, *, under_vmap=False):
        return -cdist(self.features(query), adapted["means"])
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    before = dict(HEADS)
    path = tmp_path / "own_heads.py"
    path.write_text(OWN)
    yield path
    HEADS.clear()
    HEADS.update(before)


@pytest.mark.parametrize("bn", ["running", "support"])
def test_it_is_evaluated_and_chosen_like_any_other(
    own: Path, dataset: FewShotDataset, network: nn.Module, monkeypatch, bn
) -> None:
    with pytest.raises(ValueError, match="expected one of finetune, icfil, linear, prototype"):
        Adaptation(head="ridge")
    assert find_head(f"{own}:Ridge") == "ridge" and find_head("linear") == "linear"
    rows = {}
    for head in ("ridge", "linear", "distance"):
        protocol = EvaluationProtocol(ways=3, shots=[3], queries=5, episodes=20, bn=bn, head=head)
        rows[head] = evaluate(network, dataset, protocol, method="m", progress=False)[0]
        assert (rows[head].head, rows[head].bn) == (head, bn) and rows[head].mean > 100 / 3 + 5
    assert abs(rows["ridge"].mean - rows["linear"].mean) < 10
    assert rows["ridge"].inner_steps is None and rows["distance"].inner_steps is None
    assert "`ridge` (ridge regression on features)" in choices()
    monkeypatch.setattr(HEADS["prototype"], "by_default", False)
    monkeypatch.setattr(HEADS["finetune"], "by_default", False)
    assert best_head(network, [dataset], replace(protocol, head="finetune", episodes=3)).head == "ridge"


def test_its_logits_are_those_of_ridge_regression(own: Path, network: nn.Module) -> None:
    find_head(f"{own}:Ridge")
    support, query = torch.rand(10, 3, 16, 16, generator=torch.Generator().manual_seed(0)).split([6, 4])
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    head = HEADS["ridge"](network, 3, Adaptation(bn="running", head="ridge"))
    ours = head.logits(head.fit(support, labels), support, query)
    x, z = (F.normalize(head.features(part), dim=-1) for part in (support, query))
    weight = torch.linalg.solve(x.T @ x + 0.1 * torch.eye(x.shape[1]), x.T @ F.one_hot(labels, 3).float())
    torch.testing.assert_close(ours, z @ weight, rtol=1e-3, atol=1e-3)


def test_the_command_line_takes_and_lists_it(own: Path, network: nn.Module, tmp_path: Path, capsys) -> None:
    MetaModel.of(network, method="m").save_pretrained(tmp_path / "model")
    words = ["--dataset", "glyphs", "--ways", "3", "--shots", "1", "--episodes", "2", "--bn", "running"]
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(tmp_path / "model"), *words, "--head", f"{own}:Ridge", "--flips", "true"])
    assert end.value.code == 0 and "ridge, flips" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "ridge regression on features" in out and "logistic regression on features" in out
    with pytest.raises(SystemExit, match="has no class 'Rigde': its heads are Ridge, Distance"):
        main(["evaluate", str(tmp_path / "model"), *words, "--head", f"{own}:Rigde"])


def test_two_heads_of_one_name_are_refused(own: Path) -> None:
    own.write_text(OWN.replace('name = "ridge"', 'name = "linear"'))
    with pytest.raises(ValueError, match="has the name 'linear' of Linear: choose another name"):
        find_head(f"{own}:Ridge")
