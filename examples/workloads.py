"""The applications that the benchmarks serve. Standard library only: every peer imports them."""

import itertools
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HELLO = b"Hello, world!\n"
HEADERS = [("Content-Type", "text/plain"), ("Content-Length", str(len(HELLO)))]
BLOCK = 1 << 16
BIG = b"x" * (1 << 20)
GIGABYTE = 1 << 30
BURN = 0.05  # seconds of processor time
FILE = Path(tempfile.gettempdir(), "hop-benchmark-file")  # made by those who need it
_count = itertools.count(1)


def hello(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
    """The smallest useful answer."""
    start_response("200 OK", list(HEADERS))
    return [HELLO]


def answer(start_response: "StartResponse", body: bytes) -> list[bytes]:
    """This body, with its length."""
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def sleeping(seconds: float, every: int = 1) -> "WSGIApplication":
    """An application that blocks for so long in every so-manieth request."""

    def application(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
        if not next(_count) % every:
            time.sleep(seconds)
        return hello(environ, start_response)

    return application


every_200th = sleeping(0.1, every=200)
sleep_500us, sleep_1ms, sleep_5ms = sleeping(0.0005), sleeping(0.001), sleeping(0.005)
one_in_1000, one_in_200, one_in_100 = (sleeping(0.01, every=n) for n in (1000, 200, 100))
one_in_50, one_in_20, one_in_10 = (sleeping(0.01, every=n) for n in (50, 20, 10))


def burn(seconds: float = BURN) -> None:
    """Use so much processor time, in Python, without a system call that would yield."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        for _ in range(1000):
            pass


def several(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
    """A fast answer, except at /burn, which uses the processor, and /big, a megabyte."""
    path = environ["PATH_INFO"]
    if path == "/burn":
        burn()
    elif path == "/big":
        return answer(start_response, BIG)
    return hello(environ, start_response)


def counting(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
    """`hello`; at /count which process this is, and how many requests it has had."""
    number = next(_count)
    if environ["PATH_INFO"] == "/count":
        return answer(start_response, b"%d %d" % (os.getpid(), number))
    return hello(environ, start_response)


def file(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    """`FILE`, sent in the best way that the server has."""
    start_response("200 OK", [("Content-Length", str(FILE.stat().st_size))])
    wrapper: Callable[..., Iterable[bytes]] = environ["wsgi.file_wrapper"]
    return wrapper(FILE.open("rb"), BLOCK)


def generated(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterator[bytes]:
    """A gigabyte that is nowhere, block by block; as much as the query says, if it does."""
    size = int(environ["QUERY_STRING"] or GIGABYTE)
    start_response("200 OK", [("Content-Length", str(size))])
    block = BIG[:BLOCK]
    for _ in range(size // BLOCK):
        yield block
    yield block[: size % BLOCK]


def sink(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
    """Read the body, block by block, and say how long it was."""
    received, body = 0, environ["wsgi.input"]
    while data := body.read(BLOCK):
        received += len(data)
    return answer(start_response, b"%d" % received)


async def hello_asgi(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[Any]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """`hello` for an ASGI server, spoken without a WSGI bridge, which would only slow it."""
    headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": HELLO})
