"""Hooks of schemathesis: one odd value in each request that it generates. `SCHEMATHESIS_HOOKS` names this module.

Half of the requests stay as they were generated, so that the odd ones meet objects that exist.
"""

from __future__ import annotations

import math
from typing import Any

import schemathesis
from hypothesis import strategies as st
from tests.support.odd_values import ODD_KEYS, ODD_VALUES, query_texts, replace_value, value_paths

BODY_VALUES = tuple(odd for odd in ODD_VALUES if not isinstance(odd, float) or math.isfinite(odd))
"""The values that the HTTP client of schemathesis can send."""
URL_TEXTS = tuple(text for text in query_texts() if text)


@schemathesis.hook
def flatmap_body(context: Any, body: Any) -> st.SearchStrategy[Any]:
    """Put an odd value in place of one value of the body, or an odd key into it."""
    if isinstance(body, bytes):
        return st.just(body)
    return st.booleans().flatmap(lambda is_odd: _odd_body(body) if is_odd else st.just(body))


@schemathesis.hook
def flatmap_query(context: Any, query: dict[str, Any] | None) -> st.SearchStrategy[Any]:
    """Give one query parameter an odd value."""
    return _odd_parameters(query)


@schemathesis.hook
def flatmap_path_parameters(context: Any, parameters: dict[str, Any] | None) -> st.SearchStrategy[Any]:
    """Give one path parameter an odd value."""
    return _odd_parameters(parameters)


@st.composite
def _odd_body(draw: st.DrawFn, body: Any) -> Any:
    path, value = draw(st.sampled_from(list(value_paths(body))))
    if isinstance(value, dict) and draw(st.booleans()):
        return replace_value(body, path, {**value, draw(st.sampled_from(ODD_KEYS)): draw(st.sampled_from(BODY_VALUES))})
    return replace_value(body, path, draw(st.sampled_from(BODY_VALUES)))


def _odd_parameters(parameters: dict[str, Any] | None) -> st.SearchStrategy[Any]:
    if not parameters:
        return st.just(parameters)
    odd = st.builds(
        lambda name, text: {**parameters, name: text}, st.sampled_from(sorted(parameters)), st.sampled_from(URL_TEXTS)
    )
    return st.booleans().flatmap(lambda is_odd: odd if is_odd else st.just(parameters))
