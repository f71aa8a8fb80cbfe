"""The pictures of probes on the page of a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, expect
from tests.e2e.conftest import Service, fill, healthy_step
from tests.support.accessibility import violations

from gradmedic.protocol.probes import name_metric

BLOCKS = ("stem", "block.0", "block.1", "head")
STEPS, EVERY = 40, 10


def gradient(step: int, block: int) -> float:
    """Return the gradient at the output of a block: it fades towards the input, later more."""
    return float(10.0 ** (-(1.0 + step / 30) * (len(BLOCKS) - 1 - block)))


@pytest.fixture
def probed(service: Service) -> Iterator[str]:
    """Id of a run with probes at steps 0, 10, 20 and 30, and with a metric of the user."""
    run = fill(service.url, "probed", healthy_step, 0)
    metrics: dict[str, list[float | None]] = {
        name_metric("output_gradient_rms", block): [
            gradient(step, i) if step % EVERY == 0 else None for step in range(STEPS)
        ]
        for i, block in enumerate(BLOCKS)
    }
    metrics[name_metric("time_gradient_factor", "rnn")] = [0.5 if i % EVERY == 0 else None for i in range(STEPS)]
    metrics[name_metric("time_steps", "rnn")] = [11.0 if i % EVERY == 0 else None for i in range(STEPS)]
    metrics["accuracy"] = [0.5] * STEPS
    body = {
        "steps": list(range(STEPS)), "loss": [1.0] * STEPS, "metrics": metrics,
        "statistics": {name: [[1.0] * 16] * STEPS for name in ("grad_norm", "weight_norm", "update_norm")},
    }  # fmt: skip
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        assert client.post(f"/runs/{run}/steps", json=body).status_code == 200
        yield run
        client.delete(f"/runs/{run}")


def read(page: Page, chart: str, key: str) -> str:
    """Return what a chart shows at one of its ends."""
    page.locator(f"#{chart} svg.chart").press(key)
    text: str = page.locator(f"#{chart} .readout").inner_text()
    return text


def test_the_page_shows_how_the_gradient_travels(open_page: Any, service: Service, probed: str) -> None:
    """Blocks are in the order of their metrics, at the last and the first probe; the notes have the factors."""
    page = open_page(f"{service.url}/runs/{probed}")
    blocks = page.locator("#blocks-chart")
    expect(blocks.locator(".note")).to_contain_text("From head back to stem the gradient changes by ×1e-6.")
    assert read(page, "blocks-chart", "Home") == "stem: step 30 1e-6; step 0 0.001"
    assert read(page, "blocks-chart", "End") == "head: step 30 1; step 0 1"
    expect(blocks.locator("ul.key li")).to_have_text(["step 30", "step 0"])
    time = page.locator("#time-chart")
    expect(time.locator(".note")).to_contain_text("×9.8e-4 over the 11 time steps of rnn")
    assert read(page, "time-chart", "End").endswith(": 0.5")


def test_the_first_and_last_probe_in_view_are_shown(open_page: Any, service: Service, probed: str) -> None:
    """A zoom chooses other probes; where there is none, the picture is hidden."""
    page = open_page(f"{service.url}/runs/{probed}?from=5&to=25")
    expect(page.locator("#blocks-chart ul.key li")).to_have_text(["step 20", "step 10"])
    page = open_page(f"{service.url}/runs/{probed}?from=1&to=9")
    expect(page.locator("#blocks-chart")).to_be_hidden()
    expect(page.locator("#time-chart")).to_be_hidden()


def test_a_run_without_probes_has_no_such_picture(open_page: Any, service: Service) -> None:
    """The pictures are hidden, and so is every probe from the statistics to choose."""
    page = open_page(f"{service.url}/runs/{service.healthy}")
    expect(page.locator("#blocks-chart")).to_be_hidden()
    expect(page.locator("#time-chart")).to_be_hidden()
    expect(page.locator("#statistic option")).to_have_count(3)


def test_the_pictures_are_accessible(open_page: Any, service: Service, probed: str) -> None:
    """The page with the pictures has no violation, in light and dark."""
    for scheme in ("light", "dark"):
        page = open_page(f"{service.url}/runs/{probed}", color_scheme=scheme)
        expect(page.locator("#blocks-chart")).to_be_visible()
        assert violations(page) == ""
