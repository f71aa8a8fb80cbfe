"""The programs of the pages about operations do what the pages show."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from gradmedic.protocol.origin_fixes import FIXES, OTHER_FIXES, Fix, find_fix
from gradmedic.torch.origin.finder import OriginFinder

FOLDER = Path(__file__).parents[2] / "docs" / "operations"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "README")
FIX_OF_PAGE: dict[str, Fix] = {fix.page: fix for fix in (*FIXES.values(), *OTHER_FIXES)}
MOST_LINES_OF_CODE = 10
MOST_LINES = 60


def read_blocks(name: str) -> list[str]:
    """Return the code of a page: the program, then what to change for each framework."""
    return re.findall(r"```python\n(.*?)\n```", (FOLDER / f"{name}.md").read_text(), re.DOTALL)


def replace_result(program: str, code: str) -> str:
    """Return a program with other code in place of the line that computes `y`."""
    replaced, count = re.subn(r"(?m)^y = .*$", lambda _: code, program)
    assert count == 1
    return replaced


def run(program: str) -> dict[str, Any]:
    """Run a program; return its names, and what it printed as `printed`."""
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("ignore")  # torch warns of some of these operations
        exec(program, names)  # noqa: S102 - it is the code that users are shown
    return {**names, "printed": printed.getvalue().strip()}


def is_finite(names: dict[str, Any]) -> bool:
    """Return whether the loss and the gradient of the input are finite."""
    return bool(names["loss"].isfinite().all() and names["x"].grad.isfinite().all())


def test_every_fix_has_a_page() -> None:
    """A page for each kind of operation, and none besides; the index lists them in alphabetical order."""
    assert sorted(FIX_OF_PAGE) == PAGES
    rows = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.md\) \| \S", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert rows == [(name, name) for name in PAGES]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_the_agreed_parts(name: str) -> None:
    """A page begins with its name, is short, and has the operations, the advice and the code of the fix."""
    text, fix = (FOLDER / f"{name}.md").read_text(), FIX_OF_PAGE[name]
    assert text.startswith(f"# `{name}`\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["How it arises", "What to do", "Source"]
    assert len(text.splitlines()) <= MOST_LINES
    assert fix.advice in text.replace("\n", " ")
    operations = [operation for operation in FIXES if FIXES[operation] is fix]
    listed = re.search(r"^Operations: (.*?)\.\n\n", text, re.MULTILINE | re.DOTALL)
    assert (re.findall(r"`(.*?)`", listed[1]) if listed else []) == operations
    program, *codes = read_blocks(name)
    assert len(program.splitlines()) <= MOST_LINES_OF_CODE
    assert codes == [fix.code[framework] for framework in ("torch", "jax", "keras") if framework in fix.code]


@pytest.mark.parametrize("name", PAGES)
def test_a_program_is_finite_only_with_the_change(name: str) -> None:
    """Without the change, loss or gradient are not finite, as the page shows; with it, both are."""
    program, changed, *_ = read_blocks(name)
    broken = run(program)
    assert not is_finite(broken)
    assert broken["printed"] == program.rpartition("  # ")[2]
    assert is_finite(run(replace_result(program, changed)))


@pytest.mark.parametrize("name", PAGES)
def test_the_origin_of_a_program_leads_to_its_page(name: str) -> None:
    """The search finds an operation in the program whose fix has this page."""
    before_backward, _, after = read_blocks(name)[0].partition("loss.backward()")
    assert after
    finder = OriginFinder()
    with finder:
        names = run(before_backward)
    origin = finder.explain([names["loss"].detach()])
    if origin is None:
        with finder:
            names["loss"].backward()
        origin = finder.explain([names["x"].grad])
    assert origin is not None
    fix = find_fix(origin)
    assert fix is not None
    assert fix.page == name
    assert torch.isfinite(names["loss"]).all() == (origin.direction == "backward")
