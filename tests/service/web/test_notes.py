"""The notes of runs as HTML: what Markdown becomes, and what never reaches a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from gradmedic_service.web.notes import LINK_RELATION, SCHEMES, render_notes

ALLOWED_TAGS = {
    "p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "a",
    "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
ALLOWED_ATTRIBUTES = {"href", "rel", "title", "class", "start"}
PIECES = [
    "<script>", "</script>", "<img src=x onerror=alert(1)>", "<a href='x' style='y'>", "<javascript:x>", "&#106;",
    "[a](", "![b](", "javascript:alert(1)", "data:text/html,x", "//evil.example", ")", "[c]: ", " \"title\"",
    "https://e.example/\"onclick=\"x", "```x\" onload=y\n", "| a | b |\n|--:|:-:|\n| 1 | 2 |\n",
    "\n", "\n\n", "`", "\\", "\t", "\0", "# ", "### ", "~~", "**", "_", "* ",
]  # fmt: skip


class Collector(HTMLParser):
    """Collects the tags and attributes of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember a tag."""
        self.found.append((tag, dict(attrs)))


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=12).map("".join))
def test_no_text_becomes_more_than_plain_markup(notes: str) -> None:
    """Whatever the notes are, the HTML has only tags of text, no style or handler, and links of known schemes."""
    for tag, attributes in Collector(render_notes(notes)).found:
        assert tag in ALLOWED_TAGS
        assert attributes.keys() <= ALLOWED_ATTRIBUTES
        if tag == "a":
            address = attributes["href"] or ""
            assert attributes["rel"] == LINK_RELATION
            assert re.match(rf"(?:{'|'.join(SCHEMES)}):|/(?![/\\])|$", address, re.IGNORECASE), address


@pytest.mark.parametrize(
    ("notes", "html"),
    [
        (None, ""),
        ("**bold** `code`\nnext", "<p><strong>bold</strong> <code>code</code><br />\nnext</p>\n"),
        ("<b>x</b>", "<p>&lt;b&gt;x&lt;/b&gt;</p>\n"),
        ("# A\n### B\n# C", "<h3>A</h3>\n<h4>B</h4>\n<h3>C</h3>\n"),
        ("train.py, a@b.example", "<p>train.py, a@b.example</p>\n"),
        ("[x](javascript:alert(1)) [y](//e.example)", "<p>[x](javascript:alert(1)) [y](//e.example)</p>\n"),
        ("http://e.example", f'<p><a href="http://e.example" rel="{LINK_RELATION}">http://e.example</a></p>\n'),
        ("![loss](https://e.example)", f'<p><a href="https://e.example" rel="{LINK_RELATION}">loss</a></p>\n'),
        ("[run](/runs/1)!", f'<p><a href="/runs/1" rel="{LINK_RELATION}">run</a>!</p>\n'),
    ],
)  # fmt: skip
def test_notes_are_rendered(notes: str | None, html: str) -> None:
    """Markdown becomes text with headings below the page's; a picture becomes a link, unsafe links text."""
    assert render_notes(notes) == html


def test_columns_of_numbers_have_a_class(client: TestClient) -> None:
    """A column that is aligned to the right has a class in place of a style, which the pages forbid."""
    assert render_notes("| a |\n|--:|\n| 1 |").count('class="right"') == 2


def test_the_part_of_a_page_has_the_stored_notes(client: TestClient, create_run: Any) -> None:
    """After a change, the part of the page and the page have the new notes, escaped, under the policy of the pages."""
    run = create_run(client, notes="*old*")
    path = run.replace("/api/v1", "")
    assert "<em>old</em>" in client.get(path).text
    client.patch(run, json={"notes": "<img src=x> *new*"}).raise_for_status()
    part = client.get(f"{path}/notes")
    assert part.text == "<p>&lt;img src=x&gt; <em>new</em></p>\n"
    assert "default-src 'none'" in part.headers["content-security-policy"]
    assert part.text in client.get(path).text
    client.patch(run, json={"notes": ""}).raise_for_status()
    assert client.get(f"{path}/notes").text == ""
    assert client.get("/runs/0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50/notes").json()["error_code"] == "run_not_found"


def test_a_reader_sees_no_controls(client_with_key: Any, create_run: Any) -> None:
    """A key without the scope `ingest` sees nothing to edit, one without `admin` nothing to delete."""
    run: str = create_run(client_with_key("admin", project="p"), project="p", tags=["kept"])
    edits = {"rename", "tag-form", "notes-form"}
    for scope, expected in (("read", set()), ("ingest", edits), ("admin", {*edits, "delete"})):
        page = client_with_key("read", scope, project="p").get(run.replace("/api/v1", "")).text
        assert ">kept</a>" in page
        found = {name for name in (*edits, "delete") if f'id="{name}"' in page}
        assert found == expected, scope
