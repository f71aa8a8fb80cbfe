"""API keys that may review a run or export it, and those that may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.support.app_client import client_of_app

import gradmedic
from gradmedic.export.recording import export_recording
from gradmedic.protocol.service import API_PATH


def test_a_review_needs_a_key_of_the_project_that_may_write(client_with_key: Any) -> None:
    """The scope `ingest` of the project may review and take back; `read` may not, nor the key of the run itself."""
    body = {"project": "mine", "layers": [{"name": "a"}]}
    writer = client_with_key("ingest", project="mine")
    run = writer.post(f"{API_PATH}/runs", json=body).json()["id"]
    path = f"{API_PATH}/runs/{run}/review"
    job = client_with_key("ingest", "read", run_id=UUID(run))
    reader = client_with_key("read", project="mine")
    assert writer.put(path, json={"answer": "right"}).status_code == 200
    for refused, code in ((reader, "scope_missing"), (job, "beyond_key")):
        answers = [refused.put(path, json={"answer": "wrong"}), refused.delete(path)]
        assert [answer.status_code for answer in answers] == [403, 403]
        assert {answer.json()["error_code"] for answer in answers} == {code}
    assert reader.get(f"{API_PATH}/runs/{run}").json()["review"]["answer"] == "right"
    assert job.patch(f"{API_PATH}/runs/{run}", json={"name": "new"}).json()["review"]["answer"] == "right"
    assert writer.delete(path).status_code == 204


def test_the_key_of_one_run_exports_it(client_with_key: Any, tmp_path: Path) -> None:
    """A key of one run exports that run, although it does not reach the project's settings; `ingest` is not enough."""
    writer = client_with_key("ingest", project="mine")
    run = writer.post(f"{API_PATH}/runs", json={"project": "mine", "layers": [{"name": "a"}]}).json()["id"]
    writer.post(f"{API_PATH}/runs/{run}/steps", json={"steps": [0], "loss": [1.0]})
    job = client_of_app(client_with_key("read", run_id=UUID(run)))
    assert export_recording(job, UUID(run), tmp_path / "run.gradmedic").steps == 1
    with pytest.raises(gradmedic.ApiError, match="needs the scope 'read'"):
        export_recording(client_of_app(writer), UUID(run), tmp_path / "other.gradmedic")
    assert [path.name for path in tmp_path.iterdir() if "gradmedic" in path.suffix] == ["run.gradmedic"]
