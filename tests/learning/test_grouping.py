"""Grouping: dissimilarity as affinity mixes planted clusters, similarity separates them."""

import warnings

import pytest
import torch

from hf_dfml.learning.embedding import dissimilarities
from hf_dfml.learning.grouping import group_tasks


@pytest.fixture
def planted():
    """Twelve tasks in three clusters: task i belongs to cluster i % 3 and loads on its own third of the filters."""
    generator = torch.Generator().manual_seed(0)
    embeddings = 0.02 + 0.001 * torch.rand(12, 30, generator=generator)
    for task in range(12):
        block = slice(10 * (task % 3), 10 * (task % 3) + 10)
        embeddings[task, block] += 1 + 0.1 * torch.rand(10, generator=generator)
    return embeddings


def clusters(groups):
    return [{member % 3 for member in group} for group in groups]


def test_distances_are_small_inside_a_cluster_and_large_across(planted):
    distance = dissimilarities(planted)
    assert torch.equal(distance, distance.T) and distance.diagonal().abs().max() == 0
    same = torch.tensor([[i % 3 == j % 3 for j in range(12)] for i in range(12)])
    assert distance[same].max() < 0.05 < 0.7 < distance[~same].min()


def test_distances_do_not_depend_on_the_unit_of_the_fisher_information(planted):
    # An absolute epsilon would make them: the released code's 1e-6 drowns embeddings of this size.
    assert torch.allclose(dissimilarities(planted), dissimilarities(planted * 1e-9), atol=1e-6)


def test_dissimilarity_as_affinity_mixes_the_clusters(planted):
    groups = group_tasks(dissimilarities(planted), 3)
    assert sorted(member for group in groups for member in group) == list(range(12))
    mixed = [group for group, kinds in zip(groups, clusters(groups), strict=True) if len(kinds) > 1]
    assert all(group in mixed for group in groups if len(group) > 1)
    assert sum(len(group) for group in mixed) >= 10


def test_similarity_as_affinity_separates_them(planted):
    assert sorted(clusters(group_tasks(1 - dissimilarities(planted), 3)), key=min) == [{0}, {1}, {2}]


def test_small_pools_and_identical_tasks_are_fine():
    assert group_tasks(torch.zeros(1, 1), 5) == [[0]]
    assert group_tasks(torch.zeros(2, 2), 5) == [[0, 1]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert group_tasks(1 - torch.eye(3), 5) == [[0], [1], [2]]
    groups = group_tasks(torch.zeros(6, 6), 3)
    assert sorted(sum(groups, [])) == list(range(6)) and len(groups) == 3
