"""The container files agree with the code, as far as that shows without a container engine."""

from __future__ import annotations

import argparse
import re
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

from gradmedic.configuration import resolve_connection
from gradmedic_service.settings import DEFAULT_PORT, Settings
from gradmedic_worker.configuration import read_configuration

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "service" / "Dockerfile").read_text()


@pytest.fixture
def compose() -> dict[str, Any]:
    """The composition."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content


def test_services_wait_for_each_other(compose: dict[str, Any]) -> None:
    """The API starts after there is a key, the key after the migration, and that after the database is healthy."""
    services = compose["services"]
    assert set(services) == {"db", "migrate", "key", "api", "worker-key", "worker", "worker-gpu"}
    assert services["migrate"]["depends_on"] == {"db": {"condition": "service_healthy"}}
    assert services["key"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert services["api"]["depends_on"] == {"key": {"condition": "service_completed_successfully"}}
    for name in ("worker", "worker-gpu"):
        assert services[name]["depends_on"] == {
            "worker-key": {"condition": "service_completed_successfully"},
            "api": {"condition": "service_healthy"},
        }
    for name in ("db", "api"):
        assert services[name]["healthcheck"]["test"][0] == "CMD"


def test_commands_exist(compose: dict[str, Any]) -> None:
    """Every command is one that the command line takes."""
    commands = {entry.name: entry for entry in entry_points(group="gradmedic.commands")}
    started = [compose["services"][name]["command"] for name in ("migrate", "key", "api", "worker-key", "worker")]
    started.append(re.findall(r'"([^"]+)"', DOCKERFILE.splitlines()[-1]))
    for program, name, *arguments in started:
        assert program == "gradmedic"
        parser = argparse.ArgumentParser(exit_on_error=False)
        commands[name].load().add_arguments(parser)
        parser.parse_args(arguments)


def test_variables_are_settings(compose: dict[str, Any]) -> None:
    """Every GRADMEDIC_ variable is a setting of the service; the worker, which has none, is told where that is."""
    for name in ("worker", "worker-gpu"):
        told = compose["services"].pop(name)["environment"]
        assert told.keys() == {"GRADMEDIC_BASE_URL"}
        assert resolve_connection(told["GRADMEDIC_BASE_URL"]).base_url == f"http://api:{DEFAULT_PORT}"
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
    assert "--owner=gradmedic --mode=0700 /keys /worker-keys\n" in DOCKERFILE


def test_the_worker_has_a_key_of_its_own_and_no_other(compose: dict[str, Any]) -> None:
    """It reads the key that may work and nothing else, sees neither the database nor the first key, and no source."""
    services = compose["services"]
    assert services["worker-key"]["command"][-2:] == ["--from-file", "/worker-keys/worker"]
    assert services["worker-key"]["command"].count("--scope") == 1
    assert services["worker-key"]["volumes"] == ["worker-keys:/worker-keys"]
    for name in ("worker", "worker-gpu"):
        assert services[name]["volumes"] == ["worker-keys:/worker-keys:ro", "${TRAINABLES:-./examples}:/trainables:ro"]
        assert services[name]["command"][-2:] == ["--api-key-file", "/worker-keys/worker"]
        assert "ports" not in services[name]
    assert "worker-keys" in compose["volumes"]


def test_the_workers_trainables_are_there(compose: dict[str, Any]) -> None:
    """Without being told otherwise it offers the examples, whose image has what they import."""
    folder, _, place = "./examples:/trainables".partition(":")
    assert compose["services"]["worker"]["command"][3] == f"{place}/worker.toml"
    assert read_configuration(ROOT / folder / "worker.toml").trainables
    assert compose["services"]["worker"]["build"]["args"] == {"EXTRAS": "demo"}
    assert "ARG EXTRAS=service\n" in DOCKERFILE
    assert '".[$EXTRAS]"' in DOCKERFILE
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "gradmedic[service,torch]" in extras["demo"]


def test_gpus_are_reserved_where_they_are_asked_for(compose: dict[str, Any]) -> None:
    """Nothing of workers starts unasked; the profile `gpu` is the same worker, with the machine's GPUs."""
    services = compose["services"]
    profiles = {name: one["profiles"] for name, one in services.items() if "profiles" in one}
    assert profiles == {"worker-key": ["worker", "gpu"], "worker": ["worker"], "worker-gpu": ["gpu"]}
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    plain = {key: value for key, value in services["worker-gpu"].items() if key not in ("deploy", "profiles")}
    assert plain == {key: value for key, value in services["worker"].items() if key != "profiles"}


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
    for name in ("migrate", "key", "api", "worker-key", "worker"):
        build = compose["services"][name]["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).is_file()
