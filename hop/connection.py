# Tangled from notebooks/03_connection.ipynb. Edit the notebook.
"""Connection.

A socket's bytes in and out: what the kernel refuses waits here, and nothing else does.
"""

import contextlib
import ctypes
import os
import select
import socket
import struct
import threading
from collections import deque
from typing import Any, BinaryIO, Protocol

from hop.errors import ClientDisconnected
from hop.poller import READ

__all__ = [
    "BUDGET",
    "KEPT",
    "SMALL",
    "Backlog",
    "BytesPart",
    "Connection",
    "FilePart",
    "Keeping",
    "Loop",
]

BUDGET = 1 << 20  # bytes that one connection may send before the others have their turn
SMALL = 1 << 12  # bytes: a piece below it is cheaper to copy than to keep apart


class BytesPart:
    """Bytes that wait to be sent. What is unsent is a view of what came: nothing is copied."""

    __slots__ = ("view",)

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.view = memoryview(data)

    def __len__(self) -> int:
        return len(self.view)

    def send(self, sock: socket.socket) -> int:
        """Send what the kernel takes, BUDGET bytes at most; the number of bytes."""
        sent = sock.send(self.view[:BUDGET])
        self.view = self.view[sent:]
        return sent

    def close(self) -> None:
        """Forget the bytes."""
        self.view = self.view[:0]


class FilePart:
    """`count` bytes of a file from `offset`, to be sent without passing through Python.

    Holds a descriptor of its own, so that whoever opened the file may close theirs at once.
    OSError when there is none left.
    """

    __slots__ = ("count", "fd", "offset")

    def __init__(self, file: BinaryIO, offset: int, count: int) -> None:
        self.fd = os.dup(file.fileno())
        self.offset = offset
        self.count = count

    def __len__(self) -> int:
        return self.count

    def send(self, sock: socket.socket) -> int:
        """Send what the kernel takes, BUDGET bytes at most; the number of bytes.

        A file that ends too early is a ClientDisconnected: the answer cannot be finished.
        """
        count = min(self.count, BUDGET)
        sent = os.sendfile(sock.fileno(), self.fd, self.offset, count)
        if not sent:
            raise ClientDisconnected("the file became shorter while it was being sent")
        self.offset += sent
        self.count -= sent
        return sent

    def close(self) -> None:
        """Give the descriptor back; closing twice is harmless."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Backlog:
    """Output that waits: parts in order, and their `size` in bytes.

    It waits because the kernel refused it, or, `corked`, because more will come at once. Whoever
    appends or sends holds the `lock`: another thread than the owner may push.
    """

    __slots__ = ("corked", "lock", "parts", "size", "small")

    def __init__(self, *, corked: bool = False) -> None:
        self.parts: deque[BytesPart | FilePart] = deque()
        self.small = bytearray()
        self.size = 0
        self.corked = corked
        self.lock = threading.Lock()

    def append(self, data: bytes | memoryview) -> None:
        """Put bytes at the end. Small pieces are gathered, and leave in one send."""
        self.size += len(data)
        if len(data) < SMALL:
            self.small += data
        else:
            self._gather()
            self.parts.append(BytesPart(data))

    def append_file(self, part: FilePart) -> None:
        """Put part of a file at the end."""
        self.size += len(part)
        self._gather()
        self.parts.append(part)

    def _gather(self) -> None:
        """Make one part of the small pieces."""
        if self.small:
            self.parts.append(BytesPart(self.small))
            self.small = bytearray()

    def send(self, sock: socket.socket) -> None:
        """Send until nothing is left, BUDGET is spent, or the kernel refuses (BlockingIOError)."""
        self._gather()
        enough = self.size - BUDGET
        while self.parts and self.size > enough:
            part = self.parts[0]
            self.size -= part.send(sock)
            if not part:
                self.parts.popleft().close()

    def close(self) -> None:
        """Forget everything that is left."""
        while self.parts:
            self.parts.popleft().close()
        self.small = bytearray()
        self.size = 0


class Loop(Protocol):
    """What a connection needs of the loop that serves it; the engine asks more of it."""

    now: float
    buffer_size: int
    keeping: "Keeping | None"


class Connection:
    """One accepted, non-blocking socket.

    `base` is the part of environ that all connections of its listener share, `state` belongs to
    the engine, `since` is the loop's clock when that last made progress, `incoming` a request
    that has not arrived whole, `backlog` the output that waits: None, not empty, or corked.
    `interest` is what the poller watches for, and `owned` says that a thread other than the
    leader has the connection. While it is idle, `incoming` and `backlog` are None.
    """

    __slots__ = ("backlog", "base", "incoming", "interest", "loop",
                 "owned", "peer", "since", "sock", "state")  # fmt: skip

    def __init__(
        self, sock: socket.socket, loop: Loop, base: dict[str, Any], state: Any = None
    ) -> None:
        self.sock = sock
        self.loop: Any = loop
        self.base = base
        self.state = state
        self.since = loop.now
        self.incoming: Any = None
        self.backlog: Backlog | None = None
        self.interest = READ
        self.owned = False
        self.peer: str | None = None

    def receive(self) -> bytes | None:
        """One read: bytes; `b""` after the end of input or a reset; None: nothing was there."""
        keeping: Keeping | None = self.loop.keeping
        try:
            if keeping is None:
                return self.sock.recv(self.loop.buffer_size)
            return keeping.recv(self.sock)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def write(self, data: bytes) -> None:
        """Send now what the kernel takes and keep the rest. Raises ClientDisconnected."""
        backlog = self.backlog
        if backlog is not None:
            with backlog.lock:
                backlog.append(data)
            return
        size, keeping = len(data), self.loop.keeping
        part = data if size <= BUDGET else memoryview(data)[:BUDGET]
        try:
            sent = self.sock.send(part) if keeping is None else keeping.send(self.sock, part)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            raise ClientDisconnected(str(error)) from None
        if sent < size:
            backlog = Backlog()
            backlog.append(memoryview(data)[sent:])
            self.backlog = backlog

    def pending(self) -> int:
        """Bytes that wait to be sent."""
        backlog = self.backlog  # looked at once: it may vanish
        return 0 if backlog is None else backlog.size

    def flush(self) -> bool:
        """Send what waits, BUDGET bytes at most; True when nothing is left.

        Raises ClientDisconnected.
        """
        backlog = self.backlog
        if backlog is None:
            return True
        before = backlog.size
        try:
            with backlog.lock:
                backlog.send(self.sock)
        except BlockingIOError:
            pass
        except OSError as error:
            raise ClientDisconnected(str(error)) from None
        if backlog.size < before and not self.owned:
            self.since = self.loop.now
        if backlog.size:
            return False
        self.backlog = None
        return True

    def cork(self) -> None:
        """Let what is written wait for more, until `flush`: it leaves in one send."""
        if self.backlog is None:
            self.backlog = Backlog(corked=True)

    def push(self) -> bool:
        """Send what waits, from any thread; whether the kernel has refused some of it."""
        backlog = self.backlog
        if backlog is None:
            return False
        try:
            with backlog.lock:
                backlog.send(self.sock)
                return backlog.size > 0
        except BlockingIOError:
            return True
        except OSError:  # the owner will hear of it
            return False

    def send_file(self, file: BinaryIO, offset: int, count: int) -> None:
        """Send part of a plain file with sendfile(2) as the socket takes it.

        Raises ClientDisconnected, and OSError when no descriptor is left.
        """
        if count:
            part = FilePart(file, offset, count)
            backlog = self.backlog or Backlog()
            with backlog.lock:  # a push may be at work on it
                backlog.append_file(part)
            self.backlog = backlog
            self.flush()

    def hang_up(self) -> None:
        """Say that nothing more will be sent; what the client still sends can be read."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End both directions at once; from any thread. The owner notices at its next call."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Make the later close a reset: so the client can tell a cut answer from a whole one."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> None:
        """Close the socket and forget what was not sent. Only the owner may do this."""
        backlog, self.backlog, self.incoming = self.backlog, None, None
        if backlog is None:
            self.sock.close()
            return
        with backlog.lock:  # a push may be at work on it, and on the descriptor
            backlog.close()
            self.sock.close()

    def peer_name(self) -> tuple[str, int] | str:
        """The address of the other end: `(host, port)`, or a unix socket's path.

        An IPv4 client of an IPv6 listener has its IPv4 address (RFC 4291, section 2.5.5.2).
        """
        try:
            name = self.sock.getpeername()
        except OSError:
            return ""
        if not isinstance(name, tuple):
            return str(name)
        return name[0].removeprefix("::ffff:"), name[1]

    def peer_address(self) -> str:
        """The client's host, as REMOTE_ADDR has it; asked for once. Empty for a unix socket."""
        if self.peer is None:
            name = self.peer_name()
            self.peer = name[0] if isinstance(name, tuple) else ""
        return self.peer

    def gone(self) -> bool:
        """Whether the client has closed its end (or half of it) or reset the connection.

        Unread input hides the end of input: then the answer is False.
        """
        try:
            return self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def has_news(self, events: int) -> bool:
        """Whether READ or WRITE would find something at this moment, be it the end."""
        waiter = select.poll()
        waiter.register(self.sock, events)
        return bool(waiter.poll(0))


_libc = ctypes.PyDLL(None, use_errno=True)
for _call in (_libc.recv, _libc.send):
    _call.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _call.restype = ctypes.c_ssize_t

KEPT = 1 << 16  # bytes: a longer copy takes so long that the others may as well run meanwhile


def _checked(result: int) -> int:
    """What a call returned, or the OSError that it has left in errno."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Keeping:
    """`recv` and `send` that keep the interpreter's lock, and never wait.

    Beside a thread that computes they spare a switch interval each; otherwise the usual ones are
    faster. One thread at a time may read. OSError, as from the socket's methods.
    """

    def __init__(self, buffer_size: int) -> None:
        self._buffer = ctypes.create_string_buffer(buffer_size)
        self._view = memoryview(self._buffer)

    def recv(self, sock: socket.socket) -> bytes:
        """One read of `buffer_size` bytes at most."""
        room = len(self._view)
        size = _checked(_libc.recv(sock.fileno(), self._buffer, room, socket.MSG_DONTWAIT))
        return bytes(self._view[:size])

    def send(self, sock: socket.socket, data: bytes | memoryview) -> int:
        """One send; how many bytes were taken. More than KEPT goes the usual way."""
        if type(data) is not bytes or len(data) > KEPT:
            return sock.send(data)
        return _checked(_libc.send(sock.fileno(), data, len(data), socket.MSG_DONTWAIT))
