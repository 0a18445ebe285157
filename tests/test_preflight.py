"""What can be refused is refused before the first second of work."""

import shutil
from collections import namedtuple
from contextlib import nullcontext

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError

from hf_dfml.evaluation import EvaluationProtocol
from hf_dfml.methods.pool_distillation import PoolDistillation, PoolDistillationConfig
from hf_dfml.pipeline import run
from hf_dfml.pool.entry import MemberError, PoolEntry
from hf_dfml.pool.formats import timm_layout
from hf_dfml.pool.formats.timm_layout import MAX_CLASSES
from hf_dfml.preflight import check_disk, check_folder, check_outputs, check_push, evaluation_data
from hf_dfml.run_config import RunConfig
from tests.hub_server import Answer
from tests.methods.own import Nudge, NudgeConfig
from tests.methods.pools import make_model
from tests.pool.members import config_of, write_pool


class Untouched(Nudge):
    """Fails the test if it is asked to do anything."""

    def setup(self, pool, context):
        raise AssertionError("work has begun")


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    return write_pool(tmp_path_factory.mktemp("preflight") / "pool", 2)


def refused(members, folder, error, message, **options):
    settings = {"pool": str(members), "arch": "conv4_16", "ways": 3, "output_dir": str(folder), "log_with": "none"}
    with pytest.raises(error, match=message):
        run(Untouched, NudgeConfig(), RunConfig(**{**settings, **options}), argv=["test"])
    assert not folder.exists()


def test_what_the_data_cannot_give(members, tmp_path):
    refused(members, tmp_path / "r", ValueError, "100 images, but 86 shots", dataset="glyphs", shots=[1, 86])
    refused(members, tmp_path / "r", ValueError, "16 classes: 17-way episodes", dataset="glyphs", ways=17)
    refused(members, tmp_path / "r", ValueError, "'glyps' is unknown", dataset="glyphs,glyps")


def test_data_is_read_once_and_has_the_networks_size():
    data = evaluation_data(RunConfig(dataset="glyphs"), EvaluationProtocol(shots=[1]), 16)
    (kept,) = data.test()
    assert kept.image_size == 16 and next(data.test()) is kept and data.dataset == "glyphs"
    assert data.validation[0].split == "validation" and kept.split == "test"
    assert data.validation[0].image_size == 16 and next(data.level()) is data.validation[0]


def test_baselines_see_the_images_in_their_own_size():
    """Else members of 24 pixels would be judged on images that were made small for a meta-model of 16."""
    data = evaluation_data(RunConfig(dataset="glyphs"), EvaluationProtocol(shots=[1]), 16, 24)
    (level,), (test,) = data.level(), data.test()
    assert data.validation[0].image_size == 16 and level.image_size == test.image_size == 24
    assert torch.equal(level.labels, data.validation[0].labels), "the same episodes"


def test_a_push_that_cannot_be(hub, members, tmp_path, monkeypatch):
    hub.add_repo("org/public", {"config.json": b"{}"})
    check_push(f"{hub.user}/new")
    check_push("org/new", private=True)
    refused(members, tmp_path / "r", ValueError, "who can publish as", push_to_hub="somebody/else")
    with pytest.raises(ValueError, match="org/public exists and is public"):
        check_push("org/public", private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    refused(members, tmp_path / "r", ValueError, "needs a valid token with write access", push_to_hub="org/new")


def test_a_token_that_may_only_read(hub, monkeypatch):
    user = {"name": "me", "orgs": [], "auth": {"accessToken": {"role": "read"}}}
    hub.fault = lambda request: Answer.json(user) if "whoami" in request.path else None
    with pytest.raises(ValueError, match="may only read"):
        check_push("me/new")


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_is_busy_is_not_taken_for_a_wrong_token(hub, monkeypatch, status):
    monkeypatch.setattr("hf_dfml.preflight.retry", lambda ask, **_: ask())
    hub.fault = lambda request: Answer(status, b"later") if "whoami" in request.path else None
    with pytest.raises(HfHubHTTPError) as error:
        check_push("me/new")
    assert error.value.response.status_code == status


def test_a_disk_without_room(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**8, 10**8))
    check_disk(tmp_path / "a" / "b", make_model(), 0, RunConfig())
    with pytest.raises(ValueError, match="needs about 0.4 GB for checkpoints, and its disk has 0.1 GB free"):
        check_disk(tmp_path / "a" / "b", make_model(), 40_000 * 3 * 32 * 32, RunConfig())


def test_no_more_checkpoints_are_reckoned_with_than_a_run_writes(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**10, 0, 10**10))
    every_one = RunConfig(keep_checkpoints=1000, checkpoint_every=20)
    check_disk(tmp_path, make_model(), 10**8, every_one, steps=1000)
    for steps in (0, 2000):
        with pytest.raises(ValueError, match="or lower --keep_checkpoints"):
            check_disk(tmp_path, make_model(), 10**8, every_one, steps=steps)


def test_a_folder_that_holds_a_model_of_no_run_is_not_mixed_with_one(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileExistsError, match="already holds a model"):
        check_folder(tmp_path)
    (tmp_path / "checkpoints" / "step-000001").mkdir(parents=True)
    check_folder(tmp_path)


def test_one_class_is_no_episode():
    with pytest.raises(ValueError, match="at least 2 ways"):
        EvaluationProtocol(ways=1)


def test_a_run_gives_its_baselines_images_of_their_own_size(tmp_path):
    """Members of 16 pixels beside a meta-model of 12."""
    config = RunConfig(
        pool=str(write_pool(tmp_path / "pool", 2)),
        dataset="glyphs",
        arch="test_resnet",
        image_size=12,
        ways=3,
        shots=[1],
        episodes=2,
        validation_episodes=2,
        output_dir=str(tmp_path / "run"),
        log_with="none",
    )
    rows = run(Nudge, NudgeConfig(), config, argv=["test"])
    sizes = {row.method: row.image_size for row in rows}
    assert sizes[Nudge.name] == 12 and sizes["All 2 members + prototype"] == 16


class UntouchedStudent(PoolDistillation):
    """Fails the test if it is asked to do anything."""

    def setup(self, pool, context):
        raise AssertionError("work has begun")


def test_a_student_of_more_outputs_than_are_loaded_again(members, tmp_path, monkeypatch):
    """Two members of three classes each; in earnest, 101 members of ImageNet's thousand."""
    config = {
        "pool": str(members),
        "arch": "conv4_16",
        "ways": 3,
        "output_dir": str(tmp_path / "r"),
        "log_with": "none",
    }
    monkeypatch.setattr("hf_dfml.preflight.MAX_CLASSES", 5)
    with pytest.raises(ValueError, match="6 outputs, .* of 2 members, .* more than 5 .*--num_members 1 or less"):
        run(UntouchedStudent, PoolDistillationConfig(), RunConfig(**config), argv=["test"])
    assert not (tmp_path / "r").exists()
    for few in ({"num_members": 1}, {"student_from": str(members / "m-0")}):
        hyper = PoolDistillationConfig(train_student="beside" if "student_from" in few else "all")
        with pytest.raises(AssertionError, match="work has begun"):
            run(UntouchedStudent, hyper, RunConfig(**{**config, **few}), argv=["test"])


def test_the_largest_student_is_loaded_and_a_larger_one_is_not():
    for outputs, problem in ((MAX_CLASSES, None), (MAX_CLASSES + 1, "expected 2 to 100000 classes")):
        pool = [PoolEntry(id="m-0", num_classes=outputs - 1000), PoolEntry(id="m-1", num_classes=1000)]
        method = PoolDistillation(PoolDistillationConfig(), make_model(3))
        with pytest.raises(ValueError, match="100,001 outputs") if problem else nullcontext():
            check_outputs(method, pool)
        with pytest.raises(MemberError, match=problem) if problem else nullcontext():
            assert timm_layout.read("m", None, None, config_of(num_classes=outputs, label_names=[], dfml={}))
