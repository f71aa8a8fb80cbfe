"""A real service for the client's tests, and a proxy that makes it fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.faulty_proxy import FaultyProxy

import gradmedic


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the machine's GRADMEDIC_* variables, and keep unsent steps in a folder of the test."""
    for name in [name for name in os.environ if name.startswith("GRADMEDIC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GRADMEDIC_SILENT", "true")
    monkeypatch.setenv("GRADMEDIC_DIR", str(tmp_path / "unsent"))


@pytest.fixture(scope="session")
def service_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running service with a database of its own."""
    directory = tmp_path_factory.mktemp("service")
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(Path(sys.executable).with_name("gradmedic"), "serve", "--port", "0"),
                *("--database-url", f"sqlite:///{directory / 'gradmedic.db'}"),
            ],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("GRADMEDIC_")}
            | {"PYTHONUNBUFFERED": "1", "GRADMEDIC_SECRET_KEY": 43 * "k"},
        )
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if "gradmedic is at " in line:
                break
        else:
            pytest.fail(f"the service did not start: {log.read_text()}")
        yield line.split("gradmedic is at ")[1].split()[0]
        process.terminate()
        process.stdout.read()
    process.wait(30)


@pytest.fixture
def proxy(service_url: str) -> Iterator[FaultyProxy]:
    """The service behind a proxy that can fail."""
    with FaultyProxy(service_url) as proxy:
        yield proxy


@pytest.fixture
def client(service_url: str) -> Iterator[gradmedic.Client]:
    """A client of the service itself."""
    with gradmedic.Client(service_url) as client:
        yield client


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry after milliseconds instead of half a second."""
    monkeypatch.setattr("gradmedic.transport.http.FIRST_DELAY", 0.01)
    monkeypatch.setattr("gradmedic.transport.http.LONGEST_DELAY", 0.05)
