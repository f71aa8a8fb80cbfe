"""Measures the load time and the size of a run's page: 100 layers, a thousand to a million steps.

The system's Chromium loads the page with an empty cache, over loopback, from a service on SQLite in a process of its
own. *Interactive* is the time from the request until the heatmap has been painted from its data and takes keys. *Data*
is the size of everything that was transferred until then, the page itself, its scripts and styles included.

    python -m benchmarks.page [--quick]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

from playwright.sync_api import Browser, sync_playwright
from pydantic import SecretStr

from benchmarks.query import LENGTHS, fill
from benchmarks.servers import gradmedic
from gradmedic_service.database import schema
from gradmedic_service.database.engine import Database
from gradmedic_service.settings import Settings

VISITS: Final = 7
TARGET_SECONDS: Final = 1.5
TARGET_KILOBYTES: Final = 300.0
CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome")

MEASURE = """() => {
    const entries = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
    return entries.reduce((sum, entry) => sum + entry.transferSize, 0);
}"""
WHEN_READY = """() => new Promise((done) => {
    const check = () => (document.body?.dataset.ready ? done(performance.now()) : requestAnimationFrame(check));
    check();
})"""


def visit(browser: Browser, address: str) -> tuple[float, float]:
    """Open a page with an empty cache; return seconds and kilobytes."""
    context = browser.new_context(viewport={"width": 1440, "height": 1000})
    page = context.new_page()
    page.goto(address, wait_until="commit")
    milliseconds: float = page.evaluate(WHEN_READY)
    transferred: float = page.evaluate(MEASURE)
    context.close()
    return milliseconds / 1e3, transferred / 1e3


def main() -> int:
    """Create the runs, measure, print the table and the verdicts; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="up to a hundred thousand steps")
    lengths = LENGTHS[:-1] if parser.parse_args().quick else LENGTHS
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        print("There is no Chromium: apt-get install chromium")
        return 1
    seconds: dict[int, float] = {}
    kilobytes: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="gradmedic-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        url = f"sqlite:///{folder / 'page.db'}"
        schema.upgrade(url)
        database = Database(Settings(database_url=SecretStr(url)))
        run_ids = {}
        for length in lengths:
            print(f"(writing {length:,} steps of 100 layers ...)", flush=True)
            run_ids[length] = fill(database, length)
        database.close()
        print(f"\n{'steps':>10} {'interactive s':>14} {'slowest s':>10} {'data kB':>8}")
        with gradmedic(url, folder) as (address, _), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable)
            for length, run_id in run_ids.items():
                visits = [visit(browser, f"{address}/runs/{run_id}") for _ in range(VISITS + 1)][1:]
                seconds[length] = statistics.median(time for time, _ in visits)
                kilobytes[length] = max(size for _, size in visits)
                slowest = max(time for time, _ in visits)
                print(f"{length:10,} {seconds[length]:14.2f} {slowest:10.2f} {kilobytes[length]:8.0f}", flush=True)
            browser.close()
    checks = [
        ("page_interactive_s", max(seconds.values()), TARGET_SECONDS),
        ("page_data_kb", max(kilobytes.values()), TARGET_KILOBYTES),
    ]
    print()
    for metric, value, target in checks:
        print(f"{metric}: {value:.2f} (target <= {target:g}) {'PASS' if value <= target else 'FAIL'}")
    return 1 if any(value > target for _, value, target in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
