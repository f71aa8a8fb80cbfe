"""The pages of conditions: the markdown files of docs/conditions as HTML.

A wheel has the files beside this module, a checkout in its `docs`. A page is rendered when it is first read, without
raw HTML. Links between the files lead to the pages; links to other documents become text, because the service does not
serve those. Their pictures are files of the pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from markupsafe import Markup

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

PATH = "/conditions"
INDEX = "README"
ACTIONS_TITLE = "What to do"
_SENTENCE_END = re.compile(r"(?<=[.)])\s+(?=[A-Z`])")
_PICTURE = re.compile(r'<img src="images/([^"]*)"')
_LINK = re.compile(r'<a href="([^"]*)">(.*?)</a>', re.DOTALL)


class Conditions:
    """The pages by the name of their condition.

    Args:
        find_picture: returns the address of a picture, given the name of its file.
    """

    def __init__(self, find_picture: Callable[[str], str]) -> None:
        self._find_picture = find_picture
        self._files = {file.stem: file for file in sorted(find_folder().glob("*.md"))}
        self.names = tuple(name for name in self._files if name != INDEX)
        """Names of the conditions that have a page."""
        self._pages: dict[str, Markup] = {}
        self._first_actions: dict[str, Markup] = {}

    def find(self, name: str = INDEX) -> Markup | None:
        """Return the page of a condition, or the index; None if there is no such page."""
        if name not in self._files:
            return None
        if name not in self._pages:
            self._pages[name] = self._link(_renderer().render(self._files[name].read_text(encoding="utf-8")))
        return self._pages[name]

    def find_first_actions(self) -> Mapping[str, Markup]:
        """Return what to do first, by the name of the condition: the first sentence or item below "What to do"."""
        if not self._first_actions:
            texts = {name: self._files[name].read_text(encoding="utf-8") for name in self.names}
            self._first_actions = {name: self._link(_render_first_action(text)) for name, text in texts.items()}
        return self._first_actions

    def _link(self, html: str) -> Markup:
        """Lead links to the pages and pictures to their files, and let readers scroll code by keyboard."""

        def replace(match: re.Match[str]) -> str:
            target, text = match.groups()
            name = target.removesuffix(".md")
            return f'<a href="{PATH}/{quote(name)}">{text}</a>' if name in self.names else text

        linked = _LINK.sub(replace, html).replace("<pre>", '<pre tabindex="0">')
        linked = _PICTURE.sub(lambda match: f'<img src="{self._find_picture(match[1])}"', linked)
        return Markup(linked)  # noqa: S704 (html=False escapes)


def _render_first_action(text: str) -> str:
    """Return the first sentence, or the first item of a list, of the part that says what to do, as HTML."""
    tokens = _renderer().parse(text)
    starts = (at for at, token in enumerate(tokens) if token.type == "inline" and token.content == ACTIONS_TITLE)
    actions = tokens[next(starts) + 1 :]
    is_list = any(token.type == "ordered_list_open" for token in actions[:2])
    content = next(token.content for token in actions if token.type == "inline")
    html: str = _renderer().renderInline(content if is_list else _SENTENCE_END.split(content)[0])
    return html


@cache
def _renderer() -> MarkdownIt:
    from markdown_it import MarkdownIt  # here, because the service answers sooner without it

    return MarkdownIt("commonmark", {"html": False}).enable("table")


def find_folder() -> Path:
    """Return the folder of the markdown files: of the wheel, else of the checkout."""
    packaged = Path(__file__).parent / "conditions"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "docs" / "conditions"


def find_pictures() -> Path:
    """Return the folder of the pictures, beside the markdown files."""
    return find_folder() / "images"
