"""One run a folder, and what killed ones leave is recognised."""

import json
import os
import socket
import subprocess
import sys

import pytest

from hf_dfml.utils import folder_lock
from hf_dfml.utils.folder_lock import LOCK_NAME, folder_in_use


def holder(folder, **changes):
    own = {"process": os.getpid(), "started": folder_lock._start_of(os.getpid()), "machine": socket.gethostname()}
    folder.mkdir(exist_ok=True)
    (folder / LOCK_NAME).write_text(json.dumps({**own, **changes}))


def test_a_folder_that_is_in_use_is_refused_with_the_name_of_its_user(tmp_path):
    with (
        folder_in_use(tmp_path / "run"),
        pytest.raises(FileExistsError, match=f"in use by process {os.getpid()} on {socket.gethostname()}"),
        folder_in_use(tmp_path / "run"),
    ):
        pass


def test_it_is_given_back_and_a_folder_that_was_made_for_nothing_is_gone(tmp_path):
    with folder_in_use(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / LOCK_NAME).is_file()
    assert not any(tmp_path.iterdir())
    with folder_in_use(tmp_path / "run"):
        (tmp_path / "run" / "kept").write_text("")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept"]


def test_what_a_dead_process_has_left_is_taken_over(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for changes in ({"process": gone.pid}, {"started": "1"}, {"process": -1}):
        holder(tmp_path, **changes)
        with folder_in_use(tmp_path):
            assert json.loads((tmp_path / LOCK_NAME).read_text())["process"] == os.getpid()
    (tmp_path / LOCK_NAME).write_text("half")
    os.utime(tmp_path / LOCK_NAME, (0, 0))
    with folder_in_use(tmp_path):
        pass


def test_another_machine_is_believed_as_long_as_it_gives_signs_of_life(tmp_path):
    holder(tmp_path, machine="elsewhere")
    with pytest.raises(FileExistsError, match="on elsewhere"), folder_in_use(tmp_path):
        pass
    os.utime(tmp_path / LOCK_NAME, (0, 0))
    with folder_in_use(tmp_path):
        pass
