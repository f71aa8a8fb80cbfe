"""OpenAPI says what the service does, and its pages need no network."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.testclient import TestClient

from gradmedic.protocol.projects import ProjectUpdate
from gradmedic.protocol.reruns import RerunCreate
from gradmedic.protocol.runs import RunCreate, RunUpdate
from gradmedic.protocol.service import PROBLEM_MEDIA_TYPE
from gradmedic.protocol.steps import RunRewind, StepsAppend
from gradmedic.protocol.trainables import TrainablesOffer
from gradmedic.protocol.trials import TrialClaim, TrialHeartbeat, TrialResult
from gradmedic_service.projects.endpoints import UPDATE_EXAMPLES as PROJECT_UPDATE_EXAMPLES
from gradmedic_service.reruns.endpoints import CLAIM_EXAMPLES, HEARTBEAT_EXAMPLES, RESULT_EXAMPLES, TRAINABLES_EXAMPLES
from gradmedic_service.reruns.endpoints import CREATE_EXAMPLES as CREATE_RERUN_EXAMPLES
from gradmedic_service.runs.endpoints import CREATE_EXAMPLES, UPDATE_EXAMPLES
from gradmedic_service.telemetry.endpoints import APPEND_EXAMPLE, REWIND_EXAMPLES


@pytest.fixture(scope="session")
def document(session_app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document."""
    return session_app.openapi()


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each route with what is documented of it."""
    return [
        (f"{method} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_route_is_there(document: dict[str, Any]) -> None:
    """The document lists exactly the routes that there are."""
    assert {name for name, _ in operations(document)} == {
        "get /healthz",
        "get /readyz",
        "get /metrics",
        "get /api/v1/limits",
        "post /api/v1/api-keys",
        "get /api/v1/api-keys",
        "delete /api/v1/api-keys/{key_id}",
        "get /api/v1/audit-records",
        "post /api/v1/session",
        "get /api/v1/session",
        "delete /api/v1/session",
        "get /api/v1/projects",
        "get /api/v1/projects/{name}",
        "patch /api/v1/projects/{name}",
        "post /api/v1/runs",
        "get /api/v1/runs",
        "get /api/v1/runs/{run_id}",
        "patch /api/v1/runs/{run_id}",
        "delete /api/v1/runs/{run_id}",
        "post /api/v1/runs/{run_id}/steps",
        "get /api/v1/runs/{run_id}/steps",
        "get /api/v1/runs/{run_id}/events",
        "post /api/v1/runs/{run_id}/rewind",
        "get /api/v1/runs/{run_id}/diagnosis",
        "get /api/v1/runs/{run_id}/diagnosis/history",
        "post /api/v1/runs/{run_id}/reruns",
        "get /api/v1/reruns",
        "get /api/v1/reruns/{rerun_id}",
        "post /api/v1/reruns/{rerun_id}/cancel",
        "get /api/v1/trials/{trial_id}/output",
        "post /api/v1/trials/claim",
        "post /api/v1/trials/{trial_id}/heartbeat",
        "post /api/v1/trials/{trial_id}/result",
        "post /api/v1/trials/{trial_id}/ticket",
        "post /api/v1/trials/{trial_id}/redeem",
        "get /api/v1/trials/{trial_id}/lease",
        "get /api/v1/trainables",
        "put /api/v1/trainables",
    }


def test_errors_are_documented_as_problems(document: dict[str, Any]) -> None:
    """Every error of every route is a problem with an example; what takes a body may be malformed, large or foreign."""
    for name, operation in operations(document):
        documented = {int(status): response for status, response in operation["responses"].items()}
        for status, response in documented.items():
            if status >= 400:
                content = response["content"][PROBLEM_MEDIA_TYPE]
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, name
                assert content["examples"], name
        if "requestBody" in operation:
            assert {400, 413, 415, 422} <= documented.keys(), name
        if "{run_id}" in name:
            assert {404, 422} <= documented.keys(), name


def test_every_reference_resolves(document: dict[str, Any]) -> None:
    """No schema refers to one that is not in the document."""
    references = set(re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(document)))
    assert references <= document["components"]["schemas"].keys()
    assert "class" in document["components"]["schemas"]["Finding"]["properties"]


def test_fields_are_described(document: dict[str, Any]) -> None:
    """A field's docstring in the schema is its description, under its name on the wire and when it is inherited."""
    schemas = document["components"]["schemas"]
    assert schemas["Layer"]["properties"]["name"]["description"] == "Unique in the run, for example `encoder.0.weight`."
    assert schemas["RunDetail"]["properties"]["parent_id"]["description"].startswith("The suspect run")
    assert schemas["Finding"]["properties"]["class"]["description"] == "The verdict it speaks for."


def test_examples_are_valid() -> None:
    """The examples are requests that the service would take."""
    for example in CREATE_EXAMPLES.values():
        TypeAdapter(RunCreate).validate_python(example["value"])
    for example in UPDATE_EXAMPLES.values():
        TypeAdapter(RunUpdate).validate_python(example["value"])
    for example in PROJECT_UPDATE_EXAMPLES.values():
        TypeAdapter(ProjectUpdate).validate_python(example["value"])
    for example in REWIND_EXAMPLES.values():
        TypeAdapter(RunRewind).validate_python(example["value"])
    for type_, examples in (
        (RerunCreate, CREATE_RERUN_EXAMPLES),
        (TrainablesOffer, TRAINABLES_EXAMPLES),
        (TrialClaim, CLAIM_EXAMPLES),
        (TrialHeartbeat, HEARTBEAT_EXAMPLES),
        (TrialResult, RESULT_EXAMPLES),
    ):
        for example in examples.values():
            TypeAdapter(type_).validate_python(example["value"])
    TypeAdapter(StepsAppend).validate_python(APPEND_EXAMPLE)


def test_docs_need_no_network(sqlite_client: TestClient) -> None:
    """The page loads nothing from another host, and what it loads is there."""
    page = sqlite_client.get("/docs")
    assert page.status_code == 200
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3
    for address in loaded:
        assert address.startswith("/docs/files/")
        assert sqlite_client.get(address).status_code == 200
    assert "http" not in page.text
