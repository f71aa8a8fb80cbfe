"""What people with disabilities cannot use on a page."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

OPTIONS = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],  # to list every element that passes takes longer than to check it
}


def violations(page: Page) -> str:
    """Return the violations of WCAG 2.2 AA and best practices that axe-core finds, and whether the page is too wide."""
    results = Axe().run(page, options=OPTIONS)
    report = results.generate_report() if results.violations_count else ""
    is_wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    return f"{report} wider than the screen" if is_wide else report
