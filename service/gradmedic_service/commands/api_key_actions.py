"""The actions of `gradmedic api-key`. They use the database directly, so people who can open it need no key."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from gradmedic.protocol.access import ApiKey, ApiKeyCreate
from gradmedic.protocol.encoding import to_json
from gradmedic_service.access import repository, service
from gradmedic_service.access.principal import OPERATOR
from gradmedic_service.access.secrets import hash_secret, is_secret, new_secret
from gradmedic_service.commands.errors import CommandError
from gradmedic_service.database import models
from gradmedic_service.database.engine import Database

KEYS_PER_QUERY = 500
COLUMNS = ("KEY", "NAME", "PROJECT", "SCOPES", "CREATED", "LAST USED", "STATE")


def create_key(database: Database, wanted: ApiKeyCreate, file: Path | None, *, as_json: bool) -> None:
    """Make a key and print its secret, or make the key whose secret a file holds.

    A file that is missing or empty is written. If the key of the file exists already, nothing changes.

    Raises CommandError if that key differs from the wanted one, or if the file cannot be used.
    """
    try:
        secret, is_new = (new_secret(), True) if file is None else _read_secret(file)
        with database.writing() as session:
            existing = repository.find_by_digest(session, hash_secret(secret))
            if existing is not None:
                difference = _difference(existing, wanted)
                if difference is not None:
                    raise CommandError(f"the key in {file} exists, and {difference}; use another file")
                print(f"The key {existing.prefix}... in {file} exists already.", file=sys.stderr)
                return
            key, _ = service.create_key(
                session,
                project=wanted.project,
                name=wanted.name,
                scopes=wanted.scopes,
                run_id=wanted.run_id,
                expires_at=wanted.expires_at,
                secret=secret,
                by=OPERATOR,
            )
            if file is not None and is_new:
                _write_secret(file, secret)
            public = asdict(service.to_api_key(key))
    except OSError as error:
        raise CommandError(f"the key cannot be made: {error}") from None
    if as_json:
        print(to_json(public if file is not None else public | {"secret": secret}).decode())
        return
    reach = "every project" if key.project is None else f"project {key.project!r}"
    until = "" if key.expires_at is None else f" until {_format_time(key.expires_at)}"
    print(f"Made the key {key.name!r} for {reach}: {', '.join(key.scopes)}{until}.", file=sys.stderr)
    if file is None:
        print("Its secret follows and is shown only once; pass it on as GRADMEDIC_API_KEY.", file=sys.stderr)
        print(secret)
    else:
        print(f"Its secret is in {file}.", file=sys.stderr)


def print_keys(database: Database, project: str | None, *, as_json: bool) -> None:
    """Print every key, newest first, without its secret."""
    keys = _read_keys(database, project)
    if as_json:
        for key in keys:
            print(to_json(key).decode())
        return
    if not keys:
        print("no keys")
        return
    rows = [COLUMNS, *(_row(key) for key in keys)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def revoke_key(database: Database, reference: str) -> None:
    """Revoke the key with an id, a name, or a secret that begins like the reference.

    Raises CommandError unless exactly one key matches.
    """
    matching = [key for key in _read_keys(database, None) if _matches(key, reference)]
    if len(matching) != 1:
        count = "no key has" if not matching else f"{len(matching)} keys have"
        raise CommandError(f"{count} this id or name, or a secret that begins like this: {reference[:20]!r}")
    with database.writing() as session:
        key = service.revoke_key(session, OPERATOR, matching[0].id)
    print(f"Revoked {key.name!r} ({key.prefix}...). Services that are running refuse it within two seconds.")


def _read_keys(database: Database, project: str | None) -> list[ApiKey]:
    with database.reading() as session:
        keys: list[models.ApiKey] = []
        while not keys or len(keys) % KEYS_PER_QUERY == 0:
            after = keys[-1].id if keys else None
            page = repository.list_newest(session, models.ApiKey, project=project, after=after, size=KEYS_PER_QUERY)
            if not page:
                break
            keys += page
        return [service.to_api_key(key) for key in keys]


def _row(key: ApiKey) -> tuple[str, ...]:
    project = "(all)" if key.project is None else key.project
    return (
        key.prefix,
        key.name,
        project if key.run_id is None else f"{project} run {key.run_id}",
        ",".join(key.scopes),
        _format_time(key.created_at),
        "never" if key.last_used_at is None else _format_time(key.last_used_at),
        _state(key),
    )


def _matches(key: ApiKey, reference: str) -> bool:
    is_secret_prefix = len(reference) >= len(key.prefix) and reference.startswith(key.prefix)
    return reference in (str(key.id), key.name) or is_secret_prefix


def _read_secret(file: Path) -> tuple[str, bool]:
    """Return the secret in a file, or a new one for it, and whether the secret is new.

    Raises OSError if the file holds something else.
    """
    secret = file.read_text().strip() if file.exists() else ""
    if not secret:
        return new_secret(), True
    if not is_secret(secret):
        raise OSError(
            f"{file} does not hold a secret of gradmedic, which is `gradmedic_` and 43 characters of URL-safe base64; "
            "remove the file, and the command writes a new secret to it"
        )
    return secret, False


def _write_secret(file: Path, secret: str) -> None:
    """Write a file that only its owner may read."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        os.fchmod(descriptor, 0o600)
        stream.write(f"{secret}\n")


def _difference(existing: repository.StoredKey, wanted: ApiKeyCreate) -> str | None:
    """Return how an existing key differs from the wanted one, None where it does not."""
    if existing.revoked_at is not None:
        return f"was revoked at {_format_time(existing.revoked_at)}"
    if existing.project != wanted.project or existing.run_id != wanted.run_id:
        return "is for another project or run"
    if set(existing.scopes) != set(wanted.scopes):
        return f"has the scopes {', '.join(existing.scopes)}"
    if existing.expires_at is not None and existing.expires_at <= datetime.now(UTC):
        return f"expired at {_format_time(existing.expires_at)}"
    return None


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_format_time(key.revoked_at)}"
    if key.expires_at is None:
        return "active"
    word = "expired" if key.expires_at <= datetime.now(UTC) else "until"
    return f"{word} {_format_time(key.expires_at)}"


def _format_time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%MZ}"
