"""Reading series and diagnoses, on both databases."""

from __future__ import annotations

import json
import math
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from gradmedic.protocol.ids import new_id
from gradmedic.protocol.runs import Layer
from gradmedic.protocol.service import JSON_MEDIA_TYPE
from gradmedic_diagnosis import Diagnostician
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import DiagnosisState
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry.decoding import decode_block


def fill(client: TestClient, run: str, steps: list[int], values: np.ndarray[Any, Any]) -> None:
    """Append `values[step, layer]`, which may be NaN or infinite, in blocks of seven steps."""
    named = np.where(np.isnan(values), "NaN", np.where(np.isinf(values), "Infinity", values.astype(str)))
    for start in range(0, len(steps), 7):
        part = slice(start, start + 7)
        rows = [[float(text) if math.isfinite(float(text)) else text for text in row] for row in named[part]]
        losses = [float(step) for step in steps[part]]
        body = {"steps": steps[part], "loss": losses, "statistics": {"grad_norm": rows}, "metrics": {"acc": losses}}
        assert client.post(f"{run}/steps", json=body).status_code == 200


def read(client: TestClient, run: str, **parameters: Any) -> Any:
    """Return series."""
    response = client.get(f"{run}/steps", params=parameters)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("max_points", [1, 3, 10, 100, 1000])
def test_buckets_equal_a_plain_loop(client: TestClient, create_run: Any, max_points: int) -> None:
    """Minimum, mean, maximum and counts of every bucket equal those of a plain loop over the same steps."""
    random = np.random.default_rng(1)
    steps = sorted(random.choice(300, size=90, replace=False).tolist())
    values = np.abs(random.normal(size=(90, 3))).round(3)
    values[random.random(values.shape) < 0.1] = np.nan
    values[random.random(values.shape) < 0.1] = np.inf
    run = create_run(client, layers=3)
    fill(client, run, steps, values)
    answer = read(client, run, statistic="grad_norm", max_points=max_points)
    assert 1 <= len(answer["first_step"]) <= max_points
    if max_points == 1000:
        assert answer["first_step"] == steps
    covered: list[int] = []
    for bucket, (first, last) in enumerate(zip(answer["first_step"], answer["last_step"], strict=True)):
        inside = [index for index, step in enumerate(steps) if first <= step <= last]
        covered += inside
        for layer, series in enumerate(answer["series"]):
            column = values[inside, layer].astype(np.float32).astype(np.float64)
            finite = column[np.isfinite(column)]
            assert series["count"][bucket] == len(column)
            assert series["nonfinite"][bucket] == len(column) - len(finite)
            if len(finite):
                found = [series[name][bucket] for name in ("min", "mean", "max")]
                assert found == pytest.approx([finite.min(), finite.mean(), finite.max()], rel=1e-12)
            else:
                assert series["min"][bucket] is series["mean"][bucket] is series["max"][bucket] is None
    assert covered == list(range(90))


def test_a_single_nan_among_many_steps_is_counted(client: TestClient, create_run: Any) -> None:
    """A single NaN is counted, however many steps its bucket has."""
    values = np.ones((140, 1))
    values[77] = np.nan
    run = create_run(client, layers=1)
    fill(client, run, list(range(140)), values)
    series = read(client, run, statistic="grad_norm", max_points=1)["series"][0]
    assert (series["count"], series["nonfinite"], series["mean"]) == ([140], [1], [1.0])


def test_ranges_are_inclusive_and_names_keep_their_order(client: TestClient, create_run: Any) -> None:
    """A range of steps is inclusive; layers and names come in the order of the request, each once."""
    run = create_run(client, layers=3)
    fill(client, run, list(range(30)), np.arange(90.0).reshape(30, 3))
    answer = read(
        client, run, statistic=["acc", "grad_norm", "acc", "loss"], layer=["layer2", "layer0"], from_step=5, to_step=8
    )
    assert answer["first_step"] == [5, 6, 7, 8]
    names = [(series["statistic"], series["layer"]) for series in answer["series"]]
    assert names == [("grad_norm", "layer2"), ("grad_norm", "layer0"), ("acc", None), ("loss", None)]
    assert answer["series"][0]["mean"] == [17, 20, 23, 26]
    assert answer["series"][2]["mean"] == [5, 6, 7, 8]


def test_the_times_of_steps_are_a_series(client: TestClient, create_run: Any) -> None:
    """Seconds since 1970 come back exactly, also in buckets; a step without a time has no value."""
    run = create_run(client, layers=0)
    start = 1_764_000_000.123456
    times = [start + 0.25 * step for step in range(5)]
    assert client.post(f"{run}/steps", json={"steps": list(range(6)), "time": [*times, None]}).status_code == 200
    assert read(client, run, statistic="time")["series"][0]["mean"] == [*times, None]
    whole = read(client, run, statistic="time", max_points=1)["series"][0]
    assert (whole["min"], whole["max"], whole["count"]) == ([times[0]], [times[-1]], [5])


def test_an_empty_range_has_no_buckets(client: TestClient, create_run: Any) -> None:
    """A run without steps, or without steps in the range, is answered with no buckets."""
    run = create_run(client, layers=1)
    assert read(client, run, statistic="loss")["first_step"] == []
    fill(client, run, [5, 6], np.ones((2, 1)))
    for parameters in ({"from_step": 7}, {"to_step": 4}):
        answer = read(client, run, statistic=["loss", "grad_norm"], **parameters)
        assert answer["first_step"] == []
        assert [series["mean"] for series in answer["series"]] == [[], []]


def test_the_largest_numbers_have_a_mean(client: TestClient, create_run: Any) -> None:
    """Losses whose sum overflows have a finite mean."""
    run = create_run(client, layers=1)
    body = {"steps": [0, 1], "loss": [1.7e308, 1.6e308]}
    assert client.post(f"{run}/steps", json=body).status_code == 200
    series = read(client, run, statistic="loss", max_points=1)["series"][0]
    assert 1.6e308 <= series["mean"][0] <= 1.7e308


@pytest.mark.parametrize(
    ("parameters", "path", "words"),
    [
        ({}, "statistic", "required"),
        ({"statistic": "grad_nrm"}, "statistic[0]", "is none of the run's: grad_norm, loss"),
        ({"statistic": ["loss", "weight_norm"]}, "statistic[1]", "none of the run's"),
        ({"statistic": "grad_norm", "layer": ["layer0", "x"]}, "layer[1]", "not a layer"),
        ({"statistic": "loss", "max_points": 0}, "max_points", "from 1 to 10000"),
        ({"statistic": "loss", "max_points": 10_001}, "max_points", "from 1 to 10000"),
        ({"statistic": "loss", "from_step": -1}, "from_step", "0"),
        ({"statistic": "loss", "from_step": 5, "to_step": 4}, "to_step", "before"),
        ({"statistic": "loss", "to_step": 2**80}, "to_step", ""),
        ({"statistic": "loss", "from_step": "x"}, "from_step", "integer"),
    ],
)
def test_bad_queries_are_named(
    client: TestClient, create_run: Any, parameters: dict[str, Any], path: str, words: str
) -> None:
    """An invalid parameter is refused with its name and the reason."""
    run = create_run(client)
    response = client.get(f"{run}/steps", params=parameters)
    assert response.status_code == 422, response.text
    assert words in {error["path"]: error["message"] for error in response.json()["errors"]}[path]


def test_too_large_answers_are_refused(client: TestClient, create_run: Any) -> None:
    """A request for too many series and buckets is refused with the number of buckets that is allowed."""
    run = create_run(client, layers=200)
    response = client.get(f"{run}/steps", params={"statistic": "grad_norm", "max_points": 10_000})
    assert response.status_code == 422
    assert "200 series allow 5000" in response.json()["detail"]


def test_the_diagnosis_is_that_of_one_diagnostician(client: TestClient, create_run: Any) -> None:
    """The diagnosis after many blocks equals that of a diagnostician which reads the same steps at once."""
    run = create_run(client, layers=3)
    growth = 1.3 ** np.maximum(0, np.arange(120) - 40)
    values = np.ones((120, 3)) * growth[:, None]
    fill(client, run, list(range(120)), values)
    answer = client.get(f"{run}/diagnosis").json()
    body = {"steps": list(range(120)), "loss": list(range(120)), "statistics": {"grad_norm": values.tolist()}}
    received = decode_block(json.dumps(body).encode(), JSON_MEDIA_TYPE, Settings().limits())
    layers = [Layer(name=f"layer{index}") for index in range(3)]
    expected = Diagnostician(layers).update(received.fit(["grad_norm"], [3]))
    assert (answer["run_id"] in run, answer["step"]) == (True, 119)
    assert (answer["verdict"], answer["since_step"]) == (expected.verdict, expected.since_step)
    assert [f["detector"] for f in answer["findings"]] == [f.detector for f in expected.findings]
    verdicts = [f.verdict for f in expected.findings]
    assert [f["verdict"] for f in answer["findings"]] == verdicts
    assert [f["class"] for f in answer["findings"]] == verdicts
    assert [a["remedy"]["id"] for a in answer["advice"]] == [a.remedy.id for a in expected.advice]


def test_at_step_is_the_diagnosis_of_that_time(client: TestClient, create_run: Any) -> None:
    """The diagnosis at an earlier step equals the one that was answered when that step was the last."""
    run = create_run(client, layers=2)
    answers: dict[int, Any] = {}
    for first in range(0, 60, 5):
        steps = list(range(first, first + 5))
        rows = [[2.0 ** max(0, step - 30), 1.0] for step in steps]
        body = {"steps": steps, "loss": [1.0] * 5, "statistics": {"grad_norm": rows}}
        client.post(f"{run}/steps", json=body)
        answers[steps[-1]] = client.get(f"{run}/diagnosis").json()
    for step, earlier in answers.items():
        replayed = client.get(f"{run}/diagnosis", params={"at_step": step}).json()
        assert (replayed["step"], replayed["verdict"], replayed["since_step"]) == (
            earlier["step"],
            earlier["verdict"],
            earlier["since_step"],
        )
        assert [f["layers"] for f in replayed["findings"]] == [f["layers"] for f in earlier["findings"]]


def test_before_the_first_step_the_verdict_is_undetermined(client: TestClient, create_run: Any) -> None:
    """A run is undetermined, at no step, before its first step."""
    run = create_run(client)
    for parameters in ({}, {"at_step": 3}):
        answer = client.get(f"{run}/diagnosis", params=parameters).json()
        assert (answer["step"], answer["verdict"], answer["since_step"]) == (None, "undetermined", None)
    client.post(f"{run}/steps", json={"steps": [5], "loss": [1]})
    assert client.get(f"{run}/diagnosis", params={"at_step": 4}).json()["step"] is None


def test_an_unreadable_state_is_rebuilt(client: TestClient, create_run: Any, database: Database) -> None:
    """A state that this version of the code cannot read is rebuilt from the stored steps."""
    runs = [create_run(client, layers=2) for _ in range(2)]
    for run in runs:
        fill(client, run, list(range(50)), np.ones((50, 2)))
    with database.writing() as session:
        run_id = UUID(runs[0].rpartition("/")[2])
        session.execute(update(DiagnosisState).where(DiagnosisState.run_id == run_id).values(state=b"of old"))
    for action in ("read", "append"):
        if action == "append":
            for run in runs:
                body = {"steps": [50], "loss": [50.0], "statistics": {"grad_norm": [["NaN", 1]]}}
                assert client.post(f"{run}/steps", json=body).status_code == 200
        rebuilt, untouched = (client.get(f"{run}/diagnosis").json() for run in runs)
        for field in ("step", "verdict", "since_step", "summary"):
            assert rebuilt[field] == untouched[field]
    assert rebuilt["verdict"] == "exploding"


def test_a_negative_at_step_is_refused(client: TestClient) -> None:
    """A negative `at_step` is refused with its name."""
    response = client.get(f"/api/v1/runs/{new_id()}/diagnosis", params={"at_step": -1})
    assert response.json()["errors"][0]["path"] == "at_step"
