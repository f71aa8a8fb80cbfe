"""JSON as it leaves the service: non-finite numbers are the strings "NaN", "Infinity" and "-Infinity"."""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.responses import JSONResponse

from gradmedic.protocol.service import PROBLEM_MEDIA_TYPE


def without_nonfinite(content: Any) -> Any:
    """Return the content with every non-finite float replaced by its name.

    >>> without_nonfinite({"loss": [1.0, float("nan"), float("-inf")]})
    {'loss': [1.0, 'NaN', '-Infinity']}
    """
    if isinstance(content, float):
        if math.isfinite(content):
            return content
        return "NaN" if math.isnan(content) else "Infinity" if content > 0 else "-Infinity"
    if isinstance(content, dict):
        return {key: without_nonfinite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nonfinite(value) for value in content]
    return content


def to_json(content: Any) -> str:
    """Serialize compactly, without bare NaN or Infinity."""
    return json.dumps(without_nonfinite(content), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class WireResponse(JSONResponse):
    """The default response of every route."""

    def render(self, content: Any) -> bytes:
        """Serialize the content."""
        return to_json(content).encode()


class ProblemResponse(WireResponse):
    """An error."""

    media_type = PROBLEM_MEDIA_TYPE
