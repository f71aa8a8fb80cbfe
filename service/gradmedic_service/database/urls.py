"""Database URLs: parse them, print them without a password, and prepare the folder of a SQLite file."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import exc, make_url
from sqlalchemy.engine import URL

from gradmedic_service.database.private_files import create_private_folder


def parse_url(text: str) -> URL:
    """Return the URL with its driver. Raises ValueError for a URL that is invalid or not supported."""
    try:
        url = make_url(text)
    except exc.ArgumentError:
        raise ValueError("the database URL is invalid: expected sqlite:///... or postgresql://...") from None
    backend = url.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ValueError(f"{backend} is not supported: use sqlite:///... or postgresql://...")
    if url.database in (None, "", ":memory:"):
        raise ValueError("a SQLite database needs a file: sqlite:///path/to/file.db")
    return url.set(drivername="sqlite")


def is_sqlite(text: str) -> bool:
    """Whether the URL names a SQLite file. Raises ValueError as `parse_url`."""
    return parse_url(text).get_backend_name() == "sqlite"


def printable_url(text: str) -> str:
    """Return the URL with its password hidden."""
    return parse_url(text).render_as_string(hide_password=True)


def create_parent_folder(text: str) -> None:
    """Create the folder of a SQLite file, if the URL names one; only its owner may read it. Raises OSError."""
    database = parse_url(text).database
    if is_sqlite(text) and database is not None:
        create_private_folder(Path(database).parent)


def is_missing(text: str) -> bool:
    """Whether the URL names a SQLite file that does not exist. Connecting would create the file."""
    database = parse_url(text).database
    return is_sqlite(text) and database is not None and not Path(database).exists()
