"""The comparison of runs in a browser: what differs, how the runs ended, and their curves over one axis."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from playwright.sync_api import Page, expect
from tests.e2e.conftest import Service, exploding_step, fill, healthy_step
from tests.support.accessibility import violations
from torch import nn

import gradmedic

STEPS = 60
PROJECT = "comparison"


def train(address: str, folder: Path, name: str, rate: float, width: int, config: dict[str, Any]) -> str:
    """Train a small network through the SDK at its default sampling; return the run's id."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    inputs = torch.randn(64, 8)
    targets = inputs.sum(1, keepdim=True)
    run = gradmedic.init(project=PROJECT, name=name, config=config, base_url=address, dir=folder, silent=True)
    run.watch(model, optimizer)
    for step in range(STEPS):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        metrics: dict[str, Any] = {"val/accuracy": 1 / (1 + step)} if step % 10 == 0 else {}
        run.log(loss=loss, **metrics)
    run.finish()
    return str(run.id)


@pytest.fixture(scope="module")
def trained(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Ids of an exploding and of a healthy run of the real SDK; they differ in learning rate, momentum and width."""
    folder = tmp_path_factory.mktemp("jobs")
    model = {"activation": "tanh", "bias": True}
    shared = {"batch": 64, "seed": 0}
    steep = {**shared, "lr": 30.0, "model": {**model, "hidden": 16}}
    calm = {**shared, "lr": 0.01, "model": {**model, "hidden": 32}, "momentum": 0}
    runs = train(service.url, folder, "steep", 30.0, 16, steep), train(service.url, folder, "calm", 0.01, 32, calm)
    yield runs
    delete(service, *runs)


def delete(service: Service, *runs: str) -> None:
    """Delete runs, so that tests of the list do not see them."""
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        for run in runs:
            client.delete(f"/runs/{run}")


def address(service: Service, *runs: str, **parameters: str) -> str:
    """Return the address of a comparison."""
    return f"{service.url}/compare?{httpx2.QueryParams([*(('run', run) for run in runs), *parameters.items()])}"


def cells(page: Page, row: str) -> list[str]:
    """Return the texts of the cells of a row, with single spaces."""
    return [" ".join(text.split()) for text in page.locator(f"{row} > td").all_inner_texts()]


def evaluate(page: Page, module: str, expression: str, *given: Any) -> Any:
    """Return the value of an expression over `names`, the exports of a script, and `given`, the arguments."""
    script = f"""async ([module, given]) => {{
        const script = [...document.scripts].find((each) => each.src.includes("/static/"));
        const names = await import(new URL(`${{module}}.js`, script.src));
        return JSON.stringify({expression}, (_, item) => (item === undefined ? null : item));
    }}"""
    return json.loads(page.evaluate(script, [module, list(given)]))


def test_a_reader_learns_what_differs_between_two_runs(
    open_page: Any, service: Service, trained: tuple[str, str]
) -> None:
    """The page names the settings, the model, verdicts, findings and numbers that differ between two real trainings."""
    steep, calm = trained
    page = open_page(address(service, steep, calm))
    lead = page.locator("#sentence").inner_text()
    assert lead.startswith(
        "They differ in 3 of 7 settings: lr (30, 0.01), momentum (not set, 0) and model.hidden (16, 32); "
    )
    assert "; also in 3 of 4 layers. Run A explodes since step " in lead
    assert lead.endswith(", run B is healthy.")
    expect(page.locator("#answer")).to_contain_text("Run B has the lowest last loss, ")
    assert cells(page, "[data-setting='lr']") == ["30", "0.01 ×3.33e-4"]
    assert cells(page, "[data-setting='momentum']") == ["not set", "0"]
    assert cells(page, "[data-setting='0.weight']") == ["Linear 16×8, then tanh", "Linear 32×8, then tanh"]
    assert page.locator("[data-setting='batch']").count() == 0
    page.get_by_role("button", name="Show").click()
    assert cells(page, "[data-setting='model.activation']") == ["tanh"]
    verdicts = page.locator("#outcomes tr", has_text="Verdict").locator("td .badge").all_inner_texts()
    assert verdicts == ["exploding", "healthy"]
    runs = [httpx2.get(f"{service.url}/api/v1/runs/{run}").json() for run in (steep, calm)]
    first_bad, durations = (
        page.locator("#outcomes tr", has=page.get_by_role("rowheader", name=name, exact=True)).locator("td")
        for name in ("First bad layer", "Duration")
    )
    assert first_bad.all_inner_texts() == [runs[0]["first_bad_layer"], "–"]
    assert runs[1]["duration"] is not None
    expect(durations.last).to_contain_text(re.compile(r"^[\d.]+ (s|min)"))
    found = page.locator("#findings tr[data-detector]")
    expect(found.first.locator(".tag")).to_have_text("only A")
    expect(found.first.locator("td").nth(1)).to_have_text("not found")
    last, best = (cells(page, f"[data-measure='val/accuracy {kind}']") for kind in ("last", "best"))
    assert [text.split()[0] for text in (*last, *best)] == ["0.01961", "0.01961", "1", "1"]
    page.get_by_label("Horizontal axis").select_option("elapsed")
    expect(page.locator("#loss-chart .unit")).to_have_text("time since the start")
    page.locator("[data-metric='val/accuracy']").scroll_into_view_if_needed()
    expect(page.locator("[data-metric='val/accuracy'] svg.chart > g.line")).to_have_count(2)
    page.locator("#layer").scroll_into_view_if_needed()
    page.locator("#layer").select_option("2.weight")
    page.locator("#statistic").select_option("weight_norm")
    expect(page.locator("#layer-chart h3")).to_have_text("weight norm of 2.weight")
    expect(page.locator("#layer-chart svg.chart > g.line")).to_have_count(2)
    page.locator("#loss-chart svg.chart").press("+")  # how many values are in view then depends on the machine's speed
    expect(page.get_by_role("button", name="Reset the zoom")).to_be_visible()
    page.get_by_role("button", name="Baseline: calm").click()
    assert cells(page, "[data-setting='lr']") == ["30 ×3,000", "0.01"]
    shown = page.url
    assert all(
        name in shown for name in ("from=", "to=", "x=elapsed", "baseline=", "layer=2.weight", "statistic=weight_norm")
    )
    page.reload()
    page.wait_for_selector("body[data-ready]")
    page.locator("#layer").scroll_into_view_if_needed()
    expect(page.locator("#layer-chart h3")).to_have_text("weight norm of 2.weight")
    assert page.url == shown
    assert cells(page, "[data-setting='model.activation']") == ["tanh"]
    assert cells(page, "[data-setting='lr']") == ["30 ×3,000", "0.01"]
    expect(page.locator("#loss-chart .unit")).to_have_text("time since the start")
    expect(page.get_by_role("button", name="Reset the zoom")).to_be_visible()


@pytest.fixture(scope="module")
def sweep(service: Service) -> Iterator[list[str]]:
    """Ids of twelve runs: four with a high learning rate explode; the last of the others is still running."""
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        runs = []
        for index in range(12):
            high = index % 3 == 0
            run = fill(
                service.url, f"sweep of learning rates {index}", exploding_step if high else healthy_step, 150, 2
            )
            config = {"lr": 0.5 + index if high else 0.01 * index, "seed": index, "model": {"depth": 2}}
            client.patch(f"/runs/{run}", json={"config": config, **({} if index == 11 else {"status": "finished"})})
            runs.append(run)
        yield runs
    delete(service, *runs)


def test_twelve_runs_are_compared(open_page: Any, service: Service, sweep: list[str]) -> None:
    """Twelve runs have lines of their own, and a sentence that counts them and names what divides them."""
    page = open_page(address(service, *sweep), viewport={"width": 390, "height": 900}, color_scheme="dark")
    expect(page.locator("#sentence")).to_contain_text(
        "They differ in 2 of 3 settings: lr (0.01 to 9.5) and seed (0 to 11)."
    )
    expect(page.locator("#sentence")).to_contain_text("4 explode (A, D, G and J since step ")
    expect(page.locator("#sentence")).to_contain_text("8 are healthy (B, C, E, F, H, I, K and L)")
    expect(page.locator("#answer")).to_contain_text(
        "only lr divides them: failing runs have 0.5 or more, healthy ones 0.11 or less."
    )
    expect(page.locator("[data-setting='lr'] .tag")).to_have_text("divides the verdicts")
    assert violations(page) == ""
    page.locator("#gradient-chart").scroll_into_view_if_needed()
    expect(page.locator("#gradient-chart svg.chart > g.line")).to_have_count(12)
    looks = page.locator("#gradient-chart .key svg").evaluate_all(
        "all => all.map(each => each.getAttribute('class') + each.firstChild.getAttribute('stroke-dasharray'))"
    )
    assert len(set(looks)) == 12
    page.evaluate("scrollTo(0, 0)")
    settings, measures = (page.locator(f"#{name} .scroll") for name in ("settings", "measures"))
    settings.evaluate("each => { each.scrollLeft = 300; }")
    expect(measures).to_have_js_property("scrollLeft", 300)
    head = page.locator("[data-setting='lr'] th")
    assert head.bounding_box()["x"] == settings.bounding_box()["x"]
    page.evaluate("""() => {
        window.shift = 0;
        new PerformanceObserver((list) => { for (const each of list.getEntries()) window.shift += each.value; })
            .observe({ type: "layout-shift" });
    }""")
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        layers = [[1.0] * 4] * 10
        block = {
            "steps": list(range(150, 160)),
            "loss": [0.25] * 10,
            "statistics": dict.fromkeys(("grad_norm", "weight_norm", "update_norm"), layers),
        }
        assert client.post(f"/runs/{sweep[11]}/steps", json=block).status_code == 200
    last = page.locator("#outcomes tr", has_text="Last step").locator("td").last
    expect(last).to_have_text("159")
    assert page.evaluate("window.shift") < 0.01
    assert settings.evaluate("each => each.scrollLeft") == 300
    page.get_by_role("button", name="Remove sweep of learning rates 0").click()
    expect(page.locator("#compared li")).to_have_count(11)
    expect(page.get_by_role("button", name="Remove sweep of learning rates 1", exact=True)).to_be_focused()
    page.go_back()
    expect(page.locator("#compared li")).to_have_count(12)


def test_runs_are_added_to_a_comparison(open_page: Any, service: Service) -> None:
    """A search finds a further run; a run without settings, times or layers is compared as far as it goes."""
    with httpx2.Client(base_url=f"{service.url}/api/v1") as client:
        body = {"project": "pages", "name": "bare", "layers": []}
        bare = client.post("/runs", json=body).json()["id"]
    page = open_page(address(service, service.exploding, x="elapsed"), color_scheme="dark")
    expect(page.locator("#sentence")).to_contain_text("This is one run.")
    expect(page.locator("#chart-controls")).to_contain_text("No run has times; the axis shows steps.")
    page.get_by_text("Add a run").click()
    page.get_by_label("Search").fill("bar")
    page.get_by_role("button", name="bare").click()
    expect(page.locator("#compared li")).to_have_count(2)
    expect(page.locator("#sentence")).to_contain_text("run B has too little data for a verdict.")
    assert cells(page, "[data-setting='lr']") == ["0.1", "not set"]
    assert violations(page) == ""
    page.locator("#layer").scroll_into_view_if_needed()
    expect(page.locator("#layer option").first).to_have_text("encoder.0.weight (only A)")
    expect(page.locator("#layer-chart .note")).to_contain_text("Not in B.")
    delete(service, bare)


def test_a_trial_is_compared_with_its_remedies(open_page: Any, service: Service) -> None:
    """A run of a rerun differs from the suspect by its remedies, although the configurations are equal."""
    stored = httpx2.get(f"{service.url}/api/v1/reruns/{service.rerun}").json()
    attempts = {trial["candidate"]: trial["attempts"][-1]["run_id"] for trial in stored["trials"] if trial["attempts"]}
    page = open_page(address(service, stored["run_id"], attempts[0], attempts[1]))
    remedies = cells(page, "[data-setting='remedies of the rerun']")
    assert remedies[:2] == ["none", "none"]
    assert remedies[2].startswith("clip grad norm (max_norm=1)")
    expect(page.locator("#sentence")).to_contain_text("remedies of the rerun (none, none, clip grad norm (max_norm=1))")


def test_settings_are_compared_by_their_values(open_page: Any, service: Service) -> None:
    """Nested keys are flat, numbers compare as numbers, missing is not null, and what matters comes first."""
    page = open_page(f"{service.url}/compare")
    model = {"size": [64, 32], "blocks": [{"kind": "a"}]}
    first = {"name": "x", "model": model, "lr": 1e-3, "a.b": 1, "tag": "2.10", "off": None, "empty": {}}
    second = {"name": "y", "model": {"size": [64.0, 32], "blocks": [{"kind": "b"}]}, "a": {"b": 1.0}}
    configs = [first, {**second, "lr": "1e-3", "tag": "2.1", "empty": {}}, {**first, "lr": 0.002}]
    compared = evaluate(page, "comparison_differences", "names.compareSettings(given[0])", configs)
    assert [(row["key"], row["texts"], row["groups"]) for row in compared["different"]] == [
        ("lr", ["0.001", "0.001", "0.002"], [0, 0, 1]),
        ("model.blocks.0.kind", ["a", "b", "a"], [0, 1, 0]),
        ("tag", ["2.10", "2.1", "2.10"], [0, 1, 0]),
        ("off", ["null", None, "null"], [0, 1, 0]),
        ("name", ["x", "y", "x"], [0, 1, 0]),
    ]
    assert {row["key"] for row in compared["equal"]} == {"model.size", "a.b", "empty"}
    nested = evaluate(page, "comparison_differences", "[...names.flatten(given[0])]", {"a.b": 1, "a": {"b": 2}})
    assert nested == [["a.b", 1], ["a.b (2)", 2]]


def test_layers_are_compared_by_name(open_page: Any, service: Service) -> None:
    """A layer differs by its description or by clearly different initial weights, a measured fact by 5 %."""
    page = open_page(f"{service.url}/compare")
    one = {"name": "w", "kind": "Linear", "shape": [8, 8], "numel": 64, "initial_rms": 0.1}
    layers = [one, {**one, "name": "v"}, {"name": "only"}]
    others = [{**one, "initial_rms": 0.15}, {**one, "name": "v", "initial_rms": 0.3}]
    runs = [
        {"framework": "torch 2.13.0", "training": {"input_rms": 1.00}, "layers": layers},
        {"framework": "torch 2.13.0", "training": {"input_rms": 1.04}, "layers": others},
    ]
    compared = evaluate(page, "comparison_differences", "names.compareLayers(given[0])", runs)
    assert [(row["key"], row["texts"]) for row in compared["different"]] == [
        ("v", ["Linear 8×8, initial RMS 0.1", "Linear 8×8, initial RMS 0.3"]),
        ("only", ["no description", None]),
    ]
    facts = evaluate(page, "comparison_differences", "names.compareFacts(given[0])", runs)
    assert [row["key"] for row in facts["different"]] == ["layers", "parameters"]


def test_what_divides_failing_from_healthy_runs(open_page: Any, service: Service) -> None:
    """A setting divides runs if its numbers lie on two sides of a limit, or few values are on one side only."""
    page = open_page(f"{service.url}/compare")
    bad, good = [True, True], [False, False]
    for values, failing, expected in (
        ([1, 2, 0.1, 0.2], bad + good, True),
        ([1, 0.15, 0.1, 0.2], bad + good, False),
        ([1, 2, 0.1, 5], [*bad, False, None], False),
        ([0.1, 0.2, 1, 2, 9], [*bad, *good, None], True),
        (["a", "a", "b", "b"], bad + good, True),
        (["a", "b", "c", "d"], bad + good, False),
        ([1, 2], [True, False], False),
    ):
        expression = "names.divides(names.rowOf('k', given[0]), given[1])"
        assert evaluate(page, "comparison_differences", expression, values, failing) is expected, values


def run_item(letter: str, verdict: str, **fields: Any) -> dict[str, Any]:
    """Return what the sentence reads of a run."""
    diagnosis = {"verdict": verdict, "level": "ok", "learning": "learning", "since_step": 40, "findings": []}
    item = {"letter": letter, "run": {"training": None}, "firstLayer": None, "lastLoss": None}
    return item | {"diagnosis": diagnosis | fields.pop("diagnosis", {})} | fields


def test_the_sentences_are_right(open_page: Any, service: Service) -> None:
    """The sentences name what differs, how each run ended, and the lowest loss where losses can be compared."""
    page = open_page(f"{service.url}/compare")

    def describe(items: list[dict[str, Any]], *configs: dict[str, Any]) -> tuple[str, str]:
        expression = """names.describeComparison(given[0], {
            settings: (await import(new URL("comparison_differences.js", script.src))).compareSettings(given[1]),
            facts: { different: [], equal: [] }, layers: { different: [], equal: [] },
        })"""
        sentences = evaluate(page, "comparison_sentence", expression, items, list(configs))
        return sentences["lead"], " ".join(sentences["others"])

    healthy, low = run_item("A", "healthy"), {"value": 0.5, "step": 9}
    assert describe([healthy, run_item("B", "healthy")], {"lr": 1}, {"lr": 1}) == (
        "Their setting lr is equal, and no other difference is known. Both runs are healthy.", "",
    )  # fmt: skip
    assert describe([healthy, run_item("B", "undetermined")], {}, {})[0] == (
        "The runs have no settings. Run A is healthy, run B has too little data for a verdict."
    )
    stuck = run_item(
        "B", "healthy", diagnosis={"level": "attention", "learning": "stuck"}, lastLoss={"value": 2.0, "step": 9}
    )
    vanishing = run_item("C", "vanishing", firstLayer="w")
    settings = [{f"k{key}": key + run for key in range(5)} for run in range(3)]
    lead, others = describe([{**healthy, "lastLoss": low}, stuck, vanishing], *settings)
    assert lead.startswith("They differ in 5 of 5 settings: k0 (0, 1, 2), k1 (1, 2, 3) and 3 more. Run A is healthy; ")
    assert lead.endswith("; run B is healthy, but its loss is stuck; run C has vanishing gradients since step 40 in w.")
    assert others == "Run A has the lowest last loss, 0.5 at step 9."
    same = [run_item(letter, "healthy", lastLoss=low) for letter in "AB"]
    assert describe(same, {}, {})[1] == "All runs have the same last loss, 0.5 at step 9."
    assert describe([*same, stuck], {}, {}, {})[1] == "Runs A and B have the lowest last loss, 0.5 at step 9."
    kinds = [{"training": {"loss": {"kind": kind}}} for kind in ("cross_entropy", "squared_error")]
    different = [run_item(letter, "healthy", run=run, lastLoss=low) for letter, run in zip("AB", kinds, strict=True)]
    assert "cross entropy, squared error), so do not compare them." in describe(different, {}, {})[1]
    rewarded = {"training": {"objective": {"kind": "metric", "metric": "reward", "direction": "maximize"}}}
    assert describe([{**healthy, "lastLoss": low, "run": rewarded}, stuck], {}, {})[1] == ""


def test_numbers_improve_in_a_known_direction_only(open_page: Any, service: Service) -> None:
    """The direction is the declared one or that of the name; two positive numbers have a ratio."""
    page = open_page(f"{service.url}/compare")
    names = ["loss", "val/loss", "train/accuracy", "perplexity", "eval/f1", "heat", "step_size", "classes"]
    directions = evaluate(page, "comparison_outcomes", "given[0].map((name) => names.directionOf(name))", names)
    assert directions == ["minimize", "minimize", "maximize", "minimize", "maximize", None, None, None]
    declared = [None, {"kind": "metric", "metric": "heat", "direction": "maximize"}]
    assert evaluate(page, "comparison_outcomes", "names.directionOf('heat', given[0])", declared) == "maximize"
    differences = [
        [0.5, 1.0, "minimize"],
        [2, 1, "minimize"],
        [-1, 1, None],
        [1, 1, "maximize"],
        ["NaN", 1, "minimize"],
    ]
    expression = "given[0].map((each) => names.differenceOf(...each))"
    assert evaluate(page, "comparison_outcomes", expression, differences) == [
        {"text": "−0.5 (×0.5)", "isBetter": True}, {"text": "+1 (×2)", "isBetter": False},
        {"text": "−2", "isBetter": None}, {"text": "±0", "isBetter": None}, None,
    ]  # fmt: skip
