"""What a name may be: the rules that the client keeps, too."""

from __future__ import annotations

from gradmedic.names import name_error, text_error

__all__ = ["name_error", "text_error"]
