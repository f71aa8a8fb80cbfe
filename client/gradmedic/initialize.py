"""`gradmedic.init()`, which begins a run."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from gradmedic.configuration import Configuration, as_trial, is_being_imported_by_spawn, resolve_configuration
from gradmedic.open_runs import finish_open_runs
from gradmedic.run import Run
from gradmedic.transport.http import Transport
from gradmedic.trial.instructions import read_trial_environment
from gradmedic.trial.seeding import seed_generators

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_CONNECT_SECONDS = 0.5
"""On the same machine, a port is open or refused at once."""


def init(
    project: str | None = None,
    *,
    config: Any = None,
    name: str | None = None,
    id: UUID | str | None = None,
    tags: Iterable[str] = (),
    notes: str | None = None,
    group: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    mode: str | None = None,
    trainable: str | None = None,
    log_freq: int | str | None = None,
    flush_interval: float | None = None,
    max_queue_bytes: int | None = None,
    max_disk_bytes: int | None = None,
    dir: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    silent: bool | None = None,
    on_unhealthy: str = "warn",
    on_nonfinite: str = "record",
    objective: str | None = None,
    transport: Transport | None = None,
) -> Run:
    """Begin a run and print its URL. The network is used by other threads only.

    What is not given comes from the environment variable in brackets, else from the default.

    Args:
        project: owner of the run [GRADMEDIC_PROJECT], "default".
        config: hyperparameters: a mapping, an `argparse.Namespace`, a dataclass.
        name: for humans [GRADMEDIC_RUN_NAME]; by default the service makes one up.
        id: UUID of the run [GRADMEDIC_RUN_ID]; a new UUIDv7.
        tags: words to find the run by [GRADMEDIC_TAGS, separated by commas].
        notes: free text.
        group: name that runs which belong together share [GRADMEDIC_RUN_GROUP].
        base_url: address of the service [GRADMEDIC_BASE_URL], http://127.0.0.1:8642.
        api_key: key for the service [GRADMEDIC_API_KEY], none.
        mode: "online"; "offline" to keep everything on disk for `gradmedic sync`; "disabled" to do nothing at all
            [GRADMEDIC_MODE].
        trainable: name under which a worker may rerun this job.
        log_freq: "auto" samples as often as costs 1.5 % of the training's time, and samples every step at the start
            (the first twenty steps, and further ones up to about a second of cost) and for twelve steps after a spike
            or an unhealthy verdict; a number samples the first twenty steps and then each multiple of it. A step with
            a non-finite gradient is sampled besides [GRADMEDIC_LOG_FREQ], "auto".
        flush_interval: seconds that a step waits to be sent [GRADMEDIC_FLUSH_INTERVAL], 1.
        max_queue_bytes: memory for steps that wait for the service [GRADMEDIC_MAX_QUEUE_BYTES], 64 MiB.
        max_disk_bytes: disk for steps that wait for the service [GRADMEDIC_MAX_DISK_BYTES], 1 GiB.
        dir: folder for these steps [GRADMEDIC_DIR], ".gradmedic".
        timeout: seconds for one request [GRADMEDIC_TIMEOUT], 10.
        silent: print nothing [GRADMEDIC_SILENT], False.
        on_unhealthy: when the verdict becomes vanishing or exploding: "warn" logs a warning, "stop" raises
            `UnhealthyRunError` from the next `log()` too, "clip" limits the gradients from then on as the diagnosis
            advises. "skip" does not take a step whose gradient is not finite or far above the usual ones; "rewind" also
            goes back to an earlier state where that does not help.
        on_nonfinite: when a gradient or the loss of a watched torch model is not finite: "record" records it; "locate"
            also repeats the step once, on a copy of the model, and logs and records the operation, the source line and
            the module where the first non-finite number arose. What the training computes stays the same. "skip" does
            not take the step; "stop" raises `UnhealthyRunError` from `log()` besides, which names the layer.
        objective: what counts as progress [GRADMEDIC_OBJECTIVE]: "minimize loss"; "minimize NAME" or "maximize NAME"
            with the name of a metric that the run logs; "none" if no number measures it. By default the loss, unless
            the SDK sees that it is a surrogate, such as that of a policy gradient.
        transport: sends the requests, in place of urllib3.

    In a trial of a rerun, the worker decides project, id and mode, and random, numpy and torch are seeded with the
    trial's seed. For other runs, `GRADMEDIC_SEED` seeds them too.

    Raises:
        ConfigurationError: an argument or environment variable is wrong.
    """
    environment = read_trial_environment()
    configuration = resolve_configuration(
        project=project,
        config=config,
        name=name,
        id=id,
        tags=tags,
        notes=notes,
        group=group,
        base_url=base_url,
        api_key=api_key,
        mode=mode,
        trainable=trainable,
        log_freq=log_freq,
        flush_interval=flush_interval,
        max_queue_bytes=max_queue_bytes,
        max_disk_bytes=max_disk_bytes,
        dir=dir,
        timeout=timeout,
        silent=silent,
        on_unhealthy=on_unhealthy,
        on_nonfinite=on_nonfinite,
        objective=objective,
    )
    if environment.instructions is not None:
        configuration = as_trial(configuration, environment.instructions.parameters)
    if is_being_imported_by_spawn():
        configuration = dataclasses.replace(configuration, mode="disabled")
    if "ipykernel" in sys.modules:  # a notebook cell that is run again begins its run again
        finish_open_runs()
    if environment.seed is not None:
        seed_generators(environment.seed)
    run = Run(configuration, transport, environment)
    if not configuration.silent and not run.is_follower:
        if configuration.mode == "online":
            sys.stderr.write(f"gradmedic: {_describe_place(configuration, run.url, is_checked=transport is None)}\n")
        elif configuration.mode == "offline":
            sys.stderr.write(f"gradmedic: this run is kept for `gradmedic sync {configuration.dir}`\n")
    return run


def _describe_place(configuration: Configuration, url: str, *, is_checked: bool) -> str:
    """Return where the run can be read. On this machine, it is checked whether a service is there at all."""
    place = urlsplit(configuration.base_url)
    if is_checked and place.hostname in _LOOPBACK and not _is_listening(place.hostname, place.port or 80):
        return (
            f"no service answers at {configuration.base_url} yet. Start one with `gradmedic serve`; until then, this "
            f"run is kept for `gradmedic sync {configuration.dir}`"
        )
    return f"this run is at {url}"


def _is_listening(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
