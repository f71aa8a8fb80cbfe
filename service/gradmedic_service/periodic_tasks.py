"""Work that a process repeats while it serves requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from gradmedic_service.http.errors import ServiceError

_logger = structlog.get_logger("gradmedic.service")


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """A function that is called again and again, on a thread."""

    name: str
    """Description of the work, for the log."""
    seconds: float
    """Seconds before the first call, and between the end of a call and the next one."""
    run: Callable[[], object]


@asynccontextmanager
async def running_periodically(tasks: Iterable[PeriodicTask]) -> AsyncIterator[None]:
    """Repeat tasks while the context is open. Calls that are under way at its end are waited for."""
    is_ending = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for task in tasks:
            group.create_task(_repeat(task, is_ending), name=task.name)
        try:
            yield
        finally:
            is_ending.set()


async def _repeat(task: PeriodicTask, is_ending: asyncio.Event) -> None:
    """Call a task's function until the end. An error is logged, and the function is called again."""
    while True:
        try:
            async with asyncio.timeout(task.seconds):
                await is_ending.wait()
        except TimeoutError:
            pass
        else:
            return
        try:
            await asyncio.to_thread(task.run)
        except ServiceError as error:
            _logger.warning("a periodic task is repeated later", task=task.name, reason=error.reason or error.detail)
        except Exception:
            _logger.exception("a periodic task failed", task=task.name)
