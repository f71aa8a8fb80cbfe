"""A client of Ray's Jobs REST API, with the few requests that trials need.

A request has one of three outcomes: the job, None for an unknown job, or `RayUnreachable` if the cluster does not
answer. The last is an exception because the cluster may answer a moment later.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import urllib3

from gradmedic.exceptions import ConfigurationError, GradmedicError

REQUEST_SECONDS = 10.0
"""Time limit of a request."""
SUBMIT_SECONDS = 60.0
"""Time limit of a submission. It is longer because a node's first job waits until the node's agent has started."""
LONGEST_MESSAGE = 500
"""Characters of an answer that are shown in a message."""
VERSION_PATH = "/api/version"
FINAL_STATUSES = ("SUCCEEDED", "FAILED", "STOPPED")


class RayUnreachable(GradmedicError):
    """The cluster gave no answer, or an answer that is not Ray's. It may be restarting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSubmission:
    """A job to submit to Ray."""

    id: str
    entrypoint: str
    cpus: int
    gpus: int
    memory: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The state of a job in Ray."""

    status: str
    entrypoint: str
    message: str

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended."""
        return self.status in FINAL_STATUSES


class RayJobs:
    """The jobs of one cluster. Safe to share between threads.

    Every method raises RayUnreachable if the cluster does not answer, and ConfigurationError if it refuses the token.
    """

    def __init__(self, address: str, token: str) -> None:
        self._address = address
        self._headers = {"Authorization": f"Bearer {token}"}
        self._pool = urllib3.PoolManager(maxsize=16)
        self._is_token_required = False

    def check(self) -> str:
        """Return Ray's version. Raises ConfigurationError also if the cluster answers without a token."""
        status, body = self._request("GET", VERSION_PATH)
        if status != 200:
            raise RayUnreachable(f"{self._address} answered {status}: {_excerpt(body)}")
        version = str(_decode(body).get("ray_version"))
        self._refuse_open_cluster()
        return version

    def submit(self, submission: JobSubmission) -> None:
        """Submit a job. Does nothing if a job with its id exists."""
        body = {
            "submission_id": submission.id,
            "entrypoint": submission.entrypoint,
            "entrypoint_num_cpus": submission.cpus,
            "entrypoint_num_gpus": submission.gpus,
            **({} if submission.memory is None else {"entrypoint_memory": submission.memory}),
        }
        status, answer = self._request("POST", "/api/jobs/", body, SUBMIT_SECONDS)
        if status != 200 and self.find(submission.id) is None:
            raise RayUnreachable(f"Ray did not take the job: {status}: {_excerpt(answer)}")

    def find(self, id: str) -> Job | None:
        """Return a job, or None if Ray has no job with this id."""
        status, body = self._request("GET", f"/api/jobs/{id}")
        if status == 404 and b"does not exist" in body:
            return None
        if status != 200:
            raise RayUnreachable(f"Ray answered {status}: {_excerpt(body)}")
        job = _decode(body)
        return Job(
            status=str(job.get("status")),
            entrypoint=str(job.get("entrypoint")),
            message=_excerpt(str(job.get("message") or "").encode()),
        )

    def read_log(self, id: str) -> str:
        """Return everything that a job has printed. Raises RayUnreachable also if the job's node is gone."""
        status, body = self._request("GET", f"/api/jobs/{id}/logs")
        if status != 200:
            raise RayUnreachable(f"Ray answered {status}: {_excerpt(body)}")
        return str(_decode(body).get("logs") or "")

    def stop(self, id: str) -> None:
        """Stop a job. Ray stops a job that waits for a place as soon as it starts."""
        status, body = self._request("POST", f"/api/jobs/{id}/stop", {})
        if status not in (200, 404):
            raise RayUnreachable(f"Ray did not stop the job: {status}: {_excerpt(body)}")

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _refuse_open_cluster(self) -> None:
        """Raise ConfigurationError if the cluster answers a request without a token."""
        if self._is_token_required:
            return
        if self._send("GET", VERSION_PATH, {}, None, REQUEST_SECONDS).status == 200:
            raise ConfigurationError(
                f"the Ray cluster at {self._address} answers without a token: everyone who reaches it may run any "
                "program there. Start each of its nodes with RAY_AUTH_MODE=token."
            )
        self._is_token_required = True

    def _request(
        self, method: str, path: str, body: dict[str, Any] | None = None, seconds: float = REQUEST_SECONDS
    ) -> tuple[int, bytes]:
        """Send a request with the token, and return the answer's status and body."""
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        answer = self._send(method, path, headers, body, seconds)
        if answer.status in (401, 403):
            raise ConfigurationError(f"the Ray cluster at {self._address} refuses the token: {_excerpt(answer.data)}")
        return answer.status, answer.data

    def _send(
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
                redirect=False,  # no other address may receive the token
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise RayUnreachable(f"{self._address} does not answer: {error}") from error


def _decode(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise RayUnreachable(f"the answer is not one of Ray's: {_excerpt(body)}")
    return content


def _excerpt(body: bytes) -> str:
    return body.decode("utf-8", "replace").strip()[-LONGEST_MESSAGE:]
