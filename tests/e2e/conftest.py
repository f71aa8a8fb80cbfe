"""Fixtures for tests of the pages in a real Chromium, with a real service."""

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
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright
from tests.support.played_worker import CLIP, SLOW, PlayedWorker, rerun, suspect
from tests.support.services import run_service

from gradmedic_service.database import schema

PATIENCE = 300_000
"""Longest wait in milliseconds for a page or a job; only a failure takes so long."""
LEASE = 300.0
"""Seconds after which a silent worker loses its trials; the workers that tests play are silent."""
BLOCK = 50
NAN_FROM, INFINITE_FROM, RISING_FROM = 180, 160, 120
"""First steps of the exploding run with NaN, infinite and rising gradients."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Run all tests that need the browser in one process: a second browser costs more than it gains.

    xdist reads the groups before hooks of this file could change the whole collection.
    """
    item.add_marker(pytest.mark.xdist_group("browser"))
    item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium; close it before other tests run in this thread with Playwright's event loop."""
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
    """A service and the ids of its runs."""

    url: str
    exploding: str
    """Id of an exploding run: its gradients rise, become infinite, then NaN."""
    healthy: str
    vanishing: str
    """Id of a vanishing run that is still running."""
    rerun: str
    """Id of a rerun in which a remedy was verified."""


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a service with an exploding, a healthy and a vanishing run, and with a rerun."""
    folder = tmp_path_factory.mktemp("service")
    url = f"sqlite:///{folder / 'pages.db'}"
    schema.upgrade(url)
    with run_service(folder, url, lease=LEASE) as running:
        address = running.url
        exploding = fill(address, "no clipping", exploding_step, 200)
        healthy = fill(address, "clipped", healthy_step, 200)
        vanishing = fill(address, "sigmoid", vanishing_step, 200)
        with httpx2.Client(base_url=address) as client:
            client.patch(f"/api/v1/runs/{exploding}", json={"status": "failed"})
            client.patch(f"/api/v1/runs/{healthy}", json={"status": "finished"})
            race = run_race(client)
        yield Service(address, exploding, healthy, vanishing, race)


def run_race(client: httpx2.Client) -> str:
    """Run a rerun with a simulated worker: one remedy is verified, one fails; return the rerun's id."""
    worker = PlayedWorker(client)
    worker.register()
    made: str = rerun(client, suspect(client, name="suspect"), CLIP, SLOW)["id"]
    worker.work({0: "exploding", 1: "learning", 2: "exploding"})
    assert client.get(f"/api/v1/reruns/{made}").json()["status"] == "done"
    return made


Step = Callable[[int, Any], tuple[float, Any]]
"""Function from a step and depths between 0 and 1 to a loss and gradients."""


def exploding_step(step: int, depth: Any) -> tuple[float, Any]:
    """Return a step of a run whose gradients rise towards the input, overflow and become NaN."""
    rise = max(0, step - RISING_FROM)
    gradients = 10.0 ** (0.2 * rise * (1 - depth))
    loss = 2.3 if rise == 0 else 2.3 * 1.2**rise
    if step >= NAN_FROM:
        return math.nan, np.full_like(depth, math.nan)
    if step >= INFINITE_FROM:
        gradients = np.where(depth < 0.5, math.inf, gradients)
    return loss, gradients


def healthy_step(step: int, depth: Any) -> tuple[float, Any]:
    """Return a step of a run that learns."""
    return 2.3 * math.exp(-step / 60) + 0.2, np.ones_like(depth)


def vanishing_step(_step: int, depth: Any) -> tuple[float, Any]:
    """Return a step of a run whose gradients vanish towards the input."""
    return 2.3, 10.0 ** (-6 * (1 - depth))


def fill(address: str, name: str, step_values: Step, steps: int, blocks: int = 8, **fields: Any) -> str:
    """Create a run and append its steps; return its id."""
    layers = [
        {"name": f"encoder.{block}.{kind}", "kind": "Linear", "role": role, "shape": shape}
        for block in range(blocks)
        for kind, role, shape in (("weight", "weight", [8, 8]), ("bias", "bias", [8]))
    ]
    with httpx2.Client(base_url=f"{address}/api/v1") as client:
        body = {
            "project": "pages", "name": name, "layers": layers, "tags": ["seen"], "framework": "torch 2.13.0",
            "statistics": ["grad_norm", "weight_norm", "update_norm"], "config": {"lr": 0.1}, **fields,
        }  # fmt: skip
        run: str = client.post("/runs", json=body).json()["id"]
        for first in range(0, steps, BLOCK):
            append(client, run, step_values, range(first, min(first + BLOCK, steps)), 2 * blocks)
    return run


def append(client: httpx2.Client, run: str, step_values: Step, steps: range, layers: int) -> None:
    """Append the steps of a block, with noise that depends only on the step."""
    depth = np.linspace(0, 1, layers)
    losses, rows = [], []
    for step in steps:
        loss, gradients = step_values(step, depth)
        noise = np.random.default_rng(step).normal(0, 0.1, layers + 1)
        losses.append(to_json_number(loss * (1 + 0.01 * noise[0])))
        rows.append([to_json_number(value) for value in gradients * np.exp(noise[1:])])
    weights = [[9.0] * layers] * len(losses)
    updates = [[value if isinstance(value, str) else value * 1e-2 for value in row] for row in rows]
    body = {
        "steps": list(steps), "loss": losses, "learning_rate": [0.1] * len(losses),
        "statistics": {"grad_norm": rows, "weight_norm": weights, "update_norm": updates},
    }  # fmt: skip
    response = client.post(f"/runs/{run}/steps", json=body)
    assert response.status_code == 200, response.text


def to_json_number(value: float) -> float | str:
    """Return a number as it is sent in JSON."""
    return float(value) if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity"


StartService = Callable[..., str]


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[StartService]:
    """Start a service of the test's own on a database, and return its address."""
    with ExitStack() as stack:

        def start(database_url: str, *options: str) -> str:
            return stack.enter_context(run_service(tmp_path, database_url, *options, lease=LEASE)).url

        yield start


OpenPage = Callable[..., Page]
CONTEXT_OPTIONS = {
    "viewport": {"width": 1400, "height": 1000},
    "reduced_motion": "reduce",  # an endless animation takes a whole core where no GPU draws it
}


@pytest.fixture
def open_page(chromium: Browser, start_service: StartService) -> Iterator[OpenPage]:
    """Return a function that opens a page; the test fails if a script fails or a request is blocked or refused.

    Pages are closed before a service of the test ends, because a page that follows it would report an error.
    """
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def start(address: str, *, waits: bool = True, refusals: tuple[int, ...] = (), **options: Any) -> Page:
        context = chromium.new_context(**{**CONTEXT_OPTIONS, **options})
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        expected = [f"Failed to load resource: the server responded with a status of {status} " for status in refusals]

        def collect(message: ConsoleMessage) -> None:
            if message.type == "error" and not any(message.text.startswith(prefix) for prefix in expected):
                errors.append(message.text)

        page.on("console", collect)
        page.goto(address)
        if waits:
            page.wait_for_selector("body[data-ready]")
        return page

    yield start
    for context in contexts:
        context.close()
    assert errors == []
