"""The pages of conditions: the markdown files of docs/conditions as HTML.

A wheel has the files beside this module, a checkout in its `docs`. They are rendered once, without raw HTML. Links
between the files lead to the pages; links to other documents become text, because the service does not serve those.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

from markdown_it import MarkdownIt
from markupsafe import Markup

PATH = "/conditions"
INDEX = "README"
_LINK = re.compile(r'<a href="([^"]*)">(.*?)</a>', re.DOTALL)


class Conditions:
    """The pages by the name of their condition."""

    def __init__(self) -> None:
        markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
        texts = {file.stem: file.read_text(encoding="utf-8") for file in sorted(find_folder().glob("*.md"))}
        self.names = tuple(name for name in texts if name != INDEX)
        """Names of the conditions that have a page."""
        self._pages = {name: Markup(self._link(markdown.render(text))) for name, text in texts.items()}  # noqa: S704 (html=False escapes)

    def find(self, name: str = INDEX) -> Markup | None:
        """Return the page of a condition, or the index; None if there is no such page."""
        return self._pages.get(name)

    def _link(self, html: str) -> str:
        """Lead links to the pages, and let readers scroll tables of code by keyboard."""

        def replace(match: re.Match[str]) -> str:
            target, text = match.groups()
            name = target.removesuffix(".md")
            return f'<a href="{PATH}/{quote(name)}">{text}</a>' if name in self.names else text

        return _LINK.sub(replace, html).replace("<pre>", '<pre tabindex="0">')


def find_folder() -> Path:
    """Return the folder of the markdown files: of the wheel, else of the checkout."""
    packaged = Path(__file__).parent / "conditions"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "docs" / "conditions"
