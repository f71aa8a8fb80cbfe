"""Pages where API keys are required."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from starlette.testclient import TestClient
from tests.support.played_worker import CLIP, PlayedWorker, rerun, suspect


@pytest.mark.parametrize(
    "path", ["/", "/runs/0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50?from=1&to=2", "/compare?run=a&run=b"]
)
def test_redirect_to_the_login(client_without_key: TestClient, path: str) -> None:
    """Without a session a page redirects to the login, which returns to exactly the same view."""
    answer = client_without_key.get(path, follow_redirects=False)
    assert answer.status_code == 303
    login = client_without_key.get(answer.headers["location"])
    assert login.status_code == 200
    assert login.url.path == "/login"
    assert dict(login.url.params)["next"] == path


def test_the_page_of_another_projects_run(client_with_key: Any, create_run: Any) -> None:
    """The page of another project's run is answered as for a run that does not exist."""
    theirs = create_run(client_with_key("admin", project="theirs"), project="theirs", name="secret one")
    answer = client_with_key("read").get(theirs.replace("/api/v1", ""))
    assert answer.status_code == 404
    assert "secret one" not in answer.text


def test_the_page_of_api_keys(client_with_key: Any) -> None:
    """The page of API keys needs the scope `admin`, and is linked only for keys that have it."""
    reader = client_with_key("read")
    assert reader.get("/api-keys").status_code == 403
    assert 'href="/api-keys"' not in reader.get("/").text
    assert client_with_key("admin").get("/api-keys").status_code == 200


def test_the_form_of_reviews(client_with_key: Any, create_run: Any) -> None:
    """The form that reviews a verdict is shown only to keys that may write to the run and are not the run's own."""
    run = create_run(client_with_key("admin"), project="mine")
    page, run_id = run.replace("/api/v1", ""), UUID(run.rpartition("/")[2])
    assert 'id="review-form"' in client_with_key("ingest", "read").get(page).text
    for client in (client_with_key("read"), client_with_key("ingest", "read", run_id=run_id)):
        text = client.get(page).text
        assert 'id="review-answer"' in text
        assert 'id="review-form"' not in text


def test_the_forms_of_reruns(client_with_key: Any) -> None:
    """The forms that start and cancel a rerun are shown only to keys that may rerun, and only for their project."""
    admin, reader, other = client_with_key("admin"), client_with_key("read"), client_with_key("admin", project="theirs")
    worker = PlayedWorker(client_with_key("worker"))
    worker.register()
    run = suspect(admin, project="mine")
    assert 'id="start"' in admin.get(f"/runs/{run}").text
    assert 'id="start"' not in reader.get(f"/runs/{run}").text
    made = rerun(admin, run, CLIP)["id"]
    assert 'id="cancel"' in admin.get(f"/reruns/{made}").text
    assert 'id="cancel"' not in reader.get(f"/reruns/{made}").text
    assert other.get(f"/reruns/{made}").status_code == 404
