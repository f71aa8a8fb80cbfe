"""Starts services or trainings from a process that has imported all that they import. The import takes seconds.

python -m tests.support.process_starter services|trainings

It reads messages from the socket that is its standard input. A process to start comes with descriptors for its output
and its errors, and is answered with its id. The id of a process that has ended is answered with its exit code.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import socket
import sys
from typing import Any, NoReturn

MODULES = {
    "services": (
        "alembic.command",
        "fastapi_offline",
        "gradmedic.cli.main",
        "gradmedic_service.app",
        "gradmedic_service.commands.serve",
        "gradmedic_service.logs",
        "gradmedic_service.server",
        "psycopg",
        "sqlalchemy.dialects.postgresql.psycopg",
        "sqlite3",
        "uvicorn.lifespan.on",
        "uvicorn.loops.auto",
        "uvicorn.protocols.http.auto",
    ),
    "trainings": (
        "torch._dynamo",  # sharded models import it
        "torch.distributed.device_mesh",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
        "gradmedic.torch.watch",
    ),
}
"""What the processes of each kind import, and what they import later."""
MESSAGE_BYTES = 100_000


def main() -> None:
    """Import the modules, and answer messages until the socket is closed."""
    connection = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for module in MODULES[sys.argv[1]]:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork of several threads may inherit a lock for ever"  # noqa: PTH208
    while True:
        content, descriptors, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 2)
        if not content:
            return
        message = json.loads(content)
        if "ended" in message:
            answer = os.waitstatus_to_exitcode(os.waitpid(message["ended"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                connection.close()
                become_process(message, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(json.dumps(answer).encode())


def become_process(message: dict[str, Any], output: int, errors: int) -> NoReturn:
    """Run a command of `gradmedic`, or a script in a session of its own, as if started by hand; end the process."""
    for descriptor, number in ((output, 1), (errors, 2)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(message["folder"])
    os.environ.clear()
    os.environ.update(message["environment"])
    script: str | None = message["script"]
    sys.argv = [script or "gradmedic", *message["arguments"]]
    if script is None:
        sys.exit(importlib.import_module("gradmedic.cli.main").main())
    os.setsid()
    runpy.run_path(script, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    main()
