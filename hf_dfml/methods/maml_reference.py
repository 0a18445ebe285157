"""References that are allowed to see data: MAML on the real training classes, and online MAML on a stream of tasks.

Chelsea Finn, Pieter Abbeel, Sergey Levine. ICML 2017, arXiv 1703.03400 (MAML). Chelsea Finn, Aravind Rajeswaran,
Sham Kakade, Sergey Levine. ICML 2019, arXiv 1902.08438 (online).

They say what the data would have been worth. `data_free` is False, and their names in every table say so.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from hf_dfml.data import FewShotDataset, load_dataset
from hf_dfml.data.episodes import Episodes, EpisodeSampler
from hf_dfml.learning.inner_loop import InnerLoop
from hf_dfml.learning.optimisation import apply_gradients, calibrate_batch_norm
from hf_dfml.learning.replay import divided_meta_gradient
from hf_dfml.methods.base import Context, Method
from hf_dfml.methods.paper import Paper
from hf_dfml.networks.functional import BatchStatistics
from hf_dfml.networks.info import network_info
from hf_dfml.networks.stages import train_mode
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.settings import Settings, option
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.images import to_unit

STATISTICS_IMAGES = 500
"""Training images from which a snapshot's running statistics are taken."""


class MAMLConfig(Settings):
    """MAML on real images; learning rates and steps are those of TGR's released scripts."""

    train_dataset: str = option("cifar-fs", "Data set whose training classes it sees.")
    train_data_dir: str | None = option(None, "Folder of local copies of the data sets.")
    steps: int = option(2000, "Outer steps (online: steps for each arriving task).", least=0, common=True)
    outer_lr: float = option(1e-3, "Learning rate of the outer Adam.", above=0)
    inner_lr: float = option(0.01, "Learning rate of the inner SGD steps.", above=0)
    inner_steps: int = option(5, "Inner SGD steps in training.", least=0)
    second_order: bool = option(True, "MAML (True) or first-order MAML (False).")
    bn: BatchStatistics = option("transductive", "Batch norm of the queries in training.")
    train_shots: int = option(5, "Support images a class in training.", least=1)
    train_queries: int = option(15, "Query images a class in training.", least=1)
    meta_batch: int = option(4, "Episodes an outer step.", least=1)

    @property
    def inner_loop(self) -> InnerLoop:
        """The inner loop of the training episodes."""
        return InnerLoop(self.inner_steps, self.inner_lr, self.bn, "all", self.second_order)


class MAML(Method):
    """Model-agnostic meta-learning on the real training classes: a reference, not a data-free method.

    Args:
        config: hyper-parameters.
        model: the meta-model, on its device.
    """

    name = "MAML, sees data"
    data_free = False
    paper = Paper(
        title="Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
        authors="Chelsea Finn, Pieter Abbeel, Sergey Levine",
        venue="ICML",
        year=2017,
        arxiv="1703.03400",
    )
    Config = MAMLConfig
    config: MAMLConfig

    def __init__(self, config: MAMLConfig, model: nn.Module) -> None:
        super().__init__(config, model)
        train_mode(model)
        self.optimizer = torch.optim.Adam(model.parameters(), config.outer_lr)
        self.eval_inner_loop = (config.inner_steps, config.inner_lr)

    @property
    def ways(self) -> int:
        """Number of classes of the meta-model."""
        return network_info(self.model).num_classes

    def setup(self, pool: TeacherPool, context: Context) -> None:
        """Read the training images; the pool is not looked at."""
        config = self.config
        size = network_info(self.model).image_size
        images = load_dataset(config.train_dataset, "train", data_dir=config.train_data_dir, image_size=size)
        self.dataset = images.to(context.device)
        self.sampler = EpisodeSampler(self.dataset, self.ways, config.train_shots, config.train_queries)

    def episodes(self, context: Context) -> Episodes:
        """The batch of one outer step."""
        return self.sampler.sample(self.config.meta_batch, context.generator)

    def step(self, context: Context) -> dict[str, float]:
        """One outer step; mean query loss and accuracy of its episodes."""
        episodes = self.episodes(context).to(context.device)
        gradients, loss, accuracy = divided_meta_gradient(
            self.model, episodes, self.config.inner_loop, context.processes
        )
        apply_gradients(self.optimizer, self.model, gradients)
        return {"query_loss": loss, "query_accuracy": accuracy}

    def snapshot(self, context: Context) -> nn.Module:
        """A copy of the meta-model with the batch-norm statistics of training images."""
        model = copy.deepcopy(self.model)
        every = max(1, len(self.dataset) // STATISTICS_IMAGES)
        calibrate_batch_norm(model, to_unit(self.dataset.images[::every]))
        return model.eval()

    def state_dict(self) -> Tree:
        """Meta-model and optimiser."""
        return super().state_dict() | {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Tree, pool: TeacherPool, context: Context) -> None:
        """Take over what `state_dict` gave; images are read again."""
        self.setup(pool, context)
        super().load_state_dict(state, pool, context)
        self.optimizer.load_state_dict(state["optimizer"])


class OML(MAML):
    """Online meta-learning with data: tasks arrive one by one, each with its real images, and are remembered.

    Follow the meta-leader: a few outer steps for each arrival, on episodes of the tasks seen so far. DRO's table names
    its reference OML without saying more. The tasks are those of the pool's members, in random order.

    Args:
        config: hyper-parameters.
        model: the meta-model, on its device.
    """

    name = "OML, sees data"
    paper = Paper(
        title="Online Meta-Learning",
        authors="Chelsea Finn, Aravind Rajeswaran, Sham Kakade, Sergey Levine",
        venue="ICML",
        year=2019,
        arxiv="1902.08438",
    )

    def setup(self, pool: TeacherPool, context: Context) -> None:
        """Read the training images and fix the order in which tasks arrive.

        Raises:
            ValueError: if a member has a class that the training set does not.
        """
        super().setup(pool, context)
        self._begin(pool, torch.randperm(len(pool), generator=context.generator).tolist())

    def episodes(self, context: Context) -> Episodes:
        """Episodes of tasks drawn from those that have arrived by now."""
        arrived = self.stream[: context.step // self.config.steps + 1]
        chosen = torch.randint(len(arrived), (self.config.meta_batch,), generator=context.generator).tolist()
        parts = [self._sampler(self.entries[arrived[index]]).sample(1, context.generator) for index in chosen]
        return Episodes(
            torch.cat([part.support for part in parts]),
            torch.cat([part.support_labels for part in parts]),
            torch.cat([part.query for part in parts]),
            torch.cat([part.query_labels for part in parts]),
        )

    def state_dict(self) -> Tree:
        """Meta-model, optimiser and the order of arrival."""
        return {**super().state_dict(), "stream": self.stream}

    def load_state_dict(self, state: Tree, pool: TeacherPool, context: Context) -> None:
        """Take over what `state_dict` gave; images are read again."""
        MAML.setup(self, pool, context)
        self._begin(pool, list(state["stream"]))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _begin(self, pool: TeacherPool, stream: list[int]) -> None:
        self.stream = stream
        self.num_steps = len(stream) * self.config.steps
        self.entries = list(pool)
        for entry in self.entries:
            _check_classes(self.dataset, entry)

    def _sampler(self, entry: PoolEntry) -> EpisodeSampler:
        """Episodes of one member's classes; made when needed, as 100 copies of their images would fill a gigabyte."""
        images = [self.dataset.by_class(name) for name in entry.label_names]
        labels = torch.arange(len(images)).repeat_interleave(torch.tensor([len(part) for part in images]))
        task = replace(
            self.dataset, images=torch.cat(images), labels=labels.to(images[0].device), class_names=entry.label_names
        )
        return EpisodeSampler(task, self.ways, self.config.train_shots, self.config.train_queries)


def _check_classes(dataset: FewShotDataset, entry: PoolEntry) -> None:
    unknown = [name for name in entry.label_names if name not in dataset.class_names]
    if unknown or not entry.label_names:
        found = f"'{unknown[0]}'" if unknown else "no class names"
        raise ValueError(
            f"OML needs the images of each member's classes: member '{entry.id}' has {found}, expected training "
            f"classes of '{dataset.name}'; use a pool that was built on this data set."
        )
