"""The commands join `gradmedic` through their entry points."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

from gradmedic_service.commands.api_key import API_KEY
from gradmedic_service.commands.db import DB
from gradmedic_service.commands.rediagnose import REDIAGNOSE
from gradmedic_service.commands.serve import SERVE


def test_commands_join_the_command_line() -> None:
    """The entry points name the objects of the commands."""
    commands = {entry.name: entry for entry in entry_points(group="gradmedic.commands")}
    assert commands["serve"].load() is SERVE
    assert commands["db"].load() is DB
    assert commands["api-key"].load() is API_KEY
    assert commands["rediagnose"].load() is REDIAGNOSE


def test_the_diagnosis_joins_the_command_line() -> None:
    """One entry point names the function that replays a recording. Loading it needs no extra."""
    script = (
        "import sys\n"
        "from importlib.metadata import entry_points\n"
        "(entry,) = entry_points(group='gradmedic.replay')\n"
        "assert entry.load().__name__ == 'replay'\n"
        "print(sorted({'fastapi', 'pydantic', 'sqlalchemy', 'urllib3', 'zstandard'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
