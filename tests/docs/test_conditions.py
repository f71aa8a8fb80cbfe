"""Every condition has a page, and every page a condition."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from benchmarks.experiments.conditions import EXAMPLES

from gradmedic_diagnosis.detectors import DETECTOR_TYPES, DETECTORS
from gradmedic_diagnosis.detectors.base import Detector

FOLDER = Path(__file__).parents[2] / "docs" / "conditions"
PAGES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "README")
SECTIONS = ("What the evidence says", "How to check it", "What to do", "Source")
MOST_LINES = 60
"""A page is about half a page of text, with its table and code."""
MOST_BYTES = 100_000
"""Of a picture. The wheel has them all, and the service holds them in memory."""


def test_every_cause_of_its_own_has_a_page() -> None:
    """A finding that can be a cause has a page that explains it, named after it."""
    conditions = {detector.id for detector in DETECTOR_TYPES if detector.cause_score is not Detector.cause_score}
    assert conditions - {*PAGES} == set()
    assert {*PAGES} <= {*DETECTORS}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_the_agreed_sections(name: str) -> None:
    """A page begins with its name, and has its sections in order; it is short."""
    text = (FOLDER / f"{name}.md").read_text()
    assert text.startswith(f"# `{name}`\n")
    headings = re.findall(r"^## (.*?)s?$", text, re.MULTILINE)
    assert [heading for heading in headings if heading in {section.rstrip("s") for section in SECTIONS}] == [
        section.rstrip("s") for section in SECTIONS
    ]
    assert len(text.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_a_small_picture_that_the_experiment_makes(name: str) -> None:
    """A page shows one picture with a description, which is a small PNG, and a training for it is defined."""
    pictures = re.findall(r"^!\[([^\]]+)\]\(images/(\w+)\.png\)$", (FOLDER / f"{name}.md").read_text(), re.MULTILINE)
    assert [picture for _, picture in pictures] == [name]
    content = (FOLDER / "images" / f"{name}.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) <= MOST_BYTES
    assert name in EXAMPLES


def test_the_index_lists_every_page() -> None:
    """The table of the index has a row for each page, in alphabetical order, and no other."""
    rows = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.md\) \| \S", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert rows == [(name, name) for name in PAGES]
