"""The page of alerts, and the line of a run's page, in a browser, with a real receiver."""

from __future__ import annotations

from typing import Any

import httpx2
import msgspec
import pytest
from playwright.sync_api import expect
from pydantic import SecretStr
from standardwebhooks import Webhook
from tests.support.accessibility import violations
from tests.support.alerts import let_time_pass
from tests.support.played_worker import suspect
from tests.support.receivers import Receiver, answering
from tests.support.services import Serve

from gradmedic_service.alerts.policy import GATHERING_SECONDS
from gradmedic_service.database.engine import Database
from gradmedic_service.settings import Settings

VARIABLES = {
    "GRADMEDIC_SECRET_KEY": "a secret key for the tests of alerts alone",
    "GRADMEDIC_DUE_WORK_INTERVAL": "0.1",
}


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 390)])
def test_from_a_destination_to_a_delivered_alert(
    open_page: Any, serve: Serve, sqlite_url: str, scheme: str, width: int
) -> None:
    """An administrator adds a webhook, tests it, and sees the alert of a run and where it went on both pages."""
    database = Database(Settings(database_url=SecretStr(sqlite_url)))
    with Receiver() as receiver, serve(sqlite_url, **VARIABLES) as served, httpx2.Client(base_url=served.url) as client:
        run = suspect(client, name="lstm")
        page = open_page(f"{served.url}/alerts", color_scheme=scheme, viewport={"width": width, "height": 900})
        expect(page.locator("[name=project]")).to_have_value("tests")
        expect(page.get_by_text("There is no destination, so that no alert is made.")).to_be_visible()
        page.get_by_label("Address").fill(f"http://127.0.0.1:{receiver.port}/hook?token=secret")
        page.get_by_label("Name").fill("on call")
        page.get_by_role("button", name="Add the destination").click()
        secret = page.locator("#added code").inner_text()
        row = page.locator("#destinations tbody tr")
        expect(row).to_contain_text("not used yet")
        assert "token" not in row.inner_text()
        row.get_by_role("button", name="Test: on call").click()
        expect(page.locator("#done")).to_have_text("A test message was delivered to on call.")
        request = receiver.take()
        Webhook(secret).verify(request.body, request.headers)
        assert msgspec.json.decode(request.body)["data"]["is_test"]
        let_time_pass(database, GATHERING_SECONDS)
        alert = page.locator("#history tbody tr")
        expect(alert).to_contain_text("lstm is exploding")
        expect(alert).to_contain_text("delivered to on call")
        assert msgspec.json.decode(receiver.take().body)["data"]["title"] == "lstm is exploding"
        assert violations(page) == ""
        alert.get_by_role("link", name="lstm is exploding").click()
        page.wait_for_selector("body[data-ready]")
        assert page.url == f"{served.url}/runs/{run}"
        expect(page.locator("#alerted")).to_contain_text("delivered to on call")
        page.locator("#alerted").get_by_role("link", name="All alerts").click()
        page.wait_for_selector("body[data-ready]")
        expect(page.locator("#history tbody tr")).to_have_count(1)
    database.close()


def test_mutes_failures_and_removal(open_page: Any, serve: Serve, sqlite_url: str) -> None:
    """A failed test shows its reason; project and destination are muted and unmuted; a removal is confirmed."""
    with (
        Receiver(answering(500)) as receiver,
        serve(sqlite_url, **VARIABLES) as served,
        httpx2.Client(base_url=served.url) as client,
    ):
        suspect(client)
        body = {"project": "tests", "address": f"http://127.0.0.1:{receiver.port}/", "name": "hook"}
        assert client.post("/api/v1/alerts/destinations", json=body).status_code == 201
        page = open_page(f"{served.url}/alerts?project=tests", refusals=(422,))
        row = page.locator("#destinations tbody tr")
        row.get_by_role("button", name="Test: hook").click()
        expect(page.locator("#done")).to_contain_text("The test message was not delivered to hook:")
        expect(row).to_contain_text("500")
        row.get_by_role("button", name="Mute for 8 hours").click()
        expect(row).to_contain_text("muted until")
        row.get_by_role("button", name="End the mute").click()
        expect(row).not_to_contain_text("muted until")
        mute = page.locator("#mute")
        mute.get_by_role("button", name="Mute for 8 hours").click()
        expect(mute).to_contain_text("No alert is made until")
        mute.get_by_role("button", name="End the mute").click()
        expect(mute).to_contain_text("The project is not muted.")
        row.get_by_role("button", name="Remove: hook").click()
        row.get_by_role("button", name="Really remove: hook").click()
        expect(page.locator("#no-destination")).to_be_visible()
        assert client.get("/api/v1/alerts/destinations").json()["items"] == []
        page.get_by_label("Address").fill("ftp://example.com")
        page.get_by_role("button", name="Add the destination").click()
        expect(page.locator("#error")).to_be_visible()
