"""The examples in the docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import gradmedic

MODULES = [
    "gradmedic",
    *(m.name for m in pkgutil.walk_packages(gradmedic.__path__, "gradmedic.") if not m.name.endswith("__main__")),
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_print_what_they_show(name: str) -> None:
    """Every example in a docstring of the client prints what the docstring shows."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0
