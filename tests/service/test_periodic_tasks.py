"""Periodic tasks run while the process serves requests, and only then."""

from __future__ import annotations

import asyncio
import threading

from gradmedic_service.periodic_tasks import PeriodicTask, running_periodically


def test_a_task_that_fails_is_called_again() -> None:
    """An error in one call does not prevent the next ones."""
    called_again = threading.Event()
    calls: list[int] = []

    def fail_once() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise ValueError("the first call fails")
        called_again.set()

    async def serve() -> None:
        async with running_periodically([PeriodicTask("fail once", 0.001, fail_once)]):
            await asyncio.to_thread(called_again.wait)

    asyncio.run(serve())
    assert len(calls) >= 2


def test_the_end_does_not_wait_for_the_next_call() -> None:
    """A task whose next call is far away ends at once, without that call."""

    def must_not_run() -> None:
        raise AssertionError("an hour has not passed")

    async def serve() -> None:
        async with running_periodically([PeriodicTask("wait", 3600.0, must_not_run)]):
            pass

    asyncio.run(serve())


def test_the_end_waits_for_a_call_under_way() -> None:
    """A call that has begun is complete when the context has closed."""
    has_begun, may_end = threading.Event(), threading.Event()
    calls: list[str] = []

    def work() -> None:
        has_begun.set()
        may_end.wait()
        calls.append("complete")

    async def serve() -> None:
        async with running_periodically([PeriodicTask("work", 0.001, work)]):
            await asyncio.to_thread(has_begun.wait)
            asyncio.get_running_loop().call_later(0.05, may_end.set)
        assert calls == ["complete"]

    asyncio.run(serve())
