"""What is new about the runs that somebody is looking at.

One idea: a process asks the database once a second about all watched runs together, by two queries, however many look.
Every transaction on a run raises its `revision`, so that who knows the last one they saw misses nothing, whichever
replica they ask next; there is nothing to publish and nothing to queue. A slow watcher sees fewer, later states.
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
    """What a watcher sees of a run."""

    pulse: RunRevision
    reruns: list[RerunRevision]


class Watcher:
    """One stream's view of a run: what was seen last, and a bell."""

    def __init__(self, sight: RunSnapshot) -> None:
        self.sight: RunSnapshot | None = sight
        """None once the run is gone."""
        self.bell = asyncio.Event()

    def show(self, sight: RunSnapshot | None) -> None:
        """Ring if something is new."""
        if sight != self.sight:
            self.sight = sight
            self.bell.set()


class LiveRuns:
    """Follows runs for watchers. Belongs to one event loop.

    Args:
        max_streams: watchers at a time.
    """

    def __init__(self, max_streams: int) -> None:
        self._max_streams = max_streams
        self._watchers: defaultdict[UUID, set[Watcher]] = defaultdict(set)
        self._count = 0
        self._polling: asyncio.Task[None] | None = None
        self.is_closed = False

    def check_room(self) -> None:
        """Raise TooManyStreams if there are as many watchers as there may be."""
        if self._count >= self._max_streams or self.is_closed:
            raise TooManyStreams(
                f"This process holds {self._max_streams} event streams open and allows no more; ask for the run "
                "itself instead.",
                retry_after=RETRY_AFTER_SECONDS,
            )

    @contextmanager
    def watch(self, database: Database, sight: RunSnapshot) -> Iterator[Watcher]:
        """Follow a run from what was seen of it on."""
        watcher, run_id = Watcher(sight), sight.pulse.run_id
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
        """Let every stream end, and accept no more."""
        self.is_closed = True
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.bell.set()

    async def _poll(self, database: Database) -> None:
        """Ask about all watched runs, as long as there are any."""
        while self._watchers and not self.is_closed:
            await asyncio.sleep(POLL_SECONDS)
            run_ids = list(self._watchers)
            if not run_ids:
                return
            try:
                sights = await to_thread.run_sync(look, database, run_ids)
            except ServiceError as error:
                _logger.warning("watched runs are asked for later", reason=error.reason or error.detail)
                continue
            except Exception:  # whoever watches would wait for ever
                _logger.exception("watched runs are asked for later")
                continue
            for run_id in run_ids:
                for watcher in self._watchers.get(run_id, ()):
                    watcher.show(sights.get(run_id))


async def sights_of(watcher: Watcher, live: LiveRuns, idle_seconds: float) -> AsyncIterator[RunSnapshot | None]:
    """Yield each new sight of a run, and None after a while without one; end with the run or the process."""
    while not live.is_closed and watcher.sight is not None:
        try:
            async with asyncio.timeout(idle_seconds):
                await watcher.bell.wait()
        except TimeoutError:
            yield None
            continue
        watcher.bell.clear()
        if watcher.sight is None or live.is_closed:
            return
        yield watcher.sight


def look(database: Database, run_ids: Collection[UUID]) -> dict[UUID, RunSnapshot]:
    """Look at some runs now; those that are gone are missing."""
    with database.reading() as session:
        pulses = runs.pulses(session, run_ids)
        of_run = reruns.pulses(session, run_ids)
    return {run_id: RunSnapshot(pulse, of_run.get(run_id, [])) for run_id, pulse in pulses.items()}
