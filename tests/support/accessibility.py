"""What people with disabilities cannot use on a page."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

OPTIONS = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],  # to list every element that passes takes longer than to check it
}
SHORTEN_TABLES = """() => {
    for (const row of document.querySelectorAll("details tbody tr:nth-child(n+8)")) row.remove();
}"""
"""Removes most rows of the tables with the numbers of a chart. There are thousands, and they look the same."""


def violations(page: Page) -> str:
    """Return the violations of WCAG 2.2 AA and best practices that axe-core finds, and whether the page is too wide.

    The tables of the charts are shorter afterwards.
    """
    is_wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    page.evaluate(SHORTEN_TABLES)
    results = Axe().run(page, options=OPTIONS)
    report = results.generate_report() if results.violations_count else ""
    return f"{report} wider than the screen" if is_wide else report
