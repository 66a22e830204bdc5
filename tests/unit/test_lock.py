from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from polyalign.utils.errors import UserError
from polyalign.utils.lock import LOCK_FILES, OWNER, locked

HOLD = """
import sys, time
from pathlib import Path
from polyalign.utils.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_process_is_told_who_holds_the_folder_until_the_first_dies(tmp_path):
    folder = tmp_path / "new" / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"in use by process {holder.pid} on .+ since \d{{4}}-"), locked(folder):
            pass
        (folder / OWNER).write_text('{"pid": "\\u001b[2J"}')
        with pytest.raises(UserError, match=rf"{re.escape(str(folder))} is in use: wait"), locked(folder):
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with locked(folder):
            assert {path.name for path in folder.iterdir()} <= set(LOCK_FILES)
    assert {path.name for path in folder.iterdir()} <= set(LOCK_FILES) - {OWNER}


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), locked(tmp_path / "file" / "run"):
        pass


def test_a_new_folder_that_is_left_empty_is_deleted_and_any_other_is_kept(tmp_path):
    for name, kept in (("new", False), ("old", True), ("filled", True)):
        folder = tmp_path / name
        if name == "old":
            folder.mkdir()
        with locked(folder):
            if name == "filled":
                (folder / "file").touch()
        assert folder.exists() == kept


def test_folders_made_for_the_lock_are_deleted_if_nothing_is_written(tmp_path):
    with locked(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "mine").touch()
    assert (tmp_path / "a" / "mine").exists()
