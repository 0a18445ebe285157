"""What `fuzz.py` damages, and how a user would meet it: sound files once, a damaged copy of them for each case."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import numpy as np
import torch
import transformers
from fuzz_inputs import bad_bytes, bad_json, bad_yaml
from PIL import Image

from hf_dfml import Classifier, MetaModel
from hf_dfml.arguments import parse_into, presets
from hf_dfml.data import open_data
from hf_dfml.evaluation import read_results
from hf_dfml.methods.pool_distillation import PoolDistillationConfig
from hf_dfml.methods.tgr import TGRConfig
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool
from hf_dfml.pool.black_box.server import PoolServer
from hf_dfml.pool.black_box.service import open_service
from hf_dfml.pool.building.writing import member_config, write_member
from hf_dfml.run_config import RunConfig
from hf_dfml.utils.checkpoint import SUMS, load_tree, save_tree
from hf_dfml.utils.images import read_image

LABELS = ["cat", "dog", "fox"]
CONFIG, WEIGHTS, PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
ANSWERED = "HTTP/1.1 {status} OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"


class WrongAnswerError(Exception):
    """A server that does not answer a request as it should."""


def make_sound(folder: Path) -> None:
    """The sound files of all targets, below `folder`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _make_members(folder)
    _make_images(folder / "images")
    _make_table(folder / "table")
    save_tree(folder / "state", {"step": 1, "model": {"weight": torch.ones(3, 2)}, "pair": (1, None)})
    (folder / "state" / SUMS).unlink()


def _make_members(folder: Path) -> None:
    network = create_network("conv4_16", num_classes=3, image_size=16, generator=torch.Generator().manual_seed(0))
    scale = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    write_member(folder / "timm" / "m", network, member_config(network, "conv4_16", LABELS, image_size=16, **scale))
    ModelPool.from_dir(folder / "timm").lock(folder / "timm")
    meta = MetaModel.of(network, method="fuzz")
    meta.save_pretrained(folder / "meta")
    meta.adapt(torch.rand(6, 3, 16, 16), LABELS * 2).save_pretrained(folder / "classifier", store_support=True)
    names = dict(enumerate(LABELS))
    small = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=names
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    patches = transformers.ViTConfig(image_size=32, patch_size=8, id2label=names, **sizes)
    for name, config, kind in (
        ("resnet", small, transformers.ResNetForImageClassification),
        ("vit", patches, transformers.ViTForImageClassification),
    ):
        kind(config).eval().save_pretrained(folder / name / "m")
        processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
        processor |= {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "crop_size": 32}
        (folder / name / "m" / PROCESSOR).write_text(json.dumps(processor))


def _make_images(folder: Path) -> None:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    for mode in ("RGB", "RGBA", "P", "L", "LA", "1"):
        image.convert(mode).save(folder / f"{mode}.png")
    image.convert("RGB").save(folder / "x.jpg", exif=exif)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    for suffix in ("gif", "bmp", "webp", "ppm", "jp2", "tif"):
        image.convert("RGB").save(folder / f"x.{suffix}")
    image.convert("RGB").save(folder / "lzw.tif", compression="tiff_lzw")
    image.convert("RGB").save(folder / "two.gif", save_all=True, append_images=[image.convert("RGB")])
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "16.png")
    Image.fromarray(pixels[..., 0].astype(np.float32) / 255).save(folder / "float.tif")


def _make_table(folder: Path) -> None:
    import datasets

    folder.mkdir()
    images = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in range(8)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    columns = {"image": images, "label": [0, 1] * 4}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "train.parquet")


def _copy(sound: Path, case: Path, name: str, file: str, damage: Callable[[bytes], bytes]) -> Path:
    """A copy of a sound folder with one file damaged."""
    shutil.copytree(sound / name, case / name)
    path = case / name / file
    path.write_bytes(damage(path.read_bytes()))
    return case / name


def _json(random: Random) -> Callable[[bytes], bytes]:
    return lambda content: bad_json(json.loads(content), random)


def _bytes(random: Random) -> Callable[[bytes], bytes]:
    return lambda content: bad_bytes(content, random)


def _use(folder: Path) -> None:
    """As `hf-dfml pool check` and a run do."""
    pool = ModelPool.from_dir(folder)
    if pool.check(0) is None:
        pool.load(0)(torch.rand(2, 3, 20, 20))


def member_config_json(sound: Path, case: Path, random: Random) -> None:
    """The config of a member in timm's or in transformers' layout."""
    name = random.choice(("timm", "timm", "resnet", "vit"))
    _use(_copy(sound, case, name, f"m/{CONFIG}", _json(random)))


def processor_json(sound: Path, case: Path, random: Random) -> None:
    """A `preprocessor_config.json`."""
    _use(_copy(sound, case, random.choice(("resnet", "vit")), f"m/{PROCESSOR}", _json(random)))


def safetensors(sound: Path, case: Path, random: Random) -> None:
    """Weights: the header's length, its JSON, or anything."""

    def damage(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        kind = random.randrange(3)
        if kind == 0:
            return bad_bytes(content, random)
        header = bad_json(json.loads(content[8 : 8 + length]), random)
        said = len(header) if kind == 1 else random.choice((0, 1, 2**31, 2**60, 2**64 - 1, len(header) + 1))
        return said.to_bytes(8, "little") + header + content[8 + length :]

    _use(_copy(sound, case, random.choice(("timm", "timm", "vit")), f"m/{WEIGHTS}", damage))


def stored_config(sound: Path, case: Path, random: Random) -> None:
    """What this library stores: meta-models, classifiers, lock files, results, states."""
    kind = random.randrange(5)
    if kind == 0:
        MetaModel.from_pretrained(str(_copy(sound, case, "meta", CONFIG, _json(random))))
    elif kind == 1:
        file = random.choice((CONFIG, CONFIG, "support.safetensors"))
        damage = _json(random) if file == CONFIG else _bytes(random)
        classifier = Classifier.from_pretrained(str(_copy(sound, case, "classifier", file, damage)))
        classifier.predict(torch.rand(2, 3, 16, 16))
    elif kind == 2:
        folder = _copy(sound, case, "timm", "pool.lock.json", _json(random))
        ModelPool.from_lock(folder / "pool.lock.json").check(0)
    elif kind == 3:
        row = {"method": "x", "dataset": "y", "ways": 5, "shots": 1, "bn": "support", "head": "finetune"}
        row |= {"inner_steps": 5, "inner_lr": 0.1, "episodes": 9, "metric": "accuracy", "mean": 1.0, "ci95": 0.1}
        row |= {"seed": 0, "split": "test", "seconds": 1.0, "command": "z"}
        case.joinpath("results.json").write_bytes(bad_json([row], random))
        read_results(case / "results.json")
    else:
        file = random.choice(("tree.json", "tree.safetensors"))
        load_tree(_copy(sound, case, "state", file, (_json if file == "tree.json" else _bytes)(random)))


def yaml_preset(sound: Path, case: Path, random: Random) -> None:
    """A YAML file of options, or the same options on a command line."""
    method, config = random.choice((("pool-distillation", PoolDistillationConfig), ("tgr", TGRConfig)))
    text = random.choice(list(presets(method).values())).read_text()
    content = bad_yaml(text, random)
    if random.random() < 0.7:
        case.joinpath("x.yaml").write_bytes(content)
        words = ["--config", str(case / "x.yaml")]
    else:
        lines = (line.partition(":") for line in content.decode(errors="replace").splitlines() if "#" not in line)
        words = [word for key, _, value in lines for word in (f"--{key}", *value.split())]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        parse_into((config, RunConfig), words, "", "fuzz", method)


def parquet(sound: Path, case: Path, random: Random) -> None:
    """A table of images."""
    open_data(_copy(sound, case, "table", "train.parquet", _bytes(random)), "train", image_size=16)


def image(sound: Path, case: Path, random: Random) -> None:
    """An image file of one of many formats and modes."""
    file = random.choice(sorted((sound / "images").iterdir()))
    case.joinpath(file.name).write_bytes(bad_bytes(file.read_bytes(), random))
    read_image(case / file.name, (32, 32))


@contextlib.contextmanager
def _replying(answers: list[bytes]) -> Iterator[str]:
    """A server that sends these bytes, one after the other (the last one again and again); its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work() -> None:
            for index in range(1000):
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(5)
                    head = b""
                    while b"\r\n\r\n" not in head and (part := connection.recv(1 << 16)):
                        head += part
                    connection.sendall(answers[min(index, len(answers) - 1)])
                    connection.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def answer_of_a_service(sound: Path, case: Path, random: Random) -> None:
    """What a served pool answers to us."""
    listed = {"output": "probs", "models": [{"id": "m", "labels": LABELS, "input_size": [3, 16, 16]}]}
    scores = [[{"label": label, "score": 0.3} for label in LABELS]] * 2
    bodies = [json.dumps(listed).encode(), json.dumps(scores).encode()]
    which = random.randrange(2)
    bodies[which] = bad_json(json.loads(bodies[which]), random)
    answers = [ANSWERED.format(status=200, length=len(body)).encode() + body for body in bodies]
    if random.random() < 0.3:
        answers[which] = bad_bytes(answers[which], random)
    with _replying(answers) as url:
        open_service(url, retries=0, timeout=3.0).load(0)(torch.rand(2, 3, 16, 16))


_servers: dict[str, str] = {}


def request_to_serve(sound: Path, case: Path, random: Random) -> None:
    """A request to `hf-dfml serve`, its head or its body damaged."""
    if "url" not in _servers:
        server = PoolServer(ModelPool.from_dir(sound / "timm"), port=0, seconds=4)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _servers["url"] = server.url
    file = random.choice(sorted((sound / "images").iterdir())).read_bytes()
    kind = "image/png"
    body = bad_bytes(file, random) if random.random() < 0.7 else file
    if random.random() < 0.5:
        kind, content = "application/json", {"inputs": [base64.b64encode(body).decode()], "parameters": {"top_k": 2}}
        body = bad_json(content, random)
    lines = ("POST /models/m HTTP/1.1", "Host: x", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "", "")
    head = "\r\n".join(lines).encode()
    if random.random() < 0.3:
        head = bad_bytes(head, random)
    address = urlsplit(_servers["url"])
    with socket.create_connection((address.hostname, address.port), timeout=9) as connection:
        try:
            connection.sendall(head + body)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").read()
        except ConnectionError:  # Refused, and what was still being sent is not read.
            return
    if answer.startswith(b"HTTP/1.1 5") and not answer.startswith((b"HTTP/1.1 501", b"HTTP/1.1 505")):
        raise WrongAnswerError(answer[-300:])


TARGETS: dict[str, Callable[[Path, Path, Random], None]] = {
    target.__name__: target
    for target in (
        *(member_config_json, image, safetensors, yaml_preset, processor_json, request_to_serve, parquet),
        *(stored_config, answer_of_a_service),
    )
}
ROUND = (
    *("member_config_json", "image", "safetensors", "yaml_preset", "processor_json", "request_to_serve", "parquet"),
    *("image", "member_config_json", "safetensors", "stored_config", "answer_of_a_service"),
)
"""Which target each case has, in turn."""
