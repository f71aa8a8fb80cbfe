"""Every id that a request can name, on every route: objects of other projects or runs are refused and not changed.

`CASES` holds a request for each place of an id. A route, a parameter or a field of a body that is new makes
`test_every_place_of_an_id_has_a_case` fail until it has a case, or is listed as no id.
"""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from itertools import cycle
from typing import Any
from uuid import UUID

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from sqlalchemy import select
from starlette.testclient import TestClient
from tests.support.played_worker import CLIP, TRAINABLE, block

from gradmedic.protocol.access import SCOPES
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.authorization import ScopeRequirement, route_requirements
from gradmedic_service.access.secrets import new_secret
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import Base
from gradmedic_service.http.json_bodies import json_body_of

# --- what a project has -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objects:
    """A run of a project, and what belongs to it."""

    project: str
    trainable: str
    run: str
    rerun: str
    trial: str
    attempt_run: str
    """Id that is promised to the running attempt at the trial; its run does not exist yet."""
    waiting_trial: str
    """A trial whose attempt waits for a process with the ticket."""
    waiting_run: str
    ticket: str
    key: str
    """Id of an API key."""
    destination: str
    """Id of an alert destination, to which nothing can be sent."""

    def secrets(self) -> set[str]:
        """Return what no answer to another project may contain."""
        of_run = {self.run, self.rerun, self.trial, self.attempt_run, self.waiting_trial, self.waiting_run}
        return {*of_run, self.ticket, self.key, self.destination}


LAYERS = [{"name": "a"}, {"name": "b"}]


def make_objects(client_with_key: Any, project: str, trainable: str) -> Objects:
    """Create a run with a rerun on a worker's own machine and one on a cluster, each with a running attempt."""
    admin, worker = client_with_key("admin", project=project), client_with_key("worker", project=project)

    def send(method: str, path: str, client: TestClient = admin, **body: Any) -> Any:
        response = client.request(method, f"{API_PATH}{path}", json=body)
        assert response.status_code < 300, response.text
        return response.json()

    send("PUT", "/trainables", worker, items=[TRAINABLE | {"name": trainable}])
    run = send("POST", "/runs", project=project, trainable=trainable, layers=LAYERS, config={"lr": 0.5})["id"]
    send("POST", f"/runs/{run}/steps", **block("exploding"))
    claims = []
    for executor in ("local", "ray"):
        rerun = send("POST", f"/runs/{run}/reruns", remedies=[CLIP], executor=executor)
        claim = {"worker": "w", "trainables": [trainable], "executor": executor}
        claims.append(send("POST", "/trials/claim", worker, **claim))
        assert claims[-1]["rerun_id"] == rerun["id"]
    (local, waiting), ticket = claims, new_secret()
    send("POST", f"/trials/{waiting['trial_id']}/ticket", worker, attempt=1, ticket=ticket, seconds=600)
    return Objects(
        project=project,
        trainable=trainable,
        run=run,
        rerun=local["rerun_id"],
        trial=local["trial_id"],
        attempt_run=local["run_id"],
        waiting_trial=waiting["trial_id"],
        waiting_run=waiting["run_id"],
        ticket=ticket,
        key=send("POST", "/api-keys", project=project, scopes=["read"])["id"],
        destination=send("POST", "/alerts/destinations", project=project, address="https://10.0.0.1/")["id"],
    )


# --- the table --------------------------------------------------------------------------------------------------------

Answer = tuple[int, str | None]
"""Status and error code of an answer; no code of a page or of a success."""
NO_RUN: Answer = (404, "run_not_found")
NO_RERUN: Answer = (404, "rerun_not_found")
NO_TRIAL: Answer = (404, "trial_not_found")
NO_PROJECT: Answer = (404, "project_not_found")
BEYOND: Answer = (403, "beyond_key")
SCOPE_MISSING: Answer = (403, "scope_missing")
NO_SUCH_PAGE: Answer = (404, None)
LISTED: Answer = (200, None)
"""A list, which contains nothing of what the key does not reach."""


@dataclass(frozen=True)
class Case:
    """A request that names an id of `theirs` in one place; all other ids are of `mine`."""

    method: str
    path: str
    """Path of the route."""
    place: str
    """Name of the parameter, or path of the field in the body."""
    address: Callable[[Objects, Objects], str]
    answer: Answer
    """Answer to a key of the project of `mine` that has the scope."""
    body: Callable[[Objects, Objects], Any] | None = None
    answer_to_run_key: Answer | None = None
    """Answer to a key of one run, where it is another."""
    is_allowed_to_owner: bool = True
    """Whether a key with every scope may send the request about its own objects."""
    repeats_id: bool = False
    """Whether the answer repeats the run's id that the request names."""


def of_run(method: str, path: str = "", body: Any = None, query: str = "") -> Case:
    """Return the case of a route below a run."""
    return Case(
        method,
        f"{API_PATH}/runs/{{run_id}}{path}",
        "run_id",
        lambda _, theirs: f"{API_PATH}/runs/{theirs.run}{path}{query}",
        NO_RUN,
        None if body is None else lambda _mine, _theirs: body,
    )


def of_trial(method: str, path: str, body: Any = None, query: str = "", **more: Any) -> Case:
    """Return the case of a route below a trial."""
    return Case(
        method,
        f"{API_PATH}/trials/{{trial_id}}{path}",
        "trial_id",
        lambda _, theirs: f"{API_PATH}/trials/{theirs.trial}{path}{query}",
        NO_TRIAL,
        None if body is None else lambda _mine, _theirs: body,
        **more,
    )


def created(mine: Objects, **fields: Any) -> Any:
    """Return the body that creates a run, or the one that created the run of `mine`."""
    return {"project": mine.project, "trainable": mine.trainable, "layers": LAYERS, "config": {"lr": 0.5}, **fields}


def create(place: str, answer: Answer, body: Callable[[Objects, Objects], Any], **more: Any) -> Case:
    """Return a case of creating a run."""
    path = f"{API_PATH}/runs"
    return Case("POST", path, place, lambda _mine, _theirs: path, answer, body, answer_to_run_key=BEYOND, **more)


def listing(path: str, place: str, value: Callable[[Objects], str]) -> Case:
    """Return the case of a list with a filter."""
    path = f"{API_PATH}{path}"
    return Case("GET", path, place, lambda _, theirs: f"{path}?{place}={value(theirs)}", LISTED)


def of_many(path: str, **body: Any) -> Case:
    """Return the case of a change of many runs: it refuses the run alone."""
    path = f"{API_PATH}/runs{path}"
    return Case(
        "POST",
        path,
        "ids",
        lambda _mine, _theirs: path,
        (200, None),
        lambda _, theirs: {"ids": [theirs.run], **body},
        repeats_id=True,
    )


def new_key(place: str, body: Callable[[Objects, Objects], Any]) -> Case:
    """Return a case of creating an API key."""
    path = f"{API_PATH}/api-keys"
    return Case(
        "POST",
        path,
        place,
        lambda _mine, _theirs: path,
        BEYOND,
        lambda mine, theirs: {"project": mine.project, "scopes": ["read"], **body(mine, theirs)},
    )


def of_destination(method: str, path: str = "", body: Any = None) -> Case:
    """Return the case of a route below an alert destination."""
    return Case(
        method,
        f"{API_PATH}/alerts/destinations/{{destination_id}}{path}",
        "destination_id",
        lambda _, theirs: f"{API_PATH}/alerts/destinations/{theirs.destination}{path}",
        (404, "alert_destination_not_found"),
        None if body is None else lambda _mine, _theirs: body,
    )


CASES = [
    create("project", BEYOND, lambda mine, theirs: created(mine, project=theirs.project)),
    create("id", (409, "run_exists"), lambda mine, theirs: created(mine, id=theirs.run)),
    create(
        "id",
        (409, "run_exists"),
        lambda mine, theirs: created(mine, id=theirs.attempt_run),
        is_allowed_to_owner=False,  # only the attempt's key creates its run
    ),
    create("trainable", (201, None), lambda mine, theirs: created(mine, trainable=theirs.trainable)),
    listing("/runs", "project", lambda theirs: theirs.project),
    listing("/runs", "parent_id", lambda theirs: theirs.run),
    listing("/runs/counts", "project", lambda theirs: theirs.project),
    listing("/runs/counts", "parent_id", lambda theirs: theirs.run),
    listing("/runs/columns", "project", lambda theirs: theirs.project),
    listing("/runs/columns", "parent_id", lambda theirs: theirs.run),
    of_run("GET"),
    of_run("PATCH", body={"name": "changed"}),
    of_run("PUT", "/review", body={"answer": "right"}),
    of_run("DELETE", "/review"),
    of_run("POST", "/steps", {"steps": [500], "loss": [1.0], "statistics": {"grad_norm": [[1.0, 1.0]]}}),
    of_run("GET", "/steps", query="?statistic=loss"),
    of_run("GET", "/blocks"),
    of_run("GET", "/diagnosis"),
    of_run("GET", "/diagnosis/history"),
    of_run("GET", "/guard-actions"),
    of_run("POST", "/rewind", {"step": 400, "generation": 0}),
    of_run("POST", "/reruns", {"remedies": [CLIP]}),
    of_run("POST", "/reruns/plan", {"remedies": [CLIP]}),
    Case(
        "POST",
        f"{API_PATH}/runs/{{run_id}}/reruns/plan",
        "id",
        lambda mine, _: f"{API_PATH}/runs/{mine.run}/reruns/plan",
        (200, None),
        lambda _, theirs: {"id": theirs.rerun},
    ),
    Case(
        "POST",
        f"{API_PATH}/runs/{{run_id}}/reruns",
        "id",
        lambda mine, _: f"{API_PATH}/runs/{mine.run}/reruns",
        (409, "rerun_exists"),
        lambda _, theirs: {"id": theirs.rerun},
    ),
    listing("/reruns", "project", lambda theirs: theirs.project),
    listing("/reruns", "run_id", lambda theirs: theirs.run),
    Case(
        "GET",
        f"{API_PATH}/reruns/{{rerun_id}}",
        "rerun_id",
        lambda _, theirs: f"{API_PATH}/reruns/{theirs.rerun}",
        NO_RERUN,
    ),
    of_trial("GET", "/output"),
    of_trial("GET", "/lease", query="?attempt=1"),
    of_trial("POST", "/heartbeat", {"attempt": 1}, is_allowed_to_owner=False),  # only the worker's own key may
    of_trial("POST", "/ticket", {"attempt": 1, "ticket": new_secret(), "seconds": 9}, is_allowed_to_owner=False),
    of_trial("POST", "/redeem", {"attempt": 1}, is_allowed_to_owner=False),
    of_trial("POST", "/result", {"attempt": 1, "status": "failed"}, is_allowed_to_owner=False),
    Case(
        "POST",
        f"{API_PATH}/trials/{{trial_id}}/redeem",
        "trial_id",
        lambda _, theirs: f"{API_PATH}/trials/{theirs.waiting_trial}/redeem",
        NO_TRIAL,
        lambda _mine, _theirs: {"attempt": 1},
        is_allowed_to_owner=False,  # only the ticket may
    ),
    Case(
        "POST",
        f"{API_PATH}/trials/{{trial_id}}/ticket",
        "ticket",
        lambda mine, _: f"{API_PATH}/trials/{mine.waiting_trial}/ticket",
        NO_TRIAL,  # the keys of this test are not the worker's
        lambda _, theirs: {"attempt": 1, "ticket": theirs.ticket, "seconds": 9},
        is_allowed_to_owner=False,
    ),
    Case(
        "POST",
        f"{API_PATH}/trials/claim",
        "trainables",
        lambda _mine, _theirs: f"{API_PATH}/trials/claim",
        (204, None),
        lambda _, theirs: {"worker": "w", "trainables": [theirs.trainable]},
    ),
    Case(
        "PUT",
        f"{API_PATH}/trainables",
        "items.name",
        lambda _mine, _theirs: f"{API_PATH}/trainables",
        (200, None),
        lambda _, theirs: {"items": [{"name": theirs.trainable}]},
        is_allowed_to_owner=False,  # the name belongs to the worker's key
    ),
    new_key("project", lambda _, theirs: {"project": theirs.project}),
    new_key("run_id", lambda _, theirs: {"run_id": theirs.run}),
    new_key("run_id", lambda _, theirs: {"run_id": theirs.attempt_run}),
    Case(
        "GET",
        f"{API_PATH}/projects/{{name:path}}",
        "name",
        lambda _, theirs: f"{API_PATH}/projects/{theirs.project}",
        NO_PROJECT,
    ),
    Case(
        "PATCH",
        f"{API_PATH}/projects/{{name:path}}",
        "name",
        lambda _, theirs: f"{API_PATH}/projects/{theirs.project}",
        NO_PROJECT,
        lambda _mine, _theirs: {"rerun_automatically": False},
    ),
    listing("/alerts/destinations", "project", lambda theirs: theirs.project),
    listing("/alerts/history", "project", lambda theirs: theirs.project),
    listing("/alerts/history", "run_id", lambda theirs: theirs.run),
    Case(
        "POST",
        f"{API_PATH}/alerts/destinations",
        "project",
        lambda _mine, _theirs: f"{API_PATH}/alerts/destinations",
        BEYOND,
        lambda _, theirs: {"project": theirs.project, "address": "https://10.0.0.1/"},
    ),
    of_destination("GET"),
    of_destination("PATCH", body={"name": "changed"}),
    of_destination("POST", "/test"),
    of_destination("DELETE"),
    Case("GET", "/runs/{run_id}", "run_id", lambda _, theirs: f"/runs/{theirs.run}", NO_SUCH_PAGE),
    Case("GET", "/runs/{run_id}/notes", "run_id", lambda _, theirs: f"/runs/{theirs.run}/notes", NO_RUN),
    Case("GET", "/reruns/{rerun_id}", "rerun_id", lambda _, theirs: f"/reruns/{theirs.rerun}", NO_SUCH_PAGE),
    # The owner's own requests are sent in this order: those that end something come last.
    Case(
        "POST",
        f"{API_PATH}/reruns/{{rerun_id}}/cancel",
        "rerun_id",
        lambda _, theirs: f"{API_PATH}/reruns/{theirs.rerun}/cancel",
        NO_RERUN,
    ),
    Case(
        "DELETE",
        f"{API_PATH}/api-keys/{{key_id}}",
        "key_id",
        lambda _, theirs: f"{API_PATH}/api-keys/{theirs.key}",
        (404, "api_key_not_found"),
    ),
    of_run("GET", "/events"),
    of_many("/tags", add=["a"]),
    of_run("DELETE"),
    of_many("/delete"),
]

NO_IDS = frozenset({
    "accept", "accept-encoding", "add", "address", "muted_until", "trouble", "troubles",
    "alerts_muted_until", "answer", "append_layers", "at_step", "attempt",
    "budget", "budget.rounds", "budget.seconds", "budget.steps", "budget.trials", "config", "config_keys", "date",
    "environment", "evaluation", "executor", "exit_code", "expires_at", "field", "framework", "from_step",
    "generation", "gpus", "group", "group_by", "guard_action", "guard_actions",
    "items", "items.gpus", "items.parameters", "items.timeout", "judge_by",
    "kind", "last-event-id", "last_step", "layer", "layers", "learning", "level", "loss", "max_concurrent_trials",
    "max_points", "max_rerun_seconds", "max_results", "muted_detectors", "name", "note", "notes", "origin", "output",
    "page_token", "q", "reason", "remedies", "remove", "remedies.id", "remedies.parameters", "rerun_automatically",
    "review", "scopes", "seconds", "seeds", "skip", "sort", "statistic", "statistics", "status", "step", "tag", "tags",
    "to_step", "training", "verdict", "worker",
})  # fmt: skip
"""Parameters of queries, headers and fields of bodies that name no object: numbers, texts, and positions in lists that
are filtered by the key. What is nested in `layers`, `training`, `origin` and `guard_action` describes the run."""
DESCRIPTIONS = (
    "layers.",
    "append_layers.",
    "training.",
    "items.parameters.",
    "evaluation.",
    "origin.",
    "guard_action.",
)
PATHS_WITHOUT_OBJECTS = frozenset({"/static/{version}/{path:path}", "/conditions/{name}", "/operations/{name}"})


def declared_fields(annotation: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the type of each field of a body's type, at any depth."""
    if is_dataclass(annotation):
        for name, hint in typing.get_type_hints(annotation).items():
            if typing.get_origin(hint) is not typing.ClassVar:
                yield f"{prefix}{name}", hint
                yield from declared_fields(hint, f"{prefix}{name}.")
    else:
        for argument in typing.get_args(annotation):
            yield from declared_fields(argument, prefix)


def holds_uuid(annotation: Any) -> bool:
    """Whether a type is a UUID or contains one."""
    return annotation is UUID or any(holds_uuid(argument) for argument in typing.get_args(annotation))


def declared_places(dependant: Dependant) -> Iterator[tuple[str, bool]]:
    """Yield each parameter and field of a route, and whether it must be an id: in a path, or a UUID."""
    yield from ((each.alias, True) for each in dependant.path_params)
    for each in (*dependant.query_params, *dependant.header_params, *dependant.cookie_params):
        yield each.alias, holds_uuid(each.field_info.annotation)
    assert not dependant.body_params
    body = json_body_of(dependant)
    if body is not None:
        yield from ((path, holds_uuid(hint)) for path, hint in declared_fields(body.type))
    for dependency in dependant.dependencies:
        yield from declared_places(dependency)


def test_every_place_of_an_id_has_a_case(session_app: FastAPI) -> None:
    """Each parameter and field of each route has a case, or is listed as no id; a UUID and a path always have one."""
    covered = {(case.method, case.path, case.place) for case in CASES}
    declared, missing = set(), []
    for route in iter_route_contexts(session_app.routes):
        dependant = getattr(route, "dependant", None)
        if dependant is None or route.path in PATHS_WITHOUT_OBJECTS:
            continue
        for method in route.methods or ():
            for place, is_id in declared_places(dependant):
                declared.add((method, route.path, place))
                is_listed = not is_id and (place in NO_IDS or place.startswith(DESCRIPTIONS))
                if (method, route.path, place) not in covered and not is_listed:
                    missing.append((method, route.path, place))
    assert missing == []
    assert covered <= declared


# --- the requests -----------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(client_with_key: Any) -> Objects:
    """What the key of the test reaches."""
    return make_objects(client_with_key, "mine", "my-train")


def rows(database: Database) -> Counter[tuple[str, str | None, str]]:
    """Return all rows: the table, the project where there is one, and the content except for times of last uses."""
    found: Counter[tuple[str, str | None, str]] = Counter()
    with database.reading() as session:
        for table in Base.metadata.sorted_tables:
            for row in session.execute(select(table)).mappings():
                content = {name: value for name, value in row.items() if name != "last_used_at"}
                found[table.name, content.get("project"), repr(content)] += 1
    return found


def send(client: TestClient, case: Case, mine: Objects, theirs: Objects) -> tuple[Answer, str]:
    """Send a case's request; return status and code of the answer, and its text."""
    options = {} if case.body is None else {"json": case.body(mine, theirs)}
    response = client.request(case.method, case.address(mine, theirs), **options)
    is_problem = response.headers.get("content-type", "").startswith("application/problem+json")
    return (response.status_code, response.json()["error_code"] if is_problem else None), response.text


def find_mistakes(
    client: TestClient, expected: Callable[[Case], Answer], mine: Objects, theirs: Objects, database: Database
) -> list[str]:
    """Send the requests of all cases; return what is wrong with the answers and with the database afterwards."""
    mistakes: list[str] = []
    before = rows(database)
    for case in CASES:
        answer, text = send(client, case, mine, theirs)
        after = rows(database)
        changed, new = before - after, after - before
        wrong = [] if answer == expected(case) else [f"{answer} instead of {expected(case)}"]
        if answer[0] < 300:
            secrets = theirs.secrets() - ({theirs.run} if case.repeats_id else set())
            wrong += [f"reveals {secret}" for secret in secrets if secret in text]
        if expected(case)[0] >= 300 and (changed or new):
            wrong.append(f"changes {changed}, {new}")
        wrong += [f"changes {row}" for row in changed if row[1] != mine.project]
        wrong += [f"stores {row}" for row in new if row[1] not in (None, mine.project)]
        mistakes += [f"{case.method} {case.path} {case.place}: {each}" for each in wrong]
        before = after
    return mistakes


def expected_answer(case: Case, app: FastAPI, scopes: set[str], *, is_of_run: bool) -> Answer:
    """Return the answer to a key with some scopes, by the route's requirement and the table."""
    requirement = next(
        found for path, methods, found in route_requirements(app) if path == case.path and case.method in methods
    )
    if isinstance(requirement, ScopeRequirement):
        if requirement.scopes and scopes.isdisjoint({*requirement.scopes, "admin"}):
            return SCOPE_MISSING
    elif scopes.isdisjoint({"read", "admin"}):
        return 403, None
    return case.answer_to_run_key or case.answer if is_of_run else case.answer


@pytest.mark.parametrize(("scope", "backend"), [*zip(SCOPES, cycle(["sqlite", "postgresql"]), strict=False)])
def test_ids_of_another_project(
    scope: str, client_with_key: Any, mine: Objects, database: Database, session_app: FastAPI
) -> None:
    """With a key of each scope, an id of another project is answered as documented, and changes nothing there."""
    theirs = make_objects(client_with_key, "theirs", "their-train")
    mistakes = find_mistakes(
        client_with_key(scope),
        lambda case: expected_answer(case, session_app, {scope}, is_of_run=False),
        mine,
        theirs,
        database,
    )
    assert mistakes == []


@pytest.mark.parametrize(
    ("kind", "project", "backend"),
    [
        ("run", "theirs", "sqlite"),
        ("run", "mine", "postgresql"),
        ("attempt", "theirs", "postgresql"),
        ("attempt", "mine", "sqlite"),
        ("ticket", "theirs", "sqlite"),
        ("ticket", "mine", "postgresql"),
    ],
)
def test_ids_beyond_the_run_of_a_key(
    kind: str, project: str, client_with_key: Any, mine: Objects, database: Database, session_app: FastAPI
) -> None:
    """A key of one run reaches nothing else: not what another project has, nor other objects of its own project.

    The keys are those of a run, of an attempt at a trial, and a ticket.
    """
    theirs = make_objects(client_with_key, project, "their-train")
    scopes = {"run": {"ingest", "read"}, "attempt": {"ingest"}, "ticket": {"ticket"}}[kind]
    run_id = {"run": mine.run, "attempt": mine.attempt_run, "ticket": mine.waiting_run}[kind]
    mistakes = find_mistakes(
        client_with_key(*scopes, run_id=UUID(run_id)),
        lambda case: expected_answer(case, session_app, scopes, is_of_run=True),
        mine,
        theirs,
        database,
    )
    assert mistakes == []


def test_the_same_requests_about_own_objects(client_with_key: Any, mine: Objects) -> None:
    """The requests are correct: about the key's own objects they succeed."""
    client = client_with_key("admin")
    for case in CASES:
        if case.is_allowed_to_owner and not case.path.endswith("/events"):  # a stream would not end
            answer, text = send(client, case, mine, mine)
            assert answer[0] < 300, (case.method, case.path, case.place, text)


def test_an_id_that_does_not_exist(client_with_key: Any, mine: Objects) -> None:
    """What is answered with 404 is answered alike for an id that does not exist."""
    nothing = Objects(
        **{each.name: new_secret() if each.name == "ticket" else str(new_id()) for each in fields(Objects)}
    )
    client = client_with_key("admin")
    for case in CASES:
        if case.answer[0] == 404:
            assert send(client, case, mine, nothing)[0] == case.answer, (case.method, case.path)
