"""One small training for each condition, and a picture of what the page of the run shows of it.

The trainings are cases of the open causes corpus (`benchmarks.corpus.causes`), sampled as the SDK does by default.
Each is sent to a service while it trains. A picture has the banner, the cards of the conditions and the charts that
show why.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

import gradmedic
from benchmarks.corpus.causes.cases import CauseCase, CauseProgram
from benchmarks.corpus.causes.session import CauseSession
from benchmarks.corpus.causes.splits import CAUSES_FIT, CAUSES_SPLITS
from benchmarks.corpus.foreign.examiner import Examiner
from benchmarks.corpus.foreign.recorder import train_examined
from benchmarks.servers import gradmedic as serve
from gradmedic import Client, Run
from gradmedic_service.database import schema

CHROMIUM: Final = ("chromium", "chromium-browser", "google-chrome")
WIDTH: Final = 1080
"""Width of the page in pixels."""
COLORS: Final = 128
"""Colors of a picture. Few keep its file small."""
HIDE: Final = """
header, .crumbs, .facts, .tags, .run-actions, .skip, #rename, #live, #unsent, #review, #about, #diagnosis, #next-action,
#chart-controls, #below, .charts > section, .grid > section { display: none !important }
main { padding-block: 16px !important }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A training in which a condition is found, and the charts that show why."""

    case: str
    """Id of the case in the open causes corpus."""
    charts: tuple[str, ...]
    """Ids of parts of the run's page."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings in place of those of the case, where no case of the corpus has the condition."""


EXAMPLES: Final[dict[str, Example]] = {
    "accumulating_gradients": Example(case="fit-digits.0.kept-gradients-forever", charts=("loss-chart", "layer-chart")),
    "adversary_dominates": Example(case="fit-adversaries.0.adversary-steps", charts=("heatmap",)),
    "attention_logit_growth": Example(case="fit-attention.0.attention-logits", charts=("loss-chart", "blocks-chart")),
    "disconnected_parameters": Example(case="fit-digits.0.detached", charts=("heatmap",)),
    "excessive_weight_decay": Example(case="fit-codes.0.excessive-decay", charts=("loss-chart", "weights-chart")),
    "forgetting_recurrence": Example(case="fit-memory.0.forgetting", charts=("loss-chart", "time-chart")),
    "learning_rate_jump": Example(case="fit-regression.0.rate-jump", charts=("loss-chart", "rate-chart")),
    "loss_mismatch": Example(case="fit-digits.0.softmax-twice", charts=("loss-chart", "layer-chart")),
    "loss_scale_exhausted": Example(
        case="fit-digits.0.scaled", settings={"trap_always": "head", "steps": 80}, charts=("loss-chart",)
    ),
    "loss_spike": Example(
        case="fit-regression.0.twin",
        settings={"optimizer": "sgd", "lr": 0.05, "steps": 400, "bad_loss": (220, 3000.0)},
        charts=("loss-chart", "layer-chart"),
    ),
    "low_precision_stall": Example(case="fit-regression.0.bfloat16-stall", charts=("loss-chart", "ratio-chart")),
    "missing_gradients": Example(case="fit-digits.0.cleared-gradients", charts=("loss-chart", "blocks-chart")),
    "no_signal_from_loss": Example(case="fit-rewards.0.no-signal", charts=("heatmap",)),
    "nonfinite_input": Example(case="fit-memory.0.nonfinite-input", charts=("heatmap",)),
    "nonfinite_loss": Example(case="fit-codes.0.log-of-zero", charts=("heatmap",)),
    "optimizer_epsilon": Example(case="fit-regression.0.epsilon-too-large", charts=("loss-chart", "ratio-chart")),
    "router_collapse": Example(case="fit-experts.0.router", charts=("heatmap",)),
    "stale_second_moment": Example(case="fit-regression.0.stale-moment", charts=("loss-chart", "ratio-chart")),
}


def show_conditions(pictures: Path | None) -> list[str]:
    """Train the example of each condition, print its explanation, and take its picture.

    Args:
        pictures: folder of the pictures; None for none.

    Returns:
        The conditions that the diagnosis did not find.

    Raises:
        FileNotFoundError: pictures are wanted, and there is no Chromium.
    """
    missing: list[str] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name, open_browser(pictures) as browser:
        folder = Path(name)
        url = f"sqlite:///{folder / 'conditions.db'}"
        schema.upgrade(url)
        with serve(url, folder) as (address, _), Client(address) as client:
            for condition, example in EXAMPLES.items():
                run = train_case(*find_example(example), address, folder)
                findings = {finding.detector: finding for finding in client.runs.diagnosis(run.id).findings}
                if condition not in findings:
                    missing.append(condition)
                    continue
                print(f"{condition}: {findings[condition].explanation}", flush=True)
                if browser is not None and pictures is not None:
                    picture = photograph(browser, f"{address}/runs/{run.id}", example.charts)
                    (pictures / f"{condition}.png").write_bytes(picture)
    return missing


def find_example(example: Example) -> tuple[CauseCase, CauseProgram]:
    """Return the case of an example with its settings, and its program.

    Raises:
        StopIteration: the open split has no such case.
    """
    cases = ((case, program) for program in CAUSES_SPLITS[CAUSES_FIT] for case in program.cases())
    case, program = next((case, program) for case, program in cases if case.id == example.case)
    return replace(case, settings={**case.settings, **example.settings}), program


def train_case(case: CauseCase, program: CauseProgram, address: str, folder: Path) -> Run:
    """Train a case, send it to the service, and return its run."""
    torch.set_num_threads(1)
    run = gradmedic.init(
        "conditions", name=case.id, base_url=address, dir=folder, silent=True, objective=case.settings.get("objective")
    )

    def train(run: Run, examiner: Examiner) -> None:
        program.train(CauseSession(dict(case.settings), run, examiner, case.seed))

    train_examined(run, Examiner(int(case.settings["steps"])), train)
    return run


@contextmanager
def open_browser(pictures: Path | None) -> Iterator[Browser | None]:
    """Yield a browser where pictures are wanted."""
    if pictures is None:
        yield None
        return
    executable = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if executable is None:
        raise FileNotFoundError("There is no Chromium: apt-get install chromium")
    pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


def photograph(browser: Browser, address: str, charts: tuple[str, ...]) -> bytes:
    """Return a picture of a run's page as PNG: its name, the banner, the conditions and some charts."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 1000}, color_scheme="light", bypass_csp=True)
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    shown = ", ".join(f".charts > section:has(#{chart}), .grid > #{chart}" for chart in charts)
    page.add_style_tag(content=f"{HIDE} {shown} {{ display: block !important }}")
    picture = page.locator("main").screenshot(animations="disabled")
    page.close()
    return compress(picture)


def compress(picture: bytes) -> bytes:
    """Return a PNG with few colors."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    out = io.BytesIO()
    image.quantize(COLORS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()
