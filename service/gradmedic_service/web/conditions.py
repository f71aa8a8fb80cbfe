"""The pages of conditions, and what each advises to do first."""

from __future__ import annotations

import re
from collections.abc import Mapping

from markupsafe import Markup

from gradmedic_service.web.documents import Documents, render_markdown

ACTIONS_TITLE = "What to do"
_SENTENCE_END = re.compile(r"(?<=[.)])\s+(?=[A-Z`])")


class Conditions(Documents):
    """The pages by the name of their condition."""

    def __init__(self) -> None:
        super().__init__("conditions")
        self._first_actions: dict[str, Markup] = {}

    def find_first_actions(self) -> Mapping[str, Markup]:
        """Return what to do first, by the name of the condition: the first sentence or item below "What to do"."""
        if not self._first_actions:
            self._first_actions = {name: self.link(_render_first_action(self.read(name))) for name in self.names}
        return self._first_actions


def _render_first_action(text: str) -> str:
    """Return the first sentence, or the first item of a list, of the part that says what to do, as HTML."""
    tokens = render_markdown().parse(text)
    starts = (at for at, token in enumerate(tokens) if token.type == "inline" and token.content == ACTIONS_TITLE)
    actions = tokens[next(starts) + 1 :]
    is_list = any(token.type == "ordered_list_open" for token in actions[:2])
    content = next(token.content for token in actions if token.type == "inline")
    html: str = render_markdown().renderInline(content if is_list else _SENTENCE_END.split(content)[0])
    return html
