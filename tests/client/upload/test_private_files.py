"""What a run keeps on disk is readable by its owner alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

KEEP_STEPS = """
import gradmedic

run = gradmedic.init(project="p", mode="offline", max_disk_bytes=4000)
for step in range(200):
    run.log(step=step, loss=1.0, gradients={})
run.finish()
"""
"""A program that keeps more steps than it may, so that it also rewrites files."""


def train(folder: Path, umask: int) -> dict[str, int]:
    """Run the program in a folder under a umask; return the modes of everything there, by path."""
    done = subprocess.run(
        [sys.executable, "-c", KEEP_STEPS],
        umask=umask,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


@pytest.mark.parametrize("umask", [0, 0o022, 0o777], ids=oct)
def test_a_new_folder(tmp_path: Path, umask: int) -> None:
    """Whatever the umask, only the owner may read the folder, what is in it, and the journals."""
    found = train(tmp_path, umask)
    assert any(path.endswith(".journal") for path in found)
    assert {path: mode for path, mode in found.items() if mode not in (0o600, 0o700)} == {}
    assert all((mode == 0o700) == (tmp_path / path).is_dir() for path, mode in found.items())


def test_an_existing_folder(tmp_path: Path) -> None:
    """A folder that exists keeps its mode, because a team may share it; what is made in it is the owner's alone."""
    (tmp_path / ".gradmedic").mkdir()
    (tmp_path / ".gradmedic").chmod(0o775)
    found = train(tmp_path, 0)
    assert found.pop(".gradmedic") == 0o775
    assert set(found.values()) == {0o600, 0o700}
