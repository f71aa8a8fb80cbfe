"""Follows runs for event streams.

A process reads all watched runs together once a second, by two queries, however many streams there are. Every
transaction on a run raises its `revision`, so that a client that sends the last revision it saw misses nothing at any
replica; nothing is published or queued. A slow watcher sees fewer, later snapshots.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import structlog
from anyio import to_thread

from gradmedic_service.database.engine import Database
from gradmedic_service.http.errors import ServiceError
from gradmedic_service.reruns import repository as reruns
from gradmedic_service.reruns.repository import RerunRevision
from gradmedic_service.runs import repository as runs
from gradmedic_service.runs.repository import RunRevision
from gradmedic_service.web.errors import TooManyStreams

POLL_SECONDS = 1.0
RETRY_AFTER_SECONDS = 30

_logger = structlog.get_logger("gradmedic.live")


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """A run and its reruns at one moment."""

    run: RunRevision
    reruns: list[RerunRevision]


class Watcher:
    """The state of one stream: the last snapshot of its run, and an event that is set when there is a new one."""

    def __init__(self, snapshot: RunSnapshot) -> None:
        self.snapshot: RunSnapshot | None = snapshot
        """Last snapshot; None after the run was deleted."""
        self.changed = asyncio.Event()

    def update(self, snapshot: RunSnapshot | None) -> None:
        """Store a snapshot, and set the event if it differs from the last one."""
        if snapshot != self.snapshot:
            self.snapshot = snapshot
            self.changed.set()


class LiveRuns:
    """Follows runs for watchers. Belongs to one event loop.

    Args:
        max_streams: largest number of watchers at a time.
    """

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._watchers: defaultdict[UUID, set[Watcher]] = defaultdict(set)
        self._count = 0
        self._polling: asyncio.Task[None] | None = None
        self.is_closed = False

    def check_room(self) -> None:
        """Raise TooManyStreams if there are `max_streams` watchers."""
        if self._count >= self._max_streams or self.is_closed:
            raise TooManyStreams(
                f"This process holds {self._max_streams} event streams open and allows no more; ask for the run "
                "itself instead.",
                retry_after=RETRY_AFTER_SECONDS,
            )

    @contextmanager
    def watch(self, database: Database, snapshot: RunSnapshot) -> Iterator[Watcher]:
        """Follow a run, starting from a snapshot of it."""
        watcher, run_id = Watcher(snapshot), snapshot.run.run_id
        self._watchers[run_id].add(watcher)
        self._count += 1
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll(database))
        try:
            yield watcher
        finally:
            self._count -= 1
            self._watchers[run_id].discard(watcher)
            if not self._watchers[run_id]:
                del self._watchers[run_id]

    def close(self) -> None:
        """End every stream, and accept no more."""
        self.is_closed = True
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.changed.set()

    async def _poll(self, database: Database) -> None:
        """Read all watched runs again and again, until there are none."""
        while self._watchers and not self.is_closed:
            await asyncio.sleep(POLL_SECONDS)
            run_ids = list(self._watchers)
            if not run_ids:
                return
            try:
                snapshots = await to_thread.run_sync(read_snapshots, database, run_ids)
            except ServiceError as error:
                _logger.warning("the watched runs are read again later", reason=error.reason or error.detail)
                continue
            except Exception:  # if polling ended, the watchers would wait for ever
                _logger.exception("the watched runs are read again later")
                continue
            for run_id in run_ids:
                for watcher in self._watchers.get(run_id, ()):
                    watcher.update(snapshots.get(run_id))


async def follow_snapshots(watcher: Watcher, live: LiveRuns, idle_seconds: float) -> AsyncIterator[RunSnapshot | None]:
    """Yield each new snapshot of a run, and None after `idle_seconds` without one; end with the run or the process."""
    while not live.is_closed and watcher.snapshot is not None:
        try:
            async with asyncio.timeout(idle_seconds):
                await watcher.changed.wait()
        except TimeoutError:
            yield None
            continue
        watcher.changed.clear()
        if watcher.snapshot is None or live.is_closed:
            return
        yield watcher.snapshot


def read_snapshots(database: Database, run_ids: Collection[UUID]) -> dict[UUID, RunSnapshot]:
    """Read snapshots of runs; a run that does not exist is missing."""
    with database.reading() as session:
        run_revisions = runs.read_revisions(session, run_ids)
        rerun_revisions = reruns.read_revisions(session, run_ids)
    return {run_id: RunSnapshot(run, rerun_revisions.get(run_id, [])) for run_id, run in run_revisions.items()}
