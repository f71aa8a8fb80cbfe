"""Reading a run's blocks: every step as it was sent, bit by bit, in parts of bounded size, on both databases."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.testclient import TestClient

from gradmedic.protocol.packed_blocks import BlockArrays, BlocksResult, Values, unpack_block
from gradmedic_service.telemetry import block_reading

NUMBERS = np.array([0.1, -0.0, np.nan, np.inf, -np.inf, 1e-45, 3.4028235e38, 1.0], dtype=np.float32)


def sent(first: int, count: int, layers: int) -> dict[str, Any]:
    """Return a msgpack body with every kind of value: odd floats, absent layers, skipped and unsampled steps."""
    sampled = [step % 3 != 1 for step in range(first, first + count)]
    rows = sum(sampled)
    values = np.resize(NUMBERS, (rows, layers)).astype("<f4")
    present = np.arange(rows * layers) % 5 != 2
    series = [None if step % 4 == 3 else float(NUMBERS[step % 8]) for step in range(first, first + count)]
    return {
        "steps": list(range(first, first + count)), "sampled": sampled, "loss": series,
        "skipped": [step % 7 == 0 for step in range(first, first + count)],
        "metrics": {"reward": series}, "statistics": {"grad_mean": values.tobytes()},
        "present": np.packbits(present, bitorder="little").tobytes(),
    }  # fmt: skip


def post(client: TestClient, run: str, body: dict[str, Any]) -> None:
    """Append a block."""
    headers = {"Content-Type": "application/vnd.msgpack"}
    response = client.post(f"{run}/steps", content=msgspec.msgpack.encode(body), headers=headers)
    assert response.status_code == 200, response.text


def read(client: TestClient, run: str, **query: Any) -> tuple[list[BlockArrays], int]:
    """Return the blocks of a run, and the number of requests."""
    blocks: list[BlockArrays] = []
    requests = 0
    while True:
        response = client.get(f"{run}/blocks", params=query)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/vnd.msgpack"
        page = msgspec.msgpack.decode(response.content, type=BlocksResult)
        blocks += map(unpack_block, page.blocks)
        requests += 1
        if page.next_step is None:
            return blocks, requests
        query["from_step"] = page.next_step


def test_blocks_are_read_as_they_were_sent(client: TestClient, create_run: Any) -> None:
    """Every number has the bits that were sent, and each absent value, skipped and unsampled step is absent again."""
    run = create_run(client, layers=3, statistics=("grad_mean",))
    bodies = [sent(0, 40, 3), sent(40, 70, 3), sent(200, 5, 3)]
    for body in bodies:
        post(client, run, body)
    blocks, _ = read(client, run)
    assert np.concatenate([block.steps for block in blocks]).tolist() == [
        step for body in bodies for step in body["steps"]
    ]
    for name in ("sampled", "skipped"):
        flags = np.concatenate([getattr(block, name) for block in blocks])
        assert flags.tolist() == [flag for body in bodies for flag in body[name]]
    present = np.concatenate([block.present for block in blocks])
    expected_present, expected = [], []
    for body in bodies:
        rows = sum(body["sampled"])
        bits = np.unpackbits(np.frombuffer(body["present"], np.uint8), count=rows * 3, bitorder="little")
        expected_present.append(bits.view(np.bool_).reshape(rows, 3))
        expected.append(np.frombuffer(body["statistics"]["grad_mean"], "<f4").reshape(rows, 3))
    assert np.array_equal(present, np.concatenate(expected_present))
    values = np.concatenate([block.statistics["grad_mean"] for block in blocks])
    assert np.array_equal(values[present].view(np.uint32), np.concatenate(expected)[present].view(np.uint32))
    assert not values[~present].any()
    losses = [loss for body in bodies for loss in body["loss"]]
    for series in (
        join([block.series["loss"] for block in blocks]),
        join([block.metrics["reward"] for block in blocks]),
    ):
        assert series.present.tolist() == [loss is not None for loss in losses]
        wanted = np.array([loss for loss in losses if loss is not None])
        assert np.array_equal(series.values[series.present].view(np.uint64), wanted.view(np.uint64))


def join(parts: list[Values]) -> Values:
    """Return the values of several blocks as one."""
    return Values(np.concatenate([part.values for part in parts]), np.concatenate([part.present for part in parts]))


def test_a_range_of_steps(client: TestClient, create_run: Any) -> None:
    """Only the steps of the range are answered, and layers that were added later are absent in earlier steps."""
    run = create_run(client, layers=2, statistics=("grad_mean",))
    post(client, run, sent(0, 60, 2))
    assert client.patch(run, json={"append_layers": [{"name": "late"}]}).status_code == 200
    blocks, _ = read(client, run, from_step=7, to_step=31)
    assert np.concatenate([block.steps for block in blocks]).tolist() == list(range(7, 32))
    assert all(block.present.shape[1] == 3 and not block.present[:, 2].any() for block in blocks)
    assert read(client, run, from_step=60)[0] == []
    assert read(client, create_run(client))[0] == []
    refused = client.get(f"{run}/blocks", params={"from_step": 5, "to_step": 4}).json()
    assert refused["errors"] == [{"path": "to_step", "message": "must not be before from_step, 5"}]


def test_an_answer_is_bounded(client: TestClient, create_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer ends after some values, and the next one goes on where it ended, with every step once."""
    monkeypatch.setattr(block_reading, "PAGE_VALUES", 300)
    run = create_run(client, layers=2, statistics=("grad_mean",))
    for first in range(0, 600, 100):
        post(client, run, sent(first, 100, 2))
    blocks, requests = read(client, run)
    assert requests >= 3
    assert np.concatenate([block.steps for block in blocks]).tolist() == list(range(600))
