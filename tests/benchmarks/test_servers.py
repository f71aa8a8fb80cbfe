"""Processes that benchmarks measure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
from benchmarks.servers import wait_until_idle

PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
time.sleep(600)
"""
CHILD = """
import sys, time
while time.process_time() < 2:
    pass
open(sys.argv[1], "w").close()
time.sleep(600)
"""


def test_a_server_is_idle_when_its_children_are(tmp_path: Path) -> None:
    """The wait ends after a child process, which computes while its parent waits, has come to rest."""
    done = tmp_path / "done"
    with subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(done)]) as parent:
        try:
            wait_until_idle(psutil.Process(parent.pid))
            assert done.exists()
        finally:
            for child in psutil.Process(parent.pid).children():
                child.kill()
            parent.kill()
