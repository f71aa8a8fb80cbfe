"""Pages while they load: what is painted stays where it is."""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.conftest import Service
from tests.e2e.test_run_page import LARGEST_SHIFT, WATCH_SHIFTS

SIZES = ({"width": 1400, "height": 900}, {"width": 390, "height": 844})


@pytest.mark.parametrize("size", SIZES, ids=["desktop", "phone"])
@pytest.mark.parametrize("path", ["/", "/runs/{exploding}", "/runs/{healthy}"], ids=["list", "unhealthy", "healthy"])
def test_nothing_moves_while_a_page_loads(open_page: Any, service: Service, path: str, size: dict[str, int]) -> None:
    """The first picture of a page has everything in its place."""
    page = open_page(service.url + path.format(exploding=service.exploding, healthy=service.healthy), viewport=size)
    page.add_init_script(f"({WATCH_SHIFTS})()")
    page.reload()
    page.wait_for_selector("body[data-ready]")
    page.wait_for_load_state("networkidle" if path == "/" else "load")
    shifts: list[Any] = page.evaluate(
        "() => new Promise((resolve) => requestAnimationFrame(() => setTimeout(() => resolve(window.shifts), 100)))"
    )
    assert sum(value for value, *_ in shifts) <= LARGEST_SHIFT, shifts


def test_a_page_without_its_data_shows_the_reason(open_page: Any, service: Service) -> None:
    """What waits to be drawn does not hide the message that nothing can be drawn."""
    page = open_page(f"{service.url}/runs/{service.exploding}", refusals=(500,))
    page.route("**/api/v1/runs/*/diagnosis", lambda route: route.fulfill(status=500, body="no answer"))
    page.reload()
    page.locator("#error").wait_for(state="visible")
