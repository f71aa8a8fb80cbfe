"""The `gradmedic` program."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from tests.client.runs import explode

import gradmedic
from gradmedic.cli.diagnose import render_diagnosis
from gradmedic.cli.main import COMMANDS_GROUP, main
from gradmedic.protocol.diagnosis import Advice, Diagnosis, Finding, Outcome, Tried
from gradmedic.protocol.remedies import Remedy


@pytest.fixture(autouse=True)
def service_of_the_command(service_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command finds the service by the environment."""
    monkeypatch.setenv("GRADMEDIC_BASE_URL", service_url)


@pytest.fixture(scope="module")
def exploding(service_url: str) -> gradmedic.Run:
    """A run that exploded."""
    run = gradmedic.init(f"cli-{uuid4()}", name=f"exploding-{uuid4()}", base_url=service_url, silent=True)
    explode(run)
    run.finish()
    return run


@pytest.fixture(scope="module")
def quiet(service_url: str) -> gradmedic.Run:
    """A run of one step."""
    with gradmedic.init(f"cli-{uuid4()}", name=f"quiet-{uuid4()}", base_url=service_url, silent=True) as run:
        run.log(1.0, gradients={"w": np.ones(2)})
    return run


def test_runs_are_listed_with_their_verdicts(exploding: gradmedic.Run, capsys: pytest.CaptureFixture[str]) -> None:
    """`runs` prints a table; `runs --json` prints one JSON object per line."""
    assert main(["runs", "--project", exploding.project]) == 0
    table = capsys.readouterr().out
    assert str(exploding.id)[-8:] in table
    assert "exploding" in table
    assert f" {datetime.now().astimezone().tzname()}\n" in table
    assert main(["runs", "--project", exploding.project, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    run = json.loads(line)
    assert (run["id"], run["verdict"], run["group"]) == (str(exploding.id), "exploding", None)
    assert run["created_at"].endswith("Z")
    assert main(["runs", "--project", "nothing"]) == 0
    assert capsys.readouterr().out == "no runs\n"


def test_a_run_is_found_by_id_beginning_of_id_or_name(
    exploding: gradmedic.Run, service_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reference that matches one run is accepted; one that matches none or several is an error with suggestions."""
    name = gradmedic.Client(service_url).runs.get(exploding.id).name
    id = str(exploding.id)
    for reference in (id, id[:35].upper(), id[:34], id[-8:].upper(), id[-12:], name):
        assert main(["diagnose", reference, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["run_id"] == str(exploding.id)
    for arguments, message in (
        (["missing"], "no run has the name 'missing' or an id that begins or ends so; see `gradmedic runs`\n"),
        (["ffffffff"], "no run has the name 'ffffffff'"),
        ([id[-7:]], f"no run has the name '{id[-7:]}'"),
        ([f"{name[:-2]}"], f"; did you mean '{name}'?"),
        ([name, "--project", f"{exploding.project}x"], f"; did you mean '{exploding.project}'?"),
    ):
        assert main(["diagnose", *arguments]) == 2
        assert message in capsys.readouterr().err
    with gradmedic.init(exploding.project, name=name) as second:
        pass
    assert main(["diagnose", name, "--project", exploding.project]) == 2
    heading, *candidates = capsys.readouterr().err.splitlines()
    assert f"2 runs are called '{name}'" in heading
    assert [line.split()[0] for line in candidates] == [str(second.id), id]
    assert all(f"{name} in {exploding.project}, finished, " in line for line in candidates)
    assert main(["diagnose", str(uuid4())]) == 2


def test_a_diagnosis_is_printed_in_order(exploding: gradmedic.Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The text shows verdict, first step, first layer, findings, causes and advice, in this order."""
    assert main(["diagnose", str(exploding.id)]) == 0
    text = capsys.readouterr().out
    places = [text.index(part) for part in ("EXPLODING since step", "first bad layer: w", "What was seen")]
    places += [text.index(part) for part in ("Why, most likely first", "What to do, best first", "  1. ")]
    assert places == sorted(places)
    assert " = " in text


def test_fail_on_makes_a_pipeline_fail(exploding: gradmedic.Run, quiet: gradmedic.Run, capsys: object) -> None:
    """The exit code is 3 for a named verdict or level, 0 for another one, 2 for one that does not exist."""
    assert main(["diagnose", str(exploding.id), "--fail-on", "exploding,vanishing"]) == 3
    assert main(["diagnose", str(exploding.id), "--fail-on", "vanishing"]) == 0
    assert main(["diagnose", str(quiet.id), "--fail-on", "exploding,vanishing"]) == 0
    assert main(["diagnose", str(exploding.id), "--fail-on", "attention"]) == 3
    assert main(["diagnose", str(quiet.id), "--fail-on", "attention"]) == 0
    with pytest.raises(SystemExit) as caught:
        main(["diagnose", str(quiet.id), "--fail-on", "imploding"])
    assert caught.value.code == 2


def test_outcomes_and_resolved_findings_are_shown(exploding: gradmedic.Run, service_url: str) -> None:
    """The text shows an outcome with its seeds and losses, and the step that resolved a finding."""
    with gradmedic.Client(service_url) as client:
        run = client.runs.get(exploding.id)
    outcome = Outcome(
        state="verified", rerun_id=uuid4(), seeds=3, healthy=3, loss=1.31, control_loss=float("nan"), cost_seconds=41.0
    )
    advice = Advice(
        remedy=Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0}),
        rank=1,
        reason="It grows.",
        cost="None.",
        snippet="clip(1.0)\nstep()",
        sources=[],
        outcome=outcome,
    )
    finding = Finding(
        detector="dead_units",
        verdict="vanishing",
        severity="warning",
        layers=["w"],
        first_step=1,
        last_step=4,
        resolved_step=5,
        evidence={"share": 0.5, "growth": float("inf")},
        explanation="Half are dead.",
        consequence_of="loss_divergence",
    )
    diagnosis = Diagnosis(
        run_id=run.id, step=9, verdict="healthy", score=0.5, since_step=6, summary="Well again.", findings=[finding],
        causes=[], advice=[advice],
    )  # fmt: skip
    text = render_diagnosis(diagnosis, run)
    assert "resolved at step 5, a consequence of loss_divergence" in text
    assert "share = 0.5, growth = inf" in text
    assert "clip_grad_norm(max_norm=1.0)" in text
    assert "Tried: verified: healthy in 3 of 3 seeds, loss 1.31 against NaN; 41 s." in " ".join(text.split())
    assert "        clip(1.0)\n        step()" in text
    assert "first bad layer" not in text


def test_advice_names_all_its_remedies_and_what_only_the_script_can_change(
    exploding: gradmedic.Run, service_url: str
) -> None:
    """A combination is one line; what no rerun can try, or could not apply, leads to the change of the script."""
    with gradmedic.Client(service_url) as client:
        run = client.runs.get(exploding.id)
    clip, norm = Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0}), Remedy(id="qk_norm")
    refused = Outcome(
        state="not_applicable", rerun_id=uuid4(), seeds=0, healthy=0, loss=None, control_loss=None, cost_seconds=1.0
    )
    verified = replace(refused, state="verified", seeds=1, healthy=1, loss=1.0, control_loss=2.0)

    def advise(rank: int, remedy: Remedy, **fields: Any) -> Advice:
        return Advice(remedy=remedy, rank=rank, reason="R.", cost="None.", snippet="code()", sources=[], **fields)

    tried = [
        Tried(remedies=[norm], outcome=refused, reason="no attention was found"),
        Tried(remedies=[Remedy(id="add_residual")], outcome=replace(refused, state="failed"), reason="it is exploding"),
    ]
    diagnosis = Diagnosis(
        run_id=run.id, step=9, verdict="exploding", score=0.5, since_step=6, summary="Bad.", findings=[], causes=[],
        advice=[
            advise(1, clip, with_remedies=[norm], outcome=verified),
            advise(2, Remedy(id="call_zero_grad"), needs_script=True),
            advise(3, norm, outcome=refused),
        ],
        tried=tried,
    )  # fmt: skip
    first, second, third = (
        " ".join(render_diagnosis(diagnosis, run).split()).partition("best first ")[2].split("code()")[:3]
    )
    assert first.startswith("1. clip_grad_norm(max_norm=1.0) + qk_norm() Tried: verified")
    assert "Change the script" not in first
    assert second.endswith("call_zero_grad() R. Cost: None. No rerun can try it. Change the script like this: ")
    assert "could not apply it (no attention was found). Change the script like this:" in third
    others = render_diagnosis(diagnosis, run).partition("What else was tried")[2]
    assert "add_residual()" in others
    assert "Reason: it is exploding." in others
    assert "qk_norm" not in others


def test_the_first_bad_layer_is_that_of_the_verdict(exploding: gradmedic.Run, service_url: str) -> None:
    """The first bad layer comes from a finding of the diagnosis's own verdict."""
    findings = [
        Finding(
            detector=verdict, verdict=verdict, severity="critical", layers=[f"{verdict}.weight"], first_step=1,
            last_step=9, resolved_step=None, evidence={}, explanation="x",
        )
        for verdict in ("vanishing", "exploding")
    ]  # fmt: skip
    diagnosis = Diagnosis(
        run_id=exploding.id, step=9, verdict="exploding", score=0.9, since_step=1, summary="s", findings=findings,
        causes=[], advice=[],
    )  # fmt: skip
    with gradmedic.Client(service_url) as client:
        text = render_diagnosis(diagnosis, client.runs.get(exploding.id))
    assert "first bad layer: exploding.weight\n" in text


@pytest.mark.parametrize("limit", ["0", "-1", "many", "1.5"])
def test_a_limit_is_a_whole_number(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Another limit is refused; the message names the limits that are allowed."""
    with pytest.raises(SystemExit) as error:
        main(["runs", f"--limit={limit}"])
    assert error.value.code == 2
    assert f"must be a whole number from 1, not '{limit}'" in capsys.readouterr().err


def test_an_error_is_one_line_and_code_two(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong address is one line on stderr, without a traceback; an unreachable one also has advice."""
    monkeypatch.setattr("gradmedic.transport.http.FIRST_DELAY", 0.01)
    for url, hint in (("http://127.0.0.1:1", ["gradmedic serve"]), ("nonsense", [])):
        assert main(["runs", "--base-url", url]) == 2
        line, *more = capsys.readouterr().err.splitlines()
        assert line.startswith("gradmedic: ")
        assert url in line
        assert len(more) == len(hint)
        assert all(text in further for text, further in zip(hint, more, strict=True))


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """`gradmedic` alone lists the commands with their help, and succeeds."""
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in ("diagnose", "serve", "sync", "worker"))


def with_entry_points(monkeypatch: pytest.MonkeyPatch, values: Sequence[tuple[str, str]]) -> None:
    """Replace the commands of other packages by these."""
    points = [importlib.metadata.EntryPoint(name, value, COMMANDS_GROUP) for name, value in values]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: points)


def test_a_command_whose_extra_is_missing_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Help lists the command; running it prints the extra to install."""
    with_entry_points(monkeypatch, [("serve", "no_such_library.cli:SERVE [service]")])
    assert main(["serve"]) == 2
    assert (
        capsys.readouterr().err
        == "gradmedic: gradmedic serve needs the service extra: pip install 'gradmedic[service]'\n"
    )
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "needs the service extra" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dignose"], "gradmedic: there is no command 'dignose'; did you mean 'diagnose' or 'rediagnose'?"),
        (["zzz"], "gradmedic: there is no command 'zzz'; there are alerts, api-key, completion, "),
        (["runs", "--levl", "ok"], "gradmedic runs: there is no option --levl; did you mean '--level'?"),
        (["runs", "--level=critcal"], "argument --level: 'critcal' is not one of critical, unknown, ok, attention"),
        (["runs", "x"], "gradmedic runs: one argument too many: 'x'"),
        (["api-key", "lst"], "gradmedic api-key: there is no action 'lst'; did you mean 'list'?"),
        (["diagnose", "x", "--fail-on", "explodng"], "argument --fail-on: 'explodng' is not one of exploding, "),
    ],
    ids=["command", "unlike any", "option", "value", "extra", "action", "verdict"],
)
def test_a_mistyped_word_gets_a_suggestion(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is one line with the closest words that exist, and one that names the help; the code is 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    error, see = capsys.readouterr().err.splitlines()
    assert message in error
    assert see.startswith("See `gradmedic")


def test_the_installed_command_works(quiet: gradmedic.Run) -> None:
    """The installed script is this program."""
    command = Path(sys.executable).with_name("gradmedic")
    result = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"gradmedic {gradmedic.__version__}\n"
    assert importlib.metadata.version("gradmedic") == gradmedic.__version__
