"""Admission: a bound on the number of requests that are served at the same time.

More concurrent requests than the machine has cores make every request slow and none faster. So a few requests are
served, some wait for a moment, and the others get 503 with a time to try again. A refused request stores nothing.

A request waits for its place after its body has arrived, so that a slow sender takes no place from others.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradmedic.protocol.service import API_PATH
from gradmedic_service.access.authentication import is_authenticated
from gradmedic_service.access.errors import overloaded
from gradmedic_service.access.places import Places
from gradmedic_service.access.shares import Client, client_of
from gradmedic_service.http.arrival import ArrivingBodies

MAX_WAIT_SECONDS = 1.0
"""Seconds that a request waits for its turn."""
EVENT_STREAM = b"text/event-stream"


class Admission:
    """ASGI middleware: bounds the API requests that are served and that wait, in all and of each client.

    A request frees its place once its answer has begun to leave: from then on it mostly waits for its reader, and an
    export or an event stream may last for days.

    Args:
        app: the application behind the middleware.
        places: the places of requests that are served.
        bodies: receives the bodies of requests.
    """

    def __init__(self, app: ASGIApp, places: Places, bodies: ArrivingBodies) -> None:
        self._app = app
        self._places = places
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request. Raises Overloaded, BodyTooLarge, RequestTimeout."""
        if scope["type"] != "http" or not scope["path"].startswith(API_PATH) or not is_authenticated(scope):
            await self._app(scope, receive, send)
            return
        client = client_of(scope)
        if not self._places.has_room(client):  # before the body is read, which would be for nothing
            raise overloaded(f"{self._places.waiting} requests are waiting already.")
        body = await self._bodies.receive_body(client, scope, receive)
        try:
            if not await self._places.enter(client, MAX_WAIT_SECONDS):
                raise overloaded("Other requests were served first.")
            place = _Place(self._places, client)
            try:
                await self._app(scope, body.receive, _leaving_with_the_answer(place, send))
            finally:
                place.leave()
        finally:
            body.release()


class _Place:
    """The right of one request to be served; it is given back once."""

    def __init__(self, places: Places, client: Client) -> None:
        self._places: Places | None = places
        self._client = client

    def leave(self) -> None:
        """Free the place for another request. Further calls do nothing."""
        if self._places is not None:
            self._places.leave(self._client)
            self._places = None


def _leaving_with_the_answer(place: _Place, send: Send) -> Send:
    """Return a `send` that frees the place when an event stream begins, or a part of another answer is sent."""

    async def send_and_leave(message: Message) -> None:
        is_body = message["type"] == "http.response.body"
        if is_body or any(
            name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in message["headers"]
        ):
            place.leave()
        await send(message)

    return send_and_leave
