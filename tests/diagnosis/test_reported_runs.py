"""Runs whose verdict was reviewed by a user: a wrong verdict that was mended stays mended, a right one stays right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gradmedic.protocol.recordings import RecordedReview, RecordingReader, RecordingWriter
from gradmedic_diagnosis.replay import replay

FOLDER = Path(__file__).parent / "recordings"
NOT_MENDED: dict[str, str] = {}
"""Recordings whose verdict is still wrong, by file name without suffix, with the reason. Remove a line once the test
reports that its recording passes."""
LARGEST_FILE = 200_000
"""Bytes of a file: recordings are in the repository."""


def find_mistakes(path: Path) -> list[str]:
    """Replay a recording up to the step that was reviewed; return how the diagnosis differs from the review."""
    with RecordingReader(path) as reader:
        review = reader.header.review
    if review is None:
        return ["the recording has no review"]
    diagnosis = replay(path, review.step).diagnosis
    given = {"verdict": diagnosis.verdict, "level": diagnosis.level}
    judged = {"verdict": review.judged_verdict, "level": review.judged_level}
    if review.answer == "right":
        true = judged
    else:
        true = {
            name: value for name, value in (("verdict", review.verdict), ("level", review.level)) if value is not None
        }
        if not true and given == judged:
            return [f"{given} is wrong"]
    return [f"{name} is {given[name]}, not {value}" for name, value in true.items() if given[name] != value]


def list_recordings() -> list[object]:
    """Return the recordings as parameters; one that is not mended must fail."""
    return [
        pytest.param(
            path,
            id=path.stem,
            marks=[pytest.mark.xfail(strict=True, reason=NOT_MENDED[path.stem])] if path.stem in NOT_MENDED else [],
        )
        for path in sorted(FOLDER.glob("*.gradmedic"))
    ]


@pytest.mark.parametrize("path", list_recordings())
def test_a_reported_run_has_its_true_verdict(path: Path) -> None:
    """The replay of a reported run gives what the review names as true."""
    assert find_mistakes(path) == []
    assert path.stat().st_size <= LARGEST_FILE


def test_every_recording_that_is_not_mended_exists() -> None:
    """`NOT_MENDED` names files of the folder, and the folder has at least one file."""
    names = {path.stem for path in FOLDER.glob("*.gradmedic")}
    assert names
    assert names >= NOT_MENDED.keys()


@pytest.mark.parametrize(
    ("review", "mistakes"),
    [
        ({"answer": "wrong", "verdict": "healthy", "level": "attention"}, []),
        ({"answer": "wrong", "verdict": "vanishing", "level": None}, ["verdict is healthy, not vanishing"]),
        ({"answer": "wrong", "verdict": None, "level": "ok"}, ["level is attention, not ok"]),
        ({"answer": "wrong", "verdict": None, "level": None}, []),
        ({"answer": "right", "verdict": None, "level": None}, ["level is attention, not ok"]),
        ({"answer": "right", "verdict": None, "level": None, "step": 150}, []),
        (None, ["the recording has no review"]),
    ],
)
def test_mistakes_are_found(review: dict[str, object] | None, mistakes: list[str], tmp_path: Path) -> None:
    """A truth that the replay does not give is a mistake; one that it gives, at the reviewed step, is none."""
    path = tmp_path / "changed.gradmedic"
    with RecordingReader(FOLDER / "spike-then-worse.gradmedic") as reader, path.open("wb") as file:
        header, stored = reader.header, reader.header.review
        assert isinstance(stored, RecordedReview)
        changed = None if review is None else replace(stored, **review)  # type: ignore[arg-type]
        writer = RecordingWriter(file, replace(header, review=changed))
        for block in reader.read_blocks():
            writer.add(block)
        writer.close()
    assert find_mistakes(path) == mistakes
