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

from collections.abc import Sequence
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
from hf_dfml.pool.formats.checks import check_input, check_labels, is_placeholder
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
    rows, usual_output, usual_size = _plan(name)
    queries = QueryCount(max_queries)
    entries: list[PoolEntry] = []
    asks: dict[str, Ask] = {}
    outputs: dict[Output, str] = {}
    for row in rows:
        served = _served(row)
        found, ask, output = served or (*_endpoint({"image_size": usual_size, **row}, queries, options), usual_output)
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


def _plan(name: str) -> tuple[list[dict[str, Any]], Output, Any]:
    """The rows that a name or file lists (`url` or `model`, and more), the kind of answers, and the image size."""
    content: Any = {"endpoints": name.split(",")}
    if name.endswith((".yaml", ".yml")):
        content = _read(Path(name).expanduser())
    rows = [{"url": row.strip()} if isinstance(row, str) else row for row in content["endpoints"] if row != ""]
    if not rows:
        raise ValueError("No endpoint was named.")
    for row in rows:
        if not isinstance(row, dict) or set(row) - _ROW or ("url" in row) == ("model" in row):
            known = ", ".join(sorted(_ROW))
            raise ValueError(f"{row} is not a valid endpoint: expected a URL, or an object of {known}.")
        if not isinstance(row.get("labels", []), list):
            raise ValueError(f"The labels of {row} are not a list.")
    return rows, content.get("output", "topk"), content.get("image_size")


def _read(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}: expected a list of endpoints.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())[:160]}.") from error
    known = {"endpoints", "output", "image_size"}
    if not isinstance(content, dict) or set(content) - known or not isinstance(content.get("endpoints"), list):
        known_keys = ", ".join(sorted(known))
        raise ValueError(f"{path} lists no endpoints: expected {known_keys}, of which the first is a list.")
    return content


def _served(row: dict[str, Any]) -> tuple[list[PoolEntry], Ask, Output] | None:
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


def _endpoint(row: dict[str, Any], queries: QueryCount, options: dict[str, Any]) -> tuple[list[PoolEntry], Ask]:
    """The one member that a row names."""
    url, id, size = row.get("url", ""), row.get("id"), row["image_size"]
    labels: Sequence[str] = row.get("labels", ())
    if "model" in row:
        # No weights are fetched.
        known = resolve(HubIds().entries(str(row["model"]))[0])
        if known.problem is not None:
            raise ValueError(f"The model {row['model']} of an endpoint cannot be used: {known.problem}.")
        url = f"{constants.INFERENCE_PROXY_TEMPLATE.format(provider='hf-inference')}/models/{known.id}"
        if not labels and any(f"{known.id}#{index}" == name for index, name in enumerate(known.label_names or ())):
            raise ValueError(
                f"The model {known.id} of an endpoint calls several classes by one name, and its answers do not tell "
                "them apart: use one whose classes have different names."
            )
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
        # LABEL_0 of two endpoints is not one class; `model` knows its answers by the names that they have there.
        names = tuple(f"{id}#{name}" if is_placeholder(name) else name for name in names)
    except MemberError as error:
        raise ValueError(f"The endpoint {error}.") from error
    entry = PoolEntry(id=id, num_classes=len(names), input_size=shape, label_names=names)
    return [entry], model.ask
