"""`gradmedic rerun`: its output, its exit codes, and its message for each mistake."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from tests.support.played_worker import CLIP, SLOW, PlayedWorker, rerun, suspect

import gradmedic
from gradmedic.cli import main
from gradmedic.cli.remedy_argument import parse_candidate

CLIP_TEXT = "clip_grad_norm(1.0)"
SLOW_TEXT = "scale_learning_rate(0.1)"


@pytest.fixture
def http(service_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx2.Client]:
    """The service, which the command finds by the environment. Waiting reruns are cancelled at the end of the test."""
    monkeypatch.setenv("GRADMEDIC_BASE_URL", service_url)
    monkeypatch.setenv("COLUMNS", "200")
    with httpx2.Client(base_url=service_url) as client, gradmedic.Client(service_url) as sdk_client:
        yield client
        for status in ("queued", "running"):
            for rerun in list(sdk_client.reruns.list(status=status)):
                sdk_client.reruns.cancel(rerun.id)


@pytest.fixture
def worker(http: httpx2.Client) -> PlayedWorker:
    """A worker that has offered its trainable."""
    played = PlayedWorker(http)
    played.register()
    return played


def run_rerun_command(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run the command; return exit code, output and errors."""
    code = main(["rerun", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_rerun_is_followed_and_shown(
    http: httpx2.Client, worker: PlayedWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints each trial at its end, then each candidate with its outcome; `show` prints the same again."""
    run_id = suspect(http)
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(0.01):
            worker.work({0: "exploding", 1: "learning", 2: "exploding"})

    working = threading.Thread(target=work)
    working.start()
    try:
        options = ("--remedy", CLIP_TEXT, "--remedy", SLOW_TEXT, "--seeds", "1", "--steps", "80", "--seconds", "500")
        code, out, err = run_rerun_command(run_id, *options, capsys=capsys)
    finally:
        is_over.set()
        working.join()
    assert code == 0
    expected, *progress = err.splitlines()
    assert expected.startswith("about 3 trials of 80 steps")
    assert expected.endswith("; at most 200 trials, 8 min 20 s, 1 round")
    followed = [line for line in progress if "running" not in line and not line.startswith("racing: ")]
    with gradmedic.Client(str(http.base_url)) as client:
        plan = client.reruns.plan(run_id, remedies=[parse_candidate(CLIP_TEXT)], seeds=2, steps=50)
    assert (plan.trials, plan.steps, plan.budget.rounds) == (4, 50, 1)
    assert followed[0] == "  control, seed 0: done, exploding, loss NaN"
    assert followed[1].startswith(f"  {CLIP_TEXT}, seed 0: done, healthy, loss 0.")
    assert followed[2] == f"  {SLOW_TEXT}, seed 0: done, exploding, loss NaN"
    first, second, empty, *candidates = out.splitlines()
    id = first.removeprefix("rerun ").partition(":")[0]
    assert first == f"rerun {id}: done, 1 of 2 candidates verified"
    assert (second.startswith("train in tests, 3 of 3 trials ended, "), second.endswith(" of 500 s")) == (True, True)
    assert empty == ""
    assert candidates[0] == "  control:"
    assert candidates[1].strip().startswith("seed 0 done, exploding, loss NaN (trial ")
    assert candidates[2] == f"  {CLIP_TEXT}:"
    assert candidates[3].strip().startswith("verified: healthy in 1 of 1 seed, loss 0.")
    assert " against NaN; " in candidates[3]
    assert candidates[4] == f"  {SLOW_TEXT}:"
    assert candidates[5].strip().startswith("failed: healthy in 0 of 1 seed, loss NaN against NaN; ")
    assert candidates[5].endswith("(it is exploding on seed 0)")
    assert run_rerun_command("show", id[-8:], capsys=capsys) == (0, out, "")
    assert run_rerun_command("follow", id, capsys=capsys)[:2] == (0, out)
    project = ("--project", "tests", "--status", "done", "--limit", "1")
    code, table, _ = run_rerun_command("list", *project, capsys=capsys)
    header, row = table.splitlines()
    assert (code, header.split()) == (0, ["ID", "RUN", "PROJECT", "TRAINABLE", "STATUS", "CREATED", "RESULT"])
    assert row.split()[:5] == [id[-8:], run_id[-8:], "tests", "train", "done"]
    assert row.endswith("1 of 2 candidates verified")
    code, lines, _ = run_rerun_command("list", *project, "--json", capsys=capsys)
    assert json.loads(lines)["id"] == id
    code, out, _ = run_rerun_command("show", id, "--json", capsys=capsys)
    assert json.loads(out) == http.get(f"/api/v1/reruns/{id}").json()
    assert main(["diagnose", run_id]) == 0
    advice = capsys.readouterr().out.partition("What to do, best first")[2]
    first, proof = (line.strip() for line in advice.splitlines()[1:3])
    assert first == "1. clip_grad_norm(max_norm=1.0)"
    assert proof.startswith("Tried: verified: healthy in 1 of 1 seed, loss 0.")
    assert proof.endswith(". On torch 2.13.0, cpu.")
    last = advice.partition("scale_learning_rate(factor=0.1)")[2].splitlines()[1].strip()
    assert last.startswith("Tried: failed: healthy in 0 of 1 seed")


def test_a_queued_a_running_and_a_cancelled_rerun_are_shown(
    http: httpx2.Client, worker: PlayedWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    """A detached rerun is queued; a running one is shown with its trials' states, a cancelled one with the reason."""
    code, out, err = run_rerun_command(suspect(http), "--remedy", CLIP_TEXT, "--detach", capsys=capsys)
    assert (code, err.startswith("about 6 trials of "), err.count("\n")) == (0, True, 1)
    id = out.split()[1].rstrip(":")
    assert out.splitlines()[0] == f"rerun {id}: queued"
    assert "0 of about 6 trials ended" in out.splitlines()[1]
    assert "seed 0 queued, undetermined" in out
    assert "not tried" in out
    claimed = worker.claim()
    assert claimed is not None
    worker.beat(claimed, output="epoch 1\n")
    trial_id = claimed["trial_id"]
    assert run_rerun_command("output", trial_id[-8:], capsys=capsys) == (0, "epoch 1\n", "")
    code, out, err = run_rerun_command("output", trial_id, "--json", capsys=capsys)
    assert json.loads(out) == {"trial_id": trial_id, "output": "epoch 1\n"}
    assert "seed 0 running" in run_rerun_command("show", id, capsys=capsys)[1]
    code, out, err = run_rerun_command("cancel", id, capsys=capsys)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith(f"rerun {id}: cancelled, cancelled by ")
    assert "seed 0 cancelled" in out
    assert run_rerun_command("cancel", id, capsys=capsys) == (0, out, "")
    assert run_rerun_command("show", id, capsys=capsys) == (0, out, "")
    assert run_rerun_command("follow", id, capsys=capsys)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "no run has the name 'nobody'"),
        (["show"], "`gradmedic rerun show` needs an id"),
        (["show", "x"], "'x' is not the id of a rerun"),
        (["output", "x"], "'x' is not the id of a trial"),
        (["shout", "x"], "give a RUN, or one of show, follow, cancel, output and one id"),
        (["show", "x", "y"], "give a RUN, or one of show, follow, cancel, output and one id"),
        (["cancel", "x", "--seeds", "2"], "--seeds belongs to a new rerun of a RUN, not to cancel"),
        (["x", "--limit", "2"], "--limit belongs to list, not to a RUN"),
        (["list", "--detach"], "--detach belongs to a new rerun of a RUN, not to list"),
        (["list", "x"], "`gradmedic rerun list` needs no id: 'x' is one argument too many"),
        (["cancle", "x"], "and one id; did you mean 'cancel'?"),
        (["show", "ffffffff"], "no rerun has an id that begins or ends with 'ffffffff'; see `gradmedic rerun list`"),
    ],
    ids=["run", "no id", "id", "trial", "action", "two", "option", "of list", "to list", "id of list", "typo", "none"],
)
def test_wrong_arguments_are_errors(
    http: httpx2.Client, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong argument is an error of one line, with the exit code 2."""
    code, out, err = run_rerun_command(*arguments, capsys=capsys)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("gradmedic: ")
    assert message in err


@pytest.mark.parametrize("action", ["show", "follow", "cancel", "output"])
def test_an_unknown_id_is_an_error(http: httpx2.Client, action: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The error contains the unknown id and the kind of object that was looked for."""
    id = str(uuid4())
    code, out, err = run_rerun_command(action, id, capsys=capsys)
    kind = "trial" if action == "output" else "rerun"
    assert (code, out, err) == (2, "", f"gradmedic: There is no {kind} {id}. (404 {kind}_not_found)\n")


@pytest.mark.parametrize(
    ("remedy", "message"),
    [
        ("clip!", "must be like clip_grad_norm(max_norm=1.0), not 'clip!'"),
        ("clip_grad_norm(1.0, 2.0)", "name the parameter '2.0' of clip_grad_norm"),
        ("warmup(9)", "'warmup' is not one of warm_up, clip_grad_norm, "),
    ],
    ids=["form", "name", "unknown"],
)
def test_an_unreadable_remedy_is_an_error(remedy: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A remedy that cannot be read is refused before any request is sent."""
    with pytest.raises(SystemExit) as refused:
        main(["rerun", "run", "--remedy", remedy])
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--remedy", "pray()"], "remedies[0][0].id: 'pray' is not one of clip_grad_norm, clip_grad_value, "),
        (["--remedy", "warmup(steps=9)"], "remedies[0][0].id: 'warmup' is not one of warm_up, "),
        (["--remedy", "clip_grad_norm(-1)"], "remedies[0][0].parameters.max_norm: must be from"),
        (["--remedy", "warm_up"], "remedies[0][0].parameters.steps: is required"),
        (["--remedy", "set_parameter(shell=1)"], "the trainable has no such parameter; it has lr, depth, window"),
        (["--remedy", "use_bfloat16"], "only the script can carry out 'use_bfloat16'"),
        (["--remedy", CLIP_TEXT, "--seeds", "11"], "seeds: must be from 1 to 10"),
        (["--remedy", CLIP_TEXT, "--seconds", "0"], "budget.seconds: must be from 1 to"),
        (["--remedy", CLIP_TEXT, "--seconds", "nan"], "budget.seconds: must be from 1 to"),
        (["--remedy", CLIP_TEXT, "--steps", "1000000000000"], "budget.steps: must be from 1 to"),
        (["--remedy", CLIP_TEXT, "--trials", "1000000"], "budget.trials: must be from 1 to"),
    ],
    ids=["unknown", "close", "range", "missing", "parameter", "tier", "seeds", "seconds", "nan", "steps", "trials"],
)
def test_a_refused_rerun_is_printed_with_the_wrong_field(
    http: httpx2.Client, worker: PlayedWorker, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error contains the field and its limit, and no rerun is created."""
    run_id = suspect(http)
    code, out, err = run_rerun_command(run_id, *options, "--detach", capsys=capsys)
    assert (code, out) == (2, "")
    assert message in err
    assert http.get(f"/api/v1/reruns?run_id={run_id}").json()["items"] == []


def test_a_run_that_cannot_be_rerun_is_an_error_with_the_reason(
    http: httpx2.Client, worker: PlayedWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run without a trainable, with one that no worker offers, or with a config that does not fit, is not rerun."""
    fields: list[tuple[dict[str, Any], str]] = [
        ({"trainable": None}, "give gradmedic.init(trainable=...)"),
        ({"trainable": "nobody's"}, 'No worker offers the trainable "nobody\'s"'),
        ({"config": {"lr": 99.0}}, "lr must be from 0.001 to 10"),
    ]
    for changed, message in fields:
        code, out, err = run_rerun_command(suspect(http, **changed), "--remedy", CLIP_TEXT, capsys=capsys)
        assert (code, out) == (2, "")
        assert message in err


def test_a_rerun_whose_control_is_healthy_exits_with_two(
    http: httpx2.Client, worker: PlayedWorker, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the control does not fail again, following the rerun exits with 2, and showing it exits with 0."""
    created = rerun(http, suspect(http), CLIP, SLOW, seeds=1)
    worker.work({0: "learning"})
    code, out, err = run_rerun_command("follow", created["id"], capsys=capsys)
    assert code == 2
    assert "not_reproduced, the unchanged control is healthy after 80 steps" in out
    assert err.startswith("  control, seed 0: done, healthy, loss 0.")
    assert run_rerun_command("show", created["id"], capsys=capsys) == (0, out, "")
