"""What Ray starts on a node: exchanges a ticket for a trial, and runs it as the node's own `worker.toml` says.

    python -m gradmedic_worker.node TRIAL-ATTEMPT

One idea: nothing that was submitted is believed, but which attempt it is. The command, its ranges and the service's
address are in a file of this node (`GRADMEDIC_WORKER_CONFIG`), the rest comes from the service, for a ticket that is
good once. While the trial runs, the service is asked whether anybody still waits for it: if the supervisor is gone, or
the service, or Ray's control over this process, the trial ends all the same.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from uuid import UUID

from gradmedic.api import Client
from gradmedic.exceptions import GradmedicError
from gradmedic.protocol.trials import ClaimedTrial
from gradmedic.transport.http import is_retryable
from gradmedic_worker.configuration import WorkerConfiguration, read_configuration
from gradmedic_worker.events import LogWriter
from gradmedic_worker.executors.base import STOPPED, HostedTrial, TrialEnd
from gradmedic_worker.executors.local import LocalExecutor, find_gpus
from gradmedic_worker.tickets import read_token, ticket_of

CONFIGURATION_VARIABLE = "GRADMEDIC_WORKER_CONFIG"
CONFIGURATION_FILE = "/etc/gradmedic/worker.toml"
LOOK = 0.1
"""Seconds between looks at the trial."""
TELL_EVERY = 1.0
"""Seconds between tellings of its output."""
ASKS_PER_LEASE = 5


def main() -> int:
    """Run the attempt that the command line names."""
    teller = LogWriter(_write_line)
    try:
        trial_id, attempt = _parsed(sys.argv[1:])
        _run(trial_id, attempt, dict(os.environ), teller)
    except GradmedicError as error:
        teller.lost(f"{os.uname().nodename}: {error}")
    return 0


def _parsed(arguments: list[str]) -> tuple[UUID, int]:
    try:
        [name] = arguments
        trial_id, _, attempt = name.rpartition("-")
        return UUID(trial_id), int(attempt)
    except ValueError:
        sys.exit("usage: python -m gradmedic_worker.node TRIAL-ATTEMPT")


def _run(trial_id: UUID, attempt: int, environment: Mapping[str, str], teller: LogWriter) -> None:
    path = Path(environment.get(CONFIGURATION_VARIABLE, CONFIGURATION_FILE))
    configuration = read_configuration(path, on_node=True)
    if configuration.ray is None:
        teller.lost(f'{path} on {os.uname().nodename}: worker.executor is not "ray"')
        return
    base_url = configuration.ray.base_url
    ticket = ticket_of(read_token(environment), f"{trial_id}-{attempt}")
    with Client(base_url, ticket, attempts=1) as bearer:
        claimed = bearer.work.redeem(trial_id, attempt)
    if claimed.trainable not in configuration.trainables:
        reason = f"{path} on {os.uname().nodename} has no trainable {claimed.trainable!r}"
        teller.end(TrialEnd(exit_code=None, reason=reason), "")
        return
    _host(claimed, configuration, base_url, environment, teller)


def _host(
    claimed: ClaimedTrial,
    configuration: WorkerConfiguration,
    base_url: str,
    environment: Mapping[str, str],
    teller: LogWriter,
) -> None:
    trainable = configuration.trainables[claimed.trainable]
    executor = LocalExecutor(
        replace(configuration, slots=1, trainables={trainable.name: trainable}),
        base_url,
        gpus=find_gpus(environment),  # those that Ray has given to this job
        environment=environment,
        threads=trainable.cpus,
        may_preload=False,
    )
    if trainable.name not in executor.fitting():
        reason = f"Ray gave it {len(find_gpus(environment))} GPUs, and {trainable.name!r} takes {trainable.gpus}"
        teller.end(TrialEnd(exit_code=None, reason=reason), "")
        return
    try:
        executor.prepare()
        trial = executor.start(claimed)
    except GradmedicError as error:
        executor.close()
        teller.end(TrialEnd(exit_code=None, reason=str(error)), "")
        return
    is_stopped = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        is_stopped.set()

    signal.signal(signal.SIGTERM, stop)  # how Ray stops a job; a kill closes the lifeline, which is enough
    try:
        with Client(base_url, claimed.api_key, attempts=1) as client:
            lease = _Lease(client, claimed)
            threading.Thread(target=lease.watch, daemon=True).start()
            _follow(trial, claimed, teller, is_stopped, lease)
    finally:
        trial.close()
        executor.close()


class _Lease:
    """Whether anybody still waits for the attempt; asked by a thread, as an answer may take long."""

    def __init__(self, client: Client, claimed: ClaimedTrial) -> None:
        self._client = client
        self._claimed = claimed
        self.is_over: str | None = None
        """Why nobody waits any more."""

    def watch(self) -> None:
        """Ask until it is over."""
        seconds = self._claimed.lease_seconds
        heard_at = time.monotonic()
        while self.is_over is None:
            time.sleep(seconds / ASKS_PER_LEASE)
            try:
                left = self._client.work.lease(
                    self._claimed.trial_id, self._claimed.attempt, timeout=max(1.0, seconds / 3)
                ).seconds
                why = "its supervisor was not heard of"
            except GradmedicError as error:
                if not is_retryable(error):
                    self.is_over = f"nobody waits for it: {error}"
                    return
                left, why = -1.0, f"the service was not heard of: {error}"
            if left > 0:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > seconds:
                self.is_over = f"{why} for {seconds:g} s"


def _follow(
    trial: HostedTrial, claimed: ClaimedTrial, teller: LogWriter, is_stopped: threading.Event, lease: _Lease
) -> None:
    has_asked = False
    tell_at = time.monotonic()
    while True:
        ended = trial.wait(LOOK)
        if isinstance(ended, TrialEnd):
            if is_stopped.is_set() and ended.reason is None:
                ended = replace(ended, reason=STOPPED)  # Ray's signal was for the script too
            teller.end(ended, _without_key(trial.output(), claimed.api_key))
            return
        if lease.is_over is not None:
            teller.lost(lease.is_over)
            return
        if is_stopped.is_set() and not has_asked:
            has_asked = True
            trial.stop()
        if time.monotonic() >= tell_at:
            tell_at = time.monotonic() + TELL_EVERY
            teller.output(_without_key(trial.output(), claimed.api_key))


def _without_key(output: str, key: str | None) -> str:
    """Return what a script printed, without its own key: Ray shows its logs to many."""
    return output if key is None else output.replace(key, "(the trial's key)")


def _write_line(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # standard output is the way to the supervisor


if __name__ == "__main__":
    sys.exit(main())
