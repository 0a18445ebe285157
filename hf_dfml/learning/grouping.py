"""Grouping of pool members so that unlike tasks are learnt together (TGR, ICML 2024)."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def group_tasks(affinity: Tensor, num_groups: int, *, seed: int = 42) -> list[list[int]]:
    """Spectral clustering of `M` tasks by a matrix of affinities.

    TGR passes *dissimilarities*: tasks that differ attract each other, so each group is heterogeneous. Passing
    similarities gives the usual clusters of like tasks.

    Args:
        affinity: `(M, M)`, symmetric, non-negative.
        num_groups: the wanted number of groups; at most `M` are made.
        seed: seed of the k-means in the spectral space.

    Returns:
        The member indices of each non-empty group.
    """
    from sklearn.cluster import SpectralClustering

    count = len(affinity)
    groups = min(num_groups, count)
    if groups <= 1 or count <= 2:
        return [list(range(count))]
    if groups == count:
        return [[member] for member in range(count)]
    matrix = affinity.double().cpu().numpy()
    scale = matrix[~np.eye(count, dtype=bool)].mean()
    if scale == 0:  # All tasks are alike: any division is as good as another.
        return [list(range(start, count, groups)) for start in range(groups)]
    labels = SpectralClustering(groups, affinity="precomputed", n_init=30, random_state=seed).fit_predict(
        matrix / scale
    )
    return [members for group in range(groups) if (members := np.flatnonzero(labels == group).tolist())]
