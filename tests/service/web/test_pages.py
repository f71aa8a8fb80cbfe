"""Pages and their files: what they carry, who gets them, and what a browser may do with them."""

from __future__ import annotations

import gzip
import re
from importlib.resources import files
from typing import Any

import pytest
from starlette.testclient import TestClient

from gradmedic_service.web.assets import Assets

PAGES = ["/", "/compare", "/projects", "/api-keys", "/login"]


def links(page: str) -> list[str]:
    """Addresses of the files that a page loads."""
    return re.findall(r'(?:src|href)="(/static/[^"]+)"', page)


@pytest.mark.parametrize("path", PAGES)
def test_pages_load_from_here_alone(sqlite_client: TestClient, path: str) -> None:
    """Every page forbids scripts and styles within it and from elsewhere, has none, and loads only what is there."""
    page = sqlite_client.get(path)
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]* src=)|<style|\bstyle=|\bon[a-z]+=|https?://", page.text)
    found = links(page.text)
    assert len(found) >= 3
    for address in found:
        assert sqlite_client.get(address).status_code == 200


def test_files_never_change_behind_their_address(sqlite_client: TestClient) -> None:
    """A file may be kept for ever, comes compressed where that is understood, and is of one version alone."""
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


def test_every_import_of_a_script_is_there() -> None:
    """No script imports a file that the service does not have."""
    folder = files("gradmedic_service.web") / "static"
    scripts = {one.name: one.read_text() for one in folder.iterdir() if one.name.endswith(".js")}
    imported = {name for text in scripts.values() for name in re.findall(r'from "\./([\w.]+)"', text)}
    assert {"api.js", "heatmap.js"} <= imported <= scripts.keys()


def test_names_cannot_become_markup(client: TestClient, create_run: Any) -> None:
    """A run that is named like a script is shown as text."""
    run = create_run(client, name="</title><script>alert(1)</script>", project='"><img src=x>')
    page = client.get(run.replace("/api/v1", "")).text
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("path", ["/runs/nonsense", "/runs/0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50"])
def test_a_link_to_no_run_is_a_page(client: TestClient, path: str) -> None:
    """Who follows a link to a run that is not there is told so by a page."""
    answer = client.get(path)
    assert answer.status_code == 404
    assert "There is no run" in answer.text
    assert answer.headers["content-type"].startswith("text/html")


def test_the_link_that_the_client_prints_is_the_page(client: TestClient, create_run: Any) -> None:
    """The URL that `gradmedic.init()` prints shows the run by name, with its verdict."""
    answer = client.get(create_run(client, name="sick one").replace("/api/v1", ""))
    assert answer.status_code == 200
    assert "<h1>sick one</h1>" in answer.text
    assert 'data-verdict="undetermined"' in answer.text
