"""Lists of runs over HTTP, on both databases: what they show, order, filters, counts, changes of many runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
from starlette.testclient import TestClient

from gradmedic.protocol.ids import new_id

RUNS = "/api/v1/runs"


def make(client: TestClient, name: str, losses: list[Any] | None = None, **fields: Any) -> str:
    """Create a run of two layers that has logged losses and metrics; return its id."""
    metrics = fields.pop("metrics", {})
    body = {"project": "p", "name": name, "layers": [{"name": "first"}, {"name": "last"}], **fields}
    response = client.post(RUNS, json=body)
    assert response.status_code == 201, response.text
    run: str = response.json()["id"]
    if losses is not None:
        append(client, run, list(range(len(losses))), losses, metrics=metrics)
    return run


def append(client: TestClient, run: str, steps: list[int], losses: list[Any], **fields: Any) -> None:
    """Append steps with losses, and with gradients that are sound."""
    statistics = {"grad_norm": [[1.0, 1.0]] * len(steps)}
    body = {"steps": steps, "loss": losses, "statistics": statistics, **fields}
    response = client.post(f"{RUNS}/{run}/steps", json=body)
    assert response.status_code == 200, response.text


def read_all(client: TestClient, size: int = 2, **parameters: Any) -> list[dict[str, Any]]:
    """Read all pages of a list."""
    items: list[dict[str, Any]] = []
    token: dict[str, str] = {}
    while True:
        page = client.get(RUNS, params={**parameters, **token, "max_results": size}).json()
        items += page["items"]
        if page["next_page_token"] is None:
            return items
        token = {"page_token": page["next_page_token"]}


def names(client: TestClient, **parameters: Any) -> list[str]:
    """Return the names of the runs of a list."""
    return [run["name"] for run in read_all(client, **parameters)]


def errors(response: Any) -> dict[str, str]:
    """Return the messages of a refused request by their paths."""
    assert response.status_code == 422, response.text
    return {error["path"]: error["message"] for error in response.json()["errors"]}


def test_a_list_shows_loss_metrics_and_first_bad_layer(client: TestClient) -> None:
    """A run in a list has its last loss, a curve of up to 40 points, last metrics, duration, and first bad layer."""
    run = make(client, "plain")
    item = client.get(RUNS).json()["items"][0]
    assert (item["loss"], item["last_metrics"], item["duration"], item["first_bad_layer"]) == (None, {}, None, None)
    losses = [float(100 - step) for step in range(100)]
    times = [1000.0 + step for step in range(100)]
    metrics = {"accuracy": [None] * 50 + [0.5] + [None] * 49, "gradmedic/output_rms/b": [1.0] * 100}
    append(client, run, list(range(100)), losses, time=times, metrics=metrics)
    item = client.get(RUNS).json()["items"][0]
    assert (item["loss"]["last"], item["loss"]["step"]) == (1.0, 99)
    means = [sum(losses[start : start + 4]) / 4 for start in range(0, 100, 4)]
    assert item["loss"]["sparkline"] == means
    assert item["last_metrics"] == {"accuracy": 0.5}
    assert item["duration"] == 99.0
    assert client.get(f"{RUNS}/{run}").json()["loss"] == item["loss"]
    sick = make(client, "sick")
    body = {"steps": list(range(40)), "loss": [1.0] * 20 + ["NaN"] * 20}
    rows: list[Any] = [[1.0, 1.0]] * 20 + [[1.0, "NaN"]] * 20
    assert client.post(f"{RUNS}/{sick}/steps", json={**body, "statistics": {"grad_norm": rows}}).status_code == 200
    item = client.get(RUNS).json()["items"][0]
    assert (item["verdict"], item["first_bad_layer"]) == ("exploding", "last")
    assert (item["loss"]["last"], item["loss"]["sparkline"]) == ("NaN", [1.0] * 20 + ["NaN"] * 20)


@pytest.mark.parametrize("rewound_to", [4, 1999])
def test_a_rewind_takes_the_progress_back(sqlite_client: TestClient, rewound_to: int) -> None:
    """After a rewind a run shows what it showed at that step, and goes on from there."""
    client, steps = sqlite_client, 2600
    losses = [round(3.0 + math.sin(step / 50), 6) for step in range(steps)]
    rare: list[Any] = [float(step) if step % 700 == 3 else None for step in range(steps)]
    times = [float(step) for step in range(steps)]

    def send(run: str, start: int, stop: int) -> dict[str, Any]:
        part = slice(start, stop)
        metrics = {"rare": rare[part], "each": losses[part]}
        append(client, run, list(range(start, stop)), losses[part], time=times[part], metrics=metrics)
        item: dict[str, Any] = client.get(f"{RUNS}/{run}").json()
        return {name: item[name] for name in ("loss", "last_metrics", "duration")}

    straight, rewound = make(client, "straight"), make(client, "rewound")
    expected = send(straight, 0, rewound_to + 1)
    send(rewound, 0, steps)
    response = client.post(f"{RUNS}/{rewound}/rewind", json={"step": rewound_to, "generation": 0})
    assert response.status_code == 200, response.text
    item = client.get(f"{RUNS}/{rewound}").json()
    assert item["loss"].pop("sparkline") == pytest.approx(expected["loss"].pop("sparkline"), rel=0.02)
    assert {name: item[name] for name in expected} == expected
    assert read_all(client, sort="-metric.rare")[0]["last_metrics"] == expected["last_metrics"]
    both = send(straight, rewound_to + 1, steps), send(rewound, rewound_to + 1, steps)
    curves = [each["loss"].pop("sparkline") for each in both]
    assert both[0] == both[1]
    assert curves[0] == pytest.approx(curves[1], rel=0.02)


def test_a_list_is_sorted_by_every_column(client: TestClient) -> None:
    """Pages of any size have every run once, in the order of a column; runs without a value are always last."""
    make(client, "a", [3.0], config={"lr": 0.1, "optimizer": {"name": "sgd"}}, group="g", metrics={"score": [2.0]})
    make(client, "b", [1.0], config={"lr": 1, "optimizer.name": "adam"}, metrics={"score": ["NaN"]})
    make(client, "c", ["NaN"], config={"lr": "auto"}, metrics={"score": [-3.5]})
    make(client, "d", config={"lr": [1, 2]}, group="h")
    make(client, "e", ["Infinity"], config={"lr": 0.1, 'odd"key\\': True})
    make(client, "f", [1.0, 1.0])
    assert names(client, sort="loss") == ["b", "f", "a", "e", "c", "d"]
    assert names(client, sort="-loss") == ["c", "e", "a", "f", "b", "d"]
    assert names(client, sort="config.lr") == ["a", "e", "b", "c", "d", "f"]
    assert names(client, sort="-config.lr") == ["c", "b", "e", "a", "f", "d"]
    assert names(client, sort="config.optimizer.name")[:2] == ["b", "a"]
    assert names(client, sort='config.odd"key\\')[0] == "e"
    assert names(client, sort="metric.score")[:3] == ["c", "a", "b"]
    assert names(client, sort="-last_step")[0] == "f"
    assert names(client, sort="last_step")[-1] == "d"
    assert names(client, sort="-group")[:2] == ["d", "a"]
    for key in ("project", "group", "status", "verdict", "level", "first_bad_layer", "duration"):
        for sort in (key, f"-{key}"):
            assert sorted(names(client, sort=sort)) == ["a", "b", "c", "d", "e", "f"], sort


def test_a_page_goes_on_where_the_last_one_ended(client: TestClient) -> None:
    """Runs that appear between two pages neither repeat a run nor hide one."""
    for index in range(6):
        make(client, f"old {index}", [float(index)])
    page = client.get(RUNS, params={"sort": "loss", "max_results": 3}).json()
    assert [run["name"] for run in page["items"]] == ["old 0", "old 1", "old 2"]
    make(client, "new", [0.5])
    rest = client.get(RUNS, params={"sort": "loss", "page_token": page["next_page_token"]}).json()
    assert [run["name"] for run in rest["items"]] == ["old 3", "old 4", "old 5"]
    skipped = {"sort": "loss", "page_token": page["next_page_token"], "skip": 2}
    assert [run["name"] for run in client.get(RUNS, params=skipped).json()["items"]] == ["old 5"]
    assert names(client, size=1000, skip=5, sort="name") == ["old 4", "old 5"]
    assert names(client, size=1000, skip=6) == ["old 0"]
    wrong = client.get(RUNS, params={"sort": "-loss", "page_token": page["next_page_token"]})
    assert "page_token" in errors(wrong)


def test_values_select_runs(client: TestClient) -> None:
    """Conditions on hyperparameters, metrics and the loss select the runs that meet all of them."""
    make(client, "a", [3.0], config={"lr": 0.1, "optimizer": {"name": "sgd"}}, metrics={"val/acc": [0.7]})
    make(client, "b", [1.0], config={"lr": 0.01, "optimizer": {"name": "adam"}, "on": True}, metrics={"val/acc": [0.9]})
    make(client, "c", ["NaN"], config={"lr": "0.1", "seed": 1}, group="g")
    for parameters, expected in (
        ({"config.lr": "0.1"}, ["a"]),
        ({"config.lr": "1e-1"}, ["a"]),
        ({"config.lr": '"0.1"'}, ["c"]),
        ({"config.lr": "<0.1"}, ["b"]),
        ({"config.lr": "!=0.1"}, ["c", "b"]),
        ({"config.lr": [">=0.01", "<0.05"]}, ["b"]),
        ({"config.seed": "null"}, ["b", "a"]),
        ({"config.seed": "!=null"}, ["c"]),
        ({"config.optimizer.name": "adam"}, ["b"]),
        ({"config.on": "true"}, ["b"]),
        ({"metric.val/acc": ">0.8"}, ["b"]),
        ({"loss": "<=1"}, ["b"]),
        ({"loss": "NaN"}, ["c"]),
        ({"group": "g"}, ["c"]),
        ({"group": ""}, ["b", "a"]),
    ):
        assert names(client, **parameters) == expected, parameters
    shown = client.get(RUNS, params={"config_keys": ["optimizer.name", "lr", "none"], "sort": "name"}).json()["items"]
    assert [run["config"] for run in shown] == [
        {"optimizer.name": "sgd", "lr": 0.1},
        {"optimizer.name": "adam", "lr": 0.01},
        {"lr": "0.1"},
    ]
    assert client.get(RUNS).json()["items"][0]["config"] == {}


@pytest.mark.parametrize(
    ("path", "parameters", "field", "words"),
    [
        ("", {"config.": "1"}, "config.", "names no value"),
        ("", {"config.a.b.c.d.e.f.g.h.i": "1"}, "config.a.b.c.d.e.f.g.h.i", "more than 8 names"),
        ("", {"config.lr": ""}, "config.lr", "compares with nothing"),
        ("", {"config.lr": "<adam"}, "config.lr", "needs a finite number, not 'adam'"),
        ("", {"metric.x": "1" * 600}, "metric.x", "at most 512"),
        ("", {"config.a\x00": "1"}, "config.a\x00", "NUL"),
        ("", {"config.a": "\x00"}, "config.a", "NUL"),
        ("", {"loss": [f">{index}" for index in range(21)]}, "loss", "at most 20"),
        ("", {"sort": "config."}, "sort", "is not one of created_at, "),
        ("", {"sort": "score"}, "sort", "is not one of created_at, "),
        ("", {"config_keys": ["a"] * 21}, "config_keys", "at most 20"),
        ("", {"skip": -1}, "skip", "from 0 to 1000000"),
        ("", {"config_keys": " "}, "config_keys[0]", "names no value"),
        ("", {"configs.lr": "1"}, "configs.lr", "is no parameter"),
        ("/counts", {"group_by": "loss"}, "group_by", "is not one of group, project"),
        ("/counts", {"verdict": "sick"}, "verdict", "is not one of"),
        ("/columns", {"config.lr": "<"}, "config.lr", "compares with nothing"),
    ],
)
def test_bad_queries_are_named(
    sqlite_client: TestClient, path: str, parameters: dict[str, Any], field: str, words: str
) -> None:
    """An invalid parameter of a list is refused with its name and the reason."""
    assert words in errors(sqlite_client.get(f"{RUNS}{path}", params=parameters))[field]


def test_runs_are_counted(client: TestClient) -> None:
    """Counts are by level, verdict, status and group; the query of a group selects its runs."""
    stuck = [2.3 + 0.02 * (step % 7) for step in range(200)]
    make(client, "a", stuck, config={"lr": 0.1}, group="g")
    make(client, "b", config={"lr": 0.1})
    make(client, "c", config={"lr": "null"}, group="h")
    failed = make(client, "d", config={})
    client.patch(f"{RUNS}/{failed}", json={"status": "failed"})
    counts = client.get(f"{RUNS}/counts").json()
    assert (counts["total"], counts["levels"]) == (4, {"attention": 1, "unknown": 3})
    assert counts["verdicts"] == {"healthy": 1, "undetermined": 3}
    assert counts["statuses"] == {"running": 3, "failed": 1}
    assert counts["groups"] == []
    assert client.get(f"{RUNS}/counts", params={"status": "failed"}).json()["total"] == 1
    for key, expected in (
        ("config.lr", [(0.1, 2, ["b", "a"]), ("null", 1, ["c"]), (None, 1, ["d"])]),
        ("group", [("g", 1, ["a"]), ("h", 1, ["c"]), (None, 2, ["d", "b"])]),
        ("project", [("p", 4, ["d", "c", "b", "a"])]),
    ):
        groups = client.get(f"{RUNS}/counts", params={"group_by": key}).json()["groups"]
        found = [(each["value"], each["total"], names(client, **each["query"])) for each in groups]
        assert found == expected
    assert groups[0]["levels"] == {"attention": 1, "unknown": 3}


def test_columns_that_vary_come_first(client: TestClient) -> None:
    """The columns of a list are the hyperparameters, nested ones too, and the metrics of its runs."""
    make(client, "a", [1.0], config={"lr": 0.1, "model": {"width": 8}}, metrics={"acc": [0.5]})
    make(client, "b", [1.0], config={"lr": 0.2, "model": {"width": 8}}, metrics={"acc": [0.5], "gradmedic/x/y": [1.0]})
    columns = client.get(f"{RUNS}/columns").json()["items"]
    assert columns == [
        {"name": "config.lr", "varies": True},
        {"name": "config.model.width", "varies": False},
        {"name": "metric.acc", "varies": False},
    ]
    assert client.get(f"{RUNS}/columns", params={"q": "nothing"}).json() == {"items": []}


def test_many_runs_are_tagged_and_deleted(client: TestClient) -> None:
    """Each run of a request is changed, left as it is, or refused with the reason."""
    tagged = make(client, "tagged", tags=["a", "old"])
    full = make(client, "full", tags=[f"t{index}" for index in range(64)])
    plain = make(client, "plain")
    missing = str(new_id())
    ids = [tagged, full, plain, missing, plain]
    revision = client.get(f"{RUNS}/{plain}").json()["revision"]
    answer = client.post(f"{RUNS}/tags", json={"ids": ids, "add": ["a", "b"], "remove": ["old"]})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["changed"], body["unchanged"]) == ([tagged, plain], [])
    assert [(each["id"], each["error_code"]) for each in body["failed"]] == [
        (full, "too_many_tags"),
        (missing, "run_not_found"),
    ]
    assert "64 are allowed" in body["failed"][0]["detail"]
    assert client.get(f"{RUNS}/{tagged}").json()["tags"] == ["a", "b"]
    assert client.get(f"{RUNS}/{plain}").json()["revision"] == revision + 1
    again = client.post(f"{RUNS}/tags", json={"ids": [tagged], "add": ["a"], "remove": ["old"]}).json()
    assert again == {"changed": [], "unchanged": [tagged], "failed": []}
    gone = client.post(f"{RUNS}/delete", json={"ids": [plain, missing, full]}).json()
    assert gone["changed"] == [plain, full]
    assert [each["id"] for each in gone["failed"]] == [missing]
    assert names(client) == ["tagged"]


@pytest.mark.parametrize(
    ("path", "body", "field", "words"),
    [
        ("/tags", {"ids": [], "add": ["a"]}, "ids", "names no run"),
        ("/tags", {"ids": [str(new_id())] * 501, "add": ["a"]}, "ids", "at most 500"),
        ("/tags", {"ids": [str(new_id())]}, "add", "names no tag"),
        ("/tags", {"ids": [str(new_id())], "add": ["a", ""]}, "add[1]", "empty"),
        ("/tags", {"ids": [str(new_id())], "add": ["a"], "remove": ["b", "a"]}, "add[0]", "also in remove[1]"),
        ("/tags", {"ids": ["x"], "add": ["a"]}, "ids[0]", "UUID"),
        ("/delete", {"ids": []}, "ids", "names no run"),
        ("/delete", {"ids": [str(new_id())] * 501}, "ids", "at most 500"),
    ],
)
def test_bad_changes_are_named(
    sqlite_client: TestClient, path: str, body: dict[str, Any], field: str, words: str
) -> None:
    """An invalid field of a change of many runs is refused with its name and the reason."""
    assert words in errors(sqlite_client.post(f"{RUNS}{path}", json=body))[field]


def test_fixed_paths_are_no_ids(sqlite_client: TestClient) -> None:
    """A method that a path such as `/runs/counts` does not have is answered with 405 and its own methods."""
    for path, allowed in (("counts", "GET"), ("columns", "GET"), ("tags", "POST"), ("delete", "POST")):
        for method in {"GET", "POST", "PATCH", "DELETE", "PUT"} - {allowed}:
            answer = sqlite_client.request(method, f"/api/v1/runs/{path}")
            assert (answer.status_code, answer.headers["Allow"]) == (405, allowed), (method, path)
