"""A classifier of new classes, made from a few images of each.

classifier = meta.adapt(images, labels)
classifier.predict(queries), classifier.predict_proba(queries), classifier.top_k(queries, 3)
classifier.classify("photos/new")  # the same with the file beside each answer, and what was left out
classifier.leave_one_out(), classifier.evaluate(test_images, test_labels)
classifier.save_pretrained("my-classifier"); Classifier.from_pretrained("my-classifier")
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_dfml.classifier.accuracy import Accuracy
from hf_dfml.classifier.all_members import AllMembers
from hf_dfml.classifier.origin import Origin
from hf_dfml.evaluation.heads import HEADS, Adaptation, Adapted, Head
from hf_dfml.networks.functional import functional_forward
from hf_dfml.networks.info import network_info
from hf_dfml.networks.linear_on_features import LinearOnFeatures
from hf_dfml.utils.inputs import Images, Labels, in_batches, labelled_batch, labelled_batches

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from hf_dfml.classifier.answers import Answers
    from hf_dfml.pool.sources.client import HubArguments

QUERIES_AT_ONCE = 256


class Classifier:
    """A classifier of the classes of a support set.

    Made by `adapt`, or read by `from_pretrained`.

    Attributes:
        classes: the labels as they were given, in the order of the probabilities' columns.
        network: normalised images -> logits, as one network; None for a head of one's own that is more than that.
        how: the head and its options.
        size: `(height, width)` that images are resized to.
        origin: what it was made from.
        shots: number of support images of each class.
        support: the support images `(S, 3, H, W)` in [0, 1]; None where they were not stored.
        ways: their classes, `(S,)` in 0..N-1; likewise.
        fitted: the head, and what it made of the support set; None where it was read from files.
        left_out: the outcome of `leave_one_out`, once it was asked for.
    """

    def __init__(
        self,
        network: nn.Module | None,
        classes: Sequence[Any],
        how: Adaptation,
        size: tuple[int, int],
        *,
        origin: Origin | None = None,
        shots: Sequence[int] = (),
        support: Tensor | None = None,
        ways: Tensor | None = None,
        fitted: tuple[Head, Adapted] | None = None,
        left_out: Accuracy | None = None,
    ) -> None:
        self.network, self.classes, self.how, self.size = network, tuple(classes), how, size
        self.origin, self.shots, self.left_out = origin or Origin(), tuple(shots), left_out
        self.support, self.ways, self.fitted = support, ways, fitted

    @classmethod
    @torch.inference_mode(False)  # Adaptation takes gradients, whatever the caller is in.
    def adapted(
        cls,
        network: nn.Module,
        images: Images,
        labels: Labels | None,
        how: Adaptation,
        size: tuple[int, int],
        *,
        origin: Origin | None = None,
        device: torch.device | str | None = None,
    ) -> Classifier:
        """Learn classes from a few images of each; the network itself stays as it is.

        Args:
            network: what is adapted.
            images: the support set, as `MetaModel.adapt` takes it.
            labels: the class of each image; None with a folder of class folders.
            how: the head, batch-norm statistics, and steps.
            size: `(height, width)` that images are resized to.
            origin: what `network` is.
            device: where the work is done; where the network is, by default.

        Raises:
            ValueError: for fewer than two classes, a class folder without images, more or fewer labels than
                images, or images that cannot be used.
        """
        support, names = labelled_batch(images, labels, size)
        classes = list(dict.fromkeys(names))
        # Sorted where they can be, else as they first occur.
        if all(isinstance(name, str) for name in classes) or all(isinstance(name, int | float) for name in classes):
            classes.sort()
        if len(classes) < 2:
            raise ValueError(f"All images are of class {classes[0]!r}: a classifier needs at least two classes.")
        index = {name: way for way, name in enumerate(classes)}
        support = support.to(device or next(network.parameters()).device)
        support = support.clone() if support.is_inference() else support
        ways = torch.tensor([index[name] for name in names], device=support.device)
        head = HEADS[how.head](network, len(classes), how)
        with torch.no_grad():
            adapted = head.fit(support, ways)
            whole = head.as_network(adapted, support)
        known: dict[str, Any] = {"support": support, "ways": ways, "fitted": (head, adapted)}
        return cls(whole, classes, how, size, origin=origin, shots=ways.bincount().tolist(), **known)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: torch.device | str = "cpu", **hub: Unpack[HubArguments]
    ) -> Classifier:
        """Load what `save_pretrained` or `push_to_hub` wrote. Only safetensors is opened.

        Args:
            name: a folder, `org/name`, `org/name@revision`, or the address of its page on the Hub.
            device: where it goes.
            **hub: `token`, `revision`, `cache_dir`, `local_files_only`, as in huggingface_hub.

        Raises:
            FileNotFoundError: if the folder does not exist.
            ValueError: if there is no such repository or what is there is no sound classifier; one line says why.
        """
        from hf_dfml.classifier.files import read

        return read(name, device, **hub)

    def __repr__(self) -> str:
        shown = [repr(name) for name in self.classes[:5]] + ["..."] * (len(self.classes) > 5)
        return f"Classifier({len(self.classes)} classes: {', '.join(shown)}; head={self.how.head}, bn={self.how.bn})"

    @property
    def device(self) -> torch.device:
        """Where its work is done."""
        if self.network is None:
            assert self.support is not None
            return self.support.device
        return next(self.network.parameters()).device

    @property
    def members(self) -> AllMembers | None:
        """The members of the pool whose answers or features are classified; None where it is one network."""
        backbone = self.network.backbone if isinstance(self.network, LinearOnFeatures) else None
        return backbone if isinstance(backbone, AllMembers) else None

    def predict(self, images: Images, *, threshold: float = 0.0) -> list[Any]:
        """The most probable label of each image, as the label was given.

        Args:
            images: as in `MetaModel.adapt`, or a folder of image files: those that can be read, in the order of their
                names. A warning names each of the others; `classify` gives the file of each answer.
            threshold: probability in [0, 1] below which the label is None: none of these.

        Raises:
            ValueError: if an image, or a file that was named itself, cannot be used, or none of a folder.
        """
        return [label if value >= threshold else None for [(label, value)] in self.top_k(images, 1)]

    def classify(
        self, queries: Path | str | Sequence[Path | str], *, top_k: int = 1, threshold: float = 0.0
    ) -> Answers:
        """What `hf-dfml classify` answers: labels, the file that each is of, and which files were left out and why.

        Args:
            queries: image files, and folders of them, or one of either.
            top_k: labels of each image; all, where there are fewer.
            threshold: probability in [0, 1] below which the label is `none of these`.

        Raises:
            FileNotFoundError: if one of the queries does not exist.
            ValueError: if a file that was named itself cannot be read, or none of a folder, or an argument is out of
                range.
        """
        from hf_dfml.classifier.answers import answer

        return answer(self, queries, top_k=top_k, threshold=threshold)

    def predict_proba(self, images: Images) -> Tensor:
        """Probabilities `(B, N)` on the CPU, columns as `classes`; images as in `predict`."""
        return self.logits(images).softmax(-1)

    def logits(self, images: Images) -> Tensor:
        """What the probabilities are the softmax of, `(B, N)` on the CPU; images as in `predict`."""
        return self._pass(in_batches(images, self.size, self._at_once))

    def features(self, images: Images) -> Tensor:
        """The network's penultimate features of images, `(B, D)` on the CPU; images as in `predict`."""
        return self._pass(in_batches(images, self.size, self._at_once), features=True).flatten(1)

    def nearest(self, images: Images, k: int = 3) -> list[list[tuple[int, float]]]:
        """The `k` support images most like each image (all, where there are fewer), with their similarity.

        The similarity is the cosine of the network's penultimate features, at most 1; rows of `support` are counted
        from 0. What a head makes of the features differs, so the nearest image need not be of the predicted class.

        Raises:
            ValueError: if the support images were not stored, or `k` is less than 1.
        """
        if self.support is None:
            raise ValueError("The support images were not stored: call save_pretrained(folder, store_support=True).")
        if k < 1:
            raise ValueError(f"k={k}: expected 1 or more.")
        queries = in_batches(images, self.size, self._at_once)
        batches: Iterable[Tensor] = chain(queries, self.support.split(QUERIES_AT_ONCE))
        if self._at_once is None:
            batches = [torch.cat([each.to(self.device) for each in batches])]
        unit = F.normalize(self._pass(batches, features=True).flatten(1), dim=-1)
        values, rows = (unit[: -len(self.support)] @ unit[-len(self.support) :].T).topk(min(k, len(self.support)))
        return [list(zip(*row, strict=True)) for row in zip(rows.tolist(), values.tolist(), strict=True)]

    def top_k(self, images: Images, k: int = 5) -> list[list[tuple[Any, float]]]:
        """The `k` most probable labels of each image (all, where there are fewer) with their probabilities.

        Images as in `predict`.

        Raises:
            ValueError: if `k` is less than 1.
        """
        if k < 1:
            raise ValueError(f"k={k}: expected 1 or more.")
        values, ways = self.predict_proba(images).topk(min(k, len(self.classes)))
        return [
            [(self.classes[way], value) for way, value in zip(*row, strict=True)]
            for row in zip(ways.tolist(), values.tolist(), strict=True)
        ]

    def evaluate(self, images: Images, labels: Labels | None = None) -> Accuracy:
        """The accuracy on other images of the same classes, with its interval.

        Args:
            images: as in `MetaModel.adapt`.
            labels: the class of each; left out with a folder of class folders.

        Raises:
            ValueError: if there is no image, or a label is not one of `classes`.
        """
        listed, batches = labelled_batches(images, labels, self.size, self._at_once)
        unknown = [name for name in dict.fromkeys(listed) if name not in self.classes]
        if unknown:
            shown = ", ".join(map(repr, self.classes[:10]))
            raise ValueError(f"Label {unknown[0]!r} is not one of the classifier's {len(self.classes)}: {shown}.")
        rows = ((self.predict(queries), names) for queries, names in batches)
        right = [ours == name for row in rows for ours, name in zip(*row, strict=True)]
        return Accuracy(sum(right), len(right))

    @torch.inference_mode(False)
    def leave_one_out(self) -> Accuracy:
        """The accuracy on its own support set: each image is classified by what is learnt from all others.

        Images that are alone in their class are left out, as nothing could be learnt of it without them. A head that
        adapts the network is fitted once for each image. The outcome is kept in `left_out`, and stored with the
        classifier.

        Raises:
            ValueError: if it has no support set any more, no class has two images, or `bn` is `transductive`.
        """
        if self.left_out is not None:
            return self.left_out
        if self.fitted is None or self.support is None or self.ways is None:
            raise ValueError(
                "A stored classifier cannot be learnt again: call leave_one_out() before save_pretrained(), which "
                "keeps the outcome, or evaluate() on other images."
            )
        if self.how.bn == "transductive":
            raise ValueError("bn='transductive' needs many queries at once: choose another bn to leave one image out.")
        rows = [row for row, way in enumerate(self.ways.tolist()) if self.shots[way] > 1]
        if not rows:
            raise ValueError("Each class has one image: leave-one-out needs a class with two.")
        with torch.no_grad():
            found = self.fitted[0].leave_one_out(self.support, self.ways, rows)
        self.left_out = Accuracy(int((found == self.ways[rows]).sum()), len(rows))
        return self.left_out

    def to(self, device: torch.device | str) -> Classifier:
        """Move the network; the classifier itself. Its support set stays where it is.

        Raises:
            ValueError: if its head is more than a network.
        """
        if self.network is None:
            raise ValueError(f"head='{self.how.head}' cannot be moved: adapt on that device.")
        # A copy: it may share parameters with what was adapted, which stays where it is.
        self.network = copy.deepcopy(self.network).to(device)
        if self.members is not None:
            self.members.pool = self.members.pool.to(device)
        return self

    def save_pretrained(self, folder: Path | str, *, store_support: bool = False) -> Path:
        """Write `config.json`, `model.safetensors` and a card; the folder.

        After loading, the answers are the same, bit for bit on one machine. timm and transformers read the folder of
        one network too; its card says how.

        Args:
            folder: is made; an earlier classifier in it is replaced.
            store_support: whether the support images are stored too (`support.safetensors`).

        Raises:
            FileExistsError: if the folder holds anything but a classifier.
            ValueError: if the head or the labels cannot be stored.
        """
        from hf_dfml.classifier.files import write

        return write(self, Path(folder).expanduser(), store_support=store_support)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        commit_message: str = "Classifier (hf-dfml)",
        store_support: bool = False,
    ) -> str:
        """Publish what `save_pretrained` writes in one commit; the repository's address.

        Args:
            repo_id: `org/name`; the repository is made if it does not exist.
            private: whether a new repository is private; None: the organisation's setting.
            token: a token with write access; by default the one that `hf auth login` stored.
            branch: an existing branch; None: the default branch.
            commit_message: of the commit.
            store_support: whether the support images are published too. A later push without them deletes them from
                the branch, and so all else that it lacks of an earlier one; the repository's history keeps them.

        Raises:
            ValueError: if `repo_id` is not valid, or the repository is public and a private one was asked for.
        """
        from hf_dfml.classifier.files import publish

        return publish(
            self,
            repo_id,
            private=private,
            token=token,
            branch=branch,
            message=commit_message,
            store_support=store_support,
        )

    def export_onnx(self, path: Path | str) -> Path:
        """Write an ONNX model; the file. Needs the extra `onnx` (`pip install hf_dfml[onnx]`).

        Input `images`: float `(batch, 3, height, width)` in [0, 1], RGB, resized to `size` (bilinear, antialiased,
        without keeping the aspect); mean and std are inside. Output `probabilities`: `(batch, N)`. The metadata
        `classes` is a JSON list of the class names.

        Raises:
            ModuleNotFoundError: without the extra.
            ValueError: if the classifier cannot be exported.
        """
        from hf_dfml.classifier.export import export_onnx

        return export_onnx(self, Path(path).expanduser())

    @property
    def _at_once(self) -> int | None:
        """How many queries are decoded and answered at once; None: all, whose statistics the network takes."""
        return None if self.how.bn == "transductive" else QUERIES_AT_ONCE

    @torch.no_grad()
    def _pass(self, batches: Iterable[Tensor], *, features: bool = False) -> Tensor:
        """Logits, or penultimate features, of batches in [0, 1], on the CPU."""
        parts = []
        for queries in batches:
            try:
                parts.append(self._of(queries.to(self.device), features).cpu())
            except ValueError as error:
                if self.how.bn != "transductive" or len(queries) > 1:
                    raise
                raise ValueError(
                    "bn='transductive' takes its statistics from all queries together, and this network cannot from "
                    "one image: give two or more at once, or adapt with bn='support'."
                ) from error
        return torch.cat(parts)

    def _of(self, queries: Tensor, features: bool) -> Tensor:
        if self.network is None:
            assert self.fitted is not None and self.support is not None
            head, adapted = self.fitted
            return head.features(queries) if features else head.logits(adapted, self.support, queries)
        if self.members is not None:
            return network_info(self.network).features(queries) if features else self.network(queries)
        source: Literal["batch", "running"] = "batch" if self.how.bn == "transductive" else "running"
        return functional_forward(self.network, {}, queries, source=source, features=features, second_order=False)
