"""The charts of the pages in a browser: metrics, axes, smoothing, zoom, and what their menus save."""

from __future__ import annotations

import csv
import io
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect
from tests.e2e.conftest import Service, fill, healthy_step
from tests.support.accessibility import violations

STEPS = 400
TRAINING = f"""
import gradmedic, math, torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
run = gradmedic.init(project="pages", name="with metrics")
run.watch(model, optimizer)
for step in range({STEPS}):
    inputs = torch.randn(16, 8)
    loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    overflow = math.nan if 200 <= step < 210 else step + 1.0
    measured = {{"train/accuracy": 1 - math.exp(-step / 100), "overflow": overflow}}
    if step % 50 == 49:
        measured |= {{"val/loss": float(loss.detach()), "val_accuracy": step / {STEPS}}}
    measured |= {{f"extra/{{index:02}}": float(index) for index in range(24)}}
    run.log(loss=loss, **measured)
run.finish()
print(run.id)
"""


@pytest.fixture(scope="module")
def trained(service: Service, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Train a model that logs metrics, through the SDK at its default sampling; return the id of the run."""
    environment = {
        **os.environ,
        "GRADMEDIC_BASE_URL": service.url,
        "GRADMEDIC_SILENT": "true",
        "GRADMEDIC_DIR": str(tmp_path_factory.mktemp("trained")),
    }
    command = [sys.executable, "-c", TRAINING]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=600)
    return done.stdout.split()[-1]


def query_of(page: Page) -> dict[str, list[str]]:
    """Return the query parameters of the page's address."""
    return parse_qs(urlsplit(page.url).query)


def card_of(page: Page, metric: str) -> Locator:
    """Return the chart of a metric, and scroll to it, so that it is drawn."""
    card = page.locator(f'[data-metric="{metric}"]')
    card.scroll_into_view_if_needed()
    return card


def drag(page: Page, chart: Locator, start: float, end: float, *, releases: bool = True) -> None:
    """Drag over a chart, from one share of its plot to another. A chart can be dragged over when its line is drawn."""
    chart.scroll_into_view_if_needed()
    expect(chart.locator("g.line").first).to_be_attached()
    chart.hover()  # it has come to rest
    box = chart.bounding_box()
    assert box is not None
    left, right = (52, 8) if box["height"] < 200 else (62, 10)
    width, y = box["width"] - left - right, box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + left + width * start, y)
    page.mouse.down()
    page.mouse.move(box["x"] + left + width * end, y, steps=4)
    if releases:
        page.mouse.up()


def save(page: Page, menu: str, item: str) -> tuple[str, bytes]:
    """Choose an item of a chart's menu; return name and content of the file that it saves."""
    button = page.get_by_role("button", name=menu, exact=True)
    button.scroll_into_view_if_needed()
    button.click()
    with page.expect_download() as download:
        page.get_by_role("menuitem", name=item).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_every_metric_has_a_chart_in_its_group(open_page: Any, service: Service, trained: str) -> None:
    """Each metric of a training has one chart, in the group of its prefix, and is read when it comes into view."""
    metrics = httpx2.get(f"{service.url}/api/v1/runs/{trained}").json()["metrics"]
    own = [name for name in metrics if not name.startswith("gradmedic/")]
    assert len(own) < len(metrics), "the training has no probes, which the page must leave out"
    requested: list[str] = []
    page = open_page("about:blank", waits=False)
    page.on("request", lambda request: requested.extend(parse_qs(urlsplit(request.url).query).get("statistic", [])))
    page.goto(f"{service.url}/runs/{trained}")
    expect(page.locator(".metric")).to_have_count(len(own))
    assert sorted(page.locator(".metric").evaluate_all("all => all.map((each) => each.dataset.metric)")) == sorted(own)
    groups = page.locator(".metric-group")
    expect(groups).to_have_count(4)
    assert groups.evaluate_all("all => all.map((each) => each.dataset.group)") == ["train", "extra", "val", "other"]
    in_group = "all => all.map((each) => each.dataset.metric)"
    assert groups.nth(2).locator(".metric").evaluate_all(in_group) == ["val/loss", "val_accuracy"]
    accuracy = card_of(page, "train/accuracy")
    last = np.mean(1 - np.exp(-np.array([STEPS - 2, STEPS - 1]) / 100))
    expect(accuracy.locator(".value")).to_have_text(f"{last:.4g}")
    assert "overflow" not in requested, "a chart was read that is far below the window"
    overflow = card_of(page, "overflow")
    expect(overflow.locator(".not-finite.nan").first).to_be_attached()
    expect(card_of(page, "val/loss").locator(".gap").first).to_be_attached()
    overflow.locator("svg.chart").press("End")
    expect(overflow.locator(".tip")).to_contain_text("400")
    overflow.locator("svg.chart").press("Escape")
    expect(overflow.locator(".tip")).to_be_hidden()


def test_the_address_holds_how_the_charts_are_shown(open_page: Any, service: Service, trained: str) -> None:
    """Axis, smoothing, scales, folded groups, large charts and the searched name are in the address and come back."""
    page = open_page(f"{service.url}/runs/{trained}")
    page.get_by_label("Horizontal axis").select_option("elapsed")
    expect(page.locator("#loss-chart svg.chart text.unit")).to_have_text("time since the start")
    page.get_by_label("Smoothing").fill("0.8")
    expect(page.locator("#loss-chart path.raw").first).to_be_attached()
    card_of(page, "train/accuracy").get_by_role("button", name="Vertical axis of train/accuracy: linear").click()
    page.get_by_role("button", name=re.compile("^extra")).click()
    expect(page.locator('[data-metric="extra/00"]')).to_be_hidden()
    card_of(page, "val/loss").get_by_role("button", name="Menu of").click()
    page.get_by_role("menuitem", name="Show large").click()
    page.get_by_label("Metric", exact=True).fill("A")
    expect(page.locator("#metrics-found")).to_have_text("27 of 28")
    page.wait_for_url(re.compile("metric=A"))
    state = {
        "x": ["elapsed"], "smooth": ["0.8"], "log": ["train/accuracy"], "closed": ["extra"], "large": ["val/loss"],
        "metric": ["A"],
    }  # fmt: skip
    assert query_of(page) == state
    page.reload()
    page.wait_for_selector("body[data-ready]")
    expect(page.locator("#loss-chart svg.chart text.unit")).to_have_text("time since the start")
    expect(page.locator("#loss-chart path.raw").first).to_be_attached()
    expect(card_of(page, "train/accuracy").locator(".scale")).to_have_text("log")
    expect(card_of(page, "val/loss").locator("svg.chart")).to_have_attribute("height", "320")
    expect(page.locator('[data-metric="extra/00"]')).to_be_hidden()
    assert query_of(page) == state
    for scheme, width in (("light", 1400), ("dark", 390)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        card_of(page, "val/loss").get_by_role("button", name="Menu of").click()
        assert violations(page) == "", scheme
        page.keyboard.press("Escape")
        expect(page.get_by_role("menu")).to_have_count(0)


ELEMENT_AT = """(chart, { x, y }) => {
    const box = chart.getBoundingClientRect();
    return document.elementFromPoint(box.x + x, box.y + y).getAttribute("class");
}"""


def test_all_charts_share_one_range(open_page: Any, service: Service, trained: str) -> None:
    """A drag in a chart zooms heatmap and charts; a double click shows all; Escape cancels; keys do so too."""
    page = open_page(f"{service.url}/runs/{trained}")
    heatmap, loss = page.locator("#heatmap canvas"), page.locator("#loss-chart svg.chart")
    whole = re.compile(f"steps 0 to {STEPS - 1}")
    accuracy = card_of(page, "train/accuracy").locator("svg.chart")
    expect(heatmap).to_have_attribute("aria-label", whole)
    expect(loss.locator("g.line").first).to_be_attached()
    drag(page, accuracy, 0.25, 0.5, releases=False)
    expect(accuracy.locator(".brush")).to_be_visible()
    page.keyboard.press("Escape")
    page.mouse.up()
    expect(heatmap).to_have_attribute("aria-label", whole)
    assert "from" not in query_of(page)
    drag(page, accuracy, 0.25, 0.5)
    page.wait_for_url(re.compile("from="))
    query = query_of(page)
    assert abs(int(query["from"][0]) - 100) <= 3
    assert abs(int(query["to"][0]) - 200) <= 3
    shown = re.compile(f"steps {query['from'][0]} to {query['to'][0]}")
    expect(heatmap).to_have_attribute("aria-label", shown)
    page.locator("#loss-chart summary").click()
    expect(page.locator("#loss-chart tbody th").first).to_have_text(f"step {query['from'][0]}")
    loss.press("Home")
    expect(page.locator("#loss-chart .readout")).to_contain_text(f"step {query['from'][0]}:")
    page.get_by_label("Horizontal axis").select_option("elapsed")
    expect(page.locator("#loss-chart .unit")).to_have_text("time since the start")
    drag(page, loss, 0.5, 0.999)
    page.wait_for_url(lambda url: parse_qs(urlsplit(url).query)["from"] != query["from"])
    parameters: dict[str, Any] = {"statistic": "time", "max_points": STEPS}
    times = httpx2.get(f"{service.url}/api/v1/runs/{trained}/steps", params=parameters).json()["series"][0]["mean"]
    first, last = (times[int(query[end][0])] for end in ("from", "to"))
    middle = int(np.searchsorted(times, (first + last) / 2))
    assert abs(int(query_of(page)["from"][0]) - middle) <= 3, "a place on the axis of time is another step"
    assert abs(int(query_of(page)["to"][0]) - int(query["to"][0])) <= 2
    expect(heatmap).to_have_attribute("aria-label", re.compile(f"steps {query_of(page)['from'][0]} to "))
    expect(page.locator("#loss-chart tbody th").first).to_contain_text(query_of(page)["from"][0])
    loss.hover()
    place = {"x": float(loss.locator(".cross").get_attribute("x1") or 0), "y": 60}
    loss.hover(position=place)
    pressed = loss.evaluate(ELEMENT_AT, place)
    assert pressed == "cross", "the double click would not press on what the first click draws anew"
    loss.dblclick(position=place)
    expect(heatmap).to_have_attribute("aria-label", whole)
    page.get_by_label("Horizontal axis").select_option("step")
    expect(page.locator("#loss-chart .unit")).to_have_text("step")
    loss.focus()
    for key in ("Home", "PageDown", "s"):
        page.keyboard.press(key)
    page.wait_for_url(re.compile("from="))
    start = int(query_of(page)["from"][0])
    assert 0 < start < STEPS // 2
    page.keyboard.press("0")
    expect(heatmap).to_have_attribute("aria-label", whole)
    page.keyboard.press("+")
    page.wait_for_url(re.compile("from="))
    page.get_by_role("button", name="Reset the zoom").click()
    expect(heatmap).to_have_attribute("aria-label", whole)


def test_menus_save_pictures_and_values(open_page: Any, service: Service, trained: str) -> None:
    """A chart is saved as PNG and as SVG that stands alone; its CSV has every step, or the points that are drawn."""
    page = open_page(f"{service.url}/runs/{trained}?smooth=0.5")
    expect(card_of(page, "overflow").locator(".line path").first).to_be_attached()
    name, content = save(page, "Menu of overflow", "Save as CSV: every step")
    assert name == "with-metrics-overflow.csv"
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert [int(row["step"]) for row in rows] == list(range(STEPS))
    assert [row["overflow"] for row in rows][199:211] == ["200.0", *["NaN"] * 10, "211.0"]
    assert all(float(row["time"]) > 1e9 for row in rows)
    name, content = save(page, "Menu of overflow", "Save as CSV: drawn points")
    points = list(csv.DictReader(io.StringIO(content.decode())))
    assert sum(int(row["nan"]) for row in points) == 10
    assert {"min", "mean", "max", "smoothed"} <= set(points[0])
    for menu, word in (("Menu of Loss", "Loss"), ("Menu of the heatmap", "0.weight")):
        name, content = save(page, menu, "Save as PNG")
        assert name.startswith("with-metrics-")
        assert content.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", content[16:24])
        assert width > 600
        assert height > 200
        assert len(content) > width * height / 100, "the picture is almost empty"
        drawing = page.evaluate(READ_DRAWING, save(page, menu, "Save as SVG")[1].decode())
        assert word in drawing["text"]
        assert drawing["classes"] == 0, "the drawing needs a style sheet"
        if menu == "Menu of Loss":
            assert any(stroke.startswith("rgb") for stroke in drawing["strokes"])
        else:
            assert drawing["images"] == ["data:image/png"]


READ_DRAWING = """(text) => {
    const drawing = new DOMParser().parseFromString(text, "image/svg+xml");
    const attributes = (tag, name) => [...drawing.querySelectorAll(tag)].map((each) => each.getAttribute(name) ?? "");
    return {
        text: drawing.documentElement.textContent, classes: drawing.querySelectorAll("[class]").length,
        strokes: attributes("path", "stroke"), images: attributes("image", "href").map((href) => href.split(";")[0]),
    };
}"""


@pytest.fixture
def twins(service: Service) -> Iterator[list[str]]:
    """Ids of two short runs whose steps have times and metrics; the second is twice as fast."""
    runs = []
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        for pace in (2.0, 1.0):
            run = fill(service.url, f"pace {pace:g}", healthy_step, 0)
            body = {
                "steps": list(range(100)), "time": [1.7e9 + pace * step for step in range(100)],
                "metrics": {"score": [pace * step for step in range(100)]},
                "sampled": [False] * 100, "statistics": {"grad_norm": [], "weight_norm": [], "update_norm": []},
            }  # fmt: skip
            assert client.post(f"/runs/{run}/steps", json=body).status_code == 200
            runs.append(run)
        yield runs
        for run in runs:
            client.delete(f"/runs/{run}")


MODULES = """async (names) => {
    const script = [...document.scripts].find((each) => each.src.includes("/static/"));
    const modules = await Promise.all(names.map((name) => import(new URL(`${name}.js`, script.src))));
    window.modules = Object.assign({}, ...modules);
}"""
TWO_RUNS = """async (ids) => {
    const { AXES, MetricCharts, readClock, readMetricState, get } = window.modules;
    const root = document.createElement("section");
    document.querySelector("main").append(root);
    const read = async (id) => ({ ...(await get(`/runs/${id}`)), clock: await readClock(id) });
    const runs = await Promise.all(ids.map(read));
    const show = (axis, from, to) => window.charts.show({ runs, axis: AXES[axis], from, to, smoothing: 0 });
    const onZoom = (from, to) => { window.range = [from, to]; };
    window.charts = new MetricCharts(root, { state: readMetricState(new URLSearchParams()), onZoom });
    window.show = show;
    show("elapsed", 0, 100);
}"""


def test_one_chart_compares_the_metric_of_several_runs(open_page: Any, service: Service, twins: list[str]) -> None:
    """Runs share a chart; by time, the same place holds another step of each; new steps do not move the page."""
    page = open_page(f"{service.url}/compare")  # a page with the style of charts, and without charts of its own
    page.evaluate(MODULES, ["api", "axes", "metric_charts"])
    page.evaluate(TWO_RUNS, twins)
    score = card_of(page, "score")
    expect(score.locator("g.line")).to_have_count(2)
    for _ in range(6):
        score.locator("svg.chart").press("PageDown")
    values = score.locator(".tip .value")
    expect(values).to_have_count(2)
    texts = score.locator("[role=status]").inner_text()
    found = re.findall(r"pace (\d) \(step (\d+)\) (\d+)", texts)
    assert len(found) == 2, texts
    (_, slow, slow_score), (_, fast, fast_score) = found
    assert int(fast) == pytest.approx(2 * int(slow), abs=2)
    assert (int(slow_score), int(fast_score)) == (2 * int(slow), int(fast))
    drag(page, score.locator("svg.chart"), 0.2, 0.6)
    assert page.evaluate("window.range") == pytest.approx([20, 60], abs=2)
    before = score.bounding_box()
    page.evaluate("() => window.show('step', 0, 99)")
    expect(score.locator("svg.chart")).to_have_attribute("aria-label", re.compile("from 0 to 198; from 0 to 99"))
    assert score.bounding_box() == before
    name, content = save(page, "Menu of score", "Save as CSV: every step")
    assert name == "comparison-score.csv"
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert [(row["run"], float(row["score"])) for row in rows][99:101] == [("pace 2", 198.0), ("pace 1", 0.0)]


def test_scales_smoothing_and_clocks_compute_what_they_should(open_page: Any, service: Service) -> None:
    """Ticks are 1, 2 and 5 in each decade; smoothing equals its definition; a clock inverts itself; groups fit."""
    page = open_page(f"{service.url}/projects")
    page.evaluate(MODULES, ["axes", "format", "metric_groups", "scales", "smoothing", "files"])
    ticks: Any = page.evaluate(
        "(ranges) => ranges.map(([low, high]) => modules.log(low, high, 0, 1).ticks(4))",
        [[0.9, 60], [0.02, 0.3], [3, 4], [1e-6, 1e6]],
    )
    assert ticks[:2] == [[1, 2, 5, 10, 20, 50], [0.02, 0.05, 0.1, 0.2]]
    assert all(3 <= tick <= 4 for tick in ticks[2])
    assert len(ticks[2]) > 2
    assert ticks[3] == [1e-6, 1e-3, 1, 1e3, 1e6]
    assert page.evaluate("() => modules.linear(12, 12.000000000000002, 0, 1).ticks(4).length") < 10
    numbers = np.random.default_rng(0).normal(size=40).tolist()
    numbers[7] = None
    smoothed = page.evaluate(
        "(numbers) => modules.smooth(numbers.map((y, x) => ({ x, y })), 0.9).map(({ x, y }) => [x, y])", numbers
    )
    finite = [(x, y) for x, y in enumerate(numbers) if y is not None]
    assert [x for x, _ in smoothed] == [x for x, _ in finite]
    for count in range(1, len(finite) + 1):
        weights = 0.9 ** np.arange(count)[::-1]
        assert smoothed[count - 1][1] == pytest.approx(np.average([y for _, y in finite[:count]], weights=weights))
    clock = "new modules.Clock([[0, 100], [10, 110], [10, 110], [20, 108], [30, 200]])"
    assert page.evaluate(f"() => [0, 5, 20, 25, 99].map((step) => {clock}.timeAt(step))") == [100, 105, 110, 155, 200]
    assert page.evaluate(f"() => [0, 105, 155, 999].map((time) => {clock}.stepAt(time))") == [0, 5, 25, 30]
    texts = page.evaluate("() => [0.05, 59, 90, 3600, 5400, 200000, null].map(modules.duration)")
    assert texts == ["0.05 s", "59 s", "1 min 30 s", "1 h", "1 h 30 min", "2 d 8 h", "–"]
    names = ["train/loss", "a/b/c", "val_loss", "loss", "/odd", "valley_depth"]
    groups = page.evaluate("(names) => names.map(modules.groupOf)", names)
    assert groups == ["train", "a", "val", "other", "other", "other"]
    saved = page.evaluate(
        "() => [modules.fileName('a/b: c', 'é.weight'), modules.csvLines([['a,\"b', null, NaN, Infinity]])]"
    )
    assert saved == ["a-b-c-é.weight", '"a,""b",,NaN,Infinity\r\n']
