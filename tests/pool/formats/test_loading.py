from __future__ import annotations

import json
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from hf_dfml.pool import MemberError, ModelPool, check_pool
from hf_dfml.pool.formats import timm_layout as timm_members
from hf_dfml.pool.formats.loading import load_teacher
from hf_dfml.pool.formats.reading import read_entry
from tests.pool.members import config_of, state_of, write_member


def test_weights_and_buffers_are_those_of_the_file(tmp_path):
    folder = write_member(tmp_path / "m", seed=3)
    state = load_teacher(read_entry("m", folder)).network.state_dict()
    expected = state_of(seed=3)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_half_precision_is_loaded_as_float32(tmp_path):
    folder = write_member(tmp_path / "m")
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state_of().items()}
    save_file(half, folder / "model.safetensors")
    teacher = load_teacher(read_entry("m", folder))
    assert {tensor.dtype for tensor in teacher.parameters()} == {torch.float32}
    assert torch.equal(teacher.network.fc.weight, state_of()["fc.weight"].half().float())


def test_batch_norm_counters_may_be_absent(tmp_path):
    folder = write_member(tmp_path / "m")
    state = {name: tensor for name, tensor in state_of().items() if "num_batches" not in name}
    save_file(state, folder / "model.safetensors")
    teacher = load_teacher(read_entry("m", folder))
    assert not any(tensor.is_meta for tensor in teacher.network.state_dict().values())


def test_loading_leaves_the_global_random_numbers_alone(tmp_path):
    entry = read_entry("m", write_member(tmp_path / "m"))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_teacher(entry)
    assert torch.equal(torch.rand(3), expected)


def test_a_network_with_tensors_it_does_not_store_is_whole(tmp_path):
    # Its blur filters are in no state dict.
    network = timm.create_model("resnetblur18", num_classes=3).eval()
    assert dict(network.named_buffers()).keys() - network.state_dict().keys()
    settings = {"input_size": [3, 32, 32], "mean": [0, 0, 0], "std": [1, 1, 1]}
    (tmp_path / "config.json").write_text(json.dumps(config_of(architecture="resnetblur18", pretrained_cfg=settings)))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(load_teacher(read_entry("m", tmp_path))(images), network(images))


def test_an_architecture_that_cannot_be_built_without_memory_is_built_with_it(tmp_path, monkeypatch):
    # As many are in timm before 1.0.30.
    entry = read_entry("m", write_member(tmp_path / "m"))
    build = timm_members.build

    def build_with_memory_only(entry):
        if torch.empty(()).is_meta:
            raise MemberError(entry.id, "cannot be built on meta")
        return build(entry)

    monkeypatch.setattr(timm_members, "build", build_with_memory_only)
    assert torch.equal(load_teacher(entry).network.fc.weight, state_of()["fc.weight"])


class _Evil:
    """Whoever unpickles this writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.write_text, (self.mark, "ran"))


def _rewrite(folder: Path, change) -> None:
    state = state_of()
    change(state)
    save_file(state, folder / "model.safetensors")


def _config(folder: Path, **changes) -> None:
    (folder / "config.json").write_text(json.dumps(config_of(**changes)))


def _pickle_only(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(_Evil(folder / "ran")))


def _remote_code(folder: Path) -> None:
    code = "from pathlib import Path\nPath(__file__).with_name('ran').write_text('ran')\nclass Evil: pass\n"
    (folder / "modeling_evil.py").write_text(code)
    config = {"architectures": ["EvilForImageClassification"], "model_type": "evil"}
    config["auto_map"] = {"AutoModelForImageClassification": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))


def _unknown_model_type(folder: Path) -> None:
    config = {"architectures": ["EvilForImageClassification"], "model_type": "evil", "num_labels": 3}
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"size": 16, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def _header(folder: Path, header: dict | bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text
    (folder / "model.safetensors").write_bytes(content + b"\0" * 64)


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _folder_in_place_of(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


OVERLAPPING = {
    name: {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]} for name in ("fc.weight", "blocks.0.conv.weight")
}
GIANT = {"fc.weight": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}
HOSTILE = {
    "pickle-bin": (lambda folder: _pickle_only(folder, "pytorch_model.bin"), r"pickle \(pytorch_model.bin\)"),
    "pickle-pt": (lambda folder: _pickle_only(folder, "model.pt"), r"pickle \(model.pt\)"),
    "pickle-in-disguise": (
        lambda folder: (folder / "model.safetensors").write_bytes(pickle.dumps(_Evil(folder / "ran"))),
        "damaged or cut off",
    ),
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    "other-shape": (
        lambda folder: _rewrite(folder, lambda state: state.update({"fc.weight": torch.zeros(7, 16)})),
        r"fc.weight is \[7, 16\], expected \[3, 16\]",
    ),
    "tensor-missing": (lambda folder: _rewrite(folder, lambda state: state.pop("fc.bias")), "fc.bias is missing"),
    "tensor-too-many": (
        lambda folder: _rewrite(folder, lambda state: state.update(extra=torch.zeros(1))),
        "extra is not part of the network",
    ),
    "wrong-class-count": (
        lambda folder: _config(folder, num_classes=4, label_names=None, dfml={}),
        r"fc.weight is \[3, 16\], expected \[4, 16\] \(and 1 more\)",
    ),
    "nan": (
        lambda folder: _rewrite(folder, lambda state: state["blocks.2.conv.weight"][0, 0].fill_(float("nan"))),
        "blocks.2.conv.weight in model.safetensors has values that are NaN",
    ),
    "infinite-buffer": (
        lambda folder: _rewrite(folder, lambda state: state["blocks.1.bn.running_var"].fill_(float("inf"))),
        "blocks.1.bn.running_var",
    ),
    # Finite itself, its square root is not.
    "negative-variance": (
        lambda folder: _rewrite(folder, lambda state: state["blocks.1.bn.running_var"].fill_(-1.0)),
        "blocks.1.bn.running_var in model.safetensors is negative",
    ),
    "too-large-for-float32": (
        lambda folder: _rewrite(
            folder, lambda state: state.update({"fc.bias": torch.full((3,), 1e300, dtype=torch.float64)})
        ),
        "fc.bias in model.safetensors has values that are NaN or infinite",
    ),
    "eight-bit-weights": (
        lambda folder: _rewrite(
            folder, lambda state: state.update({"fc.weight": (100 * state["fc.weight"]).to(torch.int8)})
        ),
        r"fc.weight in model.safetensors is int8, expected floating-point numbers \(quantised",
    ),
    "overlapping-tensors": (lambda folder: _header(folder, OVERLAPPING), "damaged or cut off"),
    "weights-are-a-folder": (lambda folder: _folder_in_place_of(folder, "model.safetensors"), "no model.safetensors"),
    "config-is-a-folder": (lambda folder: _folder_in_place_of(folder, "config.json"), "config.json"),
    "config-not-text": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{"), "not readable as JSON"),
    "giant-json": (
        lambda folder: (folder / "config.json").write_bytes(b" " * (17 << 20)),
        "config.json has 17825792 bytes, at most",
    ),
    "truncated": (_cut, "damaged or cut off"),
    "empty-file": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "damaged or cut off"),
    "giant-header": (lambda folder: _header(folder, b"{}", length=2**60), "damaged or cut off"),
    "giant-tensor": (lambda folder: _header(folder, GIANT), "damaged or cut off"),
    # 60,000 channels a block would take 120 GB.
    "giant-config": (lambda folder: _config(folder, model_args={"width": 60_000}), "tensors do not fit the config"),
    "argument-of-no-use": (lambda folder: _config(folder, model_args={"bogus": 1}), "timm cannot build 'conv4_16'"),
    "remote-code": (_remote_code, "names Python code of its own"),
    "unknown-model-type": (_unknown_model_type, "transformers cannot build 'EvilForImageClassification'"),
    "empty-label": (lambda folder: _config(folder, label_names=["a", "b", ""]), "must be non-empty strings"),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pools") / "hostile"
    good = write_member(folder / "good-0")
    shutil.copytree(good, folder / "good-1")
    for name, (spoil, _) in HOSTILE.items():
        spoil(Path(shutil.copytree(good, folder / name)))
    return folder


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_member_is_refused_by_name_in_one_line(hostile, name):
    pool = ModelPool.from_dir(hostile)
    with pytest.raises(MemberError, match=HOSTILE[name][1]) as caught:
        pool.load(name)
    message = str(caught.value)
    assert message.startswith((f"{name}: ", f"{name} has ")) and "\n" not in message and len(message) < 300


def test_name_and_reason_are_one_sentence():
    assert str(MemberError("m-0", "has no config.json")) == "m-0 has no config.json"
    assert str(MemberError("m-0", "is gated")) == "m-0 is gated"
    assert str(MemberError("m-0", "config.json names no architecture")) == "m-0: config.json names no architecture"
    assert str(MemberError("m-0", "isolated outputs")) == "m-0: isolated outputs"


def test_the_rest_of_a_hostile_pool_goes_on_and_no_code_runs(hostile, caplog):
    pool = ModelPool.from_dir(hostile)
    usable = pool.usable()
    assert [entry.id for entry in usable] == ["good-0", "good-1"]
    warned = {record.getMessage().split(": ")[1] for record in caplog.records if "left out" in record.getMessage()}
    assert warned == set(HOSTILE)
    assert {entry.id for entry, problem in check_pool(pool) if problem is None} == {"good-0", "good-1"}
    assert not list(hostile.rglob("ran"))


def test_a_pool_of_nothing_usable_says_so(tmp_path):
    _pickle_only(write_member(tmp_path / "bad"), "model.pt")
    with pytest.raises(ValueError, match="Of 1 member none can be used"):
        ModelPool.from_dir(tmp_path).usable()
