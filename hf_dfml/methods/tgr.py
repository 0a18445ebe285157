"""Task Groupings Regularization: Data-Free Meta-Learning with Heterogeneous Pre-trained Models.

Yongxian Wei, Zixuan Hu, Li Shen, Zhenyi Wang, Yu Li, Chun Yuan, Dacheng Tao. ICML 2024, arXiv 2405.16560.

0. Recover a data set from every pool member and embed the member by the Fisher information of a probe network on it
   (or, which is not the paper's, ask every member what it takes the others' images for).
1. Divide the pool into groups of members that are *unlike* each other.
2. Each step: draw teachers from one group, recover a task from each, take one step in which their gradients are pulled
   together (implicit gradient regularisation), then replay recovered tasks of all teachers with MAML.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from hf_dfml.learning.embedding import dissimilarities, fisher_embedding
from hf_dfml.learning.filter_fisher import filter_fisher, standardised_dissimilarities
from hf_dfml.learning.gradients import regularised_gradient
from hf_dfml.learning.grouping import group_tasks
from hf_dfml.learning.inner_loop import Parameters
from hf_dfml.learning.optimisation import apply_gradients, parameters_of
from hf_dfml.learning.probe import check_probe, load_probe
from hf_dfml.learning.recognition import confusion, unfamiliarity
from hf_dfml.learning.replay import ReplayConfig, replay_until_plateau
from hf_dfml.methods.base import Context, in_mixed_precision
from hf_dfml.methods.inversion import DistillationConfig, InversionMethod, distillation_task
from hf_dfml.methods.paper import Paper
from hf_dfml.pool.teacher import Teacher
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.recovery.inversion import RecoveryConfig, recover
from hf_dfml.recovery.task import Task
from hf_dfml.settings import Settings, option, part
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.images import to_uint8
from hf_dfml.utils.seeding import fork, spawn


class TGRConfig(Settings):
    """Hyper-parameters of TGR; the defaults are the released scripts'."""

    steps: int = option(1200, "Outer steps (the paper's epochs).", least=0, common=True)
    probe: str = option(
        "resnet34.tv_in1k",
        "Network that embeds the tasks: a timm model with weights, a folder of one, a member's id, or `average`.",
    )
    probe_size: int = option(
        0,
        "Height and width at which the probe sees images; 0: the members' largest (a public network wants more).",
        least=0,
    )
    embedding: Literal["task2vec", "filters", "answers"] = option(
        "task2vec",
        "Fisher information of every weight, with a head fitted to the task (Task2Vec), or of each filter's scale, "
        "under the probe's own classifier and standardised over the pool; or no probe, but what members take each "
        "other's images for (ours; see --embedding_batches).",
    )
    embedding_batches: int = option(
        20, "Recoveries per member for its embedding; with `answers` every member is asked about all of them.", least=1
    )
    keep_embedded: bool = option(False, "Put the images recovered for the embedding into the bank as well.")
    num_groups: int = option(5, "Groups into which the pool is divided.", least=1)
    grouping: Literal["dissimilar", "similar", "none"] = option(
        "dissimilar", "What a group holds: unlike members (TGR), like ones, or everything."
    )
    teachers_per_step: int = option(4, "Teachers drawn (with replacement) from one group.", least=1)
    igr_strength: float = option(1e-3, "lambda of the gradient regularisation.")
    igr_order: Literal["first", "second"] = option(
        "first", "Regularise by displaced gradients, or by exact second derivatives."
    )
    inversion: RecoveryConfig = part(RecoveryConfig)
    distillation: DistillationConfig = part(DistillationConfig)
    replay: ReplayConfig = part(ReplayConfig)


class TGR(InversionMethod):
    """The meta-learner of TGR; see the module's docstring."""

    name = "TGR"
    paper = Paper(
        title="Task Groupings Regularization: Data-Free Meta-Learning with Heterogeneous Pre-trained Models",
        authors="Yongxian Wei, Zixuan Hu, Li Shen, Zhenyi Wang, Yu Li, Chun Yuan, Dacheng Tao",
        venue="ICML",
        year=2024,
        arxiv="2405.16560",
    )
    Config = TGRConfig
    config: TGRConfig

    def __init__(self, config: TGRConfig, model: nn.Module) -> None:
        super().__init__(config, model)
        if config.igr_order == "second":
            self.episode_loop = replace(self.episode_loop, second_order=True)
        self.groups: list[list[int]] = []
        self.dissimilarity = torch.zeros(0, 0)

    @classmethod
    def config_for(cls, config: TGRConfig, pool: TeacherPool) -> TGRConfig:
        """The same; a probe that there is not is refused."""
        if config.grouping != "none" and config.embedding != "answers":
            check_probe(config.probe, pool)
        return config

    def setup(self, pool: TeacherPool, context: Context) -> None:
        """Embed every member and divide the pool (steps 0 and 1).

        Raises:
            ValueError: if the pool has fewer classes than an episode.
        """
        self.require_classes(pool)
        self.pool = pool
        self.groups = [list(range(len(pool)))]
        if self.config.grouping == "none":
            return
        by_answers = self.config.embedding == "answers"
        probe = None if by_answers else load_probe(self.config.probe, pool, self.config.probe_size).to(context.device)
        embed = partial(self._embed, probe, context)
        embedded = context.map_members("embedding", embed, pool, "Embedding the pool")
        if self.config.keep_embedded:
            found = zip(embedded, pool, strict=True)
            self.remember(
                [
                    Task(part["images"], part["labels"], entry.class_names, entry.id, entry.class_keys)
                    for part, entry in found
                ]
            )
        if by_answers:
            ask = partial(self._ask, embedded)
            asked = context.map_members("recognition", ask, pool, "Asking members about each other's images")
            self.dissimilarity = unfamiliarity([part["confusion"] for part in asked])
        else:
            distance = standardised_dissimilarities if self.config.embedding == "filters" else dissimilarities
            self.dissimilarity = distance(torch.stack([part["embedding"] for part in embedded]))
        affinity = self.dissimilarity if self.config.grouping == "dissimilar" else 1 - self.dissimilarity
        self.groups = group_tasks(affinity, self.config.num_groups)

    def _embed(self, probe: Teacher | None, context: Context, index: int) -> dict[str, Tensor]:
        generator = fork(context.seed, "embedding", index)
        teacher = self.pool.load(index)
        with context.autocast():
            tasks = [
                recover(teacher, self.config.inversion, self.size, generator)
                for _ in range(self.config.embedding_batches)
            ]
        images = torch.cat([task.images for task in tasks])
        labels = torch.cat([task.labels for task in tasks])
        found = {"images": images, "labels": labels} if self.config.keep_embedded else {}
        if probe is None:
            return {"images": to_uint8(images), "labels": labels, "classes": torch.tensor(teacher.num_classes)} | found
        if self.config.embedding == "filters":
            return found | {"embedding": filter_fisher(probe, images, generator)}
        return found | {"embedding": fisher_embedding(probe, images, labels, generator)}

    def _ask(self, embedded: list[dict[str, Tensor]], index: int) -> dict[str, Tensor]:
        """What a member takes the classes of all members for."""
        shown = ((task["images"], task["labels"], int(task["classes"])) for task in embedded)
        return {"confusion": confusion(self.pool.load(index), shown)}

    @in_mixed_precision
    def step(self, context: Context) -> dict[str, float]:
        """Recover from one group, regularised distillation, replay (step 2)."""
        config, generator, processes = self.config, context.generator, context.processes
        group = self.groups[int(torch.randint(len(self.groups), (), generator=generator))]
        drawn = torch.randint(len(group), (config.teachers_per_step,), generator=generator).tolist()
        members = [group[index] for index in drawn]
        tasks = processes.map(self._recover, zip(members, spawn(generator, len(members)), strict=True))
        self.remember(tasks)
        (stream,) = spawn(generator, 1)
        gradients, metrics = processes.once(lambda: self._distil(members, tasks, stream))
        apply_gradients(self.optimizer, self.model, gradients)
        replayed = replay_until_plateau(
            self.model, self.optimizer, self.bank, config.replay, generator, ways=self.ways, processes=processes
        )
        return metrics | replayed | {"bank_images": float(len(self.bank))}

    def _recover(self, item: tuple[int, torch.Generator]) -> Task:
        index, generator = item
        return recover(self.pool.load(index), self.config.inversion, self.size, generator)

    def _distil(
        self, members: list[int], tasks: list[Task], generator: torch.Generator
    ) -> tuple[Parameters, dict[str, float]]:
        config = self.config
        losses = [
            distillation_task(
                self.model, self.pool.load(index), task, config.distillation, config.inversion, generator
            )
            for index, task in zip(members, tasks, strict=True)
        ]
        return regularised_gradient(
            losses, parameters_of(self.model), strength=config.igr_strength, order=config.igr_order
        )

    def state_dict(self) -> Tree:
        """The common state, the groups and the dissimilarities."""
        return super().state_dict() | {"groups": self.groups, "dissimilarity": self.dissimilarity}

    def load_state_dict(self, state: Tree, pool: TeacherPool, context: Context) -> None:
        """Take over what `state_dict` gave, in place of `setup`."""
        super().load_state_dict(state, pool, context)
        self.groups, self.dissimilarity = state["groups"], state["dissimilarity"].cpu()

    def pictures(self, folder: Path) -> list[Path]:
        """Recovered images and the members' dissimilarities, ordered by group."""
        from hf_dfml.utils.pictures import heat_map

        paths = super().pictures(folder)
        if len(self.dissimilarity):
            order = [index for group in self.groups for index in group]
            matrix = self.dissimilarity[order][:, order]
            title = "Dissimilarity of the pool's members, group by group"
            sizes = [len(group) for group in self.groups]
            paths.append(heat_map(matrix, folder / "dissimilarity.png", title=title, label="member", groups=sizes))
        return paths
