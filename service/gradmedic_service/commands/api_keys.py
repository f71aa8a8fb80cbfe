"""What `gradmedic api-key` does, on the database itself: who can reach that needs no key to make one."""

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
from gradmedic_service.access.schemas import check_create
from gradmedic_service.access.secrets import digest_of, is_secret, new_secret
from gradmedic_service.commands.entry_points import EXIT_FAILURE
from gradmedic_service.commands.serving import prepare_database, refuse, with_reason
from gradmedic_service.database import models
from gradmedic_service.database.engine import Database
from gradmedic_service.errors import ServiceError
from gradmedic_service.settings import Settings

PAGE = 500


def create(settings: Settings, wanted: ApiKeyCreate, file: Path | None, *, as_json: bool) -> int:
    """Make a key and print its secret, or make the one whose secret a file holds; return the exit status.

    A file that is not there, or is empty, is written. With the same file again the key is there already, which is well
    if it is what is wanted now, and an error otherwise.
    """
    try:
        check_create(wanted, settings.limits())
        secret, is_new = (new_secret(), True) if file is None else _secret_in(file)
        prepare_database(settings.database_url.get_secret_value())
        database = Database(settings)
        try:
            with database.writing() as session:
                found = repository.find_by_digest(session, digest_of(secret))
                if found is not None:
                    difference = _difference(found, wanted)
                    if difference is not None:
                        return refuse(f"the key in {file} exists, and {difference}; use another file", EXIT_FAILURE)
                    print(f"The key {found.prefix}... in {file} exists already.", file=sys.stderr)
                    return 0
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
                shown = asdict(service.on_the_wire(key))
        finally:
            database.close()
    except ServiceError as error:
        return refuse(with_reason(error), EXIT_FAILURE)
    except OSError as error:
        return refuse(f"the key cannot be made: {error}", EXIT_FAILURE)
    if as_json:
        print(to_json(shown if file is not None else shown | {"secret": secret}).decode())
        return 0
    reach = "every project" if key.project is None else f"project {key.project!r}"
    until = "" if key.expires_at is None else f" until {_time(key.expires_at)}"
    print(f"Made the key {key.name!r} for {reach}: {', '.join(key.scopes)}{until}.", file=sys.stderr)
    if file is None:
        print("Its secret follows and is shown this once; hand it over as GRADMEDIC_API_KEY.", file=sys.stderr)
        print(secret)
    else:
        print(f"Its secret is in {file}.", file=sys.stderr)
    return 0


def show(settings: Settings, project: str | None, *, as_json: bool) -> int:
    """Print every key, newest first, without secrets; return the exit status."""
    try:
        database = _open(settings)
    except ServiceError as error:
        return refuse(with_reason(error), EXIT_FAILURE)
    try:
        keys = _every_key(database, project)
    except ServiceError as error:
        return refuse(with_reason(error), EXIT_FAILURE)
    finally:
        database.close()
    if as_json:
        for key in keys:
            print(to_json(key).decode())
        return 0
    if not keys:
        print("no keys")
        return 0
    rows = [("KEY", "NAME", "PROJECT", "SCOPES", "CREATED", "LAST USED", "STATE")]
    rows += [
        (
            key.prefix,
            key.name,
            ("(all)" if key.project is None else key.project) + ("" if key.run_id is None else f" run {key.run_id}"),
            ",".join(key.scopes),
            _time(key.created_at),
            "never" if key.last_used_at is None else _time(key.last_used_at),
            _state(key),
        )
        for key in keys
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def revoke(settings: Settings, reference: str) -> int:
    """Revoke the key that an id, the beginning of a secret, or a name means; return the exit status."""
    try:
        database = _open(settings)
    except ServiceError as error:
        return refuse(with_reason(error), EXIT_FAILURE)
    try:
        matching = [key for key in _every_key(database, None) if _is_meant(key, reference)]
        if len(matching) != 1:
            which = "no key has" if not matching else f"{len(matching)} keys have"
            return refuse(f"{which} this id, name, or secret beginning so: {reference[:20]!r}", EXIT_FAILURE)
        with database.writing() as session:
            key = service.revoke_key(session, OPERATOR, matching[0].id)
    except ServiceError as error:
        return refuse(with_reason(error), EXIT_FAILURE)
    finally:
        database.close()
    print(f"Revoked {key.name!r} ({key.prefix}...). Services that are running refuse it within five seconds.")
    return 0


def _open(settings: Settings) -> Database:
    prepare_database(settings.database_url.get_secret_value())
    return Database(settings)


def _every_key(database: Database, project: str | None) -> list[ApiKey]:
    with database.reading() as session:
        found: list[models.ApiKey] = []
        while not found or len(found) % PAGE == 0:
            after = found[-1].id if found else None
            page = repository.page(session, models.ApiKey, project=project, after=after, size=PAGE)
            if not page:
                break
            found += page
        return [service.on_the_wire(key) for key in found]


def _is_meant(key: ApiKey, reference: str) -> bool:
    is_prefix = len(reference) >= len(key.prefix) and reference.startswith(key.prefix)
    return reference in (str(key.id), key.name) or is_prefix


def _secret_in(file: Path) -> tuple[str, bool]:
    """Return the secret that a file holds, or a new one for it; the flag says whether it is new."""
    secret = file.read_text().strip() if file.exists() else ""
    if not secret:
        return new_secret(), True
    if not is_secret(secret):
        raise OSError(
            f"{file} does not hold a secret of gradmedic's, which is `gradmedic_` and 43 characters of URL-safe "
            "base64; leave the file out to have one made"
        )
    return secret, False


def _write_secret(file: Path, secret: str) -> None:
    """Write a file that its owner alone may read."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        os.fchmod(descriptor, 0o600)
        stream.write(f"{secret}\n")


def _difference(found: repository.StoredKey, wanted: ApiKeyCreate) -> str | None:
    if found.revoked_at is not None:
        return f"was revoked at {_time(found.revoked_at)}"
    if found.project != wanted.project or found.run_id != wanted.run_id:
        return "is for another project or run"
    if set(found.scopes) != set(wanted.scopes):
        return f"has the scopes {', '.join(found.scopes)}"
    if found.expires_at is not None and found.expires_at <= datetime.now(UTC):
        return f"expired at {_time(found.expires_at)}"
    return None


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return f"revoked {_time(key.revoked_at)}"
    if key.expires_at is None:
        return "active"
    word = "expired" if key.expires_at <= datetime.now(UTC) else "until"
    return f"{word} {_time(key.expires_at)}"


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%MZ}"
