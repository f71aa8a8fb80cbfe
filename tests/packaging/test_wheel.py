"""The built wheel, installed where no checkout is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[2]
PACKAGES = {"gradmedic", "gradmedic_diagnosis", "gradmedic_service", "gradmedic_worker"}
FOREIGN = ("fastapi", "pydantic", "sqlalchemy", "starlette", "torch", "uvicorn")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE)
    (built,) = folder.glob("*.whl")
    return built


def install(wheel: Path, folder: Path, extra: str = "") -> Path:
    """Install the wheel into a new environment in `folder` and return its bin folder."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=PATIENCE)
    pip = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--quiet", "--retries", "10"]
    pip += ["--no-compile", "-c", str(ROOT / "constraints.txt")]  # few of the modules are imported
    done = subprocess.run([*pip, f"{wheel}{extra}"], capture_output=True, text=True, check=False, timeout=2 * PATIENCE)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the base distribution only."""
    return install(wheel, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def service(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the service extra."""
    return install(wheel, tmp_path_factory.mktemp("service"), "[service]")


def test_wheel_holds_what_a_plain_install_needs(wheel: Path) -> None:
    """Migrations, examples, pages and pictures of conditions are packed; tests and benchmarks are not."""
    names = zipfile.ZipFile(wheel).namelist()
    assert "gradmedic_service/migrations/env.py" in names
    assert any(name.startswith("gradmedic_service/migrations/versions/0001") for name in names)
    assert "gradmedic_service/examples/digits_classifier.py" in names
    assert "gradmedic_service/web/conditions/nonfinite_loss.md" in names
    assert "gradmedic_service/web/operations/root.md" in names
    assert "gradmedic_service/web/conditions/images/nonfinite_loss.png" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == PACKAGES


def test_base_install_imports_without_the_service(base: Path, tmp_path: Path) -> None:
    """`import gradmedic` works with base dependencies alone and takes no service library or framework."""
    code = f"import sys, gradmedic; print([name for name in {FOREIGN!r} if name in sys.modules])"
    done = subprocess.run([base / "python", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_base_install_lacks_what_it_does_not_need(base: Path, tmp_path: Path) -> None:
    """None of the service's libraries is installed with the base distribution."""
    code = f"import importlib.util as u; print([name for name in {FOREIGN!r} if u.find_spec(name)])"
    done = subprocess.run([base / "python", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


def test_serve_without_its_extra_names_it(base: Path, tmp_path: Path) -> None:
    """`gradmedic serve` from a base install names the extra that it needs and exits with 2."""
    done = subprocess.run([base / "gradmedic", "serve"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'gradmedic[service]'" in done.stderr


def test_a_node_of_a_cluster_needs_no_extra(base: Path, tmp_path: Path) -> None:
    """The entrypoint on a Ray node runs from a base install: without its configuration, its report names the file."""
    attempt = "01a202a2-105b-7252-9840-ed3fe4a8f6ce-1"
    command = [str(base / "python"), "-m", "gradmedic_worker.executors.ray_entrypoint", attempt]
    environment = {"GRADMEDIC_WORKER_CONFIG": "/no/worker.toml"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert done.stdout.startswith('gradmedic-trial {"lost": ')
    assert "/no/worker.toml cannot be read" in done.stdout


@pytest.fixture
def served(service: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of `gradmedic serve`, started in an empty folder outside the checkout."""
    process = subprocess.Popen(
        [service / "gradmedic", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={"HOME": str(tmp_path)},
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if line.startswith("gradmedic is at"))
        yield line.split()[3]
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def test_service_install_creates_its_database(served: str, tmp_path: Path) -> None:
    """`gradmedic serve` from a wheel migrates its own database in the user's folder of data, and is ready."""
    assert (tmp_path / ".local" / "share" / "gradmedic" / "gradmedic.db").is_file()
    with urllib.request.urlopen(f"{served}/readyz", timeout=PATIENCE) as answer:  # noqa: S310  # our own loopback URL
        assert answer.status == 200
    body = json.dumps({"project": "p", "layers": [{"name": "w"}]}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{served}/api/v1/runs", data=body, headers=headers)  # noqa: S310
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
        assert answer.status == 201


def test_service_install_shows_its_pages(served: str) -> None:
    """Templates, scripts and styles are in the wheel: `/` is a page, and whatever it links to is there."""
    with urllib.request.urlopen(f"{served}/", timeout=PATIENCE) as answer:  # noqa: S310  # our own loopback URL
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        page = answer.read().decode()
    assert "<h1>Runs</h1>" in page
    linked = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    kinds = set()
    for path in linked:
        with urllib.request.urlopen(f"{served}{path}", timeout=PATIENCE) as answer:  # noqa: S310
            kinds.add(answer.headers["content-type"])
            assert answer.read()
    assert kinds == {"text/javascript; charset=utf-8", "text/css; charset=utf-8", "image/svg+xml"}
