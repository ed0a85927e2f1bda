"""`/sse`: the server's time, every second, to any number of clients without a thread for each.

`/sse-generator` says the same by a generator that sleeps, and holds a thread while it does.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from hop.streams import EVENT_STREAM, EventStream, broadcast, event, event_stream

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

EARLY = 0.005  # seconds by which a timer may go off too soon


def present() -> int:
    """The second that has begun, counted from 1970."""
    return int(time.time() + EARLY)


def until(second: int) -> float:
    """Seconds from now, zero for what has passed."""
    return max(0.0, second - time.time())


def clock_event(second: int) -> bytes:
    """The time as an event, whose id is the second."""
    return event(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second)), id=str(second))


def missed(last_event_id: str) -> int:
    """Seconds of which a client was not told, by what it says that it saw last; 0 for a new one."""
    known = last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 12
    return max(0, present() - int(last_event_id) - 1) if known else 0


class Clock:
    """Tells all streams the time, with one timer: that of one of them, and of another when that
    one has ended. A timer for each would cost several times as much."""

    def __init__(self) -> None:
        self.streams: set[EventStream] = set()
        self.driver: EventStream | None = None
        self._lock = threading.Lock()  # streams end in their own time, on any thread

    def opened(self, stream: EventStream) -> None:
        """The first events: when to come back, what was missed, and what time it is."""
        stream.on_close = self.closed
        stream.send(None, retry=1000)
        if count := missed(stream.last_event_id):
            stream.send(str(count), event="missed")
        stream.write(clock_event(present()))
        with self._lock:
            self.streams.add(stream)
            if self.driver is None:
                self._drive(stream)

    def _drive(self, stream: EventStream) -> None:
        self.driver = stream
        stream.channel.call_later(until(present() + 1), self.tick)

    def tick(self) -> None:
        """A second has begun."""
        with self._lock:
            listeners = list(self.streams)
            if self.driver is not None:
                self._drive(self.driver)
        broadcast(listeners, clock_event(present()))

    def closed(self, stream: EventStream) -> None:
        """A client has gone; if its timer drove the clock, another one's does."""
        with self._lock:
            self.streams.discard(stream)
            if stream is self.driver:
                self.driver = None
                if self.streams:
                    self._drive(next(iter(self.streams)))


clock = Clock()


def sse(environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
    """On hop the thread is free again at once. On another server it stays with the stream."""
    return event_stream(environ, start_response, clock.opened)


def ticks() -> Iterator[bytes]:
    """The same events, and a thread that sleeps between them."""
    while True:
        second = present()
        yield clock_event(second)
        time.sleep(until(second + 1))


def sse_generator(environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
    """For contrast: as one would write it without a channel."""
    start_response("200 OK", [*EVENT_STREAM])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else ticks()
