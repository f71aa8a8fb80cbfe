"""The folders of trials."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gradmedic.exceptions import ConfigurationError
from gradmedic_worker.environment import make_root


def test_a_worker_has_a_folder_that_nobody_else_reads(tmp_path: Path) -> None:
    """It is the user's alone, is there once for each worker, and those of workers that were killed are removed."""
    left = tmp_path / f"gradmedic-worker-{os.getuid()}" / str(2**22 + 1)  # beyond any process id
    left.mkdir(parents=True, mode=0o700)
    (left / "trial").touch()
    root = make_root(tmp_path)
    assert make_root(tmp_path) == root
    assert root.stat().st_mode & 0o777 == 0o700
    assert not left.exists()


@pytest.mark.parametrize("how", ["open", "link", "file"])
def test_a_folder_that_others_prepared_is_refused(tmp_path: Path, how: str) -> None:
    """Where everybody may write, somebody may have been there first."""
    home = tmp_path / f"gradmedic-worker-{os.getuid()}"
    if how == "open":
        home.mkdir()
        home.chmod(0o777)
    elif how == "link":
        (tmp_path / "theirs").mkdir()
        home.symlink_to(tmp_path / "theirs")
    else:
        home.touch()
    with pytest.raises(ConfigurationError, match="is not a folder that this user alone may write to"):
        make_root(tmp_path)
