"""The origin of the first non-finite number in a diagnosis: what was recorded, and what to change."""

from __future__ import annotations

from dataclasses import fields

from gradmedic.protocol.origin_fixes import find_fix
from gradmedic.protocol.origin_sentences import describe_origin
from gradmedic.protocol.origins import DiagnosedOrigin, Origin, OriginFix
from gradmedic_diagnosis.snippets import choose_code


def diagnose_origin(origin: Origin | None, last_step: int | None, framework: str | None) -> DiagnosedOrigin | None:
    """Return a recorded origin with what to change, in the run's framework.

    `last_step` is the last step that the diagnosis has read, None before the first one. Returns None for the origin of
    a later step, except the one that follows: a script may end before it logs the step that failed.
    """
    if origin is None or (origin.step is not None and origin.step > (-1 if last_step is None else last_step) + 1):
        return None
    recorded = {field.name: getattr(origin, field.name) for field in fields(Origin)}
    return DiagnosedOrigin(
        **{**recorded, "text": origin.text or describe_origin(origin)}, fix=_describe_fix(origin, framework)
    )


def _describe_fix(origin: Origin, framework: str | None) -> OriginFix | None:
    fix = find_fix(origin)
    if fix is None:
        return None
    return OriginFix(page=fix.page, advice=fix.advice, snippet=choose_code(fix.code, framework))
