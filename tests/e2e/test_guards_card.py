"""The card of what the guards of a run did, and their marks on the chart of the loss, in a browser."""

from __future__ import annotations

import re
from typing import Any

import httpx2
import pytest
from playwright.sync_api import expect
from tests.e2e.conftest import Service, append, fill, healthy_step
from tests.support.accessibility import violations

SKIPPED = "The gradient norm 90.5 is far above its limit 12, so the step is left out."
REWOUND = "The loss of step 120 is NaN, so the run goes back to the state after step 80."


def guard_action(step: int, action: str = "skip", **fields: Any) -> dict[str, Any]:
    """Return a guard action as the SDK sends it."""
    return {
        "step": step, "action": action, "reason": "gradient_spike", "numbers": {"grad_norm": 90.5, "limit": 12.0},
        "explanation": SKIPPED, **fields,
    }  # fmt: skip


def add_steps(client: httpx2.Client, run: str, first: int, count: int, *actions: dict[str, Any]) -> None:
    """Append steps without statistics, with the actions of guards."""
    steps = [*range(first, first + count)]
    acted = {action["step"] for action in actions if action["action"] == "skip"}
    body = {
        "steps": steps, "loss": [1.0] * count, "sampled": [False] * count, "statistics": {},
        "skipped": [step in acted for step in steps], "guard_actions": [*actions],
    }  # fmt: skip
    client.post(f"/runs/{run}/steps", json=body).raise_for_status()


def create(service: Service, name: str) -> str:
    """Create a run whose guard skipped three steps and went back once; return its id."""
    run = fill(service.url, name, healthy_step, 100)
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        add_steps(client, run, 100, 20, guard_action(110))
        rewind = guard_action(120, "rewind", reason="nonfinite_loss", numbers={"loss": "NaN"}, explanation=REWOUND)
        client.post(
            f"/runs/{run}/rewind", json={"step": 80, "generation": 0, "guard_action": rewind}
        ).raise_for_status()
        append(client, run, healthy_step, range(81, 100), 16)
        add_steps(client, run, 100, 20, guard_action(103), guard_action(107))
    return run


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 1400), ("light", 390), ("dark", 390)])
def test_the_card_has_the_actions_and_the_chart_their_marks(
    open_page: Any, service: Service, scheme: str, width: int
) -> None:
    """The newest action is first, a step can be shown, and a rewind has what it took back."""
    run = create(service, f"guarded, {scheme}, {width}")
    page = open_page(f"{service.url}/runs/{run}", color_scheme=scheme, viewport={"width": width, "height": 900})
    page.wait_for_selector("body[data-ready]")
    card = page.locator("#guards")
    expect(card.locator("#guards-summary")).to_have_text("Guards: 3 steps skipped, rewound once (step 120 to 80).")
    expect(card.locator("li strong")).to_have_text(["step skipped", "step skipped", "rewound", "step skipped"])
    rewound = card.locator("li[data-action=rewind]")
    expect(rewound).to_contain_text(REWOUND)
    expect(rewound).to_contain_text("rewound the loss was not finite")
    expect(rewound).to_contain_text("Back to step 80. The verdict was healthy since step")
    rewound.get_by_text("Numbers").click()
    expect(rewound.locator("dd")).to_have_text("NaN")
    expect(card.locator("li").last).to_contain_text("a rewind dropped this step")
    titles = page.locator("#loss-chart .mark.tick title").all_text_contents()
    assert titles == [f"step skipped, step {step}: {SKIPPED}" for step in (107, 103)] + [
        f"rewound, step 120: {REWOUND}"
    ]
    assert violations(page) == ""
    card.get_by_role("button", name="step 107").click()
    page.wait_for_url(re.compile("step=107"))


def test_the_card_appears_and_grows_without_a_reload(open_page: Any, service: Service) -> None:
    """A run without actions has no card; the events of the run bring each new action."""
    run = fill(service.url, "guarded later", healthy_step, 100)
    page = open_page(f"{service.url}/runs/{run}")
    page.wait_for_selector("body[data-ready]")
    expect(page.locator("#guards")).to_be_hidden()
    summary, changed = page.locator("#guards-summary"), page.locator("#changed")
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        add_steps(client, run, 100, 60, *(guard_action(step) for step in range(100, 160, 5)))
    expect(summary.or_(changed).locator("visible=true")).to_have_count(1)
    if changed.is_visible():  # the card would move what is in view while the job trains
        changed.click()
    expect(summary).to_contain_text("Guards: 12 steps skipped. A guard changed 1 of")
    expect(summary).to_contain_text("the cause is not cured.")
    expect(page.locator("#guard-actions > li")).to_have_count(6)
    page.get_by_role("button", name="7 more actions").click()
    expect(page.locator("#guard-actions > li")).to_have_count(12)


def test_many_actions_are_listed_from_the_newest_on(open_page: Any, service: Service) -> None:
    """The page reads the newest 200 actions, and has their number of all."""
    run = fill(service.url, "guarded often", healthy_step, 50)
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        add_steps(client, run, 50, 300, *(guard_action(step) for step in range(50, 350)))
    page = open_page(f"{service.url}/runs/{run}")
    expect(page.locator("#guards-older")).to_have_text("The newest 200 of 300 actions are listed.")
