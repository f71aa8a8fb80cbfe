"""The program that Ray starts on a node: it redeems a ticket for a trial, and runs it by the node's `worker.toml`.

    python -m gradmedic_worker.executors.ray_entrypoint TRIAL-ATTEMPT

The program takes only the attempt's name from the submitted job. The command, its parameters' ranges and the service's
address come from a file of this node (`GRADMEDIC_WORKER_CONFIG`). The rest comes from the service, in exchange for a
ticket that is valid once. While the trial runs, the program asks the service whether the attempt still has a lease. So
the trial also ends if the worker, the service, or Ray's control over this process is lost.
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
from gradmedic_worker.executors.base import STOPPED, TrialEnd, TrialProcess
from gradmedic_worker.executors.local import LocalExecutor, find_gpus
from gradmedic_worker.executors.ray_log import LogWriter
from gradmedic_worker.executors.ray_tickets import compute_ticket, read_cluster_token
from gradmedic_worker.silence import SILENT_LEASES, Silence

CONFIGURATION_VARIABLE = "GRADMEDIC_WORKER_CONFIG"
CONFIGURATION_FILE = "/etc/gradmedic/worker.toml"
POLL_INTERVAL = 0.1
"""Seconds between two checks of the trial's process."""
OUTPUT_INTERVAL = 1.0
"""Seconds between two output events."""
CHECKS_PER_LEASE = 5
"""Number of checks within the length of a lease."""


def main() -> int:
    """Run the attempt that the command line names."""
    log = LogWriter(_print_line)
    try:
        trial_id, attempt = _parse_arguments(sys.argv[1:])
        _run_attempt(trial_id, attempt, dict(os.environ), log)
    except GradmedicError as error:
        log.write_loss(f"{os.uname().nodename}: {error}")
    return 0


def _parse_arguments(arguments: list[str]) -> tuple[UUID, int]:
    try:
        [name] = arguments
        trial_id, _, attempt = name.rpartition("-")
        return UUID(trial_id), int(attempt)
    except ValueError:
        sys.exit("usage: python -m gradmedic_worker.executors.ray_entrypoint TRIAL-ATTEMPT")


def _run_attempt(trial_id: UUID, attempt: int, environment: Mapping[str, str], log: LogWriter) -> None:
    path = Path(environment.get(CONFIGURATION_VARIABLE, CONFIGURATION_FILE))
    configuration = read_configuration(path, is_ray_node=True)
    node = os.uname().nodename
    if configuration.ray is None:
        log.write_loss(f'{path} on {node}: worker.executor is not "ray"')
        return
    base_url = configuration.ray.base_url
    ticket = compute_ticket(read_cluster_token(environment), f"{trial_id}-{attempt}")
    with Client(base_url, ticket, attempts=1) as client:
        claimed = client.work.redeem(trial_id, attempt)
    if claimed.trainable not in configuration.trainables:
        _write_failure(log, f"{path} on {node} has no trainable {claimed.trainable!r}")
        return
    _host_trial(claimed, configuration, base_url, environment, log)


def _host_trial(
    claimed: ClaimedTrial,
    configuration: WorkerConfiguration,
    base_url: str,
    environment: Mapping[str, str],
    log: LogWriter,
) -> None:
    trainable = configuration.trainables[claimed.trainable]
    gpus = find_gpus(environment)  # Ray shows a job its own GPUs only
    executor = LocalExecutor(
        replace(configuration, slots=1, trainables={trainable.name: trainable}),
        base_url,
        gpus=gpus,
        environment=environment,
        threads=trainable.cpus,
        may_fork=False,
    )
    if trainable.name not in executor.list_startable_trainables():
        _write_failure(log, f"Ray gave it {len(gpus)} GPUs, and {trainable.name!r} takes {trainable.gpus}")
        return
    try:
        executor.prepare()
        trial = executor.start(claimed)
    except GradmedicError as error:
        executor.close()
        _write_failure(log, str(error))
        return
    is_stop_requested = threading.Event()

    def request_stop(_signal: int, _frame: FrameType | None) -> None:
        is_stop_requested.set()

    # Ray stops a job with SIGTERM. SIGKILL needs no handler: it closes the launcher's lifeline.
    signal.signal(signal.SIGTERM, request_stop)
    try:
        with Client(base_url, claimed.api_key, attempts=1) as client:
            lease = _LeaseMonitor(client, claimed)
            threading.Thread(target=lease.watch, daemon=True).start()
            _wait_for_end(trial, claimed, log, is_stop_requested, lease)
    finally:
        trial.close()
        executor.close()


def _write_failure(log: LogWriter, reason: str) -> None:
    """Write that the trial has failed before its script was started."""
    log.write_end(TrialEnd(exit_code=None, reason=reason), "")


class _LeaseMonitor:
    """Checks in a thread whether the attempt still has a lease. The service may take long to answer."""

    def __init__(self, client: Client, claimed: ClaimedTrial) -> None:
        self._client = client
        self._claimed = claimed
        self.end_reason: str | None = None
        """Why the attempt has no lease any more; None while it has one."""

    def watch(self) -> None:
        """Check the lease until it has ended."""
        lease_seconds = self._claimed.lease_seconds
        pause, timeout = lease_seconds / CHECKS_PER_LEASE, max(1.0, lease_seconds / 3)
        silence = Silence()
        while self.end_reason is None:
            time.sleep(pause)
            try:
                lease = self._client.work.lease(self._claimed.trial_id, self._claimed.attempt, timeout=timeout)
                is_held, problem, longest = lease.seconds > 0, "its worker has sent no heartbeat", lease_seconds
            except GradmedicError as error:
                if not is_retryable(error):
                    self.end_reason = f"the service has ended the attempt: {error}"
                    return
                is_held, problem = False, f"the service could not be reached: {error}"
                longest = SILENT_LEASES * lease_seconds
            if is_held:
                silence.record_answer()
                continue
            silence.record_failure(pause + timeout)
            if silence.seconds > longest:
                self.end_reason = f"{problem} (for {longest:g} s)"


def _wait_for_end(
    trial: TrialProcess,
    claimed: ClaimedTrial,
    log: LogWriter,
    is_stop_requested: threading.Event,
    lease: _LeaseMonitor,
) -> None:
    is_stopping = False
    write_output_at = time.monotonic()
    while True:
        end = trial.wait(POLL_INTERVAL)
        if isinstance(end, TrialEnd):
            if is_stop_requested.is_set() and end.reason is None:
                end = replace(end, reason=STOPPED)  # the script received Ray's signal too
            log.write_end(end, _hide_key(trial.output(), claimed.api_key))
            return
        if lease.end_reason is not None:
            log.write_loss(lease.end_reason)
            return
        if is_stop_requested.is_set() and not is_stopping:
            is_stopping = True
            trial.stop()
        if time.monotonic() >= write_output_at:
            write_output_at = time.monotonic() + OUTPUT_INTERVAL
            log.write_output(_hide_key(trial.output(), claimed.api_key))


def _hide_key(output: str, key: str | None) -> str:
    """Return a script's output without the trial's key, because every user of the cluster can read Ray's logs."""
    return output if key is None else output.replace(key, "(the trial's key)")


def _print_line(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # the worker reads standard output through Ray's log


if __name__ == "__main__":
    sys.exit(main())
