"""What the WebSocket benchmarks serve with hop: the example, and two uses of `hop.websocket`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from examples import app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

_room: set[Any] = set()


def echo(environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
    """`/websocket`: every message comes back; no pings, which the load would not answer."""
    from hop.websocket import accept

    return accept(
        environ, start_response, lambda ws, message: ws.send(message), ping_interval=None
    )


def room(environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
    """`/broadcast`: every message goes to all who are there."""
    from hop.websocket import accept, broadcast

    return accept(
        environ, start_response, lambda ws, message: broadcast(_room, message),
        on_open=_room.add, on_close=lambda ws, *how: _room.discard(ws), ping_interval=None,
    )


ROUTES: dict[str, app.Handler] = {"/websocket": echo, "/broadcast": room}


def application(environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
    """The example's routes and these two."""
    handler = ROUTES.get(environ["PATH_INFO"], app.application)
    return handler(environ, start_response)
