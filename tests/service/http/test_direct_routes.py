"""Direct routes answer as FastAPI would, and the route of a request is the one that FastAPI would choose."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
import structlog
from fastapi import BackgroundTasks, Cookie, Depends, FastAPI, Header, Query, Request, Response
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.routing import Match, Route
from starlette.testclient import TestClient
from starlette.types import Scope

from gradmedic.protocol.service import JSON_MEDIA_TYPE, MSGPACK_MEDIA_TYPE
from gradmedic_service.http.direct_routes import DirectRoute
from gradmedic_service.http.routers import api_router
from gradmedic_service.http.routes import RouteTable
from gradmedic_service.services import services_of

RUN_ID = "0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50"
BLOCK = b'{"steps": [0], "loss": [1.5], "statistics": {"grad_norm": [[1.0, 2.0, 3.0]]}}'
JSON = {"Content-Type": JSON_MEDIA_TYPE}


# --- the answers ------------------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "a block": {"content": BLOCK},
    "a block with a date": {"content": BLOCK, "headers": {"Date": "Tue, 01 Dec 2026 04:00:00 GMT"}},
    "a date that is none": {"content": BLOCK, "headers": {"Date": "yesterday"}},
    "a request id": {"content": BLOCK, "headers": {"X-Request-ID": "mine"}},
    "no such run": {"content": BLOCK, "run_id": RUN_ID},
    "an id that is none": {"content": BLOCK, "run_id": "x"},
    "an empty id": {"content": BLOCK, "run_id": ""},
    "an id with a NUL character": {"content": BLOCK, "run_id": "%00"},
    "an unknown query parameter": {"content": BLOCK, "query": "?x=1"},
    "an id that is none, and an unknown encoding": {
        "content": BLOCK,
        "run_id": "x",
        "headers": {"Content-Encoding": "br"},
    },
    "no media type": {"content": BLOCK, "headers": {"Content-Type": ""}},
    "another media type": {"content": BLOCK, "headers": {"Content-Type": "text/plain"}},
    "no body": {},
    "no JSON": {"content": b"{"},
    "a wrong field": {"content": b'{"steps": "x"}'},
    "a body that is too large": {"content": b" " * (65 * 2**20)},
    "PUT": {"content": BLOCK, "method": "PUT"},
    "OPTIONS": {"method": "OPTIONS"},
    "HEAD": {"method": "HEAD"},
    "a slash more": {"content": BLOCK, "suffix": "/"},
    "a key that is unknown": {"content": BLOCK, "headers": {"Authorization": "Bearer x"}},
    "another origin": {"content": BLOCK, "headers": {"Origin": "https://evil.example"}},
}
"""Requests to append steps: what differs from the usual one."""


READ_CASES: dict[str, dict[str, Any]] = {
    "the latest": {},
    "at a step": {"query": "?at_step=0"},
    "at a step after the last one": {"query": "?at_step=7"},
    "a step that is none": {"query": "?at_step=x"},
    "an empty step": {"query": "?at_step="},
    "a negative step": {"query": "?at_step=-1"},
    "a step that is too large": {"query": "?at_step=99999999999999999999"},
    "two steps": {"query": "?at_step=x&at_step=0"},
    "an unknown parameter": {"query": "?x=1"},
    "a step and an id that are none": {"query": "?at_step=x", "run_id": "x"},
    "no such run": {"run_id": RUN_ID},
    "HEAD": {"method": "HEAD"},
    "POST": {"method": "POST"},
    "a key that is unknown": {"headers": {"Authorization": "Bearer x"}},
}
"""Requests to read a diagnosis: what differs from the usual one."""


SERIES_CASES: dict[str, dict[str, Any]] = {
    "one series": {"query": "?statistic=loss"},
    "several": {"query": "?statistic=grad_norm&statistic=loss&layer=layers.1&field=mean&field=max"},
    "no statistic": {},
    "an empty statistic": {"query": "?statistic="},
    "an unknown statistic": {"query": "?statistic=x"},
    "no statistic, and numbers that are none": {"query": "?max_points=x&from_step=-1&to_step=y"},
    "too many points": {"query": "?statistic=loss&max_points=100000"},
    "msgpack": {"query": "?statistic=loss", "headers": {"Accept": MSGPACK_MEDIA_TYPE}},
    "msgpack with gzip": {
        "query": "?statistic=grad_norm",
        "headers": {"Accept": MSGPACK_MEDIA_TYPE, "Accept-Encoding": "gzip"},
    },
    "a table": {"query": "?statistic=loss", "headers": {"Accept": "text/csv"}},
    "no such run": {"query": "?statistic=loss", "run_id": RUN_ID},
    "an id that is none, and no statistic": {"run_id": "x"},
    "HEAD": {"query": "?statistic=loss", "method": "HEAD"},
}
"""Requests to read series: what differs from the usual one."""


def send(
    client: TestClient, run: str, case: dict[str, Any], method: str = "POST", route: str = "steps"
) -> tuple[int, dict[str, str], Any]:
    """Send the request of a case; return status, headers and content without what every request has of its own."""
    path = re.sub("[^/]+$", case["run_id"], run) if "run_id" in case else run
    response = client.request(
        case.get("method", method),
        f"{path}/{route}{case.get('suffix', '')}{case.get('query', '')}",
        content=case.get("content"),
        headers=JSON | case.get("headers", {}),
    )
    headers = dict(response.headers)
    request_id, run_id = headers.pop("x-request-id"), run.rpartition("/")[2]
    return response.status_code, headers, response.text.replace(request_id, "REQUEST").replace(run_id, "RUN")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_answers_are_those_of_fastapi(
    case: dict[str, Any], sqlite_client: TestClient, create_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to a direct route is answered as FastAPI's own way of serving would answer it, headers included."""
    direct = send(sqlite_client, create_run(sqlite_client), case)
    run = create_run(sqlite_client)
    monkeypatch.setattr("gradmedic_service.http.application.DirectRoute", _NoRoute)
    monkeypatch.setattr(DirectRoute, "handle", APIRoute.handle)
    assert send(sqlite_client, run, case) == direct


@pytest.mark.parametrize(
    ("route", "case"),
    [
        *(pytest.param("diagnosis", case, id=f"diagnosis: {name}") for name, case in READ_CASES.items()),
        *(pytest.param("steps", case, id=f"steps: {name}") for name, case in SERIES_CASES.items()),
    ],
)
def test_answers_to_reads_are_those_of_fastapi(
    route: str, case: dict[str, Any], sqlite_client: TestClient, create_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A diagnosis and series are read from a direct route as they would be from another one."""
    run = create_run(sqlite_client)
    rows = [[1.0, 2.0]] * 30 + [[1.0, "Infinity"]] * 10
    body = {"steps": list(range(40)), "loss": [1.5] * 30 + ["NaN"] * 10, "statistics": {"grad_norm": rows}}
    assert sqlite_client.post(f"{run}/steps", json=body).status_code == 200
    assert sqlite_client.get(f"{run}/diagnosis").json()["findings"]
    direct = send(sqlite_client, run, case, "GET", route)
    monkeypatch.setattr("gradmedic_service.http.application.DirectRoute", _NoRoute)
    monkeypatch.setattr(DirectRoute, "handle", APIRoute.handle)
    assert send(sqlite_client, run, case, "GET", route) == direct


def echo(
    n: Annotated[int, Query()],
    h: Annotated[str, Header()],
    x_limit: Annotated[int, Header()],
    m: Annotated[list[int] | None, Query()] = None,
    w: Annotated[list[str] | None, Header(alias="W-Name")] = None,
) -> Response:
    """Answer with the parameters."""
    return Response(repr((n, h, x_limit, m, w)))


@pytest.mark.parametrize("query", ["", "?n=1", "?n=x&m=1&m=y", "?n=1&n=2&m=3&m=4", "?n=", "?m="])
@pytest.mark.parametrize(
    "headers",
    [[], [("H", "a"), ("X-Limit", "7")], [("H", ""), ("X-Limit", "y")], [("h", "a"), ("W-Name", "b"), ("w-name", "c")]],
    ids=str,
)
def test_parameters_of_any_kind(query: str, headers: list[tuple[str, str]]) -> None:
    """Parameters that must be there, and those that may be repeated, are found as FastAPI finds them."""
    answers = []
    for route_class in (APIRoute, DirectRoute):
        app = FastAPI(openapi_url=None)
        app.router.route_class = route_class
        app.add_api_route("/", echo)
        with ThreadPoolExecutor(1) as threads, TestClient(app) as client:
            app.state.services = SimpleNamespace(request_threads=threads)
            response = client.get(f"/{query}", headers=headers)
            answers.append((response.status_code, response.text))
    assert answers[0] == answers[1]
    assert answers[0][0] in (200, 422)


class _NoRoute:
    """A class of no route."""


def test_the_request_id_is_in_the_log_of_the_thread(
    sqlite_client: TestClient, create_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that is logged while the endpoint runs has the id of its request."""
    run = create_run(sqlite_client)

    def log_and_fail(*_arguments: object) -> None:
        structlog.get_logger("test").info("inside")
        raise RuntimeError("kaboom")

    monkeypatch.setattr("gradmedic_service.telemetry.endpoints.append", log_and_fail)
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        response = sqlite_client.post(f"{run}/steps", content=BLOCK, headers=JSON)
    assert (response.status_code, response.json()["error_code"]) == (500, "internal_error")
    assert [line["event"] for line in lines] == ["inside", "failed", "request"]
    assert {line["request_id"] for line in lines} == {response.json()["request_id"]}


# --- what a direct route accepts --------------------------------------------------------------------------------------


async def read_query(request: Request, q: str) -> str:
    """Return what FastAPI would have to find."""
    return f"{request.url}{q}"


async def read_nothing() -> None:
    """Take no request."""


def read_on_thread(request: Request) -> str:
    """Return something, on a thread of FastAPI."""
    return request.method


async def answer_as_coroutine() -> Response:
    """Answer on the event loop."""
    return Response()


def answer_with_cookie(c: Annotated[str, Cookie()] = "") -> Response:
    """Take a cookie."""
    return Response(c)


def answer_with_body(b: dict[str, str]) -> Response:
    """Take a body that FastAPI decodes."""
    return Response(str(b))


def answer_with_nested(d: Annotated[str, Depends(read_query)]) -> Response:
    """Take a dependency with a parameter."""
    return Response(d)


def answer_without_request(_d: Annotated[None, Depends(read_nothing)]) -> Response:
    """Take a dependency that takes no request."""
    return Response()


def answer_with_thread(d: Annotated[str, Depends(read_on_thread)]) -> Response:
    """Take a dependency that is no coroutine."""
    return Response(d)


class Page(BaseModel):
    """Parameters of a query as a model."""

    number: int = 0


def answer_with_model(q: Annotated[Page, Query()]) -> Response:
    """Take a model whose fields are parameters of the query."""
    return Response(str(q))


def answer_with_other_name(q: Annotated[str, Query(validation_alias="p")]) -> Response:
    """Take a parameter that has another name for its validation."""
    return Response(q)


def answer_with_underscores(h_h: Annotated[str, Header(convert_underscores=False)]) -> Response:
    """Take a header with underscores in its name."""
    return Response(h_h)


def answer_with_default_to_validate(q: Annotated[int, Query(validate_default=True)] = 1) -> Response:
    """Take a default that is validated."""
    return Response(str(q))


def answer_with_mutable_default(q: Annotated[list[str], Query()] = ["a"]) -> Response:  # noqa: B006 (that is the case)
    """Take a default that an endpoint could change."""
    return Response(str(q))


def answer_with_request(r: Request) -> Response:
    """Take the request."""
    return Response(str(r))


def answer_with_tasks(t: BackgroundTasks) -> Response:
    """Take the tasks that run after the answer."""
    return Response(str(t))


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        (answer_with_model, "does not find q"),
        (answer_with_other_name, "does not find q"),
        (answer_with_underscores, "does not find h_h"),
        (answer_with_default_to_validate, "does not find q"),
        (answer_with_mutable_default, "does not find q"),
        (answer_with_request, "does not find r"),
        (answer_with_tasks, "does not find t"),
        (answer_as_coroutine, "answer_as_coroutine is a coroutine"),
        (answer_with_cookie, "does not find c"),
        (answer_with_body, "does not find b"),
        (answer_with_nested, "the dependency d is no coroutine that takes the request alone"),
        (answer_without_request, "the dependency _d is no coroutine"),
        (answer_with_thread, "the dependency d is no coroutine"),
    ],
)
def test_endpoints_that_no_direct_route_serves(endpoint: Callable[..., Response], message: str) -> None:
    """An endpoint that needs more than a direct route does is refused when it is declared, before a request fails."""
    with pytest.raises(TypeError, match=message):
        api_router(route_class=DirectRoute).add_api_route("/x", endpoint, response_model=None)


# --- the route of a request -------------------------------------------------------------------------------------------


def walk(app: FastAPI, method: str, path: str) -> Any:
    """Return the route that FastAPI would choose: the first in the order of declaration that matches in full.

    None if there is none, or if a mounted application comes first.
    """
    scope: Scope = {"type": "http", "method": method, "path": path, "root_path": ""}
    first = next((route for route in app.routes if route.matches(scope)[0] is Match.FULL), None)
    return first if isinstance(first, Route) else None


def example_paths(app: FastAPI) -> Iterator[str]:
    """Yield paths of each route: with an id, with a word, and with what looks like another route."""
    for route in app.routes:
        for value in (RUN_ID, "counts", "a/b", ""):
            yield re.sub(r"{[^}]+}", value, getattr(route, "path", ""))


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "get", "X")


def test_every_route_is_found(session_app: FastAPI) -> None:
    """For each method and many paths of each route, the table finds the route that FastAPI would choose."""
    table: RouteTable = services_of(session_app).route_table
    found = []
    for path in {*example_paths(session_app)}:
        for changed in (path, f"{path}/", f"{path}\n", f"/{path}", path.upper(), f"{path}/x"):
            for method in METHODS:
                route = table.find({"method": method, "path": changed})
                assert route is walk(session_app, method, changed), (method, changed)
                found.append(route)
    assert all(route in found for route in session_app.routes if isinstance(route, Route))


PARTS = st.sampled_from(
    [
        "",
        "api",
        "v1",
        "runs",
        "counts",
        "steps",
        "rewind",
        "reruns",
        "plan",
        "trials",
        "x",
        RUN_ID,
        "projects",
        "static",
    ]
)


@given(parts=st.lists(PARTS, max_size=7), method=st.sampled_from(METHODS))
def test_any_path_has_the_route_that_fastapi_would_choose(session_app: FastAPI, parts: list[str], method: str) -> None:
    """Whatever parts a path has, the table finds the same route as FastAPI."""
    path = f"/{'/'.join(parts)}"
    table = services_of(session_app).route_table
    assert table.find({"method": method, "path": path}) is walk(session_app, method, path)


def test_a_mounted_application_comes_before_later_routes() -> None:
    """A path of a mounted application has no route, although one that is declared later matches it too."""
    app = FastAPI(openapi_url=None)
    app.mount("/files", FastAPI(openapi_url=None))
    app.add_api_route("/{name:path}", answer_as_coroutine)
    table = RouteTable(app)
    assert table.find({"method": "GET", "path": "/files/a"}) is None
    assert table.find({"method": "GET", "path": "/other"}) is app.routes[-1]
    assert table.find({"method": "POST", "path": "/other"}) is None


def test_the_most_frequent_requests_have_direct_routes(session_app: FastAPI) -> None:
    """Steps are appended and read, and diagnoses are read, by direct routes, and nothing else is."""
    direct = [route for route in session_app.routes if isinstance(route, DirectRoute)]
    assert [route.operation_id for route in direct] == ["steps.append", "steps.read", "diagnosis.get"]
