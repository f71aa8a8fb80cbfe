"""The commands that the documentation shows exist, with the options it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from tests.support.documents import DOCUMENTS, ROOT, SHELLS, fenced_blocks
from tests.support.patience import PATIENCE

_INLINE = re.compile(r"`((?:gradmedic|make) [^`]+)`")


def shown_commands(document: Path) -> list[str]:
    """Return the `gradmedic` and `make` lines of a document, in shell blocks and inline."""
    blocks = [block for block in fenced_blocks(document) if block.language in SHELLS]
    found = [line for block in blocks for line in block.commands() if line.split(" ")[0] in ("gradmedic", "make")]
    return sorted({*found, *_INLINE.findall(document.read_text())})


@cache
def gradmedic_help(command: str) -> str:
    """Return what `gradmedic COMMAND --help` prints; fails on an unknown command."""
    arguments = [sys.executable, "-m", "gradmedic", *shlex.split(command), "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_commands_exist(document: Path) -> None:
    """Every documented `make` target and `gradmedic` command exists, and has each option that is shown with it."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in shown_commands(document):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            named = [word for word in words[1:] if "=" not in word and not word.isupper() and "NAME" not in word]
            assert set(named) <= targets, f"{document.name}: `{line}`"
            continue
        nested = words[2:3] if words[1] in ("alerts", "db", "api-key", "import") else []
        help_text = gradmedic_help(shlex.join([words[1], *nested]))
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert option in help_text, f"{document.name}: `{line}` has no option {option}"
