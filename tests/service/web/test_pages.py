"""The pages and their files: their content, their headers, and the escaping of names."""

from __future__ import annotations

import gzip
import re
from importlib.resources import files
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.support.played_worker import CLIP, PlayedWorker, rerun, suspect

from gradmedic_service.web.assets import Assets
from gradmedic_service.web.conditions import Conditions
from gradmedic_service.web.documents import Documents

PAGES = ["/", "/compare", "/reruns", "/alerts", "/projects", "/api-keys", "/login", "/conditions",
         "/conditions/nonfinite_loss", "/operations", "/operations/root"]  # fmt: skip


def links(page: str) -> list[str]:
    """Return the addresses of the files that a page loads."""
    return re.findall(r'(?:src|href)="(/static/[^"]+)"', page)


@pytest.mark.parametrize("path", PAGES)
def test_pages_load_only_files_of_the_service(sqlite_client: TestClient, path: str) -> None:
    """Every page forbids inline and foreign scripts and styles, has none, and loads only existing files."""
    page = sqlite_client.get(path)
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-store"
    assert not re.search(r"<script(?![^>]* src=)|<style|\bstyle=|\bon[a-z]+=|https?://", page.text)
    found = links(page.text)
    assert len(found) >= 3
    for address in found:
        assert sqlite_client.get(address).status_code == 200


def test_files_are_cached_for_ever_under_an_address_of_their_version(sqlite_client: TestClient) -> None:
    """A file is immutable, compressed for browsers that accept gzip, and not found under another version."""
    address = Assets().url("run.js")
    plain = sqlite_client.get(address, headers={"Accept-Encoding": "identity"})
    assert "immutable" in plain.headers["cache-control"]
    assert plain.headers["content-type"].startswith("text/javascript")
    with sqlite_client.stream("GET", address, headers={"Accept-Encoding": "gzip"}) as packed:
        assert gzip.decompress(b"".join(packed.iter_raw())) == plain.content
    for other in (
        address.replace("/static/", "/static/x"),
        "/static/x/run.js",
        address.replace("run.js", "../pages.py"),
    ):
        assert sqlite_client.get(other).status_code == 404


def test_scripts_import_only_existing_files() -> None:
    """Every file that a script imports exists."""
    folder = files("gradmedic_service.web") / "static"
    scripts = {item.name: item.read_text() for item in folder.iterdir() if item.name.endswith(".js")}
    imported = {name for text in scripts.values() for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert {"api.js", "heatmap.js"} <= imported <= scripts.keys()


def test_names_cannot_become_markup(client: TestClient, create_run: Any) -> None:
    """A run whose name is markup is shown as text."""
    run = create_run(client, name="</title><script>alert(1)</script>", project='"><img src=x>')
    page = client.get(run.replace("/api/v1", "")).text
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("kind", ["run", "rerun"])
@pytest.mark.parametrize("id", ["nonsense", "0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50", "<script>alert(1)"])
def test_an_unknown_id_is_answered_with_a_page(client: TestClient, kind: str, id: str) -> None:
    """The page of an unknown run or rerun is a 404 page with the message and the same security headers."""
    answer = client.get(f"/{kind}s/{id}")
    assert answer.status_code == 404
    assert f"There is no {kind}" in answer.text
    assert "<script>alert" not in answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/rusn", "/runs/x/y", "/static/none.js", "/<script>alert(1)"])
def test_a_mistyped_address_is_answered_with_a_page(client: TestClient, path: str) -> None:
    """A reader of pages gets a 404 page with a way back; a program gets a problem, and so does the API."""
    page = client.get(path, headers={"Accept": "text/html,*/*"})
    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
    assert "There is no page" in page.text
    assert 'href="/"' in page.text
    assert "<script>alert" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert client.get(path).json()["error_code"] == "not_found"
    answer = client.get(f"/api/v1{path}", headers={"Accept": "text/html"})
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_page_of_a_rerun_names_its_run_as_text(client: TestClient, worker: PlayedWorker) -> None:
    """The page of a rerun has the escaped name of the run and the status of the rerun."""
    made = rerun(worker.client, suspect(worker.client, name="<i>sick</i>"), CLIP)
    answer = client.get(f"/reruns/{made['id']}")
    assert answer.status_code == 200
    assert "<h1>Rerun of &lt;i&gt;sick&lt;/i&gt;</h1>" in answer.text
    assert 'data-status="queued"' in answer.text


@pytest.fixture
def worker(client: TestClient) -> PlayedWorker:
    """A worker that has offered its trainable."""
    played = PlayedWorker(client)
    played.register()
    return played


def test_the_address_that_the_client_prints_is_the_page(client: TestClient, create_run: Any) -> None:
    """The address that `gradmedic.init()` prints shows the name and the verdict of the run."""
    answer = client.get(create_run(client, name="sick one").replace("/api/v1", ""))
    assert answer.status_code == 200
    assert "<h1>sick one</h1>" in answer.text
    assert 'data-verdict="undetermined"' in answer.text


def test_every_condition_has_a_page_from_its_document(client: TestClient) -> None:
    """The index leads to each page; a page has the tables and code of its document, and no link out of the service."""
    index = client.get("/conditions")
    names = re.findall(r'<a href="/conditions/([a-z_]+)"', index.text)
    assert sorted(names) == list(Conditions(str).names)
    for name in names:
        page = client.get(f"/conditions/{name}")
        assert page.status_code == 200
        assert f"<code>{name}</code></h1>" in page.text
        assert "<h2>What to do</h2>" in page.text
        assert ".md" not in page.text
        (picture,) = re.findall(r'<img src="([^"]+)"', page.text)
        assert client.get(picture).headers["content-type"] == "image/png"
    assert '<code class="language-python">' in client.get("/conditions/nonfinite_loss").text


def test_every_kind_of_operation_has_a_page_from_its_document(client: TestClient) -> None:
    """The index leads to each page; a page has its code, and links to pages of the service only."""
    index = client.get("/operations")
    names = re.findall(r'<a href="/operations/([a-z_]+)"', index.text)
    assert sorted(names) == list(Documents("operations").names)
    for name in names:
        page = client.get(f"/operations/{name}")
        assert page.status_code == 200
        assert f"<code>{name}</code></h1>" in page.text
        assert '<code class="language-python">' in page.text
        assert ".md" not in page.text
    assert '<a href="/operations/root">' in client.get("/operations/spread").text
    assert '<a href="/conditions/nonfinite_input">' in client.get("/operations/data").text
    for name in ("nonsense", "README"):
        answer = client.get(f"/operations/{name}")
        assert answer.status_code == 404
        assert "There is no operation" in answer.text


@pytest.mark.parametrize(
    ("framework", "code"),
    [("torch 2.13.0", "on_nonfinite"), (None, "on_nonfinite"), ("jax 0.10", "jax_debug_nans"), ("keras 3", "tf.debug")],
)
def test_the_page_of_a_run_has_how_to_find_the_origin(
    client: TestClient, create_run: Any, framework: str | None, code: str
) -> None:
    """The code fits the run's framework. The script of the page shows it if the run became non-finite."""
    run = create_run(client, framework=framework)
    text = client.get(run.replace("/api/v1", "")).text
    assert code in text.partition('id="origin-search-code"')[2].partition("</div>")[0]


def test_an_unknown_condition_is_answered_with_a_page(client: TestClient) -> None:
    """A name without a page, and the file of the index, are not found."""
    for name in ("nonsense", "README", "<script>alert(1)"):
        answer = client.get(f"/conditions/{name}")
        assert answer.status_code == 404
        assert "There is no condition" in answer.text
        assert "<script>alert" not in answer.text


def test_findings_lead_to_the_pages_of_conditions(client: TestClient) -> None:
    """The pages name the conditions that their scripts link to."""
    assert re.search(r'data-conditions="[a-z_ ]*\bnonfinite_loss\b', client.get("/").text)
