"""Exports: every step as it was sent, in parts, on both databases."""

from __future__ import annotations

import csv
import io
import math
import sys
from typing import Any
from uuid import UUID

import pyarrow.parquet
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from gradmedic_service.access.principal import LOOPBACK
from gradmedic_service.app import create_app
from gradmedic_service.database.engine import Database
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry import export, service

STEPS = 2000
ROWS: list[list[Any]] = [[float(step) / 3, "NaN" if step % 7 == 0 else None] for step in range(0, STEPS, 2)]


@pytest.fixture
def run(client: TestClient, create_run: Any) -> str:
    """Create a run with every kind of value: every other step is sampled, and a layer is added later."""
    path: str = create_run(client, layers=2)
    body = {
        "steps": list(range(STEPS)),
        "sampled": [step % 2 == 0 for step in range(STEPS)],
        "loss": ["Infinity" if step == 5 else None if step == 6 else step * 0.1 for step in range(STEPS)],
        "statistics": {"grad_norm": ROWS},
    }
    assert client.post(f"{path}/steps", json=body).status_code == 200
    assert client.patch(path, json={"append_layers": [{"name": "la,te"}]}).status_code == 200
    return path


def expected(step: int) -> list[float | None]:
    """Return the values of a step: of the two layers, of the late one, and the loss; None where absent."""
    layers: list[Any] = ROWS[step // 2] if step % 2 == 0 else [None, None]
    loss: Any = math.inf if step == 5 else None if step == 6 else step * 0.1
    return [*(None if value is None else float(value) for value in layers), None, loss]


def check(names: list[str], rows: list[list[float | None]], first: int, last: int) -> None:
    """Check a table against what was sent."""
    assert names == ["step", "grad_norm/layer0", "grad_norm/layer1", "grad_norm/la,te", "loss"]
    assert [row[0] for row in rows] == list(range(first, last + 1))
    for step, row in enumerate(rows, start=first):
        for value, wanted in zip(row[1:], expected(step), strict=True):
            if wanted is None or value is None:
                assert value is wanted
            else:
                assert value == pytest.approx(wanted, rel=1e-7, nan_ok=True)


@pytest.mark.parametrize(("first", "last"), [(0, STEPS - 1), (3, 3), (777, 1333)])
@pytest.mark.parametrize("media_type", export.MEDIA_TYPES)
def test_every_step_is_exported_as_it_was_sent(
    client: TestClient, run: str, media_type: str, first: int, last: int
) -> None:
    """A table has a row for each step and a column for each series; absent values are empty, NaN is a value."""
    query: dict[str, Any] = {"statistic": ["grad_norm", "loss"], "from_step": first, "to_step": last, "max_points": 1}
    response = client.get(f"{run}/steps", params=query, headers={"Accept": media_type})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith(media_type)
    if media_type == export.PARQUET_MEDIA_TYPE:
        table = pyarrow.parquet.read_table(io.BytesIO(response.content))
        assert [str(kind) for kind in table.schema.types] == ["int64", "float", "float", "float", "double"]
        check(table.column_names, [list(row.values()) for row in table.to_pylist()], first, last)
    else:
        names, *rows = csv.reader(io.StringIO(response.text))
        check(names, [[float(text) if text else None for text in row] for row in rows], first, last)


@pytest.mark.parametrize("media_type", export.MEDIA_TYPES)
def test_a_run_without_steps_is_a_table_without_rows(client: TestClient, create_run: Any, media_type: str) -> None:
    """Nothing to export is a table with its header, not an error."""
    response = client.get(f"{create_run(client)}/steps", params={"statistic": "loss"}, headers={"Accept": media_type})
    assert response.status_code == 200
    if media_type == export.PARQUET_MEDIA_TYPE:
        table = pyarrow.parquet.read_table(io.BytesIO(response.content))
        assert (table.column_names, table.num_rows) == (["step", "loss"], 0)
    else:
        assert response.text == "step,loss\r\n"


def test_bad_names_are_refused_before_the_first_byte(client: TestClient, run: str) -> None:
    """An export of what the run does not have is the same problem as a picture of it."""
    response = client.get(f"{run}/steps", params={"statistic": "loss", "layer": "x"}, headers={"Accept": "text/csv"})
    assert (response.status_code, response.json()["errors"][0]["path"]) == (422, "layer[0]")


def test_without_pyarrow_the_extra_is_named(client: TestClient, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow, a Parquet export is refused with the name of the extra to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    headers = {"Accept": export.PARQUET_MEDIA_TYPE}
    response = client.get(f"{run}/steps", params={"statistic": "loss"}, headers=headers)
    assert (response.status_code, response.json()["error_code"]) == (406, "not_acceptable")
    assert "gradmedic[parquet]" in response.json()["detail"]


def test_parts_are_small_and_end_when_the_run_is_rewound(client: TestClient, run: str, database: Database) -> None:
    """A part holds a few chunks, however long the run; a rewind ends the export with an error."""
    run_id = UUID(run.rpartition("/")[2])
    with database.reading_rows() as connection:
        selection, generation, last = service.select_for_export(connection, LOOPBACK, run_id, ["loss"], [])
    parts = export.stream_table(database, run_id, generation, selection, 0, last, export.CsvTable(selection))
    first = next(parts).decode()
    assert 50 <= first.count("\n") <= 100
    assert client.post(f"{run}/rewind", json={"step": 1500, "generation": 0}).status_code == 200
    with pytest.raises(export.RunChanged):
        list(parts)


def test_row_groups_have_many_steps(client: TestClient, run: str) -> None:
    """A Parquet file has few row groups: pyarrow keeps 2 KB for each column of each until the end."""
    headers = {"Accept": export.PARQUET_MEDIA_TYPE}
    response = client.get(f"{run}/steps", params={"statistic": "loss"}, headers=headers)
    file = pyarrow.parquet.ParquetFile(io.BytesIO(response.content))
    steps = file.metadata.num_rows
    assert file.num_row_groups <= 1 + round((steps * 16 / 2048) ** 0.5)
    assert export.count_memory(export.PARQUET_MEDIA_TYPE, 800, 10**6) < 300 * 2**20
    assert export.count_memory(export.CSV_MEDIA_TYPE, 800, 10**6) < 20 * 2**20


def test_an_export_that_takes_too_much_memory_is_refused(sqlite_url: str) -> None:
    """A Parquet file beyond the memory for answers is refused with the field and the bound; CSV is not."""
    settings = Settings(database_url=SecretStr(sqlite_url), max_answer_bytes=2**25)
    with TestClient(create_app(settings), base_url="http://localhost") as client:
        names = [f"layer{i}" for i in range(4000)]
        body = {"project": "p", "layers": [{"name": name} for name in names]}
        run = f"/api/v1/runs/{client.post('/api/v1/runs', json=body).json()['id']}"
        block = {"steps": [0, 1], "statistics": {"grad_norm": [[1.0] * 4000] * 2}}
        assert client.post(f"{run}/steps", json=block).status_code == 200
        query = {"statistic": "grad_norm"}
        refused = client.get(f"{run}/steps", params=query, headers={"Accept": export.PARQUET_MEDIA_TYPE})
        assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "statistic")
        assert "at most 32 are allowed" in refused.json()["errors"][0]["message"]
        accepted = client.get(f"{run}/steps", params=query, headers={"Accept": export.CSV_MEDIA_TYPE})
        assert accepted.status_code == 200
