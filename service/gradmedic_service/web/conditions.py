"""The pages of conditions, their pictures, and what each advises to do first."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from markupsafe import Markup

from gradmedic_service.web.documents import Documents, find_folder, render_markdown

ACTIONS_TITLE = "What to do"
_FOLDER = "conditions"
_SENTENCE_END = re.compile(r"(?<=[.)])\s+(?=[A-Z`])")
_PICTURE = re.compile(r'<img src="images/([^"]*)"')


class Conditions(Documents):
    """The pages by the name of their condition.

    Args:
        find_picture: returns the address of a picture, given the name of its file.
    """

    def __init__(self, find_picture: Callable[[str], str]) -> None:
        super().__init__(_FOLDER)
        self._find_picture = find_picture
        self._first_actions: dict[str, Markup] = {}

    def find_first_actions(self) -> Mapping[str, Markup]:
        """Return what to do first, by the name of the condition: the first sentence or item below "What to do"."""
        if not self._first_actions:
            self._first_actions = {name: self.link(_render_first_action(self.read(name))) for name in self.names}
        return self._first_actions

    def link(self, html: str) -> Markup:
        """Lead links to the pages, and pictures to their files."""
        linked = _PICTURE.sub(lambda match: f'<img src="{self._find_picture(match[1])}"', super().link(html))
        return Markup(linked)  # noqa: S704 (html=False escapes)


def find_pictures() -> Path:
    """Return the folder of the pictures, beside the markdown files."""
    return find_folder(_FOLDER) / "images"


def _render_first_action(text: str) -> str:
    """Return the first sentence, or the first item of a list, of the part that says what to do, as HTML."""
    tokens = render_markdown().parse(text)
    starts = (at for at, token in enumerate(tokens) if token.type == "inline" and token.content == ACTIONS_TITLE)
    actions = tokens[next(starts) + 1 :]
    is_list = any(token.type == "ordered_list_open" for token in actions[:2])
    content = next(token.content for token in actions if token.type == "inline")
    html: str = render_markdown().renderInline(content if is_list else _SENTENCE_END.split(content)[0])
    return html
