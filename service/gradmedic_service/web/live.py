"""Follows runs for event streams.

A process reads all watched runs together once a second, by a few queries, however many streams there are. Every
transaction on a run raises its `revision`, so that a client that sends the last revision it saw misses nothing at any
replica; nothing is published or queued. A slow watcher sees fewer, later snapshots. The same reading ends the streams
whose API key or session has ended; the process in which that happens ends them at once.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import structlog
from anyio import to_thread

from gradmedic_service.access import repository as keys
from gradmedic_service.access.principal import Principal
from gradmedic_service.access.shares import Client, Shares
from gradmedic_service.database.engine import Database
from gradmedic_service.http.errors import ServiceError
from gradmedic_service.reruns import repository as reruns
from gradmedic_service.reruns.repository import RerunRevision
from gradmedic_service.runs import repository as runs
from gradmedic_service.runs.repository import RunRevision
from gradmedic_service.web.errors import TooManyStreams

POLL_SECONDS = 1.0
RETRY_AFTER_SECONDS = 30
CLIENT_PART = 2
"""The part of all streams that one client may hold is 1 / CLIENT_PART."""

_logger = structlog.get_logger("gradmedic.live")


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run and its reruns at one moment."""

    run: RunRevision
    reruns: list[RerunRevision]


class Watcher:
    """The state of one stream: the last snapshot of its run, and an event that is set when there is a new one."""

    def __init__(self, snapshot: RunSnapshot, principal: Principal) -> None:
        self.principal = principal
        self.snapshot: RunSnapshot | None = snapshot
        """Last snapshot; None after the run was deleted."""
        self.is_ended = False
        """Whether the principal may not follow the run any more."""
        self.changed = asyncio.Event()

    def update(self, snapshot: RunSnapshot | None) -> None:
        """Store a snapshot, and set the event if it differs from the last one."""
        if snapshot != self.snapshot:
            self.snapshot = snapshot
            self.changed.set()

    def end(self) -> None:
        """End the stream."""
        self.is_ended = True
        self.changed.set()


class LiveRuns:
    """Follows runs for watchers. Belongs to one event loop; threads may call `end_streams`.

    Args:
        max_streams: largest number of watchers at a time.
    """

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._streams = Shares(max_streams, max(1, max_streams // CLIENT_PART))
        self._watchers: defaultdict[UUID, set[Watcher]] = defaultdict(set)
        self._polling: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_closed = False

    def check_room(self, client: Client) -> None:
        """Raise TooManyStreams if there are `max_streams` watchers, or half as many of this client."""
        if not self._streams.fits(client) or self.is_closed:
            raise TooManyStreams(
                f"This process holds {self._max_streams} event streams open and allows no more, half of them for one "
                "API key; ask for the run itself instead.",
                retry_after=RETRY_AFTER_SECONDS,
            )

    @contextmanager
    def watch(
        self, database: Database, snapshot: RunSnapshot, principal: Principal, client: Client
    ) -> Iterator[Watcher]:
        """Follow a run for a principal, starting from a snapshot of it. The stream counts for the client."""
        watcher, run_id = Watcher(snapshot, principal), snapshot.run.run_id
        self._loop = asyncio.get_running_loop()
        self._watchers[run_id].add(watcher)
        if self.is_closed:
            watcher.end()
        self._streams.take_anyway(client)
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll(database))
        try:
            yield watcher
        finally:
            self._streams.give_back(client)
            self._watchers[run_id].discard(watcher)
            if not self._watchers[run_id]:
                del self._watchers[run_id]

    def end_streams(self, key_id: UUID, session_digest: bytes | None = None) -> None:
        """End the streams of an API key at once, or only those of one of its browser sessions."""
        if self._loop is None or not self._watchers:
            return
        self._loop.call_soon_threadsafe(
            self._end_streams,
            lambda principal: principal.key_id == key_id and session_digest in (None, principal.session_digest),
        )

    def close(self) -> None:
        """End every stream, and accept no more."""
        self.is_closed = True
        self._end_streams(lambda _: True)

    def _end_streams(self, is_concerned: Callable[[Principal], bool]) -> None:
        for watchers in self._watchers.values():
            for watcher in watchers:
                if is_concerned(watcher.principal):
                    watcher.end()

    async def _poll(self, database: Database) -> None:
        """Read all watched runs again and again, until there are none."""
        while self._watchers and not self.is_closed:
            await asyncio.sleep(POLL_SECONDS)
            run_ids = list(self._watchers)
            if not run_ids:
                return
            principals = {watcher.principal for watchers in self._watchers.values() for watcher in watchers}
            try:
                snapshots = await to_thread.run_sync(read_snapshots, database, run_ids)
                ended = await to_thread.run_sync(find_ended, database, principals)
            except ServiceError as error:
                _logger.warning("the watched runs are read again later", reason=error.reason or error.detail)
                continue
            except Exception:  # if polling ended, the watchers would wait for ever
                _logger.exception("the watched runs are read again later")
                continue
            for run_id in run_ids:
                for watcher in self._watchers.get(run_id, ()):
                    watcher.update(snapshots.get(run_id))
            self._end_streams(ended.__contains__)


async def follow_snapshots(watcher: Watcher, idle_seconds: float) -> AsyncIterator[RunSnapshot | None]:
    """Yield each new snapshot of a run, and None after `idle_seconds` without one, until the stream must end."""
    while not watcher.is_ended and watcher.snapshot is not None:
        try:
            async with asyncio.timeout(idle_seconds):
                await watcher.changed.wait()
        except TimeoutError:
            yield None
            continue
        watcher.changed.clear()
        if watcher.snapshot is None or watcher.is_ended:
            return
        yield watcher.snapshot


def read_snapshots(database: Database, run_ids: Collection[UUID]) -> dict[UUID, RunSnapshot]:
    """Read snapshots of runs; a run that does not exist is missing."""
    with database.reading() as session:
        run_revisions = runs.read_revisions(session, run_ids)
        rerun_revisions = reruns.read_revisions(session, run_ids)
    return {run_id: RunSnapshot(run, rerun_revisions.get(run_id, [])) for run_id, run in run_revisions.items()}


def find_ended(database: Database, principals: Collection[Principal]) -> set[Principal]:
    """Return those of some principals whose API key or session was revoked, was closed or has expired."""
    key_ids = {principal.key_id for principal in principals if principal.key_id is not None}
    digests = {principal.session_digest for principal in principals if principal.session_digest is not None}
    if not key_ids:
        return set()
    now = datetime.now(UTC)
    with database.reading() as session:
        usable_keys = keys.list_usable_keys(session, key_ids, now)
        open_sessions = keys.list_open_sessions(session, digests, now) if digests else set()
    return {
        principal
        for principal in principals
        if principal.key_id not in {None, *usable_keys} or principal.session_digest not in {None, *open_sessions}
    }
