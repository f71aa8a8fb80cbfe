"""Trainings of several processes over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.ranks import train_in_processes

import gradmedic

SCRIPT = Path(__file__).with_name("distributed_training.py")
STATISTICS = ("grad_norm", "grad_abs_max", "grad_mean", "grad_zero_fraction", "nonfinite_count", "update_norm")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("kind", "processes"), [("ddp", 2), ("fsdp", 2), ("hybrid", 4)])
def test_the_first_process_sends_what_all_of_them_did(
    kind: str, processes: int, service_url: str, client: gradmedic.Client, tmp_path: Path
) -> None:
    """All processes have one run, with the statistics of whole gradients and updates, and train as without it."""
    answers, errors = train_in_processes(SCRIPT, kind, str(processes), service_url, str(tmp_path / "meeting"))
    assert "no longer watched" not in errors
    first, *others = (answer["online"] for answer in answers)
    assert not first["follows"]
    assert all(other["follows"] for other in others)
    for other in others:
        with pytest.raises(gradmedic.NotFoundError):
            client.runs.get(other["id"])
    run = client.runs.get(first["id"])
    assert (run.status, run.last_step) == ("finished", 29)
    assert [layer.shape for layer in run.layers] == [[5, 7], [5], [5, 5], [5], [3, 5], [3]]
    result = client.runs.steps(first["id"], STATISTICS, max_points=100)
    places = {layer.name: i for i, layer in enumerate(run.layers)}
    sampled = {step for step, count in zip(result.first_step, result.series[0].count, strict=True) if count}
    assert set(range(20)) <= sampled < set(range(30))
    for series in result.series:
        place = places[str(series.layer)]
        values = dict(zip(result.first_step, series.mean, strict=True))
        for step in sampled:
            if step >= 25 and series.statistic != "nonfinite_count":  # from here on, the loss is NaN
                continue
            expected = first["truth"][series.statistic][step][place]
            assert values[step] == pytest.approx(expected, rel=1e-5, abs=1e-7), (series.statistic, series.layer, step)
    assert all(answer["disabled"]["weights"] == answer["online"]["weights"] for answer in answers)
