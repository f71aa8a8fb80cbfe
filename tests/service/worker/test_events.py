"""What a process on a Ray node tells: it arrives as it was, among whatever else a log holds, and stays short."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmedic.exceptions import ConfigurationError
from gradmedic.protocol.trials import TrialReport
from gradmedic_worker.events import LIVE_CHARACTERS, MARK, LogWriter, read_events
from gradmedic_worker.executors.base import Lost, TrialEnd
from gradmedic_worker.tickets import read_token, ticket_of

NOISE = "2026-11-22 06:01:54 INFO job_manager.py:581 -- Runtime env is setting up."


@given(st.lists(st.text(max_size=40), max_size=6), st.text(max_size=20))
def test_output_arrives_as_it_was(texts: list[str], last: str) -> None:
    """Whatever a trial prints in which pieces, marks and ends of lines included, its latest state is read."""
    lines = [NOISE]
    teller = LogWriter(lines.append)
    for text in texts:
        teller.output(text)
        lines.append(NOISE)
        assert read_events("\n".join(lines)).output == text
    end = TrialEnd(exit_code=-9, reason="stopped", report=TrialReport(applied=3, environment={"device": "cpu"}))
    teller.end(end, last)
    told = read_events("\n".join(lines) + "\n")
    assert (told.output, told.end) == (last, end)
    assert set(told.others) == {NOISE}


def test_a_trial_that_prints_without_end_makes_a_short_log() -> None:
    """Beyond a bound nothing is told until the end, which is told as a whole."""
    lines: list[str] = []
    teller = LogWriter(lines.append)
    for number in range(1000):
        teller.output(f"{number}" * 5000)
    assert sum(map(len, lines)) < 2 * LIVE_CHARACTERS
    teller.end(TrialEnd(exit_code=0), "the last words")
    assert read_events("\n".join(lines)).output == "the last words"


def test_what_is_no_event_is_kept_apart() -> None:
    """A line that is cut short, or says something else, changes nothing."""
    log = f'{MARK}{{"output": [0, "so far"]}}\n{MARK}{{"output": [0, "cut\n{MARK}[]\n{MARK}{{"ended": 3}}\nSegfault\n'
    told = read_events(log)
    assert (told.output, told.end, told.others) == ("so far", None, ["Segfault"])
    assert read_events(f'{MARK}{{"lost": "nobody waits"}}').end == Lost("nobody waits")


def test_tickets_differ_in_every_attempt_and_token() -> None:
    """A ticket says nothing of another attempt's, nor of the token."""
    tickets = {ticket_of(token, name) for token in ("a" * 32, "b" * 32) for name in ("x-1", "x-2", "y-1")}
    assert len(tickets) == 6
    assert all(len(ticket) == 53 for ticket in tickets)


def test_the_token_is_found_where_ray_finds_it(tmp_path: Path) -> None:
    """A file that is named comes first, then the variables in Ray's order, then the file in the home folder."""
    home = tmp_path
    places = {name: home / name for name in ("named", "path")}
    for name, place in places.items():
        place.write_text(f"token of the {name} file\n")
    hidden = home / ".ray"
    hidden.mkdir()
    (hidden / "auth_token").write_text("token of the home folder")
    environment = {
        "HOME": str(home),
        "RAY_AUTH_TOKEN_PATH": str(places["path"]),
        "RAY_AUTH_TOKEN": "token of a variable",
    }
    assert read_token(environment, places["named"]) == "token of the named file"
    assert read_token(environment) == "token of a variable"
    del environment["RAY_AUTH_TOKEN"]
    assert read_token(environment) == "token of the path file"
    del environment["RAY_AUTH_TOKEN_PATH"]
    assert read_token(environment) == "token of the home folder"
    (hidden / "auth_token").write_text("short")
    with pytest.raises(ConfigurationError, match="has 5 characters"):
        read_token(environment)
