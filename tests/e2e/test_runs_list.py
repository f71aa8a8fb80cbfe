"""The list of runs in a browser: what it shows, order, groups, marks, and thousands of runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from benchmarks.page import fill_list
from playwright.sync_api import Page, expect
from pydantic import SecretStr
from tests.e2e.conftest import StartService
from tests.support.accessibility import violations
from tests.support.services import run_service

from gradmedic_service.database import schema
from gradmedic_service.database.engine import Database
from gradmedic_service.settings import Settings

API = "/api/v1"
ROWS = "#runs tbody tr[data-run]"
MANY = 2_000
MAX_ROWS = 60
"""Largest number of rows in the document on a screen of this height."""


@pytest.fixture
def address(tmp_path: Path, start_service: StartService) -> str:
    """A service with four runs: two with losses and settings, an exploding one, and one without steps."""
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    schema.upgrade(url)
    service = start_service(url)
    with httpx2.Client(base_url=f"{service}{API}") as client:
        add_run(client, "slow", [3.0, 2.0], config={"lr": 0.001, "model": {"width": 8}}, tags=["kept"])
        add_run(client, "fast", [3.0, 1.0], config={"lr": 0.1}, metrics={"accuracy": [None, 0.75]})
        add_run(client, "broken", [1.0] * 20 + ["NaN"] * 20, rows=[[1.0, 1.0]] * 20 + [[1.0, "NaN"]] * 20, group="g")
        add_run(client, "empty", [], project="other")
    return service


def add_run(client: httpx2.Client, name: str, losses: list[Any], *, rows: Any = None, **fields: Any) -> str:
    """Create a run with losses; return its id."""
    metrics = fields.pop("metrics", {})
    layers = [{"name": "encoder.first"}, {"name": "encoder.last"}]
    run: str = client.post("/runs", json={"project": "p", "name": name, "layers": layers, **fields}).json()["id"]
    if losses:
        statistics = {"grad_norm": rows or [[1.0, 1.0]] * len(losses)}
        body = {"steps": list(range(len(losses))), "loss": losses, "statistics": statistics, "metrics": metrics}
        assert client.post(f"/runs/{run}/steps", json=body).status_code == 200
    return run


def names(page: Page) -> list[str]:
    """Return the names of the runs in view, in order."""
    return page.locator(f"{ROWS} a.name").all_inner_texts()


def test_the_list_answers_first(open_page: Any, address: str) -> None:
    """A row has verdict, first bad layer, loss; columns sort, are chosen, and stay in the browser and the address."""
    page = open_page(address)
    expect(page.locator("#counts")).to_have_text("4 runs: 1 critical")
    broken = page.locator(ROWS, has_text="broken")
    expect(broken).to_contain_text("exploding")
    expect(broken).to_contain_text("encoder.last")
    expect(broken.locator(".loss")).to_contain_text("NaN")
    expect(broken.locator(".spark circle")).to_have_count(20)
    assert names(page) == ["empty", "broken", "fast", "slow"]
    page.get_by_role("button", name="Loss").click()
    expect(page.locator("th[aria-sort=ascending]")).to_have_text("Loss")
    assert names(page) == ["fast", "slow", "broken", "empty"]
    expect(page.get_by_role("button", name="Loss")).to_be_focused()
    page.locator("#columns summary").click()
    page.get_by_label("lr setting").check()
    page.get_by_label("accuracy metric").check()
    page.get_by_label("Project", exact=True).and_(page.get_by_role("checkbox")).uncheck()
    page.keyboard.press("Escape")
    fast = page.locator(ROWS, has_text="fast")
    expect(fast.locator("td[data-column='config.lr']")).to_have_text("0.1")
    expect(fast.locator("td[data-column='metric.accuracy']")).to_have_text("0.75")
    expect(page.locator("th", has_text="Project")).to_have_count(0)
    page.get_by_role("button", name="lr", exact=True).click()
    expect(page.locator("th[aria-sort]")).to_have_text("lr")
    assert names(page)[:2] == ["slow", "fast"]
    link = page.url
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    expect(fast.locator("td[data-column='config.lr']")).to_have_text("0.1")
    page.evaluate("localStorage.clear()")
    page.goto(link)
    page.wait_for_selector("body[data-ready]")
    assert names(page)[:2] == ["slow", "fast"]
    expect(fast.locator("td[data-column='metric.accuracy']")).to_have_text("0.75")
    page.get_by_label("Where").fill("config.lr<=0.01 loss>1")
    page.wait_for_url(re.compile(r"config\.lr=%3C%3D0\.01"))
    expect(page.locator(ROWS)).to_have_count(1)
    page.get_by_label("Where").fill("config.lr")
    expect(page.locator("#where-hint")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(ROWS)).to_have_count(4)
    page.get_by_role("button", name="1 critical").click()
    expect(page.locator(ROWS)).to_have_count(1)
    page.wait_for_url(re.compile("level=critical"))


def test_the_columns_of_cards_are_chosen_on_a_phone(open_page: Any, address: str) -> None:
    """On a phone the menu of columns is there at once, fits the window, and its choice is shown in the cards."""
    page = open_page(address, color_scheme="dark", viewport={"width": 390, "height": 844})
    page.locator("#columns summary").click()
    choice = page.get_by_label("lr setting")
    expect(choice).to_be_visible()
    assert choice.bounding_box()["height"] < 24
    menu = page.locator("#columns .menu").bounding_box()
    assert menu is not None
    assert menu["x"] >= 0
    assert menu["x"] + menu["width"] <= 390
    assert violations(page) == ""
    choice.check()
    page.keyboard.press("Escape")
    expect(page.locator(ROWS, has_text="fast").locator("td[data-column='config.lr']")).to_have_text("0.1")
    expect(page.locator("#columns .menu")).to_be_hidden()


def test_many_runs_are_marked_tagged_and_deleted(open_page: Any, address: str) -> None:
    """Runs are marked with Shift or all at once; the confirmation of a deletion names their number."""
    page = open_page(f"{address}/?sort=name")
    assert names(page) == ["broken", "empty", "fast", "slow"]
    page.get_by_role("checkbox", name="Mark broken").check()
    page.get_by_role("checkbox", name="Mark fast").click(modifiers=["Shift"])
    expect(page.locator("#marked")).to_have_text("3 runs marked: broken, empty, fast")
    page.get_by_label("Name for the marked runs").fill("night")
    page.get_by_role("button", name="Add tag").click()
    expect(page.locator("#outcome")).to_have_text("3 runs have the tag night.")
    expect(page.locator(ROWS).filter(has=page.get_by_role("link", name="night"))).to_have_count(3)
    page.get_by_role("button", name="Remove tag").click()
    expect(page.locator("#outcome")).to_have_text("3 runs lost the tag night.")
    expect(page.get_by_role("link", name="night")).to_have_count(0)
    page.get_by_role("button", name="Delete …").click()
    expect(page.get_by_role("dialog")).to_contain_text("Delete 3 runs?")
    assert violations(page) == ""
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Unmark all").click()
    page.get_by_role("link", name="kept").click()
    page.wait_for_url(re.compile("tag=kept"))
    expect(page.locator(ROWS)).to_have_count(1)
    page.get_by_label("Mark all runs that fit the filters").check()
    expect(page.locator("#marked")).to_have_text("1 run marked: slow")
    page.get_by_role("button", name="Delete …").click()
    page.get_by_role("button", name="Delete 1 run").click()
    expect(page.locator("#outcome")).to_have_text("1 run was deleted.")
    expect(page.locator("#none")).to_contain_text("No run fits these filters")
    assert httpx2.get(f"{address}{API}/runs/counts").json()["total"] == 3


def test_groups_fold_and_rows_stay_under_the_pointer(open_page: Any, address: str) -> None:
    """Groups have counts and fold; while the pointer is on the rows, new runs wait behind a button."""
    page = open_page(f"{address}/?group_by=config.lr")
    groups = page.locator("#runs tbody tr.group")
    expect(groups).to_have_count(3)
    expect(groups.last).to_contain_text("without 2 runs: 1 critical")
    expect(page.locator(ROWS)).to_have_count(0)
    groups.nth(1).get_by_role("button").click()
    expect(page.locator(ROWS)).to_have_count(1)
    assert names(page) == ["fast"]
    page.get_by_label("Group by").select_option("")
    expect(page.locator(ROWS)).to_have_count(4)
    page.locator(ROWS).first.hover()
    with httpx2.Client(base_url=f"{address}{API}") as client:
        run = add_run(client, "new", [1.0])
        broken = client.get("/runs", params={"q": "broken"}).json()["items"][0]["id"]
        client.patch(f"/runs/{broken}", json={"name": "broken again"})
    expect(page.get_by_role("button", name="Show 1 new run")).to_be_visible()
    expect(page.get_by_role("link", name="broken again")).to_be_visible()
    assert names(page) == ["empty", "broken again", "fast", "slow"]
    page.get_by_role("button", name="Show 1 new run").click()
    expect(page.locator(f"{ROWS} >> nth=0")).to_contain_text("new")
    page.mouse.move(5, 5)
    httpx2.delete(f"{address}{API}/runs/{run}")
    expect(page.locator(ROWS)).to_have_count(4)


@pytest.fixture(scope="module")
def address_of_many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with thousands of runs. Tests only read them."""
    folder = tmp_path_factory.mktemp("many")
    url = f"sqlite:///{folder / 'many.db'}"
    schema.upgrade(url)
    database = Database(Settings(database_url=SecretStr(url)))
    fill_list(database, MANY)
    database.close()
    with run_service(folder, url) as running:
        yield running.url


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 390)])
def test_thousands_of_runs_stay_few_rows(open_page: Any, address_of_many: str, scheme: str, width: int) -> None:
    """A reader scrolls through all runs; the document keeps few rows, nothing overflows, and axe finds nothing."""
    page = open_page(address_of_many, color_scheme=scheme, viewport={"width": width, "height": 900})
    expect(page.locator("#counts")).to_contain_text(f"{MANY:,} runs: ")
    expect(page.locator("#runs")).to_have_attribute("aria-rowcount", str(MANY + 1))
    scroller = "document.getElementById('list')" if width > 700 else "document.documentElement"
    for part, row in ((0.5, MANY // 2), (1.0, MANY - 1), (0.0, 0)):
        page.evaluate(f"() => {{ {scroller}.scrollTop = {scroller}.scrollHeight * {part}; }}")
        run = page.get_by_role("link", name=f"sweep-{MANY - 1 - row:05}")
        expect(run).to_be_attached()
        if part != 0.5:  # the row in the middle of the list can stand just above the window
            expect(run).to_be_in_viewport()
        expect(page.locator("#runs tr.waiting")).to_have_count(0)
        assert 0 < page.locator(ROWS).count() <= MAX_ROWS
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert violations(page) == ""
    if width > 700:
        page.get_by_label("Mark all runs that fit the filters").check()
        expect(page.locator("#marked")).to_have_text(f"{MANY:,} runs marked")
        page.get_by_role("button", name="Delete …").click()
        expect(page.get_by_role("dialog")).to_contain_text(f"Delete {MANY:,} runs?")
