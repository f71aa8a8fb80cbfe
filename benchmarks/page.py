"""Measures the load time and the size of two pages: a run of 100 layers, and the list of ten thousand runs.

The system's Chromium loads the page with an empty cache, over loopback, from a service on SQLite in a process of its
own. *Interactive* is the time from the request until the heatmap, or the first rows of the list, have been painted from
their data and take keys. *Data* is the size of everything that was transferred until then, the page itself, its scripts
and styles included. Of the list, *jump* is the time from a jump to its end until the last run is shown.

    python -m benchmarks.page [--quick]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Browser, sync_playwright
from pydantic import SecretStr

from benchmarks.query import LENGTHS, fill
from benchmarks.servers import gradmedic
from gradmedic.protocol.ids import new_id
from gradmedic_diagnosis import Block, StepSeries
from gradmedic_service.database import models, schema
from gradmedic_service.database.engine import Database
from gradmedic_service.runs.progress import RunProgress
from gradmedic_service.settings import Settings

VISITS: Final = 7
LISTED_RUNS: Final = 10_000
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


def fill_list(database: Database, count: int) -> None:
    """Add runs as ten thousand trainings would leave them: settings, a loss, metrics, tags, verdicts of all kinds."""
    rng = np.random.default_rng(0)
    began = datetime(2026, 1, 1, tzinfo=UTC)
    verdicts = rng.choice(["healthy", "exploding", "vanishing", "undetermined"], count, p=[0.8, 0.1, 0.05, 0.05])
    levels = {"healthy": "ok", "exploding": "critical", "vanishing": "critical", "undetermined": "unknown"}
    with database.writing() as session:
        for index, verdict in enumerate(verdicts.tolist()):
            begin = began + timedelta(minutes=index)
            progress = RunProgress(generation=0)
            losses = 0.1 + 2 * np.exp(-np.arange(200) / rng.uniform(20, 200)) + rng.normal(0, 0.02, 200)
            losses[150:] = np.nan if verdict == "exploding" else losses[150:]
            block = block_of(losses, begin.timestamp(), float(rng.uniform(0.5, 1)))
            progress.add(block, begin, begin)
            width = int(2 ** rng.integers(5, 9))
            config = {"lr": 10.0 ** -int(rng.integers(1, 6)), "seed": index % 5, "model": {"width": width}}
            run = models.Run(
                id=new_id(), project=f"project {index % 4}", name=f"sweep-{index:05}", group=f"group {index % 12}",
                status="finished" if index < count - 3 else "running", verdict=verdict, learning="unknown",
                level=levels[verdict], score=0.9, since_step=150, last_step=199, generation=0, revision=5,
                created_at=begin, updated_at=begin + timedelta(minutes=7), statistics=["grad_norm"],
                metrics=["val/accuracy"], layer_counts=[2], facts_digest=bytes(16), progress=progress.to_bytes(),
                last_values=progress.last_values(), duration=progress.duration(),
                first_bad_layer="encoder.layers.3.self_attn.out_proj.weight" if levels[verdict] == "critical" else None,
                details=models.RunDetails(config=config, layers=[{"name": "a"}, {"name": "b"}]),
                tags=[models.RunTag(position=0, tag=f"sweep {index % 7}")],
            )  # fmt: skip
            session.add(run)


def block_of(losses: NDArray[np.float64], begin: float, accuracy: float) -> Block:
    """Return a block with one loss a step and one value of a metric at its end."""
    count = len(losses)
    everywhere = np.ones(count, dtype=np.bool_)
    times = begin + 2.0 * np.arange(count, dtype=np.float64)
    accuracies = StepSeries(np.full(count, accuracy), np.arange(count) == count - 1)
    return Block(
        steps=np.arange(count),
        sampled=~everywhere,
        skipped=~everywhere,
        statistics=("grad_norm",),
        values=np.zeros((0, 2, 1), dtype=np.float32),
        present=np.zeros((0, 2), dtype=np.bool_),
        series={"loss": StepSeries(losses, everywhere), "time": StepSeries(times, everywhere)},
        metrics={"val/accuracy": accuracies},
    )


def jump_to_end(browser: Browser, address: str) -> float:
    """Open the list, jump to its end, and return the seconds until the oldest run is in view."""
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    began = time.perf_counter()
    page.evaluate("() => { const list = document.getElementById('list'); list.scrollTop = list.scrollHeight; }")
    page.get_by_role("link", name="sweep-00000").wait_for()
    seconds = time.perf_counter() - began
    page.close()
    return seconds


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
        print(f"(writing {LISTED_RUNS:,} runs ...)", flush=True)
        list_url = f"sqlite:///{folder / 'list.db'}"
        schema.upgrade(list_url)
        list_database = Database(Settings(database_url=SecretStr(list_url)))
        fill_list(list_database, LISTED_RUNS)
        list_database.close()
        database.close()
        print(f"\n{'page':>10} {'interactive s':>14} {'slowest s':>10} {'data kB':>8}")
        with gradmedic(url, folder) as (address, _), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=executable)
            for length, run_id in run_ids.items():
                visits = [visit(browser, f"{address}/runs/{run_id}") for _ in range(VISITS + 1)][1:]
                seconds[length] = statistics.median(each for each, _ in visits)
                kilobytes[length] = max(size for _, size in visits)
                slowest = max(each for each, _ in visits)
                print(f"{length:10,} {seconds[length]:14.2f} {slowest:10.2f} {kilobytes[length]:8.0f}", flush=True)
            with gradmedic(list_url, folder) as (list_address, _):
                visits = [visit(browser, list_address) for _ in range(VISITS + 1)][1:]
                list_seconds = statistics.median(each for each, _ in visits)
                list_kilobytes = max(size for _, size in visits)
                slowest = max(each for each, _ in visits)
                print(f"{'runs':>10} {list_seconds:14.2f} {slowest:10.2f} {list_kilobytes:8.0f}", flush=True)
                jump = statistics.median(jump_to_end(browser, list_address) for _ in range(3))
                print(f"\njump to the end of {LISTED_RUNS:,} runs: {jump:.2f} s")
            browser.close()
    checks = [
        ("page_interactive_s", max(seconds.values()), TARGET_SECONDS),
        ("page_data_kb", max(kilobytes.values()), TARGET_KILOBYTES),
        ("list_interactive_s", list_seconds, TARGET_SECONDS),
        ("list_data_kb", list_kilobytes, TARGET_KILOBYTES),
    ]
    print()
    for metric, value, target in checks:
        print(f"{metric}: {value:.2f} (target <= {target:g}) {'PASS' if value <= target else 'FAIL'}")
    return 1 if any(value > target for _, value, target in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
