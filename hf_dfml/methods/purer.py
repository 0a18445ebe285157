"""PURER: Architecture, Dataset and Model-Scale Agnostic Data-free Meta-Learning.

Zixuan Hu, Li Shen, Zhenyi Wang, Tongliang Liu, Chun Yuan, Dacheng Tao. CVPR 2023, arXiv 2303.11183.

Episode curriculum inversion (ECI); each step:
1. Learn the images of all the pool's classes, one shared data set, by inversion of the members. While the meta-model's
   accuracy does not improve, the images are also moved to make its episodes harder (gradient switch).
2. One step of MAML on episodes of these images, their classes mixed across members.

Its calibration at meta-test, ICFIL, is `hf_dfml/evaluation/heads/icfil.py` (`head="icfil"` of an evaluation).
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from hf_dfml.learning.curriculum import PlateauSwitch
from hf_dfml.learning.fusion import average_state
from hf_dfml.learning.inner_loop import outer_loss
from hf_dfml.learning.optimisation import parameters_of
from hf_dfml.learning.replay import EpisodeConfig, replay_step
from hf_dfml.methods.base import Context, in_mixed_precision
from hf_dfml.methods.inversion import RecoveryMethod, count_of_names
from hf_dfml.methods.paper import Paper
from hf_dfml.methods.weight_space import member_states, require_same_network
from hf_dfml.networks.info import network_info
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.recovery.dynamic_dataset import DynamicDataset, DynamicDatasetConfig
from hf_dfml.settings import Settings, option, part
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.seeding import spawn


class PURERConfig(Settings):
    """Hyper-parameters of PURER; the defaults are the released scripts'."""

    steps: int = option(60_000, "Outer steps.", least=0, common=True)
    members_per_step: int = option(
        0, "Members drawn for each update of the images; 0: all (PURER-Plus: 13 of 100).", least=0
    )
    average: bool = option(
        False, "Start from the element-wise average of the pool, which must be of the meta-model's kind."
    )
    curriculum: bool = option(
        True, "Move the images to make episodes harder where the switch is on; without, inversion alone moves them."
    )
    adversarial_weight: float = option(10.0, "Weight of minus the outer loss of an episode, where the switch is on.")
    warmup: int = option(4000, "First steps without the adversarial term.", least=0)
    patience: int = option(6, "Steps without a better accuracy that switch the adversarial term on once.", least=1)
    images: DynamicDatasetConfig = part(DynamicDatasetConfig)
    episode: EpisodeConfig = part(EpisodeConfig, inner_steps=1, replay_batch=4)


class PURER(RecoveryMethod):
    """The meta-learner of PURER; see the module's docstring.

    Raises:
        ValueError: if a class has too few images for an episode.
    """

    name = "PURER"
    paper = Paper(
        title="Architecture, Dataset and Model-Scale Agnostic Data-free Meta-Learning",
        authors="Zixuan Hu, Li Shen, Zhenyi Wang, Tongliang Liu, Chun Yuan, Dacheng Tao",
        venue="CVPR",
        year=2023,
        arxiv="2303.11183",
    )
    Config = PURERConfig
    config: PURERConfig
    bank: DynamicDataset

    def __init__(self, config: PURERConfig, model: nn.Module) -> None:
        episode, count = config.episode, config.images.images_per_class
        needed = episode.replay_shots + episode.replay_queries
        if count < needed:
            raise ValueError(
                f"images_per_class={count}: an episode of {episode.replay_shots} shots and "
                f"{episode.replay_queries} queries takes {needed} images of each class."
            )
        info = network_info(model)
        images = DynamicDataset(config.images, info.image_size, info.mean, info.std)
        super().__init__(config, model, episode, images)
        self.switch = PlateauSwitch(config.patience, config.warmup)
        if config.curriculum:
            self.episode_loop = replace(self.episode_loop, second_order=True)  # See `_episode_loss`.

    @classmethod
    def config_for(cls, config: PURERConfig, pool: TeacherPool) -> PURERConfig:
        """The same; an average of members of several kinds is refused."""
        if config.average:
            require_same_network(pool)
        return config

    @classmethod
    def kept_bytes(cls, config: PURERConfig, pool: TeacherPool, size: int) -> int:
        """Of the pixels and of Adam's two moments of each."""
        return count_of_names(pool) * config.images.images_per_class * 3 * size * size * 4 * 3

    def setup(self, pool: TeacherPool, context: Context) -> None:
        """Start the images from noise and, if asked to, the meta-model from the pool's average.

        Raises:
            ValueError: if the pool has fewer classes than an episode, or cannot be averaged into the meta-model.
        """
        self.pool = pool
        self.require_classes(pool)
        names = dict.fromkeys(name for entry in pool for name in entry.class_keys)
        self.bank.begin(names, context.generator, context.device)
        if self.config.average:
            require_same_network(pool)
            members = member_states(pool, self.model)
            self.model.load_state_dict(average_state(members, [entry.id for entry in pool]))

    @in_mixed_precision
    def step(self, context: Context) -> dict[str, float]:
        """Move the images, then the meta-model."""
        config, generator, processes = self.config, context.generator, context.processes
        harder = self.switch.take(context.step) and config.curriculum
        further = partial(self._harder, *spawn(generator, 1)) if harder else None
        chosen = torch.randperm(len(self.pool), generator=generator)[: config.members_per_step or None].tolist()
        teachers = [partial(self.pool.load, index) for index in chosen]
        started = time.monotonic()
        metrics = self.bank.learn(teachers, generator, further, processes)
        metrics |= {"recovery_seconds": time.monotonic() - started}
        loss, accuracy = replay_step(
            self.model, self.optimizer, self.bank, config.episode, generator, ways=self.ways, processes=processes
        )
        self.switch.observe(context.step, accuracy)
        return metrics | {"outer_loss": loss, "outer_accuracy": accuracy, "adversarial": float(harder)}

    def _harder(self, generator: torch.Generator) -> Tensor:
        return -self.config.adversarial_weight * self._episode_loss(generator)

    def _episode_loss(self, generator: torch.Generator) -> Tensor:
        """The outer loss of one random episode; its graph goes through the inner loop into the pixels."""
        config = self.config.episode
        episode = self.bank.learnable_episode(
            generator, ways=self.ways, shots=config.replay_shots, queries=config.replay_queries
        )
        params = {name: value.detach() for name, value in parameters_of(self.model).items()}
        # Second order whatever the outer step is: without it the support set would get no gradient.
        loop = replace(config.inner_loop, second_order=True)
        tensors = (episode.support, episode.support_labels, episode.query, episode.query_labels)
        loss, _ = outer_loss(self.model, params, loop, *(tensor[0] for tensor in tensors))
        return loss

    def state_dict(self) -> Tree:
        """The common state and the switch."""
        return super().state_dict() | {"switch": self.switch.state_dict()}

    def load_state_dict(self, state: Tree, pool: TeacherPool, context: Context) -> None:
        """Take over what `state_dict` gave, in place of `setup`."""
        super().load_state_dict(state, pool, context)
        # Checkpoints of earlier versions have the names themselves.
        known = {key for entry in pool for key in entry.class_keys}
        pairs = (pair for entry in pool for pair in zip(entry.class_names, entry.class_keys, strict=True))
        self.bank.rename({name: key for name, key in pairs if name not in known})
        self.switch.load_state_dict(state["switch"])
