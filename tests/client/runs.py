"""Helps the client's tests to begin runs, to wait for them, and to read what the service has stored."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tests.support.faulty_proxy import ProxiedRequest
from tests.support.patience import PATIENCE

import gradmedic


def start(url: str, **arguments: Any) -> gradmedic.Run:
    """Return a run that sends to `url`."""
    return gradmedic.init(project="test-run", base_url=url, **arguments)


def losses(client: gradmedic.Client, run: gradmedic.Run) -> dict[int, float | None]:
    """Return the stored losses by step."""
    result = client.runs.steps(run.id, "loss", max_points=2000)
    (series,) = result.series
    assert result.first_step == result.last_step
    return dict(zip(result.first_step, series.mean, strict=True))


def wait_until_recorded(run: gradmedic.Run) -> None:
    """Wait until the recorder has everything that was logged."""
    assert run._recorder.wait(PATIENCE)


def block_requests(requests: list[ProxiedRequest]) -> list[ProxiedRequest]:
    """Return the requests that carried steps."""
    return [request for request in requests if request.method == "POST" and request.path.endswith("/steps")]


def log_losses(run: gradmedic.Run, first: int, last: int) -> None:
    """Log the steps from `first` to before `last`; the loss of each is its number."""
    for i in range(first, last):
        run.log(float(i), gradients={"w": np.full(3, i), **({"late": np.ones(2)} if i > 50 else {})})


def explode(run: gradmedic.Run, steps: int = 200) -> int:
    """Log gradients that grow by half at each step until they overflow; return the number of steps."""
    for i in range(steps):
        norm = 1.5 ** max(0, i - 60)
        run.log(min(norm, 1e30), gradients={"w": np.array([norm if norm < 1e30 else math.nan])})
        if i % 10 == 9:
            run.flush()
    return steps
