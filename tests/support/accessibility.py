"""What people with disabilities cannot use on a page."""

from __future__ import annotations

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def violations(page: Page) -> str:
    """Return the violations of WCAG 2.2 AA and best practices that axe-core finds, and whether the page is too wide."""
    results = Axe().run(page, options={"runOnly": AXE_TAGS})
    report = results.generate_report() if results.violations_count else ""
    is_wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    return f"{report} wider than the screen" if is_wide else report
