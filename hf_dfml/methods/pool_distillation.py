"""Pool distillation: one network that answers as every member of a pool does, learnt from images of the pool's own.

A system of this library. Many teachers at once: You et al., KDD 2017; recovery: DeepInversion (Yin et al., CVPR 2020,
arXiv 1912.08795), by one member and jointly by all members that know a class; mix-up: Zhang et al., ICLR 2018.

0. Recover images of every class of every member and of every class name, and make one training set of crops and
   mixtures of all of them.
1. Ask every member about them once.
2. Each step: one pass over the training set in which the student has a head for every member and learns its answers.

The heads are kept: the student's predicted answers are a representation of an image, as its features are. Steps 0 and
1 are in `methods/pool_images.py`. Members that only answer are asked about images drawn by chance, and nothing is
recovered from them unless that is asked for.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.data.unlabelled import find_images
from hf_dfml.learning.ancestry import start_from_pool
from hf_dfml.learning.answers import AnswerHeads, Heads, answer_loss, softened, with_answers
from hf_dfml.learning.lora import check_peft
from hf_dfml.learning.optimisation import one_cycle
from hf_dfml.learning.student import Student, TrainedPart
from hf_dfml.methods.base import Context, Method, in_mixed_precision
from hf_dfml.methods.pool_images import SHOWN, PoolImages, PoolImagesConfig, pool_images
from hf_dfml.networks.beside import answers_beside
from hf_dfml.networks.info import network_info
from hf_dfml.pool.backbone import find_backbone
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.settings import Settings, flat, option, part
from hf_dfml.utils.checkpoint import Tree
from hf_dfml.utils.images import to_unit
from hf_dfml.utils.seeding import fork

FEW_MEMBERS = 10
"""Up to so many members, their features tell new classes apart better than their answers (CIFAR-FS, validation)."""


class PoolDistillationConfig(Settings):
    """Hyper-parameters of pool distillation; the defaults fit a pool of 32-pixel networks and a CPU."""

    removed = dict.fromkeys(
        "target_dim projection landmarks target_outputs equalise gram_weight neighbour_weight neighbour_equalise "
        "neighbour_temperature neighbour_target_temperature".split(),
        "pool distillation learns the members' answers now, which has no such option",
    )

    steps: int = option(32, "Passes over the training set.", least=0, common=True)
    batch_size: int = option(100, "Images of a batch; an incomplete one is left out.", least=2)
    lr: float = option(1e-2, "Highest learning rate of the student's Adam (one cycle over the run).", above=0)
    start: Literal["member", "random"] = option(
        "member",
        "Start from the members of the student's architecture, if there are any (what they were all fine-tuned from, "
        "where their weights show it, else the best one), or at random; not where --student_from names a start.",
    )
    train_student: TrainedPart = option(
        "all",
        "What learns: `all` of the student, its `last_stage`, low-rank adapters of its layers (`lora`, for a student "
        "that starts from a public network or from members; needs peft), the `head`s alone, or a branch `beside` the "
        "frozen student, whose answers are put beside the student's features.",
    )
    lora_rank: int = option(8, "Rank of the adapters of `--train_student lora`.", least=1)
    answer_weight: float = option(0.5, "Weight of the answers that are put beside features.", above=0)
    answer_heads: Heads = option(
        "member", "Rows of the heads: one for each class of each `member`, or one for each class `name`."
    )
    scale: float = option(10.0, "Cosines are multiplied by this before the softmax.", above=0)
    temperature: float = option(
        1.0, "The heads learn the members' answers at this temperature: above 1 they are softer.", above=0
    )
    representation: Literal["auto", "features", "answers", "both"] = option(
        "auto",
        "What snapshots are validated by, and the default of a model made without a data set: the student's features, "
        f"the answers that it predicts, or both; `auto`: both of more than {FEW_MEMBERS} members, else features.",
    )
    training_set: PoolImagesConfig = part(PoolImagesConfig)


class PoolDistillation(Method):
    """The student of all members' answers; see the module's docstring.

    Attributes:
        images: `(N, 3, H, W)` uint8, the training set.
        answers: `(N, K)` in half precision, the members' probabilities of it side by side.
        heads: the student's head for every member, since `setup`.
    """

    name = "Pool distillation"
    black_boxes = True
    Config = PoolDistillationConfig
    config: PoolDistillationConfig
    # Trained as a representation under running statistics, it is used as one.
    eval_head = "prototype"
    eval_bn = "running"

    heads: AnswerHeads
    student: Student

    def __init__(self, config: PoolDistillationConfig, model: nn.Module) -> None:
        count = config.training_set.mixing.num_images
        if count < config.batch_size:
            raise ValueError(f"{count} images make no batch of {config.batch_size}: raise --num_images.")
        super().__init__(config, model)
        self.eval_representation = config.representation
        info = network_info(model)
        self.size = info.image_size
        self.unlabelled = bool(config.training_set.images)
        self.images = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        self.answers = torch.empty(0, 0, dtype=torch.float16)
        self.recovered: Tree = {"images": self.images, "titles": []}

    @classmethod
    def check_names(cls, config: PoolDistillationConfig) -> None:
        """The folder of unlabelled images, the network of an image prior and peft, if there are to be any."""
        if config.train_student == "lora":
            check_peft()
        if config.training_set.images:
            find_images(config.training_set.images)
        if config.training_set.prior:
            find_backbone(config.training_set.prior)

    def check_model(self) -> None:
        """What is published has the answers' layer in place of its own, which must be one (but for a student beside).

        Raises:
            ValueError: if the network has several last layers, or one that is not linear.
        """
        if self.config.train_student == "beside":
            return
        info = network_info(self.model)
        try:
            info.linear_classifier()
        except ValueError as error:
            raise ValueError(
                f"{info.architecture} cannot be the student: {error} Name another with --arch, or start from it with "
                "--student_from and --train_student beside."
            ) from error

    @classmethod
    def config_for(cls, config: PoolDistillationConfig, pool: TeacherPool) -> PoolDistillationConfig:
        """With estimated gradients, for members that only answer; and the representation that suits their number."""
        if config.representation == "auto":
            many = len(pool) > FEW_MEMBERS and config.train_student != "beside"
            config = replace(config, representation="both" if many else "features")
        if config.train_student == "beside" and config.representation != "features":
            raise ValueError(
                "--train_student beside puts the answers into the student's features: leave --representation "
                f"{config.representation} out."
            )
        return replace(config, **flat(config.training_set.for_black_boxes())) if pool.answers_only else config

    @classmethod
    def kept_bytes(cls, config: PoolDistillationConfig, pool: TeacherPool, size: int) -> int:
        """Of the training images, and of all members' answers in half precision."""
        outputs = sum(entry.num_classes or 0 for entry in pool)
        return config.training_set.mixing.num_images * (3 * size * size + 2 * outputs)

    def setup(self, pool: TeacherPool, context: Context) -> None:
        """Recover, mix, and ask all members about the mixtures (steps 0 and 1).

        Raises:
            ValueError: if several processes would ask black boxes, whose questions only one can count; or if the
                student has no layer for an adapter that is asked for.
            QueryBudgetError: if black boxes may not be asked for the next member's part; none of it was asked.
        """
        self._make_heads(pool, context)
        public = network_info(self.model).settings.get("started_from")
        if self.config.start == "member" and not public and not pool.answers_only:
            context.say(start_from_pool(self.model, pool))
            self.student.restore()
        self.images, self.answers, self.recovered = self.make_images(pool, context)
        self._look(context)

    def make_images(self, pool: TeacherPool, context: Context) -> PoolImages:
        """What the student is shown, and what the members answer (steps 0 and 1); trials make it in other ways."""
        return pool_images(pool, self.config.training_set, self._size_of_images(pool), context)

    def _size_of_images(self, pool: TeacherPool) -> int:
        """The student's, or the members' largest where that is less: the student enlarges what they see."""
        sizes = [max(entry.input_size[1:]) for entry in pool if entry.input_size]
        return min(self.size, max(sizes, default=self.size))

    def _look(self, context: Context) -> None:
        with context.autocast():
            self.student.look(self.images)

    def _make_heads(self, pool: TeacherPool, context: Context) -> None:
        config, device = self.config, next(self.model.parameters()).device
        self.pool = pool
        names = [entry.class_keys for entry in pool]
        # Drawn on the CPU, where the generator is: the same start on every device.
        self.student = Student(self.model, config.train_student, fork(context.seed, "branch"), config.lora_rank)
        self.heads = AnswerHeads(
            self.student.width, names, config.answer_heads, config.scale, fork(context.seed, "heads")
        ).to(device)
        self.optimizer = torch.optim.Adam([*self.student.parameters(), *self.heads.parameters()], config.lr)

    @in_mixed_precision
    def step(self, context: Context) -> dict[str, float]:
        """One pass over the training set (step 2).

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        config = self.config
        batches = len(self.images) // config.batch_size
        order = torch.randperm(len(self.images), generator=context.generator).to(self.images.device)
        total = torch.zeros((), device=self.images.device)
        self.student.train()
        seen = self.student.seen
        for index in range(batches):
            rows = order[index * config.batch_size : (index + 1) * config.batch_size]
            rate = config.lr * one_cycle((context.step * batches + index) / (self.num_steps * batches))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            given = seen[rows].float() if len(seen) else to_unit(self.images[rows])
            loss = self.loss(given, self.answers[rows].float())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        self.student.eval()
        mean = float(total) / batches
        if not math.isfinite(mean):
            raise FloatingPointError("The loss is not finite (NaN or infinity): lower --lr.")
        return {"loss": mean, "lr": rate}

    def loss(self, given: Tensor, answers: Tensor) -> Tensor:
        """Mean divergence of the heads from the members' answers `(B, K)`.

        Args:
            given: images `(B, 3, H, W)` in [0, 1], or what the student's frozen layers give of them.
            answers: to these images.
        """
        features = self.student.features(given)
        with torch.autocast(features.device.type, enabled=False):
            wanted = softened(answers, self.heads.sizes, self.config.temperature)
            return answer_loss(self.heads(features.float()), wanted, self.heads.sizes)

    def snapshot(self, context: Context) -> nn.Module:
        """A copy of the student whose classifier is the heads of all members, or whose features hold their answers."""
        branch, heads = self.student.branch, self.heads
        if branch is None:
            return with_answers(self.student.network(), heads)
        return answers_beside(
            self.model,
            branch,
            heads.scale * F.normalize(heads.rows.detach(), dim=-1)[heads.columns],
            heads.sizes,
            weight=self.config.answer_weight,
            num_classes=network_info(self.model).num_classes,
        )

    def state_dict(self) -> Tree:
        """Student, heads, optimiser and the training set with its answers."""
        return {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "images": self.images,
            "answers": self.answers,
            "recovered": self.recovered,
            "branch": self.student.state_dict(),
        }

    def load_state_dict(self, state: Tree, pool: TeacherPool, context: Context) -> None:
        """Take over what `state_dict` gave, in place of `setup`."""
        self._make_heads(pool, context)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.images, self.answers = state["images"].to(context.device), state["answers"].to(context.device)
        self.recovered = state["recovered"]
        self.student.load_state_dict(state["branch"])
        self._look(context)

    def pictures(self, folder: Path) -> list[Path]:
        """Recovered images class by class, with the confidence of members that know it; images of the training set.

        Not where that set is of the user's own images: pictures are published.
        """
        from hf_dfml.recovery.confidence import confidence
        from hf_dfml.utils.pictures import class_rows, image_grid

        shown, titles = to_unit(self.recovered["images"]), self.recovered["titles"]
        drawn = []
        if len(shown):
            names = list(dict.fromkeys(titles))
            columns = min(titles.count(name) for name in names)
            rows = torch.stack([shown[titles.index(name) :][:columns] for name in names])
            classes = [name.rpartition(": ")[2] for name in names]  # A title is `class`, or `member: class`.
            sure = None if self.pool.answers_only else confidence(self.pool, rows, classes)
            drawn += [class_rows(rows, names, folder / "classes.png", confidence=sure)]
        if len(self.images) and not self.unlabelled:
            drawn += [image_grid(to_unit(self.images[: SHOWN * SHOWN]), folder / "training_set.png", columns=SHOWN)]
        return drawn
