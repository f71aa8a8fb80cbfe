"""JSON responses. Non-finite numbers are the strings "NaN", "Infinity" and "-Infinity"."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from gradmedic.protocol.encoding import encode_json
from gradmedic.protocol.service import PROBLEM_MEDIA_TYPE


class WireResponse(JSONResponse):
    """The default response of every route."""

    def render(self, content: Any) -> bytes:
        """Return the content as JSON."""
        return encode_json(content)


class ProblemResponse(WireResponse):
    """An error."""

    media_type = PROBLEM_MEDIA_TYPE
