"""`/stats`: what the process uses, once a second, pushed to whoever watches.

An event stream (text/event-stream) of JSON. Where the server lends its poller
(`hop.hijacker`), a timer sends the events and no thread waits; elsewhere a generator sleeps
between them, and holds its thread.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

EVERY = 1.0  # seconds between two events
STALLED = 30.0  # seconds in which a watcher takes nothing, and then is cut off
HEADERS = [
    ("Content-Type", "text/event-stream"),
    ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),  # nginx would hold the events back
]

_lock = threading.Lock()
_open: Counter[str] = Counter()


def joined(what: str) -> None:
    """One more connection of this kind; from any thread."""
    with _lock:
        _open[what] += 1


@cache
def left(what: str) -> Callable[[Any], None]:
    """A function, the same for all connections of this kind, to be called when one has ended."""

    def on_close(channel: object) -> None:
        with _lock:
            _open[what] -= 1

    return on_close


@contextlib.contextmanager
def counted(what: str) -> Iterator[None]:
    """A connection of this kind, as long as the block runs."""
    joined(what)
    try:
        yield
    finally:
        left(what)(None)


def resident() -> int:
    """Bytes of memory that the process occupies now, or, without /proc, did at its worst."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return pages * os.sysconf("SC_PAGE_SIZE")


class Counters:
    """What one watcher is shown. `server` is `hop` or `std`, by who serves the request."""

    __slots__ = ("connections", "server")

    def __init__(self, environ: dict[str, Any]) -> None:
        response = environ.get("hop.response")
        self.server = "std" if response is None else "hop"
        if response is None:
            self.connections: Callable[[], int] = environ.get("std.connections", _open.total)
        else:
            table = response.conn.loop.connections
            self.connections = table.__len__

    def event(self) -> bytes:
        """All counters as one event: memory in bytes, processor time in seconds."""
        with _lock:
            opened = {what: count for what, count in _open.items() if count}
        counters = {
            "server": self.server, "threads": threading.active_count(),
            "connections": self.connections(), "memory": resident(),
            "cpu": time.process_time(), "open": opened,
        }
        return b"data: %b\n\n" % json.dumps(counters).encode()


def tick(channel: Any) -> None:
    """Send an event, and another one later; who has not read the last ones gets none."""
    if not channel.pending:
        channel.write(channel.data.event())
    channel.call_later(EVERY, partial(tick, channel))


def ignore(channel: Any, data: bytes) -> None:
    """Whoever watches has nothing to say."""


def waiting(counters: Counters) -> Iterator[bytes]:
    """The same with a thread that sleeps between the events."""
    with counted("stats"):
        while True:
            yield counters.event()
            time.sleep(EVERY)


def application(environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
    """The stream, by the poller's timer where there is one."""
    counters = Counters(environ)
    if environ["REQUEST_METHOD"] == "HEAD":
        start_response("200 OK", HEADERS)
        return []
    try:
        channel = environ["hop.hijacker"].set_read_handler(ignore, on_close=left("stats"))
    except (KeyError, NotImplementedError):
        start_response("200 OK", HEADERS)
        return waiting(counters)
    joined("stats")
    channel.data = counters
    channel.write_timeout = STALLED
    channel.call_later(EVERY, partial(tick, channel))
    start_response("200 OK", HEADERS)
    return [counters.event()]
