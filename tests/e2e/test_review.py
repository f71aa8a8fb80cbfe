"""Reviewing the verdict on the page of a run, in a browser."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, expect
from tests.e2e.conftest import Service, exploding_step, fill
from tests.support.accessibility import violations


@pytest.fixture
def run(service: Service) -> str:
    """Create an exploding run of the test's own and return its id."""
    return fill(service.url, "reviewed", exploding_step, 200)


def stored(service: Service, run: str) -> Any:
    """Return the review of a run."""
    return httpx2.get(f"{service.url}/api/v1/runs/{run}").json()["review"]


def answers(page: Page) -> Any:
    """Return the section with the question."""
    return page.get_by_role("region", name="Is this right?")


def test_a_verdict_is_confirmed_and_the_answer_taken_back(open_page: Any, service: Service, run: str) -> None:
    """One click confirms the verdict of the step in view; another one takes the answer back."""
    section = answers(open_page(f"{service.url}/runs/{run}"))
    right = section.get_by_role("button", name="Yes, it is right")
    expect(right).to_have_attribute("aria-pressed", "false")
    right.click()
    expect(section.get_by_role("status")).to_contain_text("Reviewed as right: exploding at step 199")
    expect(right).to_have_attribute("aria-pressed", "true")
    expect(right).to_be_focused()
    review = stored(service, run)
    assert (review["answer"], review["step"], review["judged_verdict"]) == ("right", 199, "exploding")
    section.get_by_role("button", name="Take the answer back").click()
    expect(section.get_by_role("status")).to_be_empty()
    expect(section.get_by_role("button", name="Take the answer back")).to_be_hidden()
    assert stored(service, run) is None


def test_a_verdict_is_rejected_by_keyboard_and_the_answer_changed(open_page: Any, service: Service, run: str) -> None:
    """Without a mouse a reader opens the form, names the truth and saves it; the answer can be changed."""
    page = open_page(f"{service.url}/runs/{run}")
    section = answers(page)
    wrong = section.get_by_role("button", name="No, it is wrong")
    wrong.focus()
    page.keyboard.press("Enter")
    expect(section.get_by_label("True verdict")).to_be_focused()
    page.keyboard.press("Escape")
    expect(wrong).to_be_focused()
    expect(section.get_by_label("True verdict")).to_be_hidden()
    page.keyboard.press("Enter")
    page.keyboard.type("healthy")
    page.keyboard.press("Tab")
    page.keyboard.type("attention")
    page.keyboard.press("Tab")
    page.keyboard.type("<b>It was meant.</b>")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(section.get_by_role("status")).to_contain_text("Reviewed as wrong: exploding at step 199")
    expect(section.get_by_role("status")).to_contain_text("True: verdict healthy, level attention.")
    expect(section).to_contain_text("<b>It was meant.</b>")
    expect(wrong).to_be_focused()
    review = stored(service, run)
    assert (review["verdict"], review["level"], review["note"]) == ("healthy", "attention", "<b>It was meant.</b>")
    page.keyboard.press("Enter")
    expect(section.get_by_label("True verdict")).to_have_value("healthy")
    expect(section.get_by_label("Note")).to_have_value("<b>It was meant.</b>")
    section.get_by_label("True verdict").select_option("I do not know")
    section.get_by_label("True level").select_option("I do not know")
    section.get_by_role("button", name="Save the answer").click()
    expect(section.get_by_role("status")).not_to_contain_text("True:")
    assert stored(service, run)["verdict"] is None


def test_a_refused_answer_is_shown_and_the_form_stays(open_page: Any, service: Service, run: str) -> None:
    """An answer that the service refuses is explained, and nothing that was typed is lost."""
    page = open_page(f"{service.url}/runs/{run}", refusals=(422,))
    section = answers(page)
    section.get_by_role("button", name="No, it is wrong").click()
    section.get_by_label("True verdict").select_option("exploding")
    section.get_by_label("Note").fill("typed")
    section.get_by_role("button", name="Save the answer").click()
    expect(page.get_by_role("alert")).to_contain_text("was also exploding, so it is not wrong")
    expect(section.get_by_label("Note")).to_have_value("typed")
    section.get_by_label("True verdict").select_option("vanishing")
    section.get_by_role("button", name="Save the answer").click()
    expect(section.get_by_role("status")).to_contain_text("True: verdict vanishing.")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_review_of_another_reader_appears(open_page: Any, service: Service, run: str) -> None:
    """A review that is stored elsewhere appears without a reload; an open form keeps what was typed."""
    page = open_page(f"{service.url}/runs/{run}")
    expect(page.locator("#live")).to_have_text("live")
    section = answers(page)
    section.get_by_role("button", name="No, it is wrong").click()
    section.get_by_label("Note").fill("typed")
    httpx2.put(f"{service.url}/api/v1/runs/{run}/review", json={"answer": "right", "note": "Of another."})
    expect(section.get_by_role("status")).to_contain_text("Reviewed as right")
    expect(section).to_contain_text("Of another.")
    expect(section.get_by_label("Note")).to_have_value("typed")


def test_an_answer_to_an_earlier_verdict_says_so(open_page: Any, service: Service, run: str) -> None:
    """Where the verdict has changed since the review, the page shows both."""
    httpx2.put(f"{service.url}/api/v1/runs/{run}/review", json={"answer": "right", "step": 100})
    section = answers(open_page(f"{service.url}/runs/{run}"))
    expect(section.get_by_role("status")).to_contain_text("healthy at step 100")
    expect(section.get_by_role("status")).to_contain_text(
        "The answer of the service is exploding (level critical) now."
    )


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 390)])
def test_axe_finds_nothing_in_the_form(open_page: Any, service: Service, run: str, scheme: str, width: int) -> None:
    """axe-core finds no violation in the question, its open form and its answer, light and wide or dark and narrow."""
    page = open_page(f"{service.url}/runs/{run}", color_scheme=scheme, viewport={"width": width, "height": 900})
    section = answers(page)
    section.get_by_role("button", name="No, it is wrong").click()
    assert violations(page) == ""
    section.get_by_label("Note").fill("word" * 60)
    section.get_by_role("button", name="Save the answer").click()
    expect(section.get_by_role("status")).to_contain_text("Reviewed as wrong")
    assert violations(page) == ""
