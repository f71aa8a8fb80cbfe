"""The card of the origin of a non-finite number, and the page about its operation, in a browser."""

from __future__ import annotations

import math
import re
from typing import Any

import httpx2
import numpy as np
import pytest
from playwright.sync_api import expect
from tests.e2e.conftest import Service, append, fill
from tests.support.accessibility import violations
from tests.support.clipboard import copy_from

BORN = 40
"""Step at which the loss and the gradients become NaN."""
LINE = "scores = torch.softmax(scores.masked_fill(mask, -math.inf), dim=-1)  # " + "long " * 20
TEXT = (
    f"NaN is born at step {BORN} in `softmax` (model/attention.py:57, module `decoder.1.attn`): all entries were -inf "
    "in 1 of 2,048 rows; the loss was not finite."
)
ORIGIN = {
    "operation": "softmax", "direction": "forward", "module": "decoder.1.attn", "step": BORN, "value": "NaN",
    "source": {"file": "model/attention.py", "line": 57, "text": LINE}, "kind": "numeric", "text": TEXT,
    "input": {"special": "masked_row", "count": 1, "total": 2048, "unit": "row"}, "is_loss_finite": False,
    "batch_tensors": [{"shape": [32, 64], "dtype": "float32", "digest": "0123456789abcdef", "nonfinite_count": 2,
                       "min": -1.5, "max": 4.0, "examples": [3, 7]},
                      {"shape": [32], "dtype": "int64", "nonfinite_count": 0}],
}  # fmt: skip


def breaking_step(step: int, depth: Any) -> tuple[float, Any]:
    """Return a step of a run that is sound until all its numbers become NaN."""
    if step >= BORN:
        return math.nan, np.full_like(depth, math.nan)
    return 2.3 * math.exp(-step / 60), np.ones_like(depth)


def create(service: Service, name: str, origin: dict[str, Any] | None, **fields: Any) -> str:
    """Create a run that breaks, with an origin; return its id."""
    run = fill(service.url, name, breaking_step, BORN, **fields)
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        if origin is not None:
            client.patch(f"/runs/{run}", json={"training": {"origin": origin}}).raise_for_status()
        append(client, run, breaking_step, range(BORN, BORN + 10), 16)
    return run


@pytest.fixture(scope="module")
def located(service: Service) -> str:
    """Create a run whose origin is known; return its id."""
    return create(service, "located", ORIGIN)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 1400), ("light", 390), ("dark", 390)])
def test_the_card_has_the_sentence_and_the_fix(
    open_page: Any, service: Service, located: str, scheme: str, width: int
) -> None:
    """It is above causes and conditions, leads to the step and to the operation's page, and copies the code."""
    page = open_page(f"{service.url}/runs/{located}", color_scheme=scheme, viewport={"width": width, "height": 900})
    card = page.locator("#origin")
    expect(card.locator(".sentence")).to_have_text(TEXT.replace("`", ""))
    expect(card.locator(".sentence code")).to_have_text(["softmax", "decoder.1.attn"])
    expect(card).to_contain_text("Line 57 of model/attention.py")
    expect(card).to_contain_text("A softmax over a row that is masked as a whole is 0/0.")
    expect(page.locator("#origin-search")).to_be_hidden()
    expect(page.locator("#next-action")).to_have_text("Try first: change the operation softmax")
    expect(page.locator("#causes h3").first).to_contain_text("numerical instability")
    fix = httpx2.get(f"{service.url}/api/v1/runs/{located}/diagnosis").json()["origin"]["fix"]
    expect(card.locator(".snippet code")).to_have_text(fix["snippet"])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    assert copy_from(card) == fix["snippet"]
    expect(page.locator("#causes li").first).to_be_visible()
    card.get_by_text("The batch of that step").click()
    expect(card.locator("li")).to_have_text(
        [
            "float32 [32, 64], from -1.5 to 4, 2 elements are NaN or infinite (examples 3, 7), digest 0123456789abcdef",
            "int64 [32]",
        ]
    )
    tops = {
        name: page.locator(f"#{name}").evaluate("(element) => element.getBoundingClientRect().top")
        for name in ("banner", "origin", "conditions", "causes")
    }
    assert tops["banner"] < tops["origin"] < tops["conditions"] < tops["causes"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
    assert violations(page) == ""
    card.get_by_role("button", name=f"step {BORN}").click()
    page.wait_for_url(re.compile(f"step={BORN}"))
    card.get_by_role("link", name="More about this: masked row").click()
    expect(page.locator("h1")).to_have_text("masked_row")
    expect(page.get_by_role("heading", name="How it arises")).to_be_visible()
    assert violations(page) == ""


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 390)])
def test_a_run_without_origin_shows_how_to_find_it(open_page: Any, service: Service, scheme: str, width: int) -> None:
    """The code to add is one click away. The card appears without a reload once the origin is known."""
    run = create(service, f"not located, {scheme}", None)
    page = open_page(f"{service.url}/runs/{run}", color_scheme=scheme, viewport={"width": width, "height": 900})
    search = page.locator("#origin-search")
    search.locator("summary").click()
    expect(page.locator("#origin")).to_be_hidden()
    expect(search.locator("code")).to_have_text('run = gradmedic.init(on_nonfinite="locate")')
    expect(search.get_by_role("button", name="Copy")).to_be_visible()
    assert violations(page) == ""
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        client.patch(f"/runs/{run}", json={"training": {"origin": ORIGIN}}).raise_for_status()
    sentence, changed = page.locator("#origin .sentence"), page.locator("#changed")
    expect(sentence.or_(changed).locator("visible=true")).to_have_count(1)
    if changed.is_visible():  # the card would move what is in view while the job trains
        changed.click()
    expect(sentence).to_be_visible()
    expect(search).to_be_hidden()


def test_a_button_locates_it_by_a_rerun(open_page: Any, service: Service) -> None:
    """The button starts a rerun of the kind `locate`, and leads to its page. Without a worker it says what to do."""
    run = create(service, "to be located", None, trainable="guilty")
    page = open_page(f"{service.url}/runs/{run}", refusals=(409,))
    page.locator("#origin-search summary").click()
    button = page.get_by_role("button", name="Locate it on this job")
    button.click()
    expect(page.locator("#error")).to_contain_text("No worker offers the trainable 'guilty'")
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        client.put("/trainables", json={"items": [{"name": "guilty", "parameters": []}]}).raise_for_status()
    button.click()
    page.wait_for_url(re.compile("/reruns/"))
    expect(page.locator("#facts")).to_contain_text("locates the first number that is not finite")


def test_a_search_without_result_has_its_reason(open_page: Any, service: Service) -> None:
    """The card has the sentence, and no code."""
    run = create(service, "not found", {"step": BORN, "reason": "a scripted module cannot be repeated"})
    page = open_page(f"{service.url}/runs/{run}")
    expect(page.locator("#origin .sentence")).to_contain_text("was not found: a scripted module cannot be repeated.")
    expect(page.locator("#origin .snippet")).to_have_count(0)
    expect(page.locator("#origin-search")).to_be_hidden()


def test_a_sound_run_shows_neither(open_page: Any, service: Service) -> None:
    """There is nothing to find."""
    page = open_page(f"{service.url}/runs/{service.healthy}")
    page.wait_for_selector("body[data-ready]")
    expect(page.locator("#origin")).to_be_hidden()
    expect(page.locator("#origin-search")).to_be_hidden()
