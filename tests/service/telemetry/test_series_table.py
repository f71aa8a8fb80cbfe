"""Series in the form that pages read: msgpack, fields, and infinite apart from NaN."""

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


def test_infinite_is_told_from_nan(client: TestClient, run: str) -> None:
    """Each bucket says how many of its non-finite values are infinite."""
    first, second, loss = client.get(f"{run}/steps", params=QUERY).json()["series"]
    assert (first["nonfinite"], first["infinite"]) == ([1, 2], [0, 2])
    assert (second["nonfinite"], second["infinite"]) == ([0, 1], [0, 0])
    assert (loss["nonfinite"], loss["infinite"]) == ([1, 1], [1, 0])


def test_both_forms_say_the_same(client: TestClient, run: str) -> None:
    """What msgpack holds as bytes is what JSON says: float32 of statistics, float64 of series, 0 for null."""
    told = client.get(f"{run}/steps", params=QUERY).json()
    packed = msgspec.msgpack.decode(client.get(f"{run}/steps", params=QUERY, headers=MSGPACK).content)
    assert {name: packed[name] for name in ("run_id", "first_step", "last_step")} == {
        name: told[name] for name in ("run_id", "first_step", "last_step")
    }
    for one, other in zip(told["series"], packed["series"], strict=True):
        assert (one["statistic"], one["layer"]) == (other["statistic"], other["layer"])
        dtype = "<f8" if one["layer"] is None else "<f4"
        for name in ("min", "mean", "max"):
            expected = np.array([0.0 if value is None else value for value in one[name]], dtype=dtype)
            assert other[name] == expected.tobytes()
        for name in ("count", "nonfinite", "infinite"):
            assert np.frombuffer(other[name], "<u4").tolist() == one[name]


def test_only_the_fields_that_are_asked_for(client: TestClient, run: str) -> None:
    """`field` leaves numbers out of both forms; counts are always there, since they say what a number means."""
    query = QUERY | {"field": ["max"]}
    told = client.get(f"{run}/steps", params=query).json()["series"][0]
    assert (told["min"], told["mean"], told["max"]) == ([], [], [0.5, None])
    packed = msgspec.msgpack.decode(client.get(f"{run}/steps", params=query, headers=MSGPACK).content)["series"][0]
    assert packed.keys() == {"statistic", "layer", "max", "count", "nonfinite", "infinite"}


def test_unknown_fields_are_refused(client: TestClient, run: str) -> None:
    """A field that there is not is an error that names the ones there are."""
    response = client.get(f"{run}/steps", params=QUERY | {"field": ["median"]})
    assert (response.status_code, response.json()["errors"][0]["path"]) == (422, "field")
    assert "min, mean, max" in response.json()["detail"]


def test_msgpack_is_compressed_where_that_is_understood(client: TestClient, run: str) -> None:
    """With `Accept-Encoding: gzip` the same bytes come compressed, and caches are told what the answer depends on."""
    plain = client.get(f"{run}/steps", params=QUERY, headers=MSGPACK)
    with client.stream("GET", f"{run}/steps", params=QUERY, headers=MSGPACK | {"Accept-Encoding": "gzip"}) as packed:
        raw = b"".join(packed.iter_raw())
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["vary"] == "Accept, Accept-Encoding"
    assert gzip.decompress(raw) == plain.content
