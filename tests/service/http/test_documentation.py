"""The OpenAPI document is complete and plain, and its pages need no network."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.testclient import TestClient
from tests.support.service_app import ReplaceServices

from gradmedic.protocol.alert_destinations import AlertDestinationCreate, AlertDestinationUpdate
from gradmedic.protocol.projects import ProjectUpdate
from gradmedic.protocol.reruns import RerunCreate
from gradmedic.protocol.runs import RunCreate, RunUpdate
from gradmedic.protocol.service import PROBLEM_MEDIA_TYPE
from gradmedic.protocol.steps import RunRewind, StepsAppend
from gradmedic.protocol.trainables import TrainablesOffer
from gradmedic.protocol.trials import TrialClaim, TrialHeartbeat, TrialResult
from gradmedic_service.alerts.addresses import parse_address
from gradmedic_service.alerts.endpoints import CREATE_EXAMPLES as CREATE_DESTINATION_EXAMPLES
from gradmedic_service.alerts.endpoints import UPDATE_EXAMPLES as UPDATE_DESTINATION_EXAMPLES
from gradmedic_service.projects.endpoints import UPDATE_EXAMPLES as PROJECT_UPDATE_EXAMPLES
from gradmedic_service.reruns.endpoints import CREATE_EXAMPLES as CREATE_RERUN_EXAMPLES
from gradmedic_service.runs.endpoints import CREATE_EXAMPLES, UPDATE_EXAMPLES
from gradmedic_service.telemetry.endpoints import APPEND_EXAMPLE, REWIND_EXAMPLES
from gradmedic_service.trainables.endpoints import OFFER_EXAMPLES
from gradmedic_service.trials.endpoints import CLAIM_EXAMPLES, HEARTBEAT_EXAMPLES, RESULT_EXAMPLES


@pytest.fixture(scope="session")
def document(session_app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document."""
    return session_app.openapi()


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return each route with its description."""
    return [
        (f"{method} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_route_is_documented(document: dict[str, Any]) -> None:
    """The document has exactly the routes of the service."""
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
        "get /api/v1/runs/counts",
        "get /api/v1/runs/columns",
        "post /api/v1/runs/tags",
        "post /api/v1/runs/delete",
        "get /api/v1/projects",
        "get /api/v1/projects/{name}",
        "patch /api/v1/projects/{name}",
        "post /api/v1/runs",
        "get /api/v1/runs",
        "get /api/v1/runs/{run_id}",
        "patch /api/v1/runs/{run_id}",
        "delete /api/v1/runs/{run_id}",
        "put /api/v1/runs/{run_id}/review",
        "delete /api/v1/runs/{run_id}/review",
        "post /api/v1/runs/{run_id}/steps",
        "get /api/v1/runs/{run_id}/steps",
        "get /api/v1/runs/{run_id}/blocks",
        "get /api/v1/runs/{run_id}/events",
        "post /api/v1/runs/{run_id}/rewind",
        "get /api/v1/runs/{run_id}/diagnosis",
        "get /api/v1/runs/{run_id}/diagnosis/history",
        "get /api/v1/runs/{run_id}/guard-actions",
        "post /api/v1/runs/{run_id}/reruns",
        "post /api/v1/runs/{run_id}/reruns/plan",
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
        "post /api/v1/alerts/destinations",
        "get /api/v1/alerts/destinations",
        "get /api/v1/alerts/destinations/{destination_id}",
        "patch /api/v1/alerts/destinations/{destination_id}",
        "delete /api/v1/alerts/destinations/{destination_id}",
        "post /api/v1/alerts/destinations/{destination_id}/test",
        "get /api/v1/alerts/history",
    }


def test_errors_are_documented_as_problems(document: dict[str, Any]) -> None:
    """Every error of every route is a problem with an example, and routes with a body document the errors of bodies."""
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
    """Every schema that the document refers to is in the document."""
    references = set(re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(document)))
    assert references <= document["components"]["schemas"].keys()


FRAGMENT_BEGINNINGS = (
    "As", "At", "Between", "By", "For", "From", "How", "In", "Inclusive", "Latest", "Negative", "Null", "Of", "Opaque",
    "Over", "Stable", "Strictly", "Takes", "That", "Those", "To", "Unique", "Until", "What", "When", "Where", "Whether",
    "Which", "While", "Who", "With", "Without",
)  # fmt: skip
"""First words of descriptions that cannot stand alone."""
FRAGMENTS = (
    "Of the key.",
    "Of the outcome.",
    "From 1.",
    "From 1 to 1000. Trials that run already go on.",
    "To within a minute or so.",
    "Over the finite values of the bucket.",
    "That the trial streams with: for its own run alone.",
    "Those that it can run now.",
    "For which it is good.",
    "With which it is sent.",
    "Until the attempt is given up, unless its worker is heard of before.",
    "Whether it may have no value; its argument is then left out.",
    "How many; 3 unless given.",
    "What it takes away: time, signal, exactness, or work.",
    "Who or what uses it: a job, a person, a worker.",
    "When it stops being accepted; null for never.",
    "Null until it was named or a first trial was taken.",
    "Negative: the signal that ended it.",
    "Opaque; pass it as `page_token` to read on.",
    "Stable, snake_case.",
    "Inclusive; without it, the last.",
    "A layer; repeatable.",
    "the last step",
    "The last step",
)
"""Descriptions of earlier versions, and two without a capital letter or a period."""


def description_error(description: str | None) -> str | None:
    """Return why a description cannot stand alone, None if it can."""
    if not description:
        return "is missing"
    if not re.match("[A-Z`]", description):
        return "does not start with a capital letter or code"
    if not description.endswith("."):
        return "does not end with a period"
    if ";" in re.sub("`[^`]*`", "", description):
        return "has a semicolon: write two sentences"
    first_word = re.split(r"[^\w-]", description, maxsplit=1)[0]
    if first_word in FRAGMENT_BEGINNINGS:
        return f"starts with {first_word!r}, as a fragment does"
    return None


def description_errors(descriptions: dict[str, str | None]) -> list[str]:
    """Return every place whose description cannot stand alone, with the description and the reason."""
    checked = ((place, text, description_error(text)) for place, text in descriptions.items())
    return [f"{place}: {text!r} {error}" for place, text, error in checked if error is not None]


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_fragments_are_found(fragment: str) -> None:
    """The rules refuse descriptions that need their surroundings to be understood."""
    assert description_error(fragment) is not None


def test_every_schema_and_field_is_described(document: dict[str, Any]) -> None:
    """Each schema and each of its fields has a description that stands alone."""
    descriptions = {}
    for name, schema in document["components"]["schemas"].items():
        descriptions[name] = schema.get("description")
        for field, property_schema in schema.get("properties", {}).items():
            descriptions[f"{name}.{field}"] = property_schema.get("description")
    assert description_errors(descriptions) == []


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    """Each operation, parameter, request body and response has a description that stands alone."""
    descriptions = {}
    for name, operation in operations(document):
        descriptions[name] = operation.get("description")
        for parameter in operation.get("parameters", []):
            descriptions[f"{name} {parameter['name']}"] = parameter.get("description")
        if "requestBody" in operation:
            descriptions[f"{name} body"] = operation["requestBody"].get("description")
        for status, response in operation["responses"].items():
            descriptions[f"{name} {status}"] = response.get("description")
    assert description_errors(descriptions) == []


def test_fields_are_described_by_their_docstrings(document: dict[str, Any]) -> None:
    """A field's description is its docstring, under its name on the wire, also if a base class declares the field."""
    schemas = document["components"]["schemas"]
    assert schemas["Layer"]["properties"]["kind"]["description"].startswith("Type of the module that owns the layer")
    assert schemas["RunDetail"]["properties"]["parent_id"]["description"].startswith("Id of the suspect run")
    assert schemas["RunList"]["properties"]["next_page_token"]["description"].startswith("Token of the next page")
    finding = schemas["Finding"]["properties"]
    assert finding["verdict"]["description"] == "The verdict that the finding supports."
    assert schemas["Diagnosis"]["properties"]["since_step"]["description"].startswith("First step of the verdict")


def test_the_former_key_of_a_findings_verdict_is_deprecated(document: dict[str, Any]) -> None:
    """A finding still carries `class`, described as deprecated, with the values of `verdict`."""
    finding = document["components"]["schemas"]["Finding"]["properties"]
    assert finding["class"]["deprecated"] is True
    assert finding["class"]["$ref"] == finding["verdict"]["$ref"]


def test_examples_are_valid() -> None:
    """The examples of request bodies are valid."""
    for example in CREATE_EXAMPLES.values():
        TypeAdapter(RunCreate).validate_python(example["value"])
    for example in UPDATE_EXAMPLES.values():
        TypeAdapter(RunUpdate).validate_python(example["value"])
    for example in PROJECT_UPDATE_EXAMPLES.values():
        TypeAdapter(ProjectUpdate).validate_python(example["value"])
    for example in REWIND_EXAMPLES.values():
        TypeAdapter(RunRewind).validate_python(example["value"])
    for type_, examples in (
        (AlertDestinationCreate, CREATE_DESTINATION_EXAMPLES),
        (AlertDestinationUpdate, UPDATE_DESTINATION_EXAMPLES),
        (RerunCreate, CREATE_RERUN_EXAMPLES),
        (TrainablesOffer, OFFER_EXAMPLES),
        (TrialClaim, CLAIM_EXAMPLES),
        (TrialHeartbeat, HEARTBEAT_EXAMPLES),
        (TrialResult, RESULT_EXAMPLES),
    ):
        for example in examples.values():
            TypeAdapter(type_).validate_python(example["value"])
    TypeAdapter(StepsAppend).validate_python(APPEND_EXAMPLE)
    for example in CREATE_DESTINATION_EXAMPLES.values():
        parse_address(example["value"]["address"], allows_loopback=False)


@pytest.mark.parametrize("requires_keys", [False, True], ids=["without keys", "with keys"])
def test_docs_need_no_network(
    requires_keys: bool, sqlite_client: TestClient, replace_services: ReplaceServices
) -> None:
    """The page loads files only from the service, and they can be read completely, also without a key."""
    replace_services(requires_keys=requires_keys)
    page = sqlite_client.get("/docs")
    assert page.status_code == 200
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3
    for address in loaded:
        assert address.startswith("/docs/files/")
        file = sqlite_client.get(address)
        assert (file.status_code, len(file.content)) == (200, int(file.headers["content-length"]))
    assert "http" not in page.text
