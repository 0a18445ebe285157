"""The Fisher information of filters: against one backward pass an image, and what standardising leaves."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hf_dfml.learning.filter_fisher import filter_fisher, standardised_dissimilarities
from hf_dfml.learning.probe import load_probe
from hf_dfml.pool import ModelPool
from tests.learning.test_embedding import make_probe
from tests.pool.members import write_pool


def test_it_is_the_mean_share_of_each_images_squared_derivatives(monkeypatch):
    """A filter's scale is that of its weights and bias, so that the derivative is their inner product with theirs."""
    probe, images = make_probe(), torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1])
    parts = iter(labels.split(2))
    monkeypatch.setattr(torch, "multinomial", lambda *_, **__: next(parts)[:, None])
    found = filter_fisher(probe, images, torch.Generator().manual_seed(0), chunk_size=2)

    convs = [block.conv for block in probe.network.blocks]
    weights = [value.requires_grad_() for conv in convs for value in (conv.weight, conv.bias)]
    expected = torch.zeros(16)
    for image, label in zip(images, labels, strict=True):
        slopes = torch.autograd.grad(F.cross_entropy(probe(image[None]), label[None]), weights)
        squares = []
        for index, conv in enumerate(convs):
            of_weight = (slopes[2 * index] * conv.weight).flatten(1).sum(1)
            squares.append((of_weight + slopes[2 * index + 1] * conv.bias).square())
        expected += torch.cat(squares).detach() / torch.cat(squares).sum() / len(images)
    assert found.shape == (16,) and found.sum() == pytest.approx(1)
    assert torch.allclose(found, expected.detach(), rtol=1e-3, atol=1e-8)


def test_a_probe_without_convolutions_is_refused():
    probe = make_probe()
    probe.network.blocks = nn.Sequential(nn.Flatten())
    with pytest.raises(ValueError, match="has no convolutions.* task2vec"):
        filter_fisher(probe, torch.rand(1, 3, 16, 16), torch.Generator())


def test_what_all_tasks_have_in_common_is_left_out():
    """Two kinds of tasks differ by a hundredth of what both are: the distance sees nothing else, units included."""
    generator = torch.Generator().manual_seed(0)
    common, kinds = torch.randn(200, generator=generator).exp(), torch.randn(2, 200, generator=generator)
    of = [0, 1, 0, 1, 0, 1]
    noise = 0.0005 * torch.randn(6, 200, generator=generator)
    embeddings = common * (0.01 * kinds[of] + noise).exp()
    distance = standardised_dissimilarities(embeddings)
    alike = torch.tensor(of)[:, None] == torch.tensor(of)
    off = ~torch.eye(6, dtype=torch.bool)
    assert distance[alike & off].max() < 0.1 and distance[~alike].min() > 0.9
    assert torch.allclose(distance, distance.T) and distance.diagonal().abs().max() == 0
    units = torch.rand(200, generator=generator) + 0.1
    assert torch.allclose(standardised_dissimilarities(embeddings * units), distance, atol=1e-3)


def test_a_probe_may_be_a_folder_and_see_images_at_another_size(tmp_path):
    pool = ModelPool.from_dir(write_pool(tmp_path / "pool", 2)).resolve()
    probe = load_probe(str(tmp_path / "pool" / "m-1"), pool, 24)
    assert probe.entry.input_size == (3, 24, 24) and load_probe("m-0", pool).entry.input_size == pool[0].input_size
    with pytest.raises(ValueError, match="nor a member of the pool, nor a folder, nor a timm model"):
        load_probe("nowhere/at/all", pool)
