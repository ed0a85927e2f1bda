"""WSGI in, HTTP out: environ from a request, bytes from a response."""

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
    "DateField",
    "ErrorStream",
    "FileWrapper",
    "Framing",
    "ResponseWriter",
    "Transport",
    "base_environ",
    "build_environ",
    "decide_framing",
]

HIGH_WATER = 1 << 20
JOIN_LIMIT = 1 << 16
SERVER_LINE = b"Server: hop\r\n"

ExcInfo = tuple[type[BaseException], BaseException, TracebackType]


class Transport(Client, Protocol):
    """Where a response goes: the part of a connection that the adaptor uses."""

    peer: str | None

    def peer_address(self) -> str:
        """The client's host."""

    def write(self, data: bytes) -> None:
        """Send, or keep what the kernel refuses."""

    def send_file(self, file: BinaryIO, offset: int, count: int) -> None:
        """Send part of a file."""

    def pending(self) -> int:
        """Bytes kept so far."""

    def wait_writable(self) -> None:
        """Block until the kernel takes bytes again."""


def base_environ(name: str, port: str, errors: Any, **flags: bool) -> dict[str, Any]:
    """The part of environ that all requests of one listener share (PEP 3333)."""
    return {
        "SERVER_NAME": name,
        "SERVER_PORT": port,
        "SERVER_SOFTWARE": "hop",
        "SCRIPT_NAME": "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": errors,
        "wsgi.multithread": flags.get("multithread", True),
        "wsgi.multiprocess": flags.get("multiprocess", False),
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.input_terminated": True,
    }


def build_environ(
    base: dict[str, Any], head: RequestHead, body: BinaryIO, response: "ResponseWriter"
) -> dict[str, Any]:
    """environ for one request: the listener's part, the request's fields, and what is hop's own."""
    conn = response.conn
    return {
        **base,
        **head.variables,
        "REQUEST_METHOD": head.method,
        "PATH_INFO": head.path,
        "QUERY_STRING": head.query,
        "REQUEST_URI": head.target,
        "SERVER_PROTOCOL": head.protocol,
        "REMOTE_ADDR": conn.peer or conn.peer_address(),
        "wsgi.input": body,
        "hop.response": response,
        "hop.context": RequestContext(conn, response.deadline),
    }


class ErrorStream:
    """`wsgi.errors`: what an application writes there becomes lines of the error log."""

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


class DateField:
    """The fields every answer begins with, Server and Date, formatted once a second."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._until = float("-inf")
        self._lines = b""

    def lines(self, now: float) -> bytes:
        """Both lines; `now` is the loop's monotonic clock (RFC 9110, section 6.6.1)."""
        if now >= self._until:
            wall = self._clock()
            self._until = now + 1 - wall % 1
            self._lines = SERVER_LINE + b"Date: %s\r\n" % formatdate(wall, usegmt=True).encode()
        return self._lines


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
        """`(offset, count)` of what is left of a plain binary file on disk, else None."""
        file = self.file
        if type(file) is not io.FileIO and type(file) is not io.BufferedReader:
            return None
        try:
            status, offset = os.fstat(file.fileno()), file.tell()
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return offset, max(status.st_size - offset, 0)


class Framing(Enum):
    """How the client finds the end of a response's body (RFC 9112, section 6.3)."""

    NONE = "no body"
    LENGTH = "Content-Length"
    CHUNKED = "chunked"
    CLOSE = "end of connection"


# (the message has no body, its length is known, the client speaks HTTP/1.1)
FRAMING = {
    (True, True, True): Framing.NONE,
    (True, True, False): Framing.NONE,
    (True, False, True): Framing.NONE,
    (True, False, False): Framing.NONE,
    (False, True, True): Framing.LENGTH,
    (False, True, False): Framing.LENGTH,
    (False, False, True): Framing.CHUNKED,
    (False, False, False): Framing.CLOSE,
}


def decide_framing(bodiless: bool, length_known: bool, http11: bool) -> Framing:
    """Look the framing up; no other place decides about it."""
    return FRAMING[bodiless, length_known, http11]


_STATUS = re.compile(r"[1-5][0-9]{2} [\t\x20-\x7e\x80-\xff]*\Z")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")
_LENGTH = re.compile(r"[0-9]{1,18}\Z")

# Fields that belong to the connection, which is the server's (PEP 3333; RFC 9110, section 7.6.1).
_HOP_BY_HOP = frozenset(
    ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"]
)
_SECRET = frozenset(["set-cookie", "location", "etag", "last-modified", "content-range"])

# Bounded caches: status strings and response fields that repeat, already checked and encoded.
_CACHE_SIZE = 512
_CACHED_FIELD = 256
_status_lines: dict[str, bytes] = {}
_field_lines: dict[tuple[str, str], bytes] = {}


def _status_line(status: str) -> bytes:
    if not isinstance(status, str) or not _STATUS.match(status):
        raise ValueError(f"a status looks like '200 OK', not {status!r}")
    line = b"HTTP/1.1 %s\r\n" % status.encode("latin-1")
    if len(_status_lines) >= _CACHE_SIZE:
        _status_lines.clear()
    _status_lines[status] = line
    return line


def _field_line(name: str, value: str) -> bytes:
    """One checked field line; what CR, LF or NUL could do to a response ends here."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise ValueError(f"{name!r} is not the name of a field")
    if not isinstance(value, str) or not _VALUE.match(value):
        raise ValueError(f"{value!r} is not a value for the field {name}")
    return f"{name}: {value}\r\n".encode("latin-1")


class ResponseWriter:
    """One response: `start_response`, `write` and the iterable all pass through here.

    `environ["hop.response"]`. `keep_alive` says whether the connection may serve another request
    afterwards; a response that cannot be framed or finished clears it. `size` counts the body's
    bytes, `trailers` are sent behind a chunked body (RFC 9110, section 6.5).
    """

    __slots__ = (
        "_common",
        "_framing",
        "_left",
        "_length",
        "_lines",
        "_method",
        "_protocol",
        "conn",
        "deadline",
        "keep_alive",
        "sent",
        "size",
        "status",
        "trailers",
    )

    def __init__(
        self, conn: Any, head: RequestHead, common: bytes, keep_alive: bool, deadline: float | None
    ) -> None:
        self.conn = conn
        self._method = head.method
        self._protocol = head.protocol
        self._common = common
        self.keep_alive = keep_alive
        self.deadline = deadline
        self.status = ""
        self.sent = False
        self.size = 0
        self.trailers: list[tuple[str, str]] | None = None

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
            raise RuntimeError("start_response was called twice")
        self._length: int | None = None
        self._lines = lines = [_status_lines.get(status) or _status_line(status), self._common]
        for field in headers:
            lines.append(_field_lines.get(field) or self._field(*field))
        self.status = status
        return self.write

    def _field(self, name: str, value: str) -> bytes:
        """The line for a field seen for the first time, or one that means something to us."""
        line = _field_line(name, value)
        lower = name.lower()
        if lower == "content-length":
            self._declare(value)
            return b""
        if lower in _HOP_BY_HOP:
            if lower == "connection" and "close" in value.lower():
                self.keep_alive = False
            return b""
        if lower == "date":
            self._lines[1] = self._lines[1].partition(b"Date:")[0]
        elif lower == "server":
            self._lines[1] = self._lines[1].removeprefix(SERVER_LINE)
        elif lower not in _SECRET and len(line) <= _CACHED_FIELD:
            if len(_field_lines) >= _CACHE_SIZE:
                _field_lines.clear()
            _field_lines[name, value] = line
        return line

    def _declare(self, value: str) -> None:
        if not _LENGTH.match(value) or self._length is not None:
            raise ValueError(f"Content-Length must be one number, not {value!r}")
        self._length = int(value)

    def write(self, data: bytes) -> None:
        """Send a piece of the body at once; blocks while too much waits for a slow client."""
        if not isinstance(data, bytes):
            raise TypeError(f"a body is made of bytes, not {type(data).__name__}")
        if self.sent:
            if data:
                self.conn.write(self._frame(data))
        elif data:
            self.conn.write(self._head(None) + self._frame(data))
        if self.conn.backlog is not None and self.conn.pending() > HIGH_WATER:
            self.conn.loop.wait_writable(self.conn)

    def send(self, result: Iterable[bytes]) -> None:
        """Send what the application returned, and finish the response."""
        kind = type(result)
        if kind is list or kind is tuple:
            self._send_whole(b"".join(result))
        elif kind is FileWrapper and not self.sent and (extent := result.extent()):
            self._send_file(result.file, *extent)
        else:
            for data in result:
                self.write(data)
            self._finish()

    def _send_whole(self, body: bytes) -> None:
        if self.sent:
            self.write(body)
            self._finish()
            return
        size = len(body)
        head = self._head(size)
        body = self._frame(body)
        if size <= JOIN_LIMIT:
            self.conn.write(head + body)
        else:
            self.conn.write(head)
            self.conn.write(body)
        self._check_length()

    def _send_file(self, file: BinaryIO, offset: int, count: int) -> None:
        self.conn.write(self._head(count))
        if self._framing is Framing.LENGTH:
            count = min(count, self._left)
            self._left -= count
            self.size = count
            self.conn.send_file(file, offset, count)
        self._check_length()

    def _finish(self) -> None:
        """The end of a body whose length nobody knew before."""
        if not self.sent:
            self.conn.write(self._head(0))
        elif self._framing is Framing.CHUNKED:
            trailers = b"".join([_field_line(*field) for field in self.trailers or ()])
            self.conn.write(b"0\r\n%b\r\n" % trailers)
        self._check_length()

    def _check_length(self) -> None:
        if self._framing is Framing.CLOSE or self._left:
            self.keep_alive = False

    def fail(self) -> None:
        """The application failed: 500 if nothing was sent, otherwise an answer cut short."""
        if self.sent:
            self.keep_alive = False
            return
        self.status = ""
        self.start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
        self._send_whole(b"Internal Server Error\n")

    def _head(self, size: int | None) -> bytes:
        """Decide the framing, once, and give the head; `size` is the body's length if known."""
        if not self.status:
            raise RuntimeError("the application did not call start_response")
        lines, status, length = self._lines, self.status[:3], self._length
        http11 = self._protocol == "HTTP/1.1"
        empty = status == "204" or status == "304" or status[0] == "1"
        if length is None and size is not None and not empty and (size or self._method != "HEAD"):
            length = size
        framing = FRAMING[empty or self._method == "HEAD", length is not None, http11]
        self._framing = framing
        self._left = length if framing is Framing.LENGTH and length else 0
        if length is not None and status != "204" and status[0] != "1":
            lines.append(b"Content-Length: %d\r\n" % length)
        elif framing is Framing.CHUNKED:
            lines.append(b"Transfer-Encoding: chunked\r\n")
        elif framing is Framing.CLOSE:
            self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"Connection: close\r\n")
        elif not http11:
            lines.append(b"Connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self.sent = True
        return b"".join(lines)

    def _frame(self, data: bytes) -> bytes:
        """`data` as it goes over the wire, cut to what was declared."""
        framing = self._framing
        if framing is Framing.LENGTH:
            data = data[: self._left]
            self._left -= len(data)
        elif framing is Framing.NONE:
            return b""
        self.size += len(data)
        if framing is Framing.CHUNKED:
            return b"%x\r\n%b\r\n" % (len(data), data)
        return data
