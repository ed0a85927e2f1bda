"""The standard library's threading HTTP server, made to serve WSGI over HTTP/1.1.

`http.server` parses, `socketserver.ThreadingMixIn` gives every connection a thread,
`wsgiref.handlers` calls the application. What is added here is what HTTP/1.1 asks for and the
three leave out: framing that keeps the connection alive, request bodies, and no body where
none may be.
"""

import io
import logging
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit
from wsgiref.handlers import SimpleHandler
from wsgiref.headers import Headers
from wsgiref.util import is_hop_by_hop

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

MAX_DRAIN = 256 * 1024  # bytes of an unread request body that keep a connection worth having
MAX_LINE = 8192
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?\r\n")
FORBIDDEN = re.compile(r"[\r\n\0]")
HTTP_1_1 = "HTTP/1.1"

log = logging.getLogger("examples.std")


class Truncated(ConnectionAbortedError):
    """The request's body ended early or broke its framing; the connection is of no more use."""


class Body(io.RawIOBase):
    """A request's body, read from the connection as it is asked for, and no further.

    `length` is the number of bytes, or None for a chunked body (RFC 9112, 7.1).
    Raises `Truncated` rather than passing half a body off as a whole one.
    """

    def __init__(self, stream: io.BufferedIOBase, length: int | None) -> None:
        self.stream, self.chunked = stream, length is None
        self.left = length or 0  # of the body, or of the chunk at hand
        self.done = length == 0
        self.between = False  # a chunk's data has been read, its CRLF has not

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.chunked and not self.left and not self.done:
            self.next_chunk()
        if self.done:
            return 0
        data = self.stream.read1(min(len(buffer), self.left))
        if not data:
            raise Truncated("the request body ended early")
        buffer[: len(data)] = data
        self.left -= len(data)
        if not self.left:
            self.done, self.between = not self.chunked, True
        return len(data)

    def line(self) -> bytes:
        line = self.stream.readline(MAX_LINE)
        if not line.endswith(b"\r\n"):
            raise Truncated("a line of the chunked body is too long or incomplete")
        return line

    def next_chunk(self) -> None:
        """Read a chunk's first line, and behind the last chunk the trailers, which are dropped."""
        if self.between and self.line() != b"\r\n":
            raise Truncated("a chunk is longer than it said")
        size = CHUNK_SIZE.fullmatch(self.line())
        if size is None:
            raise Truncated("not a chunk size")
        self.left = int(size[1], 16)
        if not self.left:
            while self.line() != b"\r\n":
                pass
            self.done = True

    def drain(self) -> bool:
        """Read what the application left; whether that reached the end within MAX_DRAIN."""
        room = MAX_DRAIN
        while room > 0 and (data := self.read(min(room, 65536))):
            room -= len(data)
        return self.done


class HijackedSocket:
    """The connection's socket, given away. `recv` first drains what was read past the head."""

    def __init__(self, sock: socket.socket, stream: io.BufferedReader) -> None:
        self._sock = sock
        sock.setblocking(False)  # so that peeking takes what is there, and waits for no more
        try:
            self._early: bytes = stream.peek() and stream.read1()
        finally:
            sock.setblocking(True)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """At least one byte, or b"" at the end of input."""
        if not self._early:
            return self._sock.recv(size, flags)
        data = self._early[:size]
        if not flags & socket.MSG_PEEK:
            self._early = self._early[size:]
        return data

    def __getattr__(self, name: str) -> Any:
        """Everything else is the socket's own."""
        return getattr(self._sock, name)

    def __enter__(self) -> "HijackedSocket":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._sock.close()


class Hijacker:
    """`hop.hijacker`, as far as a server with a thread for every connection can offer it."""

    def __init__(self, response: "Response") -> None:
        self._response = response
        self.hijacked = False

    def hijack(self) -> HijackedSocket:
        """The blocking socket. The calling thread has it until the application returns.

        Raises RuntimeError when it has been taken already, or the response has begun.
        """
        if self.hijacked or self._response.headers_sent:
            raise RuntimeError("the connection was taken already, or its response has begun")
        request = self._response.request
        self.hijacked = request.close_connection = True
        return HijackedSocket(request.connection, cast(io.BufferedReader, request.rfile))

    def set_read_handler(self, handler: object, **callbacks: object) -> Any:
        """Raises NotImplementedError: there is nobody who would call the handler."""
        raise NotImplementedError(
            "This server has a thread for every connection and no poller to call a handler; "
            "the thread can have the socket instead, with hijack()."
        )


class Response(SimpleHandler):
    """One call of the application, its answer framed for HTTP/1.1."""

    os_environ: dict[str, str] = {}  # a request inherits nothing from the process's environment
    status: str
    headers: Headers

    def __init__(self, request: "Handler", body: Body, environ: dict[str, Any]) -> None:
        output = cast(IO[bytes], request.wfile)
        super().__init__(io.BufferedReader(body), output, sys.stderr, environ)
        self.hijacker = environ["hop.hijacker"] = Hijacker(self)
        self.request = request
        self.bodiless = self.chunked = self.complete = False
        self.left: int | None = None  # bytes that Content-Length still promises

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """As PEP 3333 has it; fields that are the server's business are left out, as by hop."""
        kept = [field for field in headers if not is_hop_by_hop(field[0])]
        return super().start_response(status, kept, exc_info)

    def finish_response(self) -> None:
        """Send what the application returned, unless it has answered by itself."""
        if self.hijacker.hijacked:
            self.close()
        else:
            super().finish_response()

    def cleanup_headers(self) -> None:
        """Decide how the body ends: by length, by chunks, or with the connection."""
        code = int(self.status[:3])
        self.bodiless = self.request.command == "HEAD" or code in (204, 304) or code < 200
        if code == 204 or code < 200:
            del self.headers["Content-Length"]
        if not self.bodiless:
            super().cleanup_headers()
            length = self.headers["Content-Length"]
            if length is not None:
                self.left = int(length)
            elif self.request.request_version == HTTP_1_1:
                self.chunked = True
                self.headers["Transfer-Encoding"] = "chunked"
            else:
                self.request.close_connection = True
        if self.request.close_connection:
            self.headers["Connection"] = "close"
        elif self.request.request_version != HTTP_1_1:
            self.headers["Connection"] = "keep-alive"

    def send_headers(self) -> None:
        """Hand the head to `http.server`, which sends it at once, before the body."""
        self.cleanup_headers()
        fields = self.headers.items()
        if any(FORBIDDEN.search(text) for text in (self.status, *map(": ".join, fields))):
            raise ValueError("a line break or NUL in the status or a header")
        self.headers_sent = True
        request = self.request
        request.send_response_only(int(self.status[:3]), self.status[4:])
        for name, value in fields:
            request.send_header(name, value)
        if "Date" not in self.headers:
            request.send_header("Date", request.date_time_string())
        if "Server" not in self.headers:
            request.send_header("Server", request.version_string())
        request.end_headers()

    def _write(self, data: bytes) -> None:
        if self.left is not None:
            data = data[: self.left]
            self.left -= len(data)
        if data and not self.bodiless:
            frame = b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data
            self.request.wfile.write(frame)

    def finish_content(self) -> None:
        if not self.headers_sent:
            if self.request.command != "HEAD":
                self.headers.setdefault("Content-Length", "0")
            self.send_headers()
        if self.chunked:
            self.request.wfile.write(b"0\r\n\r\n")
        self.complete = not self.left  # shorter than it promised: only closing tells the client


class Handler(BaseHTTPRequestHandler):
    """One connection and its thread."""

    protocol_version = HTTP_1_1
    server: "StdServer"

    def setup(self) -> None:
        if self.server.nodelay:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().setup()

    def __getattr__(self, name: str) -> Callable[[], None]:
        """`http.server` looks for `do_METHOD`: every method is the application's business."""
        if name.startswith("do_"):
            return self.respond
        raise AttributeError(name)

    def respond(self) -> None:
        """Answer the request whose head has just been parsed."""
        length = self.body_length()
        if length is not None and length < 0:
            return
        body = Body(self.rfile, length)
        response = Response(self, body, self.environ(length))
        response.run(self.server.application)
        try:
            if not (response.complete and body.drain()):
                self.close_connection = True
        except Truncated:
            self.close_connection = True

    def body_length(self) -> int | None:
        """The body's length, None for a chunked one, -1 when the framing was refused."""
        codings = self.headers.get_all("Transfer-Encoding", [])
        lengths = self.headers.get_all("Content-Length", [])
        if codings:
            if lengths or self.request_version != HTTP_1_1:
                self.send_error(400, "Ambiguous framing")
            elif [coding.strip().lower() for coding in codings] != ["chunked"]:
                self.send_error(501, "Unknown transfer coding")
            else:
                return None
        elif not lengths:
            return 0
        elif len(lengths) == 1 and re.fullmatch("[0-9]{1,18}", lengths[0].strip()):
            return int(lengths[0])
        else:
            self.send_error(400, "Bad Content-Length")
        return -1

    def environ(self, length: int | None) -> dict[str, Any]:
        """The CGI part of the WSGI environment; `wsgiref` adds its own keys."""
        target = self.path
        if not target.startswith("/"):  # absolute form, as a proxy would send it
            parts = urlsplit(target)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        path, _, query = target.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote(path, "latin-1"),
            "QUERY_STRING": query,
            "SERVER_PROTOCOL": self.request_version,
            "SERVER_NAME": self.server.server_name,
            "SERVER_PORT": str(self.server.server_port),
            "SERVER_SOFTWARE": self.version_string(),
            "REMOTE_ADDR": self.client_address[0],
            "REMOTE_PORT": str(self.client_address[1]),
            "wsgi.input_terminated": True,
            "std.connections": self.server.connections,
        }
        for name, value in self.headers.items():
            if "_" in name:
                continue
            key = name.upper().replace("-", "_")
            if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                key = f"HTTP_{key}"
            joint = "; " if key == "HTTP_COOKIE" else ", "
            value = value.strip()
            environ[key] = f"{environ[key]}{joint}{value}" if key in environ else value
        return environ

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        log.info("%s " + format, self.client_address[0], *args)


class StdServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread per connection. `address` is `:port`, `host:port` or `[::1]:port`.

    `nodelay` switches Nagle's algorithm off. It is on by default, as in the standard library,
    where the body of a response then waits for the client to acknowledge its head.
    Raises ValueError for an address that is none, OSError for one that cannot be had.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 2048

    def __init__(
        self, application: "WSGIApplication", address: str, nodelay: bool = False
    ) -> None:
        self.application, self.nodelay = application, nodelay
        self._live, self._lock = 0, threading.Lock()
        host, port = split_address(address)
        if ":" in host or (not host and socket.has_dualstack_ipv6()):
            self.address_family = socket.AF_INET6
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        if self.server_address[0] == "" and self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
        host, self.server_port = self.socket.getsockname()[:2]
        self.server_name = str(host)

    def connections(self) -> int:
        """How many there are; each has a thread."""
        return self._live

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The life of a connection's thread."""
        with self._lock:
            self._live += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._live -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is not worth a traceback; anything else is."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            log.error("while serving a connection", exc_info=error)


def split_address(address: str) -> tuple[str, int]:
    """`:1826` is every interface. Raises ValueError when there is no port from 0 to 65535."""
    host, colon, port = address.rpartition(":")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"not an address like :1826 or localhost:1826: {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)
