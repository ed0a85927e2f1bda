# Tangled from notebooks/05_response.ipynb. Edit the notebook.
"""Response.

WSGI in, HTTP out: environ from a request, bytes from a response.
"""

import io
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from enum import Enum
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from hop.appcontext import Client, RequestContext
from hop.parser import RequestHead

__all__ = [
    "CHUNKED",
    "CLOSE",
    "FRAMING",
    "JOIN_LIMIT",
    "LENGTH",
    "NONE",
    "SERVER_LINE",
    "DateField",
    "ErrorStream",
    "ExcInfo",
    "FileWrapper",
    "Framing",
    "Loop",
    "ResponseWriter",
    "Successor",
    "Transport",
    "base_environ",
    "build_environ",
]


class Loop(Protocol):
    """What the adaptor needs of the loop that a connection belongs to."""

    draining: bool
    max_unsent: int

    def wait_writable(self, conn: Any) -> None:
        """Block the calling thread until the client has taken what waits for it."""

    def assist(self, conn: Any) -> None:
        """Send what waits for the client while the calling thread makes more."""


class Successor(Protocol):
    """What an application puts in the place of HTTP on its connection.

    `silent`: it speaks for itself, so that nothing of the response is sent.
    """

    silent: bool

    def failed(self) -> "Successor | None":
        """There is no answer to follow on. Who has the connection now; None: HTTP keeps it."""

    def succeed(self, whole: bool) -> None:
        """The application is done: take the connection, whose answer has gone out if `whole`."""


class Transport(Client, Protocol):
    """Where a response goes: the part of a connection that the adaptor uses."""

    peer: str | None

    @property
    def backlog(self) -> Any:
        """None, or what the kernel has refused so far."""

    @property
    def loop(self) -> Loop:
        """The loop that serves the connection."""

    def peer_address(self) -> str:
        """The client's host, as REMOTE_ADDR has it."""

    def write(self, data: bytes) -> None:
        """Send, or keep what the kernel refuses. Raises ClientDisconnected."""

    def flush(self) -> bool:
        """Send what waits; True when nothing is left. Raises ClientDisconnected."""

    def send_file(self, file: BinaryIO, offset: int, count: int) -> None:
        """Send part of a file."""

    def pending(self) -> int:
        """Bytes kept so far."""

    def reset(self) -> None:
        """Let the end of the connection be seen as a failure."""


class ErrorStream:
    """`wsgi.errors`: what an application writes there becomes records of the error log."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log

    def write(self, text: str) -> int:
        """Log the text, without the blank space at its end."""
        if line := text.rstrip():
            self._log.error("%s", line)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Log the lines as one text."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Nothing is held back."""


class FileWrapper:
    """`wsgi.file_wrapper` (PEP 3333): a file to be sent, by sendfile where that is possible."""

    def __init__(self, file: Any, block_size: int = 8192) -> None:
        self.file = file
        self.block_size = block_size
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self) -> "FileWrapper":
        return self

    def __next__(self) -> bytes:
        data: bytes = self.file.read(self.block_size)
        if not data:
            raise StopIteration
        return data

    def extent(self) -> tuple[int, int] | None:
        """`(offset, count)` of what is left of a plain binary file; None if that is unknown."""
        file = self.file
        plain = file.raw if type(file) is io.BufferedReader else file
        if type(plain) is not io.FileIO:
            return None
        try:
            status, offset = os.fstat(plain.fileno()), file.tell()
        except (OSError, ValueError):
            return None
        count = status.st_size - offset
        return (offset, count) if stat.S_ISREG(status.st_mode) and count > 0 else None


# The keys that differ from request to request: in the template, so that its copies never grow.
_EACH_REQUEST = (
    "REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "REQUEST_URI", "SERVER_PROTOCOL",
    "REMOTE_ADDR", "wsgi.input", "hop.response", "hop.context", "hop.hijacker",
)  # fmt: skip


def base_environ(
    name: str, port: str, errors: Any, *, multithread: bool = True, multiprocess: bool = False
) -> dict[str, Any]:
    """The part of environ that all requests of one listener share (PEP 3333)."""
    return {
        "SERVER_NAME": name,
        "SERVER_PORT": port,
        "SERVER_SOFTWARE": "hop",
        "SCRIPT_NAME": "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": errors,
        "wsgi.multithread": multithread,
        "wsgi.multiprocess": multiprocess,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.input_terminated": True,
        **dict.fromkeys(_EACH_REQUEST, ""),
    }


def build_environ(
    base: dict[str, Any], head: RequestHead, body: BinaryIO, response: "ResponseWriter"
) -> dict[str, Any]:
    """environ for one request: the listener's part, the request's fields, and hop's own keys."""
    conn = response.conn
    environ: dict[str, Any] = {**base, **head.variables}
    environ["REQUEST_METHOD"] = head.method
    environ["PATH_INFO"] = head.path
    environ["QUERY_STRING"] = head.query
    environ["REQUEST_URI"] = head.target
    environ["SERVER_PROTOCOL"] = head.protocol
    environ["REMOTE_ADDR"] = conn.peer or conn.peer_address()
    environ["wsgi.input"] = body
    environ["hop.response"] = environ["hop.context"] = response
    return environ


_is_status = re.compile(r"(?:101|[2-5][0-9]{2}) [\t\x20-\x7e\x80-\xff]*").fullmatch
_is_name = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_is_value = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch

# Bounded caches: status strings and fields that repeat, checked already. With a status line comes
# whether its answer has no body, with a field's line its number if it is a Content-Length.
_CACHE_SIZE = 512
_LONGEST_CACHED = 256
_status_lines: dict[str, tuple[bytes, bool]] = {}
_field_lines: dict[tuple[str, str], tuple[bytes, int | None]] = {}


def _remember(cache: dict[Any, Any], key: Any, entry: Any, size: int) -> None:
    if size <= _LONGEST_CACHED:
        if len(cache) >= _CACHE_SIZE:
            cache.clear()
        cache[key] = entry


def _status_line(status: str) -> tuple[bytes, bool]:
    """The checked status line, and whether such an answer has no body.

    hop answers in its own version (RFC 9110, section 2.5).
    """
    if not _is_status(status):
        raise ValueError(f"{status!r} is no status of a final answer, such as '200 OK'")
    line = b"HTTP/1.1 %b\r\n" % status.encode("latin-1")
    entry = line, status[:3] in ("101", "204", "304")
    _remember(_status_lines, status, entry, len(line))
    return entry


def _field_line(name: str, value: str) -> bytes:
    """One checked field line; what CR, LF or NUL could do to a response ends here."""
    if not _is_name(name):
        raise ValueError(f"{name!r} is not the name of a field")
    if not _is_value(value):
        raise ValueError(f"{value!r} is not a value for the field {name}")
    return f"{name}: {value}\r\n".encode("latin-1")


class Framing(Enum):
    """How the client finds the end of a response's body (RFC 9112, section 6.3)."""

    NONE = "no body"
    LENGTH = "Content-Length"
    CHUNKED = "chunked"
    CLOSE = "end of connection"


NONE, LENGTH, CHUNKED, CLOSE = Framing

# (there may be no body, its length is known, the client speaks HTTP/1.1)
FRAMING = {
    (True, True, True): NONE,
    (True, True, False): NONE,
    (True, False, True): NONE,
    (True, False, False): NONE,
    (False, True, True): LENGTH,
    (False, True, False): LENGTH,
    (False, False, True): CHUNKED,
    (False, False, False): CLOSE,
}

SERVER_LINE = b"Server: hop\r\n"


class DateField:
    """The fields that every answer begins with, Server and Date (RFC 9110, section 6.6.1).

    Their `lines` hold while the loop's clock, a monotonic one, is before `until`.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.until = float("-inf")
        self.lines = b""

    def renew(self, now: float) -> None:
        """Format the lines anew; `now` is the loop's clock."""
        wall = self._clock()
        self.lines = SERVER_LINE + b"Date: %b\r\n" % formatdate(wall, usegmt=True).encode()
        self.until = now + 1 - wall % 1  # last: another thread may be looking


ExcInfo = tuple[type[BaseException], BaseException, TracebackType]


class ResponseWriter(RequestContext):
    """One response: `start_response`, `write` and the iterable all pass through here.

    `environ["hop.response"]`. `keep_alive` says whether the connection may serve another request
    afterwards; a response that cannot be framed or finished clears it. `size` counts the body's
    bytes. `trailers`, pairs of strings set before the body ends, go behind a chunked body and
    nowhere else (RFC 9110, section 6.5). `successor` is who has the connection when it leaves
    HTTP behind this response. `unsent` is a whole answer that `send` has left to its caller.
    """

    __slots__ = (
        "_bodiless", "_chunked", "_common", "_left", "_length", "_length_line", "_lines",
        "_request", "keep_alive", "sent", "size", "status", "successor", "trailers", "unsent",
    )  # fmt: skip

    def __init__(
        self, conn: Any, head: RequestHead, common: bytes, deadline: float | None
    ) -> None:
        self.conn: Transport = conn
        self._request = head
        self._common = common  # the lines of DateField
        self.keep_alive = head.keep_alive
        self.deadline = deadline
        self.status = ""
        self.sent = False  # whether the head has gone out
        self.unsent = b""
        self.size = 0
        self.trailers: list[tuple[str, str]] | None = None
        self.successor: Successor | None = None

    def silent(self) -> bool:
        """Whether nothing of this response is sent, because the connection was hijacked."""
        return self.successor is not None and self.successor.silent

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """Take status and fields (PEP 3333); errors in them are raised here, into the application.

        A second call is an error, unless it brings `exc_info`: then it replaces the first, or
        raises that exception again when the head has gone out already.
        """
        if exc_info is not None:
            try:
                if self.sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.status:
            if self.silent():  # a framework cannot help calling it
                return self.write
            raise RuntimeError("start_response was called twice")
        self.status = ""
        self._length: int | None = None
        self._length_line = b""
        try:
            line, self._bodiless = _status_lines.get(status) or _status_line(status)
            self._lines = lines = [line, self._common]
            for field in headers:
                line, length = _field_lines.get(field) or self._field(*field)
                if length is None:
                    lines.append(line)
                elif self._length is None:
                    self._length, self._length_line = length, line
                else:
                    raise ValueError("Content-Length must be one number, not two")
        except (AttributeError, TypeError) as error:
            raise TypeError("wanted: a str, and a list of (str, str) tuples") from error
        self.status = status
        return self.write

    def _field(self, name: str, value: str) -> tuple[bytes, int | None]:
        """The entry for a field that is new, or means something to us: its line, b"" if it may not
        pass, and the number of a Content-Length."""
        length, lower = None, name.lower()
        if lower == "content-length":
            length = _length(value)
            line = b"Content-Length: %d\r\n" % length
        else:
            line = _field_line(name, value)
        if lower in _HOP_BY_HOP:
            if lower == "connection" and "close" in value.lower():
                self.keep_alive = False
            status = self._lines[0][9:12] if lower == "upgrade" else b""
            wanted = b"Connection: upgrade\r\n" if status == b"426" else b""
            return line + wanted if status in (b"101", b"426") else b"", None
        if lower == "date":
            self._lines[1] = self._lines[1].partition(b"Date:")[0]
        elif lower == "server":
            self._lines[1] = self._lines[1].removeprefix(SERVER_LINE)
        elif lower not in _PASSING:
            _remember(_field_lines, (name, value), (line, length), len(line))
        return line, length

    def _decide(self, size: int | None) -> Framing:
        """Look the framing up; `size` is the body's length if that is known by now.

        `_left` is what may still come of the body, below zero when more came, None: no limit.
        """
        code, length = self.status[:3], self._length
        bodiless = True
        if code == "304":  # its length is that of the answer which is not sent
            size = None
        elif code == "204" or code == "101":  # RFC 9110, section 8.6: no length at all
            size = length = None
        elif self._request.method == "HEAD":  # from an empty body one cannot tell GET's length
            size = size or None
        else:
            bodiless = False
        if length is None:
            length = size
        framing = FRAMING[bodiless, length is not None, self._request.protocol == "HTTP/1.1"]
        self._length = length
        self._left = 0 if framing is NONE else length
        self._chunked = framing is CHUNKED
        return framing

    def _head(self, size: int | None) -> bytes:
        """The whole head. After it nothing about the response can change."""
        if not self.status:
            raise RuntimeError("the application did not call start_response")
        framing = self._decide(size) if self.successor is None else self._leave()
        lines = self._lines
        if self._length is not None:
            lines.append(b"Content-Length: %d\r\n" % self._length)
        elif framing is CHUNKED:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        elif framing is CLOSE:
            self.keep_alive = False
        if self.conn.loop.draining:
            self.keep_alive = False
        if self.status.startswith("101"):
            self.keep_alive = False
            lines.append(b"Connection: upgrade\r\n")
        elif not self.keep_alive:
            lines.append(b"Connection: close\r\n")
        elif self._request.protocol != "HTTP/1.1":
            lines.append(b"Connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self.sent = True
        return b"".join(lines)

    def _put(self, head: bytes, data: bytes) -> None:
        """Send a piece of the body as its framing wants it, behind `head`; copy it if small."""
        size, left, tail = len(data), self._left, b""
        if left is not None:
            self._left = left - size
            data = data[: max(left, 0)]
            size = len(data)
        elif self._chunked and data:
            head += b"%x\r\n" % size
            tail = b"\r\n"
        self.size += size
        for part in (head + data + tail,) if size <= JOIN_LIMIT else (head, data, tail):
            if part:
                self.conn.write(part)

    def write(self, data: bytes) -> None:
        """Send a piece of the body at once; blocks while too much waits for a slow client."""
        if not isinstance(data, bytes):
            raise TypeError(f"a body is made of bytes, not {type(data).__name__}")
        if data:
            if self.successor is not None and self.silent():
                raise RuntimeError("the connection was hijacked: write to its socket")
            self._put(b"" if self.sent else self._head(None), data)
            conn = self.conn
            if conn.backlog is not None and not conn.flush():
                if conn.pending() > conn.loop.max_unsent:
                    conn.loop.wait_writable(conn)
                else:
                    conn.loop.assist(conn)

    def send(self, result: Iterable[bytes]) -> None:
        """Send what the application returned, and finish the response.

        A plain answer is not sent but left in `unsent`: it may leave together with others.
        """
        whole = type(result) is list or type(result) is tuple
        if whole and not (self.sent or self.trailers):
            body = b"".join(result)
            size, request = len(body), self._request
            if (  # most answers are plain, and take a short way to the same bytes
                self.status
                and self.keep_alive
                and not self._bodiless
                and (self._length is None or self._length == size)
                and request.method != "HEAD"
                and request.protocol == "HTTP/1.1"
                and size <= JOIN_LIMIT
                and not self.conn.loop.draining
            ):
                self.sent, self.size, self._left = True, size, 0
                self._lines += self._length_line or b"Content-Length: %d\r\n" % size, b"\r\n", body
                self.unsent = b"".join(self._lines)
                return
            self._put(self._head(size), body)
        else:
            self._send_other(result)
        if self._left and self._left > 0:
            self.keep_alive = False
        self._left = 0  # the answer is over: what fails from here on does not cut it

    def _send_other(self, result: Iterable[bytes]) -> None:
        if self.successor is not None:
            if not self.silent():
                self._send_pieces(result)
        elif type(result) is FileWrapper and not self.sent and (extent := result.extent()):
            self._send_file(result.file, *extent)
        else:
            self._send_pieces(result)

    def _send_pieces(self, result: Iterable[bytes]) -> None:
        """Send each piece at once, and what ends the body; stop when more comes than may."""
        for data in result:
            self.write(data)
            if self.sent and self._left is not None and self._left < 0:
                return
        if not self.sent:
            self._put(self._head(None if self.trailers else 0), b"")
        if self._chunked:
            self.conn.write(b"0\r\n%b\r\n" % b"".join(map(self._trailer, self.trailers or ())))

    def _trailer(self, field: tuple[str, str]) -> bytes:
        name, value = field
        if name.lower() in _HOP_BY_HOP or name.lower() == "content-length":
            raise ValueError(f"{name} comes too late in a trailer")
        return _field_line(name, value)

    def _send_file(self, file: BinaryIO, offset: int, count: int) -> None:
        self._put(self._head(count), b"")
        left = self._left or 0
        self.size = min(count, left)
        self._left = left - self.size
        if self.size:
            self.conn.send_file(file, offset, self.size)

    def fail(self) -> None:
        """The application failed: 500 if nothing was sent, otherwise an answer cut short.

        Where only the end of the connection ends the body, that end is made a reset: else the
        client would take the part for the whole.
        """
        if self.successor is not None:
            self.successor = self.successor.failed()
        if self.sent:
            self.keep_alive = False
            if self._left is None and not self._chunked:
                self.conn.reset()
            return
        self.status, self.trailers, body = "", None, b"Internal Server Error\n"
        self.start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
        self._put(self._head(len(body)), body)
        self._left = 0

    def pass_to(self, successor: Successor) -> None:
        """Let `successor` have the connection. RuntimeError when that cannot be any more."""
        if self.successor is not None:
            raise RuntimeError("the connection has been taken over already")
        if self.sent:
            raise RuntimeError("too late to take the connection over: the head has gone out")
        self.successor = successor
        self.keep_alive = False
        if successor.silent:
            self.status = self.status or "101 Switching Protocols"
            self.sent = True
            self._left, self._chunked = 0, False

    def _leave(self) -> Framing:
        """Who has the connection next ends the answer by ending the connection.

        Where there may be no body, in the answer to HEAD for instance, nobody has it next.
        """
        framing = self._decide(None)
        if framing is NONE and not self.status.startswith("101"):
            self.successor = self.successor and self.successor.failed()
            return framing
        self._left, self._chunked = None, False
        return CLOSE


# Fields that belong to the connection, which is the server's (PEP 3333; RFC 9110, section 7.6.1).
_HOP_BY_HOP = frozenset(
    ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"]
)
# Fields that differ from answer to answer, or are nobody's business: never remembered.
_PASSING = frozenset(["set-cookie", "location", "etag", "last-modified", "content-range"])


def _length(value: str) -> int:
    """The value of a Content-Length field (RFC 9110, section 8.6)."""
    if not (value.isdecimal() and value.isascii() and len(value) < 19):
        raise ValueError(f"Content-Length must be one number, not {value!r}")
    return int(value)


JOIN_LIMIT = 1 << 16
