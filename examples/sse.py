"""`/sse`: the server's time, every second, to any number of clients without a thread for each.

`/sse-generator` says the same by a generator that sleeps, and holds a thread while it does.
"""

import time
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from hop.streams import EVENT_STREAM, EventStream, event, event_stream

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse


@lru_cache(maxsize=4)
def clock_event(second: int) -> bytes:
    """The time as an event, encoded once for all; its id is the second, counted from 1970."""
    return event(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second)), id=str(second))


def present() -> int:
    """The second that is nearest: a timer may go off a little early."""
    return round(time.time())


def until(second: int) -> float:
    """Seconds from now, zero for what has passed."""
    return max(0.0, second - time.time())


def missed(last_event_id: str) -> int:
    """Seconds of which a client was not told, by what it says that it saw last; 0 for a new one."""
    known = last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 12
    return max(0, present() - int(last_event_id) - 1) if known else 0


def tick(stream: EventStream) -> None:
    """Send the time, and again with the next second. The timer ends with the stream."""
    second = present()
    stream.write(clock_event(second))
    stream.channel.call_later(until(second + 1), partial(tick, stream))


def opened(stream: EventStream) -> None:
    """The first events: when to come back, what was missed, and what time it is."""
    stream.send(None, retry=1000)
    if count := missed(stream.last_event_id):
        stream.send(str(count), event="missed")
    tick(stream)


def sse(environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
    """On hop the thread is free again at once. On another server it stays with the stream."""
    return event_stream(environ, start_response, opened)


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
