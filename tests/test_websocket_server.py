"""hop.websocket on a real server, with clients that know nothing of hop."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import connect

from hop import testing
from hop.websocket import accept, broadcast
from tests.websocket_corpus import client_frame
from tests.websocket_fakes import closing, text

REQUEST = (
    b"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Application:
    """An echo, a chat room and an application that fails; `told` is what on_close was told."""

    def __init__(self):
        self.room, self.told, self.end = set(), [], threading.Condition()

    def left(self, ws, code, reason):
        with self.end:
            self.room.discard(ws)
            self.told.append((code, reason))
            self.end.notify_all()

    def wait_for(self, count):
        with self.end:
            assert self.end.wait_for(lambda: len(self.told) >= count, 20)
        return self.told

    def __call__(self, environ, start_response):
        path, options = environ["PATH_INFO"], {}

        def message(ws, data):
            if path == "/chat":
                broadcast(self.room, data)
            elif path == "/fail":
                raise KeyError(data)
            else:
                ws.send(data)

        def opened(ws):
            self.room.add(ws)
            if path == "/hello":
                ws.send("hello")

        if path == "/impatient":
            options = {"ping_interval": 0.1, "ping_timeout": 0.1}
        return accept(
            environ, start_response, message, on_open=opened, on_close=self.left,
            origins=["https://example.org", None], subprotocols=["v1"],
            deflate=path == "/deflate", **options,
        )


@contextmanager
def serving():
    app = Application()
    with testing.serve(app) as server:
        server.app = app
        yield server


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def visit(server, path="/echo", **options):
    return connect(f"ws://{server.host}:{server.port}{path}", **options)


def raw(server, data=b""):
    """A connection with the handshake and further bytes sent, and the answer's head."""
    sock = socket.create_connection((server.host, server.port), timeout=20)
    sock.sendall(REQUEST + data)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    return sock, head


def read_all(sock):
    data = b""
    while piece := sock.recv(1 << 16):
        data += piece
    return data


def test_echo(server):
    with visit(server) as ws:
        for message in ("hello", b"\x00\xff", "", "ü" * 100_000, bytes(1 << 20)):
            ws.send(message)
            assert ws.recv(20) == message
        ws.send(["frag", "ment", "ed"])
        assert ws.recv(20) == "fragmented"
        assert ws.ping().wait(20)
    assert (ws.close_code, ws.close_reason) == (1000, "")


def test_what_comes_with_the_handshake_is_kept(server):
    sock, head = raw(server, text("early") + closing(1000))
    assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert b"\r\nConnection: upgrade\r\n" in head
    with sock:
        assert read_all(sock) == b"\x81\x05early\x88\x02\x03\xe8"


def test_a_greeting_comes_behind_the_head_and_before_everything(server):
    with visit(server, "/hello") as ws:
        assert ws.recv(20) == "hello"


def test_compression_and_subprotocol(server):
    with visit(server, "/deflate", subprotocols=["v2", "v1"]) as ws:
        assert ws.subprotocol == "v1"
        assert [e.name for e in ws.protocol.extensions] == ["permessage-deflate"]
        for message in ("hello " * 1000, "short", bytes(100_000)):
            ws.send(message)
            assert ws.recv(20) == message


def test_refusals(server):
    with pytest.raises(InvalidStatus, match="403"):
        visit(server, origin="https://evil.example")
    with visit(server, origin="https://example.org") as ws:
        ws.send("in")
        assert ws.recv(20) == "in"


def test_an_upgrade_that_is_required_is_named(server):
    with socket.create_connection((server.host, server.port), timeout=20) as sock:
        sock.sendall(REQUEST.replace(b"Version: 13", b"Version: 12"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
    assert head.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    for field in (b"Upgrade: websocket", b"Connection: upgrade", b"Sec-WebSocket-Version: 13"):
        assert b"\r\n" + field + b"\r\n" in head


def test_a_chat_room():
    with serving() as server, ExitStack() as stack:
        members = [stack.enter_context(visit(server, "/chat")) for _ in range(20)]
        members[0].send("hello, all")
        assert [ws.recv(20) for ws in members] == ["hello, all"] * 20
        for ws in members[1:]:
            ws.close()
        server.app.wait_for(19)
        assert len(server.app.room) == 1
        members[0].send("alone")
        assert members[0].recv(20) == "alone"


def test_an_idle_socket_has_no_thread():
    with serving() as server:
        sockets = [raw(server)[0] for _ in range(5)]
        before = threading.active_count()
        sockets += [raw(server)[0] for _ in range(100)]
        assert threading.active_count() == before
        for sock in sockets:
            sock.close()
        assert server.app.wait_for(105) == [(1006, "")] * 105


@pytest.mark.parametrize(("wrong", "code"), [
    (b"\x81\x05Hello", 1002),
    (client_frame(0x81, b"\xff"), 1007),
    (client_frame(0x82, length=1 << 40)[:14], 1009),
])  # fmt: skip
def test_violations_while_the_client_sends_on(server, wrong, code):
    """The close frame arrives although the client does not listen while it sends."""
    sock, _ = raw(server, wrong + bytes(200_000))
    with sock:
        assert read_all(sock)[2:4] == code.to_bytes(2, "big")


def test_an_application_that_fails_hurts_nobody_else(server):
    with visit(server) as other, visit(server, "/fail") as ws:
        ws.send("now")
        with pytest.raises(ConnectionClosedError) as closed:
            ws.recv(20)
        assert closed.value.rcvd.code == 1011
        other.send("still here")
        assert other.recv(20) == "still here"


def test_half_open_connections_are_found():
    with serving() as server:
        sock, _ = raw(server)
        sock.sendall(closing(1000))
        read_all(sock)
        silent = socket.create_connection((server.host, server.port), timeout=20)
        silent.sendall(REQUEST.replace(b"/echo", b"/impatient"))
        assert server.app.wait_for(2)[1] == (1006, "no answer to a ping")
        silent.close()
        sock.close()


def test_a_server_that_stops_says_1001():
    with ExitStack() as stack:
        with serving() as server:
            sockets = [stack.enter_context(visit(server)) for _ in range(5)]
            for ws in sockets:
                ws.send("are you there?")
                assert ws.recv(20) == "are you there?"
        for ws in sockets:
            with pytest.raises(ConnectionClosedOK):
                ws.recv(20)
            assert (ws.close_code, ws.close_reason) == (1001, "the server stops")
    assert [code for code, _ in server.app.told] == [1001] * 5


def test_many_at_once(server):
    def converse(number):
        with visit(server) as ws:
            for turn in range(20):
                ws.send(f"{number} {turn}")
                assert ws.recv(30) == f"{number} {turn}"
        return number

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(converse, range(24))) == list(range(24))
