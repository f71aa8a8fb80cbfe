"""The settings of an operator: environment variables `GRADMEDIC_*`, which `create_app`'s caller reads once."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gradmedic.protocol.guards import MOST_GUARD_ACTIONS
from gradmedic.protocol.service import WIRE_VERSIONS, Limits
from gradmedic_service.access.browsers import LOOPBACK_HOSTS
from gradmedic_service.alerts.addresses import is_mailbox
from gradmedic_service.alerts.mail import MailServer
from gradmedic_service.alerts.peers import IpNetwork, parse_networks
from gradmedic_service.alerts.secrets import HOW_TO_MAKE_A_KEY, MIN_SECRET_KEY_LENGTH, secret_keys
from gradmedic_service.http.addresses import is_loopback

DEFAULT_PORT = 8642
LOCAL_DATABASE = Path(".gradmedic") / "gradmedic.db"
"""The database of version 0.1, below the working directory. Where it exists, it is still used."""


def default_database_url() -> str:
    """Return the URL of the database where none is configured.

    It is `LOCAL_DATABASE` where that file exists, else `gradmedic/gradmedic.db` in the user's folder of data:
    `$XDG_DATA_HOME`, or `~/.local/share` (XDG Base Directory Specification 0.8).

    Raises ValueError if the user has no home directory.
    """
    if LOCAL_DATABASE.is_file():
        return _sqlite_url(LOCAL_DATABASE.absolute())
    given = Path(os.environ.get("XDG_DATA_HOME", ""))
    try:
        data = given if given.is_absolute() else Path.home() / ".local" / "share"  # the specification ignores others
    except RuntimeError:
        raise ValueError("the user has no home directory: name the database with GRADMEDIC_DATABASE_URL") from None
    return _sqlite_url(data / "gradmedic" / "gradmedic.db")


def _sqlite_url(path: Path) -> str:
    return f"sqlite:///{quote(str(path), safe='/ ')}"


class Settings(BaseSettings):
    """Every setting with its default. The field `port`, for example, is the variable `GRADMEDIC_PORT`."""

    model_config = SettingsConfigDict(env_prefix="GRADMEDIC_", frozen=True, use_attribute_docstrings=True)

    database_url: SecretStr = Field(default_factory=lambda: SecretStr(default_database_url()))
    """`sqlite:///relative/path.db`, `sqlite:////absolute/path.db` or `postgresql://user:password@host/name`. By default
    a SQLite file in `~/.local/share/gradmedic`, or `.gradmedic/gradmedic.db` where that file exists."""
    database_pool_size: int = Field(default=20, ge=1)
    """Largest number of connections that a process opens."""
    database_timeout: float = Field(default=15.0, gt=0)
    """Seconds that a request waits for a connection or a lock before the answer is 503."""
    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    """Port to listen at; 0 for a free one."""
    require_auth: bool = False
    """Require an API key from this machine too. Other machines always need one."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Names under which the service answers, beside the names of this machine; separated by commas. If it is empty and
    API keys are required, the service answers under every name."""
    behind_proxy: bool = False
    """Trust the `X-Forwarded-For` and `X-Forwarded-Proto` headers of a proxy. Its requests come from other machines and
    need API keys."""
    ssl_certfile: Path | None = None
    """File of the certificate chain in PEM; with it the service serves HTTPS."""
    ssl_keyfile: Path | None = None
    """File of the private key in PEM, if the certificate's file does not contain the key."""
    shutdown_timeout: int = Field(default=20, ge=0)
    """Seconds that running requests have to end when the service stops."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""
    log_format: Literal["console", "json"] = "console"
    """Lines for people, or JSON objects for programs."""

    header_timeout: float = Field(default=20.0, gt=0)
    """Seconds in which the headers of a request must arrive, and the TLS handshake of a connection."""
    request_timeout: float = Field(default=60.0, gt=0)
    """Seconds in which a whole request must arrive, headers and body."""
    write_timeout: float = Field(default=30.0, gt=0)
    """Seconds after which a connection is closed whose client reads less than 1 KiB a second of its answer."""
    max_connections: int = Field(default=4096, ge=1)
    """Connections that a process keeps open. They are fewer where the operating system allows fewer open files."""
    max_connections_per_address: int = Field(default=512, ge=1)
    """Connections of one address that never carried an authenticated request. It does not hold for trusted proxies."""

    max_body_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Largest body of a request, as sent and after decompression."""
    max_arrived_bytes: int = Field(default=128 * 2**20, ge=1024)
    """Bytes of bodies that have arrived and whose requests are not answered. One API key holds at most half of them."""
    max_answer_bytes: int = Field(default=256 * 2**20, ge=1024)
    """Bytes of memory for large answers that are being built or read. One API key holds at most half of them. A million
    points of a series need 92 MiB."""
    max_concurrent_requests: int = Field(default=20, ge=1)
    """API requests that are served at the same time; others wait for at most a second. One API key has at most three
    quarters of these places."""
    max_waiting_requests: int = Field(default=200, ge=0)
    """API requests that wait; more of them get 503."""
    max_streams: int = Field(default=256, ge=0)
    """Event streams that a process keeps open. More of them get 503, and pages then poll."""
    max_requests_per_minute: int = Field(default=12_000, ge=1)
    """Requests that one API key may send to one process in a minute; more of them get 429."""
    max_runs_per_project: int = Field(default=100_000, ge=1)
    """Runs of one project."""
    max_layers: int = Field(default=10_000, ge=1)
    """Layers of one run."""
    max_steps_per_block: int = Field(default=10_000, ge=1)
    """Steps of one block."""
    max_values_per_block: int = Field(default=4_000_000, ge=1)
    """Values of one block: sampled steps x layers x statistics."""
    max_metrics: int = Field(default=256, ge=1)
    """Metrics of one run."""
    max_name_length: int = Field(default=512, ge=1, le=512)
    """Characters of a name. 512 of four bytes each are the most that an index entry of PostgreSQL holds."""
    max_notes_length: int = Field(default=20_000, ge=1)
    """Characters of a run's notes."""
    max_tags: int = Field(default=64, ge=1)
    """Tags of one run."""
    max_config_bytes: int = Field(default=256 * 2**10, ge=2)
    """Bytes of a run's config as JSON."""
    max_config_depth: int = Field(default=32, ge=1)
    """Nesting of a run's config."""
    max_points: int = Field(default=10_000, ge=1)
    """Points of one series in an answer."""
    max_results: int = Field(default=1_000, ge=1, le=1_000)
    """Items in a page of a list."""
    max_rerun_steps: int = Field(default=1_000_000, ge=1)
    """Steps of one trial."""
    max_rerun_trials: int = Field(default=200, ge=1)
    """Trials of one rerun."""
    max_trainables: int = Field(default=1_000, ge=1)
    """Trainables of one API key."""
    trial_lease: float = Field(default=60.0, gt=0)
    """Seconds without a heartbeat after which another worker gets a trial."""
    worker_patience: float = Field(default=86_400.0, gt=0)
    """Seconds that a rerun waits for a worker that offers its trainable."""
    due_work_interval: float = Field(default=1.0, gt=0)
    """Seconds between two runs of the due work: lost trials, reruns without a worker, silent runs, alerts."""

    secret_key: SecretStr | None = None
    """Key that encrypts the secrets of alert destinations, at least 32 characters. Several keys are separated by
    commas: the first one encrypts, each one decrypts. Without it, destinations that have a secret are refused."""
    public_url: str | None = None
    """URL under which people open the service, for the links in alerts. By default `http://` or `https://` with `host`
    and `port`."""
    smtp_url: SecretStr | None = None
    """Mail server for alerts: `smtp://user:password@host:587` uses STARTTLS, `smtps://host:465` uses TLS, and
    `smtp://host:25?tls=none` neither, without a password."""
    mail_from: str | None = None
    """Address of the sender of alerts by mail."""
    webhook_allowed_addresses: Annotated[tuple[IpNetwork, ...], NoDecode] = ()
    """Private networks that webhooks may reach, separated by commas: `10.1.0.0/16, fd12::/32`. Without it, webhooks
    reach public addresses only; and this machine, if no API key is required."""
    max_alert_destinations: int = Field(default=20, ge=1)
    """Alert destinations of one project."""

    @field_validator("secret_key", "public_url", "smtp_url", "mail_from", mode="before")
    @classmethod
    def _unset_empty(cls, value: object) -> object:
        return None if value == "" else value  # as docker compose passes on a variable that is not set

    @field_validator("secret_key")
    @classmethod
    def _check_secret_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and min(map(len, secret_keys(value)), default=0) < MIN_SECRET_KEY_LENGTH:
            raise ValueError(f"each key must have at least {MIN_SECRET_KEY_LENGTH} characters; {HOW_TO_MAKE_A_KEY}")
        return value

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be like https://gradmedic.example.com")
        return value.rstrip("/")

    @field_validator("mail_from")
    @classmethod
    def _check_mail_from(cls, value: str | None) -> str | None:
        if value is not None and not is_mailbox(value):
            raise ValueError("must be the address of a mailbox, like gradmedic@example.com")
        return value

    @field_validator("webhook_allowed_addresses", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        return parse_networks(value) if isinstance(value, str) else value

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_certificate(self) -> Settings:
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        return self

    @model_validator(mode="after")
    def _check_mail(self) -> Settings:
        if self.smtp_url is not None:
            MailServer.from_url(self.smtp_url.get_secret_value())
            if self.mail_from is None:
                raise ValueError("smtp_url needs mail_from")
        return self

    @property
    def link_base(self) -> str:
        """The URL in front of the path of a page, without a slash at its end."""
        if self.public_url is not None:
            return self.public_url
        scheme = "http" if self.ssl_certfile is None else "https"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"

    @property
    def requires_keys(self) -> bool:
        """Whether a request without an API key is refused. That is so wherever another machine may connect."""
        return self.require_auth or self.behind_proxy or not is_loopback(self.host)

    @property
    def accepted_hosts(self) -> tuple[str, ...] | None:
        """Names under which the service answers; None for every name.

        Where no key is required, the service must not answer under a foreign name that resolves to this machine (DNS
        rebinding).
        """
        if self.requires_keys and not self.allowed_hosts:
            return None
        own = f"[{self.host}]" if ":" in self.host else self.host
        return tuple(dict.fromkeys((*LOOPBACK_HOSTS, own, *self.allowed_hosts)))

    def limits(self) -> Limits:
        """Return the limits that `GET /limits` publishes."""
        published = {field.name for field in fields(Limits)} & set(type(self).model_fields)
        return Limits(
            wire_versions=list(WIRE_VERSIONS),
            max_guard_actions=MOST_GUARD_ACTIONS,
            **{name: getattr(self, name) for name in published},
        )
