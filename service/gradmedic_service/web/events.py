"""The route of server-sent events: what is new about a run, as it happens.

One idea: an event says what to look at again, and carries only what a badge shows. Its id is the run's revision: after
a break a browser sends the last one it saw (`Last-Event-ID`), to whichever replica, and hears of everything since. The
id stands on the last event of each revision, so that a stream that breaks in between is taken up before it. A rerun
goes on without the revision of the run that it is about: how each stands is told anew whenever a stream begins.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated
from uuid import UUID

from anyio import to_thread
from fastapi import APIRouter, Header, Path, Request
from fastapi.responses import StreamingResponse

from gradmedic_service.access.authentication import authenticate
from gradmedic_service.access.authorization import MayFollow
from gradmedic_service.access.principal import Principal
from gradmedic_service.database.engine import Database
from gradmedic_service.http.dependencies import DatabaseDependency, LiveRunsDependency
from gradmedic_service.http.errors import InvalidRequest, ServiceError, documented
from gradmedic_service.http.responses import to_json
from gradmedic_service.reruns.repository import RerunRevision
from gradmedic_service.runs.errors import RunNotFound
from gradmedic_service.runs.repository import RunRevision
from gradmedic_service.web.errors import TooManyStreams
from gradmedic_service.web.live import LiveRuns, RunSnapshot, look, sights_of

HEARTBEAT_SECONDS = 15.0
"""Proxies close a silent connection after 30 to 60; and that often the key is looked at again."""
RECONNECT_MILLISECONDS = 2_000
MEDIA_TYPE = "text/event-stream"
FIELDS = {
    "status": ("status",),
    "verdict": ("verdict", "score", "since_step"),
    "steps": ("revision", "generation", "last_step"),
    "rerun": ("rerun_id", "status", "trials", "revision"),
}
"""What an event carries."""
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

router = APIRouter(prefix="/runs/{run_id}", tags=["runs"])


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {MEDIA_TYPE: {}},
            "description": "Events `steps`, `verdict`, `status` and `rerun`, until it is closed",
        },
        **documented(RunNotFound, InvalidRequest, TooManyStreams),
    },
)
async def follow_run(
    run_id: Annotated[UUID, Path(description="Id of the run.")],
    principal: MayFollow,
    request: Request,
    database: DatabaseDependency,
    live: LiveRunsDependency,
    last_event_id: Annotated[
        str | None, Header(description="The last revision that was seen; what has changed since comes at once.")
    ] = None,
) -> StreamingResponse:
    """Follow a run by server-sent events.

    `status` and `verdict` come when they change, `steps` with every transaction, `rerun` when one of its reruns is made
    or ends, or one of its trials moves on.
    """
    live.check_room()
    sight = await to_thread.run_sync(_find, database, principal, run_id)
    stream = _stream(request, database, live, sight, last_event_id)
    return StreamingResponse(stream, media_type=MEDIA_TYPE, headers=HEADERS)


async def _stream(
    request: Request, database: Database, live: LiveRuns, sight: RunSnapshot, last_event_id: str | None
) -> AsyncIterator[str]:
    with live.watch(database, sight) as watcher:
        is_known = last_event_id == str(sight.pulse.revision)
        run_events = _event("status", sight.pulse) if is_known else _run_events(None, sight.pulse)
        yield f"retry: {RECONNECT_MILLISECONDS}\n\n{_rerun_events([], sight.reruns)}{run_events}"
        seen, checked_at = sight, time.monotonic()
        async for new in sights_of(watcher, live, HEARTBEAT_SECONDS):
            if time.monotonic() - checked_at >= HEARTBEAT_SECONDS:
                try:
                    await authenticate(request.scope)
                except ServiceError:
                    return  # who asks again is told why
                checked_at = time.monotonic()
            if new is None:
                yield ": still here\n\n"
            else:
                yield _rerun_events(seen.reruns, new.reruns) + _run_events(seen.pulse, new.pulse)
                seen = new


def _find(database: Database, principal: Principal, run_id: UUID) -> RunSnapshot:
    sight = look(database, [run_id]).get(run_id)
    if sight is None or not principal.reaches_run(run_id, sight.pulse.project):
        raise RunNotFound(f"There is no run {run_id}.")
    return sight


def _run_events(seen: RunRevision | None, new: RunRevision) -> str:
    """Write what has changed; the id comes last."""
    events = []
    if seen is None or seen.status != new.status:
        events.append(_event("status", new))
    if seen is None or (seen.verdict, seen.since_step) != (new.verdict, new.since_step):
        events.append(_event("verdict", new))
    if seen is None or seen.revision != new.revision:
        events.append(f"id: {new.revision}\n{_event('steps', new)}")
    return "".join(events)


def _rerun_events(seen: list[RerunRevision], new: list[RerunRevision]) -> str:
    return "".join(_event("rerun", one) for one in new if one not in seen)


def _event(name: str, pulse: RunRevision | RerunRevision) -> str:
    fields = {field: getattr(pulse, field) for field in FIELDS[name]}
    content = {field: str(value) if isinstance(value, UUID) else value for field, value in fields.items()}
    return f"event: {name}\ndata: {to_json(content)}\n\n"
