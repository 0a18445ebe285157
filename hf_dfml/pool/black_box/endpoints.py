"""Inference Endpoints as black boxes: Hugging Face's, and whatever answers image files as they do.

A pool of them is several URLs separated by commas, or a YAML file:

    output: topk                  # of the answers: probs, topk (also where all classes are returned), label or logits
    image_size: 32                # of the images that are sent; 224 where nothing is said
    endpoints:
      - https://abc.us-east-1.aws.endpoints.huggingface.cloud
      - url: https://def.us-east-1.aws.endpoints.huggingface.cloud
        id: pets                  # else the first word of the host, or the last of the path
        labels: [cat, dog, fox]   # else asked for, by one query
        image_size: 64
      - model: org/name           # Hugging Face's own inference of a model; labels and size from its config
      - http://127.0.0.1:8000     # all members of a pool that `hf-dfml serve` serves

The user's Hugging Face token goes to Hugging Face's own hosts alone; others get the token of `HF_DFML_SERVE_TOKEN`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants

from hf_dfml.pool.black_box.answers import AnswerCache
from hf_dfml.pool.black_box.pool import Ask, BlackBoxPool
from hf_dfml.pool.black_box.remote_model import RemoteModel, is_hugging_face
from hf_dfml.pool.black_box.service import NoServedPoolError, Service
from hf_dfml.pool.black_box.wire import PNG_STEP
from hf_dfml.pool.entry import MemberError, PoolEntry
from hf_dfml.pool.formats.checks import check_input, check_labels
from hf_dfml.pool.queries import Output, QueryCount
from hf_dfml.pool.sources.fetching import resolve
from hf_dfml.pool.sources.ids import HubIds

IMAGE_SIZE = 224
_ROW = {"url", "model", "id", "labels", "image_size"}


def open_remote(name: str, *, max_queries: int | None = None, **options: Any) -> BlackBoxPool:
    """The black boxes that `--pool` names: served pools and Inference Endpoints.

    Args:
        name: URLs separated by commas, or a YAML file (see the module's docstring).
        max_queries: images that may be sent to all members together; None for no limit.
        **options: of `RemoteModel`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be understood, two members have one id, or their kinds of answers differ.
        ServiceError: if one of them does not answer.
        QueryBudgetError: if the budget does not suffice to ask for the labels.
    """
    plan = _read(Path(name)) if name.endswith((".yaml", ".yml")) else Plan(_rows(name.split(",")))
    queries = QueryCount(max_queries)
    entries: list[PoolEntry] = []
    asks: dict[str, Ask] = {}
    outputs: dict[Output, str] = {}
    for row in plan.rows:
        found, ask, output = _served(row) or _endpoint(row, plan, queries, options)
        outputs.setdefault(output, row.get("url") or row["model"])
        for entry in found:
            if entry.id in asks:
                raise ValueError(f"{name} has two members called '{entry.id}': give one another `id` in a file.")
            asks[entry.id] = ask
            entries.append(entry)
    if len(outputs) > 1:
        (one, first), (other, second), *_ = outputs.items()
        raise ValueError(
            f"{first} returns {one} and {second} returns {other}: write `output: {one}` in a file, or separate them."
        )
    return BlackBoxPool(
        entries,
        lambda entry, images: asks[entry.id](entry, images),
        next(iter(outputs)),
        queries,
        resolution=PNG_STEP,
        cache=AnswerCache(),
    )


@dataclass(frozen=True)
class Plan:
    """What a file of endpoints says.

    Attributes:
        rows: `url` or `model`, and optionally `id`, `labels` and `image_size`, of each.
        output: the kind of their answers.
        image_size: pixels, where a row says nothing else.
    """

    rows: Sequence[Mapping[str, Any]]
    output: Output = "topk"
    image_size: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("No endpoint was named.")
        for row in self.rows:
            if not isinstance(row, Mapping) or set(row) - _ROW or ("url" in row) == ("model" in row):
                raise ValueError(
                    f"{row} is not a valid endpoint: expected a URL, or an object of {', '.join(sorted(_ROW))}."
                )
            if not isinstance(row.get("labels", []), list):
                raise ValueError(f"The labels of {row} are not a list.")


def _read(path: Path) -> Plan:
    import yaml

    if not path.expanduser().is_file():
        raise FileNotFoundError(f"There is no file {path}: expected a list of endpoints.")
    try:
        content = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())[:160]}.") from error
    known = {"endpoints", "output", "image_size"}
    if not isinstance(content, dict) or set(content) - known or not isinstance(content.get("endpoints"), list):
        raise ValueError(
            f"{path} lists no endpoints: expected {', '.join(sorted(known))}, of which the first is a list."
        )
    rest = {name: value for name, value in content.items() if name != "endpoints"}
    return Plan(_rows(content["endpoints"]), **rest)


def _rows(names: Sequence[Any]) -> list[Any]:
    return [{"url": name.strip()} if isinstance(name, str) else name for name in names if name != ""]


def _served(row: Mapping[str, Any]) -> tuple[list[PoolEntry], Ask, Output] | None:
    """All members of a served pool, if that is what a row names."""
    url = row.get("url", "")
    if set(row) != {"url"} or urlsplit(url).path.strip("/") or is_hugging_face(url):
        return None
    service = Service(url)
    try:
        entries, output = service.members()
    except NoServedPoolError:
        return None
    return entries, service.ask, output


def _endpoint(
    row: Mapping[str, Any], plan: Plan, queries: QueryCount, options: Mapping[str, Any]
) -> tuple[list[PoolEntry], Ask, Output]:
    """The one member that a row names."""
    url, id = row.get("url", ""), row.get("id")
    labels: Sequence[str] = row.get("labels", ())
    size = row.get("image_size", plan.image_size)
    if "model" in row:
        known = _on_the_hub(row["model"])
        url = f"{constants.INFERENCE_PROXY_TEMPLATE.format(provider='hf-inference')}/models/{known.id}"
        id, labels = id or known.id, labels or known.label_names
        size = size or known.input_size[1:] if known.input_size else size
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"'{url}' is not a valid URL of an endpoint: expected http://... or https://...")
    id = str(id or parts.path.strip("/").split("/")[-1] or parts.hostname.split(".")[0])
    size = IMAGE_SIZE if size is None else size
    sides = size if isinstance(size, list | tuple) else [size] * 2
    try:
        shape = check_input(id, [3, *sides], [0.5] * 3, [0.25] * 3)["input_size"]
        model = RemoteModel(url, labels, **options)
        if not labels:
            queries.spend(id, 1)
            labels = model.discover(shape[1:])
        names = check_labels(id, list(labels), len(labels))
    except MemberError as error:
        raise ValueError(f"The endpoint {error}.") from error
    entry = PoolEntry(id=id, num_classes=len(names), input_size=shape, label_names=names)
    return [entry], model.ask, plan.output


def _on_the_hub(model: Any) -> PoolEntry:
    """What the Hub says of a model: id, labels and image size; no weights are fetched."""
    entry = resolve(HubIds().entries(str(model))[0])
    if entry.problem is not None:
        raise ValueError(f"The model {model} of an endpoint cannot be used: {entry.problem}.")
    return entry
