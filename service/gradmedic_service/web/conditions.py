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
ACTIONS_TITLE = "What to do"
_SENTENCE_END = re.compile(r"(?<=[.)])\s+(?=[A-Z`])")
_LINK = re.compile(r'<a href="([^"]*)">(.*?)</a>', re.DOTALL)


class Conditions:
    """The pages by the name of their condition."""

    def __init__(self) -> None:
        self._markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
        texts = {file.stem: file.read_text(encoding="utf-8") for file in sorted(find_folder().glob("*.md"))}
        self.names = tuple(name for name in texts if name != INDEX)
        """Names of the conditions that have a page."""
        self._pages = {name: self._to_page(self._markdown.render(text)) for name, text in texts.items()}
        self.first_actions = {name: self._to_page(self._find_first_action(texts[name])) for name in self.names}
        """What to do first, by the name of the condition: the first sentence or item below "What to do"."""

    def find(self, name: str = INDEX) -> Markup | None:
        """Return the page of a condition, or the index; None if there is no such page."""
        return self._pages.get(name)

    def _find_first_action(self, text: str) -> str:
        """Return the first sentence, or the first item of a list, of the part that says what to do, as HTML."""
        tokens = self._markdown.parse(text)
        starts = (at for at, token in enumerate(tokens) if token.type == "inline" and token.content == ACTIONS_TITLE)
        actions = tokens[next(starts) + 1 :]
        is_list = any(token.type == "ordered_list_open" for token in actions[:2])
        content = next(token.content for token in actions if token.type == "inline")
        html: str = self._markdown.renderInline(content if is_list else _SENTENCE_END.split(content)[0])
        return html

    def _to_page(self, html: str) -> Markup:
        return Markup(self._link(html))  # noqa: S704 (html=False escapes)

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
