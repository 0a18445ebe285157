"""A run that is validated and tested on a user's own images (`--data`)."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_dfml.cli import main
from hf_dfml.data.folders import own_splits
from hf_dfml.pipeline import run
from hf_dfml.run_config import RunConfig
from tests.methods.own import Nudge, NudgeConfig
from tests.pool.members import write_pool


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    return write_pool(tmp_path_factory.mktemp("own-images") / "pool", 2)


def write_photos(folder: Path, classes: str, each: int = 4, seed: int = 0) -> Path:
    """`each` pictures of 20 x 24 pixels in a folder for each letter of `classes`."""
    random = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(each):
            Image.fromarray(random.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(folder / name / f"{index}.png")
    return folder


def config_of(members, folder, **changes) -> RunConfig:
    settings = {"arch": "conv4_16", "ways": 3, "shots": [1], "queries": 2, "episodes": 3, "validation_episodes": 2}
    return RunConfig(pool=str(members), output_dir=str(folder), log_with="none", **{**settings, **changes})


def test_it_is_chosen_on_the_validation_folder_and_evaluated_on_the_test_folder(members, tmp_path):
    for split, classes in (("val", "abc"), ("test", "defg")):
        write_photos(tmp_path / "photos" / split, classes)
    rows = run(Nudge, NudgeConfig(), config_of(members, tmp_path / "run", data=str(tmp_path / "photos")))
    assert {(row.dataset, row.split, row.ways, row.episodes) for row in rows} == {("photos", "test", 3, 3)}
    assert {"Nudge", "Random init", "All 2 members + prototype"} <= {row.method for row in rows}
    assert json.loads((tmp_path / "run" / "config.json").read_text())["hf_dfml"]["dataset"] == "photos"
    assert "best on the validation classes of photos" in (tmp_path / "run" / "README.md").read_text()


def test_class_folders_alone_are_both_and_the_rows_say_validation(members, tmp_path, caplog):
    photos = write_photos(tmp_path / "cub", "abc")
    rows = run(Nudge, NudgeConfig(), config_of(members, tmp_path / "run", data=str(photos)))
    assert {(row.dataset, row.split) for row in rows} == {("own cub", "validation")}, "not the birds of that name"
    assert "no test images: the evaluation is on those that the checkpoint is chosen on" in caplog.text
    assert not list((tmp_path / "run" / ".eval_results").glob("*")), "nothing for the Hub's table of the birds"


def test_splits_are_those_of_the_folder(tmp_path):
    assert own_splits(write_photos(tmp_path / "classes", "ab")) == ()
    for name in ("Training", "testing"):
        write_photos(tmp_path / "parts" / name, "ab")
    assert own_splits(str(tmp_path / "parts")) == ("train", "test")
    assert own_splits("glyphs") == ("train", "validation", "test")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        own_splits("./nowhere")


def test_what_the_images_cannot_give_is_refused_before_any_work(members, tmp_path):
    photos = str(write_photos(tmp_path / "photos", "abc"))
    write_photos(tmp_path / "late" / "test", "abc")
    words = ["train", "dro", "--pool", str(members), "--arch", "conv4_16", "--output_dir", str(tmp_path / "run")]
    words += ["--log_with", "none", "--shots", "1"]
    for more, reason in (
        (["--data", photos], "0 classes with at least 16 images; 5 ways of 1 shot and 15 queries need 5"),
        (["--data", photos, "--queries", "2"], "3 classes with at least 3 images; .* need 5: use --ways 3"),
        (["--data", photos, "--ways", "3"], "photos has 0 classes .* need 3: use --queries 3"),
        (["--data", photos, "--ways", "3", "--queries", "2", "--dataset", "glyphs"], "Name the images: --dataset"),
        (["--data", str(tmp_path / "nowhere")], "There is no folder"),
        (["--data", str(tmp_path / "late"), "--ways", "3", "--queries", "2"], "has test images alone"),
    ):
        with pytest.raises(SystemExit, match=reason):
            main([*words, *more])
    assert not (tmp_path / "run").exists()


def test_a_table_of_images_is_data_too(members, tmp_path):
    import datasets

    photos = write_photos(tmp_path / "photos", "abc")
    files = sorted(photos.rglob("*.png"))
    word = datasets.Value("string")
    features = datasets.Features({"picture": datasets.Image(), "kind": word, "of": word})
    rows = [{"picture": str(file), "kind": file.parent.name, "of": "me"} for file in files]
    (tmp_path / "table").mkdir()
    for part in ("validation", "test"):
        table = datasets.Dataset.from_list(rows, features=features)
        table.to_parquet(tmp_path / "table" / f"{part}.parquet")
    config = config_of(members, tmp_path / "run", data=str(tmp_path / "table"), label_column="kind", baselines=False)
    rows = run(Nudge, NudgeConfig(), config)
    assert {(row.dataset, row.split) for row in rows} == {("table", "test")}
