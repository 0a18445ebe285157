"""A classifier from a few images, in the same words of a meta-model, a member of a pool, or all members of one.

classifier = adapt("my-org", "photos/train")
cross_val_score(FewShotClassifier("runs/tgr"), images, labels)
"""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_dfml.classifier import Classifier, Origin
from hf_dfml.classifier.all_members import AllMembers
from hf_dfml.evaluation.heads import HEADS, Adaptation, Representation
from hf_dfml.meta_model import MetaModel
from hf_dfml.networks.functional import BatchNorm
from hf_dfml.networks.info import network_info
from hf_dfml.pool.entry import IS_META_MODEL, PoolEntry
from hf_dfml.pool.model_pool import ModelPool
from hf_dfml.pool.opening import open_pool
from hf_dfml.pool.teacher import Teacher
from hf_dfml.pool.teacher_pool import TeacherPool
from hf_dfml.utils.inputs import Images, Labels
from hf_dfml.utils.provenance import called
from hf_dfml.utils.text import counted

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from hf_dfml.pool.sources.client import HubArguments

Adaptable = MetaModel | Teacher | TeacherPool | str | Path
"""A meta-model, a member, a pool, or the name of one of these."""

OF_MEMBERS = Adaptation(bn="running", head="prototype")
"""How members are adapted by default: nearest class mean by cosine, under their own batch-norm statistics."""


def adapt(
    model: Adaptable,
    images: Images,
    labels: Labels | None = None,
    *,
    head: str | None = None,
    bn: BatchNorm | None = None,
    steps: int | None = None,
    lr: float | None = None,
    flips: bool | None = None,
    representation: Representation | None = None,
    device: torch.device | str = "cpu",
    **hub: Unpack[HubArguments],
) -> Classifier:
    """Learn new classes from a few images of each. Nothing is trained beforehand where a pool or a member is named.

    Args:
        model: a meta-model; a member (`pool.load(0)`); a pool, of which all members are asked; or the name of one: a
            folder, a Hub id, organisation or collection, a lock file, a service's address.
        images: the support set, as `MetaModel.adapt` takes it.
        labels: the class of each image; left out with a folder of class folders.
        head: see `MetaModel.adapt`; of members `prototype` by default.
        bn: likewise; of members `running`, of a whole pool nothing else.
        steps: likewise.
        lr: likewise.
        flips: likewise.
        representation: likewise; of a pool its members' `answers` (probabilities) side by side, its `features`, the
            default of fewer than ten members, or `both`.
        device: where a named model goes.
        **hub: `token`, `revision`, `cache_dir`, `local_files_only`, as in huggingface_hub.

    Raises:
        FileNotFoundError: if there is no such model.
        ValueError: as `MetaModel.adapt`, or if a whole pool is to be fine-tuned.
    """
    asked: dict[str, Any] = {"head": head, "bn": bn, "steps": steps, "lr": lr, "flips": flips}
    name = ""
    if isinstance(model, str | Path):
        name, model = called(str(model)), open_model(str(model), device, **hub)
    if isinstance(model, MetaModel):
        return model.adapt(images, labels, representation=representation, **asked)
    how = OF_MEMBERS.but(**asked)
    if isinstance(model, TeacherPool):
        model = model.usable() if isinstance(model, ModelPool) else model.resolve()
        if len(model) > 1 or model.answers_only:
            return _on_members(model, name, images, labels, how, representation)
        model = model.load(0)
    assert isinstance(model, Teacher)
    entry = model.entry
    if representation in ("answers", "both") or (entry.library == "transformers" and how.head != "finetune"):
        pool = ModelPool([entry], device=model.device)
        return _on_members(pool, name, images, labels, how, representation or "features")
    origin = Origin("member", entry.id, entry.revision, model_args=entry.model_args)
    _, height, width = network_info(model.network).input_size
    return Classifier.adapted(model.network, images, labels, how, (height, width), origin=origin)


def open_model(name: str, device: torch.device | str = "cpu", **hub: Unpack[HubArguments]) -> MetaModel | TeacherPool:
    """The meta-model or the pool of that name.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is one model that cannot be used.
    """
    pool = open_pool(name, **hub).resolve()
    problem = pool[0].problem if len(pool) == 1 else None
    if problem == IS_META_MODEL:
        return MetaModel.from_pretrained(name.removeprefix("dir:").removeprefix("hf:"), device=device, **hub)
    if problem and Path(name.removeprefix("dir:")).expanduser().exists():
        raise ValueError(f"{name} {problem}.")
    if problem:
        raise FileNotFoundError(f"There is no folder {name}, and {name} {problem}.")
    return pool.to(device)


def _on_members(
    pool: TeacherPool,
    name: str,
    images: Images,
    labels: Labels | None,
    how: Adaptation,
    representation: Representation | None,
) -> Classifier:
    if not HEADS[how.head].on_features:
        raise ValueError(
            f"head='{how.head}' adapts one network, and this is a pool of {counted(len(pool), 'member')}: choose "
            "head='prototype' or head='linear', or adapt one member (`pool.load(0)`)."
        )
    if how.bn != "running":
        raise ValueError(f"bn='{how.bn}': the members of a pool normalise by their own statistics: use bn='running'.")
    network = AllMembers(pool, representation)
    kind: Any = "pool" if len(pool) > 1 else "member"
    origin = Origin(kind, name or (pool[0].id if len(pool) == 1 else ""), pool=tuple(map(_pinned, network.pool)))
    _, height, width = network_info(network).input_size
    return Classifier.adapted(network, images, labels, how, (height, width), origin=origin, device=pool.device)


def _pinned(entry: PoolEntry) -> str:
    return f"{entry.repository}@{entry.revision}" if entry.revision else entry.id


class FewShotClassifier:
    """`adapt` as scikit-learn has its classifiers, for `cross_val_score` and the like.

    Args:
        model: as in `adapt`; so are the others.

    Attributes:
        classes_: the labels, after `fit`.
        classifier_: the `Classifier`, after `fit`.
    """

    _estimator_type = "classifier"

    def __init__(
        self,
        model: Adaptable,
        *,
        head: str | None = None,
        bn: BatchNorm | None = None,
        steps: int | None = None,
        lr: float | None = None,
        flips: bool | None = None,
        representation: Representation | None = None,
    ) -> None:
        self.model, self.head, self.bn, self.steps, self.lr = model, head, bn, steps, lr
        self.flips, self.representation = flips, representation

    def fit(self, X: Images, y: Labels) -> FewShotClassifier:  # noqa: N803
        """Learn the classes of images, as `adapt` takes them."""
        options = self.get_params()
        self.classifier_ = adapt(options.pop("model"), X, y, **options)
        self.classes_ = np.array(self.classifier_.classes)
        return self

    def predict(self, X: Images) -> np.ndarray:  # noqa: N803
        """The label of each image."""
        return np.array(self.classifier_.predict(X))

    def predict_proba(self, X: Images) -> np.ndarray:  # noqa: N803
        """Probabilities `(B, N)`, columns as `classes_`."""
        return self.classifier_.predict_proba(X).numpy()

    def score(self, X: Images, y: Labels) -> float:  # noqa: N803
        """The accuracy in [0, 1]."""
        return self.classifier_.evaluate(X, y).mean

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {name: getattr(self, name) for name in signature(type(self)).parameters}

    def set_params(self, **params: Any) -> FewShotClassifier:
        """Change arguments of the constructor; itself.

        Raises:
            ValueError: for an unknown name.
        """
        unknown = sorted(params.keys() - self.get_params().keys())
        if unknown:
            raise ValueError(f"'{unknown[0]}' is not a parameter: expected {', '.join(self.get_params())}.")
        vars(self).update(params)
        return self

    def __repr__(self) -> str:
        given = [f"{name}={value!r}" for name, value in self.get_params().items() if value is not None]
        return f"FewShotClassifier({', '.join(given)})"

    def __sklearn_clone__(self) -> FewShotClassifier:
        # The model is shared: it is never changed.
        return type(self)(**self.get_params())

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        target, images = TargetTags(required=True), InputTags(two_d_array=False, three_d_array=True)
        return Tags("classifier", target_tags=target, classifier_tags=ClassifierTags(), input_tags=images)
