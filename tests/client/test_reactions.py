"""What a run does when the service answers more than thanks, and what must not cost the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.client.test_run import losses, start
from tests.support.faulty_proxy import FaultyProxy

import gradmedic
from gradmedic.protocol.steps import AppendResult
from gradmedic.transport.http import Request, Response, Transport, Urllib3Transport


class StopAfter:
    """Carries requests, and changes the answers to blocks as a service does that ends a trial."""

    def __init__(self, blocks: int) -> None:
        self._inner: Transport = Urllib3Transport()
        self._left = blocks

    def send(self, request: Request, timeout: float) -> Response:
        """Send it."""
        answer = self._inner.send(request, timeout)
        if request.url.endswith("/steps") and answer.status == 200:
            self._left -= 1
            if self._left <= 0:
                body = msgspec.json.decode(answer.body) | {"stop": True}
                return Response(answer.status, answer.headers, msgspec.json.encode(body))
        return answer

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()


def test_a_run_that_is_told_to_stop_stops_at_the_next_log(service_url: str, client: gradmedic.Client) -> None:
    """By an exception of its own; leaving the run's block by it is a good end."""

    def train() -> None:
        with run:
            for i in range(1000):
                run.log(float(i))
                run.flush()

    run = start(service_url, transport=StopAfter(2))
    with pytest.raises(gradmedic.RunStoppedError, match="budget"):
        train()
    stored = client.runs.get(run.id)
    assert stored.status == "finished"
    assert stored.last_step is not None
    assert stored.last_step < 10


def test_what_decorates_a_run_is_cut_to_what_the_service_takes(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Notes, tags and their number cost a warning each, and not the run."""
    limits = client.limits()
    with start(
        service_url, notes="n" * (limits.max_notes_length + 1), tags=[f"t{i}" for i in range(limits.max_tags + 3)]
    ) as run:
        run.log(1.0)
    stored = client.runs.get(run.id)
    assert stored.notes == "n" * limits.max_notes_length
    assert len(stored.tags) == limits.max_tags
    assert "notes are cut" in caplog.text
    assert "3 tags are left out" in caplog.text


SPAWNED = """
import multiprocessing, os, sys
import gradmedic
run = gradmedic.init('spawned', name=os.environ['NAME'])

def work(number):
    return number * 2

if __name__ == '__main__':
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        for number in pool.map(work, range(4)):
            run.log(float(number))
    run.finish()
"""


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_worker_processes_begin_no_runs_of_their_own(
    method: str, service_url: str, client: gradmedic.Client, tmp_path: Path
) -> None:
    """Also where they import a script that begins one at its top."""
    script = tmp_path / "script.py"
    script.write_text(SPAWNED)
    environment = os.environ | {"GRADMEDIC_BASE_URL": service_url, "NAME": f"spawned by {method}"}
    done = subprocess.run(
        [sys.executable, str(script), method], env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    runs = [run for run in client.runs.list(project="spawned") if run.name == f"spawned by {method}"]
    assert [(run.status, run.last_step) for run in runs] == [("finished", 3)]


def test_an_alarm_is_looked_at_closely_and_a_recovery_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only an unhealthy verdict makes the next steps sampled ones; the first healthy one comes in every run."""
    run = gradmedic.init(mode="offline", dir=tmp_path)
    hurried: list[str] = []
    monkeypatch.setattr(run._sampler, "hurry", lambda: hurried.append(run.verdict))
    for verdict in ("healthy", "exploding", "exploding", "healthy", "vanishing"):
        run.take_result(
            AppendResult(
                accepted=1, ignored=0, last_step=1, generation=0, revision=1, verdict=verdict, since_step=0, alerts=[],
                stop=False,
            )
        )  # fmt: skip
    run.finish()
    assert hurried == ["exploding", "vanishing"]


LOADING = """
import sys, torch, gradmedic
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = torch.utils.data.TensorDataset(torch.randn(24, 4), torch.randn(24, 1))
loader = torch.utils.data.DataLoader(
    data, batch_size=4, num_workers=2, shuffle=True, persistent_workers=True, multiprocessing_context=sys.argv[1]
)
run = gradmedic.init('loading by ' + sys.argv[1], mode=sys.argv[2], flush_interval=0.01)
run.watch(model, optimizer)
for epoch in range(2):
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
print(run.id, run.finish(), model.weight.tolist())
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_leave_the_run_alone(
    method: str, service_url: str, client: gradmedic.Client, tmp_path: Path
) -> None:
    """They start while the run sends; each step is stored once, and the training is the one without a run."""
    script = tmp_path / "loading.py"
    body = "".join(f"    {line}\n" for line in LOADING.splitlines())
    script.write_text(f"if __name__ == '__main__':\n{body}")
    said = []
    for mode in ("online", "disabled"):
        done = subprocess.run(
            [sys.executable, str(script), method, mode],
            env=os.environ | {"GRADMEDIC_BASE_URL": service_url},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        )
        said.append(done.stdout.split(maxsplit=2))
    (run_id, is_delivered, weights), (_, _, unwatched) = said
    assert is_delivered == "True"
    assert weights == unwatched
    stored = client.runs.get(run_id)
    assert (stored.status, stored.last_step) == ("finished", 11)
    assert [run.id for run in client.runs.list(project=f"loading by {method}")] == [stored.id]


def test_a_notebook_cell_that_is_run_again_ends_its_first_run(
    service_url: str, client: gradmedic.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a kernel, a second init() finishes what the first one began."""
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    first = start(service_url)
    first.log(1.0)
    second = start(service_url)
    assert client.runs.get(first.id).status == "finished"
    second.log(2.0)
    assert second.finish()
    assert losses(client, second) == {0: 2.0}


def test_a_process_that_is_not_the_first_sends_nothing(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its launcher says; its calls are answered, and a diagnosis is refused."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run = start(proxy.url)
    run.log(1.0)
    run.rewind(0)
    assert run.is_follower
    assert run.flush()
    with pytest.raises(gradmedic.UsageError, match="another process"):
        run.diagnosis()
    assert run.finish()
    assert not proxy.seen


def test_waiting_for_a_run_ends_with_it(service_url: str, client: gradmedic.Client) -> None:
    """At once if it has ended, at the latest after the timeout; or as soon as something else holds."""
    run = start(service_url)
    run.log(1.0)
    assert run.flush()
    with pytest.raises(TimeoutError, match="is running, at step 0"):
        client.runs.wait(run.id, timeout=0)
    assert client.runs.wait(run.id, until=lambda seen: seen.last_step == 0).status == "running"
    run.finish(status="failed")
    assert client.runs.wait(run.id, timeout=5).status == "failed"


def test_a_run_is_changed(service_url: str, client: gradmedic.Client) -> None:
    """Name, notes and tags; what is not given stays."""
    with start(service_url, notes="old", tags=["a"]) as run:
        pass
    changed: Any = client.runs.update(run.id, name="better", tags=("b", "c"))
    assert (changed.name, changed.notes, changed.tags) == ("better", "old", ["b", "c"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_freq": "often"}, '"auto" or a whole number'),
        ({"mode": "later"}, "mode must be one of online, offline, disabled"),
        ({"on_unhealthy": "pray"}, "warn, stop, clip"),
        ({"max_disk_bytes": 0}, "max_disk_bytes"),
        ({"dir": 3}, "dir must be the path of a folder"),
    ],
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    """With what it may be."""
    with pytest.raises(gradmedic.ConfigurationError, match=message):
        gradmedic.init(**arguments)
