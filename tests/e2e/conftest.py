"""A real Chromium looking at a real service."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from benchmarks.servers import gradmedic
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from tests.service.reruns.conftest import CLIP, SLOW, PlayedWorker, rerun, suspect

from gradmedic_service.database import schema

PATIENCE = 300_000
"""Milliseconds for a page to show something, or a job to end: only what is broken takes so long."""
BLOCK = 50
NAN_FROM, INFINITE_FROM, RISING_FROM = 180, 160, 120
"""Steps of the sick run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what needs the browser in one process: a second browser costs more than it gains."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("browser"))
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The system's Chromium; gone before other tests, in whose thread Playwright's event loop would go on."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@dataclass(frozen=True)
class Service:
    """A service, and the runs that are in it."""

    url: str
    sick: str
    """Id of a run that explodes: gradients rise, become infinite, then NaN."""
    well: str
    slow: str
    """One that vanishes and is still running."""
    rerun: str
    """Id of a rerun in which a remedy was verified."""


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a sick, a healthy and a vanishing run."""
    folder = tmp_path_factory.mktemp("service")
    url = f"sqlite:///{folder / 'pages.db'}"
    schema.upgrade(url)
    with gradmedic(url, folder) as (address, _):
        sick = fill(address, "no clipping", sick_step, 200)
        well = fill(address, "clipped", well_step, 200)
        slow = fill(address, "sigmoid", slow_step, 200)
        with httpx2.Client(base_url=address) as client:
            client.patch(f"/api/v1/runs/{sick}", json={"status": "failed"})
            client.patch(f"/api/v1/runs/{well}", json={"status": "finished"})
            race = raced(client)
        yield Service(address, sick, well, slow, race)


def raced(client: httpx2.Client) -> str:
    """Have a suspect rerun by a worker that is played: one remedy is verified, one fails; return the rerun's id."""
    worker = PlayedWorker(client)
    worker.register()
    made: str = rerun(client, suspect(client, name="suspect"), CLIP, SLOW)["id"]
    worker.work({0: "exploding", 1: "learning", 2: "exploding"})
    assert client.get(f"/api/v1/reruns/{made}").json()["status"] == "done"
    return made


Step = Callable[[int, Any], tuple[float, Any]]
"""From a step and depths from 0 to 1 to a loss and gradients."""


def sick_step(step: int, depth: Any) -> tuple[float, Any]:
    """A run whose gradients rise towards the input, overflow and are lost."""
    rise = max(0, step - RISING_FROM)
    gradients = 10.0 ** (0.2 * rise * (1 - depth))
    loss = 2.3 if rise == 0 else 2.3 * 1.2**rise
    if step >= NAN_FROM:
        return math.nan, np.full_like(depth, math.nan)
    if step >= INFINITE_FROM:
        gradients = np.where(depth < 0.5, math.inf, gradients)
    return loss, gradients


def well_step(step: int, depth: Any) -> tuple[float, Any]:
    """A run that learns."""
    return 2.3 * math.exp(-step / 60) + 0.2, np.ones_like(depth)


def slow_step(_step: int, depth: Any) -> tuple[float, Any]:
    """A run whose gradients vanish towards the input."""
    return 2.3, 10.0 ** (-6 * (1 - depth))


def fill(address: str, name: str, of: Step, steps: int, blocks: int = 8) -> str:
    """Create a run and append its steps; return its id."""
    layers = [
        {"name": f"encoder.{block}.{kind}", "kind": "Linear", "role": role, "shape": shape}
        for block in range(blocks)
        for kind, role, shape in (("weight", "weight", [8, 8]), ("bias", "bias", [8]))
    ]
    with httpx2.Client(base_url=f"{address}/api/v1", timeout=60) as client:
        body = {
            "project": "pages", "name": name, "layers": layers, "tags": ["seen"], "framework": "torch 2.13.0",
            "statistics": ["grad_norm", "weight_norm", "update_norm"], "config": {"lr": 0.1},
        }  # fmt: skip
        run: str = client.post("/runs", json=body).json()["id"]
        for first in range(0, steps, BLOCK):
            append(client, run, of, range(first, min(first + BLOCK, steps)), 2 * blocks)
    return run


def append(client: httpx2.Client, run: str, of: Step, steps: range, layers: int) -> None:
    """Append the steps of a block, with some noise that is always the same."""
    depth = np.linspace(0, 1, layers)
    losses, rows = [], []
    for step in steps:
        loss, gradients = of(step, depth)
        noise = np.random.default_rng(step).normal(0, 0.1, layers + 1)
        losses.append(named(loss * (1 + 0.01 * noise[0])))
        rows.append([named(value) for value in gradients * np.exp(noise[1:])])
    weights = [[9.0] * layers] * len(losses)
    updates = [[value if isinstance(value, str) else value * 1e-2 for value in row] for row in rows]
    body = {
        "steps": list(steps), "loss": losses, "learning_rate": [0.1] * len(losses),
        "statistics": {"grad_norm": rows, "weight_norm": weights, "update_norm": updates},
    }  # fmt: skip
    response = client.post(f"/runs/{run}/steps", json=body)
    assert response.status_code == 200, response.text


def named(value: float) -> float | str:
    """Write a number as JSON does."""
    return float(value) if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity"


StartService = Callable[..., str]


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[StartService]:
    """Start a service of the test's own on a database, and return its address."""
    with ExitStack() as stack:

        def start(database_url: str, *options: str) -> str:
            address, _ = stack.enter_context(gradmedic(database_url, tmp_path, *options))
            return address

        yield start


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(chromium: Browser, start_service: StartService) -> Iterator[OpenPage]:
    """Open pages that must not complain: no script fails, nothing is blocked, nothing is missing.

    They are closed before a service of the test's own ends: a page that still follows it would complain of that.
    """
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def start(address: str, *, waits: bool = True, refusals: tuple[int, ...] = (), **options: Any) -> Page:
        context = chromium.new_context(**{"viewport": {"width": 1400, "height": 1000}, **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        expected = [f"Failed to load resource: the server responded with a status of {status} " for status in refusals]

        def note(message: ConsoleMessage) -> None:
            if message.type == "error" and not any(message.text.startswith(one) for one in expected):
                complaints.append(message.text)

        page.on("console", note)
        page.goto(address)
        if waits:
            page.wait_for_selector("body[data-ready]")
        return page

    yield start
    for context in contexts:
        context.close()
    assert complaints == []
