"""Reviews of verdicts: stored with the run, checked, filtered, kept when the diagnosis changes; on both databases."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient
from tests.support.played_worker import block

from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import RunReview
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.telemetry.rediagnosis import rediagnose

API = "/api/v1"


@pytest.fixture
def exploding(client: TestClient, create_run: Any) -> str:
    """Create a run that is exploding at its last step and undetermined at its first; return its path."""
    path: str = create_run(client, layers=2)
    appended = client.post(f"{path}/steps", json=block("exploding"))
    assert appended.json()["verdict"] == "exploding"
    return path


def put(client: TestClient, run: str, **body: Any) -> dict[str, Any]:
    """Review a run and return the review."""
    response = client.put(f"{run}/review", json=body)
    assert response.status_code == 200, response.text
    review: dict[str, Any] = response.json()
    return review


def errors_of(client: TestClient, run: str, **body: Any) -> dict[str, str]:
    """Send a review that is refused; return the messages by field."""
    response = client.put(f"{run}/review", json=body)
    assert response.status_code == 422, response.text
    return {error["path"]: error["message"] for error in response.json()["errors"]}


def test_a_review_is_kept_with_the_run(client: TestClient, exploding: str) -> None:
    """A review has the answer, and the step, verdict, level and version that were judged; the run shows it."""
    before = client.get(exploding).json()
    assert before["review"] is None
    review = put(client, exploding, answer="wrong", verdict="healthy", level="ok", note="It learns.")
    assert review["reviewed_at"].endswith("Z")
    expected = {
        "answer": "wrong", "verdict": "healthy", "level": "ok", "note": "It learns.", "step": before["last_step"],
        "judged_verdict": "exploding", "judged_level": "critical", "diagnosis_version": "0.1.0",
    }  # fmt: skip
    assert {name: review[name] for name in expected} == expected
    after = client.get(exploding).json()
    assert after["review"] == review
    assert after["revision"] == before["revision"] + 1


def test_a_review_can_be_changed_and_taken_back(client: TestClient, exploding: str, database: Database) -> None:
    """A second review replaces the first; a deleted one is gone, and only a change raises the revision."""
    put(client, exploding, answer="wrong", verdict="healthy")
    assert put(client, exploding, answer="right")["verdict"] is None
    revision = client.get(exploding).json()["revision"]
    for _ in range(2):
        assert client.delete(f"{exploding}/review").status_code == 204
    run = client.get(exploding).json()
    assert (run["review"], run["revision"]) == (None, revision + 1)
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(RunReview)) == 0


def test_a_review_names_the_step_that_was_judged(client: TestClient, exploding: str) -> None:
    """With a step, the verdict and the level of that step are judged; before the first change they are undetermined."""
    review = put(client, exploding, answer="wrong", verdict="exploding", step=0)
    assert (review["step"], review["judged_verdict"], review["judged_level"]) == (0, "undetermined", "unknown")
    change = next(
        item for item in client.get(f"{exploding}/diagnosis/history").json()["items"] if item["verdict"] == "exploding"
    )
    for step, verdict in ((change["step"] - 1, False), (change["step"], True)):
        judged = put(client, exploding, answer="right", step=step)["judged_verdict"]
        assert (judged == "exploding") is verdict


def test_a_run_without_steps_can_be_reviewed(client: TestClient, create_run: Any) -> None:
    """The review of a run without steps has no step; a step is refused."""
    run = create_run(client)
    review = put(client, run, answer="right")
    assert (review["step"], review["judged_verdict"]) == (None, "undetermined")
    assert errors_of(client, run, answer="right", step=0) == {"step": "must be left out: the run has no step"}


def test_bad_reviews_are_refused_by_field(client: TestClient, exploding: str) -> None:
    """Each bad field is named with its limit or its choices, and nothing is stored."""
    last = client.get(exploding).json()["last_step"]
    limit = client.get(f"{API}/limits").json()["max_notes_length"]
    assert errors_of(client, exploding, answer="maybe") == {"answer": "'maybe' is not one of right, wrong"}
    assert errors_of(client, exploding, answer="wrong", verdict="bad", level="red") == {
        "verdict": "'bad' is not one of undetermined, healthy, vanishing, exploding",
        "level": "'red' is not one of unknown, ok, attention, critical",
    }
    assert set(errors_of(client, exploding, answer="right", verdict="healthy", level="ok")) == {"verdict", "level"}
    assert (
        "does not go with 'healthy'"
        in errors_of(client, exploding, answer="wrong", verdict="healthy", level="critical")["level"]
    )
    assert (
        "does not go with 'vanishing'"
        in errors_of(client, exploding, answer="wrong", verdict="vanishing", level="ok")["level"]
    )
    note = errors_of(client, exploding, answer="right", note="x" * (limit + 1))["note"]
    assert note == f"has {limit + 1} characters; at most {limit} are allowed"
    assert "from 0 to" in errors_of(client, exploding, answer="right", step=-1)["step"]
    message = errors_of(client, exploding, answer="right", step=last + 1)["step"]
    assert message == f"must be from 0 to {last}, the run's last step"
    same = errors_of(client, exploding, answer="wrong", verdict="exploding")
    assert same == {"verdict": f"the service's answer at step {last} was also exploding, so it is not wrong"}
    assert set(errors_of(client, exploding, answer="wrong", level="critical")) == {"level"}
    assert set(errors_of(client, exploding, verdict="healthy")) == {"answer"}
    assert client.get(exploding).json()["review"] is None


def test_lists_are_filtered_by_review(client: TestClient, create_run: Any) -> None:
    """The filter lists the runs whose review has an answer, or those without a review."""
    runs = {name: create_run(client, name=name) for name in ("right", "wrong", "none")}
    for answer in ("right", "wrong"):
        put(client, runs[answer], answer=answer)
    for value in runs:
        items = client.get(f"{API}/runs", params={"review": value}).json()["items"]
        assert [item["name"] for item in items] == [value]
    refused = client.get(f"{API}/runs", params={"review": "maybe"})
    assert refused.json()["errors"] == [{"path": "review", "message": "'maybe' is not one of right, wrong, none"}]
    first = client.get(f"{API}/runs", params={"max_results": 1}).json()["next_page_token"]
    assert client.get(f"{API}/runs", params={"page_token": first, "review": "none"}).status_code == 422


def test_a_rewind_and_a_new_diagnosis_keep_the_review(client: TestClient, exploding: str, database: Database) -> None:
    """A rewind drops steps and a rediagnosis replaces the verdict, but the review stays as it was."""
    review = put(client, exploding, answer="wrong", verdict="healthy")
    assert client.post(f"{exploding}/rewind", json={"step": 2, "generation": 0}).status_code == 200
    rediagnose(database, FactsCache(), UUID(exploding.rpartition("/")[2]))
    assert client.get(exploding).json()["review"] == review


def test_steps_go_on_after_a_review(client: TestClient, exploding: str) -> None:
    """A review between two blocks changes nothing about the steps that are stored."""
    last = client.get(exploding).json()["last_step"]
    put(client, exploding, answer="right")
    appended = client.post(f"{exploding}/steps", json={"steps": [last + 1], "loss": [1.0]}).json()
    assert (appended["accepted"], appended["last_step"]) == (1, last + 1)


def test_deleting_a_run_deletes_its_review(client: TestClient, exploding: str, database: Database) -> None:
    """No review is left of a deleted run."""
    put(client, exploding, answer="right")
    assert client.delete(exploding).status_code == 204
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(RunReview)) == 0
