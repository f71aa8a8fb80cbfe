"""`gradmedic locate`: its output, its exit codes, and its message for a run that stayed finite."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from tests.support.played_worker import API, PlayedWorker, block, suspect

import gradmedic
from gradmedic.cli import main

ORIGIN = {
    "operation": "log", "direction": "forward", "step": 20, "kind": "numeric", "value": "NaN",
    "source": {"file": "train.py", "line": 57}, "batch_tensors": [{"digest": "0123456789abcdef"}],
    "input": {"special": "negative"},
    "text": "NaN is born at step 20 in `log` (train.py:57).",
}  # fmt: skip
Command = Callable[..., tuple[int, str, str]]


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


@pytest.fixture
def locate(capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the command and returns exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["locate", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@contextmanager
def working(worker: PlayedWorker, origin: dict[str, Any] | None) -> Iterator[None]:
    """Run the trials that are claimed; each reports an origin, or stays finite."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(0.01):
            if (claimed := worker.claim()) is not None:
                worker.stream(claimed, "learning" if origin is None else "exploding", claimed["steps"])
                fields: dict[str, Any] = {} if origin is None else {"origin": origin}
                worker.publish(claimed, **fields)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_cost_progress_and_origin_are_printed(http: httpx2.Client, worker: PlayedWorker, locate: Command) -> None:
    """The cost comes first, then each trial, then the origin with what to change; `rerun show` prints it again."""
    run_id = suspect(http)
    with working(worker, ORIGIN):
        code, out, err = locate(run_id)
    assert code == 0
    first, *progress = err.splitlines()
    assert first.startswith("about 3 trials of 31 steps")
    assert first.endswith("; at most 4 trials, 1 h 0 min, 1 round")
    assert any(line.startswith("  unchanged script, seed 0: done") for line in progress)
    lines = out.splitlines()
    assert lines[0].endswith(f": done, {ORIGIN['text']} The same batch fails with the weights of another seed too")
    assert "Kind: data, reproduced 2 of 2." in lines
    assert "        y = x.clamp_min(1e-8).log()" in lines
    rerun_id = lines[0].removeprefix("rerun ").partition(":")[0]
    assert main(["rerun", "show", rerun_id]) == 0


def test_json_has_the_rerun(http: httpx2.Client, worker: PlayedWorker, locate: Command) -> None:
    """With `--json`, nothing but the rerun is printed."""
    with working(worker, ORIGIN):
        code, out, err = locate(suspect(http), "--json", "--trials", "1", "--steps", "25")
    rerun = json.loads(out)
    assert (code, err, rerun["kind"], rerun["origin"]["reproduced"]) == (0, "", "locate", "1 of 1")
    assert rerun["budget"]["steps"] == 25


def test_a_failure_that_is_not_reproduced_is_an_error(
    http: httpx2.Client, worker: PlayedWorker, locate: Command
) -> None:
    """The exit code is 2, and the reason is printed."""
    with working(worker, None):
        code, out, _ = locate(suspect(http))
    assert code == 2
    assert "not_reproduced, the unchanged script stayed finite in 31 steps" in out


def test_a_finite_run_has_nothing_to_locate(http: httpx2.Client, worker: PlayedWorker, locate: Command) -> None:
    """The service's reason is printed in one line."""
    assert worker.name == "played"
    body = {"project": "tests", "layers": [{"name": "a"}, {"name": "b"}], "statistics": ["grad_norm"]}
    run_id = http.post(f"{API}/runs", json=body | {"trainable": "train", "config": {"lr": 0.5}}).json()["id"]
    http.post(f"{API}/runs/{run_id}/steps", json=block("learning"))
    code, out, err = locate(run_id)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no loss, gradient or weight that is not finite" in err


def test_it_is_not_waited_for(http: httpx2.Client, worker: PlayedWorker, locate: Command) -> None:
    """With `--detach`, the rerun is printed as it was made."""
    assert worker.name == "played"
    code, out, _ = locate(suspect(http), "--detach")
    assert code == 0
    assert ": queued" in out
