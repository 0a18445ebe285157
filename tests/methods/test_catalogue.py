"""Methods by name, and those of a user's files: found, or refused with a sentence."""

import shutil
import sys
from pathlib import Path

import pytest

from hf_dfml.methods.catalogue import find_method
from hf_dfml.methods.tgr import TGR

OWN = Path(__file__).with_name("own.py")


@pytest.fixture(autouse=True)
def path_as_it_was(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_method_by_its_name():
    assert find_method("tgr") is TGR
    assert find_method("pool-distillation").name == "Pool distillation"
    with pytest.raises(ValueError, match=r"'tgrr' is not a method: expected bidf_mkd, .* or FILE.py:CLASS"):
        find_method("tgrr")


def test_a_class_of_a_file(tmp_path):
    shutil.copy(OWN, tmp_path / "mine.py")
    method = find_method(f"{tmp_path / 'mine.py'}:Nudge")
    assert method.name == "Nudge" and method.Config(steps=3).steps == 3


def test_a_file_may_import_what_lies_beside_it(tmp_path):
    shutil.copy(OWN, tmp_path / "mine.py")
    (tmp_path / "beside_mine.py").write_text("STEPS = 5\n")
    (tmp_path / "more.py").write_text("import beside_mine\nfrom mine import Nudge\n\nclass More(Nudge):\n    pass\n")
    assert find_method(f"{tmp_path / 'more.py'}:More").name == "More"


@pytest.mark.parametrize(
    ("text", "wanted", "message"),
    [
        (None, ":Nudge", "There is no file .*mine.py: give a method of your own as FILE.py:CLASS"),
        ("", ":Nudge", "mine.py has no class 'Nudge': it has no subclass of hf_dfml.methods.base.Method"),
        (OWN.read_text(), ":Nudgee", "has no class 'Nudgee': its methods are Nudge. Expected FILE.py:CLASS"),
        (OWN.read_text(), "", "does not say which class of the file to run: its methods are Nudge"),
        (OWN.read_text(), ":NudgeConfig", "NudgeConfig of .* is not a subclass of hf_dfml.methods.base.Method"),
        ("STEPS = 3\n", ":STEPS", "STEPS of .* is not a subclass"),
        ("import nothing_of_this_name\n", ":X", "mine.py cannot be imported: ModuleNotFoundError: No module named"),
        ("class X(:\n", ":X", "mine.py cannot be imported: SyntaxError"),
        (
            "from hf_dfml.methods.base import Method\nclass X(Method):\n    def setup(self, pool, context): ...\n",
            ":X",
            "X of .* lacks step, which each method must define",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, text, wanted, message):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(FileNotFoundError if text is None else ValueError, match=message):
        find_method(f"{tmp_path / 'mine.py'}{wanted}")
