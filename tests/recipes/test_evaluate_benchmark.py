"""benchmarks/evaluate.py on a tiny evaluation: both ways come to the same accuracies; what the rows say."""

import pytest
import torch

TINY = "--ways 3 --shots 1 2 --queries 4 --inner_steps 2 --episodes 4 --rounds 2 --exact_episodes 4"


@pytest.fixture
def benchmark(script):
    return script("evaluate")


@pytest.mark.parametrize(("bn", "threads"), [("support", [1, 2]), ("transductive", [1]), ("running", [1])])
def test_both_ways_have_the_same_accuracies(benchmark, bn, threads, tmp_path, capsys):
    words = [*TINY.split(), "--num_threads", *map(str, threads), "--bn", bn, "--output_dir", str(tmp_path)]
    result = benchmark.main(words)
    assert result["same_accuracies_float64"] == {"1": [4, 4], "2": [4, 4]}
    assert [(row["shots"], row["threads"]) for row in result["rows"]] == [
        (shots, each) for shots in (1, 2) for each in threads
    ]
    for row in result["rows"]:
        assert row["accuracy"] == pytest.approx(row["accuracy_plain"], abs=5)  # One query of 48 is 2 points.
        assert row["ratio"] == pytest.approx(row["ours"] / row["plain"], abs=0.02)
        assert 0 < row["peak_share_plain"] < 1 and 0 < row["peak_share"] < 1
    assert result["ratio"] == result["rows"][-1]["ratio"]
    assert torch.get_num_threads() == 1
    table = (tmp_path / "evaluate.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith(("| 1 |", "| 2 |")) for line in table) == len(result["rows"])
    assert capsys.readouterr().out.splitlines()[-1].startswith('{"benchmark": "evaluate"')


def test_the_work_of_an_episode_is_counted(benchmark):
    """conv4 of 32 channels on 32 x 32 pixels: 7.9 million operations an image forward, three times that in a step."""
    settings = benchmark.Options(ways=2, queries=3, inner_steps=4)
    network = benchmark.open_network(settings)
    convolutions = [2 * 9 * i * 32 * size**2 for i, size in ((3, 32), (32, 16), (32, 8), (32, 4))]
    forward = sum(convolutions) + 2 * 128 * 2
    # No gradient for the images; two passes without one at the end.
    work = 4 * 2 * (3 * forward - convolutions[0]) + (2 + 6) * forward
    assert benchmark.work_of_an_episode(benchmark.plain_network(network), settings, 1) == pytest.approx(work, rel=0.01)
