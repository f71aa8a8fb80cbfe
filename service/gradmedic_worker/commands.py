"""`gradmedic worker`: offers the trainables of a `worker.toml` and runs their trials."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType


class WorkerCommand:
    """`gradmedic worker`."""

    help = "run the trials of reruns, on this machine or on a Ray cluster"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its arguments."""
        parser.add_argument("--config", type=Path, default=Path("worker.toml"), help="(default: worker.toml)")
        parser.add_argument("--base-url", help="of the service (default: $GRADMEDIC_BASE_URL or http://127.0.0.1:8642)")
        parser.add_argument(
            "--api-key-file", type=Path, help="that holds its key (default: the key is $GRADMEDIC_API_KEY)"
        )
        parser.add_argument("--slots", type=int, help="trials at the same time, if other than worker.toml says")
        parser.add_argument("--until-input-ends", action="store_true", help="end when standard input is closed")

    def run(self, args: argparse.Namespace) -> int:
        """Work until a signal. The first lets running trials end, a second ends them."""
        from dataclasses import replace

        from gradmedic.api import Client
        from gradmedic.configuration import resolve_connection
        from gradmedic.exceptions import ConfigurationError
        from gradmedic_worker.configuration import read_configuration
        from gradmedic_worker.executors.base import Executor
        from gradmedic_worker.executors.local import LocalExecutor, find_gpus
        from gradmedic_worker.executors.ray import RayExecutor
        from gradmedic_worker.supervisor import Supervisor

        configuration = read_configuration(args.config)
        if args.slots is not None:
            if args.slots < 1:
                raise ConfigurationError(f"--slots must be at least 1, not {args.slots}")
            configuration = replace(configuration, slots=args.slots)

        def tell(line: str) -> None:
            print(line, flush=True)

        base_url = resolve_connection(args.base_url).base_url
        with Client(base_url, _key_in(args.api_key_file), attempts=1) as client:
            environment = dict(os.environ)
            executor: Executor
            if configuration.ray is not None:
                executor = RayExecutor(configuration, client, environment=environment, tell=tell)
            else:
                gpus = find_gpus(environment)
                executor = LocalExecutor(configuration, base_url, gpus=gpus, environment=environment)
            supervisor = Supervisor(client, configuration, executor, tell=tell)
            asked = threading.Event()

            def stop(_signal: int, _frame: FrameType | None) -> None:
                # A handler must not wait for a lock that the thread it interrupts may hold.
                act = supervisor.abandon if asked.is_set() else supervisor.drain
                asked.set()
                threading.Thread(target=act, daemon=True).start()

            for each in (signal.SIGTERM, signal.SIGINT):
                signal.signal(each, stop)
            if args.until_input_ends:
                threading.Thread(target=_abandon_at_end_of_input, args=(supervisor.abandon,), daemon=True).start()
            return supervisor.run()


def _key_in(file: Path | None) -> str | None:
    from gradmedic.exceptions import ConfigurationError

    if file is None:
        return None
    try:
        return file.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"--api-key-file {file} cannot be read: {error.strerror or error}") from None


def _abandon_at_end_of_input(abandon: Callable[[], None]) -> None:
    sys.stdin.buffer.read()
    abandon()


WORKER = WorkerCommand()
