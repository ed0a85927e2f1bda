"""The four WebSocket examples and the counters: their protocol without a server, then with one."""

import contextlib
import http.client
import json
import socket
import struct
import threading
import tracemalloc
import zlib
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode
from wsproto.frame_protocol import XorMaskerSimple as Masker

from examples import app, stats, upgrade, ws_websockets_std, ws_wsproto_high
from examples.std import HijackedSocket
from tests.servers import SERVERS, std

LOW, HIGH = "/ws-wsproto-low", "/ws-wsproto-high"
STD, EVENT = "/ws-websockets-std", "/ws-websockets-event"
STYLES = (LOW, HIGH, STD, EVENT)
DRIVEN = (LOW, HIGH, EVENT)  # by readiness
LONG = 1000  # bytes: the longest message, where a test lowers the limit


class Channel:
    """What `set_read_handler` returns, without a connection."""

    def __init__(self, handler: Any, on_close: Any = None) -> None:
        self.handler, self.on_close = handler, on_close
        self.data: Any = None
        self.output = b""
        self.pending = 0
        self.ended = ""
        self.timers: list[Any] = []

    def write(self, data: bytes) -> bool:
        assert not self.ended
        self.output += data
        return self.pending > 0

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    def call_later(self, delay: float, fn: Any) -> None:
        self.timers.append((delay, fn))

    def feed(self, data: bytes) -> bytes:
        """Let bytes arrive; what was written because of them."""
        self.output = b""
        self.handler(self, data)
        return self.output


class Hijacker:
    """`hop.hijacker` of a request that came from nowhere."""

    channel: Any = None

    def set_read_handler(self, handler: Any, *, on_close: Any = None) -> Channel:
        self.channel = Channel(handler, on_close)
        return self.channel


def handshake(**changes: str | None) -> dict[str, Any]:
    """The environ of a good handshake, the key that of RFC 6455, with changes; None: without."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.1", "PATH_INFO": LOW,
        "HTTP_HOST": "localhost", "HTTP_UPGRADE": "websocket",
        "HTTP_CONNECTION": "keep-alive, Upgrade", "HTTP_SEC_WEBSOCKET_VERSION": "13",
        "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==", "hop.hijacker": Hijacker(),
        **changes,
    }
    return {key: value for key, value in environ.items() if value is not None}


def call(style: str, environ: dict[str, Any]) -> tuple[str, dict[str, str], bytes]:
    """Status, fields and body of the answer."""
    said: list[Any] = []
    body = b"".join(app.ROUTES[style](environ, lambda *answer: said.append(answer)))
    [(status, fields)] = said
    return status, dict(fields), body


def opened(style: str, **changes: str) -> Channel:
    """A channel over which the handshake has just gone."""
    environ = handshake(**changes)
    assert call(style, environ)[0] == "101 Switching Protocols"
    return environ["hop.hijacker"].channel


def frame(first: int, payload: bytes) -> bytes:
    """A masked frame with this first byte."""
    size = len(payload)
    length = (
        bytes([0x80 | size]) if size < 126
        else b"\xfe" + struct.pack("!H", size) if size < 65536
        else b"\xff" + struct.pack("!Q", size)
    )
    mask = b"mask"
    masked = Masker(mask).process(bytearray(payload))
    return bytes([first]) + length + mask + bytes(masked)


TEXT, BINARY, CLOSE, PING, PONG, FIN = 1, 2, 8, 0x89, 0x8A, 0x80


def messages(data: bytes) -> list[Any]:
    """What a client makes of the server's bytes: whole messages, and the other frames."""
    frames = FrameProtocol(client=True, extensions=[])
    frames.receive_bytes(data)
    found: list[Any] = []
    partial: Any = None
    for one in frames.received_frames():
        if one.opcode in (Opcode.TEXT, Opcode.BINARY):
            partial = one.payload if partial is None else partial + one.payload
            if one.message_finished:
                found.append(partial)
                partial = None
        else:
            found.append((one.opcode, one.payload))
    return found


# the handshake


@pytest.mark.parametrize("style", DRIVEN)
def test_accepts_with_the_key_of_the_rfc(style):
    status, fields, body = call(style, handshake())
    fields = {name.title(): value for name, value in fields.items()}
    assert status == "101 Switching Protocols"
    assert fields["Sec-Websocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert fields["Upgrade"].lower() == "websocket"
    assert "Connection" not in fields  # the server writes it
    assert "Sec-Websocket-Extensions" not in fields
    assert body == b""


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("statuses", "changes"),
    [
        ({400, 405}, {"REQUEST_METHOD": "HEAD"}),
        ({400, 505}, {"SERVER_PROTOCOL": "HTTP/1.0"}),
        ({400, 426}, {"HTTP_UPGRADE": None}),
        ({400, 426}, {"HTTP_UPGRADE": "h2c"}),
        ({400, 426}, {"HTTP_CONNECTION": None}),
        ({400, 426}, {"HTTP_CONNECTION": "keep-alive"}),
        ({400, 426}, {"HTTP_SEC_WEBSOCKET_VERSION": None}),
        ({400, 426}, {"HTTP_SEC_WEBSOCKET_VERSION": "8"}),
        ({400}, {"HTTP_SEC_WEBSOCKET_KEY": None}),
        ({400}, {"HTTP_SEC_WEBSOCKET_KEY": "c2hvcnQ="}),
        ({400}, {"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==, Zm9vYmFyZm9vYmFyZm9vYg=="}),
        ({400}, {"HTTP_SEC_WEBSOCKET_KEY": "not Base64!"}),
        ({501}, {"hop.hijacker": None}),
    ],
)
def test_refuses(style, statuses, changes):
    environ = handshake(**changes)
    status, fields, body = call(style, environ)
    assert int(status[:3]) in statuses
    assert fields["Content-Length"] == str(len(body))
    assert body.endswith(b"\n")
    if "hop.hijacker" in environ:
        assert environ["hop.hijacker"].channel is None


@pytest.mark.parametrize("style", [LOW, HIGH])
def test_names_the_version_that_it_wants(style):
    fields = call(style, handshake(HTTP_SEC_WEBSOCKET_VERSION="8"))[1]
    assert {name.title(): value for name, value in fields.items()}["Sec-Websocket-Version"] == "13"


def test_high_level_takes_no_request_that_is_none():
    assert call(HIGH, handshake(HTTP_HOST=None))[0] == "400 Bad Request"


@pytest.mark.parametrize("style", STYLES)
def test_a_body_s_framing_is_none_of_the_handshake_s_business(style):
    environ = handshake(HTTP_TRANSFER_ENCODING="chunked", HTTP_SEC_WEBSOCKET_KEY=None)
    assert call(style, environ)[0] == "400 Bad Request"
    names = [name for name, _ in upgrade.request_fields(environ)]
    assert "Transfer-Encoding" not in names
    assert "Host" in names


# frames in, frames out


@pytest.fixture
def short(monkeypatch):
    """Messages may be LONG bytes long."""
    monkeypatch.setattr(ws_wsproto_high, "MAX_MESSAGE", LONG)
    monkeypatch.setattr(ws_websockets_std, "MAX_MESSAGE", LONG)


@pytest.mark.parametrize("style", DRIVEN)
@pytest.mark.parametrize(
    "payload", [b"", b"x", "h\xe4ll\xf6".encode(), b"a" * 125, b"b" * 126, b"c" * 70_000]
)
def test_echoes_text_and_binary(style, payload):
    channel = opened(style)
    assert messages(channel.feed(frame(FIN | TEXT, payload))) == [payload.decode()]
    assert messages(channel.feed(frame(FIN | BINARY, payload))) == [payload]
    assert not channel.ended


@pytest.mark.parametrize("style", DRIVEN)
def test_any_cut_between_reads_is_the_same(style):
    sent = (
        frame(TEXT, "\u20ac".encode()[:2]) + frame(PING, b"between") + frame(0, b"")
        + frame(FIN, "\u20ac!".encode()[2:]) + frame(PONG, b"") + frame(FIN | BINARY, b"\0\1")
        + frame(FIN | CLOSE, struct.pack("!H", 1001) + b"bye")
    )
    wanted: list[Any] = [(Opcode.PONG, b"between"), "\u20ac!", b"\0\1"]
    for cut in range(len(sent) + 1):
        channel = opened(style)
        output = channel.feed(sent[:cut])
        if not channel.ended:
            output += channel.feed(sent[cut:])
        *found, (opcode, (code, _)) = messages(output)
        if style == EVENT:  # what came in one read with the close is not echoed any more
            assert [one for one in wanted if one in found] == found
        else:
            assert found == wanted
        assert (opcode, code, channel.ended) == (Opcode.CLOSE, 1001, "closed")


@pytest.mark.parametrize("style", DRIVEN)
@pytest.mark.parametrize(
    ("code", "data"),
    [
        (1002, b"\x81\x01x"),  # not masked
        (1002, frame(0xC1, b"x")),  # a reserved bit
        (1002, frame(0x83, b"x")),  # a reserved opcode
        (1002, frame(FIN, b"x")),  # a continuation of nothing
        (1002, frame(TEXT, b"x") + frame(FIN | TEXT, b"x")),  # a message within a message
        (1002, frame(9, b"x")),  # a ping in fragments
        (1002, frame(PING, b"x" * 126)),  # a ping that is too long
        (1002, frame(FIN | CLOSE, b"x")),  # half a close code
        (1002, frame(FIN | CLOSE, struct.pack("!H", 1005))),  # one that may not be sent
        (1007, frame(FIN | TEXT, b"\xff")),
        (1007, frame(TEXT, b"ok") + frame(FIN, b"\xc3")),  # ends within a character
    ],
)
def test_breaking_the_rules_ends_it_with_the_right_code(style, code, data):
    channel = opened(style)
    *_, (opcode, (given, _)) = messages(channel.feed(data))
    assert (opcode, given, channel.ended) == (Opcode.CLOSE, code, "closed")


@pytest.mark.parametrize("style", DRIVEN)
def test_a_close_without_a_code(style):
    channel = opened(style)
    answer = messages(channel.feed(frame(FIN | CLOSE, b"")))
    assert answer == [(Opcode.CLOSE, (CloseReason.NO_STATUS_RCVD, ""))]
    assert channel.ended == "closed"


@pytest.mark.parametrize("style", [HIGH, EVENT])
@pytest.mark.parametrize(
    "data",
    [
        frame(FIN | BINARY, b"x" * (LONG + 5000))[: LONG + 4500],
        frame(TEXT, b"x" * LONG) + frame(FIN, b"x"),
    ],
    ids=["one frame", "fragments"],
)
def test_a_message_that_is_too_long(short, style, data):
    channel = opened(style)
    *_, (opcode, (code, _)) = messages(channel.feed(data))
    assert (opcode, code, channel.ended) == (Opcode.CLOSE, 1009, "closed")


@pytest.mark.parametrize("style", [HIGH, EVENT])
def test_the_longest_message(short, style):
    channel = opened(style)
    data = frame(TEXT, b"x" * (LONG - 1)) + frame(FIN, b"x")
    assert messages(channel.feed(data)) == ["x" * LONG]
    assert messages(channel.feed(data)) == ["x" * LONG]


def test_low_level_holds_no_message():
    """It echoes a piece of a frame before the rest has come, so there is nothing to limit."""
    channel = opened(LOW)
    data = frame(FIN | BINARY, b"x" * 100_000)
    first = channel.feed(data[:50_000])
    assert len(first) > 49_000
    assert messages(first + channel.feed(data[50_000:])) == [b"x" * 100_000]


@pytest.mark.parametrize("style", DRIVEN)
def test_empty_fragments_are_not_hoarded(style):
    channel = opened(style)
    channel.feed(frame(TEXT, b"a"))
    empty = frame(0, b"") * 1000
    channel.feed(empty)
    tracemalloc.start()
    try:
        for _ in range(10):
            assert channel.feed(empty) == b""
        assert tracemalloc.get_traced_memory()[0] < 20_000
    finally:
        tracemalloc.stop()


def test_high_level_compresses_when_asked():
    environ = handshake(HTTP_SEC_WEBSOCKET_EXTENSIONS="permessage-deflate")
    fields = {name.title(): value for name, value in call(HIGH, environ)[1].items()}
    assert fields["Sec-Websocket-Extensions"].startswith("permessage-deflate")


def test_a_compression_bomb_meets_the_limit_early(monkeypatch):
    monkeypatch.setattr(ws_wsproto_high, "MAX_MESSAGE", 1 << 20)
    channel = opened(HIGH, HTTP_SEC_WEBSOCKET_EXTENSIONS="permessage-deflate")
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = press.compress(bytes(64 << 20)) + press.flush(zlib.Z_SYNC_FLUSH)
    data = frame(0xC2, bomb[:-4])
    assert len(data) < 1 << 16
    tracemalloc.start()
    try:
        answer = channel.feed(data)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert messages(answer)[-1][1][0] == 1009
    assert channel.ended == "closed"


@pytest.mark.parametrize("style", DRIVEN)
def test_who_never_reads_is_cut_off(style):
    channel = opened(style)
    channel.pending = upgrade.MAX_UNREAD
    channel.feed(frame(FIN | TEXT, b"x"))
    assert not channel.ended
    channel.pending += 1
    channel.feed(frame(FIN | TEXT, b"x"))
    assert channel.ended == "aborted"


@pytest.mark.parametrize("style", DRIVEN)
def test_who_is_slow_for_too_long_is_cut_off(style):
    assert opened(style).write_timeout == upgrade.STALLED  # type: ignore[attr-defined]


@pytest.mark.parametrize("style", DRIVEN)
def test_who_is_there_when_the_server_stops_is_told(style):
    channel = opened(style)
    channel.on_shutdown(channel)  # type: ignore[attr-defined]
    assert messages(channel.output) == [(Opcode.CLOSE, (1001, ""))]
    assert channel.ended == "closed"


# the blocking loop, over a pair of sockets


@contextlib.contextmanager
def looping():
    """The client's end of a connection that `serve` has; afterwards the loop must have ended."""
    ours, theirs = socket.socketpair()
    failed: list[OSError] = []

    def run():
        try:
            ws_websockets_std.serve(theirs, ws_websockets_std.Echo())
        except OSError as error:
            failed.append(error)
        theirs.close()

    thread = threading.Thread(target=run)
    thread.start()
    ours.settimeout(10)
    try:
        yield ours, thread, failed
    finally:
        ours.close()
        thread.join(10)
        assert not thread.is_alive()


def read_all(sock):
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def test_the_loop_answers_and_closes():
    with looping() as (sock, _, failed):
        sock.sendall(frame(FIN | TEXT, b"hello"))
        assert messages(sock.recv(100)) == ["hello"]
        sock.sendall(frame(FIN | CLOSE, struct.pack("!H", 1000)))
        assert messages(read_all(sock)) == [(Opcode.CLOSE, (1000, ""))]
    assert not failed


def test_the_loop_does_not_wait_for_ever_for_a_client_to_close(monkeypatch):
    monkeypatch.setattr(ws_websockets_std, "LINGER", 0.01)
    with looping() as (sock, thread, failed):
        sock.sendall(b"\x81\x01x")
        assert messages(read_all(sock))[0][1][0] == 1002
        thread.join(10)
    assert isinstance(failed[0], TimeoutError)


def test_the_loop_ends_when_nothing_can_be_read_any_more():
    with looping() as (sock, _, failed):
        sock.shutdown(socket.SHUT_WR)
        assert messages(read_all(sock)) == [(Opcode.CLOSE, (1001, ""))]
    assert not failed


# over real sockets


SERVED = [("std", STD), *(("hop", style) for style in STYLES)]


def address(port, style):
    return f"ws://127.0.0.1:{port}{style}"


@pytest.fixture(params=SERVERS)
def port(request):
    with SERVERS[request.param](app.application) as port:
        yield port


@pytest.mark.parametrize(("server", "style"), SERVED)
def test_a_client_of_another_make(server, style):
    with SERVERS[server](app.application) as port, connect(address(port, style)) as client:
        assert client.response.headers["Upgrade"].lower() == "websocket"
        for message in ("hello", b"\0" * 200_000, "", "\u20ac" * 1000):
            client.send(message)
            assert client.recv(timeout=10) == message
        assert client.ping().wait(10)
    assert client.protocol.close_code == 1000


@pytest.mark.parametrize("style", DRIVEN)
def test_std_says_why_it_cannot(style):
    with std(app.application) as port, pytest.raises(InvalidStatus) as caught:
        connect(address(port, style))
    assert caught.value.response.status_code == 501
    assert b"no poller" in caught.value.response.body


def raw_handshake(style):
    lines = [
        f"GET {style} HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", "",
    ]
    return "\r\n".join(lines).encode()


def test_frames_that_come_with_the_handshake_are_kept(port):
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(raw_handshake(STD) + frame(FIN | TEXT, b"early"))
        stream = sock.makefile("rb")
        while stream.readline().strip():
            pass
        assert messages(stream.read(7)) == ["early"]
        sock.sendall(frame(FIN | CLOSE, b""))
        assert stream.read() == b"\x88\x00"


def test_plain_get_is_told_what_is_spoken_here(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for style in STYLES:
        connection.request("GET", style)
        response = connection.getresponse()
        assert response.status in (400, 426)
        assert response.read().endswith(b"\n")
    connection.close()


# what std gives away


def test_a_socket_gives_first_what_was_read_already():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"abcdef")
        stream = theirs.makefile("rb")
        assert stream.read(1) == b"a"
        hijacked = HijackedSocket(theirs, stream)
        ours.sendall(b"gh")
        assert hijacked.recv(2, socket.MSG_PEEK) == b"bc"
        assert hijacked.recv(2) == b"bc"
        assert hijacked.recv(9) == b"def"
        assert hijacked.recv(9) == b"gh"
        assert hijacked.fileno() == theirs.fileno()
        assert hijacked.gettimeout() is None
        stream.close()


def hijacks(then):
    """An application that takes the socket, answers by itself, and does `then`."""

    def application(environ, start_response):
        with environ["hop.hijacker"].hijack() as sock:
            sock.sendall(b"not HTTP\n")
            return then(environ, start_response)

    return application


def fails(environ, start_response):
    raise ValueError("after the hijack")


def twice(environ, start_response):
    with pytest.raises(RuntimeError):
        environ["hop.hijacker"].hijack()
    return []


def answers(environ, start_response):
    start_response("200 OK", [])
    return [b"discarded"]


@pytest.mark.parametrize("then", [fails, twice, answers])
def test_nothing_of_a_response_follows_a_hijack(then):
    with std(hijacks(then)) as port, socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert read_all(sock) == b"not HTTP\n"


def test_no_hijack_when_the_response_has_begun():
    said = []

    def application(environ, start_response):
        start_response("200 OK", [("Content-Length", "2")])(b"o")
        try:
            environ["hop.hijacker"].hijack()
        except RuntimeError as error:
            said.append(error)
        return [b"k"]

    with std(application) as port, socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert read_all(sock).endswith(b"\r\n\r\nok")
    assert said


# the counters


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.setattr(stats, "_open", type(stats._open)())


def counters(event):
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    return json.loads(event[6:])


@pytest.mark.parametrize("style", DRIVEN)
def test_who_comes_and_goes_is_counted(fresh, style):
    first, second = opened(style), opened(style)
    assert first.on_close is second.on_close
    name = style[1:]
    assert counters(stats.Counters({}).event())["open"] == {name: 2}
    first.on_close(first)
    assert counters(stats.Counters({}).event())["open"] == {name: 1}
    second.on_close(second)
    assert counters(stats.Counters({}).event())["open"] == {}


def test_counters_are_pushed_by_a_timer(fresh):
    environ = {"REQUEST_METHOD": "GET", "hop.hijacker": Hijacker()}
    status, fields, body = call("/stats", environ)
    assert (status, fields["Content-Type"]) == ("200 OK", "text/event-stream")
    shown = counters(body)
    assert shown["server"] == "std"
    assert shown["open"] == {"stats": 1}
    assert shown["connections"] == 1
    assert shown["threads"] >= 1
    assert shown["memory"] > 1 << 20
    channel = environ["hop.hijacker"].channel
    delay, fn = channel.timers.pop()
    fn()
    assert delay == stats.EVERY
    assert counters(channel.output)["open"] == {"stats": 1}
    assert channel.feed(b"whatever") == b""
    channel.pending = 1  # has not read the last event yet
    channel.timers.pop()[1]()
    assert channel.output == b""
    assert len(channel.timers) == 1
    channel.on_close(channel)
    assert counters(stats.Counters({}).event())["open"] == {}


def test_head_of_the_stream():
    assert call("/stats", {"REQUEST_METHOD": "HEAD"})[2] == b""


def test_memory_is_known_without_proc(monkeypatch):
    class Gone:
        def __init__(self, name: str) -> None: ...

        def read_text(self) -> str:
            raise FileNotFoundError

    now = stats.resident()
    monkeypatch.setattr(stats, "Path", Gone)
    assert stats.resident() >= now // 2


def test_the_stream_comes_once_and_again(monkeypatch, port):
    monkeypatch.setattr(stats, "EVERY", 0.01)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/stats")
    response = connection.getresponse()
    assert response.headers["Content-Type"] == "text/event-stream"
    for _ in range(3):
        shown = counters(response.readline() + response.readline())
        assert shown["connections"] == 1
    with connect(address(port, STD)), connect(address(port, STD)):
        while shown["open"].get(STD[1:], 0) < 2:
            shown = counters(response.readline() + response.readline())
        assert shown["connections"] == 3
        assert shown["threads"] >= 3
    connection.close()
