"""A service with nothing behind its endpoints: the reference for what a request costs in any service of this kind.

uvicorn has the settings of `gradmedic serve`, and FastAPI the same paths. An endpoint reads the body and answers `{}`.
It is a coroutine, the leanest that FastAPI has; one that waits for a database runs on a thread, as that of
`APPEND_ON_THREAD_PATH` does.

    python -m benchmarks.empty_service
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import psutil
import uvicorn
from fastapi import Depends, FastAPI, Request
from starlette.responses import Response

from benchmarks.servers import printing_service
from gradmedic.protocol.service import API_PATH, JSON_MEDIA_TYPE
from gradmedic_service.server import KEEP_ALIVE_SECONDS

READ_PATH = f"{API_PATH}/runs/any/diagnosis"
"""Path of the endpoint that a `GET` is compared with."""
APPEND_PATH = f"{API_PATH}/runs/any/steps"
"""Path of the endpoint that an append is compared with."""
APPEND_ON_THREAD_PATH = f"{API_PATH}/runs/any/steps-on-thread"
"""Path of an endpoint that does the same on a thread."""


async def read_body(request: Request) -> bytes:
    """Return the body of a request."""
    return await request.body()


def create_empty_app() -> FastAPI:
    """Return an application whose endpoints answer at once."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get(f"{API_PATH}/runs/{{run_id}}/diagnosis")
    async def read() -> Response:
        return Response(b"{}", media_type=JSON_MEDIA_TYPE)

    @app.post(f"{API_PATH}/runs/{{run_id}}/steps")
    async def append(request: Request) -> Response:
        await request.body()
        return Response(b"{}", media_type=JSON_MEDIA_TYPE)

    @app.post(f"{API_PATH}/runs/{{run_id}}/steps-on-thread")
    def append_on_thread(body: Annotated[bytes, Depends(read_body)]) -> Response:
        return Response(b"{}" if body else b"", media_type=JSON_MEDIA_TYPE)

    return app


def main() -> None:
    """Serve at a free port of this machine, and print the address."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_empty_app(),
        access_log=False,
        ws="none",
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def empty_service(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run the service as a process; yield its address and process."""
    command = [sys.executable, "-m", "benchmarks.empty_service"]
    with printing_service(command, folder / "empty.log", Path(__file__).resolve().parent.parent) as service:
        yield service


if __name__ == "__main__":
    main()
