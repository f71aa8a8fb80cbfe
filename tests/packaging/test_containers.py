"""The container files agree with the code. These tests need no container engine."""

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
    """The content of `docker-compose.yml`."""
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content


def test_services_start_in_order(compose: dict[str, Any]) -> None:
    """The API starts after the first key is made, the key after the migration, and that after the database."""
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
    """The command line accepts every command of the container files."""
    commands = {entry.name: entry for entry in entry_points(group="gradmedic.commands")}
    started = [compose["services"][name]["command"] for name in ("migrate", "key", "api", "worker-key", "worker")]
    started.append(re.findall(r'"([^"]+)"', DOCKERFILE.splitlines()[-1]))
    for program, name, *arguments in started:
        assert program == "gradmedic"
        parser = argparse.ArgumentParser(exit_on_error=False)
        commands[name].load().add_arguments(parser)
        parser.parse_args(arguments)


def test_variables_are_settings(compose: dict[str, Any]) -> None:
    """Every GRADMEDIC_ variable is a setting of the service. The worker's only variable is the service's URL."""
    for name in ("worker", "worker-gpu"):
        environment = compose["services"].pop(name)["environment"]
        assert environment.keys() == {"GRADMEDIC_BASE_URL"}
        assert resolve_connection(environment["GRADMEDIC_BASE_URL"]).base_url == f"http://api:{DEFAULT_PORT}"
    variables = set(re.findall(r"GRADMEDIC_[A-Z_]+", DOCKERFILE + str(compose)))
    assert variables
    assert {name.removeprefix("GRADMEDIC_").lower() for name in variables} <= Settings.model_fields.keys()


def test_the_first_key_outlives_the_containers(compose: dict[str, Any]) -> None:
    """The file with the first key is in a volume to which the image's user may write."""
    key, api = compose["services"]["key"], compose["services"]["api"]
    assert key["command"][-2:] == ["--from-file", "/keys/admin"]
    assert key["volumes"] == ["keys:/keys"]
    assert api["volumes"] == ["keys:/keys:ro"]
    assert "keys" in compose["volumes"]
    assert "--owner=gradmedic --mode=0700 /keys /worker-keys\n" in DOCKERFILE


def test_the_worker_has_only_its_own_key(compose: dict[str, Any]) -> None:
    """The worker's volumes are its own key and the trainables, both read-only. It publishes no port."""
    services = compose["services"]
    assert services["worker-key"]["command"][-2:] == ["--from-file", "/worker-keys/worker"]
    assert services["worker-key"]["command"].count("--scope") == 1
    assert services["worker-key"]["volumes"] == ["worker-keys:/worker-keys"]
    for name in ("worker", "worker-gpu"):
        assert services[name]["volumes"] == ["worker-keys:/worker-keys:ro", "${TRAINABLES:-./examples}:/trainables:ro"]
        assert services[name]["command"][-2:] == ["--api-key-file", "/worker-keys/worker"]
        assert "ports" not in services[name]
    assert "worker-keys" in compose["volumes"]


def test_the_worker_runs_the_examples_by_default(compose: dict[str, Any]) -> None:
    """By default the worker's trainables are the examples, and its image has what they import."""
    folder, _, place = "./examples:/trainables".partition(":")
    assert compose["services"]["worker"]["command"][3] == f"{place}/worker.toml"
    assert read_configuration(ROOT / folder / "worker.toml").trainables
    assert compose["services"]["worker"]["build"]["args"] == {"EXTRAS": "demo"}
    assert "ARG EXTRAS=service\n" in DOCKERFILE
    assert '".[$EXTRAS]"' in DOCKERFILE
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "gradmedic[service,torch]" in extras["demo"]


def test_only_the_profile_gpu_reserves_gpus(compose: dict[str, Any]) -> None:
    """Workers start with a profile only. The profile `gpu` has the same worker, with the machine's GPUs."""
    services = compose["services"]
    profiles = {name: service["profiles"] for name, service in services.items() if "profiles" in service}
    assert profiles == {"worker-key": ["worker", "gpu"], "worker": ["worker"], "worker-gpu": ["gpu"]}
    (device,) = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    without_gpu = {key: value for key, value in services["worker-gpu"].items() if key not in ("deploy", "profiles")}
    assert without_gpu == {key: value for key, value in services["worker"].items() if key != "profiles"}


def test_only_loopback_is_published(compose: dict[str, Any]) -> None:
    """The API's port is open to this machine only, and the database's port to no machine."""
    assert compose["services"]["api"]["ports"] == [f"127.0.0.1:{DEFAULT_PORT}:{DEFAULT_PORT}"]
    assert "ports" not in compose["services"]["db"]
    assert f"EXPOSE {DEFAULT_PORT}" in DOCKERFILE


def test_all_files_of_the_image_exist(compose: dict[str, Any]) -> None:
    """Every file that the image copies exists, and the image does not run as root."""
    copied = [word for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M) for word in line.split()[:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    assert "\nUSER gradmedic\n" in DOCKERFILE
    for name in ("migrate", "key", "api", "worker-key", "worker"):
        build = compose["services"][name]["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).is_file()
