"""The events in a job's log: the worker reads what the node has written, and the log stays short."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gradmedic.protocol.trial_report import TrialReport
from gradmedic_worker.executors.base import LostAttempt, TrialEnd
from gradmedic_worker.executors.ray_log import EVENT_PREFIX, LIVE_OUTPUT_CHARACTERS, LogWriter, read_log

OTHER_LINE = "2026-11-22 06:01:54 INFO job_manager.py:581 -- Runtime env is setting up."


@given(st.lists(st.text(max_size=40), max_size=6), st.text(max_size=20))
def test_the_worker_reads_the_latest_output(outputs: list[str], last_output: str) -> None:
    """The latest output and the end are read exactly, whatever characters the output has and however it changes."""
    lines = [OTHER_LINE]
    writer = LogWriter(lines.append)
    for output in outputs:
        writer.write_output(output)
        lines.append(OTHER_LINE)
        assert read_log("\n".join(lines)).output == output
    end = TrialEnd(exit_code=-9, reason="stopped", report=TrialReport(applied=3, environment={"device": "cpu"}))
    writer.write_end(end, last_output)
    state = read_log("\n".join(lines) + "\n")
    assert (state.output, state.end) == (last_output, end)
    assert set(state.other_lines) == {OTHER_LINE}


def test_the_log_of_endless_output_is_short() -> None:
    """Beyond a bound no output is written until the end, when the kept output is written once."""
    lines: list[str] = []
    writer = LogWriter(lines.append)
    for number in range(1000):
        writer.write_output(f"{number}" * 5000)
    assert sum(map(len, lines)) < 2 * LIVE_OUTPUT_CHARACTERS
    writer.write_end(TrialEnd(exit_code=0), "the last words")
    assert read_log("\n".join(lines)).output == "the last words"


def test_lines_that_are_no_events_change_nothing() -> None:
    """An incomplete line and an unknown event are ignored, and other lines are kept apart."""
    log = (
        f'{EVENT_PREFIX}{{"output": [0, "so far"]}}\n{EVENT_PREFIX}{{"output": [0, "cut\n'
        f'{EVENT_PREFIX}[]\n{EVENT_PREFIX}{{"ended": 3}}\nSegfault\n'
    )
    state = read_log(log)
    assert (state.output, state.end, state.other_lines) == ("so far", None, ["Segfault"])
    assert read_log(f'{EVENT_PREFIX}{{"lost": "no lease"}}').end == LostAttempt("no lease")
