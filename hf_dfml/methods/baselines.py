"""Optimal-transport fusion (OTA), the baseline of DRO (UAI 2022) that it did not make itself.

Sidak Pal Singh, Martin Jaggi, "Model Fusion via Optimal Transport", NeurIPS 2020, arXiv 1910.05653.
"""

from __future__ import annotations

import torch

from hf_dfml.learning.channels import channel_groups
from hf_dfml.learning.fusion import State
from hf_dfml.learning.optimal_transport import Solver, fuse_ot
from hf_dfml.methods.base import Context
from hf_dfml.methods.paper import Paper
from hf_dfml.methods.weight_space import WeightSpaceMethod, input_size, member_states
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.settings import Settings, option


class OTAConfig(Settings):
    """Optimal-transport fusion."""

    solver: Solver = option("emd", "Exact transport (`emd`) or entropic (`sinkhorn`).")
    regularisation: float = option(0.01, "Entropy weight of `sinkhorn`, relative to a layer's largest cost.")
    reference: int = option(-1, "Member that the others are aligned to; -1 draws one.")


class OTA(WeightSpaceMethod):
    """Optimal-transport average: channels are matched to those of one member before the average.

    As DRO uses it (supplement 1.1): the reference is drawn at random.
    """

    name = "OTA"
    paper = Paper(
        title="Model Fusion via Optimal Transport",
        authors="Sidak Pal Singh, Martin Jaggi",
        venue="NeurIPS",
        year=2020,
        arxiv="1910.05653",
    )
    Config = OTAConfig
    config: OTAConfig

    def fuse(self, pool: TeacherPool, context: Context) -> State:
        """Align every member to the reference and average, one member in memory at a time."""
        reference = self.config.reference
        if reference < 0:
            reference = int(torch.randint(len(pool), (1,), generator=context.generator))
        groups = channel_groups(self.model, input_size(pool))
        return fuse_ot(
            member_states(pool, self.model),
            next(member_states(pool, self.model, [reference])),
            groups,
            solver=self.config.solver,
            regularisation=self.config.regularisation,
            names=[entry.id for entry in pool],
        )
