"""A classifier as an ONNX model."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hf_dfml.classifier.all_members import AllMembers
from hf_dfml.networks.functional import normalise
from hf_dfml.networks.info import network_info
from hf_dfml.networks.linear_on_features import with_linear_layer
from hf_dfml.pool.formats.checks import one_line

if TYPE_CHECKING:
    from hf_dfml.classifier.classifier import Classifier

NEEDED = ("onnx", "onnxscript")


class _Probabilities(nn.Module):
    """Images `(B, 3, H, W)` in [0, 1] -> probabilities `(B, N)`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return network_info(self.network).logits(normalise(self.network, images)).softmax(-1)


def export_onnx(classifier: Classifier, path: Path) -> Path:
    """`Classifier.export_onnx`."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"ONNX export needs {' and '.join(missing)}: pip install 'hf_dfml[onnx]'.")
    network = classifier.network
    if network is None:
        raise ValueError(f"head='{classifier.how.head}' cannot be exported: define its `as_network`.")
    if classifier.how.bn == "transductive":
        raise ValueError("bn='transductive' cannot be exported: adapt with bn='support' or bn='running'.")
    if members := classifier.members:
        if members.pool.answers_only:
            raise ValueError("Members that only answer cannot be exported: adapt the pool itself.")
        layer = network.get_submodule("fc")
        resident = AllMembers(members.pool, members.seen, resident=True)
        network = with_linear_layer(resident, layer.weight, layer.bias)  # type: ignore[arg-type]

    import onnx

    images = torch.rand(2, 3, *classifier.size, device=classifier.device)
    module = _Probabilities(network).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    noisy = logging.getLogger("torch.onnx")
    level, noisy.level = noisy.level, logging.ERROR
    try:
        program = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    except Exception as error:  # An architecture of any origin, in an exporter that raises anything at all.
        reason = one_line(error)
        raise ValueError(f"torch cannot export this {type(network).__name__} as ONNX: {reason}") from error
    finally:
        noisy.level = level
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {"classes": json.dumps([str(label) for label in classifier.classes])})
    onnx.save(model, path)
    return path
