"""A connection without a socket: what the engine writes is kept, the kernel is played by hand."""

import logging
from collections import deque
from typing import Any, BinaryIO

from hop.adaptor import ErrorStream, base_environ
from hop.engine import TRANSITIONS, ConnectionState
from hop.errors import ClientDisconnected

#: Every step that the engine may make.
STEPS = {(state, new) for state, row in TRANSITIONS.items() for new in row.values()}

BASE = base_environ("test.example", "80", ErrorStream(logging.getLogger("hop.error")))


class FakeLoop:
    """A loop that calls on the spot and counts."""

    max_unsent = 1 << 20
    draining = False

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls: list[str] = []

    def begin(self, conn: Any, call: object) -> None:
        self.calls.append("begin")

    def end(self, conn: Any) -> None:
        self.calls.append("end")

    def answer(self, conn: Any, data: bytes) -> None:
        conn.write(data)

    def assist(self, conn: Any) -> None:
        self.calls.append("assist")

    def wait_writable(self, conn: Any) -> None:
        self.calls.append("wait")
        conn.room = 1 << 40
        conn.flush()


class Waiting(deque[bytes]):
    """Output that waits, as a Backlog."""

    corked = False


class FakeConnection:
    """Takes `room` bytes at once and keeps the rest, as a kernel does for a slow client.

    `steps` has every change of state that the engine made.
    """

    def __init__(self, loop: FakeLoop | None = None, room: int = 1 << 40) -> None:
        self.loop: Any = loop or FakeLoop()
        self.base = BASE
        self.steps: list[tuple[ConnectionState, ConnectionState]] = []
        self._state = ConnectionState.IDLE
        self.since = self.loop.now
        self.incoming: Any = None
        self.backlog: Waiting | None = None
        self.peer: str | None = None
        self.room = room
        self.sent = bytearray()
        self.sends = 0
        self.log: list[str] = []
        self.broken = False

    @property
    def state(self) -> ConnectionState:
        return self._state

    @state.setter
    def state(self, new: ConnectionState) -> None:
        self.steps.append((self._state, new))
        self._state = new

    def write(self, data: bytes) -> None:
        if self.broken:
            raise ClientDisconnected("broken")
        if self.backlog is not None:
            self.backlog.append(data)
            return
        self.sends += 1
        self.sent += data[: self.room]
        rest = data[self.room :]
        self.room -= len(data) - len(rest)
        if rest:
            self.backlog = Waiting([rest])

    def cork(self) -> None:
        if self.backlog is None:
            self.backlog = Waiting()
            self.backlog.corked = True

    def push(self) -> bool:
        if self.backlog is None:
            return False
        waiting = b"".join(self.backlog)
        self.backlog.clear()
        self.sent += waiting[: self.room]
        rest = waiting[self.room :]
        self.room -= len(waiting) - len(rest)
        if rest:
            self.backlog.append(rest)
        return bool(rest)

    def send_file(self, file: BinaryIO, offset: int, count: int) -> None:
        self.log.append("send_file")
        file.seek(offset)
        self.write(file.read(count))

    def flush(self) -> bool:
        if self.backlog is None:
            return True
        waiting, self.backlog = b"".join(self.backlog), None
        if waiting:
            self.write(waiting)
        return self.backlog is None

    def pending(self) -> int:
        return sum(map(len, self.backlog or ()))

    def peer_address(self) -> str:
        self.peer = "192.0.2.1"
        return self.peer

    def peer_name(self) -> tuple[str, int] | str:
        return "192.0.2.1", 4711

    def gone(self) -> bool:
        return False

    def hang_up(self) -> None:
        self.log.append("hang_up")

    def reset(self) -> None:
        self.log.append("reset")
