"""The notes of runs: the Markdown that users write as HTML that a page may contain.

The HTML holds no markup of the user's own, no scripts, no styles and nothing that a browser loads. Links lead to pages
of this service, to the web or to an e-mail address; a picture becomes a link to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from markupsafe import Markup

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

SCHEMES = ("http", "https", "mailto")
"""Schemes of links; any other link is shown as the text that the user wrote."""
LINK_RELATION = "noopener noreferrer nofollow"
"""Other sites neither learn the address of the run's page nor gain rank by the link."""
FIRST_HEADING_LEVEL, LAST_HEADING_LEVEL = 3, 6
"""Levels of headings within the section of the notes, whose own heading has level 2."""
MAX_CACHED_NOTES = 256
"""Rendered notes in memory: those of the longest text that is slow to parse cost a second of computing."""


@lru_cache(MAX_CACHED_NOTES)
def render_notes(notes: str | None) -> Markup:
    """Return the notes of a run as HTML, which is empty without notes."""
    markdown = _make_markdown()
    tokens = markdown.parse(notes or "")
    _shift_headings(tokens)
    for token in tokens:
        if token.type in ("th_open", "td_open"):
            _replace_style(token)
        if token.children:
            _mark_links(token.children)
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))  # noqa: S704 (html=False escapes)


def _is_safe_link(url: str) -> bool:
    """Return whether a link may be followed: it has one of the schemes, or is a path of this service."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme.lower() in SCHEMES if parts.scheme else url.startswith("/") and not parts.netloc


@cache
def _make_markdown() -> MarkdownIt:
    """Return a parser that escapes HTML. It makes links of addresses, but not of file names such as `train.py`."""
    from markdown_it import MarkdownIt  # here, because the service answers sooner without it

    markdown = MarkdownIt("commonmark", {"html": False, "linkify": True, "breaks": True})
    markdown.enable(["table", "strikethrough", "linkify"]).disable("image")
    markdown.validateLink = _is_safe_link  # type: ignore[method-assign]
    if markdown.linkify is not None:  # the base class has no parser of addresses
        markdown.linkify.set({"fuzzy_link": False, "fuzzy_email": False})
    return markdown


def _shift_headings(tokens: Iterable[Token]) -> None:
    """Put headings below the page's own, without a gap between the levels."""
    level = FIRST_HEADING_LEVEL - 1
    for token in tokens:
        if token.type == "heading_open":
            wanted = int(token.tag[1]) + FIRST_HEADING_LEVEL - 1
            level = min(wanted, level + 1, LAST_HEADING_LEVEL)
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{level}"


def _replace_style(cell: Token) -> None:
    """Give a cell a class in place of the style of its column, which the pages' policy forbids."""
    style = cell.attrs.pop("style", "")
    if style == "text-align:right":
        cell.attrSet("class", "right")


def _mark_links(children: list[Token]) -> None:
    """Add the relation to links, and remove the mark that makes a link a picture."""
    for token, following in zip(children, [*children[1:], None], strict=True):
        if token.type == "link_open":
            token.attrSet("rel", LINK_RELATION)
        elif token.type == "text" and following is not None and following.type == "link_open":
            token.content = token.content.removesuffix("!")
