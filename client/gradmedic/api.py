"""`Client`, which queries the service: runs, their steps and their diagnoses, and reruns.

An answer is a dataclass of `gradmedic.protocol`. A list is an iterator that fetches its pages as needed. A failure
that may pass is retried before it is raised.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote
from uuid import UUID

from gradmedic.alert_lists import Alerts
from gradmedic.configuration import resolve_connection
from gradmedic.exceptions import GradmedicError, TransportError, UsageError
from gradmedic.protocol.diagnosis import Diagnosis, VerdictChange, VerdictHistory
from gradmedic.protocol.encoding import encode_json, from_json, to_json, to_plain
from gradmedic.protocol.guards import GuardActionList, RecordedGuardAction
from gradmedic.protocol.ids import new_id
from gradmedic.protocol.paging import Page
from gradmedic.protocol.projects import Project, ProjectList
from gradmedic.protocol.remedies import Remedy
from gradmedic.protocol.reruns import RERUN_KINDS, RerunBudget, RerunDetail, RerunList, RerunPlan, RerunSummary
from gradmedic.protocol.reviews import Review, ReviewWrite
from gradmedic.protocol.runs import RunDetail, RunUpdate
from gradmedic.protocol.series import SeriesResult
from gradmedic.protocol.service import MSGPACK_MEDIA_TYPE, Limits
from gradmedic.protocol.trainables import Trainable, Trainables, TrainablesOffer
from gradmedic.protocol.trials import (
    ClaimedTrial,
    HeartbeatResult,
    TrialClaim,
    TrialHeartbeat,
    TrialLease,
    TrialOutput,
    TrialRedemption,
    TrialResult,
    TrialTicket,
)
from gradmedic.run_lists import RunLists
from gradmedic.transport.http import Service, Transport, is_retryable, retry_delay

if TYPE_CHECKING:
    from gradmedic.protocol.packed_blocks import BlockArrays

T = TypeVar("T")

DEFAULT_ATTEMPTS = 4
"""Attempts at a request in total: with the delays of `retry_delay`, about four seconds of patience."""

_PAGE = 100
_POLL_INTERVAL = 0.5
"""Seconds between two requests while a run is waited for."""


def call_with_retries(act: Callable[[], T], attempts: int = DEFAULT_ATTEMPTS) -> T:
    """Call `act` until it succeeds, at most `attempts` times. Raise a failure that another attempt would not avoid."""
    for failures in range(attempts):
        try:
            return act()
        except GradmedicError as error:
            if not is_retryable(error) or failures == attempts - 1:
                raise
            time.sleep(retry_delay(error, failures))
    raise AssertionError("unreachable: the last attempt returns or raises")


class Client:
    """Queries the service.

    Args:
        base_url: address of the service; `GRADMEDIC_BASE_URL`, else http://127.0.0.1:8642.
        api_key: key for the service; `GRADMEDIC_API_KEY`, else none.
        timeout: seconds for one request; `GRADMEDIC_TIMEOUT`, else 10.
        attempts: number of attempts at one request, when it fails with 408, 429, 5xx or on the network.
        transport: sends the requests, in place of urllib3.

    Raises:
        ConfigurationError: an argument or environment variable is wrong.

    Every method raises `TransportError` if the service cannot be reached, and a subclass of `ApiError` if it refuses.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float | None = None,
        attempts: int = DEFAULT_ATTEMPTS,
        transport: Transport | None = None,
    ) -> None:
        self._service = Service(resolve_connection(base_url, api_key, timeout), transport)
        self._attempts = attempts
        self.runs = Runs(self)
        """Runs, their steps and their diagnoses."""
        self.reruns = Reruns(self)
        """Races of remedies."""
        self.alerts = Alerts(self)
        """Destinations of alerts, and the alerts that were made."""
        self.work = Work(self)
        """The workers' side of reruns."""

    def limits(self) -> Limits:
        """Return the limits of what the service accepts."""
        return self._request(Limits, "GET", "/limits")

    def project(self, name: str) -> Project:
        """Return the settings of a project."""
        return self._request(Project, "GET", f"/projects/{quote(name, safe='')}")

    def projects(self, *, page_size: int = _PAGE) -> Iterator[Project]:
        """Iterate over the projects that the key reaches, by name; pages of `page_size` are fetched as needed."""
        return self._list(ProjectList, "/projects", max_results=page_size)

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _request(self, answer: type[T], method: str, path: str, **request: Any) -> T:
        return self._retry(lambda: self._service.request_as(answer, method, path, **request))

    def _list(self, answer: type[Page], path: str, **query: Any) -> Iterator[Any]:
        """Iterate over the items of a list, whose pages are fetched as needed."""
        while True:
            page = self._request(answer, "GET", path, query=query)
            yield from page.items
            if page.next_page_token is None:
                return
            query["page_token"] = page.next_page_token

    def _send(self, method: str, path: str) -> None:
        self._retry(lambda: self._service.request(method, path))

    def _retry(self, act: Callable[[], T]) -> T:
        return call_with_retries(act, self._attempts)


class Runs(RunLists):
    """The runs of the service; see `Client`."""

    def get(self, id: UUID | str) -> RunDetail:
        """Return one run."""
        return self._client._request(RunDetail, "GET", f"/runs/{id}")

    def update(
        self,
        id: UUID | str,
        *,
        name: str | None = None,
        notes: str | None = None,
        tags: Sequence[str] | None = None,
        config: dict[str, Any] | None = None,
        muted_detectors: Sequence[str] | None = None,
    ) -> RunDetail:
        """Change the given fields of a run and return it."""
        update = RunUpdate(
            name=name,
            notes=notes,
            tags=None if tags is None else [*tags],
            config=config,
            muted_detectors=None if muted_detectors is None else [*muted_detectors],
        )
        return self._client._request(RunDetail, "PATCH", f"/runs/{id}", body=to_json(update))

    def wait(
        self, id: UUID | str, *, timeout: float | None = None, until: Callable[[RunDetail], bool] | None = None
    ) -> RunDetail:
        """Wait until a run is finished or failed, or `until(run)` holds, and return it.

        Raises:
            TimeoutError: `timeout` seconds passed before.
        """
        has_ended = until or (lambda run: run.status in ("finished", "failed"))
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not has_ended(run := self.get(id)):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"run {id} is {run.status}, at step {run.last_step}, after {timeout:g} s")
            time.sleep(min(_POLL_INTERVAL, max(0.0, deadline - time.monotonic())))
        return run

    def review(
        self,
        id: UUID | str,
        answer: str,
        *,
        verdict: str | None = None,
        level: str | None = None,
        note: str | None = None,
        step: int | None = None,
    ) -> Review:
        """Confirm or reject the verdict on a run, in place of an earlier review.

        Args:
            id: id of the run.
            answer: `right` or `wrong`.
            verdict: the true verdict, if the answer is `wrong` and it is known.
            level: the true level, if the answer is `wrong` and it is known.
            note: reason for the answer.
            step: step of the diagnosis that is reviewed; without it, the last step.
        """
        body = to_json(ReviewWrite(answer=answer, verdict=verdict, level=level, note=note, step=step))
        return self._client._request(Review, "PUT", f"/runs/{id}/review", body=body)

    def take_back_review(self, id: UUID | str) -> None:
        """Take back the review of a run. Nothing changes if there is none."""
        self._client._send("DELETE", f"/runs/{id}/review")

    def delete(self, id: UUID | str) -> None:
        """Delete a run with all its steps."""
        self._client._send("DELETE", f"/runs/{id}")

    def diagnosis(self, id: UUID | str, *, at_step: int | None = None) -> Diagnosis:
        """Return the diagnosis of a run, now or as of step `at_step`."""
        return self._client._request(Diagnosis, "GET", f"/runs/{id}/diagnosis", query={"at_step": at_step})

    def history(self, id: UUID | str) -> Sequence[VerdictChange]:
        """Return every change of a run's verdict, oldest first."""
        return self._client._request(VerdictHistory, "GET", f"/runs/{id}/diagnosis/history").items

    def guard_actions(self, id: UUID | str, *, page_size: int = _PAGE) -> Iterator[RecordedGuardAction]:
        """Iterate over what the guards of a run did, of all generations, the newest first."""
        return self._client._list(GuardActionList, f"/runs/{id}/guard-actions", max_results=page_size)

    def steps(
        self,
        id: UUID | str,
        statistic: str | Sequence[str],
        *,
        layer: str | Sequence[str] | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
        max_points: int | None = None,
    ) -> SeriesResult:
        """Return series of a run over at most `max_points` buckets of consecutive steps.

        Args:
            id: id of the run.
            statistic: names of statistics, `loss`, `learning_rate` or metrics.
            layer: names of layers; without it, all.
            from_step: first step.
            to_step: last step.
            max_points: number of buckets.
        """
        query = {
            "statistic": statistic,
            "layer": layer,
            "from_step": from_step,
            "to_step": to_step,
            "max_points": max_points,
        }
        return self._client._request(SeriesResult, "GET", f"/runs/{id}/steps", query=query)

    def blocks(
        self, id: UUID | str, *, from_step: int = 0, to_step: int | None = None, generation: int | None = None
    ) -> Iterator[BlockArrays]:
        """Iterate over all steps of a run at full resolution, in blocks that are fetched as needed.

        Args:
            id: id of the run.
            from_step: first step.
            to_step: last step; without it, the last one of the run.
            generation: generation that the run must have; without it, that of the first answer.

        Raises:
            UsageError: the run was rewound meanwhile, so that the blocks do not belong together.
        """
        # Here, because most commands read no blocks, and these need numpy.
        from gradmedic.protocol.packed_blocks import BlocksResult, PackedBlockError, unpack_block

        next_step: int | None = from_step
        while next_step is not None:
            query = {"from_step": next_step, "to_step": to_step}
            page = self._client._request(
                BlocksResult, "GET", f"/runs/{id}/blocks", query=query, accept=MSGPACK_MEDIA_TYPE
            )
            if generation not in (None, page.generation):
                raise UsageError(f"run {id} was rewound while its steps were read; read them again")
            generation, next_step = page.generation, page.next_step
            for block in page.blocks:
                try:
                    arrays = unpack_block(block)
                except PackedBlockError as error:
                    message = f"the service answered a block that this version cannot read: {error}"
                    raise TransportError(message) from error
                yield arrays


class Reruns:
    """The reruns of the service; see `Client`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def create(
        self,
        run_id: UUID | str,
        *,
        kind: str = RERUN_KINDS[0],
        remedies: Sequence[Sequence[Remedy]] | None = None,
        seeds: int | None = None,
        steps: int | None = None,
        seconds: float | None = None,
        trials: int | None = None,
        rounds: int | None = None,
        executor: str | None = None,
        id: UUID | None = None,
    ) -> RerunDetail:
        """Race remedies on a run's own trainable against an unchanged control, and return the rerun at once.

        With the kind "locate", no remedy is raced: the unchanged trainable runs to the step that was not finite.

        Args:
            run_id: the suspect run.
            kind: "locate" finds the operation that made the run non-finite; it takes no remedies, seeds or rounds.
            remedies: candidates, each a list of remedies that are applied together; without them, the run's advice.
            seeds: number of seeds; 3.
            steps: number of steps of each trial; without it, as many as the run has, if the seconds allow so many.
            seconds: largest duration of all trials together.
            trials: largest number of trials.
            rounds: largest number of rounds; without it, 3 for the run's advice, and 1 for named remedies.
            executor: one of `gradmedic.protocol.reruns.EXECUTORS`; its workers run the trials. Without it, any worker.
            id: UUIDv7 of the rerun; a second request with it makes no second rerun.
        """
        body = _rerun_request(
            kind, remedies, seeds, RerunBudget(steps=steps, seconds=seconds, trials=trials, rounds=rounds)
        )
        # One id for all attempts at this request.
        body |= {"executor": executor, "id": id or new_id()}
        return self._client._request(RerunDetail, "POST", f"/runs/{run_id}/reruns", body=to_json(body))

    def plan(
        self,
        run_id: UUID | str,
        *,
        kind: str = RERUN_KINDS[0],
        remedies: Sequence[Sequence[Remedy]] | None = None,
        seeds: int | None = None,
        steps: int | None = None,
        seconds: float | None = None,
        trials: int | None = None,
        rounds: int | None = None,
    ) -> RerunPlan:
        """Return the expected cost of the rerun that `create` makes with the same arguments. It makes none."""
        body = _rerun_request(
            kind, remedies, seeds, RerunBudget(steps=steps, seconds=seconds, trials=trials, rounds=rounds)
        )
        return self._client._request(RerunPlan, "POST", f"/runs/{run_id}/reruns/plan", body=to_json(body))

    def get(self, id: UUID | str) -> RerunDetail:
        """Return a rerun with its candidates, trials and attempts."""
        return self._client._request(RerunDetail, "GET", f"/reruns/{id}")

    def list(
        self,
        *,
        run_id: UUID | str | None = None,
        project: str | None = None,
        status: str | None = None,
        page_size: int = _PAGE,
    ) -> Iterator[RerunSummary]:
        """Iterate over the reruns that match every argument given, newest first."""
        filters = {"run_id": run_id, "project": project, "status": status}
        return self._client._list(RerunList, "/reruns", max_results=page_size, **filters)

    def cancel(self, id: UUID | str) -> RerunDetail:
        """Cancel a rerun and its trials."""
        return self._client._request(RerunDetail, "POST", f"/reruns/{id}/cancel")

    def output(self, trial_id: UUID | str, *, attempt: int | None = None) -> str:
        """Return the end of the output of an attempt at a trial: of the latest, unless `attempt` is given."""
        path = f"/trials/{trial_id}/output"
        return self._client._request(TrialOutput, "GET", path, query={"attempt": attempt}).output

    def wait(
        self,
        id: UUID | str,
        *,
        timeout: float | None = None,
        interval: float = 1.0,
        on_change: Callable[[RerunDetail], object] | None = None,
    ) -> RerunDetail:
        """Wait until a rerun is over, and return it.

        Args:
            id: id of the rerun.
            timeout: seconds to wait at most; None waits without end.
            interval: seconds between two requests.
            on_change: function called with the rerun whenever it has changed.

        Raises:
            TimeoutError: `timeout` seconds passed before.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        previous: RerunDetail | None = None
        while True:
            rerun = self.get(id)
            if on_change is not None and rerun != previous:
                on_change(rerun)
            if rerun.status not in ("queued", "running"):
                return rerun
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"rerun {id} is still {rerun.status} after {timeout:g} seconds")
            previous = rerun
            time.sleep(interval)


class Work:
    """The requests of a worker; see `Client`. They need a key with the scope `worker` where keys are needed."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def trainables(self) -> Sequence[Trainable]:
        """Return the registered trainables."""
        return self._client._request(Trainables, "GET", "/trainables").items

    def register(self, trainables: Sequence[Trainable], worker: str | None = None) -> None:
        """Register trainables, in place of earlier ones of these names and of those that `worker` registered."""
        body = to_json(TrainablesOffer(items=list(trainables), worker=worker))
        self._client._request(Trainables, "PUT", "/trainables", body=body)

    def claim(self, worker: str, trainables: Sequence[str], executor: str = "local") -> ClaimedTrial | None:
        """Claim a trial; None if there is none. Makes one attempt: a claim whose answer is lost is lost too."""
        body = to_json(TrialClaim(worker=worker, trainables=list(trainables), executor=executor))
        answer = self._client._service.request("POST", "/trials/claim", body=body)
        return from_json(answer, ClaimedTrial) if answer else None

    def heartbeat(self, trial_id: UUID, attempt: int, output: str | None, *, timeout: float) -> HeartbeatResult:
        """Renew a lease. Makes one attempt, because the next heartbeat follows soon."""
        body = to_json(TrialHeartbeat(attempt=attempt, output=output))
        return self._client._service.request_as(
            HeartbeatResult, "POST", f"/trials/{trial_id}/heartbeat", body=body, timeout=timeout
        )

    def issue_ticket(self, trial_id: UUID, attempt: int, ticket: str, seconds: float) -> TrialLease:
        """Register a ticket, which can be redeemed once. Makes one attempt; a repetition changes nothing."""
        body = to_json(TrialTicket(attempt=attempt, ticket=ticket, seconds=seconds))
        return self._client._service.request_as(TrialLease, "POST", f"/trials/{trial_id}/ticket", body=body)

    def redeem(self, trial_id: UUID, attempt: int) -> ClaimedTrial:
        """Exchange the ticket, which is this client's key, for what the attempt needs. Makes one attempt."""
        body = to_json(TrialRedemption(attempt=attempt))
        return self._client._service.request_as(ClaimedTrial, "POST", f"/trials/{trial_id}/redeem", body=body)

    def lease(self, trial_id: UUID, attempt: int, *, timeout: float) -> TrialLease:
        """Return the lease of an attempt, with the attempt's own key. Makes one attempt."""
        query = {"attempt": attempt}
        return self._client._service.request_as(
            TrialLease, "GET", f"/trials/{trial_id}/lease", query=query, timeout=timeout
        )

    def publish(self, trial_id: UUID, result: TrialResult, *, timeout: float | None = None) -> RerunDetail:
        """Publish the result of an attempt. Makes one attempt; a repetition changes nothing."""
        # A null is left out: a service of an earlier version refuses fields that it does not know.
        body = encode_json({name: value for name, value in to_plain(result).items() if value is not None})
        return self._client._service.request_as(
            RerunDetail, "POST", f"/trials/{trial_id}/result", body=body, timeout=timeout
        )


def _rerun_request(
    kind: str, remedies: Sequence[Sequence[Remedy]] | None, seeds: int | None, budget: RerunBudget
) -> dict[str, Any]:
    """Return the body of a request for a rerun.

    It has no kind and no limit that is not set: an older service may not know it.
    """
    limits = {field.name: value for field in fields(budget) if (value := getattr(budget, field.name)) is not None}
    body = {
        "remedies": None if remedies is None else [list(candidate) for candidate in remedies],
        "seeds": seeds,
        "budget": limits,
    }
    return body if kind == RERUN_KINDS[0] else {"kind": kind, **body}
