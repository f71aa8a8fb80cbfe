"""JSON bodies are decoded within bounds of memory and of errors, and never on the event loop."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from pydantic import BeforeValidator
from starlette.testclient import TestClient

from gradmedic.protocol.schema import SCHEMA
from gradmedic.protocol.service import JSON_MEDIA_TYPE
from gradmedic_service.http.bodies import read_body
from gradmedic_service.http.errors import MAX_FOUND_ERRORS, MAX_MESSAGE_LENGTH, InvalidRequest, MalformedBody
from gradmedic_service.http.json_bodies import MAX_BYTES, MAX_NAMES, MAX_VALUES, JsonBody, json_body_of
from gradmedic_service.settings import Settings

LIMITS = Settings().limits()
RUNS = "/api/v1/runs"
JSON = {"Content-Type": JSON_MEDIA_TYPE}
MILLION = 1_000_000

validated: list[Any] = []


def record(value: Any) -> Any:
    """Remember that a value is validated."""
    validated.append(value)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A body whose validated items are counted."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    numbers: list[Annotated[int, BeforeValidator(record)]] = field(default_factory=list)
    nested: list[list[Annotated[int, BeforeValidator(record)]]] | None = None
    counted: list[Annotated[int, BeforeValidator(record)]] = field(default_factory=list)
    text: str = ""


def too_many(count: int, _limits: Any) -> str | None:
    """Refuse more than three items."""
    return f"has {count} items" if count > 3 else None


PROBE = JsonBody(Probe, {}, MAX_BYTES, lambda _limits: MAX_VALUES, {"counted": too_many}, lambda _body, _limits: None)


def refused(body: bytes) -> dict[str, str]:
    """Return the messages of a refused body by their paths, and forget what was validated before."""
    validated.clear()
    with pytest.raises(InvalidRequest) as caught:
        PROBE.decode(body, LIMITS)
    return {error.path: error.message for error in caught.value.errors}


def test_valid_bodies() -> None:
    """A body becomes an instance of its class; a missing list has its default, and null is kept where it is allowed."""
    assert PROBE.decode(b'{"numbers": [1, "2"], "nested": null}', LIMITS) == Probe(numbers=[1, 2])
    assert PROBE.decode(b'{"nested": [[1], []], "text": "a"}', LIMITS) == Probe(nested=[[1], []], text="a")


def test_a_list_is_validated_until_a_hundred_errors() -> None:
    """Of 50,000 wrong items a hundred are validated and reported, and the answer says that the check stopped."""
    errors = refused(json.dumps({"numbers": ["x"] * 50_000}).encode())
    assert len(validated) == len(errors) == MAX_FOUND_ERRORS
    assert errors["numbers[99]"].startswith("input should be a valid integer")


def test_a_list_in_a_list_is_validated_until_its_first_error() -> None:
    """Of 50,000 wrong items of an inner list one is validated and reported."""
    assert list(refused(json.dumps({"nested": [["x"] * 50_000]}).encode())) == ["nested[0][0]"]
    assert len(validated) == 1


def test_a_list_is_counted_before_its_items_are_validated() -> None:
    """Of a list that is too long no item is validated."""
    assert refused(json.dumps({"counted": ["x"] * 50_000}).encode()) == {"counted": "has 50000 items"}
    assert validated == []


def test_wrong_fields_and_wrong_items_are_reported_together() -> None:
    """The errors of fields come first, then those of the items of lists, each with its path."""
    errors = refused(b'{"text": 1, "other": 1, "numbers": [1, "x"], "nested": [1], "counted": {}}')
    assert set(list(errors)[:3]) == {"text", "counted", "other"}
    assert list(errors)[3:] == ["numbers[1]", "nested[0]"]
    assert (errors["counted"], errors["other"]) == ("must be a list", "there is no such field")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "is required"),
        (b"[]", "must be an object"),
        (b"[" + b"0," * MILLION + b"0]", f"more than {MAX_VALUES} values"),
        (b'{"numbers": [' + b"[]," * MILLION + b"0]}", f"more than {MAX_VALUES} values"),
        (b"[" * MILLION, f"more than {MAX_VALUES} values"),
        (b'{"a":' * MILLION, f"more than {MAX_VALUES} values"),
    ],
    ids=["empty", "list", "numbers", "lists", "deep lists", "deep objects"],
)
def test_values_are_counted_before_they_are_built(body: bytes, words: str) -> None:
    """A body of too many values is refused, and takes less memory than the body itself has."""
    tracemalloc.start()
    try:
        assert words in refused(body)["body"]
        assert tracemalloc.get_traced_memory()[1] < len(body) + 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b"1" * MILLION, b'{"text": ' + b"1" * MILLION + b"}", b'{"text": "' + b"x" * MILLION, b'"\xff"'],
    ids=["deep", "digits", "digits of a field", "cut short", "no UTF-8"],
)
def test_malformed_bodies(body: bytes) -> None:
    """What Python cannot read, or only with much work, is malformed: deep nesting and integers of a million digits."""
    with pytest.raises(MalformedBody):
        PROBE.decode(body, LIMITS)


def test_names_of_an_object_are_bounded() -> None:
    """An object of too many names is refused at once; an object of many unknown names with a hundred errors."""
    names = [f'"{number}": 0' for number in range(MAX_NAMES + 1)]
    body = JsonBody(Probe, {}, MAX_BYTES, lambda _limits: MILLION, {}, lambda _body, _limits: None)
    with pytest.raises(InvalidRequest, match=f"more than {MAX_NAMES} names"):
        body.decode(f"{{{','.join(names)}}}".encode(), LIMITS)
    assert len(refused(f"{{{','.join(names[:20_000])}}}".encode())) == MAX_FOUND_ERRORS


def test_of_a_repeated_name_the_last_counts() -> None:
    """A name may repeat in an object; its last value is used."""
    assert PROBE.decode(
        b'{"text": 1, "text": "a", ' + b'"numbers": [1], ' * 20_000 + b'"nested": null}', LIMITS
    ) == Probe(text="a", numbers=[1])


def test_answers_quote_the_beginning_of_a_value(sqlite_client: TestClient) -> None:
    """The answer to a name or a value of a million characters is short."""
    body = {"project": "p", "layers": [], "statistics": ["x" * MILLION], "y" * MILLION: 1}
    assert len(sqlite_client.post(RUNS, json=body).content) < 3 * MAX_MESSAGE_LENGTH
    del body["y" * MILLION]
    assert len(sqlite_client.post(RUNS, json=body).content) < 3 * MAX_MESSAGE_LENGTH


def test_bodies_without_a_large_field_are_short(sqlite_client: TestClient) -> None:
    """A body of two mebibytes is read only where layers, a config or steps may need them."""
    text = json.dumps({"worker": "x" * MAX_BYTES}).encode()
    assert sqlite_client.post(RUNS, content=text, headers=JSON).status_code == 422
    assert sqlite_client.post("/api/v1/trials/claim", content=text, headers=JSON).status_code == 413


def test_no_route_lets_the_framework_decode_its_body(session_app: FastAPI) -> None:
    """FastAPI, which decodes and validates on the event loop and without a bound, gets no body of any route.

    Every route that OpenAPI describes with a body reads it with `read_body`.
    """

    def calls(dependant: Dependant) -> list[Any]:
        inner = [call for dependency in dependant.dependencies for call in calls(dependency)]
        return [dependant.call, *inner]

    document = session_app.openapi()
    described = sum("requestBody" in operation for path in document["paths"].values() for operation in path.values())
    found = 0
    for route in iter_route_contexts(session_app.routes):
        dependant = getattr(route, "dependant", None)
        if dependant is None:
            continue
        assert getattr(route, "body_field", None) is None, route.path
        path = document["paths"].get((route.path or "").replace(":path", ""), {})
        for method in route.methods or ():
            if "requestBody" in path.get(method.lower(), {}):
                found += 1
                assert read_body in calls(dependant), route.path
                assert json_body_of(dependant) is not None or (route.path or "").endswith("/steps")
    assert found == described > 10


def test_wrong_layers_cost_little(sqlite_client: TestClient) -> None:
    """A run of a million wrong layers, and one of more layers than allowed, is refused for their number."""
    for layer, count in ((b"0", 2 * MILLION), (b"0", 500_000), (b'{"name":"a"}', 10_001)):
        body = b'{"project": "p", "layers": [' + b",".join([layer] * count) + b"]}"
        response = sqlite_client.post(RUNS, content=body, headers=JSON)
        assert response.status_code == 422
        assert response.json()["errors"][0]["path"] == ("body" if count > MILLION else "layers")


def test_as_many_layers_as_published_are_accepted(sqlite_client: TestClient) -> None:
    """A run may have as many fully described layers as `/limits` says, each with a long shape."""
    limits = sqlite_client.get("/api/v1/limits").json()
    layer = {
        "kind": "Conv, 2d", "shape": [1] * 8, "numel": 1, "depth": 1, "frozen": False, "role": "weight", "fan_in": 1,
        "fan_out": 1, "activation": "relu", "normalized": True, "branch": False, "initial_rms": 1.5, "spectral_norm": 1,
        "input_normalized": True, "block": "block.0", "calls": 2, "requires_grad": True,
    }  # fmt: skip
    layers = [{"name": f"block.{index}[weight]", **layer} for index in range(limits["max_layers"])]
    config = {"many": [1] * (limits["max_config_bytes"] // 2 - 10)}
    response = sqlite_client.post(RUNS, json={"project": "p", "layers": layers, "config": config})
    assert response.status_code == 201, response.text[:300]
