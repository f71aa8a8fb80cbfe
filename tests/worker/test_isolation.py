"""What the script of a trial can read of its worker, and of the service beside it."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tests.support.patience import PATIENCE
from tests.support.services import Serve
from tests.support.users import OTHER_USER, open_folder, open_interpreter, skip_unless_root, unprivileged
from tests.support.workers import (
    SCRIPT,
    StartWorker,
    WaitUntil,
    has_trainables,
    run_worker,
    set_parameters,
    stream_exploding_run,
    wait_for_end,
    write_trainable,
)

import gradmedic
from gradmedic.cli import main
from gradmedic.protocol.reruns import RerunDetail

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker")]

SEARCH = """
    import glob, hashlib, json, os, re, sys

    def report(place, content):
        for secret in set(re.findall(rb"gradmedic_[A-Za-z0-9_-]{43}", content)):
            print("found", hashlib.sha256(secret).hexdigest(), place, flush=True)

    def read(path, size=2**24, at=None):
        content = b""
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
                if at is not None:
                    file.seek(at)
                while len(content) < size and (more := file.read(size - len(content))):
                    content += more
        except (OSError, OverflowError):
            pass
        return content

    pid = os.getpid()
    for ancestor in range(1 + ANCESTORS):
        for name in ("environ", "cmdline"):
            report(f"{ancestor} {name}", read(f"/proc/{pid}/{name}"))
        for path in glob.glob(f"/proc/{pid}/fd/*"):
            if ancestor < 2 and not os.path.isfile(path):
                continue  # the launcher needs what is in its pipes
            report(f"{ancestor} {path}", read(path))
        for area in read(f"/proc/{pid}/maps").decode().splitlines():
            first, last = (int(number, 16) for number in area.split()[0].split("-"))
            report(f"{ancestor} memory", read(f"/proc/{pid}/mem", min(last - first, 2**28), first))
        for word in read(f"/proc/{pid}/cmdline").split(b"\\0"):
            path = word.partition(b"=")[2] or word
            if path.startswith(b"/") and os.path.isfile(path):
                report(f"{ancestor} file {path.decode()}", read(path))
        print("searched", ancestor, flush=True)
        pid = int(read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])
    names = [os.environ.get("HOME"), os.environ.get("USER")]
    print("identity", json.dumps([os.getuid(), os.getgid(), os.getgroups(), *names]))
    print("status", [line for line in open("/proc/self/status") if line.startswith(("CapEff", "NoNewPrivs"))])
    open("made", "w").close()
"""
"""Prints the SHA-256 of each API key that the script finds in itself and in its nearest ANCESTORS."""


def search_script(ancestors: int) -> str:
    """Return the script that first searches itself and its ancestors, and then does what trials do."""
    return SEARCH.replace("ANCESTORS", str(ancestors)) + SCRIPT


def compute_digest(secret: str) -> str:
    """Return what the script prints for a secret that it has found."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True)
class Keys:
    """API keys of a database."""

    admin: str
    worker: str


@pytest.fixture
def keys(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> Keys:
    """A key for the test and one for the worker."""
    secrets = []
    for scope in ("admin", "worker"):
        arguments = ["--all-projects", "--scope", scope, "--name", scope, "--database-url", sqlite_url]
        assert main(["api-key", "create", *arguments]) == 0
        secrets.append(capsys.readouterr().out.strip())
    return Keys(*secrets)


@pytest.fixture
def reachable_folder() -> Iterator[Path]:
    """A folder that other users may enter."""
    with open_folder() as folder:
        yield folder


def run_control(client: gradmedic.Client, keys: Keys, wait_until: WaitUntil) -> tuple[RerunDetail, list[str]]:
    """Run a rerun to its end, and return it with the lines that its control has printed."""
    wait_until(lambda: has_trainables(client))
    rerun = client.reruns.create(
        stream_exploding_run(client, api_key=keys.admin), remedies=[set_parameters(how="learn")], seeds=1, steps=80
    )
    rerun = wait_for_end(client, rerun)
    assert rerun.reason == "1 of 1 candidates verified", [client.reruns.output(trial.id) for trial in rerun.trials]
    return rerun, client.reruns.output(rerun.trials[0].id).splitlines()


def check_search(lines: list[str], *secrets: str, ancestors: int) -> None:
    """Check that the script has searched everywhere, has found its own key, and none of these secrets."""
    assert [line for line in lines if line.startswith("searched")] == [f"searched {i}" for i in range(1 + ancestors)], (
        lines
    )
    found = [line.split(maxsplit=2)[1:] for line in lines if line.startswith("found")]
    assert "0 environ" in [place for _, place in found]
    assert [place for digest, place in found if digest in map(compute_digest, secrets)] == []


def test_a_trial_of_the_workers_user_cannot_read_its_key(
    serve: Serve, sqlite_url: str, keys: Keys, reachable_folder: Path, wait_until: WaitUntil
) -> None:
    """A key that the worker got in its environment is in no environment, memory or open file that a trial can read."""
    with (
        unprivileged() as prefix,
        serve(sqlite_url, "--require-auth") as service,
        gradmedic.Client(service.url, keys.admin) as client,
        run_worker(
            reachable_folder, service.url, api_key=keys.worker, prefix=prefix, script=search_script(ancestors=2)
        ) as worker,
    ):
        _, lines = run_control(client, keys, wait_until)
        check_search(lines, keys.worker, ancestors=2)
        if os.geteuid() == 0:
            assert keys.worker not in Path(f"/proc/{worker.pid}/environ").read_text()
        assert keys.worker not in Path(f"/proc/{worker.pid}/cmdline").read_text()


def test_a_trial_cannot_read_the_service_beside_its_worker(
    serve: Serve, sqlite_url: str, keys: Keys, reachable_folder: Path, wait_until: WaitUntil
) -> None:
    """`serve --with-worker`: neither the worker's key nor the password of the database can be read by a trial."""
    password = "gradmedic_" + 43 * "P"
    write_trainable(reachable_folder, script=search_script(ancestors=3))
    database = reachable_folder / "private" / "gradmedic.db"
    database.parent.mkdir()
    database.write_bytes(Path(sqlite_url.removeprefix("sqlite:///")).read_bytes())
    with unprivileged() as prefix:
        if prefix:
            for path in (database.parent, database):
                subprocess.run(["chown", OTHER_USER, path], check=True)
        with (
            serve(
                f"sqlite:///{database}",
                "--require-auth",
                "--with-worker",
                str(reachable_folder / "worker.toml"),
                prefix=prefix,
                GRADMEDIC_API_KEY=keys.worker,
                PGPASSWORD=password,
            ) as service,
            gradmedic.Client(service.url, keys.admin) as client,
        ):
            _, lines = run_control(client, keys, wait_until)
            check_search(lines, keys.worker, password, ancestors=3)
            (worker,) = psutil.Process(service.process.pid).children()
            if os.geteuid() == 0:
                assert not worker.environ().keys() & {"PGPASSWORD", "GRADMEDIC_API_KEY", "GRADMEDIC_DATABASE_URL"}


def test_trials_run_as_the_user_that_the_operator_names(
    serve: Serve, sqlite_url: str, keys: Keys, reachable_folder: Path, wait_until: WaitUntil
) -> None:
    """With `worker.user` trials have this user's rights only, although the worker is root and its key is in a file."""
    skip_unless_root()
    key_file = reachable_folder / "key"
    key_file.touch(mode=0o600)
    key_file.write_text(keys.worker)
    with (
        open_interpreter() as prefix,
        serve(sqlite_url, "--require-auth") as service,
        gradmedic.Client(service.url, keys.admin) as client,
        run_worker(
            reachable_folder,
            service.url,
            f"--api-key-file={key_file}",
            prefix=prefix,
            script=search_script(ancestors=2),
            replacement=("[worker]", f'[worker]\nuser = "{OTHER_USER}"'),
        ) as worker,
    ):
        rerun, lines = run_control(client, keys, wait_until)
        (reported,) = rerun.trials[0].attempts
        assert "python" in reported.environment  # the script could write its report
        assert psutil.Process(worker.pid).children(recursive=True) == []
        assert not list((reachable_folder / "scratch").glob("*/*/*"))
    check_search(lines, keys.worker, ancestors=2)
    entry = pwd.getpwnam(OTHER_USER)
    (identity,) = [line.partition(" ")[2] for line in lines if line.startswith("identity")]
    uid, gid, groups, home, user = json.loads(identity)
    assert (uid, gid, user) == (entry.pw_uid, entry.pw_gid, OTHER_USER)
    assert groups == os.getgrouplist(OTHER_USER, entry.pw_gid)
    assert Path(home).name == "tmp"  # this user has no home
    (status,) = [line for line in lines if line.startswith("status")]
    assert "CapEff:\\t0000000000000000" in status
    assert "NoNewPrivs:\\t1" in status


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("gradmedic-no-such-user", "worker.user: there is no user 'gradmedic-no-such-user'"),
        ("root", "worker.user: 'root' is root; name a user with fewer rights"),
    ],
)
def test_a_user_that_cannot_isolate_is_refused(
    start_worker: StartWorker, tmp_path: Path, user: str, message: str
) -> None:
    """A worker does not start with a user that does not exist, or that has all rights."""
    with start_worker("http://127.0.0.1:9", replacement=("[worker]", f'[worker]\nuser = "{user}"')) as worker:
        assert worker.wait(PATIENCE) == 2
    assert message in (tmp_path / "worker.log").read_text()


def test_only_root_runs_trials_as_another_user(reachable_folder: Path) -> None:
    """A worker without root's rights does not start if it has to run trials as another user."""
    with (
        unprivileged() as prefix,
        run_worker(
            reachable_folder,
            "http://127.0.0.1:9",
            prefix=prefix,
            replacement=("[worker]", '[worker]\nuser = "daemon"'),
        ) as worker,
    ):
        assert worker.wait(PATIENCE) == 2
    assert "only a worker that runs as root can run trials as 'daemon'" in (reachable_folder / "worker.log").read_text()


@pytest.mark.parametrize("closed", ["folder", "key"])
def test_what_the_trials_user_must_and_must_not_reach_is_checked(reachable_folder: Path, closed: str) -> None:
    """A worker does not start if the trials' user cannot enter the trials' folder, or can read the worker's key."""
    skip_unless_root()
    key_file = reachable_folder / "key"
    key_file.write_text("gradmedic_" + 43 * "K")
    key_file.chmod(0o600 if closed == "folder" else 0o644)
    scratch = reachable_folder / "scratch"
    scratch.mkdir()
    scratch.chmod(0o700 if closed == "folder" else 0o755)
    with (
        open_interpreter() as prefix,
        run_worker(
            reachable_folder,
            "http://127.0.0.1:9",
            f"--api-key-file={key_file}",
            prefix=prefix,
            replacement=(
                "[worker]",
                f'[worker]\nuser = "{OTHER_USER}"',
            ),
        ) as worker,
    ):
        assert worker.wait(PATIENCE) == 2
    log = (reachable_folder / "worker.log").read_text()
    expected = f"may not execute or enter {scratch}" if closed == "folder" else "may be read by other users"
    assert expected in log
