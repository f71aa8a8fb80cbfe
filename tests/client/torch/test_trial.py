"""A script that runs as a trial: it is seeded, gets remedies, and ends at its budget."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradmedic
from gradmedic.protocol.encoding import to_json
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.remedies import Remedy
from gradmedic.torch.remedies.modules.parameters import make_generator
from gradmedic.trial import TrialInstructions, describe_environment

CLIP = Remedy(id="clip_grad_norm", parameters={"max_norm": 0.01})


@pytest.fixture
def as_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, service_url: str) -> Any:
    """Return a function that makes this process a trial and returns the path of its report and its run's id."""

    def begin(*remedies: Remedy, **order: Any) -> tuple[Path, str]:
        run_id, report = str(new_id()), tmp_path / "report.json"
        variables = {
            "GRADMEDIC_BASE_URL": service_url,
            "GRADMEDIC_RUN_ID": run_id,
            "GRADMEDIC_PROJECT": "trials",
            "GRADMEDIC_SEED": "7",
            "GRADMEDIC_REPORT": str(report),
            "GRADMEDIC_TRIAL": to_json(TrialInstructions(remedies=list(remedies), **order)).decode(),
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return report, run_id

    return begin


def train(run: gradmedic.Run, steps: int) -> list[float]:
    """Train a little and return the norms of the updates."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    run.watch(model, optimizer)
    moved = []
    for _ in range(steps):
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        loss = (100 * model(torch.ones(2, 4))).square().mean()
        loss.backward()
        optimizer.step()
        moved.append(float((model.weight.detach() - before).norm()))
        run.log(loss=loss)
    return moved


def test_the_worker_decides_project_and_id(as_trial: Any, client: gradmedic.Client) -> None:
    """A trial has the worker's project and id, not those of the script."""
    _, run_id = as_trial(parameters={"lr": 0.5, "model.depth": 3})
    run = gradmedic.init(project="mine", name="mine", id=new_id(), mode="disabled", config={"lr": 1, "seed": 2})
    assert run.is_trial
    assert (str(run.id), run.project) == (run_id, "trials")
    assert run.config == {"lr": 0.5, "seed": 2, "model": {"depth": 3}}
    run.log(loss=1.0)
    assert run.finish()
    assert client.runs.get(run_id).project == "trials"


def test_generators_are_seeded(as_trial: Any) -> None:
    """init() seeds every random generator of a trial."""
    as_trial()
    drawn = []
    for _ in range(2):
        gradmedic.init().finish()
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
        random.random()
    torch.manual_seed(7)
    assert drawn[0] == drawn[1]
    assert drawn[0] == (random.Random(7).random(), np.random.RandomState(7).rand(), torch.rand(1).item())


def test_a_seed_works_without_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `GRADMEDIC_SEED` alone a run is seeded and is no trial; without it no generator changes."""
    before = torch.get_rng_state()
    gradmedic.init(mode="disabled")
    assert torch.equal(before, torch.get_rng_state())
    monkeypatch.setenv("GRADMEDIC_SEED", "7")
    assert not gradmedic.init(mode="disabled").is_trial
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))


def test_it_ends_at_its_budget(as_trial: Any, client: gradmedic.Client) -> None:
    """The log() that completes the steps ends the script with 0, and every step has arrived."""
    report, run_id = as_trial(steps=5)
    run = gradmedic.init()
    with pytest.raises(gradmedic.TrialEnded, match="its 5 steps are done") as raised:
        train(run, 10)
    assert raised.value.code == 0
    stored_run = client.runs.get(run_id)
    assert (stored_run.last_step, stored_run.status) == (4, "finished")
    assert json.loads(report.read_text())["ended"] == "its 5 steps are done"


def test_remedies_are_applied_and_reported(as_trial: Any, client: gradmedic.Client) -> None:
    """watch() applies the remedy, gradients are measured before it, and the report counts it."""
    report, run_id = as_trial(CLIP)
    run = gradmedic.init()
    moved = train(run, 3)
    assert run.finish()
    assert max(moved) < 0.0101
    report_content = json.loads(report.read_text())
    assert (report_content["applied"], report_content["environment"]) == (1, describe_environment() | {"device": "cpu"})
    assert (report_content["environment"]["torch"], report_content["environment"]["gradmedic"]) == (
        torch.__version__,
        gradmedic.__version__,
    )
    series = client.runs.steps(run_id, ["grad_norm", "update_norm"], layer="weight").series
    by_name = {each.statistic: each.max for each in series}
    assert min(value or 0 for value in by_name["grad_norm"]) > 1.0
    assert max(value or 0 for value in by_name["update_norm"]) < 0.0101


def test_another_optimizers_updates_are_measured(as_trial: Any, client: gradmedic.Client) -> None:
    """If another optimizer steps in place of the script's, updates and learning rates are those of the other one."""
    _, run_id = as_trial(Remedy(id="switch_optimizer", parameters={"optimizer": "Adam", "learning_rate": 0.01}))
    run = gradmedic.init()
    moved = train(run, 3)
    assert run.finish()
    answer = client.runs.steps(run_id, ["update_norm", "learning_rate"], layer="weight")
    by_name = {each.statistic: each.mean for each in answer.series}
    assert by_name["update_norm"] == pytest.approx(moved, rel=1e-3)
    assert by_name["learning_rate"] == pytest.approx([0.01] * 3)


def test_remedies_of_the_modules_are_seeded_by_the_trial(as_trial: Any, client: gradmedic.Client) -> None:
    """Weights are drawn from the trial's seed, and new parameters are layers of the run."""
    _, run_id = as_trial(
        Remedy(id="reinitialize", parameters={"scheme": "orthogonal"}), Remedy(id="weight_normalization")
    )
    run = gradmedic.init()
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run.watch(model, optimizer)
    drawn = torch.empty(3, 4)
    nn.init.orthogonal_(drawn, generator=make_generator(7, "0.weight"))
    assert torch.equal(model[0].weight, drawn)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
    assert run.finish()
    stored_run = client.runs.get(run_id)
    assert [layer.name for layer in stored_run.layers] == [
        "0.weight", "0.bias", "0.weight_gain", "2.weight", "2.bias", "2.weight_gain"
    ]  # fmt: skip
    assert (stored_run.last_step, stored_run.status) == (2, "finished")


@pytest.mark.parametrize(
    ("remedy", "reason"),
    [
        (Remedy(id="reduce_weight_decay", parameters={"factor": 0.1}), "decays no weights"),
        (Remedy(id="replace_recurrent_cell", parameters={"cell": "GRU"}), "no plain recurrent module"),
        (Remedy(id="add_residual"), "no hidden layer"),
        (Remedy(id="scale_loss"), "nothing is computed in float16"),
    ],
    ids=["condition", "at watch", "at the first call", "at the first step"],
)
def test_what_cannot_be_applied_ends_the_trial(as_trial: Any, remedy: Remedy, reason: str) -> None:
    """A remedy that cannot be applied ends the script at watch() or the first log(); the report has the reason."""
    report, _ = as_trial(remedy)
    with pytest.raises(gradmedic.TrialEnded, match=reason):
        train(gradmedic.init(), 3)
    assert reason in json.loads(report.read_text())["not_applicable"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("GRADMEDIC_SEED", "-1"), ("GRADMEDIC_SEED", "x"), ("GRADMEDIC_TRIAL", "{"), ("GRADMEDIC_RUN_ID", "1")],
)
def test_wrong_environment_variables_are_named(
    as_trial: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """A wrong environment variable is an error that names it."""
    as_trial()
    monkeypatch.setenv(variable, value)
    with pytest.raises(gradmedic.ConfigurationError, match=variable):
        gradmedic.init()
    assert os.environ[variable] == value


def test_a_model_that_is_watched_again_is_measured_before_its_remedies(as_trial: Any, client: gradmedic.Client) -> None:
    """A second watch() of the same optimizer measures gradients before the remedy changes them, as the first did."""
    _, run_id = as_trial(CLIP)
    run = gradmedic.init(log_freq=1)
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    norms = []
    for _ in range(3):
        run.watch(model, optimizer)
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        loss = (100 * model(torch.ones(2, 4))).square().mean()
        loss.backward()
        assert model.weight.grad is not None
        norms.append(float(np.float32(model.weight.grad.norm())))
        optimizer.step()
        assert float((model.weight.detach() - before).norm()) < 0.0101
        run.log(loss=loss)
    assert run.finish()
    (series,) = client.runs.steps(run_id, "grad_norm", layer="weight", max_points=10).series
    assert series.mean == pytest.approx(norms, rel=1e-6)


def test_remedies_reach_an_optimizer_inside_a_wrapper(as_trial: Any) -> None:
    """A wrapper that is no optimizer of torch has the remedies at the optimizer inside it."""

    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    as_trial(CLIP)
    run = gradmedic.init()
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    run.watch(model, Wrapper(optimizer))  # type: ignore[arg-type]
    before = model.weight.detach().clone()
    (100 * model(torch.ones(2, 4))).square().mean().backward()
    optimizer.step()
    run.log(loss=1.0)
    assert run.finish()
    assert float((model.weight.detach() - before).norm()) < 0.0101


def test_skipped_steps_are_counted_in_the_report(as_trial: Any) -> None:
    """The report of a trial has the number of steps that its remedies skipped."""
    report, _ = as_trial(Remedy(id="skip_nonfinite_steps"), steps=100)
    run = gradmedic.init()
    moved = train(run, 40)  # it diverges
    run.finish()
    assert json.loads(report.read_text())["skipped_steps"] == sum(distance == 0 for distance in moved) > 0
