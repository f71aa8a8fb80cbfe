"""A script that runs as a trial of the kind `locate`: it reports the origin to its worker, and ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import gradmedic
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.ids import new_id
from gradmedic.trial import TrialInstructions

FAULTY = 5


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, service_url: str) -> Iterator[Path]:
    """Make this process a trial that checks from step 4 on, and return the path of its report."""
    path = tmp_path / "report.json"
    variables = {
        "GRADMEDIC_BASE_URL": service_url,
        "GRADMEDIC_RUN_ID": str(new_id()),
        "GRADMEDIC_PROJECT": "trials",
        "GRADMEDIC_SEED": "7",
        "GRADMEDIC_REPORT": str(path),
        "GRADMEDIC_TRIAL": to_json(TrialInstructions(steps=10, locate_from=FAULTY - 1)).decode(),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    yield path
    for run in list(gradmedic.open_runs.open_runs):
        run.finish()


def train(run: gradmedic.Run, *, faulty: int = FAULTY, interval: int = 1, raises: bool = False) -> None:
    """Train until the trial ends; the loss outside of the model fails at one step."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run.watch(model, optimizer)
    for step in range(20):
        optimizer.zero_grad()
        distance = model(torch.ones(2, 4)).square()
        distance = -distance if step == faulty else distance
        loss = distance.sqrt().mean()
        if raises and not torch.isfinite(loss):
            raise ArithmeticError("the loss is not finite")
        loss.backward()
        optimizer.step()
        run.log(loss=loss.item(), step=step * interval)


def test_the_origin_is_reported_and_the_script_ends(report: Path, client: gradmedic.Client) -> None:
    """The step that fails is the last one, and the service has it; the report has the origin."""
    run = gradmedic.init()
    with pytest.raises(gradmedic.TrialEnded, match="a number was not finite") as raised:
        train(run)
    assert raised.value.code == 0
    content = json.loads(report.read_text())
    assert (content["ended"], content["last_step"]) == ("a number was not finite", FAULTY)
    origin = content["origin"]
    assert (origin["operation"], origin["step"], origin["source"]["text"]) == (
        "sqrt", FAULTY, "loss = distance.sqrt().mean()",
    )  # fmt: skip
    assert client.runs.get(run.id).last_step == FAULTY


def test_the_number_of_the_step_is_that_of_the_script(report: Path) -> None:
    """A script that numbers its steps by twos has the origin at its own number."""
    run = gradmedic.init()
    with pytest.raises(gradmedic.TrialEnded):
        train(run, faulty=3, interval=2)
    origin = json.loads(report.read_text())["origin"]
    assert (origin["operation"], origin["step"]) == ("sqrt", 6)
    assert "at step 6 in `sqrt`" in origin["text"]


def test_a_script_that_ends_itself_is_located(report: Path) -> None:
    """The script raises an error before it logs the loss; the report has the origin all the same."""
    run = gradmedic.init()
    with pytest.raises(ArithmeticError), run:
        train(run, raises=True)
    content = json.loads(report.read_text())
    assert (content["origin"]["operation"], content["origin"]["step"]) == ("sqrt", FAULTY)
    assert (content.get("ended"), content["last_step"]) == (None, FAULTY - 1)


def test_a_trial_that_stays_finite_reports_no_origin(report: Path) -> None:
    """It ends at its budget."""
    run = gradmedic.init()
    with pytest.raises(gradmedic.TrialEnded, match="its 10 steps are done"):
        train(run, faulty=-1)
    assert "origin" not in json.loads(report.read_text())


def test_several_processes_are_not_applicable(report: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial ends at `watch()`, and the report has the reason."""
    monkeypatch.setattr("gradmedic.torch.origin.locator.get_group_size", lambda: 2)
    run = gradmedic.init()
    with pytest.raises(gradmedic.TrialEnded, match="all processes would have to"):
        train(run)
    assert "a training of several processes" in json.loads(report.read_text())["not_applicable"]
