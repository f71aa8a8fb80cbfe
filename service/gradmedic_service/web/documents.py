"""Pages of documents: the markdown files of a folder of docs as HTML.

A wheel has the files beside this module, a checkout in its `docs`. A page is rendered when it is first read, without
raw HTML. Links between the files lead to the pages; links to other documents become text, because the service does not
serve those.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from markupsafe import Markup

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

INDEX = "README"
_LINK = re.compile(r'<a href="([^"]*)">(.*?)</a>', re.DOTALL)
_PATHS = {"conditions": "/conditions", "operations": "/operations"}
"""Addresses of the pages, by the folder of the documents."""


class Documents:
    """The pages of a folder by the names of their files.

    Args:
        folder: name of the folder in `docs`: `conditions` or `operations`.
    """

    def __init__(self, folder: str) -> None:
        self.path = _PATHS[folder]
        """Address of the index. That of a page has the page's name behind it."""
        self._files = _list_files(folder)
        self.names = tuple(name for name in self._files if name != INDEX)
        """Names of the pages."""
        self._others = {other: _list_files(other) for other in _PATHS if other != folder}
        self._pages: dict[str, Markup] = {}

    def find(self, name: str = INDEX) -> Markup | None:
        """Return a page, or the index; None if there is no such page."""
        if name not in self._files:
            return None
        if name not in self._pages:
            self._pages[name] = self.link(render_markdown().render(self.read(name)))
        return self._pages[name]

    def read(self, name: str) -> str:
        """Return the markdown text of a page."""
        return self._files[name].read_text(encoding="utf-8")

    def link(self, html: str) -> Markup:
        """Lead links to the pages, and let readers scroll tables of code by keyboard."""

        def replace(match: re.Match[str]) -> str:
            target, text = match.groups()
            address = self._find_address(target.removesuffix(".md"))
            return text if address is None else f'<a href="{address}">{text}</a>'

        linked = _LINK.sub(replace, html).replace("<pre>", '<pre tabindex="0">')
        return Markup(linked)  # noqa: S704 (html=False escapes)

    def _find_address(self, target: str) -> str | None:
        """Return the address of a page of this folder, or of another folder that the service shows."""
        folder, _, name = target.removeprefix("../").rpartition("/")
        names = self._others.get(folder, {}) if folder else self._files
        if name not in names or (name == INDEX and not folder):
            return None
        path = _PATHS[folder] if folder else self.path
        return path if name == INDEX else f"{path}/{quote(name)}"


@cache
def render_markdown() -> MarkdownIt:
    """Return the parser of the documents."""
    from markdown_it import MarkdownIt  # here, because the service answers sooner without it

    return MarkdownIt("commonmark", {"html": False}).enable("table")


def find_folder(folder: str) -> Path:
    """Return the place of a folder of documents: in the wheel, else in the checkout."""
    packaged = Path(__file__).parent / folder
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "docs" / folder


def _list_files(folder: str) -> dict[str, Path]:
    """Return the markdown files of a folder by name."""
    return {file.stem: file for file in sorted(find_folder(folder).glob("*.md"))}
