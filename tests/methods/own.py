"""A method as a user would write one, in a moment's work, for the tests of runs."""

from dataclasses import dataclass

import torch

from hf_dfml.methods.base import Method, Paper


@dataclass(frozen=True)
class NudgeConfig:
    steps: int = 2
    size: float = 0.1


class Nudge(Method):
    Config = NudgeConfig
    paper = Paper("Nudging", "A. Uthor", "Workshop", 2026)

    def setup(self, pool, context):
        self.pool = pool

    def step(self, context):
        with torch.no_grad():
            for parameter in self.model.parameters():
                noise = torch.randn(parameter.shape, generator=context.generator)
                parameter.add_(noise, alpha=self.config.size)
        return {"loss": float(context.step)}
