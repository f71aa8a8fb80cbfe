"""Reruns in a browser: starting, following, reading and cancelling them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect
from tests.e2e.conftest import PATIENCE, Service, StartService
from tests.support.clipboard import copy_from
from tests.support.played_worker import CLIP, SLOW, STEPS, PlayedWorker, rerun, suspect

from gradmedic_service.database import schema

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def worker(service: Service) -> Iterator[PlayedWorker]:
    """Return a simulated worker with a client of the service."""
    with httpx2.Client(base_url=service.url) as client:
        played = PlayedWorker(client)
        played.register()
        yield played


def test_a_rerun_is_started_and_followed(open_page: Any, service: Service, worker: PlayedWorker) -> None:
    """The page of a run starts a rerun of the marked remedies; the page of the rerun shows its progress and result."""
    page = open_page(f"{service.url}/runs/{suspect(worker.client, name='to be rerun')}")
    form = page.locator("#start")
    form.get_by_text("Choose remedies and budget").click()
    choice = form.get_by_role("checkbox", name="scale learning rate (")
    remedy = choice.locator("..").inner_text().strip()
    choice.check()
    form.get_by_label("Seeds").fill("1")
    form.get_by_label("Steps per trial").fill(str(STEPS))
    expect(page.locator("#plan")).to_contain_text(f"The first round takes about 2 trials of {STEPS} steps")
    expect(page.locator("#plan")).to_contain_text("and one round.")
    form.get_by_role("button", name="Race the remedies").click()
    expect(page.locator("h1")).to_have_text("Rerun of to be rerun")
    expect(page.locator("#status")).to_have_text("queued")
    expect(page.locator("#live")).to_have_text("live")
    candidates = page.locator("#candidates tbody tr")
    expect(candidates).to_have_count(2)
    expect(page.locator("#progress")).to_contain_text("0 of about 2 trials ended")
    expect(candidates.nth(1)).to_contain_text(remedy)

    control = worker.claim()
    assert control is not None
    worker.stream(control, "exploding", STEPS // 2)
    worker.beat(control, output="<b>step 7</b> loss 2.3")
    trials = page.locator("#trials tbody tr")
    expect(trials.first).to_contain_text("running")
    expect(trials.first).to_contain_text(f"{STEPS // 2} of {STEPS}")
    expect(trials.first).to_contain_text("exploding")
    expect(page.locator("#race-chart svg.chart > g.line")).to_have_count(1)
    page.get_by_role("button", name="Output of unchanged control, seed 0").click()
    expect(page.locator("#output pre")).to_have_text("<b>step 7</b> loss 2.3")
    expect(page.locator("#output-title")).to_be_focused()
    worker.beat(control, output="step 39 loss NaN")
    worker.publish(control)
    expect(page.locator("#output pre")).to_have_text("step 39 loss NaN")

    worker.work({1: "learning"})
    expect(page.locator("#status")).to_have_text("done")
    expect(page.locator("#result")).to_contain_text(re.compile("verified: healthy in 1 of 1 seed, loss .* against NaN"))
    expect(candidates.first).to_contain_text("0 of 1")
    expect(candidates.nth(1)).to_contain_text("verified")
    expect(page.locator("#race-chart svg.chart > g.line")).to_have_count(2)
    expect(page.locator("#cancel")).to_be_hidden()
    page.locator(".crumbs").get_by_role("link", name="to be rerun").click()
    expect(page.locator("#next-action")).to_contain_text(f"Best remedy: {remedy}")
    expect(page.locator("#advice li").first).to_contain_text(f"1. {remedy}")
    expect(page.locator("#advice li").first).to_contain_text("Tried on this job: verified")
    expect(page.locator("#races li")).to_contain_text("1 of 1 candidates verified")


def test_a_finished_rerun_shows_its_outcomes(open_page: Any, service: Service) -> None:
    """The candidates have their outcomes and losses, non-finite ones included, and code to copy."""
    page = open_page(f"{service.url}/reruns/{service.rerun}", permissions=["clipboard-read", "clipboard-write"])
    stored = httpx2.get(f"{service.url}/api/v1/reruns/{service.rerun}").json()
    rows = page.locator("#candidates tbody tr")
    for index, candidate in enumerate(stored["candidates"]):
        if candidate["outcome"] is not None:
            expect(rows.nth(index)).to_contain_text(candidate["outcome"]["state"])
            expect(rows.nth(index)).to_contain_text(candidate["reason"])
    expect(rows.first.get_by_role("img")).to_have_attribute(
        "aria-label", "Final losses: seed 0 NaN, seed 1 NaN, seed 2 NaN"
    )
    expect(rows.nth(1).get_by_role("img")).to_have_attribute(
        "aria-label", re.compile(r"seed 0 \d.*seed 1 \d.*seed 2 \d")
    )
    code = rows.filter(has_text="Code").first
    code.get_by_text("Code", exact=True).click()
    assert copy_from(code) == code.locator("code").inner_text()
    page.locator("#race-chart .chart").focus()
    page.keyboard.press("Home")
    expect(page.locator("#race-chart .readout")).to_contain_text(re.compile(r"step 0: .*unchanged control, seed 0 \d"))
    page.get_by_role("link", name="Compare with the suspect").click()
    expect(page.locator("#compared li").first).to_contain_text("suspect")
    expect(page.locator("#compared li")).to_have_count(4)


def test_a_proven_combination_is_the_first_advice(open_page: Any, service: Service, worker: PlayedWorker) -> None:
    """A second round that proves a combination shows it as first advice, with the code of both remedies."""
    run = suspect(worker.client, name="needs two remedies")
    made = rerun(worker.client, run, CLIP, SLOW, seeds=1, budget={"steps": STEPS, "rounds": 2})
    worker.work({0: "exploding", 1: "exploding", 2: "exploding"}, limit=3)
    opened = worker.client.get(f"/api/v1/reruns/{made['id']}").json()
    together = next(index for index, candidate in enumerate(opened["candidates"]) if len(candidate["remedies"]) == 2)
    page = open_page(f"{service.url}/reruns/{made['id']}")
    expect(page.locator("#candidates tbody tr").nth(together)).to_contain_text("round 2")
    worker.work(defaultdict(lambda: "exploding", {together: "learning"}))
    expect(page.locator("#result")).to_contain_text("verified")
    page.goto(f"{service.url}/runs/{run}")
    first = page.locator("#advice li").first
    expect(first.get_by_role("heading")).to_have_text(re.compile(r"^1\. .* \+ "))
    expect(first).to_contain_text("Tried on this job: verified: healthy in 1 of 1 seed")
    code = first.locator("code").inner_text()
    assert code == worker.client.get(f"/api/v1/runs/{run}/diagnosis").json()["advice"][0]["snippet"]
    expect(page.locator("#advice")).to_contain_text("No rerun can try it. Change the script as shown here:")
    expect(page.locator("#also-tried")).to_contain_text("did not help")
    expect(page.locator("#also-tried")).not_to_contain_text("verified")


def test_a_rerun_is_cancelled(open_page: Any, service: Service, worker: PlayedWorker) -> None:
    """Cancelling needs a second click and ends the trials; the list of reruns shows the status."""
    made = rerun(worker.client, suspect(worker.client, name="not to go on"), CLIP, SLOW)
    claimed = worker.claim()
    assert claimed is not None
    page = open_page(f"{service.url}/reruns/{made['id']}")
    page.get_by_role("button", name="Cancel the rerun").click()
    page.get_by_role("button", name="Really cancel the rerun and its trials").click()
    expect(page.locator("#status")).to_have_text("cancelled")
    expect(page.locator("#trials tbody tr").first).to_contain_text("the rerun was cancelled")
    assert worker.beat(claimed).status_code == 409
    page.get_by_role("link", name="Reruns", exact=True).click()
    expect(page.locator("#reruns tr", has_text="Rerun of not to go on")).to_contain_text("cancelled")


def test_a_run_that_cannot_be_rerun_shows_the_reason(open_page: Any, service: Service) -> None:
    """A run without a trainable shows what is needed; a trainable that no worker offers is shown as an error."""
    page = open_page(f"{service.url}/runs/{service.exploding}", refusals=(409,))
    expect(page.locator(".diagnosis")).to_contain_text('gradmedic.init(trainable="...")')
    with httpx2.Client(base_url=service.url) as client:
        run = suspect(client, trainable="unknown")
    page.goto(f"{service.url}/runs/{run}")
    page.get_by_role("button", name="Race the remedies").click()
    expect(page.locator("#error")).to_contain_text("No worker offers the trainable")
    expect(page.get_by_role("button", name="Race the remedies")).to_be_enabled()


def test_the_whole_journey_of_a_real_job(open_page: Any, start_service: StartService, tmp_path: Path) -> None:
    """A real script explodes on its page, is rerun with its advice by a real worker, and is compared."""
    url = f"sqlite:///{tmp_path / 'journey.db'}"
    schema.upgrade(url)
    address = start_service(url, "--with-worker", str(EXAMPLES / "worker.toml"))
    page = open_page(address)
    environment = {
        "PATH": "/usr/bin:/bin",
        "GRADMEDIC_BASE_URL": address,
        "GRADMEDIC_RUN_NAME": "watched job",
        "OMP_NUM_THREADS": "1",  # beside other tests, threads of torch would wait for each other busily
    }
    with (tmp_path / "job.log").open("w") as log:
        script = [sys.executable, str(EXAMPLES / "rnn_language_model.py"), "--steps", "200"]
        job = subprocess.Popen(script, stdout=log, stderr=log, env=environment, cwd=tmp_path)
        try:
            link = page.get_by_role("link", name="watched job")
            expect(link).to_be_visible()
            link.click()
            expect(page.locator("#banner")).to_contain_text("exploding")
            expect(page.locator("#next-action")).to_contain_text("clip")
            assert job.wait(timeout=PATIENCE / 1000) == 0, (tmp_path / "job.log").read_text()
            expect(page.locator("#status")).to_have_text("finished")
        finally:
            if job.poll() is None:
                job.kill()
                job.wait()
    page.reload()  # while the job trained, new lists may have waited behind a button
    page.wait_for_selector("body[data-ready]")
    expect(page.locator("#advice li").first).to_contain_text("clip")
    page.get_by_role("button", name="Zoom to the first bad step").click()
    expect(page).to_have_url(re.compile("from=.*to="))
    page.get_by_text("Choose remedies and budget").click()
    page.locator("#start").get_by_role("checkbox", name="clip grad norm (").check()
    page.get_by_label("Seeds").fill("1")
    page.get_by_label("Steps per trial").fill("100")
    page.get_by_role("button", name="Race the remedies").click()
    expect(page.locator("#trials")).to_contain_text(re.compile("running|done"))
    expect(page.locator("#status")).to_have_text("done")
    stored = httpx2.get(f"{address}/api/v1{page.url.removeprefix(address)}").json()
    expect(page.locator("#candidates tbody tr").nth(1)).to_contain_text(stored["candidates"][1]["outcome"]["state"])
    page.get_by_role("link", name="Compare with the suspect").click()
    expect(page.locator("#compared li")).to_have_count(3)
    expect(page.locator("#compared li").nth(2)).to_contain_text("healthy")
