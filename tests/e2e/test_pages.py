"""The pages besides those of runs and reruns, and accessibility and themes of all pages, in a browser."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, expect
from tests.e2e.conftest import Service, StartService, fill, healthy_step
from tests.support.accessibility import violations

from gradmedic_service.database import schema


def paths(service: Service) -> dict[str, str]:
    """Return name and path of every page that needs no key."""
    return {
        "runs": "/",
        "no runs": "/?q=nothing+like+it",
        "run": f"/runs/{service.exploding}",
        "zoomed run": f"/runs/{service.exploding}?from=150&to=190&step=170&layer=encoder.3.weight&fold=encoder.0",
        "healthy run": f"/runs/{service.healthy}",
        "comparison": f"/compare?run={service.exploding}&run={service.healthy}",
        "reruns": "/reruns",
        "rerun": f"/reruns/{service.rerun}",
        "alerts": "/alerts",
        "projects": "/projects",
        "api keys": "/api-keys",
        "problem": "/runs/nonsense",
        "conditions": "/conditions",
        "condition": "/conditions/nonfinite_loss",
        "operations": "/operations",
        "operation": "/operations/masked_row",
    }


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 390)])
def test_axe_finds_nothing(open_page: Any, service: Service, scheme: str, width: int) -> None:
    """axe-core finds no violation on any page, light and wide or dark and narrow, with details open."""
    page = open_page(service.url, refusals=(404,), color_scheme=scheme, viewport={"width": width, "height": 900})
    for name, path in paths(service).items():
        page.goto(f"{service.url}{path}")
        if name not in ("problem", "conditions", "condition", "operations", "operation"):
            page.wait_for_selector("body[data-ready]")
        for summary in page.locator("main details summary:visible").all()[:4]:
            summary.click()
        if name == "rerun":
            page.get_by_role("button", name="Output of unchanged control, seed 0").click()
            expect(page.locator("#output")).to_be_visible()
        assert violations(page) == "", name


def test_the_theme_can_be_chosen_and_stays(open_page: Any, service: Service) -> None:
    """A page has the theme of the system; after a click on the button, every page has the other theme."""
    page = open_page(service.url, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_role("button", name="Switch between light and dark").click()
    light = page.evaluate(background)
    assert light != dark
    page.goto(f"{service.url}/projects")
    assert page.evaluate(background) == light


def test_the_list_filters_and_sorts(open_page: Any, service: Service) -> None:
    """Every filter selects the runs that match it, and the address holds the filters."""
    page = open_page(service.url)
    rows = page.locator("#runs tbody tr[data-run]")
    sick = rows.filter(has_text="no clipping")
    expect(sick).to_contain_text("exploding")
    page.locator("#filters [name=verdict]").select_option("exploding")
    expect(rows.filter(has_text="clipped")).to_have_count(0)
    expect(sick).to_have_count(1)
    page.locator("#filters [name=status]").select_option("running")
    expect(sick).to_have_count(0)
    page.get_by_role("button", name="Clear").click()
    expect(rows.filter(has_text="sigmoid")).to_have_count(1)
    page.get_by_label("Search", exact=True).fill("sigm")
    expect(rows).to_have_count(1)
    page.locator("#filters [name=tag]").fill("seen")
    page.wait_for_url(re.compile("q=sigm.*tag=seen"))
    page.reload()
    expect(rows).to_have_count(1)
    rows.get_by_role("link", name="sigmoid").click()
    expect(page.locator("h1")).to_have_text("sigmoid")


def test_the_list_is_live(open_page: Any, service: Service) -> None:
    """A new run appears without a reload, and the focus stays."""
    page = open_page(f"{service.url}/?q=appearing")
    expect(page.locator("#none")).to_contain_text("No run fits")
    page.get_by_label("Search", exact=True).focus()
    fill(service.url, "appearing", healthy_step, 10)
    expect(page.locator("#runs tbody tr[data-run]")).to_have_count(1)
    expect(page.get_by_label("Search", exact=True)).to_be_focused()


def test_runs_are_compared(open_page: Any, service: Service) -> None:
    """The comparison has a column with the verdict and a line for each marked run."""
    page = open_page(service.url)
    for name in ("no clipping", "clipped", "sigmoid"):
        page.get_by_role("checkbox", name=f"Mark {name}", exact=True).check()
    page.get_by_role("link", name="Compare", exact=True).click()
    page.wait_for_selector("body[data-ready]")
    expect(page.locator("#compared li")).to_have_count(3)
    expect(page.locator("#measures")).to_contain_text("NaN")
    page.locator("#loss-chart").scroll_into_view_if_needed()
    expect(page.locator("#loss-chart .key li")).to_have_count(3)
    page.locator("#gradient-chart").scroll_into_view_if_needed()
    expect(page.locator("#gradient-chart svg.chart > g.line")).to_have_count(3)
    assert page.url.count("run=") == 3
    page.get_by_role("button", name="Remove clipped").click()
    expect(page.locator("#compared li")).to_have_count(2)


def test_a_login_leads_to_a_page_of_the_service(open_page: Any, service: Service) -> None:
    """After the login the browser goes to a path of the service; what leads elsewhere becomes the list of runs."""
    evil = "evil.example"
    elsewhere = [
        f"/.//{evil}", f"//{evil}", f"/\\{evil}", f"\\\\{evil}", f"/\t/{evil}", f"/\n//{evil}", f"/%2e//{evil}",
        f"/%2E%2e//{evil}", f"/..//{evil}", f"/x/../..//{evil}", f"/./\\{evil}", f"/.\\/{evil}", f" //{evil}",
        f"https://{evil}/", f"http:{evil}", f"//user@{evil}", "javascript:alert(1)", "//", "//[", "", "\0//x",
    ]  # fmt: skip
    own = ["/", "/runs/a?x=%2F%2F&y=/.//", "/compare?runs=a,b", f"/%2F/{evil}", "/projects"]
    page = open_page(f"{service.url}/projects")
    find = """async ([texts, origin]) => {
        const script = [...document.scripts].find((each) => each.src.includes("/static/"));
        const { nextAddress } = await import(new URL("next_path.js", script.src));
        return texts.map((text) => nextAddress("?next=" + encodeURIComponent(text), origin));
    }"""
    assert page.evaluate(find, [elsewhere, service.url]) == [f"{service.url}/"] * len(elsewhere)
    assert page.evaluate(find, [own, service.url]) == [service.url + path for path in own]
    page.route(re.compile(rf"^http://{evil}"), lambda route: route.fulfill(body=evil))
    page.goto(f"{service.url}/login?next=/.//{evil}")  # no key is needed, so the page goes on at once
    page.wait_for_url(lambda url: "/login" not in url)
    assert page.url == f"{service.url}/"


def test_login_and_logout(open_page: Any, start_service: StartService, tmp_path: Path) -> None:
    """A link goes to the login and back; an administrator creates and revokes keys; a logout ends the session."""
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
    address = start_service(url, "--require-auth")
    headers = {"Authorization": f"Bearer {found.group()}"}
    body = {"project": "guarded", "name": "kept", "layers": []}
    run = httpx2.post(f"{address}/api/v1/runs", json=body, headers=headers).json()["id"]
    page = open_page("about:blank", waits=False, refusals=(401,))
    page.goto(f"{address}/runs/{run}?step=3")
    expect(page.locator("h1")).to_have_text("Log in")
    page.wait_for_selector("body[data-ready]")
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert violations(page) == ""
    page.get_by_label("API key").fill(found.group())
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("h1")).to_have_text("kept")
    assert page.url.startswith(f"{address}/runs/{run}")
    assert page.evaluate("document.cookie") == ""
    page.get_by_role("link", name="API keys").click()
    page.get_by_label("Name").fill("a reader")
    page.get_by_label("Project").fill("guarded")
    page.get_by_role("button", name="Create the key").click()
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
    authorize_in_docs(page, address, found.group())


def authorize_in_docs(page: Page, address: str, secret: str) -> None:
    """Give `/docs` a key, and check that a request which is tried out there is answered."""
    page.goto(f"{address}/docs#/service/service.limits")
    page.get_by_role("button", name="Authorize").click()
    page.locator(".auth-container input").fill(secret)
    page.locator(".auth-container").get_by_role("button", name="Apply credentials").click()
    page.locator(".auth-container").get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table tbody .response-col_status")).to_have_text(re.compile("200"))


def test_projects_are_muted(open_page: Any, service: Service) -> None:
    """An administrator mutes a detector for a project; an unknown detector is refused with its name."""
    fill(service.url, "to be muted", healthy_step, 1)
    page = open_page(f"{service.url}/projects")
    field = page.get_by_label("Muted detectors, separated by commas, of pages")
    field.fill("plateau")
    page.get_by_label("Trials at once of pages").fill("3")
    page.get_by_role("button", name="Save pages").click()
    expect(page.locator("tr", has_text="saved")).to_have_count(1)
    stored = httpx2.get(f"{service.url}/api/v1/projects/pages").json()
    httpx2.patch(f"{service.url}/api/v1/projects/pages", json={"muted_detectors": [], "max_concurrent_trials": 8})
    assert (stored["muted_detectors"], stored["max_concurrent_trials"]) == (["plateau"], 3)


def test_names_of_users_are_shown_as_text(open_page: Any, service: Service) -> None:
    """Names, layers, tags, notes, groups, settings and metrics that contain markup are shown as text on every page."""
    page = open_page(service.url)
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        body = {
            "project": f"{evil} project", "name": f"{evil} run", "group": f"{evil} group", "tags": [f"{evil} tag"],
            "notes": evil, "framework": evil, "config": {f"{evil} key": f"{evil} value"},
            "layers": [{"name": f"{evil} layer {index}", "kind": evil, "shape": [2, 2]} for index in range(3)],
        }  # fmt: skip
        run = client.post("/runs", json=body).json()["id"]
        steps = {
            "steps": [0, 1], "loss": ["NaN", 1.0], "statistics": {"grad_norm": [["NaN"] * 3, [1.0] * 3]},
            "metrics": {f"{evil} metric": [1.0, "NaN"]},
        }  # fmt: skip
        assert client.post(f"/runs/{run}/steps", json=steps).status_code == 200
    for path in ("/", f"/runs/{run}", f"/compare?run={run}&run={service.healthy}", "/projects", "/reruns"):
        page.goto(f"{service.url}{path}")
        page.wait_for_selector("body[data-ready]")
        for summary in page.locator("main details summary").all():
            if summary.is_visible():
                summary.click()
        expect(page.locator("main, title, select").filter(has_text=evil).first).to_be_attached()
        assert page.locator("img, main script").count() == 0, path
