"""No value of a request makes the service fail, and both databases take and refuse the same values.

Each body of the API, with all its fields, is sent again and again. In each request one value is odd: text with NUL or a
lone surrogate, an integer beyond 32, 64 or a thousand bits, a time at the edge of the calendar, deep nesting. The same
holds for query parameters, path parameters, page tokens and headers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import event
from starlette.testclient import TestClient
from tests.support.alerts import add_alerts
from tests.support.app_client import AppClient
from tests.support.odd_values import ODD_KEYS, has_storable_texts, odd_bodies, odd_tokens, query_texts
from tests.support.patience import PATIENCE
from tests.support.played_worker import API, CLIP, PlayedWorker, rerun, suspect

from gradmedic.protocol.ids import new_id
from gradmedic.protocol.service import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE, PROBLEM_MEDIA_TYPE
from gradmedic_service.app import build_services
from gradmedic_service.services import Services, provide_services, services_of
from gradmedic_service.settings import Settings

LAYER = {
    "name": "head.weight", "kind": "Linear", "shape": [4, 3], "numel": 12, "depth": 1, "frozen": False,
    "role": "weight", "fan_in": 3, "fan_out": 4, "activation": "relu", "normalized": True, "branch": False,
    "initial_rms": 0.1, "spectral_norm": 1.2, "input_normalized": False, "block": "head", "calls": 2,
    "requires_grad": True,
}  # fmt: skip
TRAINING = {
    "optimizers": [{"name": "SGD", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0, "beta2": 0.9,
                    "epsilon": 1e-8}],
    "precision": "float32", "parameter_dtype": "float32",
    "input_rms": 1.0, "input_abs_max": 3.0, "target_rms": 1.0, "batch_size": 8,
    "clips_gradients": True, "carries_gradients": False, "layer_order": "execution", "dropped_steps": 0,
    "loss": {"kind": "cross_entropy", "operations": ["NllLoss", "LogSoftmax"], "classes": 10, "constant_level": 2.3,
             "broadcasts": False, "surrogate": False},
    "objective": {"kind": "metric", "metric": "reward", "direction": "maximize"},
    "origin": {
        "operation": "sqrt", "direction": "backward", "module": "head", "step": 7, "value": "NaN", "kind": "numeric",
        "source": {"file": "train.py", "line": 57, "text": "x.sqrt()"}, "reproduced": "1 of 1", "is_loss_finite": True,
        "is_eager": False, "operations": ["Mean"],
        "batch_tensors": [{"shape": [4, 3], "dtype": "float32", "digest": "0123456789abcdef", "nonfinite_count": 1,
                           "min": -1.0, "max": 2.0, "examples": [3]}],
        "reason": "none", "text": "NaN is born",
        "input": {"shape": [4, 3], "dtype": "float32", "special": "zero", "count": 1, "total": 12, "unit": "element",
                  "value": 0.0, "text": "the input was 0"},
    },
}  # fmt: skip
CONFIG = {"lr": 0.1, "seed": 7, "name": "x", "deep": {"list": [1, "a"], "flag": True}}


@dataclass
class World:
    """A service on one database, with an object of each kind."""

    app: FastAPI
    client: TestClient
    services: Services
    executor: str = "local"
    run_id: str = ""
    rerun_id: str = ""
    claimed: dict[str, Any] = field(default_factory=dict)
    key_id: str = ""
    destination_id: str = ""
    connections: int = 0
    """How often the service has taken a connection to this world's database."""

    def __post_init__(self) -> None:
        event.listen(self.services.database.engine, "checkout", self._count_connection)

    def _count_connection(self, *_: object) -> None:
        self.connections += 1

    def enter(self) -> None:
        """Let the application use this world's services."""
        provide_services(self.app, self.services)

    def fill(self) -> None:
        """Make what the requests refer to, and two objects of each kind, so that each list has two pages."""
        self.enter()
        PlayedWorker(self.client).register()
        for name in ("first", "second"):
            suspect(self.client, project=name, trainable=None)
            key = {"scopes": ["read"], "name": name}
            self.key_id = self.client.post(f"{API}/api-keys", json=key).json()["id"]
            destination = {"project": "tests", "address": f"https://{name}.example.com/", "name": name}
            answer = self.client.post(f"{API}/alerts/destinations", json=destination)
            self.destination_id = answer.json()["id"]
        add_alerts(self.services.database, "tests", count=2)
        self.run_id = suspect(self.client)
        self.client.patch(f"{API}/projects/tests", json={"max_concurrent_trials": 1000})
        rerun(self.client, self.run_id, CLIP)
        self.new_trial()

    def new_run(self) -> None:
        """Make a run without steps."""
        self.enter()
        body = {"project": "tests", "layers": [{"name": "a"}, {"name": "b"}]}
        self.run_id = self.client.post(f"{API}/runs", json=body).json()["id"]

    def new_trial(self) -> None:
        """Make a rerun, and claim a trial of it."""
        self.enter()
        self.rerun_id = rerun(self.client, self.run_id, CLIP)["id"]
        claim = {"worker": "gpu-7", "trainables": ["train"], "executor": self.executor}
        while self.claimed.get("rerun_id") != self.rerun_id:
            self.claimed = self.client.post(f"{API}/trials/claim", json=claim).json()


@dataclass(frozen=True)
class Operation:
    """A route with a valid body."""

    path: Callable[[World], str]
    body: dict[str, Any]
    method: str = "POST"
    renew: Callable[[World], None] | None = None
    """Makes what the next request needs, where a request that succeeds makes the same request impossible."""
    is_msgpack: bool = False
    executor: str = "local"

    def request(self, body: Any) -> Callable[[World], httpx2.Response]:
        """Return a function that sends the request with a body."""
        content = msgspec.msgpack.encode(body) if self.is_msgpack else json.dumps(body).encode()
        headers = {"Content-Type": MSGPACK_MEDIA_TYPE if self.is_msgpack else JSON_MEDIA_TYPE}

        def send(world: World) -> httpx2.Response:
            return world.client.request(self.method, f"{API}{self.path(world)}", content=content, headers=headers)

        return send


def on_run(suffix: str = "") -> Callable[[World], str]:
    """Return the path of a route of a run."""
    return lambda world: f"/runs/{world.run_id}{suffix}"


def on_trial(suffix: str) -> Callable[[World], str]:
    """Return the path of a route of a trial."""
    return lambda world: f"/trials/{world.claimed['trial_id']}{suffix}"


ACTION = {
    "step": 901, "action": "skip", "reason": "gradient_spike", "numbers": {"grad_norm": 90.0, "limit": 12.0},
    "explanation": "The gradient is far above its usual norms.",
}  # fmt: skip
STEPS = {
    "steps": [900, 901], "generation": 0, "loss": [1.0, 1.1], "learning_rate": [0.1, 0.1], "time": [1.7e9, 1.7e9],
    "sampled": [True, True], "skipped": [False, False], "loss_scale": [1.0, 1.0], "clip_coefficient": [1.0, 1.0],
    "output_gradient_norm": [1.0, None],
    "metrics": {"val_accuracy": [0.1, None]}, "statistics": {"grad_norm": [[0.5, 0.6], [0.5, 0.6]]},
    "guard_actions": [ACTION],
}  # fmt: skip
REWIND = {
    "step": 41, "action": "rewind", "reason": "nonfinite_loss", "numbers": {"loss": "NaN"},
    "explanation": "The loss is NaN.",
}  # fmt: skip
OPERATIONS = {
    "create_run": Operation(
        lambda _: "/runs",
        {
            "project": "tests", "layers": [LAYER], "name": "odd", "config": CONFIG, "tags": ["a"], "notes": "n",
            "group": "g", "framework": "torch 2", "statistics": ["grad_norm"], "training": TRAINING,
            "trainable": "train", "muted_detectors": ["plateau"], "id": None,
        },
    ),
    "update_run": Operation(
        on_run(),
        {
            "name": "odd", "notes": "n", "tags": ["a"], "config": {"lr": 0.1, "name": "x"}, "status": "finished",
            "training": {"precision": "float32", "batch_size": 8}, "muted_detectors": ["plateau"],
            "append_layers": [{"name": "late", "shape": [4, 3]}],  # the other fields are those of `create_run`
        },
        method="PATCH",
    ),
    "review_run": Operation(
        on_run("/review"),
        {"answer": "wrong", "verdict": "healthy", "level": "ok", "note": "n", "step": 40},
        method="PUT",
    ),
    "change_tags": Operation(
        lambda _: "/runs/tags", {"ids": [str(new_id())], "add": ["a"], "remove": ["b"]},
    ),
    "delete_runs": Operation(lambda _: "/runs/delete", {"ids": [str(new_id())]}),
    "append_steps": Operation(on_run("/steps"), STEPS, renew=World.new_run),
    "append_msgpack": Operation(
        on_run("/steps"),
        STEPS | {"statistics": {"grad_norm": bytes(16)}, "present": b"\x0f"},
        renew=World.new_run,
        is_msgpack=True,
    ),
    "rewind_run": Operation(
        on_run("/rewind"), {"step": 40, "generation": 0, "guard_action": REWIND}, renew=World.new_run
    ),
    "create_rerun": Operation(
        on_run("/reruns"),
        {
            "kind": "repair",
            "remedies": [
                [{"id": "scale_learning_rate", "parameters": {"factor": 0.1}}],
                [{"id": "switch_optimizer", "parameters": {"optimizer": "Adam", "learning_rate": 0.1}}],
                [{"id": "set_parameter", "parameters": {"lr": 0.2, "depth": 3}}],
            ],
            "seeds": 2, "budget": {"steps": 100, "seconds": 60.0, "trials": 5, "rounds": 2}, "executor": "local",
            "id": None,
        },
    ),
    "plan_rerun": Operation(
        on_run("/reruns/plan"),
        {
            "kind": "repair",
            "remedies": [[{"id": "scale_learning_rate", "parameters": {"factor": 0.1}}]],
            "seeds": 2, "budget": {"steps": 100, "seconds": 60.0, "trials": 5, "rounds": 2}, "executor": "local",
            "id": None,
        },
    ),
    "offer_trainables": Operation(
        lambda _: "/trainables",
        {
            "items": [
                {
                    "name": "odd", "gpus": 1, "timeout": 60.0,
                    "parameters": [
                        {"name": "n", "type": "int", "minimum": 1, "maximum": 9, "default": 5},
                        {"name": "window", "type": "int", "remedy": "truncate_backpropagation.time_steps",
                         "is_optional": True},
                        {"name": "x", "type": "str", "choices": ["a", "b"], "default": "a"},
                    ],
                }
            ],
            "worker": "gpu-7",
        },
        method="PUT",
    ),
    "claim_trial": Operation(
        lambda _: "/trials/claim", {"worker": "w", "trainables": ["other", "train"], "executor": "local"}
    ),
    "renew_lease": Operation(on_trial("/heartbeat"), {"attempt": 1, "output": "step 1"}),
    "issue_ticket": Operation(
        on_trial("/ticket"),
        {"attempt": 1, "ticket": "gradmedic_" + 43 * "A", "seconds": 600.0},
        renew=World.new_trial,
        executor="ray",
    ),
    "redeem_ticket": Operation(on_trial("/redeem"), {"attempt": 1}, executor="ray"),
    "publish_result": Operation(
        on_trial("/result"),
        {
            "attempt": 1, "status": "failed", "reason": "r", "exit_code": 1, "output": "o",
            "environment": {"torch": "2.13.0"}, "seconds": 1.0, "last_step": 0, "judge_by": "maximize reward",
            "evaluation": {"batches": 4, "training_loss": 0.31, "loss": 0.29, "output_difference": 0.1},
            "origin": TRAINING["origin"],
        },
        renew=World.new_trial,
    ),
    "update_project": Operation(
        lambda _: "/projects/tests",
        {
            "muted_detectors": ["plateau"], "rerun_automatically": True, "max_concurrent_trials": 8,
            "max_rerun_seconds": 60.0,
            "alerts_muted_until": "2026-01-02T00:00:00Z",
        },
        method="PATCH",
    ),
    "create_alert_destination": Operation(
        lambda _: "/alerts/destinations",
        {
            "project": "tests", "address": "https://hooks.example.com/alerts?a=1", "name": "odd",
            "troubles": ["critical", "failed"],
        },
    ),
    "update_alert_destination": Operation(
        lambda world: f"/alerts/destinations/{world.destination_id}",
        {"name": "odd", "troubles": ["critical", "failed"], "muted_until": "2026-01-02T00:00:00Z"},
        method="PATCH",
    ),
    "create_api_key": Operation(
        lambda _: "/api-keys",
        {
            "scopes": ["read"], "project": "tests", "name": "odd", "run_id": None, "expires_at": "2999-01-01T00:00:00Z",
        },
    ),
}  # fmt: skip


@pytest.fixture
def worlds(session_app: FastAPI, sqlite_url: str, postgres_url: str) -> Iterator[list[World]]:
    """The service on SQLite and on PostgreSQL."""
    route_table = services_of(session_app).route_table
    made = [
        build_services(
            Settings(
                database_url=SecretStr(url),
                database_timeout=PATIENCE,
                trial_lease=PATIENCE,
                due_work_interval=24 * 3600.0,
            ),
            route_table,
        )
        for url in (sqlite_url, postgres_url)
    ]
    provide_services(session_app, made[0])
    with AppClient(session_app, raise_server_exceptions=False) as client:
        yield [World(session_app, client, services) for services in made]
    for services in made:
        services.database.close()


class Comparison:
    """Sends each request to both databases, and collects those that fail or that the two answer differently."""

    def __init__(self, worlds: list[World]) -> None:
        self.worlds = worlds
        self.failures: list[str] = []
        self.compared = 0
        """Number of the requests that both databases were asked for."""

    def send(self, name: str, send: Callable[[World], httpx2.Response]) -> list[int]:
        """Send a request to both, or to one if its database is not asked, and return the statuses."""
        answers: list[tuple[int, str | None, list[str]]] = []
        for world in self.worlds:
            world.enter()
            connections = world.connections
            response = send(world)
            is_problem = response.headers.get("content-type") == PROBLEM_MEDIA_TYPE
            problem = response.json() if is_problem else {}
            paths = [error["path"] for error in problem.get("errors", [])]
            answers.append((response.status_code, problem.get("error_code"), paths))
            if world.connections == connections:
                break
        self.compared += len(answers) == len(self.worlds)
        if answers[0] != answers[-1] or answers[0][0] >= 500:
            self.failures.append(f"{name}: SQLite {answers[0]}, PostgreSQL {answers[-1]}")
        return [status for status, _, _ in answers]

    def check(self) -> None:
        """Fail with every request that failed."""
        assert not self.failures, "\n".join([f"{len(self.failures)} requests:", *self.failures])


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_bodies(name: str, worlds: list[World]) -> None:
    """With one odd value in its body no request fails, both databases answer alike and refuse what one cannot store."""
    operation = OPERATIONS[name]
    comparison = Comparison(worlds)
    for world in worlds:
        world.executor = operation.executor
        world.fill()
    statuses = comparison.send("the valid body", operation.request(operation.body))
    assert name == "redeem_ticket" or max(statuses) < 300  # only a ticket can be redeemed
    for variant, body in odd_bodies(operation.body):
        if operation.is_msgpack and not is_encodable(body):
            continue
        if operation.renew is not None and min(statuses) < 300:
            for world in worlds:
                operation.renew(world)
        statuses = comparison.send(variant, operation.request(body))
        if not has_storable_texts(body):
            assert set(statuses) <= {400, 422} or variant.startswith(CLEANED), variant
    assert comparison.compared > 0
    comparison.check()


def is_encodable(body: Any) -> bool:
    """Whether msgpack can hold a body."""
    try:
        msgspec.msgpack.encode(body)
    except (OverflowError, UnicodeEncodeError):
        return False
    return True


CLEANED = "output = "
"""The variants of the only text that may contain anything: what a trial's process has printed is cleaned."""
FILTERS = ("project", "verdict", "learning", "level", "status", "review", "tag", "group", "parent_id", "q", "loss")
QUERIES = {
    "/runs": (*FILTERS, "sort", "config_keys", "max_results", "page_token", "skip"),
    "/runs/counts": (*FILTERS, "group_by"),
    "/runs/columns": FILTERS,
    "/reruns": ("project", "run_id", "status", "max_results", "page_token"),
    "/projects": ("sort", "max_results", "page_token"),
    "/api-keys": ("max_results", "page_token"),
    "/audit-records": ("max_results", "page_token"),
    "/alerts/destinations": ("project", "max_results", "page_token"),
    "/alerts/history": ("project", "run_id", "trouble", "max_results", "page_token"),
    "/runs/{run_id}/steps": ("statistic", "layer", "from_step", "to_step", "max_points", "field"),
    "/runs/{run_id}/blocks": ("from_step", "to_step"),
    "/runs/{run_id}/diagnosis": ("at_step",),
    "/runs/{run_id}/guard-actions": ("max_results", "page_token"),
    "/trials/{trial_id}/output": ("attempt",),
    "/trials/{trial_id}/lease": ("attempt",),
}
NEEDED = {"/runs/{run_id}/steps": "statistic=loss&"}


@pytest.mark.slow
@pytest.mark.parametrize("template", QUERIES)
def test_query_parameters(template: str, worlds: list[World]) -> None:
    """With an odd query parameter or an unknown one with an odd name, no request fails, and both answer alike."""
    comparison = Comparison(worlds)
    for world in worlds:
        world.fill()

    def get(query: str) -> Callable[[World], httpx2.Response]:
        def send(world: World) -> httpx2.Response:
            path = template.format(run_id=world.run_id, trial_id=world.claimed["trial_id"])
            return world.client.get(f"{API}{path}?{NEEDED.get(template, '')}{query}")

        return send

    for parameter in QUERIES[template]:
        for text in query_texts():
            comparison.send(f"{parameter}={text[:40]!r}", get(f"{parameter}={quote(text, encoding='latin-1')}"))
    for key in ODD_KEYS:
        comparison.send(f"{key[:40]!r}=1", get(f"{quote(key.encode('utf-8', 'surrogatepass'))}=1"))
    comparison.check()


LISTS = (
    *("/runs", "/runs?sort=name", "/runs?sort=-updated_at", "/runs?sort=-config.lr"),
    *("/reruns", "/projects", "/api-keys", "/audit-records", "/alerts/destinations", "/alerts/history"),
    "/runs/{run_id}/guard-actions",
)


@pytest.mark.slow
@pytest.mark.parametrize("target", LISTS)
def test_page_tokens(target: str, worlds: list[World]) -> None:
    """A page token with an odd part is accepted, or refused under its name, by both databases alike."""
    comparison = Comparison(worlds)
    joint = "&" if "?" in target else "?"
    tokens: list[list[str]] = []
    for world in worlds:
        world.fill()
        if target == "/reruns":
            rerun(world.client, world.run_id, CLIP)
        if target.endswith("/guard-actions"):
            acted = {"steps": [950, 951], "guard_actions": [{**ACTION, "step": step} for step in (950, 951)]}
            world.client.post(f"{API}/runs/{world.run_id}/steps", json=acted).raise_for_status()
        page = world.client.get(f"{API}{target}{joint}max_results=1".format(run_id=world.run_id)).json()
        tokens.append(list(odd_tokens(page["next_page_token"])))
    for number, pair in enumerate(zip(*tokens, strict=True)):
        queries = {id(world): quote(token) for world, token in zip(worlds, pair, strict=True)}

        def send(world: World, queries: dict[int, str] = queries) -> httpx2.Response:
            path = target.format(run_id=world.run_id)
            response = world.client.get(f"{API}{path}{joint}page_token={queries[id(world)]}")
            if response.status_code == 422:
                assert [error["path"] for error in response.json()["errors"]] == ["page_token"]
            return response

        comparison.send(f"token {number}", send)
    comparison.check()


@pytest.mark.slow
def test_paths_and_headers(worlds: list[World]) -> None:
    """With an odd part of its path or an odd header no request fails, and both databases answer alike."""
    comparison = Comparison(worlds)
    targets = []
    for template, methods in worlds[0].app.openapi()["paths"].items():
        before, brace, rest = template.partition("{")
        if brace:
            texts = [quote(text, safe="", encoding="latin-1") for text in query_texts() if text]
            targets += [(method, f"{before}{text}{rest.partition('}')[2]}") for method in methods for text in texts]
    targets += [
        ("GET", f"/{page}/{quote(text)}") for page in ("runs", "reruns") for text in ("\x00", "x\x00", "9" * 5000)
    ]
    for method, target in targets:
        comparison.send(f"{method} {target:.80}", partial(request, method, target, {}))
    for name in ("Authorization", "Cookie", "Accept", "Last-Event-ID", "X-Request-ID", "Accept-Encoding"):
        for value in (b"Bearer \xed\xa0\x80", b"gradmedic_session=\xff\xfe", b"9" * 5000, b'gradmedic_session="\\000"'):
            comparison.send(f"{name}: {value[:40]!r}", partial(request, "GET", f"{API}/runs", {name.encode(): value}))
    comparison.check()


def request(method: str, target: str, headers: dict[bytes, bytes], world: World) -> httpx2.Response:
    """Send a request, with an empty object as its body if it may have one."""
    body: dict[str, Any] | None = None if method.upper() in ("GET", "DELETE") else {}
    return world.client.request(method, target, headers=list(headers.items()), json=body)


def test_every_operation_is_covered(session_app: FastAPI) -> None:
    """Each route with a body, each field of the body, and each query parameter is in the tables above."""
    document = session_app.openapi()
    schemas = document["components"]["schemas"]
    bodies: list[set[str]] = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            names = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
            if method == "get" and names:
                assert names == set(QUERIES[path.removeprefix(API)])
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                schema = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
                bodies.append(set(schema["properties"]))
    covered = [set(operation.body) for operation in OPERATIONS.values() if not operation.is_msgpack]
    assert sorted(map(sorted, bodies)) == sorted(map(sorted, covered))


CHECKED_BY_CODE = {"config", "parameters", "default", "output"}
"""Fields of bodies whose bounds the schema does not show: values of any type, and the output, which is cleaned."""


def test_every_text_and_integer_is_bounded(session_app: FastAPI) -> None:
    """In the schema of each body, texts exclude NUL, and integers have bounds within 64 bits."""
    document = session_app.openapi()
    unbounded: list[str] = []

    def check(name: str, schema: dict[str, Any]) -> None:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            schema = document["components"]["schemas"].get(name) or definitions[name]
        kind = schema.get("type")
        if kind == "string" and not schema.keys() & {"pattern", "format", "enum"}:
            unbounded.append(name)
        bounds = (schema.get("minimum", -math.inf), schema.get("maximum", math.inf))
        if kind == "integer" and not -(2**63) <= bounds[0] <= bounds[1] <= 2**63:  # FastAPI rounds them to floats
            unbounded.append(name)
        if kind == "object" and not schema.keys() & {"properties", "patternProperties"}:
            unbounded.append(name)
        for group in ("properties", "patternProperties"):
            for field_name, child in schema.get(group, {}).items():
                check(f"{name}.{field_name}", child)
        for child in [*schema.get("anyOf", []), schema.get("items")]:
            if child is not None:
                check(name, child)

    for methods in document["paths"].values():
        for operation in methods.values():
            content = operation.get("requestBody", {}).get("content", {})
            if JSON_MEDIA_TYPE in content:
                definitions = content[JSON_MEDIA_TYPE]["schema"].get("$defs", {})
                check("", content[JSON_MEDIA_TYPE]["schema"])
    assert {name.split(".")[1] for name in unbounded} == CHECKED_BY_CODE
