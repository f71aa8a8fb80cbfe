"""A key reaches its project, or its run, and nothing else: what is beyond it does not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from starlette.testclient import TestClient

from gradmedic.protocol.ids import new_id
from gradmedic.protocol.service import API_PATH

RUNS = f"{API_PATH}/runs"

ON_A_RUN: dict[str, Callable[[TestClient, str], Any]] = {
    "get": lambda client, path: client.get(path),
    "patch": lambda client, path: client.patch(path, json={"name": "stolen"}),
    "delete": lambda client, path: client.delete(path),
    "append": lambda client, path: client.post(f"{path}/steps", json={"steps": [5], "loss": [1.0]}),
    "series": lambda client, path: client.get(f"{path}/steps", params={"statistic": "loss"}),
    "export": lambda client, path: client.get(
        f"{path}/steps", params={"statistic": "loss"}, headers={"Accept": "text/csv"}
    ),
    "rewind": lambda client, path: client.post(f"{path}/rewind", json={"step": -1, "generation": 0}),
    "diagnosis": lambda client, path: client.get(f"{path}/diagnosis"),
    "diagnosis then": lambda client, path: client.get(f"{path}/diagnosis", params={"at_step": 0}),
    "history": lambda client, path: client.get(f"{path}/diagnosis/history"),
}


def told(response: Any, run_id: str) -> dict[str, Any]:
    """What an answer tells, without what differs between any two."""
    problem: dict[str, Any] = response.json() | {"request_id": None}
    return problem | {"detail": problem["detail"].replace(run_id, "ID"), "headers": sorted(response.headers)}


@pytest.mark.parametrize("what", ON_A_RUN)
def test_runs_of_another_project_do_not_exist(what: str, bearing: Any, create_run: Any) -> None:
    """Whatever is asked about another project's run, the answer is that of a run that never was; nothing changes."""
    theirs = bearing("admin", project="theirs")
    path = create_run(theirs, project="theirs")
    theirs.post(f"{path}/steps", json={"steps": [0], "loss": [1.0]})
    before = theirs.get(path).json()
    mine, nothing = bearing("admin"), new_id()
    found, missing = ON_A_RUN[what](mine, path), ON_A_RUN[what](mine, f"{RUNS}/{nothing}")
    assert (found.status_code, found.json()["error_code"]) == (404, "run_not_found")
    assert told(found, path.rpartition("/")[2]) == told(missing, str(nothing))
    assert theirs.get(path).json() == before


@pytest.mark.parametrize("what", [name for name in ON_A_RUN if name != "delete"])
def test_a_key_of_one_run_reaches_that_run_alone(what: str, bearing: Any, create_run: Any) -> None:
    """A trial's key works on its own run, and for it the project's other runs do not exist."""
    path, other = create_run(bearing("admin"), project="mine"), create_run(bearing("admin"), project="mine")
    trial = bearing("ingest", "read", run_id=UUID(path.rpartition("/")[2]))
    assert ON_A_RUN[what](trial, path).status_code == 200
    assert ON_A_RUN[what](trial, other).json()["error_code"] == "run_not_found"


def test_a_key_of_one_run_creates_that_run_alone(bearing: Any) -> None:
    """A trial's key may create the run that it is for, before which there is none, and no other."""
    run_id = new_id()
    trial = bearing("ingest", run_id=run_id)
    body = {"project": "mine", "layers": []}
    for other in ({}, {"id": str(new_id())}):
        refused = trial.post(RUNS, json=body | other)
        assert (refused.status_code, refused.json()["error_code"]) == (403, "beyond_key")
    assert trial.post(RUNS, json=body | {"id": str(run_id)}).status_code == 201
    assert trial.post(RUNS, json=body | {"id": str(run_id)}).status_code == 200


def test_runs_are_made_in_the_own_project_alone(bearing: Any, create_run: Any) -> None:
    """Creating a run elsewhere is refused alike whether that project is there or not."""
    create_run(bearing("admin", project="theirs"), project="theirs")
    answers = [bearing("ingest").post(RUNS, json={"project": name, "layers": []}) for name in ("theirs", "nobody's")]
    assert [one.status_code for one in answers] == [403, 403]
    assert answers[0].json()["detail"].replace("theirs", "X") == answers[1].json()["detail"].replace(
        "nobody's", "X"
    ).replace('"', "'")


def test_a_taken_id_tells_nothing(bearing: Any, create_run: Any) -> None:
    """Reusing the id of another project's run is a conflict that does not say whose it is."""
    theirs = create_run(bearing("admin", project="theirs"), project="theirs", name="secret")
    body = {"project": "mine", "layers": [], "id": theirs.rpartition("/")[2]}
    response = bearing("ingest").post(RUNS, json=body)
    assert (response.status_code, response.json()["error_code"]) == (409, "run_exists")
    assert "theirs" not in response.text


def test_lists_hold_what_the_key_reaches(bearing: Any, create_run: Any) -> None:
    """Runs and projects are listed as if there were no others, also where the request names another."""
    theirs = create_run(bearing("admin", project="theirs"), project="theirs")
    mine = create_run(bearing("admin"), project="mine")
    reader, everything = bearing("read"), bearing("read", project=None)
    trial = bearing("read", run_id=new_id())

    def listed(client: TestClient, **query: str) -> set[str]:
        return {f"{RUNS}/{run['id']}" for run in client.get(RUNS, params=query).json()["items"]}

    assert listed(reader) == {mine}
    assert listed(reader, project="theirs") == listed(reader, project="nobody's") == listed(trial) == set()
    assert listed(everything) == {mine, theirs}
    projects = f"{API_PATH}/projects"
    assert [one["name"] for one in reader.get(projects).json()["items"]] == ["mine"]
    assert {one["name"] for one in everything.get(projects).json()["items"]} == {"mine", "theirs"}


def test_projects_of_others_do_not_exist(bearing: Any, create_run: Any) -> None:
    """Another project answers as one that is not there, read or changed."""
    create_run(bearing("admin", project="theirs"), project="theirs")
    admin = bearing("admin")
    for send in (admin.get, lambda path: admin.patch(path, json={"muted_detectors": []})):
        found, missing = (send(f"{API_PATH}/projects/{name}") for name in ("theirs", "absent"))
        assert found.status_code == missing.status_code == 404
        assert told(found, "theirs") == told(missing, "absent")


def test_a_project_admin_rules_one_project(bearing: Any) -> None:
    """A project's admin makes, sees and revokes that project's keys, and can give nobody more than it has."""
    mine, theirs = bearing("admin"), bearing("admin", project="theirs")
    keys = f"{API_PATH}/api-keys"
    their_key = theirs.post(keys, json={"project": "theirs", "scopes": ["read"]}).json()
    for project in ("theirs", None):
        refused = mine.post(keys, json={"project": project, "scopes": ["read"]})
        assert (refused.status_code, refused.json()["error_code"]) == (403, "beyond_key")
    assert {one["project"] for one in mine.get(keys).json()["items"]} == {"mine"}
    nothing = str(new_id())
    found, missing = (mine.delete(f"{keys}/{key}") for key in (their_key["id"], nothing))
    assert found.status_code == missing.status_code == 404
    assert told(found, their_key["id"]) == told(missing, nothing)
    records = mine.get(f"{API_PATH}/audit-records").json()["items"]
    assert {one["project"] for one in records} == {"mine"}
