"""`gradmedic projects`, `delete`, `completion` and `export` of tables, and the progress of long work."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow.parquet
import pytest
from tests.client.runs import explode

import gradmedic
from gradmedic.cli.main import main
from gradmedic.cli.progress import LINE_SECONDS, Progress
from gradmedic.cli.rerun import count_steps
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.reruns import Candidate, RerunBudget, RerunDetail, RerunPlan, Trial


@pytest.fixture(scope="module")
def run(service_url: str) -> gradmedic.Run:
    """A run of 152 steps that exploded to NaN; its last step has a metric and a new layer."""
    run = gradmedic.init(f"commands-{uuid4()}", name=f"exploding-{uuid4()}", base_url=service_url, silent=True)
    explode(run, 150)
    run.log(math.nan, gradients={"w": np.array([math.nan])})
    run.log(5.0, gradients={"w": np.ones(1), "late": np.ones(4)}, accuracy=0.25)
    run.finish()
    return run


@pytest.fixture(autouse=True)
def in_a_folder(service_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The commands find the service by the environment, and write to a folder of the test."""
    monkeypatch.setenv("GRADMEDIC_BASE_URL", service_url)
    monkeypatch.chdir(tmp_path)


def test_the_steps_of_a_run_are_exported_as_tables(
    run: gradmedic.Run, client: gradmedic.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """CSV, Parquet and JSON Lines have every step, and the numbers of the service: NaN, and what is absent."""
    blocks = list(client.runs.blocks(run.id))
    losses = np.concatenate([block.series["loss"].values for block in blocks])
    norms = np.concatenate([block.statistics["grad_norm"][:, 0] for block in blocks])
    assert np.isnan(norms).any()

    assert main(["export", str(run.id), "-o", "run.csv"]) == 0
    assert capsys.readouterr().out.startswith("run.csv: 152 steps, ")
    rows = list(csv.DictReader(io.StringIO(Path("run.csv").read_text())))
    assert [int(row["step"]) for row in rows] == list(range(152))
    np.testing.assert_array_equal([float(row["loss"]) for row in rows], losses)
    np.testing.assert_array_equal(np.array([row["grad_norm/w"] for row in rows], np.float32), norms)
    assert [row["accuracy"] for row in rows[-2:]] == ["", "0.25"]
    assert (rows[-2]["grad_norm/late"], float(rows[-1]["grad_norm/late"])) == ("", 2.0)
    assert "NaN" in {row["grad_norm/w"] for row in rows}

    assert main(["export", str(run.id), "--format", "parquet", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["file"], written["steps"]) == ("run.parquet", 152)
    table = pyarrow.parquet.read_table("run.parquet")
    assert table.column_names == list(rows[0])
    np.testing.assert_array_equal(table["grad_norm/w"].to_numpy(), norms)
    assert table["accuracy"].null_count == 151

    assert main(["export", str(run.id), "-o", "run.jsonl"]) == 0
    steps = [json.loads(line) for line in Path("run.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(152))
    last = steps[-1]
    assert (last["loss"], last["metrics"]) == (5.0, {"accuracy": 0.25})
    assert last["statistics"]["grad_norm"] == {"w": 1.0, "late": 2.0}
    assert steps[-2]["statistics"]["grad_norm"] == {"w": "NaN"}
    assert {path.name for path in Path().iterdir()} == {"run.csv", "run.parquet", "run.jsonl"}


def test_a_run_is_exported_with_its_diagnosis(
    run: gradmedic.Run, client: gradmedic.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--format json` has the run, the diagnosis as the service answers it, its history and the reruns."""
    assert main(["export", str(run.id)[-8:], "--format", "json"]) == 0
    content = json.loads(Path("run.json").read_text())
    assert content["run"]["id"] == str(run.id)
    assert content["diagnosis"] == json.loads(to_json(client.runs.diagnosis(run.id)))
    assert [change["verdict"] for change in content["history"]][-1] == content["diagnosis"]["verdict"]
    assert (content["reruns"], content["guard_actions"]) == ([], [])
    capsys.readouterr()
    for arguments, message in (
        (["-o", "run.json"], "run.json exists already"),
        (["--format", "csv", "--metric", "loss"], "--metric belongs to --recording"),
        (["--format", "csv", "--recording"], "give either --format or --recording"),
        (["--format", "csv", "-o", "-", "--json"], "--json needs a file"),
        (["--recording", "-o", "-"], "a recording needs a file"),
        (["--format", "csv", "-o", "none/run.csv"], "none/run.csv cannot be written: No such file"),
    ):
        assert main(["export", str(run.id), *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_table_is_printed(run: gradmedic.Run, service_url: str) -> None:
    """`-o -` prints the table alone, for another program to read."""
    command = [sys.executable, "-m", "gradmedic", "export", str(run.id), "--format", "csv", "-o", "-"]
    done = subprocess.run([*command, "--base-url", service_url], capture_output=True, text=True, check=True)
    assert len(list(csv.reader(io.StringIO(done.stdout)))) == 153
    assert done.stderr == ""


def test_projects_are_listed(run: gradmedic.Run, capsys: pytest.CaptureFixture[str]) -> None:
    """`projects` prints a table; `projects --json` prints one JSON object per line."""
    assert main(["projects"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "RERUNS", "MUTED", "DETECTORS", "CREATED"]
    assert any(row.startswith(run.project) for row in rows)
    assert main(["projects", "--json"]) == 0
    names = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert run.project in names
    assert main(["runs", "--project", f"{run.project}x"]) == 0
    assert (
        capsys.readouterr().err == f"gradmedic: there is no project '{run.project}x'; did you mean '{run.project}'?\n"
    )


def test_runs_are_deleted_after_a_question(
    service_url: str, client: gradmedic.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a yes nothing is deleted, and without a terminal `--yes` is needed; the code is 2 then."""
    project = f"delete-{uuid4()}"
    names = ("first", "second", "third")
    for name in names:
        with gradmedic.init(project, name=name, base_url=service_url, silent=True):
            pass
    assert main(["delete", "first", "--project", project]) == 2
    assert "give --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, code, left in (("", 2, 3), ("n", 2, 3), ("y", 0, 1)):
        asked: list[str] = []
        monkeypatch.setattr("builtins.input", partial(reply, asked, answer))
        assert main(["delete", "first", "second", "--project", project]) == code
        assert asked == ["Delete these 2 runs with all steps and reruns? [y/N] "]
        assert len(list(client.runs.list(project=project))) == left
    capsys.readouterr()
    missing = str(uuid4())
    assert main(["delete", missing, "--yes"]) == 2
    assert f"There is no run {missing}" in capsys.readouterr().err
    assert main(["delete", "third", "--project", project, "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_deleted"] is True
    assert list(client.runs.list(project=project)) == []


def reply(asked: list[str], answer: str, question: str) -> str:
    """Answer a question, and note it."""
    asked.append(question)
    return answer


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The script has the commands of all installed extras, and their options and choices."""
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("diagnose", "rediagnose", "fail-on", "api-key", "vanishing"):
        assert word in script


def test_without_its_extra_completion_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error of `completion` has the command that installs what it needs."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'gradmedic[completion]'" in capsys.readouterr().err


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_file() -> None:
    """Both show what is done and the time that is left; a file gets a line now and then; with no stream nothing."""
    for stream, expected in (
        (Terminal(), "\r\x1b[Ksending [######..................] 250 of 1,000 steps, 1 min 0 s left\r\x1b[Kdone\n"),
        (io.StringIO(), "sending: 250 of 1,000 steps, 1 min 0 s left\ndone\n"),
        (None, ""),
    ):
        times = iter((0.0, 0.0, 2 * LINE_SECONDS, 2 * LINE_SECONDS))
        with Progress("sending", 1000, "steps", stream, clock=partial(next, times)) as progress:
            for done in (1, 250, 251):
                progress.update(done)
            progress.print_line("done")
        assert ("" if stream is None else stream.getvalue()) == expected


def test_the_steps_of_a_rerun_are_counted() -> None:
    """A trial that has ended needs no further steps; without a budget of steps, their number is not known."""
    trials = [make_trial("done", 79), make_trial("stopped", 20), make_trial("running", 9), make_trial("queued", None)]
    assert count_steps(make_rerun(trials, 100)) == (80 + 21 + 10, 80 + 21 + 100 + 100)
    assert count_steps(make_rerun(trials, None)) == (111, None)
    plan = RerunPlan(
        candidates=1, trials=6, steps=300, step_seconds=None, seconds_left=None, budget=RerunBudget(steps=100)
    )
    planned = replace(make_rerun(trials, 100), plan=plan)
    assert count_steps(planned) == (111, 80 + 21 + 100 + 100 + 2 * 300)


def make_trial(status: str, step: int | None) -> Trial:
    """Return a trial in a state."""
    return Trial(
        id=uuid4(), candidate=0, seed=0, status=status, reason=None, verdict="healthy", step=step, start_loss=None,
        loss=None, seconds=0.0, attempts=[], lease_expires_at=None,
    )  # fmt: skip


def make_rerun(trials: list[Trial], steps: int | None) -> RerunDetail:
    """Return a rerun with trials and a budget of steps."""
    return RerunDetail(
        id=uuid4(), run_id=uuid4(), project="p", trainable="t", status="running", reason=None, is_automatic=False,
        created_at=datetime.now(UTC), started_at=None, ended_at=None, budget=RerunBudget(steps=steps), seeds=[0],
        executor=None, parameters={}, candidates=[Candidate(remedies=[], outcome=None, reason=None)], trials=trials,
        cost_seconds=0.0,
    )  # fmt: skip
