"""A stored classifier behind HTTP, in the format in which pools are served (`hf_dfml.pool.black_box.server`)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from hf_dfml.classifier.classifier import Classifier
from hf_dfml.classifier.files import label_names
from hf_dfml.pool.black_box.server import BODY, MAX_PIXELS, ModelServer
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.utils.images import read_image, to_unit


class ClassifierServer(ModelServer):
    """Serves one classifier, whose answers carry its class names.

    Args:
        classifier: what is served.
        name: its id in addresses: `POST /models/NAME`.
        **options: of `ModelServer`.

    Raises:
        ValueError: if an answer would depend on other requests, or two classes have one name.
    """

    def __init__(self, classifier: Classifier, name: str, **options: Any) -> None:
        if classifier.how.bn == "transductive":
            raise ValueError(
                "bn='transductive' makes an answer depend on the other images that are asked: adapt with "
                "bn='support' or bn='running' to serve the classifier."
            )
        names = tuple(label_names(classifier))
        entry = PoolEntry(id=name, num_classes=len(names), input_size=(3, *classifier.size), label_names=names)
        self.classifier = classifier
        super().__init__([entry], **options)

    def read(self, entry: PoolEntry, file: bytes) -> Tensor:
        """Resized as `Classifier.predict` resizes a file."""
        return to_unit(read_image(file, self.classifier.size, name=BODY, max_pixels=MAX_PIXELS))

    def forward(self, id: Hashable, images: Tensor) -> Tensor:
        """As in the base class."""
        return self.classifier.logits(images)
