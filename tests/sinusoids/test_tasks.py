import math

import torch

from hf_dfml.sinusoids.tasks import SinusoidTasks


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_parameters_fill_the_published_ranges():
    tasks = SinusoidTasks.sample(20_000, seeded(0))
    for values, low, high in ((tasks.amplitude, 0.1, 5.0), (tasks.phase, 0.0, 2 * math.pi), (tasks.offset, 0.0, 3.0)):
        assert values.shape == (20_000,)
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.02 * (high - low)
    assert abs(torch.corrcoef(torch.stack([tasks.amplitude, tasks.phase, tasks.offset])) - torch.eye(3)).max() < 0.03


def test_points_lie_on_each_tasks_own_curve():
    tasks = SinusoidTasks.sample(4, seeded(1))
    x, y = tasks.sample_points(500, seeded(2))
    assert x.shape == y.shape == (4, 500, 1)
    assert x.min() >= -5 and x.max() <= 5 and x.max() - x.min() > 9.9
    for k in range(4):
        a, beta, b = float(tasks.amplitude[k]), float(tasks.phase[k]), float(tasks.offset[k])
        expected = [a * math.sin(float(value) + beta) + b for value in x[k, :20, 0]]
        assert torch.allclose(y[k, :20, 0], torch.tensor(expected), atol=1e-5)


def test_a_shared_grid_is_evaluated_for_all_tasks():
    tasks = SinusoidTasks(torch.tensor([1.0, 2.0]), torch.tensor([0.0, math.pi / 2]), torch.tensor([0.0, 1.0]))
    y = tasks(torch.tensor([[0.0], [math.pi / 2]]))
    assert torch.allclose(y[..., 0], torch.tensor([[0.0, 1.0], [3.0, 1.0]]), atol=1e-6)


def test_fewer_tasks_are_the_first_of_more_and_slices_keep_their_curves():
    many, few = SinusoidTasks.sample(100, seeded(5)), SinusoidTasks.sample(30, seeded(5))
    assert torch.equal(many.amplitude[:30], few.amplitude) and torch.equal(many.offset[:30], few.offset)
    part = many[10:12]
    x = torch.linspace(-5, 5, 7)[:, None]
    assert len(part) == 2 and torch.equal(part(x), many(x)[10:12])
