"""The folders of a worker's trials."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.trial_report import TrialReport
from gradmedic_worker.executors.trial_folder import LONGEST_REPORT, create_worker_folder, get_report_path, read_report


def test_a_worker_has_a_private_folder(tmp_path: Path) -> None:
    """Each worker has one folder, which its user alone can read. Folders of killed workers are removed."""
    old_folder = tmp_path / f"gradmedic-worker-{os.getuid()}" / str(2**22 + 1)  # larger than any process id
    old_folder.mkdir(parents=True, mode=0o700)
    (old_folder / "trial").touch()
    folder = create_worker_folder(tmp_path)
    assert create_worker_folder(tmp_path) == folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert not old_folder.exists()


@pytest.mark.parametrize("how", ["open", "link", "file"])
def test_a_folder_of_another_user_is_refused(tmp_path: Path, how: str) -> None:
    """A folder to which other users may write is refused: they may have prepared files there."""
    user_folder = tmp_path / f"gradmedic-worker-{os.getuid()}"
    if how == "open":
        user_folder.mkdir()
        user_folder.chmod(0o777)
    elif how == "link":
        (tmp_path / "target").mkdir()
        user_folder.symlink_to(tmp_path / "target")
    else:
        user_folder.touch()
    with pytest.raises(ConfigurationError, match="is not a folder that this user alone may write to"):
        create_worker_folder(tmp_path)


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
def test_a_report_is_read_as_the_script_wrote_it(tmp_path: Path, content: str | None, expected: TrialReport) -> None:
    """Unknown fields are ignored; a file that holds no report is read as an empty report."""
    if content is not None:
        get_report_path(tmp_path).parent.mkdir()
        get_report_path(tmp_path).write_text(content)
    assert read_report(tmp_path) == expected


@pytest.mark.parametrize("kind", ["link", "second name", "pipe", "folder", "endless"])
def test_nothing_but_a_report_is_read_in_its_place(tmp_path: Path, kind: str) -> None:
    """The worker reads no other file through a script's report, and does not wait for a pipe or read without end."""
    path = get_report_path(tmp_path)
    path.parent.mkdir()
    other = tmp_path / "other"
    other.write_text('{"watched": true}')
    if kind == "link":
        path.symlink_to(other)
    elif kind == "second name":
        path.hardlink_to(other)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_text('{"watched": true, "environment": {"python": "' + LONGEST_REPORT * "9" + '"}}')
    assert read_report(tmp_path) == TrialReport()
