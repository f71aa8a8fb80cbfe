"""A file that has reached the limit of its size (`ulimit -f`) is answered like a full disk, on both databases."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import numpy as np
import pytest
from tests.support.patience import PATIENCE
from tests.support.postgres import PostgresServer
from tests.support.services import Serve

from gradmedic.protocol.service import MSGPACK_MEDIA_TYPE

WAL_SEGMENT_BYTES = 16 * 2**20
"""Size of the files of PostgreSQL's log. A lower limit would keep the server from writing its log at all."""
SPARE_BYTES = 2**16


def append_noise(client: httpx2.Client, run: str, first_step: int, steps: int) -> httpx2.Response:
    """Append steps with 256 metrics that no compression makes smaller."""
    noise = np.random.default_rng(first_step).normal(size=(256, steps))
    block = {
        "steps": list(range(first_step, first_step + steps)),
        "metrics": {f"m{index}": row.tolist() for index, row in enumerate(noise)},
    }
    return client.post(
        f"{run}/steps", content=msgspec.msgpack.encode(block), headers={"Content-Type": MSGPACK_MEDIA_TYPE}
    )


def limit_files(process: int, size: int) -> None:
    """Set the largest size, in bytes, to which a process may let a file grow."""
    resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_sqlite(serve: Serve, sqlite_url: str, create_run: Any, tmp_path: Path) -> None:
    """An append beyond the limit gets 507 and stores nothing; it works again once the limit is raised."""
    with serve(sqlite_url) as service, httpx2.Client(base_url=service.url, timeout=PATIENCE) as client:
        run = create_run(client)
        assert append_noise(client, run, 0, 10).status_code == 200
        largest = max(file.stat().st_size for file in tmp_path.iterdir())
        limit_files(service.process.pid, largest + SPARE_BYTES)
        refused = append_noise(client, run, 10, 1000)
        assert (refused.status_code, refused.json()["error_code"]) == (507, "storage_full")
        assert "file" in refused.json()["detail"]
        assert client.get(run).json()["last_step"] == 9
        limit_files(service.process.pid, resource.RLIM_INFINITY)
        assert append_noise(client, run, 10, 1000).json()["accepted"] == 1000


@pytest.mark.slow
def test_postgresql(serve: Serve, own_postgres: PostgresServer, create_run: Any) -> None:
    """An append beyond the limit of the database's server gets 507 and stores nothing; later appends work."""
    with serve(own_postgres.url) as service, httpx2.Client(base_url=service.url, timeout=PATIENCE) as client:
        run = create_run(client)
        own_postgres.stop()
        own_postgres.max_file_bytes = WAL_SEGMENT_BYTES + SPARE_BYTES
        own_postgres.start()
        last_step = -1
        while (response := append_noise(client, run, last_step + 1, 2_000)).status_code == 200:
            last_step = response.json()["last_step"]
            assert last_step < 20_000
        assert (response.status_code, response.json()["error_code"]) == (507, "storage_full")
        assert client.get(run).json()["last_step"] == last_step
        own_postgres.stop()
        own_postgres.max_file_bytes = resource.RLIM_INFINITY
        own_postgres.start()
        assert append_noise(client, run, last_step + 1, 2_000).json()["accepted"] == 2_000
