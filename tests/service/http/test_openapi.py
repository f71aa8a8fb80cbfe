"""What generated clients build on in the OpenAPI document: names that stay, types with names, examples, and access."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from tests.support.service_app import CreateRun

from gradmedic.protocol.service import JSON_MEDIA_TYPE
from gradmedic_service.http.documentation import SECURITY_SCHEME
from gradmedic_service.http.named_schemas import NAMED_SCHEMAS
from gradmedic_service.services import provide_services, services_of

OPERATION_IDS = {
    "alert_destinations.create", "alert_destinations.delete", "alert_destinations.get", "alert_destinations.list",
    "alert_destinations.test", "alert_destinations.update", "alerts.list",
    "api_keys.create", "api_keys.list", "api_keys.revoke", "audit_records.list", "diagnosis.get", "diagnosis.history",
    "guard_actions.list",
    "projects.get", "projects.list", "projects.update", "reruns.cancel", "reruns.create", "reruns.get", "reruns.list",
    "reruns.plan",
    "runs.change_tags", "runs.count",
    "runs.create", "runs.delete", "runs.delete_many", "runs.follow", "runs.get", "runs.list", "runs.list_columns",
    "runs.review", "runs.take_back_review",
    "runs.update", "service.alive", "service.limits", "service.metrics", "service.ready", "session.close",
    "session.get", "session.open", "steps.append", "steps.read", "steps.read_blocks", "steps.rewind",
    "trainables.list", "trainables.register", "trials.claim", "trials.heartbeat", "trials.issue_ticket",
    "trials.lease", "trials.output", "trials.publish_result", "trials.redeem_ticket",
}  # fmt: skip
"""The ids of all operations. They are the names of functions in generated clients: add to them, remove none."""
TEXT_MEDIA_TYPES = (JSON_MEDIA_TYPE, "text/plain", "text/csv", "text/event-stream")


@pytest.fixture(scope="session")
def document(session_app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document."""
    return session_app.openapi()


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the description of each route."""
    for methods in document["paths"].values():
        yield from methods.values()


def answers(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each successful answer with a body: the operation's id, the media type, and schema and example."""
    for operation in operations(document):
        for status, response in operation["responses"].items():
            if status.startswith("2"):
                for media_type, content in response.get("content", {}).items():
                    yield operation["operationId"], media_type, content


def schemas_within(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every object of a document, at any depth."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from schemas_within(child)


def test_operation_ids_stay(document: dict[str, Any]) -> None:
    """Every route has one of the published ids, a noun and a verb, and every published id has a route."""
    ids = [operation["operationId"] for operation in operations(document)]
    assert len(ids) == len(set(ids))
    assert set(ids) == OPERATION_IDS
    assert [id for id in ids if not re.fullmatch(r"[a-z_]+\.[a-z_]+", id)] == []


def test_every_tag_is_described(document: dict[str, Any]) -> None:
    """Each operation has one tag, and the document describes exactly the tags that are used."""
    tags = [operation["tags"] for operation in operations(document)]
    assert {len(names) for names in tags} == {1}
    assert {tag["name"] for tag in document["tags"]} == {names[0] for names in tags}
    assert all(tag["description"].endswith(".") for tag in document["tags"])


def test_types_with_a_name_are_referred_to(document: dict[str, Any]) -> None:
    """A verdict, a level, a number and their like are described once; every field of that type refers to it."""
    schemas = document["components"]["schemas"]
    assert {"Verdict", "Level", "Learning", "Number"} <= NAMED_SCHEMAS.keys()
    diagnosis = schemas["Diagnosis"]["properties"]
    for field, name in (("verdict", "Verdict"), ("level", "Level"), ("learning", "Learning"), ("score", "Number")):
        assert diagnosis[field]["$ref"] == f"#/components/schemas/{name}"
    assert schemas["Verdict"]["enum"] == ["undetermined", "healthy", "vanishing", "exploding"]
    elsewhere = [schema for name, schema in schemas.items() if name not in NAMED_SCHEMAS]
    inline = list(schemas_within([elsewhere, document["paths"]]))
    assert [schema for schema in inline if schema.get("type") == "number"] == []
    named = [schema["enum"] for schema in NAMED_SCHEMAS.values() if "enum" in schema]
    assert [schema for schema in inline if schema.get("enum") in named] == []


def test_an_enumeration_belongs_to_a_text(document: dict[str, Any]) -> None:
    """No list of values stands beside a choice of types, where it would exclude null."""
    assert [schema for schema in schemas_within(document) if "enum" in schema and schema.get("type") != "string"] == []


def test_every_answer_has_a_valid_example(document: dict[str, Any]) -> None:
    """Each successful answer that is text has an example, and an example of JSON fits the schema."""
    missing, invalid = [], []
    for operation_id, media_type, content in answers(document):
        if media_type in TEXT_MEDIA_TYPES and not content.get("example"):
            missing.append(operation_id)
        if media_type == JSON_MEDIA_TYPE and "example" in content:
            schema = {**content["schema"], "components": document["components"]}
            errors = jsonschema_rs.Draft202012Validator(schema).iter_errors(content["example"])
            invalid += [f"{operation_id}: {error.message} at {error.instance_path}" for error in errors]
    assert missing == [], "add an example of the answer to `answer_examples.py`"
    assert invalid == []


def test_the_forms_of_steps_are_those_of_the_document(
    document: dict[str, Any], sqlite_client: TestClient, create_run: CreateRun
) -> None:
    """The document names JSON, msgpack, CSV and Parquet as answers with steps, and each can be asked for."""
    documented = {media_type for id, media_type, _ in answers(document) if id == "steps.read"}
    assert documented == {
        "application/json",
        "application/vnd.msgpack",
        "text/csv",
        "application/vnd.apache.parquet",
    }
    run = create_run(sqlite_client)
    assert sqlite_client.post(f"{run}/steps", json={"steps": [0], "loss": [1.5]}).status_code == 200
    for media_type in documented:
        answer = sqlite_client.get(f"{run}/steps?statistic=loss", headers={"Accept": media_type})
        assert answer.status_code == 200
        assert answer.headers["content-type"].partition(";")[0] == media_type


def test_keys_are_described_also_where_none_is_needed(session_app: FastAPI, sqlite_client: TestClient) -> None:
    """Protected routes name the bearer scheme with their scopes; where no key is needed, it is one of two ways."""
    services = services_of(session_app)
    for needs_key, alternatives in ((False, [{}, {SECURITY_SCHEME: ["read"]}]), (True, [{SECURITY_SCHEME: ["read"]}])):
        provide_services(session_app, replace(services, requires_keys=needs_key))
        session_app.openapi_schema = None
        document = session_app.openapi()
        scheme = document["components"]["securitySchemes"][SECURITY_SCHEME]
        assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
        assert document["paths"]["/api/v1/runs"]["get"]["security"] == alternatives
        assert "security" not in document["paths"]["/healthz"]["get"]
    session_app.openapi_schema = None
