"""Code to paste, in the run's framework, with the remedy's parameters filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from gradmedic.protocol.remedies import REMEDIES, Remedy

_FRAMEWORKS: Final = {"keras": "keras", "tensorflow": "keras", "jax": "jax", "flax": "jax"}
"""Frameworks of the catalogue's code, by the framework of a run. Others get the code for torch."""

Snippet = TypeVar("Snippet")


def choose_code(code: Mapping[str, Snippet], framework: str | None) -> Snippet:
    """Return the code for a run's framework, or that for torch where it has none.

    >>> choose_code({"torch": "x.sqrt()", "jax": "jnp.sqrt(x)"}, "flax 0.12")
    'jnp.sqrt(x)'
    """
    name = _FRAMEWORKS.get((framework or "").split(" ")[0].lower(), "torch")
    return code.get(name, code["torch"])


def write_snippet(remedy: Remedy, framework: str | None) -> str:
    """Return code that applies a remedy, for the run's framework (`"jax 0.10"`), or for torch where that has no code.

    Raises KeyError for an id that the catalogue does not have.

    >>> write_snippet(Remedy(id="clip_grad_norm", parameters={"max_norm": 1.0}), "jax 0.10")
    'optimizer = optax.chain(optax.clip_by_global_norm(1.0), optimizer)'
    """
    code = choose_code(REMEDIES[remedy.id].code, framework)
    values = (value for value in remedy.parameters.values() if isinstance(value, str))
    template = next((code.by_value[value] for value in values if value in code.by_value), code.default)
    return template.format(**remedy.parameters)
