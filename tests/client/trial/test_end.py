"""The end of a trial: its script waits until the service has every step, and reports its last one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.client.trial.conftest import BeginTrial
from tests.support.faulty_proxy import Fault, FaultyProxy
from tests.support.patience import PATIENCE
from tests.support.workers import WaitUntil

import gradmedic

STEPS = 60
AWAY = Fault(path="/steps")
"""The service does not take a block."""
ENDINGS = {"": 0, "run.finish(timeout=0.1)": 0, "sys.exit(0)": 0, "sys.exit(3)": 3, "raise RuntimeError": 1}
"""The last line of a script, and its exit code."""


def start_script(ending: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a script that logs `STEPS` steps as a trial, and then does something."""
    script = f"""
        import os, signal, sys
        import gradmedic
        run = gradmedic.init(dir="elsewhere", flush_interval=3600.0)
        for step in range({STEPS}):
            run.log(float(step))
        {ending}
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script), *arguments], text=True)


@pytest.mark.parametrize(("ending", "exit_code"), ENDINGS.items())
def test_a_trial_waits_for_a_service_that_is_away(
    begin_trial: BeginTrial, proxy: FaultyProxy, client: gradmedic.Client, ending: str, exit_code: int
) -> None:
    """The service has all steps of a script, for each way in which it ends, and for each timeout."""
    trial = begin_trial(proxy.url)
    proxy.fail(*[AWAY] * 3)
    assert start_script(ending).wait(PATIENCE) == exit_code
    assert sum(request.status == AWAY.status for request in proxy.requests) == 3
    run = client.runs.get(trial.run_id)
    assert (run.last_step, run.status) == (STEPS - 1, "failed" if exit_code else "finished")
    assert json.loads(trial.report.read_text())["last_step"] == STEPS - 1
    assert not (trial.unsent / trial.run_id).exists()


def test_a_trial_reports_the_last_step_within_its_budget(begin_trial: BeginTrial, service_url: str) -> None:
    """The service takes no step beyond the budget, so the script does not report one."""
    trial = begin_trial(service_url, steps=25)
    run = gradmedic.init()
    assert json.loads(trial.report.read_text())["last_step"] == -1
    for step in (0, 10, 20):
        run.log(float(step), step=step)
    with pytest.raises(gradmedic.TrialEnded):
        run.log(30.0, step=30)
    assert json.loads(trial.report.read_text())["last_step"] == 20


def test_a_rewind_goes_back_in_the_report(begin_trial: BeginTrial, service_url: str) -> None:
    """The last step that a script reports is the one that the service has after a rewind."""
    trial = begin_trial(service_url)
    run = gradmedic.init()
    for step in range(5):
        run.log(float(step))
    run.rewind(1)
    assert run.finish()
    assert json.loads(trial.report.read_text())["last_step"] == 1


def test_steps_of_a_killed_trial_are_on_disk(
    begin_trial: BeginTrial, proxy: FaultyProxy, client: gradmedic.Client, wait_until: WaitUntil, tmp_path: Path
) -> None:
    """A script that is killed while it waits has reported its last step, and `gradmedic sync --wait` sends them all."""
    trial = begin_trial(proxy.url, steps=STEPS)
    proxy.permanent = AWAY
    script = start_script("")
    wait_until(lambda: any(request.status == AWAY.status for request in proxy.requests))
    journal = trial.unsent / trial.run_id
    wait_until(lambda: any(b"finished" in path.read_bytes() for path in journal.glob("*/*.journal")))
    assert json.loads(trial.report.read_text())["last_step"] == STEPS - 1
    os.kill(script.pid, signal.SIGKILL)
    assert script.wait(PATIENCE) == -signal.SIGKILL
    assert client.runs.get(trial.run_id).last_step is None
    failed = len(proxy.requests)
    command = [sys.executable, "-I", "-m", "gradmedic", "sync", str(trial.unsent), f"--wait={PATIENCE}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sync:
        proxy.wait_for(lambda requests: len(requests) > failed + 8, PATIENCE)  # more than without --wait
        proxy.permanent = None
        printed, _ = sync.communicate(timeout=PATIENCE)
    assert sync.returncode == 0
    assert "steps sent" in printed
    assert client.runs.get(trial.run_id).last_step == STEPS - 1
    assert not (tmp_path / "elsewhere").exists()
