"""benchmarks/replay.py on tiny episodes: both ways come to the same gradients, and the rows say what they say."""

import pytest
import torch

TINY = "--network conv4_16 --ways 3 --shots 1 --queries 2 --inner_steps 2 --batch 2 --steps 1"


def test_both_ways_have_the_same_gradients(script, tmp_path, capsys):
    threads = torch.get_num_threads()
    result = script("replay").main([*TINY.split(), "--output_dir", str(tmp_path)])
    kinds = [(row["scope"], row["second_order"]) for row in result["rows"]]
    assert kinds == [("all", True), ("all", False), ("head", True), ("head", False)]
    for row in result["rows"]:
        assert row["difference"] < 1e-10
        assert row["ratio"] == pytest.approx(row["ours"] / row["plain"], abs=0.02)
        assert 0 < row["peak_share_plain"] < 1 and 0 < row["peak_share"] < 1
    assert result["ratio"] == result["rows"][0]["ratio"] and sum(result["shares"].values()) == pytest.approx(
        1, abs=0.01
    )
    table = (tmp_path / "replay.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith(("| 1 | all parameters", "| 1 | last layer")) for line in table) == 4
    assert capsys.readouterr().out.splitlines()[-1].startswith('{"benchmark": "replay"')
    assert torch.get_num_threads() == threads


def test_the_order_is_that_of_the_gradient(script):
    """First and second order are different gradients, in both ways."""
    module = script("replay")
    settings = module.Options(network="conv4_16", ways=3, queries=2, inner_steps=2, inner_lr=0.1)
    network = module.create_network("conv4_16", num_classes=3, generator=module.fork(0)).double()
    episodes = module.bank_of(settings, 32, torch.device("cpu")).sample(1, module.fork(0), ways=3, shots=1, queries=2)
    episodes = module.replace(episodes, support=episodes.support.double(), query=episodes.query.double())
    plain = module.stateless(module.plain_network(network))
    orders = [module.replace(settings.config.inner_loop, second_order=order) for order in (True, False)]
    first, second = (list(module.plain_gradient(plain, episodes, loop).values()) for loop in orders)
    assert not torch.allclose(first[0], second[0], rtol=0.01)
