"""Runs over HTTP, on both databases."""

from __future__ import annotations

import json
import math
import threading
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from sqlalchemy import select
from starlette.testclient import TestClient
from tests.support.locks import is_transaction_waiting

from gradmedic.protocol.ids import new_id
from gradmedic.protocol.runs import Layer, RunUpdate
from gradmedic_service.access.principal import OPERATOR
from gradmedic_service.app import create_app
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import Base
from gradmedic_service.runs.service import update
from gradmedic_service.settings import Settings

RUNS = "/api/v1/runs"
ORIGIN = {
    "operation": "sqrt",
    "direction": "backward",
    "module": "decoder.1",
    "source": {"file": "model.py", "line": 57, "text": "return x.sqrt()"},
    "step": 812,
    "input": {
        "shape": [64, 32],
        "dtype": "float32",
        "special": "zero",
        "count": 3,
        "total": 2048,
        "unit": "element",
        "value": None,
        "text": "the input was 0 in 3 of 2,048 elements",
    },
    "value": "Infinity",
    "kind": "numeric",
    "reproduced": "1 of 1",
    "is_loss_finite": True,
    "is_eager": None,
    "operations": [],
    "batch_tensors": [
        {
            "shape": [64, 32],
            "dtype": "float32",
            "digest": "0123456789abcdef",
            "nonfinite_count": 2,
            "min": -1.5,
            "max": "NaN",
            "examples": [3],
        }
    ],
    "reason": None,
    "text": "Infinity is born at step 812.",
}
"""Where the SDK found the first non-finite number."""


def error_messages(response: Any) -> dict[str, str]:
    """Return the messages of a refused request by their paths."""
    assert response.status_code == 422, response.text
    return {error["path"]: error["message"] for error in response.json()["errors"]}


def test_a_project_and_layer_names_are_enough(client: TestClient) -> None:
    """A run needs a project and the names of its layers; the other fields have defaults."""
    response = client.post(RUNS, json={"project": "p", "layers": [{"name": "w"}]})
    run = response.json()
    assert response.status_code == 201
    assert response.headers["Location"] == f"{RUNS}/{run['id']}"
    assert UUID(run["id"]).version == 7
    assert run["statistics"] == ["grad_norm"]
    assert (run["status"], run["verdict"], run["last_step"]) == ("running", "undetermined", None)
    assert run["name"]
    assert client.get(f"{RUNS}/{run['id']}").json() == run


def test_a_run_names_its_metrics(client: TestClient) -> None:
    """The names of all metrics that were sent, probes among them, are in the order in which they arrived."""
    run = client.post(RUNS, json={"project": "p", "layers": [{"name": "w"}]}).json()
    assert run["metrics"] == []
    for step, names in enumerate((["gradmedic/output_rms/b", "z"], ["a", "z", "gradmedic/output_rms/a"])):
        body = {"steps": [step], "loss": [1.0], "metrics": {name: [1.0] for name in names}}
        assert client.post(f"{RUNS}/{run['id']}/steps", json=body).status_code == 200
    names = client.get(f"{RUNS}/{run['id']}").json()["metrics"]
    assert names == ["gradmedic/output_rms/b", "z", "a", "gradmedic/output_rms/a"]


def test_every_field_is_stored(client: TestClient) -> None:
    """Every field is read back as it was sent, non-finite numbers and any Unicode included."""
    body = {
        "project": "πρ",
        "name": "naïve ☃",
        "config": {"lr": 0.1, "deep": {"list": [1, None, "NaN", True]}, "big": 2**64 - 1},
        "tags": ["b", "a"],
        "notes": "line\nline",
        "group": "g",
        "framework": "torch 2.13.0",
        "trainable": "t",
        "muted_detectors": ["plateau"],
        "statistics": ["weight_norm", "grad_norm"],
        "layers": [
            {
                "name": "w",
                "kind": "Linear",
                "shape": [2, 3],
                "numel": 6,
                "depth": 4,
                "frozen": True,
                "role": "weight",
                "fan_in": 3,
                "fan_out": 2,
                "activation": "relu",
                "normalized": False,
                "branch": True,
                "initial_rms": "NaN",
                "spectral_norm": "Infinity",
                "input_normalized": True,
                "block": "encoder.0",
                "calls": 2,
                "requires_grad": False,
            }
        ],
        "training": {
            "optimizers": [
                {
                    "name": "SGD",
                    "learning_rate": 0.1,
                    "momentum": 0.9,
                    "weight_decay": None,
                    "beta2": 0.999,
                    "epsilon": 1e-8,
                }
            ],
            "precision": "float32",
            "parameter_dtype": "float32",
            "input_rms": 1.0,
            "input_abs_max": "Infinity",
            "target_rms": None,
            "batch_size": 32,
            "clips_gradients": False,
            "carries_gradients": True,
            "layer_order": "registration",
            "loss": {
                "kind": "cross_entropy",
                "operations": ["NllLoss", "LogSoftmax"],
                "classes": 10,
                "constant_level": 2.3,
                "broadcasts": False,
                "surrogate": False,
            },
            "objective": {"kind": "metric", "metric": "reward", "direction": "maximize"},
            "dropped_steps": 3,
            "origin": ORIGIN,
        },
        "id": str(new_id()),
    }
    response = client.post(RUNS, json=body)
    assert response.status_code == 201, response.text
    stored = client.get(response.headers["Location"]).json()
    assert {name: stored[name] for name in body} == body


def test_the_diagnosis_has_the_origin_of_the_training(client: TestClient, create_run: Any) -> None:
    """It has all facts that were recorded, with a fix, from the step before its own on."""
    run = create_run(client, training={"origin": {**ORIGIN, "step": 2, "value": "NaN"}}, framework="torch 2.13.0")
    assert client.get(f"{run}/diagnosis").json()["origin"] is None
    body = {"steps": [0, 1, 2], "loss": [1.0, 1.0, "NaN"], "statistics": {"grad_norm": [[1.0, 1.0]] * 3}}
    assert client.post(f"{run}/steps", json=body).status_code == 200
    recorded = client.get(run).json()["training"]["origin"]
    origin = client.get(f"{run}/diagnosis").json()["origin"]
    assert {name: origin[name] for name in recorded} == recorded
    assert origin["value"] == "NaN"
    assert origin["fix"]["page"] == "root"
    assert client.get(f"{run}/diagnosis", params={"at_step": 1}).json()["origin"] == origin
    assert client.get(f"{run}/diagnosis", params={"at_step": 0}).json()["origin"] is None
    assert client.get(f"{create_run(client)}/diagnosis").json()["origin"] is None


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"text": "x" * 2001}, "text", "has more than 2000 characters"),
        ({"operations": ["Log"] * 65}, "operations", "has more than 64 operations"),
        ({"operations": ["x" * 2001]}, "operations[0]", "has more than 2000 characters"),
        ({"step": -1}, "step", "must be from 0 to"),
        ({"source": {"file": "x" * 2001, "line": 1}}, "source.file", "has more than 2000 characters"),
        ({"source": {"file": "train.py", "line": -1}}, "source.line", "must be from 0 to"),
        ({"input": {"count": -1}}, "input.count", "must be from 0 to"),
        ({"input": {"shape": [1] * 33}}, "input.shape", "has more than 32 dimensions"),
        ({"input": {"shape": [-1]}}, "input.shape[0]", "must be from 0 to"),
        ({"input": {"text": "x" * 2001}}, "input.text", "has more than 2000 characters"),
        ({"batch_tensors": [{}] * 9}, "batch_tensors", "has more than 8 tensors"),
        ({"batch_tensors": [{"shape": [1] * 33}]}, "batch_tensors[0].shape", "has more than 32 dimensions"),
        ({"batch_tensors": [{}, {"shape": [-1]}]}, "batch_tensors[1].shape[0]", "must be from 0 to"),
        ({"batch_tensors": [{"nonfinite_count": -1}]}, "batch_tensors[0].nonfinite_count", "must be from 0 to"),
        ({"batch_tensors": [{"examples": [0] * 17}]}, "batch_tensors[0].examples", "has more than 16 examples"),
        ({"batch_tensors": [{"examples": [-1]}]}, "batch_tensors[0].examples[0]", "must be from 0 to"),
        ({"batch_tensors": [{"digest": "x" * 2001}]}, "batch_tensors[0].digest", "has more than 2000 characters"),
    ],
)
def test_an_origin_beyond_the_limits_is_refused(
    sqlite_client: TestClient, changes: dict[str, Any], path: str, message: str
) -> None:
    """The error names the field of the origin."""
    body = {"project": "p", "layers": [], "training": {"origin": {**ORIGIN, **changes}}}
    response = sqlite_client.post(RUNS, json=body)
    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert error["path"] == f"training.origin.{path}"
    assert message in error["message"]


def test_bare_nan_in_config_is_stored_by_name(client: TestClient) -> None:
    """A bare NaN in the configuration is read back as the string `NaN`."""
    content = '{"project": "p", "layers": [], "config": {"lr": NaN, "inf": [-Infinity]}}'
    response = client.post(RUNS, content=content, headers={"Content-Type": "application/json"})
    assert response.json()["config"] == {"lr": "NaN", "inf": ["-Infinity"]}


def test_same_id_again_is_the_same_run(client: TestClient) -> None:
    """Sending the creation again answers 200 with the same run, also after layers were appended."""
    body = {"project": "p", "layers": [{"name": "w"}], "id": str(new_id())}
    first = client.post(RUNS, json=body)
    again = client.post(RUNS, json=body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    client.patch(f"{RUNS}/{body['id']}", json={"append_layers": [{"name": "v"}]})
    assert client.post(RUNS, json=body).status_code == 200


@pytest.mark.parametrize("difference", [{"project": "q"}, {"layers": [{"name": "v"}]}, {"statistics": ["weight_norm"]}])
def test_an_id_cannot_mean_two_runs(client: TestClient, difference: dict[str, Any]) -> None:
    """The id of a run with another project, layers or statistics is refused, and that run does not change."""
    body = {"project": "p", "layers": [{"name": "w"}], "id": str(new_id())}
    created = client.post(RUNS, json=body).json()
    response = client.post(RUNS, json={**body, **difference})
    assert (response.status_code, response.json()["error_code"]) == (409, "run_exists")
    assert client.get(f"{RUNS}/{body['id']}").json() == created


@pytest.mark.parametrize(
    ("fields", "path", "words"),
    [
        ({"project": " "}, "project", "empty"),
        ({"project": "p\x00"}, "project", "NUL"),
        ({"project": "p\n"}, "project", "control"),
        ({"project": "p" * 513}, "project", "at most 512"),
        ({"project": None}, "project", "string"),
        ({"colour": 1}, "colour", "no such field"),
        ({"layers": [{"name": "w", "shap": [1]}]}, "layers[0].shap", "no such field"),
        ({"layers": [{"kind": "Linear"}]}, "layers[0].name", "required"),
        ({"layers": [{"name": "w"}, {"name": "v"}, {"name": "w"}]}, "layers[2].name", "layers[0]"),
        ({"layers": [{"name": "w", "shape": [2, -1]}]}, "layers[0].shape[1]", "from 0"),
        ({"layers": [{"name": "w", "shape": [2, 3], "numel": 7}]}, "layers[0].numel", "has 6 elements"),
        ({"layers": [{"name": "w", "shape": [1] * 40}]}, "layers[0].shape", "32 dimensions"),
        ({"layers": [{"name": "w", "shape": [2**40, 2**40]}]}, "layers[0].shape", "elements"),
        ({"layers": [{"name": "w", "fan_in": 2**60}]}, "layers[0].fan_in", "from 0"),
        ({"layers": [{"name": "w", "initial_rms": -1}]}, "layers[0].initial_rms", "negative"),
        ({"statistics": []}, "statistics", "names none"),
        ({"statistics": ["grad_norm", "grad_norm"]}, "statistics[1]", "repeats"),
        ({"statistics": ["grad"]}, "statistics[0]", "is not one of grad_norm, "),
        ({"tags": ["a", "a"]}, "tags[1]", "repeats"),
        ({"tags": ["t"] * 65}, "tags", "at most 64"),
        ({"notes": "n" * 20_001}, "notes", "at most 20000"),
        ({"notes": "a\x00"}, "notes", "NUL"),
        ({"config": {"a": "x" * 300_000}}, "config", "at most 262144"),
        ({"config": {"a": "\x00"}}, "config.a", "NUL"),
        ({"config": {"a": [{"b\x00": 1}]}}, "config.a[0].b\x00", "NUL"),
        ({"config": {"a": [1, {"b": "\ud800"}]}}, "config.a[1].b", "Unicode"),
        ({"config": {"lr": 10**400}}, "config.lr", "from -9223372036854775808 to 18446744073709551615"),
        ({"layers": [{"name": "\ud800"}]}, "layers[0].name", "Unicode"),
        ({"training": {"batch_size": 2**63}}, "training.batch_size", "9223372036854775807"),
        ({"muted_detectors": ["plateau", "noise"]}, "muted_detectors[1]", "is not one of nonfinite, "),
        ({"muted_detectors": ["plateau", "plateau"]}, "muted_detectors[1]", "repeats"),
        ({"id": "0" * 32}, "id", "version 7"),
        ({"id": "x"}, "id", "UUID"),
        ({"training": {"batch_size": -1}}, "training.batch_size", "from 0"),
        ({"training": {"optimizers": [{"name": ""}]}}, "training.optimizers[0].name", "empty"),
    ],
)
def test_bad_fields_are_named(sqlite_client: TestClient, fields: dict[str, Any], path: str, words: str) -> None:
    """An invalid field is refused with its path and the reason, and nothing is stored."""
    body = json.dumps({"project": "p", "layers": [], **fields})  # the client's own `json` refuses lone surrogates
    response = sqlite_client.post(RUNS, content=body, headers={"Content-Type": "application/json"})
    assert words in error_messages(response)[path]
    assert sqlite_client.get(RUNS).json()["items"] == []


def test_deep_configuration_is_refused(sqlite_client: TestClient) -> None:
    """A configuration that is nested deeper than the limit is refused."""
    for depth, status in ((32, 201), (33, 422)):
        config: dict[str, Any] = {}
        for _ in range(depth - 1):
            config = {"a": config}
        assert sqlite_client.post(RUNS, json={"project": "p", "layers": [], "config": config}).status_code == status


def test_lone_surrogates_are_refused(client: TestClient) -> None:
    """Text with lone surrogates is refused before it reaches the database."""
    for field in ('"notes": "\\ud800"', '"config": {"a": "\\ud800"}', '"tags": ["\\ud800"]'):
        content = f'{{"project": "p", "layers": [], {field}}}'
        response = client.post(RUNS, content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 422, response.text


@pytest.mark.slow
def test_too_many_layers_are_refused(sqlite_url: str) -> None:
    """More layers than the limit are refused at creation and when layers are appended."""
    layers = [{"name": f"w{index}"} for index in range(4)]
    with TestClient(create_app(Settings(database_url=SecretStr(sqlite_url), max_layers=3))) as client:
        assert (
            "makes 4 layers; at most 3"
            in error_messages(client.post(RUNS, json={"project": "p", "layers": layers}))["layers"]
        )
        run = client.post(RUNS, json={"project": "p", "layers": layers[:2]}).json()
        response = client.patch(f"{RUNS}/{run['id']}", json={"append_layers": layers[2:]})
        assert "makes 4 layers" in error_messages(response)["append_layers"]


def test_an_update_changes_the_fields_that_it_names(client: TestClient, create_run: Any) -> None:
    """A PATCH changes the fields that it names, keeps the others, and raises the revision."""
    path = create_run(client, name="old", tags=["a"], notes="n", config={"a": 1})
    before = client.get(path).json()
    change = {"name": "new", "tags": ["c", "b"], "status": "finished", "training": {"optimizers": [], "batch_size": 8}}
    response = client.patch(path, json=change)
    assert response.status_code == 200, response.text
    after = response.json()
    assert (after["name"], after["tags"], after["status"]) == ("new", ["c", "b"], "finished")
    assert after["training"]["batch_size"] == 8
    assert (after["notes"], after["config"]) == ("n", {"a": 1})
    assert after["revision"] == before["revision"] + 1
    assert client.get(path).json() == after


def test_layers_are_appended_once(client: TestClient, create_run: Any) -> None:
    """Layers are added after the existing ones; the same request again adds nothing."""
    path = create_run(client, layers=1)
    for _ in range(2):
        response = client.patch(path, json={"append_layers": [{"name": "new", "kind": "Linear"}]})
        assert [layer["name"] for layer in response.json()["layers"]] == ["layer0", "new"]


@pytest.mark.slow
def test_layers_appended_at_once_are_all_kept(
    client: TestClient, create_run: Any, database: Database, settings: Settings
) -> None:
    """An update that waited for another replica's update adds its layers to those of that update."""
    path = create_run(client, layers=1)
    first = RunUpdate(append_layers=[Layer(name="first")])
    answers = []
    with TestClient(create_app(settings)) as other:
        body = {"append_layers": [{"name": "second"}]}
        waiting = threading.Thread(target=lambda: answers.append(other.patch(path, json=body)))
        with database.writing() as session:
            update(session, OPERATOR, UUID(path.rpartition("/")[2]), first, settings.limits())
            session.flush()
            waiting.start()
            while waiting.is_alive() and not is_transaction_waiting(database):
                pass
        waiting.join()
    assert answers[0].status_code == 200, answers[0].text
    assert [layer["name"] for layer in client.get(path).json()["layers"]] == ["layer0", "first", "second"]


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"append_layers": [{"name": "v"}, {"name": "layer0"}]}, "append_layers[1].name", "a layer that the run has"),
        ({"append_layers": [{"name": "v"}, {"name": "v"}]}, "append_layers[1].name", "append_layers[0]"),
        ({"status": "stalled"}, "status", "is not one of running, finished, failed"),
        ({"status": "done"}, "status", "is not one of"),
        ({"statistics": ["weight_norm"]}, "statistics", "no such field"),
        ({"name": ""}, "name", "empty"),
        ({"muted_detectors": ["noise"]}, "muted_detectors[0]", "is not one of nonfinite, "),
    ],
)
def test_bad_updates_change_nothing(
    client: TestClient, create_run: Any, change: dict[str, Any], path: str, words: str
) -> None:
    """An update with an invalid field is refused with its name and changes nothing."""
    run = create_run(client)
    before = client.get(run).json()
    response = client.patch(run, json={"notes": "changed", **change})
    assert words in error_messages(response)[path]
    assert client.get(run).json() == before


def test_unknown_run_is_not_found(client: TestClient) -> None:
    """Every route of a run that does not exist answers 404 `run_not_found`."""
    run = f"{RUNS}/{new_id()}"
    steps = {"steps": [0], "loss": [1.0]}
    for response in (
        client.get(run),
        client.patch(run, json={"name": "n"}),
        client.delete(run),
        client.post(f"{run}/steps", json=steps),
        client.get(f"{run}/steps?statistic=loss"),
        client.post(f"{run}/rewind", json={"step": 0, "generation": 0}),
        client.get(f"{run}/diagnosis"),
        client.get(f"{run}/diagnosis?at_step=1"),
        client.get(f"{run}/diagnosis/history"),
    ):
        assert (response.status_code, response.json()["error_code"]) == (404, "run_not_found")


TABLES_WITHOUT_RUN = (
    *("projects", "api_keys", "browser_sessions", "audit_records"),
    *("trainables", "reruns", "trials", "attempts"),
    *("alert_destinations", "alerts", "alert_deliveries"),
)


def test_deleting_removes_everything(client: TestClient, create_run: Any, database: Database) -> None:
    """After a deletion only the audit records and the history of alerts name the run; another run keeps its rows."""
    kept, deleted = (create_run(client, tags=["a"]) for _ in range(2))
    for run in (kept, deleted):
        rows: list[Any] = [[1, 1]] * 1599 + [["NaN", 1]]
        body = {"steps": list(range(1600)), "loss": [1.0] * 1600, "statistics": {"grad_norm": rows}}
        action = {"step": 7, "action": "skip", "reason": "gradient_spike", "explanation": "The norm is a spike."}
        assert client.post(f"{run}/steps", json={**body, "guard_actions": [action]}).status_code == 200
        assert client.put(f"{run}/review", json={"answer": "right"}).status_code == 200
    assert client.delete(deleted).status_code == 204
    assert client.get(deleted).status_code == 404
    assert client.delete(deleted).status_code == 404
    with database.reading() as session:
        for table in Base.metadata.sorted_tables:
            if table.name in TABLES_WITHOUT_RUN:
                continue
            column = table.c.id if table.name == "runs" else table.c.run_id
            runs = set(session.scalars(select(column)).all())
            assert runs == {UUID(kept.rpartition("/")[2])}, table.name


def find_names(client: TestClient, **parameters: Any) -> list[str]:
    """Return the names of the runs that a query finds."""
    response = client.get(RUNS, params=parameters)
    assert response.status_code == 200, response.text
    return [run["name"] for run in response.json()["items"]]


def test_filters_select_runs(client: TestClient, create_run: Any) -> None:
    """Each filter selects the runs that match it, and filters combine."""
    create_run(client, project="p", name="Alpha", tags=["x", "y"], notes="50% done")
    create_run(client, project="p", name="beta", tags=["y"], group="ablation")
    gamma = create_run(client, project="q", name="gamma_1")
    client.patch(gamma, json={"status": "failed"})
    assert find_names(client) == ["gamma_1", "beta", "Alpha"]
    assert find_names(client, project="p") == ["beta", "Alpha"]
    assert find_names(client, tag="x") == ["Alpha"]
    assert find_names(client, tag="y", q="BET") == ["beta"]
    assert find_names(client, q="50%") == ["Alpha"]
    assert find_names(client, q="abl") == ["beta"]
    assert find_names(client, q="a_1") == ["gamma_1"]
    assert find_names(client, q="aX1") == []
    assert find_names(client, status="failed") == ["gamma_1"]
    assert find_names(client, verdict="exploding") == []


def test_a_search_finds_parts_of_ids(client: TestClient, create_run: Any) -> None:
    """A text finds the run whose id begins or ends with it, in any case, from 8 characters on."""
    wanted, other = "0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f50", "0199b7f0-c8d2-7a31-8f55-0b1c2d3e4f51"
    for name, id in (("wanted", wanted), ("other", other)):
        create_run(client, project="p", name=name, id=id)
    for part in (wanted, "2d3e4f50", "8F55-0B1C-2D3E4F50", wanted.replace("-", "")[3:]):
        assert find_names(client, q=part) == ["wanted"], part
    for part in ("0199b7f0", "0199B7F0-c8d2-7a31-8f55-0b1c2d3e4f5", f"{wanted[:-1]}"):
        assert find_names(client, q=part) == ["other", "wanted"], part
    for part in ("d3e4f50", "0199b7f", "7a318f55", "b7f0-c8d2", "0199b7f0x"):
        assert find_names(client, q=part) == [], part


def test_learning_and_level_select_runs(client: TestClient, create_run: Any) -> None:
    """A run whose loss never falls is found by its level and by what its loss does; the history has the change."""
    stuck = create_run(client, name="stuck")
    create_run(client, name="new")
    losses = [2.3 + 0.02 * (step % 7) for step in range(200)]
    layers = len(client.get(stuck).json()["layers"])
    block = {"steps": list(range(200)), "loss": losses, "statistics": {"grad_norm": [[1.0] * layers] * 200}}
    assert client.post(f"{stuck}/steps", json=block).status_code == 200
    run = client.get(stuck).json()
    assert (run["verdict"], run["learning"], run["level"]) == ("healthy", "stuck", "attention")
    diagnosis = client.get(f"{stuck}/diagnosis").json()
    assert (diagnosis["learning"], diagnosis["level"]) == ("stuck", "attention")
    last = client.get(f"{stuck}/diagnosis/history").json()["items"][-1]
    assert (last["verdict"], last["learning"], last["level"]) == ("healthy", "stuck", "attention")
    assert find_names(client, level="attention") == find_names(client, learning="stuck") == ["stuck"]
    assert find_names(client, level="unknown") == find_names(client, learning="unknown") == ["new"]


@pytest.mark.parametrize("sort", ["created_at", "-created_at", "updated_at", "-updated_at", "name", "-name"])
def test_pages_cover_every_run_once(client: TestClient, create_run: Any, sort: str) -> None:
    """The pages together have every run once, in order, also where names repeat."""
    for index in range(7):
        create_run(client, name=f"run {index // 3}")
    names: list[str] = []
    ids: list[str] = []
    token = None
    while True:
        parameters: dict[str, str] = {"sort": sort, "max_results": "2"}
        page = client.get(RUNS, params={**parameters, "page_token": token} if token else parameters).json()
        ids += [run["id"] for run in page["items"]]
        names += [run["name"] for run in page["items"]]
        token = page["next_page_token"]
        if token is None:
            break
    assert len(set(ids)) == len(ids) == 7
    if sort.endswith("name"):
        assert names == sorted(names, reverse=sort.startswith("-"))
    else:
        assert ids == sorted(ids, reverse=sort.startswith("-"))


@pytest.mark.parametrize(
    ("parameters", "path"),
    [
        ({"max_results": 0}, "max_results"),
        ({"max_results": 1001}, "max_results"),
        ({"max_results": "many"}, "max_results"),
        ({"sort": "score"}, "sort"),
        ({"page_token": "nonsense"}, "page_token"),
        ({"page_token": "W10"}, "page_token"),
        ({"verdict": "sick"}, "verdict"),
        ({"learning": "much"}, "learning"),
        ({"level": "red"}, "level"),
        ({"status": "sick"}, "status"),
        ({"q": "a\x00"}, "q"),
        ({"project": ""}, "project"),
    ],
)
def test_bad_queries_are_named(client: TestClient, parameters: dict[str, Any], path: str) -> None:
    """An invalid query parameter is refused with its name."""
    assert path in error_messages(client.get(RUNS, params=parameters))


def test_a_token_belongs_to_its_query(client: TestClient, create_run: Any) -> None:
    """A page token is refused with other filters or another order than those of its page."""
    for _ in range(2):
        create_run(client, project="p")
    token = client.get(RUNS, params={"max_results": 1, "project": "p"}).json()["next_page_token"]
    assert client.get(RUNS, params={"page_token": token, "project": "p"}).status_code == 200
    for other in ({"project": "q"}, {}, {"project": "p", "sort": "name"}):
        assert "page_token" in error_messages(client.get(RUNS, params={"page_token": token, **other}))


def test_the_score_of_a_new_run_is_finite(client: TestClient, create_run: Any) -> None:
    """The score of a new run is finite."""
    assert math.isfinite(client.get(create_run(client)).json()["score"])


def test_a_list_of_trials_is_paged(client: TestClient) -> None:
    """The runs of a parent have pages of their own; an invalid page token is refused."""
    query = {"parent_id": str(new_id())}
    assert client.get(RUNS, params=query).json() == {"items": [], "next_page_token": None}
    assert "page_token" in error_messages(client.get(RUNS, params={**query, "page_token": "bm9uZQ"}))
