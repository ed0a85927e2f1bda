"""The applications that the benchmarks serve. Standard library only: every peer imports them."""

import itertools
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HELLO = b"Hello, world!\n"
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", str(len(HELLO)))]
_count = itertools.count(1)


def hello(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
    """The smallest useful answer."""
    start_response("200 OK", list(HEADERS))
    return [HELLO]


def sleeping(seconds: float) -> "WSGIApplication":
    """An application that blocks for so long in every request."""

    def application(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
        time.sleep(seconds)
        return hello(environ, start_response)

    return application


def every_200th(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
    """Every 200th request sleeps for 100 ms, the others answer at once."""
    if not next(_count) % 200:
        time.sleep(0.1)
    return hello(environ, start_response)


sleep_500us = sleeping(0.0005)
sleep_1ms = sleeping(0.001)
sleep_5ms = sleeping(0.005)


async def hello_asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[Any]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """`hello` for an ASGI server, spoken without a WSGI bridge, which would only slow it."""
    headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": HELLO})
