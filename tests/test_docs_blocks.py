"""What README and the pages of the site tell a reader to type is typed: each block is run, or says why it is not.

A page's blocks run in their order in an empty folder that has what the pages speak of: pools, runs and a classifier of
tiny networks, photos of five classes, and a Hub of our own with `my-org`. Trainings and evaluations are cut to seconds
by options that are added at the end of a line, everything else is typed as it stands.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image

from hf_dfml import MetaModel, ModelPool
from hf_dfml.cli import main
from hf_dfml.evaluation import HEADS
from hf_dfml.networks import create_network
from hf_dfml.pool.black_box.server import PoolServer
from hf_dfml.pool.sources.registry import SOURCES
from tests.hub_server import HubServer
from tests.pool.black_box.test_service import running
from tests.pool.members import files_of, write_member, write_pool
from tests.test_docs import PAGES, ROOT

pytestmark = pytest.mark.usefixtures("few_glyphs")
CLASSES = ("cat", "dog", "emu", "fox", "gnu")
SERVED = "http://127.0.0.1:8000"

NOT_RUN = {
    r"^source ": "the tests run in the environment already",
    r"^make ": "CI runs the targets; `make quickstart` is what tests/test_quickstart.py runs",
    r"^pip |^uv |^python -m build": "installs packages: tests/test_packaging.py, and CI in an empty environment",
    r"^hf jobs ": "needs an account, and costs money",
    r"\.\.\.$": "three dots stand for options of the reader's own",
    r"^(\w+=\w+ )*(accelerate launch|torchrun) ": "tests/recipes and tests/processes run recipes and launch processes",
    r"^(CONFIG=|python benchmarks/)": "a measurement of an hour; tests/recipes runs the script at a tiny size",
    r"^hf-dfml quickstart": "minutes: tests/test_quickstart.py",
    r"^hf-dfml serve ": "runs until Ctrl-C: tests/test_first_hour.py and tests/pool/black_box",
    r"^hf-dfml demo ": "runs until Ctrl-C: tests/demo",
    r"tf_efficientnet_lite0|vit_tiny": "needs a public network from the Hub, and minutes: tests/pool/building",
    r"^python zoo/make\.py ": "changes the package: tests/test_zoo.py, in a copy",
    r"--help$": "tests/test_docs.py asks for the options of every method",
}
"""Lines of bash that are not typed, and why not."""

SKETCHES = {
    ("hub_pools", 0): "arguments are `...`: tests/pool/sources",
    ("real_pools", 2): "needs a transformer that was trained for minutes: tests/recovery/test_patches.py",
    ("peers", 0): "needs the extra peers: tests/evaluation/test_peers.py",
    ("hub_snippet", 0): "TypeScript, for another repository",
    ("hub_snippet", 1): "TypeScript, for another repository",
    ("start", 1): "names of files",
}
"""Whole blocks that are not run, and why not."""

TINY = {
    "train": "--episodes 2 --validation_episodes 2 --queries 2 --ways 3 --baselines false --check_members false "
    "--log_with none --num_threads 1",
    "pool-distillation": "--steps 1 --num_images 40 --batch_size 20 --recovery pixels --recovery_steps 1 "
    "--recoveries 1 --images_per_class 2 --joint_rounds 0",
    "tgr": "--steps 1 --recovery pixels --recovery_steps 1 --images_per_class 4 --probe average --embedding_batches 1 "
    "--num_groups 2 --teachers_per_step 2 --replay_queries 2 --replay_batch 2 --replay_patience 1 --inner_steps 1",
    "pool_reptile.py:PoolReptile": "--steps 1 --images 8",
    "evaluate": "--episodes 2",
    "compare": "--episodes 2",
}
"""What is added to the lines of a command, or of a method, so that they take seconds."""

SHORT = {
    "ReptileConfig(steps=100)": "ReptileConfig(steps=1, images=8)",
    'dataset="cifar-fs", output_dir="runs/reptile"': 'dataset="glyphs", output_dir="runs/again", episodes=2, '
    'validation_episodes=2, queries=2, ways=3, baselines=False, check_members=False, log_with="none"',
    '"resnet18", num_classes=3)': '"resnet18", num_classes=3, pretrained_cfg_overlay={"input_size": (3, 32, 32)})',
    "--image_size 64": "--image_size 32",
}
"""What is exchanged in a block, for the same reason."""

CODES = {"hf-dfml pool check": (0, 1)}
"""Exit codes other than 0: random members may be found unsound."""


class Block(NamedTuple):
    """A fenced block of a page, counted from 0."""

    page: str
    number: int
    language: str
    text: str

    @property
    def short(self) -> str:
        """Its text, for seconds."""
        text = self.text
        for long, short in SHORT.items():
            text = text.replace(long, short)
        return text

    @property
    def lines(self) -> list[str]:
        """The command lines of bash, without comments."""
        joined = self.short.replace("\\\n", " ").splitlines()
        return [" ".join(words) for line in joined if (words := shlex.split(line, comments=True, posix=False))]


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^ *```(\w*)\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [Block(page.stem, number, *each) for number, each in enumerate(found)]


WITH_BLOCKS = [page for page in PAGES if blocks(page)]


def why_not(line: str) -> str | None:
    """The reason why a line is not typed."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, line)), None)


def typed(line: str, served: str) -> list[str]:
    """A line as it is typed here: cut to seconds, with the address of our server."""
    _, *words = shlex.split(line.replace(SERVED, served))
    added = [TINY[word] for word in dict.fromkeys(words[:2]) if word in TINY]
    words = [str(ROOT / word) if word.startswith("hf_dfml/presets/") else word for word in words]
    if "cifar-fs" in words or any("cifar-fs" in word for word in words if word.endswith(".yaml")):
        added.append("--dataset glyphs")
    if any(word.startswith("--black") or word.startswith("http://") or word == "endpoints.yaml" for word in words):
        added = [each.replace("--recovery pixels", "--training_images procedural") for each in added]
    return [*words, *" ".join(added).split()]


def photos(folder: Path, names: tuple[str, ...], each: int, seed: int) -> None:
    """Noisy pictures whose colours tell their classes apart."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        where = folder / name if each > 1 else folder
        where.mkdir(exist_ok=True)
        for number in range(1, each + 1):
            pixels = random.integers(0, 90, (18, 20, 3)) + 40 * np.array([index, 4 - index, index % 2])
            Image.fromarray(pixels.astype(np.uint8)).save(where / f"{number if each > 1 else name}.jpg")


def network_of(seed: int) -> torch.nn.Module:
    return create_network("conv4_16", num_classes=3, image_size=16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def no_head_of_a_page_stays() -> Iterator[None]:
    """A page that says how to write a head registers it."""
    before = dict(HEADS)
    yield
    HEADS.clear()
    HEADS.update(before)


@pytest.fixture
def world(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What pages speak of, in the current folder and on a Hub; the address of a served pool."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    for name in ("mine", "glyphs", "cifar-fs"):
        write_pool(home / "pools" / name, 3)
    write_pool(home / "models", 3)
    (home / "models" / "old").mkdir()
    (home / "models" / "old" / "pytorch_model.bin").write_bytes(b"pickle")
    for folder in (home / "models").glob("m-*"):
        hub.add_repo(f"my-org/{folder.name}", files_of(folder))
    for id in ("my-org/one-member", "timm/resnet50.a1_in1k"):
        hub.add_repo(id, files_of(write_member(tmp_path / id)))
    for seed, name in enumerate(("mine", "tgr", "quickstart")):
        MetaModel.of(network_of(seed), method="TGR").save_pretrained(home / "runs" / name)
    photos(home / "photos" / "train", CLASSES, 10, 0)
    photos(home / "photos" / "test", CLASSES, 20, 1)
    photos(home / "photos" / "new", ("1", "a", "b"), 1, 2)
    photos(home / "photos" / "more", ("c",), 1, 3)
    MetaModel.of(network_of(0), method="TGR").adapt(home / "photos" / "train").save_pretrained("my-classifier")
    torch.save(timm.create_model("resnet18", num_classes=3).state_dict(), "weights.pt")
    hub.user = "me"
    with running(PoolServer(ModelPool.from_dir(home / "pools" / "glyphs"), port=0, output="probs")) as server:
        Path("endpoints.yaml").write_text(yaml.safe_dump({"image_size": 16, "endpoints": [server.url]}))
        yield server.url


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.stem)
def test_blocks_of_a_page_run(page: Path, world: str, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.syspath_prepend(Path.cwd())
    sources = list(SOURCES)
    names: dict = {"ModelPool": ModelPool, "images": torch.rand(2, 3, 16, 16)}
    ran, left = 0, []
    try:
        for block in blocks(page):
            if reason := SKETCHES.get((block.page, block.number)):
                left.append(reason)
            elif block.language == "python":
                run_python(block, names)
                ran += 1
            elif block.language == "bash":
                for line in block.lines:
                    if reason := why_not(line):
                        left.append(reason)
                    else:
                        run_line(line, world, capsys)
                        ran += 1
            else:
                assert block.language == "yaml", f"{block.language} is neither run nor listed"
                assert yaml.safe_load(block.text)
                ran += 1
    finally:
        SOURCES[:] = sources
    if not ran:
        pytest.skip("; ".join(dict.fromkeys(left)))


def run_line(line: str, served: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = typed(line, served)
    if words[0] == "train" and "--resume_from_checkpoint" not in words:
        if "--output_dir" not in words:
            words += ["--output_dir", "runs/by-default"]
        taken = Path(words[words.index("--output_dir") + 1])
        if taken.exists():  # Another run's, which a new one does not overwrite.
            taken.rename(taken.with_name(f"earlier-{len(list(taken.parent.iterdir()))}"))
    with pytest.raises(SystemExit) as stop:
        main(words)
    said = "".join(capsys.readouterr())
    expected = next((codes for start, codes in CODES.items() if line.startswith(start)), (0,))
    assert (stop.value.code or 0) in expected, f"{line}\n{said[-2000:]}"


def run_python(block: Block, names: dict) -> None:
    text = block.short
    if (block.page, block.number) == ("extending", 0):
        Path("pool_reptile.py").write_text(text)  # The page's next block names this file.
    exec(compile(text, f"{block.page}.md, block {block.number}", "exec"), names)


def test_every_reason_not_to_run_is_one_of_a_line() -> None:
    found = [block for page in WITH_BLOCKS for block in blocks(page)]
    lines = [line for block in found if block.language == "bash" for line in block.lines]
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, line) for line in lines)] == []
    assert SKETCHES.keys() <= {(block.page, block.number) for block in found}
    assert all(any(long in block.text for block in found) for long in SHORT)
    left = [line for line in lines if why_not(line)]
    assert len(lines) - len(left) >= 40, "most lines are run"
