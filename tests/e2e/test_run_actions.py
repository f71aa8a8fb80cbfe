"""Acting on a run from its page, and what the page shows first, in a browser."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from playwright.sync_api import Page, expect
from tests.e2e.conftest import Service, append, fill
from tests.support.accessibility import violations

STATIC = Path(__file__).parents[2] / "service" / "gradmedic_service" / "web" / "static"
BEFORE_NAN = 80
SETTINGS = {
    **{f"setting_{index}": index for index in range(30)},
    "prompt": "a long value " * 30,
    "trainer": {"batch_size": 32},
    "optimizer": {"name": "AdamW", "lr": 0.0003},
}


def breaking_step(step: int, depth: Any) -> tuple[float, Any]:
    """Return a step of a run whose loss is NaN after ordinary steps."""
    is_broken = step >= BEFORE_NAN
    return (math.nan, np.full_like(depth, math.nan)) if is_broken else (2 * math.exp(-step / 90), np.ones_like(depth))


def make_run(service: Service, **body: Any) -> str:
    """Create a run without steps; return its id."""
    run: str = httpx2.post(f"{service.url}/api/v1/runs", json={"project": "pages", "layers": [], **body}).json()["id"]
    return run


def stored(service: Service, run: str) -> Any:
    """Return a run as it is stored."""
    return httpx2.get(f"{service.url}/api/v1/runs/{run}").json()


def refuse_requests(page: Page) -> None:
    """Let all requests of the page fail as if the service were away, until `allow_requests`."""
    page.evaluate("() => { window.kept = window.fetch; window.fetch = async () => { throw new TypeError('away'); }; }")


def allow_requests(page: Page) -> None:
    """Let requests of the page through again."""
    page.evaluate("() => { window.fetch = window.kept; }")


def test_a_run_is_renamed_in_place(open_page: Any, service: Service) -> None:
    """By keyboard a reader renames a run; what is refused or gets no answer stays, with the reason."""
    run = make_run(service, name="first name")
    page = open_page(f"{service.url}/runs/{run}", refusals=(422,))
    rename = page.get_by_role("button", name="Rename the run")
    field, error = page.get_by_label("Name of the run"), page.locator("#rename-error")
    rename.focus()
    page.keyboard.press("Enter")
    expect(field).to_be_focused()
    page.keyboard.type("never saved")
    page.keyboard.press("Escape")
    expect(rename).to_be_focused()
    rename.click()
    field.fill("x" * 600)
    page.keyboard.press("Enter")
    expect(error).to_have_text("The name has 600 characters; at most 512 are allowed.")
    expect(field).to_have_value("x" * 600)
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.locator("h1")).to_have_text("first name")
    field.fill("  ")
    page.keyboard.press("Enter")
    expect(error).to_have_text("The name must not be empty.")
    field.fill("<b>second</b> name")
    refuse_requests(page)
    page.keyboard.press("Enter")
    expect(error).to_contain_text("The service does not answer")
    expect(field).to_have_value("<b>second</b> name")
    allow_requests(page)
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("<b>second</b> name")
    expect(page.locator("#edited")).to_have_text("The run is now called <b>second</b> name.")
    expect(page).to_have_title(re.compile("^<b>second</b> name · "))
    expect(error).to_be_hidden()
    assert stored(service, run)["name"] == "<b>second</b> name"
    page.reload()
    expect(page.locator("h1")).to_have_text("<b>second</b> name")
    httpx2.patch(f"{service.url}/api/v1/runs/{run}", json={"name": "of another reader"})
    expect(page.locator("h1")).to_have_text("of another reader")


def test_tags_are_added_and_removed(open_page: Any, service: Service) -> None:
    """Tags change at once and stay after a reload; another reader's tag is kept; a refused one returns to the field."""
    run = make_run(service, tags=["a", "b"])
    page = open_page(f"{service.url}/runs/{run}", refusals=(422,))
    chips, error = page.locator("#tag-list li"), page.locator("#tag-error")
    field = page.get_by_role("textbox", name="New tag")
    page.wait_for_selector("body[data-ready]")
    field.fill("new tag")
    page.keyboard.press("Enter")
    expect(chips).to_have_count(3)
    expect(page.locator("#edited")).to_have_text("The tag new tag is added.")
    field.fill("a")
    page.keyboard.press("Enter")
    expect(error).to_have_text("The run has the tag a already.")
    field.fill("t" * 600)
    page.keyboard.press("Enter")
    expect(error).to_have_text("The tag has 600 characters; at most 512 are allowed.")
    expect(field).to_have_value("t" * 600)
    expect(chips).to_have_count(3)
    httpx2.patch(f"{service.url}/api/v1/runs/{run}", json={"tags": ["a", "b", "new tag", "of another"]})
    page.get_by_role("button", name="Remove the tag b").click()
    expect(page.get_by_role("button", name="Remove the tag new tag")).to_be_focused()
    expect(page.locator("#edited")).to_have_text("The tag b is removed.")
    assert stored(service, run)["tags"] == ["a", "new tag", "of another"]
    refuse_requests(page)
    page.get_by_role("button", name="Remove the tag a").click()
    expect(error).to_contain_text("The tag a is still there: The service does not answer")
    allow_requests(page)
    expect(page.get_by_role("button", name="Remove the tag a")).to_be_visible()
    page.reload()
    expect(chips).to_have_count(3)
    page.get_by_role("link", name="of another").click()
    page.wait_for_url(re.compile(r"/\?tag=of(\+|%20)another"))


def test_notes_are_written_in_markdown(open_page: Any, service: Service) -> None:
    """Notes are rendered and stay; a refusal, another reader's change and a login lose nothing that was typed."""
    run = make_run(service)
    page = open_page(f"{service.url}/runs/{run}", refusals=(422,))
    text, field, error = (
        page.locator("#notes-text"),
        page.get_by_label("Notes, in Markdown"),
        page.locator("#notes-error"),
    )
    expect(page.locator("#notes")).to_be_hidden()
    page.get_by_role("button", name="Add notes").click()
    expect(field).to_be_focused()
    field.fill("**bold** <img src=x onerror=alert(1)>\n\n| a |\n|--:|\n| 1 |")
    page.keyboard.press("Control+Enter")
    expect(text.locator("strong")).to_have_text("bold")
    expect(text).to_contain_text("<img src=x onerror=alert(1)>")
    expect(text.locator("td.right")).to_have_text("1")
    expect(page.get_by_role("button", name="Edit")).to_be_focused()
    page.reload()
    page.wait_for_selector("body[data-ready]")
    expect(text.locator("strong")).to_have_text("bold")
    page.get_by_role("button", name="Edit").click()
    field.fill("x" * 30_000)
    page.get_by_role("button", name="Save the notes").click()
    expect(error).to_have_text("The text has 30000 characters; at most 20000 are allowed.")
    expect(field).to_have_value("x" * 30_000)
    field.fill("typed here")
    page.reload()  # as a login does
    expect(error).to_contain_text("not saved yet")
    expect(field).to_have_value("typed here")
    httpx2.patch(f"{service.url}/api/v1/runs/{run}", json={"notes": "of *another* reader"})
    page.get_by_role("button", name="Save the notes").click()
    expect(error).to_contain_text("changed elsewhere meanwhile, to: “of *another* reader”")
    expect(field).to_have_value("typed here")
    assert stored(service, run)["notes"] == "of *another* reader"
    page.get_by_role("button", name="Save the notes").click()
    expect(text).to_have_text("typed here")
    expect(page.locator("#edited")).to_have_text("The notes are saved.")
    assert stored(service, run)["notes"] == "typed here"
    httpx2.patch(f"{service.url}/api/v1/runs/{run}", json={"notes": "appears *live*"})
    expect(text.locator("em")).to_have_text("live")
    page.get_by_role("button", name="Edit").click()
    field.fill("")
    page.get_by_role("button", name="Save the notes").click()
    expect(page.get_by_role("button", name="Add notes")).to_be_focused()
    expect(page.locator("#notes")).to_be_hidden()


def test_a_run_is_copied_and_deleted(open_page: Any, service: Service) -> None:
    """Address and id are copied; a run is deleted after a confirmation only, and a failure stays in the dialog."""
    run = make_run(service, name="to be deleted")
    page = open_page(
        f"{service.url}/runs/{run}?step=3", permissions=["clipboard-read", "clipboard-write"], refusals=(404,)
    )
    page.get_by_role("button", name="Copy id").click()
    expect(page.locator("#edited")).to_have_text("The id of the run is in the clipboard.")
    assert page.evaluate("navigator.clipboard.readText()") == run
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#edited")).to_contain_text("address of this view")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    page.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog", name="Delete this run?")
    expect(dialog).to_contain_text("to be deleted")
    expect(dialog).to_contain_text("may still be training")
    expect(dialog.get_by_role("button", name="Keep it")).to_be_focused()
    assert violations(page) == ""
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert stored(service, run)["name"] == "to be deleted"
    page.get_by_role("button", name="Delete").click()
    refuse_requests(page)
    dialog.get_by_role("button", name="Delete the run").click()
    expect(dialog.get_by_role("alert")).to_contain_text("The service does not answer")
    allow_requests(page)
    dialog.get_by_role("button", name="Delete the run").click()
    page.wait_for_url(re.compile(r"/\?project=pages"))
    assert httpx2.get(f"{service.url}/api/v1/runs/{run}").status_code == 404


def test_a_run_without_steps_says_what_to_do(open_page: Any, service: Service) -> None:
    """Before the first step there are no empty cards but what to do; the telling settings come first, with a search."""
    run = make_run(service, name="waiting", config=SETTINGS, layers=[{"name": "a"}, {"name": "b"}])
    page = open_page(f"{service.url}/runs/{run}")
    expect(page.get_by_role("heading", name="Send the first step")).to_be_visible()
    for selector in ("#columns", "#conditions", "#review", "#notes"):
        expect(page.locator(selector)).to_be_hidden()
    expect(page.locator("#config dt")).to_have_text(
        ["optimizer.lr", "optimizer.name", "trainer.batch_size", *(f"setting_{index}" for index in range(5))]
    )
    page.get_by_text("All 34 settings").click()
    entries = page.locator("#config-entries > dt")
    expect(entries).to_have_count(34)
    page.get_by_label("Search").fill("long VALUE")
    expect(entries).to_have_text(["prompt"])
    expect(page.locator("#config-none")).to_have_text("1 of 34 settings")
    page.locator("#config-entries summary").click()
    expect(page.locator("#config-entries dd p")).to_have_text("a long value " * 30)
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        steps = {"steps": [0, 1], "loss": [1.0, 0.9], "statistics": {"grad_norm": [[1.0, 1.0], [1.0, 1.0]]}}
        client.post(f"/runs/{run}/steps", json=steps).raise_for_status()
    expect(page.get_by_role("heading", name="Send the first step")).to_be_hidden()
    expect(page.locator("#heatmap canvas")).to_be_visible()
    expect(page.locator("#loss-chart .line").first).to_be_attached()


@pytest.fixture(scope="module")
def broken(service: Service) -> str:
    """Create a run with conditions, notes and tags; return its id."""
    run = fill(service.url, "broken", breaking_step, 100)
    training = {"carries_gradients": True, "optimizers": [{"name": "SGD", "learning_rate": 0.1}]}
    notes = "# Plan\n\nSee https://e.example/" + "long/" * 60 + "\n\n```\npython train.py\n```"
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        body = {"training": training, "notes": notes, "tags": ["tag", "t" * 200], "config": SETTINGS}
        client.patch(f"/runs/{run}", json=body).raise_for_status()
        append(client, run, breaking_step, range(100, 120), 16)
    return run


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 390)])
def test_the_page_shows_first_what_to_do(
    open_page: Any, service: Service, broken: str, scheme: str, width: int
) -> None:
    """Level, conditions with numbers and a first action, and the advice precede the pictures; axe finds nothing."""
    page = open_page(f"{service.url}/runs/{broken}", color_scheme=scheme, viewport={"width": width, "height": 900})
    diagnosis = httpx2.get(f"{service.url}/api/v1/runs/{broken}/diagnosis").json()
    expect(page.locator("#banner .light")).to_have_text(diagnosis["level"])
    card = page.locator("#condition-cards li", has_text="nonfinite loss")
    expect(card.get_by_role("link", name="nonfinite loss")).to_have_attribute("href", "/conditions/nonfinite_loss")
    expect(card.locator(".severity")).to_have_text("warning")
    expect(card.locator(".first-action")).to_contain_text("Do first: Put the safe form")
    expect(card.locator("dl")).to_contain_text(re.compile(r"update to weight\s*[\d.]+ %"))
    expect(page.locator("#findings")).not_to_contain_text("nonfinite loss")
    card.get_by_role("button", name=f"step {BEFORE_NAN}").first.click()
    page.wait_for_url(re.compile(f"step={BEFORE_NAN}"))
    tops = {
        name: page.locator(f"#{name}").evaluate("(element) => element.getBoundingClientRect().top")
        for name in ("banner", "condition-cards", "config", "advice", "heatmap", "findings")
    }
    assert tops["banner"] < tops["condition-cards"] < tops["config"] < tops["advice"]
    if width < 700:
        assert tops["advice"] < tops["heatmap"] < tops["findings"]
    page.get_by_text(re.compile(r"All \d+ settings")).click()
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("button", name="Rename the run").click()
    assert violations(page) == ""


def test_numbers_have_their_own_units(open_page: Any, service: Service, broken: str) -> None:
    """A factor per time step and a share at a time step are no steps; a step is one."""
    page = open_page(f"{service.url}/runs/{broken}")
    values = {"factor_per_time_step": 0.22, "share_at_first_time_step": 0.5, "growth_per_step": 1.9, "since_step": 12}
    shown = page.evaluate(
        """async (values) => {
            const { quantity } = await import(document.querySelector('link[href$="/evidence.js"]').href);
            return Object.entries(values).map(([name, value]) => quantity(name, value));
        }""",
        values,
    )
    assert shown == ["×0.22 per time step", "50 %", "×1.9 per step", "step 12"]


def test_no_column_is_white_beside_the_other(open_page: Any, service: Service) -> None:
    """On a wide page neither the diagnosis nor the pictures are much longer than what is beside them."""
    page = open_page(f"{service.url}/runs/{service.exploding}", viewport={"width": 1500, "height": 900})
    heights = page.evaluate(
        "() => ['#diagnosis', '#columns .charts'].map((name) => document.querySelector(name).offsetHeight)"
    )
    assert heights[0] <= heights[1] + 200
    page.goto(f"{service.url}/runs/{service.healthy}")  # its diagnosis is short
    page.wait_for_selector("body[data-ready]")
    heatmap = page.locator("section:has(> #heatmap)").bounding_box()
    last = page.locator("#rate-chart").bounding_box()
    assert heatmap is not None
    assert last is not None
    reach = last["x"] + last["width"] - heatmap["x"] - heatmap["width"]
    assert reach > 300, "the last pictures leave the place below the diagnosis empty"


def test_a_sound_verdict_does_not_contradict_the_level(open_page: Any, service: Service) -> None:
    """Where the level is attention, the light is amber and the badge of the healthy verdict is not green."""
    run = fill(service.url, "stuck", lambda _step, depth: (2.3, np.ones_like(depth)), 150, blocks=2)
    assert stored(service, run)["level"] == "attention"
    color = "(element) => getComputedStyle(element).backgroundColor"
    page = open_page(f"{service.url}/runs/{run}", color_scheme="light")
    expect(page.locator("#banner .light")).to_have_text("attention")
    amber, badge = (page.locator(f"#banner {name}").evaluate(color) for name in (".light", ".badge"))
    expect(page.locator("#history")).to_contain_text("gradients healthy")
    expect(page).to_have_title(re.compile("healthy, attention"))
    page.goto(f"{service.url}/runs/{service.healthy}")
    page.wait_for_selector("body[data-ready]")
    green, healthy = (page.locator(f"#banner {name}").evaluate(color) for name in (".light", ".badge"))
    assert len({amber, badge, green}) == 3
    assert healthy == green


def test_short_names_keep_what_tells_layers_apart(open_page: Any, service: Service) -> None:
    """Names of one model stay different from each other at any length, and no longer than that."""
    parts = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
    names = [
        f"transformer.h.{block}.{part}.{kind}" for block in range(12) for part in parts for kind in ("weight", "bias")
    ]
    names += ["transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight", "a" * 60 + "1", "a" * 60 + "2"]
    page = open_page(service.url)
    module = (STATIC / "layer_names.js").read_text()
    shorten = """async ([module, names, size]) => {
        const { nameShortener } = await import(URL.createObjectURL(new Blob([module], { type: "text/javascript" })));
        return names.map(nameShortener(names, size));
    }"""
    page = page.context.browser.new_page()  # a page without a policy may import the module's text
    page.goto("about:blank")
    for size in (14, 20, 30, 80):
        shown = page.evaluate(shorten, [module, names, size])
        assert len(set(shown)) == len(names), size
        assert max(map(len, shown)) <= size
    assert page.evaluate(shorten, [module, names, 20])[0] == "…h.0.ln_1.weight"
    assert page.evaluate(shorten, [module, names, 80]) == names
    page.close()


def test_a_race_without_a_worker_names_the_command(open_page: Any, service: Service) -> None:
    """A rerun whose trials no worker has taken names the command of a worker, and has no empty picture."""
    page = open_page(f"{service.url}/reruns/{service.rerun}")
    expect(page.locator("#no-worker")).to_be_hidden()
    expect(page.locator("#race-chart")).to_be_visible()
    run = httpx2.get(f"{service.url}/api/v1/reruns/{service.rerun}").json()["run_id"]
    remedies = [[{"id": "clip_grad_norm", "parameters": {"max_norm": 0.5}}]]
    made = httpx2.post(f"{service.url}/api/v1/runs/{run}/reruns", json={"remedies": remedies}).json()
    page.goto(f"{service.url}/reruns/{made['id']}")
    page.wait_for_selector("body[data-ready]")
    expect(page.locator("#no-worker")).to_contain_text("gradmedic worker --config worker.toml")
    expect(page.locator("#race-chart")).to_be_hidden()
    httpx2.post(f"{service.url}/api/v1/reruns/{made['id']}/cancel")
