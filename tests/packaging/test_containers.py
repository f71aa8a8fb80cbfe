"""The container files agree with the code, as far as that shows without a container engine."""

from __future__ import annotations

import argparse
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradmedic_service.settings import DEFAULT_PORT, Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "service" / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The composition."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content


def test_services_wait_for_each_other(compose: dict[str, Any]) -> None:
    """The API starts after there is a key, the key after the migration, and that after the database is healthy."""
    services = compose["services"]
    assert set(services) == {"db", "migrate", "key", "api"}
    assert services["migrate"]["depends_on"] == {"db": {"condition": "service_healthy"}}
    assert services["key"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert services["api"]["depends_on"] == {"key": {"condition": "service_completed_successfully"}}
    for name in ("db", "api"):
        assert services[name]["healthcheck"]["test"][0] == "CMD"


def test_commands_exist(compose: dict[str, Any]) -> None:
    """Every command is one that the command line takes."""
    commands = {entry.name: entry for entry in entry_points(group="gradmedic.commands")}
    started = [compose["services"][name]["command"] for name in ("migrate", "key", "api")]
    started.append(re.findall(r'"([^"]+)"', DOCKERFILE.splitlines()[-1]))
    for program, name, *arguments in started:
        assert program == "gradmedic"
        parser = argparse.ArgumentParser(exit_on_error=False)
        commands[name].load().add_arguments(parser)
        parser.parse_args(arguments)


def test_variables_are_settings(compose: dict[str, Any]) -> None:
    """Every GRADMEDIC_ variable is a setting of the service."""
    variables = set(re.findall(r"GRADMEDIC_[A-Z_]+", DOCKERFILE + str(compose)))
    assert variables
    assert {name.removeprefix("GRADMEDIC_").lower() for name in variables} <= Settings.model_fields.keys()


def test_the_first_key_outlives_the_containers(compose: dict[str, Any]) -> None:
    """The file that the first key is written to lies in a volume that the image's user may write to."""
    key, api = compose["services"]["key"], compose["services"]["api"]
    assert key["command"][-2:] == ["--from-file", "/keys/admin"]
    assert key["volumes"] == ["keys:/keys"]
    assert api["volumes"] == ["keys:/keys:ro"]
    assert "keys" in compose["volumes"]
    assert "--owner=gradmedic --mode=0700 /keys" in DOCKERFILE


def test_only_loopback_is_published(compose: dict[str, Any]) -> None:
    """No port is open to other machines, the database's not even to this one."""
    assert compose["services"]["api"]["ports"] == [f"127.0.0.1:{DEFAULT_PORT}:{DEFAULT_PORT}"]
    assert "ports" not in compose["services"]["db"]
    assert f"EXPOSE {DEFAULT_PORT}" in DOCKERFILE


def test_image_is_built_from_what_there_is(compose: dict[str, Any]) -> None:
    """Everything that the image copies exists, and it does not run as root."""
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M) for word in line.split()[:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    assert "\nUSER gradmedic\n" in DOCKERFILE
    for name in ("migrate", "key", "api"):
        build = compose["services"][name]["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).is_file()
