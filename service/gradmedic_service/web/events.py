"""The route of server-sent events: changes of a run, as they happen.

An event carries only what a badge shows; the client reads the rest anew. The event id is the run's revision. After a
break, a browser sends the last id that it received (`Last-Event-ID`) to any replica, and receives all changes since.
The id belongs to the last event of each revision, so that a stream that breaks within a revision resumes before it. A
rerun changes without the revision of its run; the state of each rerun is sent anew whenever a stream begins.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from anyio import to_thread
from fastapi import Header, Path, Request
from fastapi.responses import StreamingResponse

from gradmedic.protocol.encoding import encode_json
from gradmedic_service.access.authorization import MayFollow
from gradmedic_service.access.principal import Principal
from gradmedic_service.access.shares import Client, client_of
from gradmedic_service.database.engine import Database
from gradmedic_service.http.dependencies import DatabaseDependency, LiveRunsDependency
from gradmedic_service.http.errors import InvalidRequest, documented
from gradmedic_service.http.routers import api_router
from gradmedic_service.reruns.repository import RerunRevision
from gradmedic_service.runs.errors import RunNotFound
from gradmedic_service.runs.repository import RunRevision
from gradmedic_service.web.errors import TooManyStreams
from gradmedic_service.web.live import LiveRuns, RunSnapshot, follow_snapshots, read_snapshots

HEARTBEAT_SECONDS = 15.0
"""Seconds between two heartbeats; proxies close a silent connection after 30 to 60."""
RECONNECT_MILLISECONDS = 2_000
MEDIA_TYPE = "text/event-stream"
FIELDS = {
    "status": ("status",),
    "verdict": ("verdict", "learning", "level", "score", "since_step"),
    "steps": ("revision", "generation", "last_step"),
    "rerun": ("rerun_id", "status", "trials", "revision"),
}
"""Fields of each event."""
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

router = api_router(prefix="/runs/{run_id}", tags=["runs"])


@router.get(
    "/events",
    operation_id="runs.follow",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {MEDIA_TYPE: {}},
            "description": "Events `steps`, `verdict`, `status` and `rerun`, until the run is deleted or the API key "
            "ends.",
        },
        **documented(RunNotFound, InvalidRequest, TooManyStreams),
    },
)
async def follow_run(
    request: Request,
    run_id: Annotated[UUID, Path(description="Id of the run.")],
    principal: MayFollow,
    database: DatabaseDependency,
    live: LiveRunsDependency,
    last_event_id: Annotated[
        str | None, Header(description="Last revision that the client received. Later changes come at once.")
    ] = None,
) -> StreamingResponse:
    """Follow a run by server-sent events.

    `status` and `verdict` come when they change, `steps` with every transaction on the run, `rerun` when one of its
    reruns starts, changes or ends.
    """
    client = client_of(request.scope)
    live.check_room(client)
    snapshot = await to_thread.run_sync(_find_run, database, principal, run_id)
    stream = _stream(database, live, snapshot, principal, client, last_event_id)
    return StreamingResponse(stream, media_type=MEDIA_TYPE, headers=HEADERS)


async def _stream(
    database: Database,
    live: LiveRuns,
    snapshot: RunSnapshot,
    principal: Principal,
    client: Client,
    last_event_id: str | None,
) -> AsyncIterator[str]:
    with live.watch(database, snapshot, principal, client) as watcher:
        is_up_to_date = last_event_id == str(snapshot.run.revision)
        run_events = _event("status", snapshot.run) if is_up_to_date else _run_events(None, snapshot.run)
        yield f"retry: {RECONNECT_MILLISECONDS}\n\n{_rerun_events([], snapshot.reruns)}{run_events}"
        last = snapshot
        async for new in follow_snapshots(watcher, HEARTBEAT_SECONDS):
            if new is None:
                yield ": still here\n\n"
            else:
                yield _rerun_events(last.reruns, new.reruns) + _run_events(last.run, new.run)
                last = new


def _find_run(database: Database, principal: Principal, run_id: UUID) -> RunSnapshot:
    snapshot = read_snapshots(database, [run_id]).get(run_id)
    if snapshot is None or not principal.reaches_run(run_id, snapshot.run.project):
        raise RunNotFound(f"There is no run {run_id}.")
    return snapshot


def _run_events(last: RunRevision | None, new: RunRevision) -> str:
    """Return the events of what has changed between two revisions; the last event has the id."""
    events = []
    if last is None or last.status != new.status:
        events.append(_event("status", new))
    if last is None or _course_of(last) != _course_of(new):
        events.append(_event("verdict", new))
    if last is None or last.revision != new.revision:
        events.append(f"id: {new.revision}\n{_event('steps', new)}")
    return "".join(events)


def _course_of(run: RunRevision) -> tuple[str, str, str, int | None]:
    return run.verdict, run.learning, run.level, run.since_step


def _rerun_events(last: list[RerunRevision], new: list[RerunRevision]) -> str:
    return "".join(_event("rerun", revision) for revision in new if revision not in last)


def _event(name: str, revision: RunRevision | RerunRevision) -> str:
    fields = {field: getattr(revision, field) for field in FIELDS[name]}
    content = {field: str(value) if isinstance(value, UUID) else value for field, value in fields.items()}
    return f"event: {name}\ndata: {encode_json(content).decode()}\n\n"
