# Tangled from notebooks/09_hijack.ipynb. Edit the notebook.
"""Hijack.

The way out of HTTP: a socket for a thread of its own, or a channel that needs none.
"""

import contextlib
import errno
import logging
import os
import socket
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, NoReturn

from hop.adaptor import ResponseWriter
from hop.connection import Connection
from hop.engine import CLOSING
from hop.errors import ClientDisconnected
from hop.poller import READ, WRITE, Timer

__all__ = ["Bridge", "Channel", "HijackRefused", "HijackedSocket", "Hijacker", "Later"]

error_log = logging.getLogger("hop.error")


class HijackedSocket:
    """A connection that left HTTP, as a blocking socket: what was read past the head comes first.

    It belongs to the application until that returns. Then it is closed.
    """

    __slots__ = ("_sock", "behind")

    def __init__(self, sock: socket.socket) -> None:
        self._sock: socket.socket | None = sock
        self.behind = b""

    def _open(self) -> socket.socket:
        if self._sock is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._sock

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Up to `size` bytes; `b""` at the end of input, and when the server stops."""
        sock = self._open()
        if not self.behind:
            return sock.recv(size, flags)
        data = self.behind[:size]
        if not flags & socket.MSG_PEEK:
            self.behind = self.behind[size:]
        return data

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        """As `recv`, into a writable buffer; how many bytes."""
        sock = self._open()
        view = memoryview(buffer).cast("B")
        size = min(size or len(view), len(view))
        if not self.behind:
            return sock.recv_into(view, size, flags)
        data = self.recv(size, flags)
        view[: len(data)] = data
        return len(data)

    def send(self, data: Any, flags: int = 0) -> int:
        """Send what the kernel takes; how many bytes."""
        return self._open().send(data, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send everything."""
        self._open().sendall(data, flags)

    def settimeout(self, seconds: float | None) -> None:
        """Let each operation take so long at most (TimeoutError)."""
        self._open().settimeout(seconds)

    def gettimeout(self) -> float | None:
        """What was set; None: for ever."""
        return self._open().gettimeout()

    def setblocking(self, blocking: bool) -> None:
        """`settimeout(None)`, or `settimeout(0)`."""
        self._open().setblocking(blocking)

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        """Set an option of the socket."""
        self._open().setsockopt(level, option, value)

    def fileno(self) -> int:
        """The descriptor, to wait on; -1 after `close`."""
        return -1 if self._sock is None else self._sock.fileno()

    def getpeername(self) -> Any:
        """The other end's address."""
        return self._open().getpeername()

    def getsockname(self) -> Any:
        """This end's address."""
        return self._open().getsockname()

    def shutdown(self, how: int) -> None:
        """Close one direction or both."""
        self._open().shutdown(how)

    def close(self) -> None:
        """Close both directions, now. The descriptor goes when the application returns."""
        sock, self._sock = self._sock, None
        self.behind = b""
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "HijackedSocket":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Lease:
    """A hijacked connection's bond with the server: a Successor that keeps silent."""

    silent = True

    def __init__(self, conn: Connection, bridge: "Bridge") -> None:
        self._conn = conn
        self._bridge = bridge
        self.sock = HijackedSocket(conn.sock)

    def begin(self) -> bool:
        """Take the connection out of the loop's hands; False when too many have been taken."""
        conn, loop = self._conn, self._conn.loop
        if not self._bridge.enter():
            return False
        if not loop.excuse(conn):
            self._bridge.leave()
            return False
        self.sock.behind = bytes(conn.incoming or b"")
        loop.engine.pass_on(conn, "hijacked", self)
        if conn.backlog is not None:
            loop.wait_writable(conn)
        conn.sock.setblocking(True)
        if loop.draining:
            self.drain()
        return True

    def drain(self) -> None:
        """The server begins to stop: the handler reads the end of input."""
        with contextlib.suppress(OSError):
            self._conn.sock.shutdown(socket.SHUT_RD)

    def failed(self) -> "Lease":
        """Whether the application fails or returns is the same to a socket."""
        return self

    def succeed(self, whole: bool) -> None:
        """The application has returned: nothing may use the socket any more."""
        self.sock.close()
        self._bridge.leave()
        self._conn.loop.welcome_back(self._conn)
        self._conn.loop.engine.pass_on(self._conn, "end", self)


class HijackRefused(ConnectionError):
    """There are `max_hijacked` already; the client has been told so."""


class Refusal:
    """In place of a Lease where there are too many: the client has had its 503."""

    silent = True

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def failed(self) -> "Refusal":
        """What the application makes of it is not sent."""
        return self

    def succeed(self, whole: bool) -> None:
        """End the connection behind the 503."""
        self._conn.loop.engine.pass_on(self._conn, "last")


class Bridge:
    """Makes responses that can leave HTTP, and counts those that have left it for a thread.

    One for a server, however many loops it has.
    """

    def __init__(self, max_hijacked: int = 1000) -> None:
        self.writer: type[ResponseWriter] = Hijacker
        self.max_hijacked = max_hijacked
        self.hijacked = 0
        self._lock = threading.Lock()

    def offer(self, environ: dict[str, Any]) -> None:
        """Put the socket into environ under the names by which others know it."""
        lazy = LazySocket(environ["hop.hijacker"])
        environ["werkzeug.socket"] = environ["gunicorn.socket"] = lazy

    def enter(self) -> bool:
        """One more thread is lent for good; False when there are too many."""
        with self._lock:
            if self.hijacked >= self.max_hijacked:
                return False
            self.hijacked += 1
            return True

    def leave(self) -> None:
        """It is back."""
        with self._lock:
            self.hijacked -= 1


class Hijacker(ResponseWriter):
    """`environ["hop.hijacker"]`: a response that can take its connection out of HTTP, once.

    To be used by the application before the head has gone out; RuntimeError otherwise.
    """

    __slots__ = ()

    def hijack(self) -> HijackedSocket:
        """The connection as a blocking socket, for as long as the application does not return.

        Nothing of a response is sent. HijackRefused, a ConnectionError, when `max_hijacked`
        connections are; then the client has been answered with 503.
        """
        conn: Any = self.conn
        lease = Lease(conn, conn.loop.engine.bridge)
        self.pass_to(lease)
        if not lease.begin():
            self._refuse(conn)
        return lease.sock

    def _refuse(self, conn: Connection) -> NoReturn:
        self.successor, self.sent, self.status = None, False, ""
        self.start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
        self.send([b"503 Service Unavailable: too many connections are hijacked\n"])
        self.successor = Refusal(conn)
        raise HijackRefused("too many connections are hijacked")

    def socket(self) -> HijackedSocket:
        """The hijacked socket; hijacks if that has not been done."""
        lease = self.successor
        return lease.sock if isinstance(lease, Lease) else self.hijack()

    def set_read_handler(
        self,
        handler: "Callable[[Channel, bytes], object]",
        *,
        on_close: "Callable[[Channel], object] | None" = None,
        on_drain: "Callable[[Channel], object] | None" = None,
    ) -> "Channel":
        """Let `handler(channel, data)` be called with each piece that arrives behind the response.

        The application answers 101, or what it likes, and returns what is to be sent first.
        """
        conn: Any = self.conn
        channel = Channel(conn, handler, on_close, on_drain)
        self.pass_to(channel)
        return channel


OPERATIONS = frozenset(
    name for name in vars(HijackedSocket) if not name.startswith("_") and name != "behind"
)


class LazySocket:
    """The socket as `werkzeug.socket` and `gunicorn.socket`: its first use hijacks."""

    __slots__ = ("_hijacker",)

    def __init__(self, hijacker: Hijacker) -> None:
        self._hijacker = hijacker

    def __getattr__(self, name: str) -> Any:
        if name not in OPERATIONS:
            raise AttributeError(f"a hijacked socket has no {name!r}")
        return getattr(self._hijacker.socket(), name)


class Later(Timer):
    """A function that a channel will call; `cancel` may be called from any thread."""

    __slots__ = ("alarm",)

    def __init__(self, when: float, fn: Callable[[], object]) -> None:
        super().__init__(when, fn)
        self.alarm: Timer | None = None  # the poller's own

    def cancel(self) -> None:
        """Never call the function. Cancelling again, or too late, does nothing."""
        super().cancel()
        if self.alarm is not None:
            self.alarm.cancel()


CLOSE, ABORT = 1, 2  # how a channel ends: behind what waits to be sent, or at once


class Channel:
    """A connection that left HTTP and stays with the poller: bytes in by calls, out by `write`.

    The application's functions are called one after the other, on the thread that has the
    connection: the one that leads, or one that lost the lead. `on_close` is called once, whatever
    ended the channel; `on_drain` when more than the server's `max_unsent` had waited and all of
    it has left; `on_shutdown` when the server begins to stop (None: `close`). `read_timeout` and
    `write_timeout` are seconds without input, and without the other end taking anything of what
    waits. `data` is the application's.
    """

    silent = False

    __slots__ = (
        "_conn", "_draining", "_due", "_early", "_end", "_handler", "_heard", "_high", "_lock",
        "_moved", "_timers", "_told", "data", "on_close", "on_drain", "on_shutdown",
        "read_timeout", "write_timeout",
    )  # fmt: skip

    def __init__(
        self,
        conn: Connection,
        handler: "Callable[[Channel, bytes], object]",
        on_close: "Callable[[Channel], object] | None" = None,
        on_drain: "Callable[[Channel], object] | None" = None,
    ) -> None:
        self._conn = conn
        self._handler = handler
        self.on_close, self.on_drain = on_close, on_drain
        self.on_shutdown: Callable[[Channel], object] | None = None
        self.read_timeout: float | None = None
        self.write_timeout: float | None = None
        self.data: Any = None
        self._lock = threading.Lock()  # of the output, and of how the channel ends
        self._early: list[bytes] | None = []  # what was written before the head went out
        self._timers: tuple[Later, ...] = ()
        self._due: list[Callable[[], object]] = []
        self._end = 0
        self._told = self._high = self._draining = False
        self._heard = self._moved = conn.loop.now

    def write(self, data: bytes) -> bool:
        """Send, or keep what the kernel refuses; never blocks. True when too much waits by now.

        What is written from several threads leaves in the order of the calls. After the end it is
        dropped.
        """
        if not isinstance(data, bytes):
            raise TypeError(f"a channel carries bytes, not {type(data).__name__}")
        with self._lock:
            if self._end:
                return False
            if self._early is not None:
                self._early.append(data)
            else:
                self._send(data)
                if self._conn.backlog is None:  # the usual case
                    return False
            if self._waiting() <= self._conn.loop.max_unsent:
                return False
            self._high = True
            return True

    def _send(self, data: bytes) -> None:
        conn = self._conn
        waited = conn.backlog is not None
        try:
            conn.write(data)
        except ClientDisconnected:
            self._end = ABORT
        if self._end or (conn.backlog is not None and not waited):
            self._moved = conn.loop.now
            self._call_leader()

    def _waiting(self) -> int:
        if self._early is not None:
            return sum(map(len, self._early))
        return self._conn.pending()

    def _call_leader(self) -> None:
        """Let the loop look at the channel, although nothing arrived."""
        loop = self._conn.loop
        loop.post(loop.again, self._conn)

    @property
    def pending(self) -> int:
        """Bytes that wait to be sent."""
        with self._lock:
            return self._waiting()

    @property
    def closed(self) -> bool:
        """Whether the end has begun."""
        return self._end != 0

    def close(self) -> None:
        """Send what waits, then end the connection."""
        self._finish(CLOSE)
        self._call_leader()

    def abort(self) -> None:
        """End the connection at once; what waits is lost."""
        self._finish(ABORT)
        if self._early is None:
            self._conn.cut()  # the rest must wait for the leader, and that for a thread
        self._call_leader()
        self._conn.loop.post(partial(_hurry, self._conn), 0.0)  # in case `close` came before

    def _finish(self, how: int) -> None:
        with self._lock:
            self._end = max(self._end, how)

    def call_later(self, delay: float, fn: Callable[[], object]) -> Later:
        """Call `fn()` in `delay` seconds, unless it is cancelled or the channel ends before."""
        if not delay < float("inf"):
            raise ValueError(f"{delay!r} is no delay")
        loop = self._conn.loop
        later = Later(loop.now + delay, fn)
        loop.post(partial(self._arm, delay), later)
        return later

    def peer_name(self) -> tuple[str, int] | str:
        """The address of the other end: `(host, port)`, or a unix socket's path."""
        return self._conn.peer_name()

    def _arm(self, delay: float, later: Later) -> None:
        with self._lock:
            if later.fn is None or self._end:
                return
            later.alarm = self._conn.loop.poller.call_later(delay, partial(self._ring, later))
            armed = self._timers
            if not len(armed) & (len(armed) - 1):  # tidied whenever it has doubled
                armed = tuple(each for each in armed if each.fn is not None)
            self._timers = (*armed, later)

    def _ring(self, later: Later) -> None:
        if not self._end:
            self._due.append(later)
            self._conn.loop.again(self._conn)

    def flush(self) -> bool:
        """Send what waits, whoever owns the connection; True when nothing is left to send."""
        conn = self._conn
        with self._lock:
            before = conn.pending()
            try:
                done = conn.flush()
            except ClientDisconnected:
                self._end = ABORT
                return True
            if conn.pending() < before:
                self._moved = conn.loop.now
            self._see_drained()
            return done

    def _see_drained(self) -> None:
        """With the lock: let `on_drain` be called when too much had waited, and nothing does."""
        if self._high and self._conn.backlog is None:
            self._high = False
            self._due.append(self._drained)

    def settle(self) -> None:
        """Nobody owns the connection: leave it to the loop when the end has come."""
        conn = self._conn
        if not self._told:
            if self._end or self._due:
                conn.loop.again(conn)
        elif self._end == ABORT:
            if conn.backlog is not None:
                conn.reset()
            conn.loop.engine.pass_on(conn, "end")
        else:
            conn.loop.engine.pass_on(conn, "last")
            if self.write_timeout is not None:
                _hurry(conn, self.write_timeout)

    def look(self, now: float) -> None:
        """End the channel when one of its deadlines has passed; nobody owns it."""
        conn = self._conn
        if not conn.interest & READ:  # nobody listens, since no thread is left for a call
            self._heard = now
        if (
            self.write_timeout is not None
            and conn.backlog is not None
            and now - self._moved > self.write_timeout
        ):
            how, missed = ABORT, WRITE
        elif self.read_timeout is not None and now - self._heard > self.read_timeout:
            how, missed = CLOSE, READ
        else:
            return
        if not conn.has_news(missed):
            self._finish(how)
            conn.loop.again(conn)

    def ready(self) -> bool:
        """Read, send, call what is due; True when nothing of it needs to be settled."""
        conn = self._conn
        calm = conn.backlog is None
        if not calm:
            self.flush()
        if not self._end:
            data = conn.receive()
            if data:
                self._call(self._handler, self, data)
                self._heard = conn.loop.now
            elif data is not None:
                self._finish(ABORT if conn.backlog is None else CLOSE)
        if self._due or self._end:
            self._work()
            return False
        return calm and conn.backlog is None

    def _work(self) -> None:
        """Call what is due, and at the end `on_close`."""
        while self._due and not self._end:
            self._call(self._due.pop(0))
        if self._end and not self._told:
            self._call(self.conclude)

    def _call(self, fn: Callable[..., object], *arguments: Any) -> None:
        """Application code, under a call record: if it blocks, another thread leads."""
        conn, loop = self._conn, self._conn.loop
        loop.begin(conn, object())
        try:
            fn(*arguments)
        except BaseException:
            error_log.exception("a channel's handler failed")
            self._finish(CLOSE)
        finally:
            loop.end(conn)

    def conclude(self) -> None:
        """The end: `on_close`, if it was not called before."""
        self._finish(ABORT if not self._end else self._end)
        if self._told:
            return
        self._told = True
        self._due.clear()
        for later in self._timers:  # or they would keep all of this until they are due
            later.cancel()
        self._timers = ()
        if self.on_close is not None:
            try:
                self.on_close(self)
            except BaseException:
                error_log.exception("on_close failed")

    def failed(self) -> None:
        """There is no answer for it to follow on."""
        self.conclude()

    def succeed(self, whole: bool) -> None:
        """The response is out: from here on the connection is the channel's."""
        conn, loop = self._conn, self._conn.loop
        if not whole:
            self._finish(ABORT)
            self._work()
            loop.engine.pass_on(conn, "end")
            return
        behind = conn.incoming
        if behind:
            self._due.insert(0, partial(self._handler, self, bytes(behind)))
        with self._lock:
            early, self._early = self._early, None
            if early:
                self._send(b"".join(early))
            self._take_out_the_cork()
            self._see_drained()
        self._heard = loop.now
        loop.engine.pass_on(conn, "upgraded", self)
        if loop.draining:
            self.drain()
        self._work()

    def _take_out_the_cork(self) -> None:
        """Where more had come with the head, the engine gathers answers; we speak at once."""
        conn = self._conn
        if conn.backlog is not None and conn.backlog.corked:
            conn.backlog.corked = False
            try:
                if not conn.flush():
                    self._call_leader()
            except ClientDisconnected:
                self._end = ABORT

    def _drained(self) -> None:
        if self.on_drain is not None:
            self.on_drain(self)

    def drain(self) -> None:
        """The server begins to stop."""
        if not self._draining:
            self._draining = True
            self._due.append(self._shut_down)
            self._call_leader()

    def _shut_down(self) -> None:
        if self.on_shutdown is None:
            self.close()
        else:
            self.on_shutdown(self)


def _hurry(conn: Connection, patience: float) -> None:
    """Cut a connection that is closing when the client has taken nothing for so many seconds."""
    loop = conn.loop
    if conn.state is not CLOSING:
        return
    idle = loop.now - conn.since
    if idle < patience or (patience and conn.has_news(WRITE)):
        loop.poller.call_later(max(0.0, patience - idle), partial(_hurry, conn, patience))
    else:
        conn.reset()
        conn.cut()
