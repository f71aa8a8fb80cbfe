"""Gradients and statistics that are given to `log()` are stored at every step, through the real service."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.client.runs import start, wait_until_recorded

import gradmedic
from gradmedic.recording import recorder


def stored_norms(client: gradmedic.Client, run: gradmedic.Run, layer: str) -> dict[int, float | None]:
    """Return the stored gradient norms of a layer by step, None for NaN."""
    (series,) = client.runs.steps(run.id, "grad_norm", layer=layer, max_points=2000).series
    result = client.runs.steps(run.id, "grad_norm", layer=layer, max_points=2000)
    return {step: mean for step, mean, count in zip(result.first_step, series.mean, series.count, strict=True) if count}


@pytest.mark.parametrize("log_freq", ["auto", 1000])
@pytest.mark.parametrize("kind", ["statistics", "gradients"])
def test_what_is_given_is_stored_however_few_steps_are_sampled(
    service_url: str, client: gradmedic.Client, kind: str, log_freq: Any
) -> None:
    """Thirty steps of NaN are stored at their steps, although the sampler skips them."""
    with start(service_url, log_freq=log_freq) as run:
        run._sampler.add_cost(1000.0)  # so that the account of "auto" would thin every step
        for step in range(80):
            norm = math.nan if step >= 50 else 1.0 + step
            given: dict[str, Any] = {
                "statistics": {"w": {"grad_norm": norm}},
                "gradients": {"w": np.array([norm, 0.0])},
            }
            run.log(1.0, **{kind: given[kind]})
    norms = stored_norms(client, run, "w")
    assert list(norms) == list(range(80))
    assert [step for step, norm in norms.items() if norm is None or math.isnan(norm)] == list(range(50, 80))
    diagnosis = client.runs.diagnosis(run.id)
    assert diagnosis.verdict == "exploding"


def test_layers_that_are_logged_for_a_step_later_join_it(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics of one step may come in several calls, each with other layers."""
    monkeypatch.setattr(recorder, "_HOLD", 600.0)
    with start(service_url, log_freq=1000) as run:
        for step in range(40):
            run.log(1.0, step=step, statistics={"a": {"grad_norm": 1.0}})
            run.log(step=step, statistics={"b": {"grad_norm": 2.0}})
    assert stored_norms(client, run, "a") == dict.fromkeys(range(40), 1.0)
    assert stored_norms(client, run, "b") == dict.fromkeys(range(40), 2.0)
    assert not caplog.records


def test_layers_that_a_step_has_already_are_left_out_with_a_warning(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second value of a layer is left out with one warning, and so is a row whose step has left."""
    monkeypatch.setattr(recorder, "_HOLD", 600.0)
    with start(service_url) as run:
        for step in range(3):
            run.log(1.0, step=step, statistics={"a": {"grad_norm": 1.0}})
            run.log(step=step, statistics={"a": {"grad_norm": 3.0}, "b": {"grad_norm": 2.0}})
        wait_until_recorded(run)
        run.log(step=2, statistics={"c": {"grad_norm": 2.0}})
    assert stored_norms(client, run, "a") == dict.fromkeys(range(3), 1.0)
    assert stored_norms(client, run, "b") == dict.fromkeys(range(3), 2.0)
    assert caplog.text.count("logged once more") == 1


def test_a_row_that_lacks_a_statistic_of_the_run_is_left_out_with_a_warning(
    service_url: str, client: gradmedic.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The first row decides on the statistics of a run; a warning names those that a later row lacks."""
    with start(service_url) as run:
        run.log(1.0, statistics={"a": {"grad_norm": 1.0, "weight_norm": 1.0}})
        for _ in range(5):
            run.log(1.0, statistics={"a": {"grad_norm": 1.0}})
    assert stored_norms(client, run, "a") == {0: 1.0}
    assert caplog.text.count("they lack weight_norm") == 1
