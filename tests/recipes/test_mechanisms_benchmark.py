"""benchmarks/mechanisms.py: each figure is there with its definition, and what has a closed form is right."""

import json
import time

import pytest
import torch

from hf_dfml.evaluation import read_results
from tests.recipes.test_free_recipe import glyph_pool

FIGURES = {
    "bell": {"bell_share", "bell_share_printed", "bell_angle", "bell_agreement"},
    "igr": {"igr_agreement", "igr_agreement_smooth", "igr_agreement_small"},
    "gamma": {"gamma_ratio", "gamma_range", "gamma_width_ratio"},
    "grouping": {
        f"grouping_{name}{by}"
        for name in ("overlap", "rand", "within", "repeats", "architecture", "overlap_real")
        for by in ("", "_answers")
    },
    "purer": {"eci_shift", "icfil_gain"},
}


def test_a_quick_run_ends_with_all_figures_in_one_line(script, tmp_path, capsys):
    threads, pool = torch.get_num_threads(), glyph_pool(tmp_path / "pool", 4)
    words = ["--pool", str(pool), "--quick", "--real_images", "--mixed", str(tmp_path / "mixed")]
    words += ["--only", *FIGURES, "--output_dir", str(tmp_path / "out")]
    script("mechanisms").main([*words, "--pictures", str(tmp_path / "pictures")])
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    assert set.union(*FIGURES.values()) <= set(result) and result["benchmark"] == "mechanisms"
    assert result["ours"] == result["bell_share"] > 10 * result["bell_share_printed"]
    assert result["ratio"] == pytest.approx(result["ours"] / result["baseline"])
    rows = read_results(tmp_path / "out")
    assert [row.method for row in rows] == ["DRO, gamma 0.5", "DRO, gamma 10", "PURER", "PURER"]
    assert [row.head for row in rows[2:]] == ["finetune", "icfil"] and {row.split for row in rows} == {"validation"}
    table = (tmp_path / "out" / "mechanisms.md").read_text()
    assert all(f"| `{name}` |" in table for names in FIGURES.values() for name in names)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"igr_agreement.png", "dro_gamma.png"}
    assert torch.get_num_threads() == threads


def test_parts_side_by_side_have_the_figures_of_parts_one_after_another(script, tmp_path, capfd):
    pool = glyph_pool(tmp_path / "pool", 4)
    words = ["--pool", str(pool), "--quick", "--only", "igr", "gamma", "--output_dir", str(tmp_path / "out")]
    alone = script("mechanisms").main(words)
    rows = read_results(tmp_path / "out")
    beside = script("mechanisms").main([*words, "--processes", "2"])
    assert beside.keys() == alone.keys()
    for name in ("igr_agreement", "igr_norm_ratio", "igr_agreement_smooth", "igr_agreement_small"):
        assert beside[name] == pytest.approx(alone[name], rel=1e-3), f"{name}: everything random has a seed"
    # The last digits depend on where numbers lie in memory, and so does an image's answer.
    assert beside["gamma_width_ratio"] == pytest.approx(alone["gamma_width_ratio"], rel=0.02, abs=0.05)
    assert [row.mean for row in read_results(tmp_path / "out")] == pytest.approx([row.mean for row in rows], abs=5)
    assert capfd.readouterr().out.count("gamma_ratio = ") == 2, "a part tells its figures from its process as well"


def test_a_part_that_fails_costs_no_other_part(script, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    parts, started = script("mechanism/parts"), []

    def measured(name, options):
        started.append(name)
        if name == "gamma":
            raise FloatingPointError("not finite")
        time.sleep(0.5)  # It fails first.
        return name

    monkeypatch.setattr(parts, "ProcessPoolExecutor", lambda count, context: ThreadPoolExecutor(count))
    monkeypatch.setattr(parts, "measure_part", measured)
    found = parts.measured_parts(parts.Options(only=["gamma", "igr", "bell"], processes=2))
    assert {next(found), next(found)} == {"igr", "bell"}
    with pytest.raises(FloatingPointError, match="not finite"):
        next(found)


def test_the_regulariser_of_both_orders_agrees_on_a_quadratic(script):
    """There the displaced gradients have no remainder, whatever lambda is."""
    module = script("mechanism/igr")
    centres = [torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([2.0, -1.0], dtype=torch.float64)]
    scales = [torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([2.0, 0.5], dtype=torch.float64)]
    losses = [
        lambda params, c=c, s=s: (s * (params["w"] - c) ** 2).sum() for c, s in zip(centres, scales, strict=True)
    ]
    params = {"w": torch.tensor([0.5, 0.5], dtype=torch.float64)}
    plain, _ = module.average_gradient(losses, params)
    first, second = (module.regulariser(losses, params, plain, 0.1, order) for order in ("first", "second"))
    assert torch.allclose(first["w"], second["w"]) and module.cosine(first, second) == pytest.approx(1)


def test_the_smooth_network_has_no_kinks(script):
    """A second difference across zero is of the order of the step's square, not of the step."""
    module = script("mechanism/igr")
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    remainders = {}
    for smooth in (True, False):
        network = module.plain_conv4(5, smooth, torch.Generator().manual_seed(0), images).double()
        way = {
            name: torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(1))
            for name, value in network.named_parameters()
        }

        def at(step, network=network, way=way):
            params = {name: value + step * way[name] for name, value in network.named_parameters()}
            return torch.func.functional_call(network, params, (images,)).detach()

        ratio = [(at(step) + at(-step) - 2 * at(0.0)).norm() / step**2 for step in (1e-3, 1e-4)]
        remainders[smooth] = (ratio[1] / ratio[0] - 1).abs().item()
    assert remainders[True] < 0.05 < remainders[False]


def test_the_rand_index_is_of_the_same_groups_and_of_others(script):
    module = script("mechanism/grouping")
    assert module.rand_index([[0, 1], [2, 3]], [[3, 2], [1, 0]]) == 1
    assert module.rand_index([[0, 1], [2, 3]], [[0, 2], [1, 3]]) < 0
    first = torch.tensor([[0.0, 1, 2], [1, 0, 3], [2, 3, 0]])
    assert module.rank_correlation(first, first.square()) == pytest.approx(1)


def test_groups_are_compared_with_random_ones_by_what_their_members_share(script):
    within = script("mechanism/grouping").shared_within
    shared = torch.tensor([[5.0, 2, 0, 0], [2, 5, 0, 0], [0, 0, 5, 2], [0, 0, 2, 5]])
    assert within(shared, [[0, 1, 2, 3]]) == pytest.approx(1)
    assert within(shared, [[0, 2], [1, 3]]) == 0
    assert within(shared, [[0, 1], [2, 3]]) == pytest.approx(3)
