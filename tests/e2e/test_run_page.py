"""The page of a run in a browser."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import numpy as np
import pytest
from playwright.sync_api import Page, expect
from pydantic import SecretStr, TypeAdapter
from tests.e2e.conftest import (
    INFINITE_FROM,
    NAN_FROM,
    Service,
    StartService,
    append,
    exploding_step,
    fill,
    healthy_step,
)
from tests.support.accessibility import violations
from tests.support.clipboard import copy_from
from tests.support.patience import PATIENCE
from tests.support.services import run_service

from gradmedic.protocol.runs import RunCreate
from gradmedic_diagnosis import StepSeries
from gradmedic_service.access.principal import OPERATOR
from gradmedic_service.database import schema
from gradmedic_service.database.engine import Database
from gradmedic_service.runs import service as runs
from gradmedic_service.runs.facts import FactsCache
from gradmedic_service.settings import Settings
from gradmedic_service.telemetry.appending import append as append_steps
from gradmedic_service.telemetry.decoding import ReceivedBlock
from gradmedic_service.telemetry.run_cache import RunCache

CANVAS = "#heatmap canvas"
NAN_COLOR, INFINITE_COLOR = [214, 0, 110], [255, 112, 10]
LONG = 40_000


def query_of(page: Page) -> dict[str, list[str]]:
    """Return the query parameters of the page's address."""
    return parse_qs(urlsplit(page.url).query)


def share_of(page: Page, color: list[int]) -> float:
    """Return the share of the heatmap's pixels that have a colour."""
    share: float = page.evaluate(
        """([selector, color]) => {
            const canvas = document.querySelector(selector);
            const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let found = 0;
            for (let at = 0; at < data.length; at += 4) {
                found += color.every((value, channel) => data[at + channel] === value);
            }
            return found / (data.length / 4);
        }""",
        [CANVAS, color],
    )
    return share


def hover(page: Page, step: float, row: float, steps: int = 200, rows: int = 16) -> None:
    """Move the mouse to a cell."""
    box = page.locator(CANVAS).bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] * (step + 0.5) / steps, box["y"] + box["height"] * (row + 0.5) / rows
    page.mouse.move(x, y)


def test_the_page_names_the_command_for_steps_of_a_killed_process(open_page: Any, service: Service) -> None:
    """A run that fell silent shows where its steps may wait and the command, and not before."""
    run_id = fill(service.url, "killed", healthy_step, 20)
    page = open_page(f"{service.url}/runs/{run_id}")
    expect(page.locator("#facts")).to_contain_text("last step 19")
    expect(page.locator("#unsent")).to_be_hidden()
    yesterday = time.time() - 86_400
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        date = {"Date": formatdate(usegmt=True)}
        client.patch(f"/runs/{run_id}", json={"status": "running"}).raise_for_status()
        client.post(f"/runs/{run_id}/steps", json={"steps": [20], "time": [yesterday]}, headers=date).raise_for_status()
    expect(page.locator("#status")).to_have_text("stalled")
    expect(page.locator("#unsent")).to_be_visible()
    expect(page.locator("#unsent")).to_contain_text("gradmedic sync")


def test_the_page_shows_how_many_steps_the_client_dropped(open_page: Any, service: Service) -> None:
    """The number of dropped steps is shown beside the last step, and only if steps were dropped."""
    address = f"/runs/{fill(service.url, 'gaps', healthy_step, 20)}"
    page = open_page(f"{service.url}{address}")
    expect(page.locator("#facts")).to_contain_text("last step 19")
    expect(page.locator("#facts")).not_to_contain_text("missing")
    body = {"training": {"dropped_steps": 1234}}
    assert httpx2.patch(f"{service.url}/api/v1{address}", json=body).status_code == 200
    page.reload()
    expect(page.locator("#facts")).to_contain_text(re.compile("1.?234 steps are missing"))
    page.close()
    httpx2.delete(f"{service.url}/api/v1{address}")


def test_a_page_shows_that_its_run_was_deleted(open_page: Any, service: Service) -> None:
    """After the run was deleted the page keeps its charts and shows that there is no such run."""
    run = fill(service.url, "short-lived", healthy_step, 20)
    page = open_page(f"{service.url}/runs/{run}", refusals=(404,))
    expect(page.locator("#live")).to_have_text("live")
    httpx2.delete(f"{service.url}/api/v1/runs/{run}")
    expect(page.locator("#live")).to_contain_text(run)
    expect(page.locator("#facts")).to_contain_text("last step 19")


def test_the_page_shows_the_diagnosis(open_page: Any, service: Service) -> None:
    """The page shows verdict, first bad layer, causes, findings, and advice with a snippet to copy."""
    page = open_page(f"{service.url}/runs/{service.exploding}", permissions=["clipboard-read", "clipboard-write"])
    diagnosis = httpx2.get(f"{service.url}/api/v1/runs/{service.exploding}/diagnosis").json()
    banner = page.locator("#banner")
    expect(banner).to_contain_text("exploding")
    expect(banner).to_contain_text(f"since step {diagnosis['since_step']}")
    expect(banner).to_contain_text(diagnosis["summary"])
    expect(banner).to_contain_text("encoder.0.weight")
    expect(page.locator("#causes li").first).to_contain_text(diagnosis["causes"][0]["explanation"])
    page.get_by_role("button", name=re.compile("more finding")).click()
    expect(page.locator("#findings li")).to_have_count(len(diagnosis["findings"]))
    first = page.locator("#advice li").first
    expect(first).to_contain_text(diagnosis["advice"][0]["reason"])
    assert copy_from(first) == diagnosis["advice"][0]["snippet"]
    expect(page).to_have_title(re.compile("no clipping · exploding"))


def test_nan_and_infinite_have_colours_of_their_own(open_page: Any, service: Service) -> None:
    """The shares of the heatmap in the colours of NaN and of infinite values equal those of the data."""
    page = open_page(f"{service.url}/runs/{service.exploding}")
    assert 0.05 < share_of(page, NAN_COLOR) < 0.11
    assert 0.025 < share_of(page, INFINITE_COLOR) < 0.06
    assert share_of(open_page(f"{service.url}/runs/{service.healthy}"), NAN_COLOR) == 0


def test_the_tip_of_a_cell_shows_its_numbers(open_page: Any, service: Service) -> None:
    """The tip of a cell shows layer, step, minimum, maximum, count and the number of non-finite values, as stored."""
    page = open_page(f"{service.url}/runs/{service.exploding}")
    tip = page.locator("#heatmap .tip")
    hover(page, 30, 2)
    query: dict[str, Any] = {"statistic": "grad_norm", "layer": "encoder.1.weight", "from_step": 30, "to_step": 30}
    stored = httpx2.get(f"{service.url}/api/v1/runs/{service.exploding}/steps", params=query).json()["series"][0]
    expect(tip).to_contain_text("encoder.1.weight")
    expect(tip).to_contain_text("step 30")
    expect(tip).to_contain_text(re.compile(rf"min {stored['min'][0]:.4g}.*max {stored['max'][0]:.4g}.*values 1"))
    hover(page, NAN_FROM + 5, 2)
    expect(tip).to_contain_text(re.compile(r"NaN.*not finite 1 \(1 NaN, 0 infinite\)"))
    hover(page, INFINITE_FROM + 5, 2)
    expect(tip).to_contain_text(re.compile(r"infinite.*not finite 1 \(0 NaN, 1 infinite\)"))


def test_findings_are_marked_on_the_step_axis(open_page: Any, service: Service) -> None:
    """A finding has a flag at its first step; a click selects that step."""
    page = open_page(f"{service.url}/runs/{service.exploding}")
    diagnosis = httpx2.get(f"{service.url}/api/v1/runs/{service.exploding}/diagnosis").json()
    finding = diagnosis["findings"][0]
    flag = page.locator("#heatmap .flag", has_text=finding["detector"].replace("_", " ")).first
    box, canvas = flag.bounding_box(), page.locator(CANVAS).bounding_box()
    assert box is not None
    assert canvas is not None
    expected = canvas["x"] + canvas["width"] * (finding["first_step"] + 0.5) / 200
    assert abs(min(expected, canvas["x"] + canvas["width"] - box["width"]) - box["x"]) < 2
    flag.click()
    assert query_of(page)["step"] == [str(finding["first_step"])]


def test_dragging_zooms_and_the_address_holds_the_view(open_page: Any, service: Service) -> None:
    """A drag shows only its steps; the address opens the same view in another page."""
    page = open_page(f"{service.url}/runs/{service.exploding}")
    hover(page, 100, 3)
    page.mouse.down()
    hover(page, 150, 3)
    page.mouse.up()
    page.wait_for_url(re.compile("from="))
    query = query_of(page)
    assert abs(int(query["from"][0]) - 100) <= 1
    assert abs(int(query["to"][0]) - 150) <= 1
    page.get_by_label("Statistic").select_option("update_norm")
    page.locator("#loss-chart .scale").click()
    other = open_page(page.url)
    expect(other.locator(CANVAS)).to_have_attribute("aria-label", re.compile("update norm.*steps 1"))
    expect(other.locator("#loss-chart .scale")).to_have_text("linear")
    assert query_of(other) == query_of(page)
    other.get_by_role("button", name="All steps").click()
    other.wait_for_url(lambda url: "from=" not in url)


def test_a_folded_module_shows_the_worst_of_its_layers(open_page: Any, service: Service) -> None:
    """A folded module is one row with the worst of its layers; the address holds the folded modules."""
    page = open_page(f"{service.url}/runs/{service.exploding}")
    before = share_of(page, NAN_COLOR)
    page.get_by_role("button", name="Fold encoder.0", exact=True).click()
    assert query_of(page)["fold"] == ["encoder.0"]
    page.get_by_role("button", name="Fold all", exact=True).click()
    expect(page.get_by_role("button", name=re.compile("^Unfold encoder"))).to_have_count(8)
    assert math.isclose(share_of(page, NAN_COLOR), before, rel_tol=0.2)
    page.reload()
    expect(page.get_by_role("button", name=re.compile("^Unfold encoder"))).to_have_count(8)


def test_the_heatmap_by_keyboard(open_page: Any, service: Service) -> None:
    """A reader without a mouse reaches the heatmap, reads and selects a cell, zooms and folds."""
    page = open_page(f"{service.url}/runs/{service.exploding}")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "CANVAS":
            break
    expect(page.locator(CANVAS)).to_be_focused()
    tip = page.locator("#heatmap .tip")
    expect(tip).to_contain_text("encoder.0.weight")
    expect(tip).to_contain_text("step 0")
    for key in ["ArrowDown", "ArrowDown", "ArrowRight", "Shift+ArrowRight"]:
        page.keyboard.press(key)
    expect(tip).to_contain_text("encoder.1.weight")
    expect(tip).to_contain_text("step 11")
    page.keyboard.press("Enter")
    assert query_of(page) | {} == {"layer": ["encoder.1.weight"], "step": ["11"]}
    expect(page.locator("#layer-chart h3")).to_contain_text("encoder.1.weight")
    for _ in range(8):
        page.keyboard.press("+")
    expect(page.locator(CANVAS)).to_have_attribute("aria-label", re.compile(r", step \d+;"))
    page.keyboard.press("0")
    expect(page.locator(CANVAS)).to_have_attribute("aria-label", re.compile("steps 0 to 199"))
    page.keyboard.press("f")
    assert "fold" in query_of(page)


def test_the_depth_chart_shows_the_slope(open_page: Any, service: Service) -> None:
    """The note of the depth chart shows the fitted change of the gradient from the first to the last layer."""
    page = open_page(f"{service.url}/runs/{service.vanishing}")
    note = page.locator("#depth-chart .note")
    expect(note).to_contain_text(re.compile(r"×(\d(\.\d+)?e6|\d{3},000) from the first layer to the last"))


def test_the_depth_chart_has_a_zoom_of_its_own(open_page: Any, service: Service) -> None:
    """A drag shows some layers and no other steps; a double click, the menu and a key show all."""
    page = open_page(f"{service.url}/runs/{service.healthy}")
    chart = page.locator("#depth-chart svg.chart")
    dots, unit = chart.locator("g.line:not(.fit) circle"), chart.locator(".unit")
    expect(dots).to_have_count(16)
    for way_back in ("double click", "menu", "key"):
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 62 + (box["width"] - 72) * 0.25, middle)
        page.mouse.down()
        page.mouse.move(box["x"] + 62 + (box["width"] - 72) * 0.5, middle, steps=4)
        page.mouse.up()
        expect(dots).to_have_count(4)
        expect(unit).to_contain_text("double-click for all")
        assert chart.bounding_box() == box
        assert "from" not in query_of(page)
        page.get_by_label("Cell").select_option("max")  # draws everything again
        page.get_by_label("Cell").select_option("mean")
        expect(dots).to_have_count(4)
        if way_back == "double click":
            chart.dblclick()
        elif way_back == "menu":
            page.get_by_role("button", name="Menu of Gradient norm by depth").click()
            page.get_by_role("menuitem", name="Reset the zoom").click()
        else:
            chart.press("0")
        expect(dots).to_have_count(16)
        expect(unit).not_to_contain_text("double-click")


def test_layers_are_in_the_order_of_their_use(open_page: Any, service: Service) -> None:
    """Rows of the heatmap follow the depth of the layers, and a note is there only if that is no order of use."""
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        runs = {}
        for order in ("execution", "registration"):
            names = ("head", "middle", "stem")
            layers: list[dict[str, Any]] = [{"name": f"{name}.weight", "role": "weight"} for name in names]
            if order == "execution":
                layers = [{**layer, "depth": 2 - i} for i, layer in enumerate(layers)]
            body = {
                "project": "pages",
                "layers": layers,
                "statistics": ["grad_norm"],
                "training": {"layer_order": order},
            }
            runs[order] = client.post("/runs", json=body).json()["id"]
            steps = {"steps": [0, 1], "loss": [1.0, 1.0], "statistics": {"grad_norm": [[1.0, 1.0, 1.0]] * 2}}
            assert client.post(f"/runs/{runs[order]}/steps", json=steps).status_code == 200
    for order, run in runs.items():
        page = open_page(f"{service.url}/runs/{run}")
        page.locator("#heatmap details summary").click()
        expected = ["stem.weight", "middle.weight", "head.weight"]
        rows = expected if order == "execution" else expected[::-1]
        expect(page.locator("#heatmap details tbody tr th")).to_have_text(rows)
        expect(page.locator("#layer-order")).to_be_visible(visible=order == "registration")


def test_charts_have_tables(open_page: Any, service: Service) -> None:
    """The table of the heatmap has the first non-finite step of each layer; that of a chart a row for each point."""
    page = open_page(f"{service.url}/runs/{service.exploding}")
    page.locator("#heatmap details summary").click()
    row = page.locator("#heatmap details tbody tr").first
    expect(row).to_contain_text("encoder.0.weight")
    expect(row).to_contain_text(f"step {INFINITE_FROM}")
    page.locator("#loss-chart details summary").click()
    expect(page.locator("#loss-chart tbody tr")).to_have_count(200)


def test_the_page_updates_with_the_job(open_page: Any, service: Service) -> None:
    """New steps, verdict and status appear without a reload, and the focus stays."""
    run = fill(service.url, "followed", healthy_step, 50)
    page = open_page(f"{service.url}/runs/{run}")
    expect(page.locator("#live")).to_have_text("live")
    page.locator(CANVAS).focus()
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        append(client, run, healthy_step, range(50, 100), 16)
        expect(page.locator("#facts")).to_contain_text("last step 99")
        expect(page.locator(CANVAS)).to_have_attribute("aria-label", re.compile("steps 0 to 99"))
        append(client, run, exploding_step, range(100, 200), 16)
        expect(page.locator("#banner")).to_contain_text("exploding")
        client.patch(f"/runs/{run}", json={"status": "failed"})
        expect(page.locator("#status")).to_have_text("failed")
    expect(page.locator(CANVAS)).to_be_focused()


LIVE_TRAINING = """
import gradmedic, sys, torch
torch.manual_seed(0)
layers = [layer for _ in range(8) for layer in (torch.nn.Linear(16, 16), torch.nn.Sigmoid())]
model = torch.nn.Sequential(*layers, torch.nn.Linear(16, 10))
inputs, labels = torch.randn(64, 16), torch.randint(10, (64,))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
run = gradmedic.init(project="pages", name="live")
run.watch(model, optimizer)
for step in range(300):
    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    run.log(loss=loss, **{"train/score": step / 300})
    if step in (19, 59, 119, 199):
        run.flush()
        print(run.id, flush=True)
        sys.stdin.readline()
run.finish()
"""
LARGEST_SHIFT = 0.05
"""Of a run that trains: words in the line of the verdict move. Chromium calls a page steady up to 0.1."""
WATCH_SHIFTS = """() => {
    window.shifts = [];
    const nameOf = (node) => node?.id || node?.className || node?.nodeName;
    new PerformanceObserver((list) => {
        for (const { value, sources } of list.getEntries()) {
            window.shifts.push([value, ...sources.map(({ node, previousRect, currentRect }) =>
                `${nameOf(node)} (in ${nameOf(node?.parentElement)}) ${previousRect.top} to ${currentRect.top}`)]);
        }
    }).observe({ type: "layout-shift" });
}"""


def test_nothing_moves_while_a_job_trains(open_page: Any, service: Service, tmp_path: Path) -> None:
    """A verdict appears without moving anything; new lists wait behind a button, whose click shows them."""
    environment = {
        **os.environ, "GRADMEDIC_BASE_URL": service.url, "GRADMEDIC_SILENT": "true", "GRADMEDIC_DIR": str(tmp_path),
    }  # fmt: skip
    command = [sys.executable, "-c", LIVE_TRAINING]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdin is not None
        assert training.stdout is not None
        run = training.stdout.readline().strip()
        sizes: list[dict[str, Any]] = [
            {"viewport": {"width": 1400, "height": 900}, "color_scheme": "light"},
            {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
        ]
        pages = [open_page(f"{service.url}/runs/{run}", **size) for size in sizes]
        for page in pages:
            expect(page.locator("#live")).to_have_text("live")
            page.evaluate(WATCH_SHIFTS)
        for last_step in (59, 119, 199, 299):
            training.stdin.write("\n")
            training.stdin.flush()
            training.stdout.readline()
            for page in pages:
                expect(page.locator("#facts")).to_contain_text(f"last step {last_step}")
        assert training.wait(timeout=PATIENCE) == 0
    for page in pages:
        expect(page.locator("#status")).to_have_text("finished")
        expect(page.locator("#banner .badge")).to_have_text("vanishing")
        expect(page.locator("#first-layer")).to_contain_text("0.weight")
        expect(page.locator("#next-action")).to_contain_text("Try first: ")
        shifts: list[Any] = page.evaluate("window.shifts")
        assert sum(value for value, *_ in shifts) <= LARGEST_SHIFT, shifts
        assert violations(page) == ""
    wide = pages[0]  # its pictures flow around the lists
    button = wide.get_by_role("button", name="The diagnosis has changed: show it")
    expect(button).to_be_visible()
    button.click()
    expect(button).to_be_hidden()
    expect(wide.locator("#advice")).to_contain_text("insert normalization")
    expect(wide.locator("#findings")).to_contain_text("depth gap")


def test_the_page_polls_where_streams_are_refused(open_page: Any, start_service: StartService, tmp_path: Path) -> None:
    """If the event stream is refused, the page polls and shows that."""
    url = f"sqlite:///{tmp_path / 'polled.db'}"
    schema.upgrade(url)
    address = start_service(url)
    run = fill(address, "polled", healthy_step, 50)
    page = open_page("about:blank", waits=False, refusals=(404,))
    page.route("**/events", lambda route: route.fulfill(status=404, body="{}"))
    page.goto(f"{address}/runs/{run}")
    expect(page.locator("#live")).to_contain_text("polling every")
    with httpx2.Client(base_url=f"{address}/api/v1") as client:
        append(client, run, healthy_step, range(50, 60), 16)
    expect(page.locator("#facts")).to_contain_text("last step 59")


def test_a_page_of_a_run_without_steps_waits(open_page: Any, service: Service) -> None:
    """The page of a run without steps shows that, and then the first steps when they arrive."""
    run = fill(service.url, "young", healthy_step, 0)
    page = open_page(f"{service.url}/runs/{run}", waits=False)
    expect(page.locator("#summary")).to_contain_text("No step has arrived yet")
    expect(page.locator("#live")).to_have_text("live")
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        append(client, run, healthy_step, range(10), 16)
    page.wait_for_selector("body[data-ready]")


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Start a service with a long run in which one value is NaN."""
    folder = tmp_path_factory.mktemp("long")
    url = f"sqlite:///{folder / 'long.db'}"
    schema.upgrade(url)
    settings = Settings(database_url=SecretStr(url))
    database = Database(settings)
    body = {"project": "p", "name": "long", "layers": [{"name": f"layer{index}.weight"} for index in range(8)]}
    facts, run_cache, block = FactsCache(), RunCache(), 1000
    with database.writing() as session:
        run, _ = runs.create(session, OPERATOR, TypeAdapter(RunCreate).validate_python(body), settings.limits())
    random = np.random.default_rng(0)
    for first in range(0, LONG, block):
        values = np.exp(random.normal(0, 0.2, (block, 8))).astype(np.float32)
        if first <= LONG // 2 + 7 < first + block:
            values[LONG // 2 + 7 - first, 3] = np.nan
        every = np.ones(block, dtype=np.bool_)
        received = ReceivedBlock(
            generation=None,
            steps=np.arange(first, first + block),
            sampled=every,
            skipped=~every,
            series={"loss": StepSeries(np.linspace(2, 1, block), every)},
            metrics={},
            statistics={"grad_norm": values},
            present=np.ones((block, 8), dtype=np.bool_),
        )
        with database.writing_rows() as connection:
            cached_run = append_steps(connection, OPERATOR, facts, run_cache, run.id, received).cached
        if cached_run is not None:
            run_cache.add(cached_run)
    database.close()
    with run_service(folder, url) as running:
        yield running.url, str(run.id)


def test_one_nan_of_a_long_run_is_visible(open_page: Any, long_run: tuple[str, str]) -> None:
    """One NaN in 40,000 steps is a coloured cell of the whole heatmap, and keys zoom to its step."""
    address, run = long_run
    page = open_page(f"{address}/runs/{run}")
    assert share_of(page, NAN_COLOR) > 0
    page.locator("#heatmap details summary").click()
    expect(page.locator("#heatmap details tbody tr").nth(3)).to_contain_text(re.compile(r"step 20,0|step 19,9"))
    last = LONG - 1
    page.goto(f"{address}/runs/{run}?layer=layer3.weight&step={LONG // 2 + 7}")
    page.wait_for_selector("body[data-ready]")
    span = last
    while span > 1:
        page.get_by_role("button", name="Zoom in").click()
        span = math.ceil(span / 2)
    expect(page.locator(CANVAS)).to_have_attribute(
        "aria-label", re.compile(f"step {LONG // 2 + 7:,}; values that are not finite in layer3")
    )
    assert share_of(page, NAN_COLOR) > 0.05


@pytest.fixture(scope="module")
def sampled_run(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Train a small model through the SDK at its default sampling; return the id of the run."""
    script = """
import gradmedic, torch
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
run = gradmedic.init(project="pages", name="sampled")
run.watch(model, optimizer)
for _ in range(3000):
    inputs = torch.randn(16, 8)
    loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    run.log(loss=loss)
run.finish()
print(run.id)
"""
    folder = tmp_path_factory.mktemp("sampled")
    environment = {
        **os.environ,
        "GRADMEDIC_BASE_URL": service.url,
        "GRADMEDIC_SILENT": "true",
        "GRADMEDIC_DIR": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=600
    )
    return done.stdout.split()[-1]


def test_steps_that_were_not_sampled_show_the_last_sample(open_page: Any, service: Service, sampled_run: str) -> None:
    """At the default sampling no cell is empty: steps between samples are paler, and their tip names the sample."""
    query: dict[str, Any] = {"statistic": "grad_norm", "layer": "0.weight", "max_points": 3000}
    table = httpx2.get(f"{service.url}/api/v1/runs/{sampled_run}/steps", params=query).json()
    counts = table["series"][0]["count"]
    unsampled = [step for step, count in enumerate(counts) if not count]
    assert len(unsampled) > 500, "the training was sampled at almost every step"
    step = next(at for at in unsampled[len(unsampled) // 2 :] if counts[at - 1])
    sample = step - 1
    page = open_page(f"{service.url}/runs/{sampled_run}?from={sample - 20}&to={sample + 30}")
    alphas = page.evaluate(
        """(selector) => {
            const canvas = document.querySelector(selector);
            const { data } = canvas.getContext("2d").getImageData(0, 1, canvas.width, 1); // a line of the first row
            const found = { empty: 0, held: 0, sampled: 0 };
            for (let at = 3; at < data.length; at += 4) {
                found[data[at] === 0 ? "empty" : data[at] === 255 ? "sampled" : "held"] += 1;
            }
            return found;
        }""",
        CANVAS,
    )
    shown = range(sample - 20, sample + 31)
    first = next(at for at in shown if counts[at])
    share_sampled = sum(counts[at] > 0 for at in shown if at >= first) / sum(at >= first for at in shown)
    drawn = alphas["held"] + alphas["sampled"]
    assert alphas["sampled"] / drawn == pytest.approx(share_sampled, abs=0.05)
    assert alphas["empty"] / (drawn + alphas["empty"]) == pytest.approx((first - shown[0]) / len(shown), abs=0.03)
    page.locator(CANVAS).scroll_into_view_if_needed()
    hover(page, step - shown[0], 0, steps=len(shown), rows=4)
    tip = page.locator("#heatmap .tip")
    expect(tip).to_contain_text(re.compile(rf"not sampled here; the last sample is of step {sample:,}"))
    expect(page.locator("#heatmap .legend")).to_contain_text("not sampled")
    page.goto(f"{service.url}/runs/{sampled_run}")
    expect(page.locator("#layer-chart .gap").first).to_be_attached()
    expect(page.locator("#loss-chart .gap")).to_have_count(0)


def test_the_zoom_goes_to_what_decided_the_verdict(open_page: Any, service: Service) -> None:
    """An early note that has resolved is neither the first bad layer, here and in lists, nor where it began."""

    def step_values(step: int, depth: Any) -> tuple[float, Any]:
        loss, gradients = healthy_step(step, depth) if step < 100 else exploding_step(step, depth)
        return (loss * 30 if step in (30, 31, 32) else loss), gradients * (50.0 if 30 <= step <= 32 else 1.0)

    run = fill(service.url, "an early spike", step_values, 200)
    diagnosis = httpx2.get(f"{service.url}/api/v1/runs/{run}/diagnosis").json()
    changes = httpx2.get(f"{service.url}/api/v1/runs/{run}/diagnosis/history").json()["items"]
    decider = next(change["finding"] for change in reversed(changes) if change["verdict"] == "exploding")
    finding = next(finding for finding in diagnosis["findings"] if finding["detector"] == decider)
    assert httpx2.get(f"{service.url}/api/v1/runs/{run}").json()["first_bad_layer"] == finding["layers"][0]
    page = open_page(f"{service.url}/runs/{run}")
    expect(page.locator("#first-layer")).to_contain_text(finding["layers"][0])
    page.locator("#to-onset").click()
    page.wait_for_url(re.compile("step="))
    assert query_of(page)["step"] == [str(min(diagnosis["since_step"], finding["first_step"]))]
    page.close()
    httpx2.delete(f"{service.url}/api/v1/runs/{run}")


def test_a_page_names_a_service_that_has_stopped(open_page: Any, service: Service) -> None:
    """Where a request gets no answer, the page shows what happened and what to do, in place of the browser's words."""
    page = open_page(f"{service.url}/runs/{service.healthy}")
    page.evaluate(
        "() => { window.kept = window.fetch; window.fetch = async () => { throw new TypeError('Failed to fetch'); }; }"
    )
    page.locator("#cell").select_option("max")
    expect(page.locator("#error")).to_contain_text("The service does not answer")
    page.evaluate("() => { window.fetch = window.kept; }")
    page.locator("#cell").select_option("mean")
    expect(page.locator("#error")).to_be_hidden()
