"""The database's file, the files beside it and its folder are readable by their owner alone."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gradmedic_service.database.private_files import create_private_file, create_private_folder

USE_A_DATABASE = """
import sys
from pydantic import SecretStr
from sqlalchemy import text
from gradmedic_service.database import schema
from gradmedic_service.database.engine import Database
from gradmedic_service.settings import Settings

url = sys.argv[1]
schema.prepare(url)
database = Database(Settings(database_url=SecretStr(url)))
with database.writing() as session:
    session.execute(text("CREATE TABLE written (number INTEGER)"))
print("written", flush=True)
sys.stdin.read()
"""
"""A program that keeps a database open until its input ends. SQLite removes the files beside it whenever it is closed,
so they are there for certain after the line that it prints."""


def modes(folder: Path) -> dict[str, int]:
    """Return the modes of everything in a folder, by path."""
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}


def use_a_database(file: Path, umask: int, folder: Path) -> dict[str, int]:
    """Create and use a database under a umask; return the modes in a folder while it is in use."""
    with subprocess.Popen(
        [sys.executable, "-c", USE_A_DATABASE, f"sqlite:///{file}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        umask=umask,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = modes(folder)
        process.communicate()
        assert process.returncode == 0
    return found


@pytest.mark.parametrize("umask", [0, 0o022, 0o777], ids=oct)
def test_a_new_database(tmp_path: Path, umask: int) -> None:
    """Whatever the umask, only the owner may read the file, the files beside it, and the folders that were made."""
    found = use_a_database(tmp_path / "new" / ".gradmedic" / "gradmedic.db", umask, tmp_path)
    folder, name = "new/.gradmedic", "gradmedic.db"
    files = {f"{folder}/{name}{end}": 0o600 for end in ("", "-wal", "-shm")}
    assert found == {"new": 0o700, folder: 0o700, **files}


def test_an_existing_database(tmp_path: Path) -> None:
    """A file and a folder that exist keep their modes, which an operator may have chosen."""
    create_private_folder(tmp_path / "open")
    (tmp_path / "open").chmod(0o755)
    create_private_file(tmp_path / "open" / "a.db")
    (tmp_path / "open" / "a.db").chmod(0o640)
    found = use_a_database(tmp_path / "open" / "a.db", 0, tmp_path)
    assert (found["open"], found["open/a.db"], found["open/a.db-wal"]) == (0o755, 0o640, 0o640)


def test_a_link_to_a_file_that_does_not_exist(tmp_path: Path) -> None:
    """A link to a missing file leads to a new file of the owner alone."""
    (tmp_path / "a.db").symlink_to(tmp_path / "target.db")
    create_private_file(tmp_path / "a.db")
    assert modes(tmp_path)["target.db"] == 0o600
