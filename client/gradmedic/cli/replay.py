"""Replays recordings by the diagnosis package, which joins through an entry point; the client does not import it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gradmedic.exceptions import ConfigurationError, UsageError
from gradmedic.protocol.diagnosis import VerdictChange
from gradmedic.protocol.encoding import to_plain

if TYPE_CHECKING:
    from gradmedic.protocol.recordings import Replay

REPLAY_GROUP = "gradmedic.replay"
"""Entry-point group of the function that replays a recording."""
RECORDING_SUFFIX = ".gradmedic"


def is_path(text: str) -> bool:
    """Whether an argument is the path of a recording: it has the suffix, or is a file that begins like one.

    A file of another kind may have the name of a run.
    """
    if text.endswith(RECORDING_SUFFIX):
        return True
    try:
        with Path(text).open("rb") as file:
            from gradmedic.protocol.recordings import MAGIC  # here, because it needs numpy; the name of a run does not

            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):  # no file, or no name of a file
        return False


def replay_recording(path: Path, at_step: int | None) -> Replay:
    """Return the diagnosis of a recording.

    Raises:
        ConfigurationError: the diagnosis package is not installed.
        UsageError: the file is no recording or is damaged.
    """
    import importlib.metadata  # here, because it takes longer than the rest of the command

    try:
        (entry_point,) = importlib.metadata.entry_points(group=REPLAY_GROUP)
        function = entry_point.load()
    except (ValueError, ModuleNotFoundError) as error:
        message = "gradmedic diagnose FILE needs the diagnosis, which comes with the service extra"
        raise ConfigurationError(f"{message}: pip install 'gradmedic[service]'") from error
    from gradmedic.protocol.recordings import RecordingError

    try:
        replay: Replay = function(path, at_step)
    except RecordingError as error:
        raise UsageError(str(error)) from error
    return replay


def replay_to_json(replay: Replay) -> bytes:
    """Return the diagnosis of a recording, its history, and what the service and the review gave, as JSON."""
    recorded = {"verdict": replay.header.verdict, "history": replay.header.history, "review": replay.header.review}
    content = {**to_plain(replay.diagnosis), "history": replay.history, "recorded": recorded}
    return msgspec.json.encode(to_plain(content))


def render_outcome_of_replay(replay: Replay) -> list[str]:
    """Return the lines on the history, and on what the service and the review gave when the run was exported."""
    recorded, review = replay.header.verdict, replay.header.review
    lines = ["History", *(f"  {_describe_change(change)}" for change in replay.history), ""]
    step = "" if recorded.step is None else f", as of step {recorded.step}"
    lines.append(f"when exported: {recorded.verdict}, level {recorded.level}; the loss: {recorded.learning}{step}")
    if review is not None:
        step = "" if review.step is None else f" at step {review.step}"
        lines.append(f"review: {review.judged_verdict} (level {review.judged_level}){step} is {review.answer}")
        truth = [f"verdict {review.verdict}"] if review.verdict else []
        truth += [f"level {review.level}"] if review.level else []
        if truth:
            lines.append(f"true by the review: {', '.join(truth)}")
    return lines


def _describe_change(change: VerdictChange) -> str:
    finding = f" ({change.finding})" if change.finding else ""
    return f"step {change.step}: {change.verdict}, level {change.level}; the loss: {change.learning}{finding}"
