"""benchmarks/tgr_figures.py: linear CKA is what its formula says, pairs share what is said, a quick run has it all."""

import json

import pytest
import torch

from hf_dfml.evaluation import read_results
from hf_dfml.pool import ModelPool
from hf_dfml.recovery.bank import MemoryBank
from hf_dfml.recovery.task import Task
from tests.recipes.test_free_recipe import glyph_pool


@pytest.fixture
def module(script):
    return script("tgr_figures")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_quick_run_ends_with_all_figures_in_one_line(module, tmp_path, capsys):
    words = ["--pool", str(glyph_pool(tmp_path / "pool", 4)), "--quick", "--output_dir", str(tmp_path / "out")]
    module.main([*words, "--pictures", str(tmp_path / "pictures")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["benchmark"] == "tgr_figures" and result["ratio"] == result["ours"] / result["baseline"]
    # Members are windows of three of neighbouring glyphs: two neighbours share two, the ends of four share none.
    for kind in ("procedural", "recovered"):
        weights = {0: 1, 1: 2, 2: 3}
        total = sum(count * result[f"cka_{kind}_shared_{shared}"] for shared, count in weights.items())
        assert total / 6 == pytest.approx(result[f"cka_{kind}"], abs=1e-3)
        assert result[f"cka_{kind}_least"] <= result[f"cka_{kind}"] <= result[f"cka_{kind}_most"] <= 1
    rows = read_results(tmp_path / "out")
    (alone, *pairs), accuracies = rows, {row.method: row.mean for row in rows}
    assert alone.method.endswith("alone") and len(pairs) == 3 and {row.split for row in rows} == {"validation"}
    for shared in range(3):
        (row,) = [row for row in pairs if row.method.endswith(f", {shared} classes shared")]
        gain = accuracies[row.method] - accuracies[f"{row.method.split(' with ')[0]} alone"]
        assert result[f"gain_shared_{shared}"] == pytest.approx(gain, abs=1e-3)
    table = (tmp_path / "out" / "tgr_figures.md").read_text()
    assert all(f"| `{name}` |" in table for name in ("cka_agreement", "cka_procedural_untrained", "gain_shared_2"))
    names = {"tgr_cka_procedural.png", "tgr_cka_recovered.png", "tgr_overlap.png"}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == names


def test_one_figure_alone_needs_no_data_of_a_class(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "load_dataset", lambda *names, **options: pytest.fail("images with labels are read"))
    words = ["--pool", str(glyph_pool(tmp_path / "pool", 3)), "--quick", "--only", "cka", "--images", "procedural"]
    result = module.main(words)
    assert result["ours"] is None and "cka_recovered" not in result and 0 < result["cka_procedural"] <= 1


def test_linear_cka_is_the_alignment_of_centred_gram_matrices(module):
    """HSIC of linear kernels over its own of each (Kornblith et al., 2019, Section 3), with `D` of any size."""
    features = [random(40, 3), random(40, 5, seed=1), random(40, 3, seed=2)]
    centre = torch.eye(40) - 1 / 40
    grams = [centre @ each @ each.T @ centre for each in features]
    expected = torch.tensor([[(a * b).sum() / a.norm() / b.norm() for b in grams] for a in grams])
    torch.testing.assert_close(module.linear_cka(features), expected, atol=1e-5, rtol=1e-4)


def test_linear_cka_sees_neither_rotation_nor_scale_nor_offset(module):
    first = random(30, 4)
    turn, _ = torch.linalg.qr(random(4, 4, seed=1))
    same = module.linear_cka([first, 3 * first @ turn + 2])
    torch.testing.assert_close(same, torch.ones(2, 2), atol=1e-5, rtol=1e-4)
    # Two features that vary on different images have nothing in common; one of no variance neither.
    apart = torch.tensor([[1.0, 0, 5], [-1, 0, 5], [0, 1, 5], [0, -1, 5]])
    found = module.linear_cka([apart[:, :1], apart[:, 1:2], apart[:, 2:]])
    torch.testing.assert_close(found, torch.diag(torch.tensor([1.0, 1.0, 0.0])))


def test_basic_members_find_every_overlap(module):
    rows = [[5, 0, 0, 0, 1], [0, 5, 3, 0, 1], [0, 3, 5, 0, 0], [0, 0, 0, 5, 0], [1, 1, 0, 0, 5]]
    shared = torch.tensor(rows).float()
    pairs = module.choose_pairs(shared, 1, 2, torch.Generator().manual_seed(0))
    assert {pair.basic for pair in pairs} == {1}
    assert sorted((pair.shared, pair.auxiliary) for pair in pairs) == [(0, 0), (0, 3), (1, 4), (3, 2)]
    more = module.choose_pairs(shared, 5, 1, torch.Generator().manual_seed(0))
    assert len({pair.basic for pair in more}) == 5 and all(shared[pair[:2]] == pair.shared for pair in more)
    assert len({pair[0::2] for pair in more}) == len(more), "one auxiliary member for each basic one and overlap"


def test_a_meta_model_learns_from_both_members(module, tmp_path):
    pool = ModelPool.from_dir(glyph_pool(tmp_path / "pool", 1))
    options = module.Options(meta_steps=1)
    banks = []
    for seed in (0, 1):
        task = Task(torch.rand(60, 3, 16, 16, generator=torch.Generator().manual_seed(seed)), torch.arange(60) // 20,
                    ("a", "b", "c"), "m")  # fmt: skip
        banks.append(MemoryBank(20))
        banks[-1].add(task)

    def weights(*which):
        network = module.meta_learnt(module.fresh_network(pool, options), [banks[index] for index in which], options)
        return torch.cat([value.flatten() for value in network.parameters()])

    start = torch.cat([value.flatten() for value in module.fresh_network(pool, options).parameters()])
    assert torch.equal(weights(0, 1), weights(0, 1)) and not torch.equal(weights(0, 1), start)
    assert not torch.equal(weights(0, 1), weights(0, 0)) and not torch.equal(weights(0, 1), weights(1, 1))


def test_auxiliary_members_are_trained_for_the_overlaps_that_a_pool_lacks(module, tmp_path):
    pool = ModelPool.from_dir(glyph_pool(tmp_path / "pool", 2)).resolve()
    options = module.Options(quick=True, trained=str(tmp_path / "trained"), auxiliaries=2, flip=False)
    pairs = module.choose_pairs(module.classes_shared(pool), 1, 1, torch.Generator().manual_seed(0))
    train = module.load_dataset("glyphs", "train", image_size=16)
    members, more = module.with_all_overlaps(pool, pairs, train, options)
    assert [pair.shared for pair in more] == [2, 0, 0, 1, 1, 3, 3] and len(members) == 2 + 6
    shared = module.classes_shared(members)
    assert all(shared[pair[:2]] == pair.shared for pair in more)
    assert len({pair.auxiliary for pair in more}) == len(more)
    again, _ = module.with_all_overlaps(pool, pairs, train, options)
    assert [entry.class_names for entry in again] == [entry.class_names for entry in members]
    assert members.load(7).num_classes == 3
