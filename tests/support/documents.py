"""The documents for readers: their fenced blocks, and a reader who does what they show.

There is one mechanism for all of them. `fenced_blocks` finds the blocks of a document, and `Reader` carries them out in
order, as a person with two terminals would: a service that is started stays in the first one, and everything else
happens in the second one.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from tests.support.patience import PATIENCE
from tests.support.ports import free_port

ROOT: Final = Path(__file__).parents[2]
DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
SHELLS: Final = ("sh", "bash", "console")
COMMAND_SECONDS: Final = 4 * PATIENCE
"""Seconds that a command may take. The demo trains three models and reruns one of them."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"as `(\w+\.py)`[^`]*$")
"""The end of a sentence that names the file of the program that follows it."""
_EXIT_CODE = re.compile(r"# exit code (\d+)")
_DOCUMENTED_PORT = "8642"


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a document."""

    language: str
    text: str
    line: int
    """Number of the line of the document with its fence."""
    before: str
    """The text of the document before it."""

    def commands(self) -> list[str]:
        """Return the commands of a shell block, each in one line, without the prompt."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.removeprefix("$ ").strip() for line in lines if line.strip() and not line.startswith("#")]


def fenced_blocks(document: Path) -> list[Block]:
    """Return the fenced blocks of a document, in order."""
    text = document.read_text()
    return [
        Block(match[1], match[2], text.count("\n", 0, match.start()) + 1, text[: match.start()].rstrip())
        for match in _FENCE.finditer(text)
    ]


class Reader:
    """Does what the blocks of a document show: an empty folder, a new home directory, two terminals.

    Programs in Python are saved under the name that the sentence before them gives, or are run at once. Commands must
    end with the exit code that a comment gives, else with 0. The service gets a free port in place of the documented
    one.

    Args:
        folder: an empty folder.
        not_run: beginnings of the commands that are not run.
    """

    def __init__(self, folder: Path, not_run: Iterable[str] = ()) -> None:
        self.outputs: list[str] = []
        """What each command or program printed on standard output, in order."""
        self.skipped: list[str] = []
        """The commands that were not run."""
        self._folder = folder / "work"
        self._folder.mkdir()
        self._not_run = tuple(not_run)
        self._port = str(free_port())
        (folder / "home").mkdir()
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(folder / "home"),
            "GRADMEDIC_PORT": self._port,
            "GRADMEDIC_BASE_URL": f"http://127.0.0.1:{self._port}",
            "OMP_NUM_THREADS": "1",
        }
        self._service: subprocess.Popen[str] | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop_service()

    def follow(self, document: Path) -> None:
        """Carry out every shell and Python block of a document, in order; fail at the first that does not succeed."""
        for block in fenced_blocks(document):
            if block.language == "python":
                self._run_program(block, f"{document.name}:{block.line}")
            elif block.language in SHELLS:
                for command in block.commands():
                    self._run_command(command, f"{document.name}:{block.line}")

    def _run_program(self, block: Block, place: str) -> None:
        named = _FILE.search(block.before.rpartition("\n\n")[2])
        file = self._folder / (named[1] if named else "program.py")
        file.write_text(block.text)
        if named is None:
            self._run([sys.executable, file.name], 0, place)

    def _run_command(self, command: str, place: str) -> None:
        if command.startswith(self._not_run):
            self.skipped.append(command)
            return
        command = command.replace(_DOCUMENTED_PORT, self._port)
        if command.startswith("gradmedic serve"):
            self._start_service(command, place)
            return
        code = _EXIT_CODE.search(command)
        self._run(["bash", "-c", command], int(code[1]) if code else 0, f"{place}: {command}")

    def _run(self, arguments: list[str], code: int, place: str) -> None:
        with subprocess.Popen(
            arguments,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, errors = process.communicate(timeout=COMMAND_SECONDS)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # with the service of a demo
                raise
        assert process.returncode == code, f"{place}\n{output}\n{errors}"
        self.outputs.append(output)

    def _start_service(self, command: str, place: str) -> None:
        """Start a service in the first terminal, where an earlier one is stopped; wait until it answers."""
        self._stop_service()
        log = self._folder.parent / "serve.log"
        with log.open("w") as errors:
            self._service = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self._folder,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._service.stdout is not None
        first = self._service.stdout.readline()
        assert first.startswith("gradmedic is at "), f"{place}: {command}\n{first}\n{log.read_text()}"
        self.outputs.append(first)

    def _stop_service(self) -> None:
        """Press Ctrl+C in the first terminal."""
        if self._service is None:
            return
        self._service.send_signal(signal.SIGINT)
        self._service.communicate(timeout=PATIENCE)
        self._service = None
