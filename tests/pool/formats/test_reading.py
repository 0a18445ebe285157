from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_dfml.pool.formats.reading import read_entry
from tests.pool.members import config_of


def entry_of(tmp_path: Path, config: object):
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return read_entry("me", tmp_path)


def test_a_good_config_is_read_completely(tmp_path):
    entry = entry_of(tmp_path, config_of())
    assert entry.problem is None and entry.resolved
    assert (entry.library, entry.architecture, entry.num_classes) == ("timm", "conv4_16", 3)
    assert entry.input_size == (3, 16, 16)
    assert (entry.mean, entry.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert entry.label_names == entry.class_names == ("cat", "dog", "fox")
    assert (entry.dataset, entry.classes, entry.val_accuracy) == ("pets", (4, 2, 9), 0.75)


def test_classes_without_names_get_names_that_no_other_member_has(tmp_path):
    entry = entry_of(tmp_path, config_of(label_names=None, dfml={}))
    assert entry.problem is None
    assert entry.label_names == ()
    assert entry.class_names == ("me#0", "me#1", "me#2")


@pytest.mark.parametrize("name", ["LABEL_{}", "label_{}", "Label {}", "label{}"])
def test_placeholders_name_nothing(tmp_path, name):
    entry = entry_of(tmp_path, config_of(label_names=[name.format(index) for index in range(3)]))
    assert (entry.problem, entry.label_names, entry.class_names) == (None, (), ("me#0", "me#1", "me#2"))


def test_numbered_folders_are_names(tmp_path):
    names = ["class_01", "class_02", "class_03"]
    assert entry_of(tmp_path, config_of(label_names=names)).class_names == tuple(names)


def test_classes_of_one_name_get_names_that_no_other_member_has(tmp_path):
    """As ImageNet's two cranes: of another member's crane nobody knows which of them it is."""
    entry = entry_of(tmp_path, config_of(label_names=["crane", "dog", "crane"]))
    assert (entry.problem, entry.label_names) == (None, ("me#0", "dog", "me#2"))


def test_old_timm_configs_have_everything_at_the_top(tmp_path):
    old = {"architecture": "resnet18", "num_classes": 3, "input_size": [3, 64, 64], "labels": ["a", "b", "c"]}
    entry = entry_of(tmp_path, old | {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]})
    assert entry.problem is None
    assert (entry.input_size, entry.mean, entry.label_names) == ((3, 64, 64), (0.1, 0.2, 0.3), ("a", "b", "c"))


SETTINGS = config_of()["pretrained_cfg"]
BAD = {
    "unknown architecture": (config_of(architecture="conv5"), "architecture 'conv5' is not one"),
    "address as architecture": (config_of(architecture="hf-hub:evil/model"), "'hf-hub:evil/model' is not one"),
    "folder as architecture": (config_of(architecture="local-dir:../evil"), "'local-dir:../evil' is not one"),
    "no architecture": (config_of(architecture=None), "names no architecture"),
    "label count": (config_of(label_names=["cat", "dog"]), "has 3 classes but 2 label names"),
    "a label that is a list": (config_of(label_names=["cat", "dog", ["cat"]]), "must be non-empty strings"),
    "labels not strings": (config_of(label_names=["cat", "dog", 3]), "non-empty strings"),
    "class ids": (config_of(dfml={"classes": [1]}), "has 3 classes but 1 class ids"),
    "no classes": (config_of(num_classes=0), "num_classes is 0"),
    "giant head": (config_of(num_classes=10**9), "num_classes is 1000000000"),
    "accuracy": (config_of(dfml={"val_accuracy": 85}), "val_accuracy is 85"),
    "two channels": (config_of(pretrained_cfg=SETTINGS | {"input_size": [2, 16, 16]}), "images of 2 channels"),
    "huge input": (config_of(pretrained_cfg=SETTINGS | {"input_size": [3, 10**6, 16]}), "input_size is"),
    "zero std": (config_of(pretrained_cfg=SETTINGS | {"std": [0.2, 0, 0.2]}), "expected positive"),
    "NaN mean": (config_of(pretrained_cfg=SETTINGS | {"mean": [float("nan"), 0, 0]}), "expected three numbers"),
    "weights from elsewhere": (config_of(model_args={"checkpoint_path": "evil.pt"}), "sets 'checkpoint_path'"),
    "pretrained": (config_of(model_args={"pretrained": True}), "sets 'pretrained'"),
    "giant": (config_of(model_args={"width": 10**9}), "model_args 'width' is 1000000000"),
    "nested giant": (config_of(model_args={"layers": [[10**9]]}), "model_args 'layers' is 1000000000"),
    "object argument": (config_of(model_args={"norm_layer": {"_target_": "os.system"}}), "not a plain value"),
    "not JSON": ("{", "config.json is not readable as JSON"),
    "deep JSON": ("[" * 100_000, "config.json is not readable as JSON"),
    "a list": ("[]", "config.json is a JSON list"),
    "empty object": ("{}", "names no architecture"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_config_is_a_problem_in_one_line(tmp_path, name):
    config, expected = BAD[name]
    entry = entry_of(tmp_path, config)
    assert entry.problem is not None and expected in entry.problem
    assert "\n" not in entry.problem and len(entry.problem) < 250


def test_a_folder_without_config_is_a_problem(tmp_path):
    assert read_entry("me", tmp_path).problem == "has no config.json"
