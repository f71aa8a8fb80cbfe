"""The forms of series: JSON and msgpack, selected fields, and separate counts of NaN and infinite values."""

from __future__ import annotations

import gzip
from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.testclient import TestClient

from gradmedic.protocol.service import MSGPACK_MEDIA_TYPE

VALUES: list[list[Any]] = [[0.5, None], ["NaN", 3e38], ["Infinity", 0.0], ["Infinity", "NaN"]]
QUERY: dict[str, Any] = {"statistic": ["grad_norm", "loss"], "max_points": 2}
MSGPACK = {"Accept": MSGPACK_MEDIA_TYPE, "Accept-Encoding": "identity"}


@pytest.fixture
def run(client: TestClient, create_run: Any) -> str:
    """A run of four steps with every kind of value."""
    path: str = create_run(client)
    body = {"steps": [0, 1, 2, 3], "loss": [1.0, "Infinity", "NaN", 1e300], "statistics": {"grad_norm": VALUES}}
    assert client.post(f"{path}/steps", json=body).status_code == 200
    return path


def test_infinite_values_are_counted_apart_from_nan(client: TestClient, run: str) -> None:
    """Each bucket counts how many of its non-finite values are infinite."""
    first, second, loss = client.get(f"{run}/steps", params=QUERY).json()["series"]
    assert (first["nonfinite"], first["infinite"]) == ([1, 2], [0, 2])
    assert (second["nonfinite"], second["infinite"]) == ([0, 1], [0, 0])
    assert (loss["nonfinite"], loss["infinite"]) == ([1, 1], [1, 0])


def test_both_forms_hold_the_same(client: TestClient, run: str) -> None:
    """The arrays of msgpack hold the numbers of JSON: float32 for statistics, float64 for series, 0 for null."""
    json_answer = client.get(f"{run}/steps", params=QUERY).json()
    packed = msgspec.msgpack.decode(client.get(f"{run}/steps", params=QUERY, headers=MSGPACK).content)
    assert {name: packed[name] for name in ("run_id", "first_step", "last_step")} == {
        name: json_answer[name] for name in ("run_id", "first_step", "last_step")
    }
    for as_json, as_msgpack in zip(json_answer["series"], packed["series"], strict=True):
        assert (as_json["statistic"], as_json["layer"]) == (as_msgpack["statistic"], as_msgpack["layer"])
        dtype = "<f8" if as_json["layer"] is None else "<f4"
        for name in ("min", "mean", "max"):
            expected = np.array([0.0 if value is None else value for value in as_json[name]], dtype=dtype)
            assert as_msgpack[name] == expected.tobytes()
        for name in ("count", "nonfinite", "infinite"):
            assert np.frombuffer(as_msgpack[name], "<u4").tolist() == as_json[name]


def test_only_selected_fields_are_answered(client: TestClient, run: str) -> None:
    """`field` leaves numbers out of both forms; the counts are always there."""
    query = QUERY | {"field": ["max"]}
    json_answer = client.get(f"{run}/steps", params=query).json()["series"][0]
    assert (json_answer["min"], json_answer["mean"], json_answer["max"]) == ([], [], [0.5, None])
    packed = msgspec.msgpack.decode(client.get(f"{run}/steps", params=query, headers=MSGPACK).content)["series"][0]
    assert packed.keys() == {"statistic", "layer", "max", "count", "nonfinite", "infinite"}


def test_unknown_fields_are_refused(client: TestClient, run: str) -> None:
    """An unknown field is refused with a message that lists the fields."""
    response = client.get(f"{run}/steps", params=QUERY | {"field": ["median"]})
    assert (response.status_code, response.json()["errors"][0]["path"]) == (422, "field")
    assert "min, mean, max" in response.json()["detail"]


def test_msgpack_is_compressed_for_clients_that_accept_gzip(client: TestClient, run: str) -> None:
    """With `Accept-Encoding: gzip` the same bytes come compressed, and `Vary` lists the headers that matter."""
    plain = client.get(f"{run}/steps", params=QUERY, headers=MSGPACK)
    with client.stream("GET", f"{run}/steps", params=QUERY, headers=MSGPACK | {"Accept-Encoding": "gzip"}) as packed:
        raw = b"".join(packed.iter_raw())
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "Accept, Accept-Encoding"
    assert gzip.decompress(raw) == plain.content
