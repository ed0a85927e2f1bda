# Tangled from notebooks/11_streams.ipynb. Edit the notebook.
"""Streams.

Files that are sent in parts, and events that are sent as they happen.
"""

import contextlib
import errno
import heapq
import itertools
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from typing import Any, BinaryIO, NamedTuple, Protocol

from hop.adaptor import FileWrapper

__all__ = [
    "BLOCK",
    "EVENT_STREAM",
    "FAILED",
    "NOT_MODIFIED",
    "OK",
    "PARTIAL",
    "PRECONDITIONS",
    "STALL",
    "UNSATISFIABLE",
    "Channel",
    "EventStream",
    "Fields",
    "Precondition",
    "Section",
    "ThreadChannel",
    "Version",
    "broadcast",
    "byte_range",
    "choose",
    "comment",
    "evaluate",
    "event",
    "event_stream",
    "http_date",
    "last_event_id",
    "send_file",
]

_one_range = re.compile(r"bytes=[ \t,]*([0-9]{0,18})-([0-9]{0,18})[ \t,]*", re.IGNORECASE).fullmatch


def byte_range(value: str, size: int) -> range | None:
    """The bytes that the field Range asks for, out of `size`; empty when it asks for others.

    None when the field is to be ignored, and the whole sent: another unit, several ranges,
    nonsense (RFC 9110, sections 14.1.2 and 14.2).
    """
    match = _one_range(value)
    if match is None:
        return None
    first, last = match.groups()
    if not first:
        return range(size - min(int(last), size), size) if last and size else None
    if not last:
        return range(int(first), size)
    return range(int(first), min(int(last) + 1, size)) if int(first) <= int(last) else None


@dataclass(frozen=True, slots=True)
class Version:
    """What identifies the present content of a file (RFC 9110, section 8.8).

    `etag` is a strong entity tag; `modified` a date, in whole seconds since 1970. `settled`: that
    second is over, so that the date may stand for the content where parts are to be joined.
    """

    etag: str
    modified: int
    settled: bool

    @classmethod
    def of(cls, status: os.stat_result, now: float) -> "Version":
        """The version that a file has by its modification time and its size."""
        etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        modified = min(status.st_mtime_ns // 1_000_000_000, int(now))
        return cls(etag, modified, now - status.st_mtime >= 1)


_is_date = re.compile(
    r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT"  # Sun, 06 Nov 1994 ...
    r"|[A-Z][a-z]{5,8}, \d\d-[A-Z][a-z]{2}-\d\d \d\d:\d\d:\d\d GMT"  # Sunday, 06-Nov-94 ...
    r"|[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}",  # Sun Nov  6 ... 1994
    re.ASCII,
).fullmatch


def http_date(value: str) -> int | None:
    """Seconds since 1970, or None for what is no HTTP-date (RFC 9110, section 5.6.7)."""
    try:
        if _is_date(value):
            return int(parsedate_to_datetime(value).replace(tzinfo=UTC).timestamp())
    except (ValueError, OverflowError):
        pass
    return None


_tags = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"').findall


def _if_match(value: str, version: Version) -> bool:
    return value == "*" or version.etag in _tags(value)


def _if_none_match(value: str, version: Version) -> bool:
    weakly = (tag.removeprefix("W/") for tag in _tags(value))
    return value != "*" and version.etag not in weakly


def _if_unmodified_since(value: str, version: Version) -> bool:
    date = http_date(value)
    return date is None or version.modified <= date


def _if_modified_since(value: str, version: Version) -> bool:
    date = http_date(value)
    return date is None or version.modified > date


OK, PARTIAL = "200 OK", "206 Partial Content"
NOT_MODIFIED = "304 Not Modified"
FAILED, UNSATISFIABLE = "412 Precondition Failed", "416 Range Not Satisfiable"


class Precondition(NamedTuple):
    """A field of a request: unless it `holds`, the answer is `otherwise`.

    It is not looked at where the field `unless` is present.
    """

    field: str
    holds: Callable[[str, Version], bool]
    otherwise: str
    unless: str = ""


#: In the order of RFC 9110, section 13.2.2.
PRECONDITIONS = (
    Precondition("HTTP_IF_MATCH", _if_match, FAILED),
    Precondition("HTTP_IF_UNMODIFIED_SINCE", _if_unmodified_since, FAILED, "HTTP_IF_MATCH"),
    Precondition("HTTP_IF_NONE_MATCH", _if_none_match, NOT_MODIFIED),
    Precondition("HTTP_IF_MODIFIED_SINCE", _if_modified_since, NOT_MODIFIED, "HTTP_IF_NONE_MATCH"),
)


def evaluate(environ: dict[str, Any], version: Version) -> str:
    """The status that the preconditions of a GET or HEAD come to: OK, NOT_MODIFIED or FAILED."""
    for field, holds, otherwise, unless in PRECONDITIONS:
        if field in environ and unless not in environ and not holds(environ[field], version):
            return otherwise
    return OK


def _if_range(value: str, version: Version) -> bool:
    if value.endswith('"'):
        return value == version.etag
    return version.settled and http_date(value) == version.modified


def choose(environ: dict[str, Any], version: Version, size: int) -> tuple[str, range]:
    """The status of the answer, and which bytes of the file belong to it."""
    whole, method = range(size), environ["REQUEST_METHOD"]
    if method not in ("GET", "HEAD"):
        return OK, whole
    status = evaluate(environ, version)
    if status != OK or method == "HEAD" or "HTTP_RANGE" not in environ:
        return status, whole
    if "HTTP_IF_RANGE" in environ and not _if_range(environ["HTTP_IF_RANGE"], version):
        return OK, whole
    part = byte_range(environ["HTTP_RANGE"], size)
    if part is None:
        return OK, whole
    return PARTIAL if part else UNSATISFIABLE, part


def _without_waiting(path: str, flags: int) -> int:
    """An opener that does not wait for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _open(file: str | os.PathLike[str] | BinaryIO) -> BinaryIO:
    """The plain file at a path, or an open one as it is. Raises OSError."""
    if isinstance(file, str | os.PathLike):
        file = open(file, "rb", buffering=0, opener=_without_waiting)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a plain file", str(file))
    return file


class Section:
    """The next `count` bytes of a file, as a file that ends there."""

    def __init__(self, file: BinaryIO, count: int) -> None:
        self._file = file
        self._left = count
        self.close = file.close

    def read(self, size: int) -> bytes:
        """At most `size` bytes; empty at the end."""
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


Fields = list[tuple[str, str]]


def _fields(
    status: str, part: range, size: int, version: Version, content_type: str, more: Fields
) -> Fields:
    """What an answer of that status says about the file."""
    nothing = [("Content-Type", "text/plain"), ("Content-Length", "0")]
    if status == FAILED:
        return nothing
    if status == UNSATISFIABLE:
        return [("Content-Range", f"bytes */{size}"), *nothing]
    modified = formatdate(version.modified, usegmt=True)
    fields = [("ETag", version.etag), ("Last-Modified", modified), ("Accept-Ranges", "bytes")]
    if status == NOT_MODIFIED:
        return fields + [field for field in more if not field[0].lower().startswith("content-")]
    if status == PARTIAL:
        fields.append(("Content-Range", f"bytes {part[0]}-{part[-1]}/{size}"))
    return [*fields, ("Content-Type", content_type), ("Content-Length", str(len(part))), *more]


BLOCK = 1 << 16  # bytes that servers without sendfile read at a time


def send_file(
    environ: dict[str, Any],
    start_response: Callable[..., Any],
    file: str | os.PathLike[str] | BinaryIO,
    content_type: str = "application/octet-stream",
    headers: Iterable[tuple[str, str]] = (),
) -> Iterable[bytes]:
    """Answer with a plain file, a part of it, or the news that the client has it already.

    `file` is a path, or a file that is open for reading in binary mode; it will be closed.
    `headers` go with the answer unless it is an error. Several ranges get the whole. Raises
    OSError, before start_response is called, for what cannot be opened or is no plain file.
    """
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(_open(file))
        known = os.fstat(opened.fileno())
        version = Version.of(known, time.time())
        status, part = choose(environ, version, known.st_size)
        fields = _fields(status, part, known.st_size, version, content_type, [*headers])
        start_response(status, fields)
        if environ["REQUEST_METHOD"] == "HEAD" or status not in (OK, PARTIAL):
            return []
        opened.seek(part.start)
        stack.pop_all()
    wrapper = environ.get("wsgi.file_wrapper")
    if wrapper is FileWrapper:
        return FileWrapper(opened, BLOCK)
    sent: Iterable[bytes] = (wrapper or FileWrapper)(Section(opened, len(part)), BLOCK)
    return sent


_line_end = re.compile(r"\r\n|\r|\n")


def _field(name: str, value: str) -> str:
    if any(character in value for character in "\r\n\0"):
        raise ValueError(f"no line break and no NUL may be in a field of an event: {value!r}")
    return f"{name}: {value}\n"


def event(
    data: str | None,
    *,
    event: str | None = None,
    id: str | None = None,  # noqa: A002
    retry: int | None = None,
) -> bytes:
    """An event as it is sent (WHATWG HTML, section 9.2.5). `retry` is in milliseconds.

    Line ends in `data` arrive as LF. Without data the browser takes note of `id` and `retry`, and
    tells nobody. ValueError for a line break or NUL in `event` or `id`, a negative `retry`, and
    what UTF-8 cannot express.
    """
    lines = [] if event is None else [_field("event", event)]
    if id is not None:
        lines.append(_field("id", id))
    if retry is not None:
        if retry < 0:
            raise ValueError("no browser can wait for less than no time")
        lines.append(f"retry: {retry:d}\n")
    if data is not None:
        lines += [f"data: {line}\n" for line in _line_end.split(data)]
    return "".join([*lines, "\n"]).encode()


def comment(text: str = "") -> bytes:
    """Bytes that keep a stream alive and are no event. ValueError for a line break or NUL."""
    return f"{_field('', text)}\n".encode()


def last_event_id(environ: dict[str, Any]) -> str:
    """The id of the last event that this client has seen; empty for a new one."""
    value: str = environ.get("HTTP_LAST_EVENT_ID", "")
    return value.encode("latin-1").decode("utf-8", "replace")


class Channel(Protocol):
    """What a stream needs of the connection under it: hop.hijack.Channel, or ThreadChannel."""

    closed: Any
    on_close: Any
    write_timeout: Any

    def write(self, data: bytes) -> bool:
        """Send now or later, never block; True: very much waits. From any thread."""

    def close(self) -> object:
        """Send what waits, then end. From any thread."""

    def abort(self) -> object:
        """End at once. From any thread."""

    def call_later(self, delay: float, fn: Callable[[], object]) -> object:
        """Call `fn` after so many seconds, unless the end comes first. From any thread."""


STALL = 30.0  # seconds in which a client takes nothing of what waits for it


class EventStream:
    """Events to one client, without a thread where the channel needs none.

    From any thread. A client for which too much waits, or that takes nothing for STALL seconds,
    is cut off; it may reconnect and say its `last_event_id`. `on_close` is called once with the
    stream when it has ended. `heartbeat` is in seconds, None for none.
    """

    __slots__ = ("_heartbeat", "_quiet", "channel", "last_event_id", "on_close")

    def __init__(self, channel: Channel, seen: str = "", heartbeat: float | None = 15.0) -> None:
        self.channel = channel
        self.last_event_id = seen
        self.on_close: Callable[[EventStream], object] | None = None
        self._heartbeat = heartbeat or 0.0
        self._quiet = True
        channel.write_timeout = STALL
        channel.on_close = self._closed
        if heartbeat:
            channel.call_later(heartbeat, self._beat)

    def write(self, payload: bytes) -> None:
        """Write what `event` or `comment` has made. After the end nothing happens."""
        self._quiet = False
        if self.channel.write(payload):
            self.channel.abort()

    def _beat(self) -> None:
        if self._quiet:
            self.write(comment())
        self._quiet = True
        self.channel.call_later(self._heartbeat, self._beat)

    def _closed(self, channel: object) -> None:
        if self.on_close is not None:
            self.on_close(self)

    def send(self, data: str | None, **fields: Any) -> None:
        """Write one event; its fields are those of `event`."""
        self.write(event(data, **fields))

    def close(self) -> None:
        """End the stream after what has been written."""
        self.channel.close()


class ThreadChannel:
    """A channel for servers that have none. It holds the thread that iterates over `run`.

    `write` returns True when more than `mark` bytes wait. That the client has gone is noticed
    when something is sent to it.
    """

    write_timeout: float | None = None  # the server's affair

    def __init__(self, mark: int = 1 << 20) -> None:
        self.closed = False
        self.on_close: Callable[[ThreadChannel], object] | None = None
        self._mark = mark
        self._bell = threading.Condition()
        self._waiting = bytearray()
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self._ending = False

    def write(self, data: bytes) -> bool:
        """Let the thread send `data`; True when too much waits. After the end it is dropped."""
        with self._bell:
            if self._ending or self.closed:
                return False
            self._waiting += data
            self._bell.notify()
            return len(self._waiting) > self._mark

    def close(self) -> None:
        """End after what waits has been sent."""
        with self._bell:
            self._ending = True
            self._bell.notify()

    def abort(self) -> None:
        """End, and forget what waits."""
        with self._bell:
            self._waiting.clear()
        self.close()

    def call_later(self, delay: float, fn: Callable[[], object]) -> None:
        """Let the thread call `fn` after so many seconds, unless the end comes first."""
        with self._bell:
            heapq.heappush(self._timers, (time.monotonic() + delay, next(self._count), fn))
            self._bell.notify()

    def _next(self) -> bytes | Callable[[], object] | None:
        """Wait for output, a function that is due, or the end."""
        with self._bell:
            while True:
                if self._waiting:
                    data = bytes(self._waiting)
                    self._waiting.clear()
                    return data
                if self._ending:
                    return None
                patience = self._timers[0][0] - time.monotonic() if self._timers else None
                if patience is not None and patience <= 0:
                    return heapq.heappop(self._timers)[2]
                self._bell.wait(patience)

    def run(self) -> Iterator[bytes]:
        """The body of the answer: what is written, as it is written."""
        try:
            while (item := self._next()) is not None:
                if isinstance(item, bytes):
                    yield item
                else:
                    item()
        finally:
            self.closed = True
            if self.on_close is not None:
                self.on_close(self)


EVENT_STREAM = [
    ("Content-Type", "text/event-stream"), ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),
]  # fmt: skip


def _ignore(channel: object, data: bytes) -> None:
    """The client of an event stream has nothing to say."""


def event_stream(
    environ: dict[str, Any],
    start_response: Callable[..., Any],
    opened: Callable[[EventStream], object],
    *,
    heartbeat: float | None = 15.0,
    headers: Iterable[tuple[str, str]] = (),
) -> Iterable[bytes]:
    """Answer with an event stream, which `opened` is given before anything has been sent.

    On hop it needs no thread. On another server it holds the thread of the request.
    """
    start_response("200 OK", [*EVENT_STREAM, *headers])
    if environ["REQUEST_METHOD"] == "HEAD":
        return []
    channel: Channel = ThreadChannel()
    channel.write(comment())
    with contextlib.suppress(NotImplementedError):
        if hijacker := environ.get("hop.hijacker"):
            channel = hijacker.set_read_handler(_ignore)
    opened(EventStream(channel, last_event_id(environ), heartbeat))
    return channel.run() if isinstance(channel, ThreadChannel) else []


def broadcast(streams: Iterable[EventStream], payload: bytes) -> None:
    """Write one event to all of them; one that is too slow is cut off and delays nobody."""
    for stream in list(streams):
        stream.write(payload)
