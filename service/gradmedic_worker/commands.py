"""`gradmedic worker`: runs the trials of the trainables in a `worker.toml`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradmedic_worker.configuration import WorkerConfiguration


class WorkerCommand:
    """The command `gradmedic worker`."""

    help = "run the trials of reruns, on this machine or on a Ray cluster"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "--config", type=Path, default=Path("worker.toml"), help="configuration file (default: worker.toml)"
        )
        parser.add_argument(
            "--base-url", help="URL of the service (default: $GRADMEDIC_BASE_URL or http://127.0.0.1:8642)"
        )
        key = parser.add_mutually_exclusive_group()
        key.add_argument(
            "--api-key-file", type=Path, help="file with the worker's key (default: the key is $GRADMEDIC_API_KEY)"
        )
        key.add_argument(
            "--api-key-descriptor",
            type=int,
            metavar="N",
            help="open descriptor of a pipe or file with the worker's key",
        )
        parser.add_argument("--slots", type=int, help="trials at the same time (default: as in the configuration file)")
        parser.add_argument("--until-input-ends", action="store_true", help="end when standard input is closed")

    def run(self, args: argparse.Namespace) -> int:
        """Run trials until a signal. The first signal lets running trials end, the second ends them."""
        from gradmedic_worker.worker_key import KEY_VARIABLE, hide_memory, run_again_without_key

        hide_memory()
        key = os.environ.get(KEY_VARIABLE)
        if key:
            has_other_key = args.api_key_file is not None or args.api_key_descriptor is not None
            run_again_without_key(_repeat_arguments(args), "" if has_other_key else key)
        return self._run_trials(args)

    def _run_trials(self, args: argparse.Namespace) -> int:
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

        def print_line(line: str) -> None:
            print(line, flush=True)

        base_url = resolve_connection(args.base_url).base_url
        with Client(base_url, _read_key(args, configuration), attempts=1) as client:
            environment = dict(os.environ)
            executor: Executor
            if configuration.executor == RayExecutor.name:
                executor = RayExecutor(configuration, client, environment=environment, print_line=print_line)
            else:
                executor = LocalExecutor(configuration, base_url, gpus=find_gpus(environment), environment=environment)
                if os.geteuid() == 0 and configuration.user is None:
                    print_line("this worker runs trials as root: name another user as worker.user in its file")
            supervisor = Supervisor(client, configuration, executor, print_line=print_line)
            is_draining = threading.Event()

            def handle_signal(_signal: int, _frame: FrameType | None) -> None:
                # The interrupted thread may hold the supervisor's lock, so another thread takes it.
                action = supervisor.abandon if is_draining.is_set() else supervisor.drain
                is_draining.set()
                threading.Thread(target=action, daemon=True).start()

            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, handle_signal)
            if args.until_input_ends:
                threading.Thread(target=_abandon_at_end_of_input, args=(supervisor.abandon,), daemon=True).start()
            return supervisor.run()


def _repeat_arguments(args: argparse.Namespace) -> list[str]:
    """Return the command line that these arguments were read from."""
    options = {
        "--config": args.config,
        "--base-url": args.base_url,
        "--api-key-file": args.api_key_file,
        "--api-key-descriptor": args.api_key_descriptor,
        "--slots": args.slots,
    }
    arguments = [f"{name}={value}" for name, value in options.items() if value is not None]
    return [*arguments, "--until-input-ends"] if args.until_input_ends else arguments


def _read_key(args: argparse.Namespace, configuration: WorkerConfiguration) -> str | None:
    from gradmedic_worker.worker_key import read_key_from_descriptor, read_key_from_file

    if args.api_key_descriptor is not None:
        return read_key_from_descriptor(args.api_key_descriptor)
    if args.api_key_file is not None:
        return read_key_from_file(args.api_key_file, must_be_private=configuration.user is not None)
    return None


def _abandon_at_end_of_input(abandon: Callable[[], None]) -> None:
    sys.stdin.buffer.read()
    abandon()


WORKER = WorkerCommand()
