"""A new user's first hour, as it is typed: models of their own in, a classifier of their own photos out.

Models saved by timm -> `pool check` -> distil -> `compare` -> `adapt` -> `classify` -> `serve` -> `export` -> `push`.
The steps share a folder and run in this order; README tells the same.
"""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image

from hf_dfml import Classifier, MetaModel
from hf_dfml.cli import main
from hf_dfml.data import load_dataset
from hf_dfml.evaluation import read_results
from hf_dfml.utils.images import to_unit
from tests.hub_server import HubServer

SECRET = "hf_planted_0123456789"
"""Token of the Hub, in the environment, and of the served pool, as an option: nobody may ever see it."""
MEMBERS = ("letters", "signs", "marks")
PHOTOS = ("ant", "bee", "cow", "dog", "elk")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos of five classes that no member knows, ten of each to learn from, and some new ones."""
    home = tmp_path_factory.mktemp("first-hour")
    data = load_dataset("glyphs", "test")
    for number, name in enumerate(PHOTOS):
        for index, image in enumerate(data.by_class(data.class_names[number])[:14]):
            folder = home / "photos" / "train" / name if index < 10 else home / "photos" / "new"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{name}-{index}.png")
    (home / "photos" / "new" / "IMG_7.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (home / "photos" / "new" / "logo.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    return home


@pytest.fixture(autouse=True)
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("HF_TOKEN", SECRET)


class Typed:
    """Runs command lines; what they print, on both streams together, is kept for the last test."""

    def __init__(self, capfd: pytest.CaptureFixture[str], file: Path) -> None:
        self.capfd, self.file = capfd, file

    def __call__(self, line: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stop:
            main(line.split())
        said = "".join(self.capfd.readouterr())
        self.keep(said)
        assert (stop.value.code or 0) == code, f"{line}: {stop.value.code}"
        return said

    def keep(self, said: str) -> None:
        with self.file.open("a") as file:
            file.write(said)


@pytest.fixture
def typed(capfd: pytest.CaptureFixture[str], home: Path) -> Typed:
    return Typed(capfd, home / "said.txt")


def trained(images: torch.Tensor, labels: torch.Tensor, seed: int) -> torch.nn.Module:
    """A small network of timm's for 32-pixel images, after a few passes over its images."""
    torch.manual_seed(seed)
    settings = {"input_size": (3, 32, 32), "mean": (0.2,) * 3, "std": (0.2,) * 3}
    network = timm.create_model("test_resnet", num_classes=3, pretrained_cfg_overlay=settings)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(8):
        for rows in torch.randperm(len(images)).split(30):
            loss = F.cross_entropy(network((to_unit(images[rows]) - 0.2) / 0.2), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def test_models_saved_by_timm_are_a_pool(home: Path, typed: Typed) -> None:
    data = load_dataset("glyphs", "train")
    for number, name in enumerate(MEMBERS):
        classes = data.class_names[3 * number : 3 * number + 3]
        images = torch.cat([data.by_class(each)[:50] for each in classes])
        network = trained(images, torch.arange(3).repeat_interleave(50), number)
        names = {"label_names": list(classes)}
        timm.models.save_for_hf(network, f"models/{name}", model_config=names, safe_serialization=True)
    (home / "models" / "old").mkdir()
    (home / "models" / "old" / "pytorch_model.bin").write_bytes(b"pickle")
    said = typed("pool check models", code=1)
    assert "3 of 4 members can be used." in said and "old" in said and "config.json" in said


def test_a_distillation_is_validated_on_the_users_photos(home: Path, typed: Typed) -> None:
    said = typed(
        "train pool-distillation --pool models --preset tiny --data photos/train --shots 5 --queries 5 --episodes 4 "
        "--validation_episodes 2 --num_images 100 --recovery_steps 3 --joint_updates 4 --log_with none "
        "--output_dir runs/mine"
    )
    assert "--preset tiny: about 1 minute" in said and "Pool distillation: 3 teachers, 4 steps on cpu." in said
    assert re.search(r"Estimate: about \d+ s without the evaluation, and 0\.\d GB of memory\.", said)
    assert "photos-train, validation classes, 5-way, 4 episodes" in said and "5-shot" in said
    for method in ("Pool distillation", "Random init", "All 3 members + prototype"):
        assert method in said
    assert said.rstrip().endswith("Wrote the meta-model, its card and its pictures to runs/mine.")
    assert {"README.md", "config.json", "model.safetensors", "pool.lock.json", "results.json", "pictures"} <= {
        path.name for path in (home / "runs" / "mine").iterdir()
    }
    assert {row.split for row in read_results(home / "runs" / "mine")} == {"validation"}


def test_compare_says_what_to_use(typed: Typed) -> None:
    said = typed("compare --support photos/train --pool models --models runs/mine --episodes 60")
    assert "50 images of photos/train, nearest class mean" in said and "5-shot (%)" in said
    rows = re.findall(r"│ (.+?) +│ +(\d+) of 50 │ +([\d.]+) ± ([\d.]+) │", said)
    assert {name for name, *_ in rows} >= {"All 3 members, features", "Pool distillation (mine)"} and len(rows) == 4
    assert f"Use {rows[0][0]}: with 5 images a class it is " in said
    assert re.search(r"more than chance|may be chance", said)


def test_adapt_says_how_good_it_is_and_keeps_the_classifier(home: Path, typed: Typed) -> None:
    """The pool itself needs no training; the distilled network is one small file."""
    said = typed("adapt models --support photos/train --save all-members")
    right = int(re.search(r"On your own 50 images, each left out .*: (\d+) of 50 \(", said).group(1))
    assert right > 15, "by chance 10"
    said = typed("adapt runs/mine --support photos/train --save my-classifier")
    assert "On your own 50 images, each left out in turn" in said and "95 % interval" in said
    assert "Wrote the classifier and its card to my-classifier: hf-dfml classify my-classifier PHOTOS" in said
    files = list((home / "my-classifier").iterdir())
    assert {path.name for path in files} == {"README.md", "config.json", "model.safetensors"}
    assert all(path.stat().st_mode & 0o044 for path in files), "others may read them"


def test_classify_answers_and_names_what_it_left_out(home: Path, typed: Typed) -> None:
    said = typed("classify all-members photos/new --top_k 2 --output answers.csv")
    assert "Wrote the answers to 20 images to answers.csv." in said
    assert "Left out 2 files:" in said and "IMG_7.heic is not readable as an image: convert HEIC files to JPEG" in said
    assert "logo.svg" in said and "export SVG drawings as PNG" in said
    with Path("answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "label", "probability", "label_2", "probability_2"] and len(rows) == 20
    right = sum(Path(row["file"]).name.startswith(row["label"]) for row in rows)
    assert right >= 8, "by chance 4"
    said = typed("classify my-classifier photos/new --threshold 0.999")
    assert said.count("none of these") == 20


def until(end: str, lines: Iterable[str]) -> Iterator[str]:
    """The lines up to the first that contains `end`."""
    for line in lines:
        yield line
        if end in line:
            return


def test_the_classifier_is_served(home: Path, typed: Typed) -> None:
    """In a process of its own, with a token as an option, until Ctrl-C."""
    words = ["serve", "my-classifier", "--port", "0", "--token", SECRET]
    served = subprocess.Popen(
        [sys.executable, "-m", "hf_dfml.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        first = list(until("Ctrl-C stops", served.stdout))
        url = re.search(r"A classifier of 5 classes at (http://\S+), returning probs\.", "".join(first)).group(1)
        picture = next((home / "photos" / "new").glob("ant*.png")).read_bytes()
        request = urllib.request.Request(url, picture, {"Authorization": f"Bearer {SECRET}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            scores = json.load(answer)
        assert {each["label"] for each in scores} == set(PHOTOS)
        assert sum(each["score"] for each in scores) == pytest.approx(1, abs=1e-3)
    finally:
        served.send_signal(signal.SIGINT)
        rest, _ = served.communicate(timeout=60)
    assert served.returncode == 0 and rest.rstrip().endswith("Stopped.")
    typed.keep("".join(first) + rest)


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra onnx is not installed")
def test_the_exported_classifier_has_the_same_probabilities(home: Path) -> None:
    import onnxruntime

    classifier = Classifier.from_pretrained("my-classifier")
    session = onnxruntime.InferenceSession(classifier.export_onnx("my-classifier.onnx"))
    images = torch.rand(3, 3, *classifier.size, generator=torch.Generator().manual_seed(0))
    (found,) = session.run(["probabilities"], {"images": images.numpy()})
    np.testing.assert_allclose(found, classifier.predict_proba(images).numpy(), atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(classifier.classes)


def test_run_and_classifier_are_pushed(home: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    with HubServer() as hub:
        hub.token = SECRET
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert typed("push runs/mine tester/mine") == f"Published: {hub.url}/tester/mine\n"
        assert typed("push my-classifier tester/my-classifier") == f"Published: {hub.url}/tester/my-classifier\n"
        mine, classifier = MetaModel.from_pretrained("tester/mine"), Classifier.from_pretrained("tester/my-classifier")
        assert mine.config.method == "Pool distillation" and classifier.classes == ("ant", "bee", "cow", "dog", "elk")
        published = [
            file.content for repo in hub.repos.values() for file in repo.at("main").files.values() if file.content
        ]
    assert len(published) > 8 and not any(SECRET.encode() in content for content in published)


def test_no_token_is_in_anything_that_was_written_or_said(home: Path) -> None:
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len(files) > 80 and (home / "said.txt").stat().st_size > 3000
    assert [str(path) for path in files if SECRET.encode() in path.read_bytes()] == []
