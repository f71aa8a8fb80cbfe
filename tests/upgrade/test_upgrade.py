"""Files of gradmedic 0.1.0 still work: its database, its journals, its requests, its service's answers.

The files in the folder `0.1.0` were recorded with that version and are never recorded again: a failure here is a
failure for users who upgrade. A new answer may have more fields than the old one. The fields of the old one must have
their values; only the wording of texts, and which causes and advice a diagnosis has, may differ. The tests run on
SQLite, because the old database is a SQLite file.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import msgspec
import pytest
from tests.support.patience import PATIENCE
from tests.support.services import run_service

import gradmedic
from gradmedic.protocol.packed_blocks import BlocksResult, unpack_block
from gradmedic.transport.http import Request, Response
from gradmedic_diagnosis.detectors import DETECTOR_TYPES
from gradmedic_diagnosis.detectors.base import Detector

FIXTURES = Path(__file__).parent / "0.1.0"
PROGRAM = str(Path(sys.executable).parent / "gradmedic")
LEASE = 300.0
"""Seconds that a worker may be silent. The requests were recorded with this setting."""
NEW_NAMES = {"class": "verdict"}
"""New names of renamed fields, by the old name. Where an answer has both, both must have the old value."""
CONDITIONS = frozenset(kind.id for kind in DETECTOR_TYPES if kind.cause_score is not Detector.cause_score)
"""Detectors that version 0.1 did not have. What they find beside the old findings is no difference."""
PROSE = frozenset({"summary", "explanation", "reason", "cost", "snippet", "alerts"})
"""Fields with text for people, which may be worded anew."""


# --- helpers ----------------------------------------------------------------------------------------------------------


def run_program(folder: Path, *arguments: str) -> str:
    """Run `gradmedic` to its end and return what it printed."""
    done = subprocess.run(
        [PROGRAM, *arguments],
        env={"PATH": os.environ["PATH"]},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def served(database: Path, folder: Path, *options: str) -> Iterator[str]:
    """Run `gradmedic serve` on a SQLite file and yield its address."""
    with run_service(folder, f"sqlite:///{database}", *options, lease=LEASE) as service:
        yield service.url
        service.process.send_signal(signal.SIGTERM)
        service.process.wait(PATIENCE)


@contextlib.contextmanager
def client_of(address: str, key: str | None = None) -> Iterator[httpx2.Client]:
    """Return a client of the service's API."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=f"{address}/api/v1", headers=headers, timeout=PATIENCE) as client:
        yield client


def differences(old: Any, new: Any, ignored: frozenset[str] = frozenset(), at: str = "answer") -> list[str]:
    """Return one line for each difference between a new answer and the old one. More fields are no difference."""
    if isinstance(old, dict):
        if not isinstance(new, dict):
            return [f"{at}: {new!r} is no object"]
        found = []
        for name, value in old.items():
            names = [each for each in (name, NEW_NAMES.get(name)) if each is not None and each in new]
            if not names:
                found.append(f"{at}.{name}: is missing")
            for each in () if name in ignored else names:
                place = f"{at}.{each}"
                if name not in PROSE and not (name == "score" and ".causes[" not in at):
                    found += differences(value, new[each], ignored, place)
                elif bool(value) != bool(new[each]) or type(value) is not type(new[each]):
                    found.append(f"{place}: {new[each]!r} instead of {value!r}")
        return found
    if isinstance(old, list):
        if "/diagnosis/history" in at and at.endswith(".items"):
            new = [item for before, item in zip([None, *new], new, strict=False) if not is_same_verdict(before, item)]
        if at.endswith(".findings") and isinstance(new, list):
            new = [finding for finding in new if finding["detector"] not in CONDITIONS]
        if at.endswith((".causes", ".advice")) and isinstance(new, list) and (new or not old):
            return [line for item in new for line in missing_fields(old, item, at)]
        if not isinstance(new, list) or len(new) != len(old):
            return [f"{at}: has other items: {new!r} for {old!r}"]
        return [
            line
            for i, pair in enumerate(zip(old, new, strict=True))
            for line in differences(*pair, ignored, f"{at}[{i}]")
        ]
    if isinstance(old, float) and not isinstance(new, bool) and isinstance(new, (int, float)):
        is_same = math.isclose(old, new, rel_tol=1e-6, abs_tol=1e-6)
    else:
        is_same = old == new and isinstance(old, bool) == isinstance(new, bool)
    return [] if is_same else [f"{at}: {new!r} instead of {old!r}"]


def missing_fields(old: list[Any], item: Any, at: str) -> list[str]:
    """Return one line for each field that the old items have and a new one lacks.

    A newer version may judge causes and advice anew, from the same evidence. What a client reads stays the same.
    """
    return [f"{at}: {item!r} has no {name}" for name in (old[0] if old else ()) if name not in item]


def is_same_verdict(before: Any, change: Any) -> bool:
    """Whether a change of a history is one of learning or of the level alone, which version 0.1.0 did not have."""
    return before is not None and before["verdict"] == change["verdict"]


def read_json(*parts: str) -> Any:
    """Read a file of the fixtures."""
    return json.loads(FIXTURES.joinpath(*parts).read_text())


# --- an old database --------------------------------------------------------------------------------------------------


@pytest.fixture
def old_database(tmp_path: Path) -> Path:
    """A copy of the old service's database, as its file was."""
    path = tmp_path / "old.db"
    path.write_bytes(gzip.decompress((FIXTURES / "database.sqlite3.gz").read_bytes()))
    return path


def wrong_answers(client: httpx2.Client) -> list[str]:
    """Repeat each recorded question and return the differences of the answers."""
    wrong = []
    for each in read_json("expected.json")["answers"]:
        response = client.get(each["path"], headers={"Accept": each["accept"]})
        if response.status_code != 200:
            wrong.append(f"{each['path']}: {response.status_code} {response.text[:200]}")
        elif each["accept"] == "application/json":
            wrong += differences(each["answer"], response.json(), at=each["path"])
        elif response.text != each["answer"]:
            wrong.append(f"{each['path']}: another {each['accept']}")
    return wrong


def test_an_old_database_answers_as_before(old_database: Path, tmp_path: Path) -> None:
    """`gradmedic serve` upgrades an old SQLite file, and gives the answers of the old service."""
    with served(old_database, tmp_path) as address, client_of(address) as client:
        assert wrong_answers(client) == []


def test_an_old_database_is_upgraded_by_command(old_database: Path, tmp_path: Path) -> None:
    """`gradmedic db upgrade` may run twice, and a service that requires keys accepts the old keys."""
    expected = read_json("expected.json")
    url = f"sqlite:///{old_database}"
    for _ in range(2):
        run_program(tmp_path, "db", "upgrade", "--database-url", url)
    with sqlite3.connect(old_database) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()
    with served(old_database, tmp_path, "--require-auth") as address:
        with client_of(address) as without_key:
            assert without_key.get("/runs").status_code == 401
        with client_of(address, expected["admin_secret"]) as admin:
            runs = {one["id"] for one in admin.get("/runs").json()["items"]}
    (old,) = [each["answer"] for each in expected["answers"] if each["path"] == "/runs"]
    assert runs == {one["id"] for one in old["items"]}


def test_old_runs_go_on(old_database: Path, tmp_path: Path) -> None:
    """An old run is read, reviewed, takes further steps, goes back to before its last snapshot, and can be deleted."""
    (runs,) = [each["answer"]["items"] for each in read_json("expected.json")["answers"] if each["path"] == "/runs"]
    by_name = {one["name"]: one for one in runs}
    with served(old_database, tmp_path) as address, client_of(address) as client:
        run = by_name["healthy"]
        path, last = f"/runs/{run['id']}", run["last_step"]
        row = [0.2, 0.2, 0.2, 0.2, 0.2, None]
        rows = {name: [row] * 60 for name in ("grad_norm", "weight_norm", "update_norm")}
        rows["nonfinite_count"] = [[0.0] * 5 + [None]] * 60
        block = {"steps": list(range(last + 1, last + 61)), "loss": [0.2] * 60, "statistics": rows}
        stored = client.get(f"{path}/blocks")
        assert stored.status_code == 200, stored.text
        read = [unpack_block(each) for each in msgspec.msgpack.decode(stored.content, type=BlocksResult).blocks]
        assert [int(read[0].steps[0]), int(read[-1].steps[-1])] == [0, last]
        assert client.put(f"{path}/review", json={"answer": "right"}).json()["judged_verdict"] == run["verdict"]
        appended = client.post(f"{path}/steps", json=block)
        assert appended.status_code == 200, appended.text
        assert appended.json()["accepted"] == 60
        assert appended.json()["last_step"] == last + 60
        rewound = client.post(f"{path}/rewind", json={"step": 900, "generation": run["generation"]})
        assert rewound.status_code == 200, rewound.text
        assert (rewound.json()["last_step"], rewound.json()["verdict"]) == (900, "healthy")
        series = client.get(f"{path}/steps", params={"statistic": "loss", "max_points": 1}).json()
        assert (series["first_step"], series["last_step"]) == ([0], [900])
        assert client.delete(f"/runs/{by_name['suspect']['id']}").status_code == 204
        assert client.get(f"/reruns?run_id={by_name['suspect']['id']}").json()["items"] == []


# --- an old journal ---------------------------------------------------------------------------------------------------


def test_an_old_journal_is_sent(tmp_path: Path) -> None:
    """`gradmedic sync` sends an old offline run, and the runs of two old processes that were killed."""
    expected = read_json("journal_expected.json")
    ignored = frozenset(expected["ignore"])
    journal = shutil.copytree(FIXTURES / "journal", tmp_path / "journal")
    with served(tmp_path / "new.db", tmp_path) as address, client_of(address) as client:
        printed = run_program(tmp_path, "sync", "--base-url", address, "--json", str(journal))
        sent = [json.loads(line) for line in printed.splitlines()]
        assert differences(expected["sync"], sent) == []
        wrong = []
        for each in expected["answers"]:
            response = client.get(each["path"])
            assert response.status_code == 200, response.text
            wrong += differences(each["answer"], response.json(), ignored, each["path"])
        assert wrong == []
    assert list(journal.rglob("*.journal")) == []


# --- an old client ----------------------------------------------------------------------------------------------------


class Replay:
    """Sends recorded requests in order, with the ids that the new service assigns."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._known: dict[str, str] = {}

    def send(self, client: httpx2.Client, entry: dict[str, Any], ignored: frozenset[str]) -> list[str]:
        """Send one request and return the differences of its answer."""
        body = None if entry["file"] is None else (FIXTURES / "bodies" / entry["file"]).read_bytes()
        if body is not None and b"{{" in body and entry["content_encoding"] is None:
            body = self._fill(body.decode()).encode() if entry["content_type"] == "application/json" else body
        headers = {"Accept": "application/json"}
        for name, key in (("Content-Type", "content_type"), ("Content-Encoding", "content_encoding")):
            if entry[key] is not None:
                headers[name] = entry[key]
        if entry["bearer"] is not None:
            headers["Authorization"] = f"Bearer {self._fill(entry['bearer'])}"
        path = self._fill(entry["path"])
        response = client.request(entry["method"], path, content=body, headers=headers)
        at = f"{entry['method']} {path} ({entry['file']})"
        if entry.get("optional") and response.status_code in (415, 422):
            return []
        if response.status_code != entry["status"]:
            return [f"{at}: {response.status_code} instead of {entry['status']}: {response.text[:300]}"]
        answer: Any = response.json() if response.content else None
        for name, where in entry.get("learn", {}).items():
            value: Any = answer
            for step in where:
                value = value[step]
            self._known[name] = value
        if entry.get("compare") == "status":
            return []
        old = json.loads(self._fill(json.dumps(entry["answer"])))
        if response.is_error:
            return [] if answer["error_code"] == old["error_code"] else [f"{at}: {answer['error_code']}"]
        return differences(old, answer, ignored, at)

    def _fill(self, text: str) -> str:
        return re.sub(r"\{\{(\w+)\}\}", lambda found: self._known[found.group(1)], text)


def test_requests_of_an_old_client_are_answered_as_before(tmp_path: Path) -> None:
    """The requests of an old SDK, an old worker and of curl get the answers of the old service."""
    index = read_json("bodies", "index.json")
    ignored = frozenset(index["ignore"])
    wrong = []
    with served(tmp_path / "new.db", tmp_path) as address, client_of(address) as client:
        replay = Replay(address)
        for entry in index["requests"]:
            wrong += replay.send(client, entry, ignored)
        assert 1 in client.get("/limits").json()["wire_versions"]
    assert wrong == []


# --- an old service ---------------------------------------------------------------------------------------------------


class OldService:
    """A transport that returns the answers of the old service."""

    def __init__(self, answers: dict[tuple[str, str], str]) -> None:
        self.requests: list[Request] = []
        self._answers = answers

    def send(self, request: Request, timeout: float) -> Response:
        """Return the recorded answer; see `gradmedic.http.Transport`."""
        self.requests.append(request)
        path = request.url.partition("/api/v1")[2].partition("?")[0]
        file = self._answers[request.method, path]
        is_problem = file == "problem.json"
        media_type = "application/problem+json" if is_problem else "application/json"
        body = (FIXTURES / "answers" / file).read_bytes()
        return Response(422 if is_problem else 200, {"content-type": media_type}, body)

    def close(self) -> None:
        """Do nothing: there is no connection."""


def test_answers_of_an_old_service_can_be_read() -> None:
    """A new client decodes an old service's runs, diagnoses and reruns."""
    index = read_json("answers", "index.json")
    recorded = {(one["method"], one["path"].partition("?")[0]): one["file"] for one in index["answers"]}
    files = {one["file"]: one["path"] for one in index["answers"]}
    arrays = files["history.json"].split("/")[2]
    refusing = {**recorded, ("GET", "/limits"): "problem.json"}
    with gradmedic.Client("http://old", transport=OldService(recorded)) as client:
        assert 1 in client.limits().wire_versions
        run = client.runs.get(index["run_id"])
        old_run = read_json("answers", "run.json")
        assert [layer.name for layer in run.layers] == [layer["name"] for layer in old_run["layers"]]
        assert run.training is not None
        assert len(run.training.optimizers) == len(old_run["training"]["optimizers"])
        assert [one.name for one in client.runs.list()] == [
            one["name"] for one in read_json("answers", "runs.json")["items"]
        ]
        diagnosis = client.runs.diagnosis(index["suspect_id"])
        old = read_json("answers", "diagnosis.json")
        assert diagnosis.verdict == old["verdict"] == "exploding"
        assert old["findings"]
        for finding, old_finding in zip(diagnosis.findings, old["findings"], strict=True):
            assert (finding.detector, finding.verdict) == (old_finding["detector"], old_finding["class"])
        assert [one.remedy.id for one in diagnosis.advice] == [one["remedy"]["id"] for one in old["advice"]]
        assert [one.outcome.state for one in diagnosis.tried] == [one["outcome"]["state"] for one in old["tried"]]
        assert old["tried"]
        assert [change.step for change in client.runs.history(arrays)] == [
            change["step"] for change in read_json("answers", "history.json")["items"]
        ]
        series = client.runs.steps(arrays, "loss").series[0]
        assert series.count == read_json("answers", "series.json")["series"][0]["count"]
        rerun_id = files["rerun.json"].rpartition("/")[2]
        rerun = client.reruns.get(rerun_id)
        assert rerun.status == "done"
        assert [trial.status for trial in rerun.trials] == [
            trial["status"] for trial in read_json("answers", "rerun.json")["trials"]
        ]
        assert len(list(client.reruns.list())) == len(read_json("answers", "reruns.json")["items"])
        assert [one.name for one in client.work.trainables()] == ["train"]
        claimed = client.work.claim("new-worker", ["train"])
        assert claimed is not None
        assert str(claimed.trial_id) == read_json("answers", "claim.json")["trial_id"]
        trial_id = UUID(files["heartbeat.json"].split("/")[2])
        beat = client.work.heartbeat(trial_id, 1, None, timeout=1.0)
        assert beat.stop is read_json("answers", "heartbeat.json")["stop"]
    with (
        gradmedic.Client("http://old", transport=OldService(refusing)) as client,
        pytest.raises(gradmedic.GradmedicError, match=re.escape(read_json("answers", "problem.json")["detail"])),
    ):
        client.limits()


def test_a_new_client_streams_to_an_old_service(tmp_path: Path) -> None:
    """A new SDK streams a run to an old service and decodes every answer."""
    index = read_json("answers", "index.json")
    run_id = read_json("answers", "created.json")["id"]
    path = f"/runs/{run_id}"
    transport = OldService({
        ("GET", "/limits"): "limits.json", ("POST", "/runs"): "created.json", ("GET", path): "created.json",
        ("PATCH", path): "created.json", ("POST", f"{path}/steps"): "append.json",
        ("POST", f"{path}/rewind"): "rewind.json",
        ("GET", f"{path}/diagnosis"): "diagnosis.json",
    })  # fmt: skip
    assert index["made_by"] == "0.1.0"
    run = gradmedic.init(
        project="bodies", id=run_id, base_url="http://old", transport=transport, dir=tmp_path / "client", silent=True
    )
    events: list[gradmedic.VerdictEvent] = []
    run.on_verdict(events.append)
    for step in range(5):
        run.log(loss=1.0, statistics={"a": {"grad_norm": 0.5 + step}})
    assert run.flush(PATIENCE)
    old = read_json("answers", "append.json")
    assert run.verdict == old["verdict"] == "exploding"
    assert [(event.verdict, event.since_step) for event in events] == [("exploding", old["since_step"])]
    assert run.finish(timeout=PATIENCE)
    sent = [(request.method, request.url.partition("/api/v1")[2]) for request in transport.requests]
    assert ("POST", "/runs") in sent
    assert ("POST", f"{path}/steps") in sent
    assert sent[-1] == ("PATCH", path)
