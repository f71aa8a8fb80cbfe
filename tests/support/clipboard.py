"""What a page copies when a button is pressed."""

from __future__ import annotations

from playwright.sync_api import Locator, expect


def copy_from(place: Locator) -> str:
    """Press the button `Copy` of a part of a page, check that it shows the success, and return the clipboard's text.

    A button shows the success for two seconds, so the page starts no timer until the success was seen.
    """
    page = place.page
    page.evaluate("() => { window.startTimer = window.setTimeout; window.setTimeout = () => 0; }")
    place.get_by_role("button", name="Copy").click()
    expect(place.get_by_role("button", name="Copied")).to_be_visible()
    page.evaluate("() => { window.setTimeout = window.startTimer; }")
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text
