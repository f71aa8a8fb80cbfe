"""The other pages, and all of them for everybody: list, comparison, login, keys, projects, accessibility, themes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe
from benchmarks.servers import gradmedic
from playwright.sync_api import expect
from tests.e2e.conftest import Service, fill, well_step

from gradmedic_service import schema

EXAMPLE = Path(__file__).parents[2] / "examples" / "rnn_language_model.py"
AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def paths(service: Service) -> dict[str, str]:
    """Every page that there is without keys."""
    return {
        "runs": "/",
        "no runs": "/?q=nothing+like+it",
        "run": f"/runs/{service.sick}",
        "zoomed run": f"/runs/{service.sick}?from=150&to=190&step=170&layer=encoder.3.weight&fold=encoder.0",
        "healthy run": f"/runs/{service.well}",
        "comparison": f"/compare?run={service.sick}&run={service.well}",
        "projects": "/projects",
        "api keys": "/api-keys",
        "login": "/login",
        "problem": "/runs/nonsense",
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_axe_finds_nothing(open_page: Any, service: Service, scheme: str, width: int) -> None:
    """axe-core finds no violation of WCAG 2.2 AA or its best practices on any page, light or dark, wide or narrow."""
    page = open_page(service.url, color_scheme=scheme, viewport={"width": width, "height": 900})
    for name, path in paths(service).items():
        if name in ("login", "problem"):
            continue
        page.goto(f"{service.url}{path}")
        if name in ("projects", "api keys"):
            page.wait_for_load_state("networkidle")
        else:
            page.wait_for_selector("body[data-ready]")
        for summary in page.locator("main details summary").all()[:4]:
            summary.click()
        found = Axe().run(page, options={"runOnly": AXE_TAGS})
        assert found.violations_count == 0, f"{name}: {found.generate_report()}"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} is wider than the screen"


def test_the_theme_can_be_chosen_and_stays(open_page: Any, service: Service) -> None:
    """The page follows the system; the button switches, and the next page has the same."""
    page = open_page(service.url, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_role("button", name="Switch between light and dark").click()
    light = page.evaluate(background)
    assert light != dark
    page.goto(f"{service.url}/projects")
    assert page.evaluate(background) == light


def test_the_list_filters_sorts_and_remembers(open_page: Any, service: Service) -> None:
    """Every filter keeps what it names; the address holds them."""
    page = open_page(service.url)
    rows = page.locator("#runs tbody tr")
    sick = rows.filter(has_text="no clipping")
    expect(sick).to_contain_text("exploding")
    page.get_by_label("Verdict").select_option("exploding")
    expect(rows.filter(has_text="clipped")).to_have_count(0)
    expect(sick).to_have_count(1)
    page.get_by_label("Status").select_option("running")
    expect(sick).to_have_count(0)
    page.get_by_role("button", name="Clear").click()
    expect(rows.filter(has_text="sigmoid")).to_have_count(1)
    page.get_by_label("Search").fill("sigm")
    expect(rows).to_have_count(1)
    page.get_by_label("Tag").fill("seen")
    page.wait_for_url(re.compile("q=sigm.*tag=seen"))
    page.reload()
    expect(rows).to_have_count(1)
    rows.get_by_role("link", name="sigmoid").click()
    expect(page.locator("h1")).to_have_text("sigmoid")


def test_the_list_is_live(open_page: Any, service: Service) -> None:
    """A run that begins appears by itself, and the reader's focus stays where it was."""
    page = open_page(f"{service.url}/?q=appearing")
    expect(page.locator("#none")).to_contain_text("No run fits")
    page.get_by_label("Search").focus()
    fill(service.url, "appearing", well_step, 10)
    expect(page.locator("#runs tbody tr")).to_have_count(1, timeout=15_000)
    expect(page.get_by_label("Search")).to_be_focused()


def test_pages_of_a_list_go_on_and_back(open_page: Any, tmp_path: Path) -> None:
    """More runs than fit a page are on the next one."""
    url = f"sqlite:///{tmp_path / 'many.db'}"
    schema.upgrade(url)
    with gradmedic(url, tmp_path) as (address, _):
        with httpx2.Client(base_url=f"{address}/api/v1") as client:
            for index in range(55):
                client.post("/runs", json={"project": "p", "name": f"run {index}", "layers": []})
        page = open_page(address)
        rows = page.locator("#runs tbody tr")
        expect(rows).to_have_count(50)
        page.get_by_role("button", name="Next page").click()
        expect(rows).to_have_count(5)
        expect(rows.first).to_contain_text("run 4")
        page.get_by_role("button", name="Previous page").click()
        expect(rows).to_have_count(50)


def test_runs_are_compared(open_page: Any, service: Service) -> None:
    """Marked runs stand side by side, with their verdicts and a line each."""
    page = open_page(service.url)
    for name in ("no clipping", "clipped", "sigmoid"):
        page.get_by_role("checkbox", name=f"Compare {name}", exact=True).check()
    page.get_by_role("link", name="Compare", exact=True).click()
    page.wait_for_selector("body[data-ready]")
    expect(page.locator("#compared tbody tr")).to_have_count(3)
    expect(page.locator("#compared")).to_contain_text("NaN")
    expect(page.locator("#loss-chart .key li")).to_have_count(3)
    expect(page.locator("#gradient-chart svg.chart > g.line")).to_have_count(3)
    assert page.url.count("run=") == 3
    page.get_by_role("button", name="Remove clipped").click()
    expect(page.locator("#compared tbody tr")).to_have_count(2)


def test_a_keyed_service_is_logged_in_to_and_out_of(open_page: Any, tmp_path: Path) -> None:
    """A link leads to the login and back; an administrator makes and revokes keys; logging out ends the session."""
    url = f"sqlite:///{tmp_path / 'keyed.db'}"
    schema.upgrade(url)
    command = [
        str(Path(sys.executable).parent / "gradmedic"),
        "api-key",
        "create",
        "--all-projects",
        "--scope",
        "admin",
    ]
    made = subprocess.run([*command, "--database-url", url], check=True, capture_output=True, text=True, cwd=tmp_path)
    found = re.search(r"gradmedic_[\w-]{43}", made.stdout)
    assert found is not None
    with gradmedic(url, tmp_path, "--require-auth") as (address, _):
        headers = {"Authorization": f"Bearer {found.group()}"}
        body = {"project": "guarded", "name": "kept", "layers": []}
        run = httpx2.post(f"{address}/api/v1/runs", json=body, headers=headers).json()["id"]
        page = open_page("about:blank", waits=False, refusals=(401,))
        page.goto(f"{address}/runs/{run}?step=3")
        expect(page.locator("h1")).to_have_text("Log in")
        page.get_by_label("API key").fill(found.group())
        page.get_by_role("button", name="Log in").click()
        expect(page.locator("h1")).to_have_text("kept")
        assert page.url.startswith(f"{address}/runs/{run}")
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("link", name="API keys").click()
        page.get_by_label("Name").fill("a reader")
        page.get_by_label("Project").fill("guarded")
        page.get_by_role("button", name="Make the key").click()
        secret = page.locator("#created code").inner_text()
        reader = {"Authorization": f"Bearer {secret}"}
        assert httpx2.get(f"{address}/api/v1/runs/{run}", headers=reader).status_code == 200
        page.get_by_role("button", name="Revoke a reader").click()
        page.get_by_role("button", name="Revoke a reader").click()
        expect(page.locator("#keys tr", has_text="a reader")).to_contain_text("revoked")
        assert httpx2.get(f"{address}/api/v1/runs/{run}", headers=reader).status_code == 401
        page.get_by_role("button", name="Log out").click()
        expect(page.locator("h1")).to_have_text("Log in")
        page.goto(f"{address}/")
        expect(page.locator("h1")).to_have_text("Log in")


def test_projects_are_muted(open_page: Any, service: Service) -> None:
    """An administrator mutes a detector for a project; an unknown one is refused by name."""
    fill(service.url, "to be muted", well_step, 1)
    page = open_page(f"{service.url}/projects", waits=False)
    field = page.get_by_label("Muted detectors of pages")
    field.fill("plateau")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#trouble")).to_be_hidden()
    muted = httpx2.get(f"{service.url}/api/v1/projects/pages").json()["muted_detectors"]
    httpx2.patch(f"{service.url}/api/v1/projects/pages", json={"muted_detectors": []})
    assert muted == ["plateau"]


def test_a_real_job_is_watched_as_it_explodes(open_page: Any, service: Service, tmp_path: Path) -> None:
    """Somebody looks at the list while a real script trains: its run appears, sickens, and says what to do."""
    page = open_page(f"{service.url}/?q=watched+job")
    environment = {"PATH": "/usr/bin:/bin", "GRADMEDIC_BASE_URL": service.url, "GRADMEDIC_RUN_NAME": "watched job"}
    with (tmp_path / "job.log").open("w") as log:
        job = subprocess.Popen([sys.executable, EXAMPLE], stdout=log, stderr=log, env=environment, cwd=tmp_path)
        try:
            link = page.get_by_role("link", name="watched job")
            expect(link).to_be_visible(timeout=90_000)
            link.click()
            expect(page.locator("#banner")).to_contain_text("exploding", timeout=90_000)
            expect(page.locator("#advice li").first).to_contain_text("clip")
            assert job.wait(timeout=120) == 0, (tmp_path / "job.log").read_text()
            expect(page.locator("#status")).to_have_text("finished", timeout=15_000)
        finally:
            if job.poll() is None:
                job.kill()
                job.wait()
