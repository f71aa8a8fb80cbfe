"""A rerun of the kind `locate` with a real service, worker and training: the command names operation and line."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.support.patience import PATIENCE
from tests.support.services import Serve
from tests.support.workers import HOLD, StartWorker, WaitUntil, has_trainables

import gradmedic
from gradmedic.cli import main
from gradmedic.protocol.encoding import to_json

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker")]

FAILED = 12
SCRIPT = """
    import gradmedic
    run = gradmedic.init(project="p", config={"how": "explode", "pause": 0.0}, trainable="train")
    import torch
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    run.watch(model, optimizer)
    draw = torch.Generator().manual_seed(1)
    for step in range(30):
        x, scale = torch.randn(8, 4, generator=draw), torch.ones(8, 1)
        scale[3] = FAULT
        optimizer.zero_grad()
        likelihood = torch.sigmoid(model(x)) * scale
        loss = -likelihood.log().mean()
        loss.backward()
        optimizer.step()
        run.log(loss=loss)
    run.finish()
"""
"""The loss is computed outside of the model. On one batch, the logarithm of a negative number is taken."""


def test_a_loss_outside_of_the_model_is_located_by_a_rerun(
    serve: Serve,
    sqlite_url: str,
    start_worker: StartWorker,
    wait_until: WaitUntil,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The unchanged script is run again, twice on a seed and once on another one. The answer is on the diagnosis."""
    script = SCRIPT.replace("FAULT", f"-1.0 if step == {FAILED} else 1.0")
    line = next(n for n, text in enumerate(textwrap.dedent(script).splitlines(), 1) if ".log().mean()" in text)
    environment = f'PYTHONPATH = "{tmp_path / "without_torch"}", HOLD = "{tmp_path / HOLD}"'
    hidden = f'memory = "400MiB"\npreload = false\nenvironment = {{ {environment} }}\n'
    with (
        serve(sqlite_url) as service,
        gradmedic.Client(service.url) as client,
        start_worker(service.url, script=script, replacement=(hidden, 'memory = "8GiB"\n'), timeout=PATIENCE),
    ):
        wait_until(lambda: has_trainables(client))
        variables = {**os.environ, "GRADMEDIC_BASE_URL": service.url, "GRADMEDIC_SILENT": "1"}
        subprocess.run([sys.executable, "train.py"], cwd=tmp_path, env=variables, check=True)
        (run,) = list(client.runs.list(project="p"))
        monkeypatch.setenv("COLUMNS", "100")
        code = main(["locate", "--base-url", service.url, str(run.id)])
        printed = capsys.readouterr()
        (rerun,) = list(client.reruns.list(run_id=run.id))
        origin = client.reruns.get(rerun.id).origin
        assert origin is not None, (tmp_path / "worker.log").read_text() + printed.out
        assert (origin.operation, origin.direction, origin.step, origin.module) == ("log", "forward", FAILED, None)
        assert origin.source is not None
        assert (origin.source.file, origin.source.line) == ("train.py", line)
        assert origin.input is not None
        assert (origin.input.special, origin.input.count) == ("negative", 1)
        assert (origin.kind, origin.reproduced) == ("data", "2 of 2")
        published = client.runs.diagnosis(run.id).origin
        assert published is not None
        assert to_json(published) == to_json(origin)
        assert code == 0
        assert printed.err.startswith("about 3 trials of 23 steps")
        assert f"in `log` (train.py:{line})" in printed.out
        assert "Kind: data, reproduced 2 of 2." in printed.out
        main(["diagnose", "--base-url", service.url, str(run.id)])
        assert f"in `log` (train.py:{line})" in capsys.readouterr().out
