"""Ray's Jobs REST API, as much of it as trials need.

One idea: every answer is one of three: the job, no job, or no answer. A cluster that cannot be reached now may be
reached in a moment, so that is an exception of its own; what it says of a job is data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import urllib3

from gradmedic.exceptions import ConfigurationError, GradmedicError

SHORT = 10.0
"""Seconds for a question."""
LONG = 60.0
"""Seconds for submitting: the first job of a node waits for its agent."""
LONGEST_MESSAGE = 500
VERSION = "/api/version"
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


class RayUnreachable(GradmedicError):
    """The cluster gave no answer, or one that is not Ray's: it may be restarting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What is asked of Ray."""

    id: str
    entrypoint: str
    cpus: int
    gpus: int
    memory: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What Ray says of a job."""

    status: str
    entrypoint: str
    message: str

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self.status in TERMINAL


class RayJobs:
    """The jobs of one cluster; safe to share between threads."""

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._headers = {"Authorization": f"Bearer {token}"}
        self._pool = urllib3.PoolManager(maxsize=16)
        self._is_guarded = False

    def check(self) -> str:
        """Return Ray's version. Raises RayUnreachable; ConfigurationError where the token is refused, or not needed."""
        status, answer = self._ask("GET", VERSION)
        if status != 200:
            raise RayUnreachable(f"{self._address} answered {status}: {_excerpt(answer)}")
        version = str(_decoded(answer).get("ray_version"))
        self._refuse_if_open()
        return version

    def submit(self, submission: Submission) -> None:
        """Hand a job over; one that is there already stays. Raises RayUnreachable if it may not have arrived."""
        body = {
            "submission_id": submission.id,
            "entrypoint": submission.entrypoint,
            "entrypoint_num_cpus": submission.cpus,
            "entrypoint_num_gpus": submission.gpus,
            **({} if submission.memory is None else {"entrypoint_memory": submission.memory}),
        }
        status, answer = self._ask("POST", "/api/jobs/", body, LONG)
        if status != 200 and self.find(submission.id) is None:
            raise RayUnreachable(f"Ray did not take the job: {status}: {_excerpt(answer)}")

    def find(self, id: str) -> Job | None:
        """Return a job; None if Ray knows of none. Raises RayUnreachable."""
        status, answer = self._ask("GET", f"/api/jobs/{id}")
        if status == 404 and b"does not exist" in answer:
            return None
        if status != 200:
            raise RayUnreachable(f"Ray answered {status}: {_excerpt(answer)}")
        found = _decoded(answer)
        return Job(
            status=str(found.get("status")),
            entrypoint=str(found.get("entrypoint")),
            message=_excerpt(str(found.get("message") or "").encode()),
        )

    def logs(self, id: str) -> str:
        """Return everything that a job has printed. Raises RayUnreachable, also where its node is gone."""
        status, answer = self._ask("GET", f"/api/jobs/{id}/logs")
        if status != 200:
            raise RayUnreachable(f"Ray answered {status}: {_excerpt(answer)}")
        return str(_decoded(answer).get("logs") or "")

    def stop(self, id: str) -> None:
        """Ask for the end of a job, or of one that waits as soon as it starts. Raises RayUnreachable."""
        status, answer = self._ask("POST", f"/api/jobs/{id}/stop", {})
        if status not in (200, 404):
            raise RayUnreachable(f"Ray did not stop the job: {status}: {_excerpt(answer)}")

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _refuse_if_open(self) -> None:
        """Raise ConfigurationError where anybody may run anything: the cluster answers without its token."""
        if self._is_guarded:
            return
        if self._request("GET", VERSION, {}, None, SHORT).status == 200:
            raise ConfigurationError(
                f"the Ray cluster at {self._address} answers without a token: whoever reaches it may run anything. "
                "Start each of its nodes with RAY_AUTH_MODE=token."
            )
        self._is_guarded = True

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, seconds: float = SHORT
    ) -> tuple[int, bytes]:
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        answer = self._request(method, path, headers, body, seconds)
        if answer.status in (401, 403):
            raise ConfigurationError(f"the Ray cluster at {self._address} refuses the token: {_excerpt(answer.data)}")
        return answer.status, answer.data

    def _request(
        self, method: str, path: str, headers: dict[str, str], body: dict[str, Any] | None, seconds: float
    ) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request(
                method,
                self._address + path,
                body=None if body is None else json.dumps(body),
                headers=headers,
                timeout=urllib3.Timeout(total=seconds),
                retries=False,
                redirect=False,  # the token is for this address
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise RayUnreachable(f"{self._address} does not answer: {error}") from error


def _decoded(answer: bytes) -> dict[str, Any]:
    try:
        found = json.loads(answer)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RayUnreachable(f"the answer is not one of Ray's: {_excerpt(answer)}")
    return found


def _excerpt(text: bytes) -> str:
    return text.decode("utf-8", "replace").strip()[-LONGEST_MESSAGE:]
