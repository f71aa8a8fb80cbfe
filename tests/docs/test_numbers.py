"""A figure that several pages give is the same on each of them, and the same as in the code."""

from __future__ import annotations

import re
import tomllib

import pytest
from tests.support.documents import DOCUMENTS, ROOT

from gradmedic.recording.sampling_cost import SHARE as SAMPLING_SHARE
from gradmedic.torch.probes.schedule import SHARE as PROBES_SHARE
from gradmedic_service.settings import DEFAULT_PORT, Settings

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FIGURES = {
    "published programs that fail": {
        "README.md": r"describe \(\[SOURCES.md\]\([^)]*\)\), (\d+) fail here",
        "docs/reruns.md": r"\| all \| (\d+) \|",
    },
    "published programs that are verified without a false proof": {
        "README.md": r"\*\*(\d+) of them \(85 %",
        "docs/reruns.md": r"(\d+) of the 68 \(85 %",
    },
    "interval of that share of the published programs": {
        "README.md": r"of them \(85 %; 95 % interval ([\d.]+ to [\d.]+)\)",
        "docs/reruns.md": r"of the 68 \(85 %; 95 % interval ([\d.]+ to [\d.]+)\)",
    },
    "published programs that random search repairs": {
        "README.md": r"Random search over the same remedies verifies (\d+) of the 68",
        "docs/reruns.md": r"\| random search over the same remedies \| (\d+) of 68 \|",
    },
    "published programs that AUTOTRAINER's order repairs": {
        "README.md": r"of the 68, AUTOTRAINER's order (\d+)\.",
        "docs/reruns.md": r"\| AUTOTRAINER's order \| (\d+) of 68 \|",
    },
    "trainings that fail, of `make bench-reruns`": {
        "README.md": r"\| verified \| (\d+) trainings",
        "docs/reruns.md": r"twin without the fault: (\d+) do",
    },
    "new members that fail": {
        "README.md": r"\| (\d+) new members of these families",
        "docs/reruns.md": r"for the first time, unseen, (\d+) failed",
    },
    "trainings that the advice repairs": {
        "README.md": r"gradmedic's advice \| (\d+) \(",
        "docs/reruns.md": r"\| the advice \| (\d+) of \d+ \| [\d.]+ % to",
    },
    "interval of that share": {
        "README.md": r"gradmedic's advice \| \d+ \(95 % interval ([\d.]+ to [\d.]+)\)",
        "docs/reruns.md": r"\| the advice \| \d+ of \d+ \| ([\d.]+ % to [\d.]+) % \|",
    },
    "new members that the advice repairs": {
        "README.md": r"gradmedic's advice \| [^|]* \| (\d+) \|",
        "docs/reruns.md": r"When they were run again, all (\d+) were verified",
    },
    "trainings that random search repairs": {
        "README.md": r"\| random search over the same remedies \| (\d+) \|",
        "docs/reruns.md": r"\| random search \| (\d+) \|",
    },
    "new members that random search repairs": {
        "README.md": r"\| random search over the same remedies \| \d+ \| (\d+) \|",
        "docs/reruns.md": r"to 99.7 %; random search (\d+), AUTOTRAINER",
    },
    "trainings that AUTOTRAINER's order repairs": {
        "README.md": r"\| AUTOTRAINER's published order \| (\d+) \|",
        "docs/reruns.md": r"\| AUTOTRAINER's order \| (\d+) \|",
    },
    "new members that AUTOTRAINER's order repairs": {
        "README.md": r"\| AUTOTRAINER's published order \| \d+ \| (\d+) \|",
        "docs/reruns.md": r"random search \d+, AUTOTRAINER (\d+)\), with a median",
    },
    "trials to the first verified remedy, by the advice": {
        "README.md": r"gradmedic's advice \| [^|]* \| \d+ \| (\d+), \d+ \|",
        "docs/reruns.md": r"\| the advice \| [^|]* \| [^|]* \| (\d+) \| 100 % \|",
    },
    "share of the programs of other origin on which the advice was verified": {
        "README.md": r"advice was verified on (\d+) % of \d+ programs",
        "docs/reruns.md": r"programs of other origin the advice was verified on (\d+) %",
    },
    "programs of other origin": {
        "README.md": r"advice was verified on \d+ % of (\d+) programs",
        "docs/reruns.md": r"on (\d+) programs of other origin",
    },
    "the outcome that stands for all others": {
        "README.md": r'"(clip_grad_norm_per_layer[^"]*)"',
        "docs/reruns.md": r"> (clip_grad_norm_per_layer.*? \d+ s) ##",
    },
    "programs of `make bench-foreign`": {
        "README.md": r"901 runs of (\d+) programs",
        "docs/diagnosis.md": r"nothing was fitted to: (\d+) programs of other families",
    },
    "kinds of faults of `make bench-causes`": {
        "README.md": r"in one fault, of (\d+) kinds",
        "docs/diagnosis.md": r"cause is known: (\d+) kinds of faults",
    },
    "share of the time that sampling may take": {
        "docs/client.md": r"at which sampling costs ([\d.]+) % of the training's time",
        "docs/decisions/0022-sampling-is-a-debt.md": r"Each step pays ([\d.]+) % of its own duration",
    },
    "minutes of `make test-fast`": {
        "CONTRIBUTING.md": r"make test-fast +# while you work: about (\w+) minutes",
        "Makefile": r"run what takes about (\w+) minutes",
    },
}
"""What several pages state, and where: a pattern with the figure as its group."""
CODE = {
    "README.md": [
        (r"You need Python ([\d.]+) or later", PROJECT["requires-python"].removeprefix(">=")),
        (r"cost near ([\d.]+) % of the time", f"{100 * (SAMPLING_SHARE + PROBES_SHARE):g}"),
    ],
    "docs/client.md": [
        (r"at which sampling costs ([\d.]+) % of the training's time", f"{100 * SAMPLING_SHARE:g}"),
        (r"as take ([\d.]+) % of the training's time", f"{100 * PROBES_SHARE:g}"),
    ],
    "docs/security.md": [
        (r"\| requests of a key a minute \| ([\d,]+) \|", f"{Settings().max_requests_per_minute:,}"),
    ],
}
"""What a page states of the code: a pattern with the figure as its group, and the figure."""


def figure(page: str, pattern: str) -> str:
    """Return the figure that a page gives; fail if the pattern does not match once."""
    matches = re.findall(pattern, " ".join((ROOT / page).read_text().split()))
    assert len(matches) == 1, f"{page}: {pattern} matches {len(matches)} times"
    found: str = matches[0]
    return found


@pytest.mark.parametrize("name", FIGURES)
def test_pages_agree(name: str) -> None:
    """Every page that gives a figure gives the same one."""
    figures = {page: figure(page, pattern).replace(" %", "") for page, pattern in FIGURES[name].items()}
    assert len(figures) > 1
    assert len(set(figures.values())) == 1, figures


@pytest.mark.parametrize("page", CODE)
def test_pages_agree_with_the_code(page: str) -> None:
    """What a page states of the code is so."""
    assert [figure(page, pattern) for pattern, _ in CODE[page]] == [expected for _, expected in CODE[page]]


def test_pages_agree_on_port_and_database() -> None:
    """Every address of this machine in the documents has the default port, and every page the same default database."""
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    ports = set(re.findall(r"(?:localhost|127\.0\.0\.1):(\d+)\b", text))
    assert str(DEFAULT_PORT) in ports
    assert ports <= {str(DEFAULT_PORT), "8265"}  # Ray's own
    assert set(re.findall(r"~/\.local/share/(?!bash-completion)\w+", text)) == {"~/.local/share/gradmedic"}
