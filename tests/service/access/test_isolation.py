"""A key reaches its project or its run. All other objects are answered as if they did not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from starlette.testclient import TestClient
from tests.support.played_worker import CLIP, PlayedWorker, read, rerun, suspect

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


def comparable_problem(response: Any, run_id: str) -> dict[str, Any]:
    """Return a problem and the names of its headers, without what differs between any two requests."""
    problem: dict[str, Any] = response.json() | {"request_id": None}
    return problem | {"detail": problem["detail"].replace(run_id, "ID"), "headers": sorted(response.headers)}


@pytest.mark.parametrize("what", ON_A_RUN)
def test_runs_of_another_project(what: str, client_with_key: Any, create_run: Any) -> None:
    """Every request about another project's run is answered as for a run that does not exist, and changes nothing."""
    theirs = client_with_key("admin", project="theirs")
    path = create_run(theirs, project="theirs")
    theirs.post(f"{path}/steps", json={"steps": [0], "loss": [1.0]})
    before = theirs.get(path).json()
    mine, nothing = client_with_key("admin"), new_id()
    found, missing = ON_A_RUN[what](mine, path), ON_A_RUN[what](mine, f"{RUNS}/{nothing}")
    assert (found.status_code, found.json()["error_code"]) == (404, "run_not_found")
    assert comparable_problem(found, path.rpartition("/")[2]) == comparable_problem(missing, str(nothing))
    assert theirs.get(path).json() == before


@pytest.mark.parametrize("what", [name for name in ON_A_RUN if name != "delete"])
def test_a_key_of_one_run_reaches_that_run_alone(what: str, client_with_key: Any, create_run: Any) -> None:
    """A trial's key works on its own run, and the project's other runs do not exist for it."""
    path, other = (
        create_run(client_with_key("admin"), project="mine"),
        create_run(client_with_key("admin"), project="mine"),
    )
    trial = client_with_key("ingest", "read", run_id=UUID(path.rpartition("/")[2]))
    assert ON_A_RUN[what](trial, path).status_code == 200
    assert ON_A_RUN[what](trial, other).json()["error_code"] == "run_not_found"


def test_a_key_of_one_run_creates_that_run_alone(client_with_key: Any) -> None:
    """A trial's key may create the run that it is for, and no other run."""
    run_id = new_id()
    trial = client_with_key("ingest", run_id=run_id)
    body = {"project": "mine", "layers": []}
    for other in ({}, {"id": str(new_id())}):
        refused = trial.post(RUNS, json=body | other)
        assert (refused.status_code, refused.json()["error_code"]) == (403, "beyond_key")
    assert trial.post(RUNS, json=body | {"id": str(run_id)}).status_code == 201
    assert trial.post(RUNS, json=body | {"id": str(run_id)}).status_code == 200


def test_creating_a_run_in_another_project(client_with_key: Any, create_run: Any) -> None:
    """Creating a run in another project is refused alike, whether or not that project exists."""
    create_run(client_with_key("admin", project="theirs"), project="theirs")
    answers = [
        client_with_key("ingest").post(RUNS, json={"project": name, "layers": []}) for name in ("theirs", "nobody's")
    ]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert answers[0].json()["detail"].replace("theirs", "X") == answers[1].json()["detail"].replace(
        "nobody's", "X"
    ).replace('"', "'")


def test_an_id_of_another_projects_run(client_with_key: Any, create_run: Any) -> None:
    """Reusing the id of another project's run is a conflict that does not reveal the project."""
    theirs = create_run(client_with_key("admin", project="theirs"), project="theirs", name="secret")
    body = {"project": "mine", "layers": [], "id": theirs.rpartition("/")[2]}
    response = client_with_key("ingest").post(RUNS, json=body)
    assert (response.status_code, response.json()["error_code"]) == (409, "run_exists")
    assert "theirs" not in response.text


def test_lists(client_with_key: Any, create_run: Any) -> None:
    """Lists contain only the runs and projects that the key reaches, even if the request names another project."""
    theirs = create_run(client_with_key("admin", project="theirs"), project="theirs")
    mine = create_run(client_with_key("admin"), project="mine")
    reader, everything = client_with_key("read"), client_with_key("read", project=None)
    trial = client_with_key("read", run_id=new_id())

    def listed(client: TestClient, **query: str) -> set[str]:
        return {f"{RUNS}/{run['id']}" for run in client.get(RUNS, params=query).json()["items"]}

    assert listed(reader) == {mine}
    assert listed(reader, project="theirs") == listed(reader, project="nobody's") == listed(trial) == set()
    assert listed(everything) == {mine, theirs}
    projects = f"{API_PATH}/projects"
    assert [project["name"] for project in reader.get(projects).json()["items"]] == ["mine"]
    assert {project["name"] for project in everything.get(projects).json()["items"]} == {"mine", "theirs"}


def test_a_key_of_one_run_sees_nothing_of_its_project(client_with_key: Any) -> None:
    """A key of one run lists that run and its reruns; the project, its other reruns and its trainables do not exist."""
    person, worker = client_with_key("ingest", "read", "rerun"), PlayedWorker(client_with_key("worker"))
    worker.register()
    own, other = suspect(person, project="mine"), suspect(person, project="mine")
    own_rerun, other_rerun = rerun(person, own, CLIP), rerun(person, other, CLIP)
    reader = client_with_key("ingest", "read", run_id=UUID(own))
    assert [run["id"] for run in read(reader, "/runs")["items"]] == [own]
    assert [found["id"] for found in read(reader, "/reruns")["items"]] == [own_rerun["id"]]
    assert read(reader, f"/reruns/{own_rerun['id']}")["run_id"] == own
    output = f"/trials/{other_rerun['trials'][0]['id']}/output"
    for hidden in (f"/reruns/{other_rerun['id']}", output, "/projects/mine"):
        assert reader.get(f"{API_PATH}{hidden}").status_code == 404
    assert read(reader, "/trainables")["items"] == read(reader, "/projects")["items"] == []


def test_other_projects(client_with_key: Any, create_run: Any) -> None:
    """Reading or changing another project is answered as for a project that does not exist."""
    create_run(client_with_key("admin", project="theirs"), project="theirs")
    admin = client_with_key("admin")
    for send in (admin.get, lambda path: admin.patch(path, json={"muted_detectors": []})):
        found, missing = (send(f"{API_PATH}/projects/{name}") for name in ("theirs", "absent"))
        assert found.status_code == missing.status_code == 404
        assert comparable_problem(found, "theirs") == comparable_problem(missing, "absent")


def test_a_projects_admin(client_with_key: Any) -> None:
    """A project's admin makes, sees and revokes only the keys of its project, and cannot make a key with more reach."""
    mine, theirs = client_with_key("admin"), client_with_key("admin", project="theirs")
    keys = f"{API_PATH}/api-keys"
    their_key = theirs.post(keys, json={"project": "theirs", "scopes": ["read"]}).json()
    for project in ("theirs", None):
        refused = mine.post(keys, json={"project": project, "scopes": ["read"]})
        assert (refused.status_code, refused.json()["error_code"]) == (403, "beyond_key")
    assert {key["project"] for key in mine.get(keys).json()["items"]} == {"mine"}
    nothing = str(new_id())
    found, missing = (mine.delete(f"{keys}/{key}") for key in (their_key["id"], nothing))
    assert found.status_code == missing.status_code == 404
    assert comparable_problem(found, their_key["id"]) == comparable_problem(missing, nothing)
    records = mine.get(f"{API_PATH}/audit-records").json()["items"]
    assert {record["project"] for record in records} == {"mine"}
