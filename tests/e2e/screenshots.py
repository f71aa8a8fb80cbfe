"""Screenshots of the pages for the documentation, of real jobs and a real rerun: `make screenshots` (some minutes)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.servers import gradmedic
from playwright.sync_api import sync_playwright

from gradmedic import Client
from gradmedic_service.database import schema

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "images"
JOBS = (
    ("digits, relu", "digits_classifier.py", "--activation", "relu"),
    ("digits, sigmoid", "digits_classifier.py"),
    ("char-lm, clip 0.1", "rnn_language_model.py", "--clip", "0.1"),
    ("char-lm, no clipping", "rnn_language_model.py"),
)
RERUN, VANISHING = "char-lm, no clipping", "digits, sigmoid"
WAIT_SECONDS = 3600


def train(address: str, folder: Path) -> None:
    """Train each job; the exit status is ignored, because a script of an exploding run may fail."""
    for name, script, *options in JOBS:
        sys.stderr.write(f"training {name} ...\n")
        environment = {
            "PATH": "/usr/bin:/bin",
            "GRADMEDIC_BASE_URL": address,
            "GRADMEDIC_RUN_NAME": name,
            "OMP_NUM_THREADS": "1",  # on a busy machine, threads of torch wait for each other busily
        }
        command = [sys.executable, str(ROOT / "examples" / script), "--steps", "200", *options]
        subprocess.run(command, env=environment, cwd=folder, check=False, capture_output=True)


def main() -> int:
    """Train, rerun, and take the screenshots."""
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        sys.stderr.write("There is no Chromium: apt-get install chromium\n")
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        url = f"sqlite:///{folder / 'screenshots.db'}"
        schema.upgrade(url)
        worker = ("--with-worker", str(ROOT / "examples" / "worker.toml"))
        with gradmedic(url, folder, *worker) as (address, _), Client(address) as client:
            train(address, folder)
            runs = {run.name: run.id for run in client.runs.list()}
            sys.stderr.write(f"rerunning {RERUN} ...\n")
            rerun = client.reruns.wait(client.reruns.create(runs[RERUN]).id, timeout=WAIT_SECONDS)
            compared = "&".join(f"run={runs[name]}" for name in (RERUN, "char-lm, clip 0.1"))
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=executable)
                for screenshot, path, scheme, width, height in (
                    ("runs", "/", "light", 1280, 420),
                    ("run", f"/runs/{runs[VANISHING]}", "light", 1440, 1180),
                    ("run-dark", f"/runs/{runs[RERUN]}?from=0&to=30&step=11", "dark", 1440, 1040),
                    ("run-phone", f"/runs/{runs[VANISHING]}", "dark", 390, 1200),
                    ("compare", f"/compare?{compared}", "light", 1280, 1080),
                    ("rerun", f"/reruns/{rerun.id}", "light", 1440, 1240),
                ):
                    context = browser.new_context(
                        viewport={"width": width, "height": height},
                        color_scheme=scheme,  # type: ignore[arg-type] # "light" or "dark"
                    )
                    page = context.new_page()
                    page.goto(f"{address}{path}")
                    page.wait_for_selector("body[data-ready]")
                    page.screenshot(path=FOLDER / f"{screenshot}.png", animations="disabled")
                    context.close()
                browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
