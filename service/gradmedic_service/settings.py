"""What an operator can set: environment variables `GRADMEDIC_*`, read once where the service is composed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gradmedic.protocol.service import WIRE_VERSIONS, Limits
from gradmedic_service.access.browsers import LOOPBACK_HOSTS
from gradmedic_service.http.addresses import is_loopback

DEFAULT_DATABASE_URL = "sqlite:///.gradmedic/gradmedic.db"
DEFAULT_PORT = 8642


class Settings(BaseSettings):
    """Every setting with its default; the field `port` is the variable `GRADMEDIC_PORT`."""

    model_config = SettingsConfigDict(env_prefix="GRADMEDIC_", frozen=True, use_attribute_docstrings=True)

    database_url: SecretStr = SecretStr(DEFAULT_DATABASE_URL)
    """`sqlite:///relative/path.db`, `sqlite:////absolute/path.db` or `postgresql://user:password@host/name`."""
    database_pool_size: int = Field(default=20, ge=1)
    """Connections held at most."""
    database_timeout: float = Field(default=15.0, gt=0)
    """Seconds to wait for a connection or a lock before the answer is 503."""
    host: str = "127.0.0.1"
    port: int = Field(default=DEFAULT_PORT, ge=0, le=65535)
    """0 takes a free one."""
    require_auth: bool = False
    """Ask for an API key from this machine too. From others it is always asked for."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Names under which the service answers, beside those of this machine; separated by commas. Without any, and with
    keys asked for, it answers under every name."""
    behind_proxy: bool = False
    """Believe the `X-Forwarded-For` and `X-Forwarded-Proto` of a proxy, whose requests are other machines' and need
    keys."""
    ssl_certfile: Path | None = None
    """Certificate chain in PEM; with it, the service speaks HTTPS."""
    ssl_keyfile: Path | None = None
    """Private key in PEM, where the certificate's file does not hold it."""
    shutdown_timeout: int = Field(default=20, ge=0)
    """Seconds that requests under way get when the service is told to stop."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    max_body_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Of a request, as sent and after decompression."""
    max_concurrent_requests: int = Field(default=20, ge=1)
    """Requests worked on at once; others wait for a second at most."""
    max_waiting_requests: int = Field(default=200, ge=0)
    """Requests that wait; further ones get 503."""
    max_streams: int = Field(default=256, ge=0)
    """Event streams that a process holds open at most; beyond them the answer is 503, and pages ask now and then."""
    max_requests_per_minute: int = Field(default=12_000, ge=1)
    """Of one key, to one process; further ones get 429."""
    max_runs_per_project: int = Field(default=100_000, ge=1)
    max_layers: int = Field(default=10_000, ge=1)
    max_steps_per_block: int = Field(default=10_000, ge=1)
    max_values_per_block: int = Field(default=4_000_000, ge=1)
    max_metrics: int = Field(default=256, ge=1)
    max_name_length: int = Field(default=512, ge=1, le=512)
    """Not more than 512: a PostgreSQL index entry holds no more than that at four bytes a character."""
    max_notes_length: int = Field(default=20_000, ge=1)
    max_tags: int = Field(default=64, ge=1)
    max_config_bytes: int = Field(default=256 * 2**10, ge=2)
    max_config_depth: int = Field(default=32, ge=1)
    max_points: int = Field(default=10_000, ge=1)
    max_results: int = Field(default=1_000, ge=1, le=1_000)
    max_rerun_steps: int = Field(default=1_000_000, ge=1)
    """Steps of a trial."""
    max_rerun_trials: int = Field(default=200, ge=1)
    """Trials of a rerun."""
    trial_lease: float = Field(default=15.0, gt=0)
    """Seconds without a heartbeat after which a trial is given to another worker."""
    worker_patience: float = Field(default=86_400.0, gt=0)
    """Seconds that a rerun waits for a worker that offers its trainable."""
    periodic_interval: float = Field(default=1.0, gt=0)
    """Seconds between two runs of the periodic task, which ends expired leases and marks silent runs as stalled."""

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_certificate(self) -> Settings:
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        return self

    @property
    def requires_keys(self) -> bool:
        """Whether a request without an API key is refused: wherever another machine may connect."""
        return self.require_auth or self.behind_proxy or not is_loopback(self.host)

    @property
    def answering_hosts(self) -> tuple[str, ...] | None:
        """Names under which the service answers; None for every one.

        Where no key is asked for, a page whose name was made to point here must not be served.
        """
        if self.requires_keys and not self.allowed_hosts:
            return None
        own = f"[{self.host}]" if ":" in self.host else self.host
        return tuple(dict.fromkeys((*LOOPBACK_HOSTS, own, *self.allowed_hosts)))

    def limits(self) -> Limits:
        """Return what `GET /limits` publishes."""
        return Limits(
            wire_versions=list(WIRE_VERSIONS),
            max_body_bytes=self.max_body_bytes,
            max_requests_per_minute=self.max_requests_per_minute,
            max_runs_per_project=self.max_runs_per_project,
            max_layers=self.max_layers,
            max_steps_per_block=self.max_steps_per_block,
            max_values_per_block=self.max_values_per_block,
            max_metrics=self.max_metrics,
            max_name_length=self.max_name_length,
            max_notes_length=self.max_notes_length,
            max_tags=self.max_tags,
            max_config_bytes=self.max_config_bytes,
            max_config_depth=self.max_config_depth,
            max_points=self.max_points,
            max_results=self.max_results,
            max_rerun_steps=self.max_rerun_steps,
            max_rerun_trials=self.max_rerun_trials,
        )
