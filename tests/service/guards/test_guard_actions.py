"""Guard actions over HTTP, on both databases: stored exactly once with their steps, kept by rewinds, and listed."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient
from tests.support.service_app import CreateRun

from gradmedic.protocol.guards import GUARD_ACTIONS, GUARD_REASONS, MOST_GUARD_ACTIONS
from gradmedic.protocol.service import MSGPACK_MEDIA_TYPE
from gradmedic_service.database.engine import Database
from gradmedic_service.database.models import GuardAction


def action(step: int, kind: str = "skip", **fields: Any) -> dict[str, Any]:
    """Return a guard action as the SDK sends it."""
    return {
        "step": step,
        "action": kind,
        "reason": "gradient_spike",
        "numbers": {"grad_norm": 90.5, "limit": 12.0},
        "explanation": f"The gradient of step {step} is far above its usual norms, so the step is left out.",
        **fields,
    }


def block(first: int, count: int, *acted: int, **fields: Any) -> dict[str, Any]:
    """Return steps of which the guard skipped those in `acted`."""
    steps = range(first, first + count)
    return {
        "steps": [*steps],
        "loss": [1.0] * count,
        "skipped": [step in acted for step in steps],
        "guard_actions": [action(step) for step in acted],
        **fields,
    }


def append(client: TestClient, run: str, body: dict[str, Any], *, is_msgpack: bool = False) -> Any:
    """Append a block and return the answer."""
    if is_msgpack:
        content = msgspec.msgpack.encode(body)
        response = client.post(f"{run}/steps", content=content, headers={"Content-Type": MSGPACK_MEDIA_TYPE})
    else:
        response = client.post(f"{run}/steps", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def rewind(client: TestClient, run: str, step: int, generation: int, **fields: Any) -> Any:
    """Rewind a run and return the answer."""
    response = client.post(f"{run}/rewind", json={"step": step, "generation": generation, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def listed(client: TestClient, run: str, **parameters: Any) -> list[dict[str, Any]]:
    """Return the guard actions of a run, the newest first."""
    response = client.get(f"{run}/guard-actions", params=parameters)
    assert response.status_code == 200, response.text
    items: list[dict[str, Any]] = response.json()["items"]
    return items


def error_messages(response: Any) -> dict[str, str]:
    """Return the messages of a refused request by their paths."""
    assert response.status_code == 422, response.text
    return {error["path"]: error["message"] for error in response.json()["errors"]}


@pytest.mark.parametrize("is_msgpack", [False, True], ids=["json", "msgpack"])
def test_actions_are_stored_exactly_once_with_their_steps(
    client: TestClient, create_run: CreateRun, is_msgpack: bool
) -> None:
    """A block that is sent again stores nothing; of one that overlaps, the actions of the new steps are stored."""
    run = create_run(client)
    for _ in range(2):
        append(client, run, block(0, 10, 3, 7), is_msgpack=is_msgpack)
    append(client, run, block(5, 10, 7, 12), is_msgpack=is_msgpack)
    items = listed(client, run)
    assert [(item["sequence"], item["step"]) for item in items] == [(3, 12), (2, 7), (1, 3)]
    stored = {name: value for name, value in items[0].items() if name in action(12)}
    assert stored == action(12)
    assert {(item["generation"], item["to_step"], item["verdict"], item["is_dropped"]) for item in items} == {
        (0, None, None, False)
    }


def test_actions_out_of_order_are_stored_by_their_steps(client: TestClient, create_run: CreateRun) -> None:
    """Two actions of one step keep their order, and an earlier step comes first."""
    run = create_run(client)
    actions = [action(5, "clip"), action(5, "lower_rate"), action(2)]
    append(client, run, block(0, 10, guard_actions=actions))
    assert [(item["step"], item["action"]) for item in listed(client, run)] == [
        (5, "lower_rate"), (5, "clip"), (2, "skip"),
    ]  # fmt: skip


@pytest.mark.parametrize("is_msgpack", [False, True], ids=["json", "msgpack"])
def test_numbers_need_not_be_finite(client: TestClient, create_run: CreateRun, is_msgpack: bool) -> None:
    """Non-finite numbers travel by their names, and in msgpack as they are."""
    run = create_run(client)
    numbers = {"grad_norm": "NaN", "limit": "Infinity", "low": "-Infinity"}
    sent = {"grad_norm": math.nan, "limit": math.inf, "low": -math.inf} if is_msgpack else numbers
    append(client, run, block(0, 3, guard_actions=[action(1, numbers=sent)]), is_msgpack=is_msgpack)
    assert listed(client, run)[0]["numbers"] == numbers


def test_every_known_action_and_reason_is_taken(client: TestClient, create_run: CreateRun) -> None:
    """A block takes every action but `rewind`, with every reason."""
    run = create_run(client)
    kinds = [(kind, reason) for kind in GUARD_ACTIONS if kind != "rewind" for reason in GUARD_REASONS]
    actions = [action(step, kind, reason=reason) for step, (kind, reason) in enumerate(kinds)]
    append(client, run, block(0, len(kinds), guard_actions=actions))
    assert [(item["action"], item["reason"]) for item in reversed(listed(client, run))] == kinds


@pytest.mark.parametrize("is_msgpack", [False, True], ids=["json", "msgpack"])
@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"step": 10}, "step", "must be one of the block's steps; got 10"),
        ({"step": "3"}, "step", "valid integer"),
        ({"action": "explode"}, "action", "'explode' is not one of skip, clip, lower_rate, stop, give_up"),
        ({"action": "rewind"}, "action", "is sent with POST /runs/{id}/rewind"),
        ({"reason": "mood"}, "reason", "'mood' is not one of nonfinite_gradient, nonfinite_loss"),
        ({"numbers": {"limit": "12"}}, "numbers.limit", "must be a number or one of NaN, Infinity, -Infinity"),
        ({"numbers": {f"n{n}": 1.0 for n in range(17)}}, "numbers", "has 17 numbers; at most 16 are allowed"),
        ({"numbers": {"n" * 65: 1.0}}, f"numbers.{'n' * 65}", "the name has 65 characters; at most 64 are allowed"),
        ({"explanation": "e" * 501}, "explanation", "has 501 characters; at most 500 are allowed"),
        ({"explanation": " "}, "explanation", "must not be empty"),
        ({"explanation": "two\nlines"}, "explanation", "must not contain control characters"),
        ({"mood": 1}, "mood", "there is no such field"),
    ],
)
def test_a_bad_action_is_refused_with_its_field(
    client: TestClient,
    create_run: CreateRun,
    changes: dict[str, Any],
    path: str,
    message: str,
    is_msgpack: bool,
) -> None:
    """The error names the field and the limit, and neither the steps nor the action are stored."""
    run = create_run(client)
    body = block(0, 10, guard_actions=[action(1), action(3) | changes])
    content = {"content": msgspec.msgpack.encode(body), "headers": {"Content-Type": MSGPACK_MEDIA_TYPE}}
    response = client.post(f"{run}/steps", **(content if is_msgpack else {"json": body}))
    messages = error_messages(response)
    assert message in messages[f"guard_actions[1].{path}"]
    assert client.get(run).json()["last_step"] is None
    assert listed(client, run) == []


@pytest.mark.parametrize("is_msgpack", [False, True], ids=["json", "msgpack"])
def test_too_many_actions_of_a_block_are_refused(client: TestClient, create_run: CreateRun, is_msgpack: bool) -> None:
    """`/limits` publishes the largest number; one more is refused, and so many are taken."""
    run = create_run(client)
    most = client.get("/api/v1/limits").json()["max_guard_actions"]
    assert most == MOST_GUARD_ACTIONS
    body = block(0, 2, guard_actions=[action(1)] * (most + 1))
    content = {"content": msgspec.msgpack.encode(body), "headers": {"Content-Type": MSGPACK_MEDIA_TYPE}}
    response = client.post(f"{run}/steps", **(content if is_msgpack else {"json": body}))
    assert error_messages(response) == {"guard_actions": f"has {most + 1} actions; at most {most} are allowed"}
    append(client, run, block(0, 2, guard_actions=[action(1)] * most), is_msgpack=is_msgpack)
    assert listed(client, run, max_results=1)[0]["sequence"] == most


@pytest.mark.parametrize("actions", [{}, 1, "text", [1], [[]], [{"numbers": {"a": {}}}], [{"numbers": [{}]}], b"x"])
def test_a_msgpack_list_of_another_form_is_refused(client: TestClient, create_run: CreateRun, actions: Any) -> None:
    """What is no list of flat maps is refused before it is built."""
    run = create_run(client)
    body = msgspec.msgpack.encode(block(0, 2, guard_actions=actions))
    response = client.post(f"{run}/steps", content=body, headers={"Content-Type": MSGPACK_MEDIA_TYPE})
    assert error_messages(response) == {"guard_actions": "must be a list of guard actions, whose `numbers` is a map"}


def test_the_bytes_of_msgpack_actions_are_bounded(client: TestClient, create_run: CreateRun) -> None:
    """A hostile body with a million bytes of actions is refused by its size."""
    run = create_run(client)
    body = msgspec.msgpack.encode(block(0, 2, guard_actions=[action(1, explanation="e" * 2**20)]))
    response = client.post(f"{run}/steps", content=body, headers={"Content-Type": MSGPACK_MEDIA_TYPE})
    assert error_messages(response) == {"guard_actions": f"has more than {2**20} bytes"}


def test_a_rewind_stores_its_action_once_and_keeps_the_others(client: TestClient, create_run: CreateRun) -> None:
    """The action of a rewind has the verdict that it took back. Actions of dropped steps are marked, and stay."""
    run = create_run(client)
    growing = {
        "loss": [1.5**step for step in range(60)],
        "statistics": {"grad_norm": [[2.0**s] * 2 for s in range(60)]},
    }
    append(client, run, block(0, 60, 5, 50, **growing))
    before = client.get(run).json()
    assert before["verdict"] == "exploding"
    sent = action(60, "rewind", reason="verdict", numbers={})
    for _ in range(2):
        answer = rewind(client, run, 20, 0, guard_action=sent)
        assert answer["generation"] == 1
    append(client, run, block(21, 10, 25, generation=1))
    items = listed(client, run)
    assert [(item["generation"], item["step"], item["action"], item["is_dropped"]) for item in items] == [
        (1, 25, "skip", False), (0, 60, "rewind", False), (0, 50, "skip", True), (0, 5, "skip", False),
    ]  # fmt: skip
    told = items[1]
    assert (told["to_step"], told["verdict"], told["since_step"]) == (20, "exploding", before["since_step"])
    rewind(client, run, 22, 1)
    assert [item["is_dropped"] for item in listed(client, run)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"step": 20}, "step", "must be after step 20, which stays"),
        ({"step": 2**53 + 1}, "step", "at most 9007199254740992"),
        ({"action": "skip"}, "action", "'skip' is not one of rewind"),
        ({"reason": "mood"}, "reason", "'mood' is not one of"),
        ({"explanation": ""}, "explanation", "must not be empty"),
    ],
)
def test_a_rewind_with_a_bad_action_changes_nothing(
    client: TestClient, create_run: CreateRun, changes: dict[str, Any], path: str, message: str
) -> None:
    """The error names the field, and the run keeps its generation."""
    run = create_run(client)
    append(client, run, block(0, 30))
    body = {"step": 20, "generation": 0, "guard_action": action(30, "rewind") | changes}
    assert message in error_messages(client.post(f"{run}/rewind", json=body))[f"guard_action.{path}"]
    assert client.get(run).json()["generation"] == 0


def test_actions_are_listed_in_pages(client: TestClient, create_run: CreateRun) -> None:
    """Pages follow each other without gaps, and a token of another run or another kind is refused."""
    run, other = create_run(client), create_run(client)
    append(client, run, block(0, 10, *range(10)))
    found, token = [], None
    for _ in range(4):
        page = client.get(f"{run}/guard-actions", params={"max_results": 3, **({"page_token": token} if token else {})})
        found += [item["step"] for item in page.json()["items"]]
        first, token = token or page.json()["next_page_token"], page.json()["next_page_token"]
    assert (found, token) == ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], None)
    for wrong, message in (("x", "is not a token"), (first, "belongs to a list")):
        response = client.get(f"{other}/guard-actions", params={"page_token": wrong})
        assert message in error_messages(response)["page_token"]
    for size in (0, 1001):
        response = client.get(f"{run}/guard-actions", params={"max_results": size})
        assert error_messages(response) == {"max_results": "must be from 1 to 1000"}


def test_a_deleted_run_takes_its_actions_along(client: TestClient, create_run: CreateRun, database: Database) -> None:
    """No action stays behind without its run."""
    run = create_run(client)
    append(client, run, block(0, 3, 1))
    assert client.delete(run).status_code == 204
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(GuardAction)) == 0


def test_runs_have_the_number_of_their_actions(client: TestClient, create_run: CreateRun) -> None:
    """A list and a single run count what guards did, of all generations, each run for itself."""
    run, other = create_run(client), create_run(client)
    append(client, run, block(0, 200, 110, 130, 150))
    rewind(client, run, 140, 0, guard_action=action(200, "rewind"))
    append(client, other, block(0, 3))
    listed = {item["id"]: item["guard_actions"] for item in client.get("/api/v1/runs").json()["items"]}
    counts = {each: client.get(each).json()["guard_actions"] for each in (run, other)}
    assert counts == {run: 4, other: 0}
    assert listed == {each.rpartition("/")[2]: count for each, count in counts.items()}


def test_the_diagnosis_reports_the_guards(client: TestClient, create_run: CreateRun) -> None:
    """The report counts all actions and names the rewinds; without actions, and for earlier steps, there is none."""
    run = create_run(client)
    append(client, run, block(0, 100))
    assert client.get(f"{run}/diagnosis").json()["guards"] is None
    append(client, run, block(100, 100, 110, 130, 150))
    rewind(client, run, 140, 0, guard_action=action(200, "rewind"))
    report = client.get(f"{run}/diagnosis").json()["guards"]
    assert report["summary"] == "Guards: 3 steps skipped, rewound once (step 200 to 140)."
    assert report["counts"] == {"skip": 3, "rewind": 1}
    assert (report["recent_actions"], report["is_repeated"]) == (2, False)
    assert client.get(f"{run}/diagnosis", params={"at_step": 120}).json()["guards"] is None


def test_the_diagnosis_reports_guards_that_act_over_and_over(client: TestClient, create_run: CreateRun) -> None:
    """A guard that skips every eighth step has cured nothing, and neither has one that goes back again and again."""
    run, other = create_run(client), create_run(client)
    append(client, run, block(0, 96, *range(0, 96, 8)))
    report = client.get(f"{run}/diagnosis").json()["guards"]
    assert report["is_repeated"]
    assert "A guard changed 1 of 8 of the last 96 steps: the cause is not cured." in report["summary"]
    append(client, other, block(0, 100))
    for generation in range(3):
        rewind(client, other, 90, generation, guard_action=action(99, "rewind"))
        assert client.get(f"{other}/diagnosis").json()["guards"]["is_repeated"] == (generation == 2)
        append(client, other, block(91, 9))
    report = client.get(f"{other}/diagnosis").json()["guards"]
    assert "The trouble came back after each rewind: the cause is not cured." in report["summary"]
