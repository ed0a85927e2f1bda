# Tangled from notebooks/10_websocket.ipynb. Edit the notebook.
"""WebSocket.

Messages in both directions over one connection, for thousands of clients, and no thread for those
that are silent.
"""

import base64
import hashlib
import threading
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO, StringIO
from typing import Any, Protocol, TypedDict, Unpack

from wsproto.extensions import Extension
from wsproto.frame_protocol import (
    CloseReason,
    Frame,
    FrameDecoder,
    FrameProtocol,
    MessageDecoder,
    Opcode,
    ParseFailed,
    RsvBits,
    XorMaskerSimple,
)

__all__ = [
    "BINARY",
    "BROKEN",
    "CLOSE",
    "CLOSED",
    "CLOSING",
    "CODES",
    "COMPRESSED",
    "CONTINUATION",
    "FAILED",
    "FAREWELL",
    "FEW",
    "FLUSHED",
    "GUID",
    "LINGER",
    "MAY_COMPRESS",
    "NOT_VALID",
    "NO_CODE",
    "OPEN",
    "PING",
    "PLAIN",
    "PONG",
    "SLOW",
    "TEXT",
    "WANTED",
    "WHOLE",
    "WINDOWS",
    "WORTH_IT",
    "Channel",
    "Close",
    "Event",
    "Guard",
    "Limits",
    "Ping",
    "Pong",
    "Reader",
    "Refusal",
    "StartResponse",
    "State",
    "Violation",
    "WebSocket",
    "accept",
    "accept_key",
    "agree_deflate",
    "broadcast",
    "encode",
    "encode_close",
    "encode_frame",
    "parse_close",
    "refusal",
    "unmask",
]

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


def accept_key(key: str) -> str:
    """The Sec-WebSocket-Accept that belongs to a Sec-WebSocket-Key (RFC 6455, section 4.2.2)."""
    digest = hashlib.sha1((key + GUID).encode(), usedforsecurity=False).digest()
    return base64.b64encode(digest).decode()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there will be no WebSocket: a status line, a sentence, and fields that belong to it."""

    status: str
    text: str
    headers: tuple[tuple[str, str], ...] = ()


WANTED = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))


def refusal(
    environ: dict[str, Any], origins: Collection[str | None] | None = None
) -> Refusal | None:
    """What is wrong with an opening handshake (RFC 6455, section 4.2.1), or None."""
    if environ["REQUEST_METHOD"] != "GET":
        allow = (("Allow", "GET"),)
        return Refusal("405 Method Not Allowed", "A WebSocket begins with GET.", allow)
    if environ["SERVER_PROTOCOL"] != "HTTP/1.1":
        return Refusal("400 Bad Request", "A WebSocket begins with HTTP/1.1.")
    if not (_lists(environ, "CONNECTION", "upgrade") and _lists(environ, "UPGRADE", "websocket")):
        return Refusal("426 Upgrade Required", "This address speaks WebSocket only.", WANTED)
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != "13":
        return Refusal("426 Upgrade Required", "The version has to be 13.", WANTED)
    if not _is_key(environ.get("HTTP_SEC_WEBSOCKET_KEY", "")):
        return Refusal("400 Bad Request", "The key has to be 16 bytes in base64.")
    if origins is not None and environ.get("HTTP_ORIGIN") not in origins:
        return Refusal("403 Forbidden", "This origin is not allowed.")
    return None


def _lists(environ: dict[str, Any], field: str, token: str) -> bool:
    """Whether a field of the request, a comma-separated list, has the token in it."""
    return token in _tokens(environ.get(f"HTTP_{field}", "").lower())


def _tokens(value: str) -> list[str]:
    """The items of a comma-separated field."""
    return [item.strip() for item in value.split(",") if item.strip()]


def _is_key(key: str) -> bool:
    """Whether it is the base64 of 16 bytes."""
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x00, 0x81, 0x82, 0x88, 0x89, 0x8A  # with FIN


def encode_frame(first: int, payload: bytes) -> bytes:
    """A server's frame (RFC 6455, section 5.2); `first` is its first byte."""
    size = len(payload)
    if size < 126:
        return (first << 8 | size).to_bytes(2, "big") + payload
    if size < 1 << 16:
        return (first << 24 | 126 << 16 | size).to_bytes(4, "big") + payload
    return (first << 72 | 127 << 64 | size).to_bytes(10, "big") + payload


COMPRESSED = 0x40  # RSV1, in the first byte of a message that is compressed (RFC 7692, section 6)
WORTH_IT = 64  # bytes: shorter messages are not compressed
FLUSHED = b"\0\0\xff\xff"  # what zlib ends a flush with; it is left out on the wire


def encode(message: str | bytes | bytearray | memoryview, bits: int = 0) -> bytes:
    """One message in one frame; `bits` is the window for its compression, 0 for none."""
    if isinstance(message, str):
        first, payload = TEXT, message.encode()
    else:
        first, payload = BINARY, bytes(message)
    if bits and len(payload) >= WORTH_IT:
        compressor = zlib.compressobj(wbits=-bits)
        payload = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
        first, payload = first | COMPRESSED, payload.removesuffix(FLUSHED)
    return encode_frame(first, payload)


CODES = frozenset([*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)])
NO_CODE, BROKEN = 1005, 1006  # never sent: what an application is told instead of a code


def encode_close(code: int, reason: str = "") -> bytes:
    """A close frame; without a code if that is NO_CODE."""
    if code == NO_CODE:
        return encode_frame(CLOSE, b"")
    text = reason.encode()[:123].decode(errors="ignore").encode()
    return encode_frame(CLOSE, code.to_bytes(2, "big") + text)


@dataclass(frozen=True, slots=True)
class Ping:
    """The client asks whether we are there."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """The client is there."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The client closes, or agrees to."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Violation:
    """The client broke the rules; nothing after it can be trusted."""

    code: int
    reason: str


Event = str | bytes | Ping | Pong | Close | Violation

NOT_VALID = CloseReason.INVALID_FRAME_PAYLOAD_DATA  # 1007: not what the message says it is


def parse_close(payload: bytes) -> Close:
    """The payload of a close frame. ParseFailed if it is none (RFC 6455, sections 5.5.1, 7.4)."""
    if not payload:
        return Close(NO_CODE, "")
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or code not in CODES:
        raise ParseFailed("a close frame without a valid code")
    try:
        return Close(code, payload[2:].decode())
    except UnicodeDecodeError as error:
        raise ParseFailed("a reason that is not UTF-8", NOT_VALID) from error


PLAIN, MAY_COMPRESS = RsvBits(False, False, False), RsvBits(True, False, False)


class Guard(Extension):
    """What wsproto asks about each frame: bounds a message to `limit` bytes, and decompresses."""

    name = "permessage-deflate"

    def __init__(self, limit: int, deflate: bool) -> None:
        self._limit = self._room = limit
        self._deflate = deflate
        self._control = False
        self._inflater: Any = None

    def offer(self) -> bool:
        """Nothing: only clients offer."""
        return False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """A frame begins: the reserved bits that it may have. May be asked twice about one."""
        self._control = opcode.iscontrol()
        first = opcode is Opcode.TEXT or opcode is Opcode.BINARY
        if first:
            self._room = self._limit
            self._inflater = zlib.decompressobj(-15) if rsv.rsv1 and self._deflate else None
        if not self._control and self._inflater is None and payload_length > self._room:
            return CloseReason.MESSAGE_TOO_BIG
        return MAY_COMPRESS if first and self._deflate else PLAIN

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        """Part of a frame's payload: what it stands for, or why not."""
        if self._control:
            return data
        if self._inflater is not None:
            try:
                data = self._inflater.decompress(data, self._room + 1)
            except zlib.error:
                return NOT_VALID
            if len(self._inflater.unused_data) > 5:
                return NOT_VALID
        self._room -= len(data)
        return data if self._room >= 0 else CloseReason.MESSAGE_TOO_BIG

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        """A frame ends, and with `fin` its message: what zlib has still kept of it."""
        if self._control or not fin or self._inflater is None:
            return None
        return self.frame_inbound_payload_data(proto, FLUSHED)


WINDOWS = {str(bits): bits for bits in range(9, 16)}


def agree_deflate(offers: str) -> int:
    """The window of the first offer in Sec-WebSocket-Extensions that we can take, or 0."""
    return next((bits for offer in _tokens(offers) if (bits := _window(offer))), 0)


def _window(offer: str) -> int:
    """The bits of the window that our compressor may use by this offer; 0: not acceptable."""
    name, *rest = (part.strip() for part in offer.split(";"))
    pairs = [(key.strip(), value.strip(' "')) for key, _, value in (p.partition("=") for p in rest)]
    parameters = dict(pairs)
    if name != Guard.name or len(parameters) < len(pairs):
        return 0
    bits = WINDOWS.get(parameters.pop("server_max_window_bits", "15"), 0)
    client = parameters.pop("client_max_window_bits", "")
    flags = {"server_no_context_takeover": "", "client_no_context_takeover": ""}
    if client not in ("", "8", *WINDOWS) or not parameters.items() <= flags.items():
        return 0
    return bits


def _agreed(bits: int) -> str:
    """Sec-WebSocket-Extensions of our answer."""
    terms = "server_no_context_takeover; client_no_context_takeover"
    return f"{Guard.name}; {terms}" + (f"; server_max_window_bits={bits}" if bits < 15 else "")


class Reader:
    """A client's bytes in, events out, without I/O. `limit` is the longest message, in bytes."""

    __slots__ = ("_deflate", "_frames", "_limit", "_messages", "_parts")

    def __init__(self, limit: int = 1 << 24, deflate: bool = False) -> None:
        self._limit, self._deflate = limit, deflate
        self._frames: FrameDecoder | None = None
        self._messages: MessageDecoder | None = None
        self._parts: StringIO | BytesIO | None = None

    def _event(self, frame: Frame, messages: MessageDecoder) -> Event | None:
        """The event that a frame, or part of one, completes. ParseFailed if it is not allowed."""
        payload: Any = frame.payload
        if frame.opcode.iscontrol():
            if frame.opcode is Opcode.CLOSE:
                return parse_close(payload)
            return Ping(payload) if frame.opcode is Opcode.PING else Pong(payload)
        frame = messages.process_frame(frame)
        parts: Any = self._parts
        if parts is None:
            parts = self._parts = StringIO() if frame.opcode is Opcode.TEXT else BytesIO()
        parts.write(frame.payload)
        if not frame.message_finished:
            return None
        self._parts = None
        message: str | bytes = parts.getvalue()
        return message

    def _carefully(self, data: bytes, every: bool) -> Generator[Event, None, bytes]:
        """Let wsproto read *every* frame, or those of the message that was begun; the rest."""
        frames, messages = self._frames, self._messages
        if frames is None or messages is None:
            frames = FrameDecoder(False, [Guard(self._limit, self._deflate)])
            messages = MessageDecoder()
            self._frames, self._messages = frames, messages
        frames.receive_bytes(data)
        while (frame := frames.process_buffer()) is not None:
            event = self._event(frame, messages)
            if event is not None:
                yield event
            if type(event) is Close:
                return b""  # what comes after it does not count
            if not every and frames.header is None and self._parts is None:
                break
        if frames.header is not None or self._parts is not None:
            return b""  # in the middle of a frame, or of a message
        if every and frames.buffer:
            return b""  # part of a head
        self._frames = self._messages = None
        return bytes(frames.buffer.buffer)

    def feed(self, data: bytes) -> Generator[Event, None, None]:
        """The events in these bytes, one by one. After Close or Violation it is not to be used."""
        try:
            if self._frames is not None:
                data = yield from self._carefully(data, every=False)
            start, size = 0, len(data)
            while size - start > 5:
                first, length, body = data[start], data[start + 1] ^ 0x80, start + 6
                if length == 126 and first < CLOSE:
                    length, body = data[start + 2] << 8 | data[start + 3], start + 8
                    if length < 126:
                        break
                elif length > 125:
                    break
                end = body + length
                if first not in WHOLE or end > size or length > self._limit:
                    break
                payload = unmask(data[body:end], data[body - 4 : body])
                start = end
                if first == TEXT:
                    yield payload.decode()
                elif first == BINARY:
                    yield payload
                else:
                    yield Ping(payload) if first == PING else Pong(payload)
            if start < size:
                yield from self._carefully(data[start:], every=True)
        except ParseFailed as error:
            yield Violation(int(error.code), str(error))
        except UnicodeDecodeError as error:
            yield Violation(int(NOT_VALID), str(error))


FEW = 2048  # bytes: up to here it is quicker to unmask as one integer


def unmask(data: bytes, key: bytes) -> bytes:
    """Take a client's mask of four bytes off a payload, or put it on (RFC 6455, section 5.3)."""
    size = len(data)
    if size > FEW:
        return bytes(XorMaskerSimple(key).process(bytearray(data)))
    number = int.from_bytes(data, "big") ^ int.from_bytes((key * (size // 4 + 1))[:size], "big")
    return number.to_bytes(size, "big")


WHOLE = frozenset([TEXT, BINARY, PING, PONG])  # first bytes of frames that the short way can read


class State(IntEnum):
    """Where a WebSocket stands (RFC 6455, section 7)."""

    OPEN = 0
    CLOSING = 1  # our close frame has gone out, the client's is awaited
    CLOSED = 2  # nothing that comes is read, nothing is sent


OPEN, CLOSING, CLOSED = State


class Channel(Protocol):
    """What a WebSocket needs of the channel that carries it (chapter 09)."""

    on_shutdown: Any
    write_timeout: float | None

    def write(self, data: bytes) -> bool: ...
    def close(self) -> object: ...
    def abort(self) -> object: ...
    def call_later(self, delay: float, fn: Callable[[], object]) -> object: ...
    @property
    def pending(self) -> int: ...


SLOW = 1013  # "try again later": what on_close is told of a client that was dropped for slowness


class WebSocket:
    """One WebSocket. `data` is the application's; `channel` is what carries the bytes.

    `send`, `ping`, `close` and `drop` may be called in any thread, and never block.
    """

    __slots__ = ("__weakref__", "_asked", "_bits", "_code", "_heard", "_interval", "_lock",
                 "_max_unsent", "_on_close", "_on_message", "_patience", "_reader", "_reason",
                 "_state", "channel", "data", "subprotocol")  # fmt: skip

    channel: Channel

    def __init__(
        self, on_message: Callable[["WebSocket", Any], object],
        on_close: Callable[["WebSocket", int, str], object] | None = None, *,
        max_message: int = 1 << 24, max_unsent: int = 1 << 24,
        ping_interval: float | None = 20.0, ping_timeout: float = 20.0, bits: int = 0,
    ) -> None:  # fmt: skip
        self._on_message, self._on_close = on_message, on_close
        self._reader, self._bits = Reader(max_message, bits > 0), bits
        self._max_unsent, self._lock = max_unsent, threading.RLock()
        self._interval, self._patience = ping_interval, ping_timeout
        self._state, self._code, self._reason = OPEN, BROKEN, ""
        self._heard, self._asked = True, False
        self.data: Any = None
        self.subprotocol: str | None = None

    @property
    def closed(self) -> bool:
        """Whether it is too late to send: it ends, or has ended."""
        return self._state is not OPEN

    def send(self, message: str | bytes | bytearray | memoryview) -> bool:
        """Send a message: str as text, bytes as binary. True: much waits for this client now.

        When it is too late the message is lost, and the answer is False.
        """
        return self._write(encode(message, self._bits), self._max_unsent)

    def ping(self, payload: bytes = b"") -> None:
        """Ask whether the client is there; at most 125 bytes."""
        if len(payload) > 125:
            raise ValueError("a ping has at most 125 bytes")
        self._write(encode_frame(PING, payload), self._max_unsent)

    def _write(self, frame: bytes, max_unsent: int) -> bool:
        """Send a frame; drop a client for whom more than max_unsent bytes waited already."""
        with self._lock:
            if self._state is not OPEN:
                return False
            if not self.channel.write(frame):
                return False  # the usual case: little or nothing waits
            if self.channel.pending - len(frame) <= max_unsent:
                return True
        self.drop(SLOW, "the client does not read")
        return False

    def drop(self, code: int = BROKEN, reason: str = "") -> None:
        """End the connection at once, without a farewell; on_close is told code and reason."""
        with self._lock:
            if self._state is CLOSED:
                return
            self._state, self._code, self._reason = CLOSED, code, reason
        self.channel.abort()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Begin to close: nothing can be sent any more, and no message is delivered.

        ValueError for a code that may not be sent. A second call has no effect.
        """
        if code not in CODES:
            raise ValueError(f"{code} may not be sent in a close frame")
        with self._lock:
            if self._state is OPEN:
                self._state = CLOSING
                self.channel.write(encode_close(code, reason))
                self.channel.call_later(FAREWELL, self.channel.abort)

    def _finish(self, event: Close | Violation) -> None:
        """The client has closed, or broke the rules: answer with the code, and end."""
        with self._lock:
            if self._state is OPEN:
                reason = event.reason if type(event) is Violation else ""
                self.channel.write(encode_close(event.code, reason))
            self._state, self._code, self._reason = CLOSED, event.code, event.reason
        self.channel.write_timeout = FAREWELL
        if type(event) is Close:
            self.channel.close()
        else:
            self.channel.call_later(LINGER, self.channel.close)

    def _received(self, channel: object, data: bytes) -> None:
        """Work off what has arrived; the channel calls this."""
        self._heard = True
        if self._state is CLOSED:
            if data[0] == CLOSE:
                self.channel.close()
            return
        pongs = bytearray()
        try:
            for event in self._reader.feed(data):
                kind = type(event)
                if kind is str or kind is bytes:
                    if pongs:
                        self._pong(pongs)
                    if self._state is OPEN:
                        self._on_message(self, event)
                elif isinstance(event, Ping):
                    pongs += encode_frame(PONG, event.payload)
                elif isinstance(event, Close | Violation):
                    self._pong(pongs)
                    self._finish(event)
                if self._state is CLOSED:
                    return
        except Exception:
            self._finish(Violation(FAILED, "the application failed"))
            raise
        self._pong(pongs)

    def _pong(self, pongs: bytearray) -> None:
        """Answer the pings so far."""
        if pongs:
            self._write(bytes(pongs), self._max_unsent)
            pongs.clear()

    def _look(self) -> None:
        """The timer: ask who has been silent, drop who did not answer."""
        if self._state is not OPEN or self._interval is None:
            return
        delay = self._interval
        if self._heard:
            self._heard = self._asked = False
        elif self._asked:
            self.drop(BROKEN, "no answer to a ping")
            return
        else:
            self._asked, delay = True, self._patience
            self.ping()
        self.channel.call_later(delay, self._look)

    def _stop(self, channel: object) -> None:
        """The server begins to stop (RFC 6455, section 7.4.1: 1001, going away)."""
        self.close(1001, "the server stops")

    def _ended(self, channel: object) -> None:
        """The connection is gone; the channel calls this once."""
        with self._lock:
            self._state = CLOSED
        if self._on_close is not None:
            self._on_close(self, self._code, self._reason)


FAREWELL = 10.0  # seconds that a client has for its part of the closing
LINGER = 0.5  # seconds in which a client that broke the rules may learn which

FAILED = 1011  # the application raised an exception

StartResponse = Callable[..., object]


class Limits(TypedDict, total=False):
    """What bounds a WebSocket: bytes (16 MiB each), seconds (20 each; interval None: no pings)."""

    max_message: int
    max_unsent: int
    ping_interval: float | None
    ping_timeout: float


def accept(
    environ: dict[str, Any],
    start_response: StartResponse,
    on_message: Callable[[WebSocket, Any], object],
    *,
    on_open: Callable[[WebSocket], object] | None = None,
    on_close: Callable[[WebSocket, int, str], object] | None = None,
    subprotocols: Sequence[str] = (),
    origins: Collection[str | None] | None = None,
    deflate: bool = False,
    **limits: Unpack[Limits],
) -> list[bytes]:
    """Answer an opening handshake; return what the application has to return.

    `on_message(ws, message)` gets str or bytes, `on_close(ws, code, reason)` is called once.
    TypeError for a limit that does not exist.
    """
    if isinstance(origins, str) or isinstance(subprotocols, str):
        raise TypeError("origins and subprotocols are collections of strings")
    wrong = refusal(environ, origins)
    if wrong is None and not environ.get("hop.hijacker"):
        wrong = Refusal("501 Not Implemented", "This server does not give connections away.")
    if wrong is not None:
        headers = [("Content-Type", "text/plain; charset=utf-8"), *wrong.headers]
        start_response(wrong.status, headers)
        return [wrong.text.encode() + b"\n"]
    bits = agree_deflate(environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS", "")) if deflate else 0
    ws = WebSocket(on_message, on_close, bits=bits, **limits)
    offered = _tokens(environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL", ""))
    ws.subprotocol = next((name for name in offered if name in subprotocols), None)
    _take_over(environ, start_response, ws)
    if on_open is not None:
        on_open(ws)
    return []


def _take_over(environ: dict[str, Any], start_response: StartResponse, ws: WebSocket) -> None:
    """Say 101, and let the channel call the WebSocket."""
    headers = [
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Accept", accept_key(environ["HTTP_SEC_WEBSOCKET_KEY"])),
    ]
    if ws.subprotocol is not None:
        headers.append(("Sec-WebSocket-Protocol", ws.subprotocol))
    if ws._bits:
        headers.append(("Sec-WebSocket-Extensions", _agreed(ws._bits)))
    start_response("101 Switching Protocols", headers)
    hijacker = environ["hop.hijacker"]
    ws.channel = hijacker.set_read_handler(ws._received, on_close=ws._ended)
    ws.channel.on_shutdown = ws._stop
    ws.channel.write_timeout = ws._patience
    ws._look()


def broadcast(
    sockets: Iterable[WebSocket], message: str | bytes, *, max_unsent: int = 1 << 20
) -> None:
    """Send a message to all of them; drop those for whom more than max_unsent bytes wait."""
    frames: dict[int, bytes] = {}
    for ws in tuple(sockets):
        frame = frames.get(ws._bits)
        if frame is None:
            frame = frames[ws._bits] = encode(message, ws._bits)
        ws._write(frame, max_unsent)
