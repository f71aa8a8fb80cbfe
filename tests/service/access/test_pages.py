"""Pages where keys are required: who is led to the login, and what a key does not reach."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.service.reruns.conftest import CLIP, PlayedWorker, rerun, suspect


@pytest.mark.parametrize(
    "path", ["/", "/runs/0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50?from=1&to=2", "/compare?run=a&run=b"]
)
def test_who_is_not_known_is_led_to_the_login(guarded: TestClient, path: str) -> None:
    """With keys required a page leads to the login and, from there, back to exactly this view."""
    answer = guarded.get(path, follow_redirects=False)
    assert answer.status_code == 303
    login = guarded.get(answer.headers["location"])
    assert login.status_code == 200
    assert login.url.path == "/login"
    assert dict(login.url.params)["next"] == path


def test_another_projects_run_is_no_page(bearing: Any, create_run: Any) -> None:
    """For a key, the page of another project's run is that of a run that is not there."""
    theirs = create_run(bearing("admin", project="theirs"), project="theirs", name="secret one")
    answer = bearing("read").get(theirs.replace("/api/v1", ""))
    assert answer.status_code == 404
    assert "secret one" not in answer.text


def test_pages_of_administration_need_an_administrator(bearing: Any) -> None:
    """The page of API keys is refused to a key that may only read, and not linked for it."""
    reader = bearing("read")
    assert reader.get("/api-keys").status_code == 403
    assert 'href="/api-keys"' not in reader.get("/").text
    assert bearing("admin").get("/api-keys").status_code == 200


def test_reruns_are_started_by_who_may(bearing: Any) -> None:
    """The form that starts a rerun, and the pages of another project's reruns, are there for who reaches them."""
    admin, reader, other = bearing("admin"), bearing("read"), bearing("admin", project="theirs")
    worker = PlayedWorker(bearing("worker"))
    worker.register()
    run = suspect(admin, project="mine")
    assert 'id="start"' in admin.get(f"/runs/{run}").text
    assert 'id="start"' not in reader.get(f"/runs/{run}").text
    made = rerun(admin, run, CLIP)["id"]
    assert 'id="cancel"' in admin.get(f"/reruns/{made}").text
    assert 'id="cancel"' not in reader.get(f"/reruns/{made}").text
    assert other.get(f"/reruns/{made}").status_code == 404
