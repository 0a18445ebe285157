"""What another library raises becomes a sentence that names the member or file; a fault of ours keeps its trace."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zlib

import httpx
import pyarrow as pa
import pytest
import torch
import yaml
from huggingface_hub.utils import httpx as httpx_of_the_hub
from PIL import Image
from safetensors import SafetensorError

from hf_dfml.errors import errors_in_a_sentence, explain
from hf_dfml.pool import ModelPool
from hf_dfml.utils.outside import about, subject
from tests.pool.members import write_pool


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (SafetensorError("Error while\n deserializing header"), "Error while deserializing header"),
        (yaml.YAMLError("no"), "no"),
        (pa.ArrowInvalid("Parquet magic bytes not found"), "Parquet magic bytes not found"),
        (Image.DecompressionBombError("Image size (1) exceeds limit"), "Image size (1) exceeds limit"),
        (Image.UnidentifiedImageError("cannot identify"), "cannot identify"),
        (zlib.error("Error -3"), "Error -3"),
        (httpx_of_the_hub.ConnectError("refused"), "could not be reached: refused."),
        (httpx.ConnectError("refused"), "could not be reached: refused."),
        (MemoryError("Unable to allocate 3 TiB"), "There is not enough memory (Unable to allocate 3 TiB): use"),
        (torch.OutOfMemoryError("CUDA out of memory."), "There is not enough memory (CUDA out of memory.): use"),
        (RuntimeError("The size of tensor a (3) must match the size"), "Tensors do not fit together (The size"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "No such file or directory: a.png."),
    ],
)
def test_errors_of_libraries_are_sentences(error, sentence):
    found = explain(error)
    assert found and sentence in found and "\n" not in found


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("a fault"), TypeError("x"), AssertionError()])
def test_faults_of_ours_are_none(error):
    assert explain(error) is None


def test_whatever_concerns_something_from_outside_names_it():
    with pytest.raises(KeyError) as caught, about("outer"), about("inner.parquet"):
        raise KeyError("x")
    assert subject(caught.value) == "inner.parquet"
    assert explain(caught.value) == "inner.parquet: KeyError: 'x'"
    named = ValueError("member m-0 is damaged")
    with pytest.raises(ValueError), about("m-0"):
        raise named
    assert explain(named) == "member m-0 is damaged"


def test_a_member_that_fails_is_named(tmp_path):
    teacher = ModelPool.from_dir(write_pool(tmp_path / "pool", 1)).load(0)
    with torch.no_grad():
        teacher.network.fc = torch.nn.Linear(7, 3)
    for ask in (teacher, teacher.features):
        try:
            ask(torch.rand(2, 3, 16, 16))
        except RuntimeError as error:
            assert (explain(error) or "").startswith("m-0: Tensors do not fit together (mat1 and mat2 shapes")


def test_a_long_message_is_cut():
    assert len(explain(ValueError("x" * 5000)) or "") == 600


def test_letters_that_a_console_lacks_are_shown_as_numbers(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    with errors_in_a_sentence("x", own_process=False):
        print("\u72ac", end="")
    console.flush()
    assert console.buffer.getvalue() == b"\\u72ac"


def test_a_sentence_ends_the_process_with_1_and_a_fault_with_a_traceback():
    code = "from hf_dfml.errors import errors_in_a_sentence\nwith errors_in_a_sentence('x'):\n    raise {}"

    def run(error: str) -> str:
        found = subprocess.run([sys.executable, "-c", code.format(error)], capture_output=True, text=True, check=False)
        assert found.returncode == 1
        return found.stderr

    assert run("MemoryError('9 bytes')").startswith("x: There is not enough memory (9 bytes): ")
    assert "Traceback" in run("KeyError('x')")


@pytest.mark.parametrize("within", ["os.kill(os.getpid(), 2)", "exec('os.kill(os.getpid(), 2)')"])
def test_ctrl_c_ends_with_130_even_in_a_string_that_is_executed(within, tmp_path):
    lines = ["import os", "from hf_dfml.errors import errors_in_a_sentence", "with errors_in_a_sentence('x'):"]
    (tmp_path / "program.py").write_text("\n".join([*lines, f"    {within}"]), encoding="utf-8")
    words, path = [sys.executable, "-m", "program"], os.pathsep.join([str(tmp_path), *sys.path])
    found = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path})
    assert found.returncode == 130
    assert found.stderr.strip() == "x: stopped by Ctrl-C; what was finished until then is kept."
