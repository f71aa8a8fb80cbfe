"""A reader who copies the lines of README.md and docs/getting-started.md in order succeeds, without a clone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.support.documents import ROOT, SHELLS, Reader, fenced_blocks

README, GUIDE = ROOT / "README.md", ROOT / "docs" / "getting-started.md"
NOT_RUN = {
    "pip install 'gradmedic[demo]'": "it installs from an index; tests/packaging installs the built wheel",
}
"""Commands of these documents that no test runs as they are, with the reason."""


def test_only_what_is_listed_is_not_run() -> None:
    """Every block of the two documents is a program or commands, and every exception to their run is needed."""
    commands = []
    for document in (README, GUIDE):
        for block in fenced_blocks(document):
            assert block.language in ("python", *SHELLS), f"{document.name}:{block.line}"
            commands += block.commands() if block.language in SHELLS else []
    assert [beginning for beginning in NOT_RUN if beginning not in commands] == []


def words_of(text: str) -> str:
    """Return a text in one line, with each number replaced: other machines round differently."""
    return re.sub(r"\d+(\.\d+)?", "N", " ".join(text.replace("\n> ", " ").split()))


@pytest.mark.slow
def test_the_readme_leads_to_a_diagnosis(tmp_path: Path) -> None:
    """Every line of the README works in an empty folder, and the program prints the summary that the README shows."""
    with Reader(tmp_path, NOT_RUN) as reader:
        reader.follow(README)
        demo, served, program, diagnosis = reader.outputs
    assert reader.skipped == ["pip install 'gradmedic[demo]'"]
    assert '"ok": true' in demo.splitlines()[-1]
    assert f"sqlite:///{tmp_path}/home/.local/share/gradmedic/gradmedic.db" in served
    (shown,) = re.findall(r"^The program prints:\n\n> (.*?)\n\n", README.read_text(), re.MULTILINE | re.DOTALL)
    assert words_of(program) == words_of(shown)
    assert diagnosis.startswith("VANISHING since step")
    assert words_of(shown) in words_of(diagnosis)


@pytest.mark.slow
def test_the_guide_leads_to_a_proven_remedy(tmp_path: Path) -> None:
    """Every line of docs/getting-started.md works in an empty folder, up to a remedy that a rerun has verified."""
    with Reader(tmp_path, NOT_RUN) as reader:
        reader.follow(GUIDE)
    listed = next(output for output in reader.outputs if output.startswith("ID "))
    for name in ("rnn-language-model", "by-hand"):
        assert name in listed
    assert any(": verified: healthy in 1 of 1 seed" in " ".join(output.split()) for output in reader.outputs)
    assert any(output.startswith("gradmedic is at https://") for output in reader.outputs)
