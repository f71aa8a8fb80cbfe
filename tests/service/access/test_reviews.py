"""API keys that may review a run, and those that may not."""

from __future__ import annotations

from typing import Any
from uuid import UUID

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
