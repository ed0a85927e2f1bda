"""A channel without a socket, and a client that is made of bytes."""

import math
from typing import Any

from wsproto.frame_protocol import FrameProtocol

from hop.websocket import accept
from tests.websocket_corpus import client_frame

HANDSHAKE = {
    "REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_CONNECTION": "Upgrade",
    "HTTP_UPGRADE": "websocket", "HTTP_SEC_WEBSOCKET_VERSION": "13",
    "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


class FakeChannel:
    """Keeps what is written; the client takes `room` bytes of it. Its clock is moved by `wait`."""

    def __init__(self, room: float = math.inf) -> None:
        self.room, self.sent, self.pending, self.writes = room, bytearray(), 0, 0
        self.now, self.timers, self.ended = 0.0, [], ""
        self.handler: Any = None
        self.on_close: Any = None
        self.on_shutdown: Any = None
        self.write_timeout: float | None = None
        self.high_water = 0

    def write(self, data: bytes) -> bool:
        assert type(data) is bytes
        if self.ended:
            return False
        self.writes += 1
        taken = int(min(len(data), self.room - len(self.sent)))
        self.sent += data[:taken]
        self.pending += len(data) - taken
        return self.pending > self.high_water

    def call_later(self, delay, fn):
        self.timers.append((self.now + delay, fn))

    def wait(self, seconds):
        """Move the clock, and call what is due."""
        until = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= until and not self.ended]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = first[0]
            first[1]()
        self.now = until

    def _end(self, how):
        if not self.ended:
            self.ended = how
            self.on_close(self)

    def close(self):
        self._end("close")

    def abort(self):
        self._end("abort")

    def lost(self):
        """The client is gone without a word."""
        self._end("lost")

    def hears(self, *pieces):
        """Let pieces arrive, as long as the connection lasts."""
        for piece in pieces:
            if not self.ended:
                try:
                    self.handler(self, piece)
                except Exception:
                    self.close()
                    raise
        return self

    def frames(self):
        """What a client understands of what was sent: (opcode, payload)."""
        client = FrameProtocol(client=True, extensions=[])
        client.receive_bytes(bytes(self.sent))
        return [(frame.opcode.name, frame.payload) for frame in client.received_frames()]


class FakeHijacker:
    def __init__(self, channel):
        self.channel = channel

    def set_read_handler(self, handler, *, on_close=None, on_drain=None):
        self.channel.handler, self.channel.on_close = handler, on_close
        return self.channel


class Visit:
    """A handshake with `accept`, and what came of it."""

    def __init__(self, on_message=None, *, room=math.inf, fields=(), **options):
        self.channel, self.messages, self.told = FakeChannel(room), [], []
        self.ws = self.head = None
        environ = {**HANDSHAKE, **dict(fields), "hop.hijacker": FakeHijacker(self.channel)}

        def start_response(status, headers):
            self.head = (status, dict(headers))

        def remember(ws, message):
            self.messages.append(message)

        def opened(ws):
            self.ws = ws

        def closed(ws, code, reason):
            assert ws is self.ws
            self.told.append((code, reason))

        self.body = accept(
            environ, start_response, on_message or remember,
            on_open=opened, on_close=closed, **options,
        )

    def hears(self, *pieces):
        self.channel.hears(*pieces)
        return self

    def frames(self):
        return self.channel.frames()


def text(message: str) -> bytes:
    """A client's text message."""
    return client_frame(0x81, message.encode())


def closing(code: int, reason: str = "") -> bytes:
    """A client's close frame."""
    return client_frame(0x88, code.to_bytes(2, "big") + reason.encode())
