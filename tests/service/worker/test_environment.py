"""The folders of trials."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.trials import TrialReport
from gradmedic_worker.environment import make_root, read_report, report_of


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


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, TrialReport()),
        ("", TrialReport()),
        ("[]", TrialReport()),
        ('{"applied": "many"}', TrialReport()),
        ('{"watched": true, "applied": 2, "from": "a later version"}', TrialReport(watched=True, applied=2)),
        (json.dumps(TrialReport(ended="its 5 steps are done").to_fields()), TrialReport(ended="its 5 steps are done")),
    ],
    ids=["missing", "empty", "no object", "wrong type", "unknown field", "written by the SDK"],
)
def test_a_report_is_read_as_it_was_written(tmp_path: Path, content: str | None, expected: TrialReport) -> None:
    """Unknown fields are ignored; a file that is no report is read as an empty one."""
    if content is not None:
        report_of(tmp_path).write_text(content)
    assert read_report(tmp_path) == expected
