"""Pictures of the pages for the documentation, of the runs that the tests look at: `make screenshots`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import httpx2
from benchmarks.servers import gradmedic
from playwright.sync_api import sync_playwright
from tests.e2e.conftest import fill, sick_step, slow_step, well_step

from gradmedic_service import schema

FOLDER = Path(__file__).parents[2] / "docs" / "images"


def main() -> int:
    """Fill a service, and take the pictures."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        sys.stderr.write("There is no Chromium: apt-get install chromium\n")
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        url = f"sqlite:///{name}/pictures.db"
        schema.upgrade(url)
        with gradmedic(url, Path(name)) as (address, _), sync_playwright() as playwright:
            well = fill(address, "deep net, clipped", well_step, 200, blocks=12)
            slow = fill(address, "deep net, sigmoid", slow_step, 200, blocks=12)
            sick = fill(address, "deep net, no clipping", sick_step, 200, blocks=12)
            with httpx2.Client(base_url=f"{address}/api/v1") as client:
                client.patch(f"/runs/{well}", json={"status": "finished"})
                client.patch(f"/runs/{sick}", json={"status": "failed"})
            browser = playwright.chromium.launch(executable_path=executable)
            runs = "&".join(f"run={one}" for one in (well, slow, sick))
            for picture, path, scheme, width, height in (
                ("runs", "/", "light", 1280, 420),
                ("run", f"/runs/{sick}", "light", 1440, 1040),
                ("run-dark", f"/runs/{sick}?from=140&to=185&step=158", "dark", 1440, 1040),
                ("run-phone", f"/runs/{sick}", "dark", 390, 1200),
                ("compare", f"/compare?{runs}", "light", 1280, 980),
            ):
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
                page = context.new_page()
                page.goto(f"{address}{path}")
                page.wait_for_selector("body[data-ready]")
                page.screenshot(path=FOLDER / f"{picture}.png", animations="disabled")
                context.close()
            browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
