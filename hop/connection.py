"""A socket's bytes in and out: what the kernel refuses waits here, and nothing else does."""

import os
import socket
import struct
from collections import deque
from typing import Any, BinaryIO, Protocol

from hop.errors import ClientDisconnected
from hop.poller import READ

__all__ = ["Backlog", "Connection", "FilePart", "Loop"]


class FilePart:
    """`count` bytes of a file from `offset`, to be sent without passing through Python.

    Holds a descriptor of its own, so that whoever opened the file may close theirs at once.
    """

    __slots__ = ("count", "fd", "offset")

    def __init__(self, file: BinaryIO, offset: int, count: int) -> None:
        self.fd = os.dup(file.fileno())
        self.offset = offset
        self.count = count

    def __len__(self) -> int:
        return self.count

    def send(self, sock: socket.socket) -> int:
        """Send what the kernel takes; the number of bytes. A file cut short counts as a failure."""
        sent = os.sendfile(sock.fileno(), self.fd, self.offset, self.count)
        if sent == 0:
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
    """Output that the kernel refused so far: pieces in order, and their size in bytes."""

    __slots__ = ("parts", "size")

    def __init__(self) -> None:
        self.parts: deque[memoryview | FilePart] = deque()
        self.size = 0

    def append(self, part: memoryview | FilePart) -> None:
        """Put a piece at the end."""
        self.parts.append(part)
        self.size += len(part)

    def send(self, sock: socket.socket) -> None:
        """Send pieces until all are gone or the kernel refuses (`BlockingIOError`)."""
        parts = self.parts
        while parts:
            part = parts[0]
            if isinstance(part, FilePart):
                self.size -= part.send(sock)
                if not part.count:
                    parts.popleft()
                    part.close()
            else:
                sent = sock.send(part)
                self.size -= sent
                parts.popleft()
                if sent < len(part):
                    parts.appendleft(part[sent:])

    def close(self) -> None:
        """Forget everything that is left."""
        for part in self.parts:
            if isinstance(part, FilePart):
                part.close()
        self.parts.clear()
        self.size = 0


class Loop(Protocol):
    """What a connection needs of the loop that serves it."""

    now: float
    buffer_size: int

    def begin(self, conn: "Connection", call: object) -> None:
        """Application code starts to run for `conn`."""

    def end(self, conn: "Connection") -> None:
        """Application code has returned."""

    def wait_writable(self, conn: "Connection") -> None:
        """Block the calling thread until the socket takes bytes; the lead passes on."""


class Connection:
    """One accepted socket.

    `base` is the part of environ that all connections of its listener share, `since` the loop's
    clock when the state last made progress, `incoming` a request that has not arrived whole,
    `backlog` the output that the kernel refused. While it is idle the last two are None.
    """

    __slots__ = (
        "backlog",
        "base",
        "incoming",
        "interest",
        "loop",
        "owned",
        "peer",
        "since",
        "sock",
        "state",
    )

    def __init__(
        self, sock: socket.socket, loop: Loop, base: dict[str, Any], state: Any = None
    ) -> None:
        self.sock = sock
        self.loop = loop
        self.base = base
        self.state = state
        self.since = loop.now
        self.incoming: Any = None
        self.backlog: Backlog | None = None
        self.interest = READ
        self.owned = False
        self.peer: str | None = None

    def receive(self) -> bytes | None:
        """One read: bytes, `b""` when the client is gone, None when nothing was there."""
        try:
            return self.sock.recv(self.loop.buffer_size)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def write(self, data: bytes) -> None:
        """Send now what the kernel takes and keep the rest. Raises ClientDisconnected."""
        backlog = self.backlog
        if backlog is not None:
            backlog.append(memoryview(data))
            return
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            raise ClientDisconnected(str(error)) from None
        if sent < len(data):
            self.backlog = backlog = Backlog()
            backlog.append(memoryview(data)[sent:])

    def send_file(self, file: BinaryIO, offset: int, count: int) -> None:
        """Send part of a file with sendfile(2) as the socket takes it. Raises ClientDisconnected."""
        if self.backlog is None:
            self.backlog = Backlog()
        self.backlog.append(FilePart(file, offset, count))
        self.flush()

    def flush(self) -> bool:
        """Send what waits; True when nothing is left. Raises ClientDisconnected."""
        backlog = self.backlog
        if backlog is None:
            return True
        before = backlog.size
        try:
            backlog.send(self.sock)
        except (BlockingIOError, InterruptedError):
            if backlog.size != before:
                self.since = self.loop.now
            return False
        except OSError as error:
            raise ClientDisconnected(str(error)) from None
        self.backlog = None
        return True

    def pending(self) -> int:
        """Bytes that the kernel has refused so far."""
        return 0 if self.backlog is None else self.backlog.size

    def peer_name(self) -> tuple[str, int] | str:
        """The address of the other end: `(host, port)`, or a unix socket's path."""
        try:
            name = self.sock.getpeername()
        except OSError:
            return ""
        return name[:2] if isinstance(name, tuple) else str(name)

    def peer_address(self) -> str:
        """The client's host, as REMOTE_ADDR has it; asked for once. Empty for a unix socket."""
        if self.peer is None:
            name = self.peer_name()
            self.peer = name[0] if isinstance(name, tuple) else ""
        return self.peer

    def gone(self) -> bool:
        """Whether the client has closed its end or reset the connection."""
        try:
            return self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    def cut(self) -> None:
        """End both directions at once; the owner notices at its next read or write."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def reset(self) -> None:
        """Make the later close a reset, so that the client can tell a cut answer from a whole one."""
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass

    def hang_up(self) -> None:
        """Say that nothing more will be sent; what the client still sends can be read."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        """Close the socket and forget what was not sent. Only the owner may do this."""
        if self.backlog is not None:
            self.backlog.close()
            self.backlog = None
        self.incoming = None
        self.sock.close()
