"""A stream ends with its API key or session: at once in the process that ends it, by the next reading in others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, update
from starlette.testclient import TestClient
from tests.support.app_client import AppClient
from tests.support.patience import PATIENCE
from tests.support.service_app import ReplaceServices

from gradmedic.protocol.service import API_PATH
from gradmedic_service.access import service
from gradmedic_service.access.authentication import SESSION_COOKIE
from gradmedic_service.access.keyring import Keyring
from gradmedic_service.access.principal import LOOPBACK, OPERATOR, Principal
from gradmedic_service.access.shares import Client
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import ApiKey, BrowserSession
from gradmedic_service.web import live as live_module
from gradmedic_service.web.live import LiveRuns, Watcher, follow_snapshots, read_snapshots

FROM_A_PAGE = {"Origin": "http://testserver"}


@dataclass
class Reader:
    """The holder of a key who also has a session of it in a browser."""

    browser: TestClient
    by_key: Principal
    by_session: Principal

    @property
    def key_id(self) -> UUID:
        """Id of the key."""
        assert self.by_key.key_id is not None
        return self.by_key.key_id


@pytest.fixture
def reader(client_without_key: TestClient, make_secret: Any, database: Database) -> Reader:
    """A reader with a key of its own."""
    secret = make_secret("read", project=None)
    browser = AppClient(client_without_key.app, raise_server_exceptions=False)
    headers = {"Authorization": f"Bearer {secret}", **FROM_A_PAGE}
    assert browser.post(f"{API_PATH}/session", headers=headers).status_code == 201
    keyring = Keyring()
    by_session = keyring.read_session(database, browser.cookies[SESSION_COOKIE])
    return Reader(browser, keyring.read_key(database, secret), by_session)


@pytest.fixture
def run_id(client_with_key: Any, create_run: Any) -> UUID:
    """A run to follow."""
    return UUID(create_run(client_with_key("ingest", project=None)).rpartition("/")[2])


def streams_ended_by(
    end: Callable[[], object], live: LiveRuns, database: Database, run_id: UUID, *principals: Principal
) -> list[bool]:
    """Open a stream for each principal and call `end`; return which streams end before any event, once one has."""
    snapshot = read_snapshots(database, [run_id])[run_id]

    async def follow(watcher: Watcher) -> bool:
        async for _ in follow_snapshots(watcher, PATIENCE):
            return False
        return True

    async def run() -> list[bool]:
        client = Client("client", has_all=False)
        opened = [live.watch(database, snapshot, principal, client) for principal in principals]
        streams = [asyncio.create_task(follow(each.__enter__())) for each in opened]
        await asyncio.to_thread(end)
        done, open_streams = await asyncio.wait(streams, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        assert done
        for stream in open_streams:
            stream.cancel()
        return [stream in done and stream.result() for stream in streams]

    return asyncio.run(run())


@pytest.fixture
def live_without_polling(replace_services: ReplaceServices, monkeypatch: pytest.MonkeyPatch) -> LiveRuns:
    """The streams of the service, which notices nothing by reading the database."""
    monkeypatch.setattr(live_module, "POLL_SECONDS", 10 * PATIENCE)
    live = LiveRuns(max_streams=10)
    replace_services(live_runs=live, requires_keys=True)
    return live


def test_a_revocation_here(
    reader: Reader, client_with_key: Any, live_without_polling: LiveRuns, database: Database, run_id: UUID
) -> None:
    """Revoking a key by a request ends the streams of the key and of its sessions at once, and no others."""
    admin, other = client_with_key("admin", project=None), Principal(name="other", key_id=UUID(int=0))

    def revoke() -> None:
        assert admin.delete(f"{API_PATH}/api-keys/{reader.key_id}").status_code == 204

    principals = (reader.by_key, reader.by_session, other)
    assert streams_ended_by(revoke, live_without_polling, database, run_id, *principals) == [True, True, False]


def test_a_logout_here(reader: Reader, live_without_polling: LiveRuns, database: Database, run_id: UUID) -> None:
    """Logging out ends the streams of the session at once, and not those of its key."""

    def log_out() -> None:
        assert reader.browser.delete(f"{API_PATH}/session", headers=FROM_A_PAGE).status_code == 204

    principals = (reader.by_session, reader.by_key)
    assert streams_ended_by(log_out, live_without_polling, database, run_id, *principals) == [True, False]


@pytest.mark.parametrize("reason", ["revoked", "expired", "session expired", "logged out"])
def test_an_end_elsewhere(reason: str, reader: Reader, database: Database, run_id: UUID) -> None:
    """A key or session that another process or the time ends is noticed by the next reading."""
    past = datetime.now(UTC) - timedelta(seconds=1)

    def end() -> None:
        with database.writing() as session:
            match reason:
                case "revoked":
                    service.revoke_key(session, OPERATOR, reader.key_id)
                case "expired":
                    session.execute(update(ApiKey).where(ApiKey.id == reader.key_id).values(expires_at=past))
                case "session expired":
                    session.execute(update(BrowserSession).values(expires_at=past))
                case _:
                    session.execute(delete(BrowserSession))

    of_key = () if reason in ("session expired", "logged out") else (reader.by_key,)
    principals = (reader.by_session, *of_key)
    assert streams_ended_by(end, LiveRuns(max_streams=10), database, run_id, *principals) == [True] * len(principals)


def test_the_reading_is_frequent() -> None:
    """The documented two seconds hold a reading and the pause before it."""
    assert live_module.POLL_SECONDS <= 1.0


def test_streams_without_keys_stay(database: Database) -> None:
    """Where no key is needed, no stream ends."""
    assert live_module.find_ended(database, {LOOPBACK}) == set()
