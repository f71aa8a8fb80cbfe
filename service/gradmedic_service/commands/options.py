"""Parts that the commands share: the option `--database-url`, the settings, and the preparation of the database."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from gradmedic_service.commands.errors import EXIT_USAGE, CommandError

if TYPE_CHECKING:
    from pydantic import ValidationError

    from gradmedic_service.settings import Settings


def add_database_option(parser: argparse.ArgumentParser) -> None:
    """Declare `--database-url`."""
    parser.add_argument(
        "--database-url",
        metavar="URL",
        help="sqlite:///path/to/file.db or postgresql://user:password@host/name "
        "(default: GRADMEDIC_DATABASE_URL, else .gradmedic/gradmedic.db where it exists, else a file in "
        "~/.local/share/gradmedic)",
    )


def read_settings(**options: Any) -> Settings:
    """Return the settings of options and environment variables; an option that is None was not given.

    Raises CommandError for values that are not valid.
    """
    from pydantic import ValidationError

    from gradmedic_service.database.urls import parse_url
    from gradmedic_service.settings import Settings

    try:
        settings = Settings(**{name: value for name, value in options.items() if value is not None})
        parse_url(settings.database_url.get_secret_value())
    except ValidationError as error:
        raise CommandError("\n".join(_problems(error)), EXIT_USAGE) from None
    except ValueError as error:
        raise CommandError(str(error), EXIT_USAGE) from None
    return settings


def prepare_database(settings: Settings) -> None:
    """Create and migrate a SQLite database, or check the schema of a PostgreSQL database.

    Raises DatabaseNotMigrated, and CommandError if the database's folder cannot be created.
    """
    from gradmedic_service.database import schema

    try:
        schema.prepare(settings.database_url.get_secret_value())
    except OSError as error:
        raise CommandError(f"the database cannot be prepared: {error}") from None


def _problems(error: ValidationError) -> list[str]:
    """Return what is wrong with the settings, each problem under its variable's name."""
    problems = []
    for problem in error.errors(include_url=False, include_input=False):
        name = f"GRADMEDIC_{'_'.join(map(str, problem['loc'])).upper()}: " if problem["loc"] else ""
        problems.append(f"{name}{problem['msg'].removeprefix('Value error, ')}")
    return problems
