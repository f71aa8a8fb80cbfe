"""The fields that every page of a list has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from gradmedic.protocol.schema import SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a list. A subclass gives `items` its type."""

    __pydantic_config__: ClassVar[dict[str, Any]] = SCHEMA

    items: list[Any]
    """The items of this page."""
    next_page_token: str | None
    """Token of the next page. Pass it as `page_token`. Null on the last page."""
