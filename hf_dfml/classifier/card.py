"""What the page of a stored classifier says, from facts alone."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard, ModelCardData

from hf_dfml.evaluation.heads import HEADS
from hf_dfml.networks.info import REPRESENTATION_IN_WORDS, TransformersInfo, network_info
from hf_dfml.networks.linear_on_features import LinearOnFeatures
from hf_dfml.networks.timm_network import OURS
from hf_dfml.utils.text import counted

if TYPE_CHECKING:
    from hf_dfml.classifier.classifier import Classifier

CARD_NAME = "README.md"
FOLDED = 10
"""Members of a pool up to which a card lists them openly; more are folded."""
ORIGINS = {"meta-model": "the meta-model", "member": "the pool member", "pool": "the pool", "network": "a network"}


def make_card(classifier: Classifier, name: str) -> str:
    """The card of a classifier; `name` is its Hub id, or its folder's name."""
    origin, how, network = classifier.origin, classifier.how, classifier.network
    assert network is not None
    one_network = classifier.members is None and how.bn != "transductive"
    info = network_info(network)
    of_transformers = isinstance(info, TransformersInfo)
    known_to_timm = not isinstance(network, LinearOnFeatures) and info.architecture not in OURS
    card = ModelCard.from_template(
        ModelCardData(
            library_name="hf-dfml",
            pipeline_tag="image-classification",
            tags=[
                "hf-dfml",
                "few-shot",
                "image-classification",
                *(["timm"] if one_network and not of_transformers else []),
            ],
            base_model=origin.name if origin.revision else None,
            base_model_relation="finetune" if origin.revision else None,
        ),
        template_str=resources.files(__package__).joinpath("card_template.md").read_text(encoding="utf-8"),
        title=name.split("/")[-1],
        name=name,
        address=name if "/" in name else "PATH/TO/" + Path(name).name,
        prefix="hf-hub:" if "/" in name else "local-dir:",
        classes=[
            {"name": str(label).replace("|", "\\|"), "shots": shots}
            for label, shots in zip(classifier.classes, classifier.shots, strict=True)
        ],
        images=counted(sum(classifier.shots), "image"),
        origin=ORIGINS[origin.kind],
        origin_name=origin.name,
        revision=origin.revision,
        method=origin.method,
        pool=origin.pool,
        head=how.head,
        help=HEADS[how.head].help if how.head in HEADS else "a head of its author",
        flips=how.flips,
        bn=how.bn,
        seen=REPRESENTATION_IN_WORDS[classifier.members.seen if classifier.members else how.representation],
        folded=len(origin.pool) > FOLDED,
        left_out=str(classifier.left_out) if classifier.left_out else "",
        size="{}x{}".format(*classifier.size),
        one_network=one_network,
        known_to_timm=known_to_timm,
        of_transformers=of_transformers,
    )
    return str(card)
