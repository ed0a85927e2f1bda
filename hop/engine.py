# Tangled from notebooks/06_engine.ipynb. Edit the notebook.
"""Engine.

The life of a connection: head, body, handler, answer, and again, without ever touching a socket.
"""

import io
import logging
from collections.abc import Callable, Iterable
from enum import IntEnum
from http import HTTPStatus
from typing import Any, BinaryIO, NoReturn, Protocol

from hop import adaptor
from hop.adaptor import JOIN_LIMIT, DateField, ResponseWriter, build_environ
from hop.errors import ClientDisconnected, ProtocolError
from hop.parser import ChunkedDecoder, Limits, RequestHead, parse_head
from hop.storage import Storage, StoredBody

__all__ = [
    "BODY",
    "CALL",
    "CLOSED",
    "CLOSING",
    "FLUSHING",
    "HEAD",
    "HIJACKED",
    "IDLE",
    "LATE",
    "LINGERING",
    "NO_BODY",
    "PAUSED",
    "REFUSING",
    "TRANSITIONS",
    "UPGRADED",
    "Application",
    "Bridge",
    "ConnectionState",
    "Engine",
    "Loop",
    "NoBody",
    "PartialBody",
    "PartialHead",
    "Transport",
    "access_log",
    "error_log",
]


class ConnectionState(IntEnum):
    """Where a connection stands."""

    IDLE = 0  # nothing of a request has arrived
    HEAD = 1  # part of a head has arrived
    BODY = 2  # the head has arrived, part of the body is missing
    PAUSED = 3  # there is no room for the body at the moment
    CALL = 4  # the application runs
    FLUSHING = 5  # the client has not taken all of the answer yet
    CLOSING = 6  # the same, and it is the last answer
    REFUSING = 7  # the same, and it is a refusal
    LINGERING = 8  # the answer is out; what the client still sends is thrown away
    UPGRADED = 9  # it has left HTTP and stays with the poller
    HIJACKED = 10  # it has left HTTP for a thread of its own
    CLOSED = 11  # nothing more will happen


(IDLE, HEAD, BODY, PAUSED, CALL, FLUSHING, CLOSING, REFUSING, LINGERING, UPGRADED, HIJACKED,
 CLOSED) = ConnectionState  # fmt: skip

TRANSITIONS: dict[ConnectionState, dict[str, ConnectionState]] = {
    IDLE: {
        "part of a head": HEAD, "head": BODY, "request": CALL, "refused": REFUSING, "end": CLOSED,
        "client is slow": FLUSHING,
    },
    HEAD: {"head": BODY, "request": CALL, "refused": REFUSING, "end": CLOSED},
    BODY: {"request": CALL, "no room": PAUSED, "refused": REFUSING, "end": CLOSED},
    PAUSED: {"room": BODY, "refused": REFUSING, "end": CLOSED},
    CALL: {
        "answered": IDLE, "client is slow": FLUSHING, "last": CLOSING, "end": CLOSED,
        "upgraded": UPGRADED, "hijacked": HIJACKED,
    },
    FLUSHING: {"flushed": IDLE, "end": CLOSED},
    CLOSING: {"flushed": LINGERING, "end": CLOSED},
    REFUSING: {"flushed": LINGERING, "end": CLOSED},
    LINGERING: {"end": CLOSED},
    UPGRADED: {"last": CLOSING, "end": CLOSED},
    HIJACKED: {"end": CLOSED},
    CLOSED: {},
}  # fmt: skip

#: What a request deserves that did not come to its end in time.
LATE = {
    HEAD: ProtocolError(HTTPStatus.REQUEST_TIMEOUT, "the request took too long"),
    BODY: ProtocolError(HTTPStatus.REQUEST_TIMEOUT, "the body took too long"),
    PAUSED: ProtocolError(HTTPStatus.SERVICE_UNAVAILABLE, "there is no room for the body"),
}


class Loop(adaptor.Loop, Protocol):
    """What the engine needs of the loop that a connection belongs to."""

    now: float

    def begin(self, conn: Any, call: object) -> None:
        """Application code starts to run."""

    def end(self, conn: Any) -> None:
        """Application code has returned."""

    def answer(self, conn: Any, data: bytes) -> None:
        """Send a whole answer: at once, or a moment later together with others."""


class Transport(adaptor.Transport, Protocol):
    """What the engine sees of a connection: what a response sees, and four attributes."""

    base: dict[str, Any]
    incoming: Any
    since: float
    state: Any

    @property
    def loop(self) -> Loop:
        """The loop that serves it."""

    def cork(self) -> None:
        """Let what is written wait for more."""

    def push(self) -> bool:
        """Send what waits, and leave the cork in; whether some of it was refused."""

    def hang_up(self) -> None:
        """Send nothing more, but read on."""


class Bridge(Protocol):
    """The way out of HTTP, which a later chapter builds: `writer` is the responses' class."""

    writer: type[ResponseWriter]

    def offer(self, environ: dict[str, Any]) -> None:
        """Put into environ what a request with an Upgrade field may leave HTTP with."""


class PartialHead:
    """The bytes of a head that has not arrived whole, and how far they were searched."""

    __slots__ = ("data", "searched")

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.searched = len(data)


class PartialBody:
    """A request whose body has not arrived whole.

    `piece` is what could not be stored for want of room, `rest` what lies behind the body.
    """

    __slots__ = ("_missing", "body", "decoder", "head", "piece", "rest")

    def __init__(self, head: RequestHead, body: StoredBody, decoder: ChunkedDecoder | None) -> None:
        self.head = head
        self.body = body
        self.decoder = decoder
        self._missing = head.content_length or 0
        self.piece = b""
        self.rest = b""

    def whole(self) -> bool:
        """Whether nothing is missing."""
        return self._missing == 0 if self.decoder is None else self.decoder.done

    def feed(self, data: bytes) -> bool:
        """Take what was read; False when there is no room for it. Raises ProtocolError."""
        if self.decoder is None:
            self.piece, self.rest = data[: self._missing], data[self._missing :]
            self._missing -= len(self.piece)
        else:
            self.piece = self.decoder.feed(data)
            self.rest = bytes(self.decoder.unused)
        return self.store()

    def store(self) -> bool:
        """Put the piece away; False when there is no room for it."""
        if self.piece and not self.body.write(self.piece):
            return False
        self.piece = b""
        return True


access_log = logging.getLogger("hop.access")
error_log = logging.getLogger("hop.error")

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Engine:
    """Serves one WSGI application over connections that somebody else watches.

    The loop calls `received`, `flushed`, `resume` and `expired`; the engine answers by writing to
    the connection and by its new state, never by touching a socket. `request_timeout` (seconds,
    None: no limit) bounds a handler, `max_drain_size` (bytes) what is read and thrown away
    behind a refused request, `max_pipelined` how many requests of one connection are answered
    before the others have their turn.
    """

    def __init__(
        self,
        app: Application,
        *,
        limits: Limits | None = None,
        storage: Storage | None = None,
        request_timeout: float | None = None,
        max_drain_size: int = 256 << 10,
        max_pipelined: int = 16,
    ) -> None:
        self.app = app
        self.limits = limits or Limits()
        self.storage = storage or Storage()
        self.request_timeout = request_timeout
        self.max_drain_size = max_drain_size
        self.max_pipelined = max_pipelined
        self.bridge: Bridge | None = None
        self.requests = 0  # calls so far; an observer may read it
        self.date = DateField()
        self._access = access_log.isEnabledFor(logging.INFO)

    def received(self, conn: Transport, data: bytes) -> None:
        """Bytes were read; `b""` is the end of input."""
        state = conn.state
        if not data:
            self._ended(conn)
        elif state == IDLE:
            self._request(conn, data)
        elif state == HEAD:
            self._receive_head(conn, conn.incoming, data)
        elif state == BODY:
            self._receive_body(conn, conn.incoming, data)
        else:
            self._discard(conn, data)
        if conn.backlog is not None:
            self._uncork(conn)

    def resume(self, conn: Transport) -> None:
        """Go on with what was read before: pipelined requests, or a body that found no room."""
        incoming = conn.incoming
        if conn.state == IDLE:
            conn.incoming = None
            self._request(conn, incoming)
        elif incoming.store():
            self._move(conn, "room")
            self._finish_body(conn, incoming)
        if conn.backlog is not None:
            self._uncork(conn)

    def _move(self, conn: Transport, event: str) -> None:
        """Take the step that the table has for `event`."""
        conn.state = TRANSITIONS[conn.state][event]
        conn.since = conn.loop.now

    def _call(
        self, head: RequestHead, environ: dict[str, Any], response: ResponseWriter
    ) -> bool:
        """The call, every `next` and `close`: one thread, and nothing in between.

        False when the application failed and its answer is cut.
        """
        whole = False
        try:
            result = self.app(environ, response.start_response)
            try:
                response.send(result)
                whole = True
            finally:
                if type(result) is not list and hasattr(result, "close"):
                    result.close()
        except ClientDisconnected:
            raise
        except BaseException as error:
            if not (response.silent() and isinstance(error, ConnectionError | StopIteration)):
                error_log.exception("%s %s", head.method, head.target)
            if not whole:
                whole = not response.sent
                response.fail()
        return whole

    def _respond(self, conn: Transport, head: RequestHead, body: BinaryIO) -> None:
        """Call the application and send its answer."""
        loop = conn.loop
        conn.state, conn.since = CALL, loop.now
        self.requests += 1
        deadline = None if self.request_timeout is None else loop.now + self.request_timeout
        bridge, date = self.bridge, self.date
        if loop.now >= date.until:
            date.renew(loop.now)
        writer = ResponseWriter if bridge is None else bridge.writer
        response = writer(conn, head, date.lines, deadline)
        environ = build_environ(conn.base, head, body, response)
        if bridge is not None:
            environ["hop.hijacker"] = response
            if "HTTP_UPGRADE" in environ:
                bridge.offer(environ)
        loop.begin(conn, response)
        try:
            try:
                whole = self._call(head, environ, response)
            finally:
                loop.end(conn)
            if response.unsent:
                loop.answer(conn, response.unsent)
        except ClientDisconnected:
            conn.reset()
            whole = False
        conn.since = loop.now
        if self._access:
            self._log(head, response)
        if whole and response.keep_alive:
            conn.state = IDLE if conn.backlog is None or conn.backlog.corked else FLUSHING
        elif response.successor is not None:
            response.successor.succeed(whole)
        elif whole:
            self._close(conn, "last")
        else:
            conn.state = CLOSED

    def flushed(self, conn: Transport) -> None:
        """All output has left. Behind the last of it, what the client still sends is read away."""
        if conn.state != FLUSHING:
            conn.hang_up()
            conn.incoming = self.max_drain_size
        self._move(conn, "flushed")

    def _close(self, conn: Transport, event: str) -> None:
        """Read no further request: an answer that is the last, or a refusal, is on its way."""
        conn.incoming = None
        self._move(conn, event)
        if conn.backlog is None:
            self.flushed(conn)

    def pass_on(self, conn: Transport, event: str, to: object = None) -> None:
        """A connection leaves HTTP, and `to` has it; or it has left, and comes to its end."""
        if event == "last":
            self._close(conn, event)
        else:
            conn.incoming = to
            self._move(conn, event)

    def _find(self, data: bytes, position: int) -> RequestHead | ProtocolError | None:
        """What begins at `position`: a head, the client's mistake, or part of a head."""
        try:
            return parse_head(data, position, self.limits)
        except ProtocolError as error:
            return error.with_traceback(None)  # or it would keep the frames, and they keep it

    def _request(self, conn: Transport, data: bytes) -> None:
        """Answer what was read: most often one request, whole and without a body."""
        try:
            head = parse_head(data, 0, self.limits)
        except ProtocolError as error:
            self._put_off(conn, data, 0, error.with_traceback(None))
            return
        if head is None or head.end < len(data) or head.content_length or head.chunked:
            self._requests(conn, data, head)
        else:
            self._respond(conn, head, NO_BODY)

    def _requests(
        self, conn: Transport, data: bytes, found: RequestHead | ProtocolError | None
    ) -> None:
        """Answer the whole requests in `data`, at whose beginning is `found`; keep the rest."""
        size, position, view = len(data), 0, memoryview(data)
        for turn in range(self.max_pipelined):
            if turn:
                found = self._find(data, position)
            if (
                not isinstance(found, RequestHead)
                or found.chunked
                or found.end + (found.content_length or 0) > size
            ):
                self._put_off(conn, data, position, found)
                return
            position = found.end + (found.content_length or 0)
            body = io.BytesIO(data[found.end : position]) if found.content_length else NO_BODY
            if position == size:
                conn.incoming = None
                self._respond(conn, found, body)
                return
            if conn.backlog is None:
                conn.cork()
            conn.incoming = view[position:]  # in case HTTP ends here
            self._respond(conn, found, body)
            if conn.state not in (IDLE, FLUSHING):
                return
            if conn.state == FLUSHING or conn.pending() > JOIN_LIMIT:
                break
        conn.incoming = data[position:]

    def _put_off(
        self, conn: Transport, data: bytes, position: int, found: RequestHead | ProtocolError | None
    ) -> None:
        """What begins at `position` cannot be answered (yet); what was answered goes first."""
        if conn.backlog is not None:
            conn.incoming = data[position:]
        elif found is None:
            conn.incoming = PartialHead(data[position:])
            self._move(conn, "part of a head")
        elif isinstance(found, ProtocolError):
            self._refuse(conn, found)
        else:
            self._begin_body(conn, found, data[found.end :])

    def _uncork(self, conn: Transport) -> None:
        """Send together what was answered together."""
        if not conn.backlog.corked:
            return
        if conn.state not in (IDLE, CLOSING):
            conn.push()
        elif conn.flush():
            if conn.state == CLOSING:
                self.flushed(conn)
        elif conn.state == IDLE:
            self._move(conn, "client is slow")

    def _receive_head(self, conn: Transport, partial: PartialHead, data: bytes) -> None:
        """More of a head. It is searched once, however small the pieces are."""
        partial.data += data
        try:
            head = parse_head(partial.data, 0, self.limits, partial.searched)
        except ProtocolError as error:
            self._refuse(conn, error)
            return
        if head is None:
            partial.searched = len(partial.data)
            return
        conn.incoming = None
        self._requests(conn, bytes(partial.data), head)

    def _begin_body(self, conn: Transport, head: RequestHead, data: bytes) -> None:
        """The head is here and the limits allow its body: collect it."""
        decoder = ChunkedDecoder(self.limits) if head.chunked else None
        conn.incoming = partial = PartialBody(head, self.storage.open(), decoder)
        self._move(conn, "head")
        if data:
            self._receive_body(conn, partial, data)
        elif head.expect_continue:
            try:
                conn.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            except ClientDisconnected:
                self._ended(conn)

    def _receive_body(self, conn: Transport, partial: PartialBody, data: bytes) -> None:
        """More of a body; every KiB of it buys a second."""
        try:
            stored = partial.feed(data)
        except ProtocolError as error:
            self._refuse(conn, error)
            return
        conn.since = min(conn.since + len(data) / 1024, conn.loop.now)
        if not stored:
            self._move(conn, "no room")
        else:
            self._finish_body(conn, partial)

    def _finish_body(self, conn: Transport, partial: PartialBody) -> None:
        """Answer the request once its body is whole."""
        if not partial.whole():
            return
        file = partial.body.rewind()
        if partial.decoder is not None:
            partial.head.variables["CONTENT_LENGTH"] = str(partial.body.size)
            del partial.head.variables["HTTP_TRANSFER_ENCODING"]
        conn.incoming = partial.rest or None
        try:
            self._respond(conn, partial.head, file)
        finally:
            partial.body.close()

    def _ended(self, conn: Transport) -> None:
        """The client sends nothing more. What it left unfinished is never taken for whole."""
        self._forget(conn)
        self._move(conn, "end")

    def drop(self, conn: Transport) -> None:
        """End the connection, whatever state it was in: the loop's last resort."""
        self._forget(conn)
        conn.state = CLOSED

    def _forget(self, conn: Transport) -> None:
        """Drop what had arrived of a request."""
        if isinstance(conn.incoming, PartialBody):
            conn.incoming.body.close()
        conn.incoming = None

    def _refuse(self, conn: Transport, error: ProtocolError) -> None:
        """Answer the client's mistake and read no further request."""
        body = f"{error.status.value} {error.status.phrase}: {error.reason}\n".encode()
        head = (
            f"HTTP/1.1 {error.status.value} {error.status.phrase}\r\n"
            f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        )
        self._forget(conn)
        if self._access:
            self._log_refusal(conn, error)
        if conn.loop.now >= self.date.until:
            self.date.renew(conn.loop.now)
        try:
            conn.write(head.encode() + self.date.lines + b"\r\n" + body)
        except ClientDisconnected:
            self._move(conn, "end")
        else:
            self._close(conn, "refused")

    def _discard(self, conn: Transport, data: bytes) -> None:
        """Throw away what a refused client still sends, up to the limit."""
        conn.incoming -= len(data)
        if conn.incoming < 0:
            self._move(conn, "end")

    def expired(self, conn: Transport) -> None:
        """The connection stood in one state for too long."""
        if conn.state in LATE:
            self._refuse(conn, LATE[conn.state])
        else:
            if conn.state in (FLUSHING, CLOSING):
                conn.reset()
            self._move(conn, "end")

    def _log(self, head: RequestHead, response: ResponseWriter) -> None:
        access_log.info(
            '%s "%s %s %s" %s %d',
            response.conn.peer or "-",
            head.method,
            head.target,
            head.protocol,
            response.status[:3],
            response.size,
        )

    def _log_refusal(self, conn: Transport, error: ProtocolError) -> None:
        access_log.info('%s "-" %d 0', conn.peer_address() or "-", error.status.value)


class NoBody(io.RawIOBase):
    """`wsgi.input` of every request without a body: nothing to read, and nothing to close."""

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        return b""

    read1 = read

    def readinto(self, buffer: Any) -> int:
        return 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return 0

    def close(self) -> None:
        pass

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("all requests without a body share this one")


NO_BODY: Any = NoBody()
