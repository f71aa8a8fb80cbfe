"""Results of trials that the service cannot store, or does not accept."""

from __future__ import annotations

import json

import pytest
from tests.support.faulty_proxy import Fault, FaultyProxy, ProxiedRequest
from tests.support.patience import PATIENCE
from tests.support.services import Serve
from tests.support.workers import (
    SCRIPT,
    StartWorker,
    WaitUntil,
    attempt_statuses,
    has_trainables,
    set_parameters,
    stream_exploding_run,
    wait_for_end,
)

import gradmedic
from gradmedic.protocol.service import PROBLEM_MEDIA_TYPE

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("worker")]

LEASE = 5.0
"""Seconds. A worker that runs is never silent for so long, even on a slow machine."""
STRANGE_SCRIPT = """
    import json, os, sys
    os.write(1, b"printed \\x00 and \\xff\\n")
    strange = "no use: \\x00, \\ud800"
    with open(os.environ["GRADMEDIC_REPORT"], "w") as file:
        json.dump({"not_applicable": strange, "environment": {"torch": strange, strange: "1"}}, file)
"""
"""A script that prints and reports characters which PostgreSQL and UTF-8 cannot hold."""


def make_fault(status: int) -> Fault:
    """Return the fault that answers a result with one of gradmedic's problems."""
    problem = {
        "type": "about:blank",
        "title": "A problem",
        "status": status,
        "detail": "made for the test",
        "error_code": "made",
        "request_id": "1",
    }
    return Fault(
        path="/result", status=status, headers={"content-type": PROBLEM_MEDIA_TYPE}, body=json.dumps(problem).encode()
    )


def count_claims(requests: list[ProxiedRequest]) -> int:
    """Count the claims that were answered with a trial."""
    return sum(request.path.endswith("/claim") and request.status == 200 for request in requests)


def test_a_report_with_strange_characters_is_published(
    serve: Serve, database_url: str, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    """NUL and half characters in a report and in the output are replaced, and the trial ends with its first attempt."""
    with (
        serve(database_url) as service,
        gradmedic.Client(service.url) as client,
        start_worker(service.url, script=STRANGE_SCRIPT),
    ):
        wait_until(lambda: has_trainables(client))
        rerun = client.reruns.create(
            stream_exploding_run(client), remedies=[set_parameters(how="learn")], seeds=1, steps=80
        )
        rerun = wait_for_end(client, rerun)
        (attempt,) = rerun.trials[0].attempts
        cleaned = "no use: \N{REPLACEMENT CHARACTER}, \N{REPLACEMENT CHARACTER}"
        assert (attempt.status, attempt.reason) == ("not_applicable", cleaned)
        assert attempt.environment == {"torch": cleaned, cleaned: "1"}
        printed = "printed \N{REPLACEMENT CHARACTER} and \N{REPLACEMENT CHARACTER}\n"
        assert client.reruns.output(rerun.trials[0].id) == printed


def test_a_trial_whose_result_is_refused_has_failed(
    serve: Serve, sqlite_url: str, start_worker: StartWorker, wait_until: WaitUntil
) -> None:
    """If the service refuses what a result holds, the trial ends as failed, with the refusal as its reason."""
    with (
        serve(sqlite_url) as service,
        gradmedic.Client(service.url) as client,
        FaultyProxy(service.url) as proxy,
        start_worker(proxy.url, script=SCRIPT),
    ):
        proxy.fail(make_fault(422))
        wait_until(lambda: has_trainables(client))
        rerun = client.reruns.create(
            stream_exploding_run(client), remedies=[set_parameters(how="learn")], seeds=1, steps=80
        )
        rerun = wait_for_end(client, rerun)
        assert attempt_statuses(rerun)[0] == ["failed"]
        assert "the service did not accept its result" in (rerun.trials[0].reason or "")
        assert [request.status for request in proxy.requests if request.path.endswith("/result")][:2] == [422, 200]


@pytest.mark.parametrize("status", [422, 503])
def test_a_result_holds_a_slot_for_a_lease_at_most(
    serve: Serve, sqlite_url: str, start_worker: StartWorker, wait_until: WaitUntil, status: int
) -> None:
    """A worker with one slot whose results are never accepted claims the trial again once the lease has expired."""
    with (
        serve(sqlite_url, lease=LEASE) as service,
        gradmedic.Client(service.url) as client,
        FaultyProxy(service.url) as proxy,
        start_worker(proxy.url),
    ):
        proxy.permanent = make_fault(status)
        wait_until(lambda: has_trainables(client))
        rerun = client.reruns.create(
            stream_exploding_run(client), remedies=[set_parameters(how="learn")], seeds=1, steps=80
        )
        proxy.wait_for(lambda requests: count_claims(requests) == 2, PATIENCE)
        proxy.permanent = None
        rerun = wait_for_end(client, rerun)
        assert (rerun.reason, attempt_statuses(rerun)) == ("1 of 1 candidates verified", [["lost", "done"], ["done"]])
