"""Every error is an RFC 9457 problem with a stable code."""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

import gradmedic_service
from gradmedic.protocol.service import PROBLEM_MEDIA_TYPE, Problem
from gradmedic_service.database.errors import UnknownRevision
from gradmedic_service.http.errors import MAX_REPORTED_FIELDS, InvalidRequest, ServiceError, documented
from gradmedic_service.runs.errors import RunExists
from gradmedic_service.telemetry.errors import StaleGeneration

RUNS = "/api/v1/runs"
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/nothing", {}, 404, "not_found"),
        ("GET", f"{RUNS}/", {}, 404, "not_found"),
        ("GET", f"{RUNS}/x/y/z", {}, 404, "not_found"),
        ("GET", "/docs/files/nothing.js", {}, 404, "not_found"),
        ("PUT", RUNS, {}, 405, "method_not_allowed"),
        ("POST", "/healthz", {}, 405, "method_not_allowed"),
        ("GET", f"{RUNS}/abc", {}, 422, "invalid_request"),
        ("POST", RUNS, {"content": "{", "headers": JSON}, 400, "malformed_body"),
        ("POST", RUNS, {"content": b"\xff\xfe", "headers": JSON}, 400, "malformed_body"),
        ("POST", RUNS, {"content": "[" * 100_000, "headers": JSON}, 400, "malformed_body"),
        ("POST", RUNS, {"content": "1" * 5000, "headers": JSON}, 400, "malformed_body"),
        ("POST", RUNS, {"content": "", "headers": JSON}, 422, "invalid_request"),
        ("POST", RUNS, {"content": "[]", "headers": JSON}, 422, "invalid_request"),
        ("POST", RUNS, {"content": "null", "headers": JSON}, 422, "invalid_request"),
        ("POST", RUNS, {"content": "{}"}, 415, "unsupported_media_type"),
        ("POST", RUNS, {"data": {"project": "p"}}, 415, "unsupported_media_type"),
        ("GET", f"{RUNS}?max_results=0", {}, 422, "invalid_request"),
    ],
)
def test_problem(
    sqlite_client: TestClient, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    """Every error is answered with the media type, the fields and the request id of a problem."""
    response = sqlite_client.request(method, path, **options)
    problem = response.json()
    assert (response.status_code, problem["status"], problem["error_code"]) == (status, status, code)
    assert response.headers["content-type"] == PROBLEM_MEDIA_TYPE
    assert set(problem) == set(Problem.__slots__)
    assert problem["type"].endswith(code)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["title"]
    assert problem["detail"]


def test_many_errors_are_cut(sqlite_client: TestClient) -> None:
    """Of a thousand invalid fields a hundred are looked for, and the first twenty are named."""
    response = sqlite_client.post(RUNS, json={"project": "p", "layers": [{}] * 1000})
    assert len(response.json()["errors"]) == MAX_REPORTED_FIELDS
    assert "and 99 more; the check stopped at 100 errors" in response.json()["detail"]


def test_error_codes_are_the_names_of_their_classes() -> None:
    """Each error that is answered has a code of its own, which is the name of its class in snake_case."""
    for module in pkgutil.walk_packages(gradmedic_service.__path__, "gradmedic_service."):
        if module.name.endswith(".errors"):
            importlib.import_module(module.name)
    classes = set(ServiceError.__subclasses__()) - {UnknownRevision}  # which only commands raise
    assert len(classes) > 30
    for cls in classes:
        assert cls.error_code == re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        assert cls.__module__.endswith(".errors")


def test_documented_errors_share_a_status() -> None:
    """Two errors of one status are two examples of one documented answer."""
    responses = documented(StaleGeneration, RunExists, InvalidRequest)
    examples = responses[409]["content"][PROBLEM_MEDIA_TYPE]["examples"]
    assert list(examples) == ["stale_generation", "run_exists"]
    assert list(responses) == [409, 422]
