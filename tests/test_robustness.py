"""What bad input and bad clients get, over real sockets: promises that no other test holds."""

import contextlib
import hashlib
import http.client
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import pytest

import hop.server
from hop import Engine
from hop.adaptor import _field_lines, _status_lines
from hop.engine import ConnectionState
from hop.leader import InlineLoop
from hop.parser import Limits, _lines, _names
from hop.poller import READ, default_poller
from hop.server import Server
from hop.storage import Storage
from hop.testing import serve
from tests.apps.plain import app as plain

ROOT = Path(__file__).parent.parent
IDLE, HEAD, BODY, PAUSED, CALL, FLUSHING, CLOSING, REFUSING, LINGERING, *_, CLOSED = ConnectionState
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


def until(condition, timeout=20.0):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def connect(served, data=b"", *, room=None):
    """A client; `room` bytes of receive buffer make it one that takes little."""
    sock = socket.socket()
    if room:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    sock.settimeout(20)
    sock.connect((served.host, served.port))
    sock.sendall(data)
    return sock


def request(path="/", *fields, version="1.1", method="GET"):
    lines = [f"{method} {path} HTTP/{version}", "Host: x", *fields, "", ""]
    return "\r\n".join(lines).encode()


def answer(sock, method="GET"):
    response = http.client.HTTPResponse(sock, method=method)
    response.begin()
    return response.status, response.read()


def read_all(sock):
    """Everything until the end, and whether the end was a reset."""
    data = b""
    try:
        while piece := sock.recv(1 << 16):
            data += piece
    except ConnectionResetError:
        return data, True
    return data, False


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def group_of(served):
    return served.server._groups[0]


def states(served):
    return [conn.state for conn in list(group_of(served).connections.values())]


def turns(served, count):
    """Let the leader go through its loop `count` times: each letter wakes one wait."""
    for _ in range(count):
        read = threading.Event()
        group_of(served).post(lambda _, read=read: read.set())
        assert read.wait(20)


class Desk:
    """An application with doors that the test opens: `/wait/N` waits for door N."""

    def __init__(self):
        self.doors = [threading.Event() for _ in range(20)]
        self.seen = []

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        self.seen.append(path)
        body = [b"hello"]
        if path.startswith("/wait/"):
            assert self.doors[int(path[6:])].wait(20)
        elif path == "/upload":
            body = [str(len(environ["wsgi.input"].read())).encode()]
        elif path == "/big":
            body = [b"x" * (32 << 20)]
        elif path == "/stream":
            body = (b"x" * (1 << 16) for _ in range(512))
        elif path == "/fail":
            raise RuntimeError("wanted")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return body

    def open(self):
        for door in self.doors:
            door.set()


@pytest.fixture
def desk():
    desk = Desk()
    yield desk
    desk.open()


# --- the list that servers are compared by -------------------------------------------------------


@pytest.fixture(scope="module")
def echo():
    def app(environ, start_response):
        start_response("200 OK", [("X-App", "1")])
        return [environ["wsgi.input"].read() or b"empty"]

    with serve(app) as served:
        yield served


HOST = b"Host: example.com\r\n"


class TestHttpList:
    """15 fragments on which a server waits, and 18 requests with the statuses they may get."""

    @pytest.mark.parametrize("size", [1, 4, 10, 11, 15, 19, 20, 21, 24, 26, 27, 36, 37, 38, 39])
    def test_a_fragment_is_waited_on(self, echo, size):
        whole = b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with connect(echo, whole[:size]) as sock:
            until(lambda: HEAD in states(echo))
            turns(echo, 3)
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
            sock.settimeout(20)
            sock.sendall(whole[size:])
            assert answer(sock) == (200, b"empty")
        until(lambda: not states(echo))

    @pytest.mark.parametrize(
        ("head", "body"),
        [
            (b"GET / HTTP/1.1\r\n" + HOST + b"\r\n", b"empty"),
            (b"GET / HTTP/1.1\r\nhoSt:\texample.com\r\nempty:\r\n\r\n", b"empty"),
            (b"GET / HTTP/1.1\r\n" + HOST + b"X-Empty-Header: \r\n\r\n", b"empty"),
            (b"GET / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\n\r\n", b"empty"),
            (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello", b"hello"),
            (
                b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
                b"c\r\nHellO world1\r\n0\r\n\r\n",
                b"HellO world1",
            ),
        ],
    )  # fmt: skip
    def test_what_is_well_formed_is_answered(self, echo, head, body):
        with connect(echo, head) as sock:
            assert answer(sock) == (200, body)

    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (b"GET / \r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n" + HOST + b"X-Invalid[]: test\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n" + HOST + b"Host: example.org\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: -" + b"123456789" * 3 + b"\r\n\r\n", 400),  # noqa: E501
            (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: -1234\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n" + HOST + b"Content-Length: abc\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\n" + HOST + b"X-Bad-Control-Char: test\x07\r\n\r\n", 400),
            (b"GET / HTTP/9.9\r\n" + HOST + b"\r\n", 505),
            (b"Extra lineGET / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
            (b"GET / HTTP/1.1\r\n" + HOST + b"\rSome-Header: Test\r\n\r\n", 400),
            (
                b"POST / HTTP/1.1\r\n" + HOST + b"content-LengtH: 5\r\nTransFer-Encoding: chunked"
                b"\r\n\r\nc\r\nHellO world1\r\n0\r\n\r\n",
                400,
            ),
        ],
    )  # fmt: skip
    def test_what_is_not_is_refused_and_the_connection_ends(self, echo, data, status):
        with connect(echo, data) as sock:
            sock.sendall(GET)  # nothing behind it is answered
            received, _ = read_all(sock)
        assert received.startswith(b"HTTP/1.1 %d " % status)
        assert b"\r\nConnection: close\r\n" in received
        assert received.count(b"HTTP/1.1 ") == 1 + (status == 505)  # its text names the version
        assert b"X-App" not in received


# --- what stands still costs nothing -------------------------------------------------------------


class Counting:
    """A poller that remembers what it reported, and how often it was asked not to wait."""

    def __init__(self):
        self.inner = default_poller()
        self.events = []
        self.impatient = 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def poll(self, timeout):
        self.impatient += timeout == 0.0
        events = self.inner.poll(timeout)
        self.events += events
        return events


@pytest.fixture
def counting(monkeypatch):
    pollers = []

    def make():
        pollers.append(Counting())
        return pollers[-1]

    monkeypatch.setattr(hop.server, "default_poller", make)
    return pollers


def assert_quiet(served, pollers):
    """In twenty turns the kernel reports nothing, so it would let the thread sleep."""
    turns(served, 3)
    (poller,) = pollers
    poller.events.clear()
    poller.impatient = 0
    turns(served, 20)
    assert poller.events == []
    assert poller.impatient <= 20  # one for each letter that was there before the wait


class TestNothingSpins:
    @pytest.mark.parametrize(
        ("data", "state"),
        [
            (GET, IDLE),
            (b"GET / HT", HEAD),
            (POST % 10 + b"abc", BODY),
            (request("/big"), FLUSHING),
            (request("/big", "Connection: close"), CLOSING),
            (b"BAD\r\n\r\n", LINGERING),
        ],
    )
    def test_in_a_state_that_lasts(self, desk, counting, data, state):
        with serve(desk) as served, connect(served, data, room=4096):
            until(lambda: states(served) == [state])
            assert_quiet(served, counting)

    def test_while_there_is_no_room(self, counting):
        engine = Engine(plain, storage=Storage(total_memory=0, total_disk=0))
        with serve(engine) as served, connect(served, POST % 10 + b"abc") as sock:
            until(lambda: states(served) == [PAUSED])
            sock.sendall(b"def")
            sock.shutdown(socket.SHUT_WR)
            assert_quiet(served, counting)

    @pytest.mark.parametrize("deed", ["sends more", "ends its input", "resets"])
    def test_while_a_handler_blocks(self, desk, counting, deed):
        with serve(desk) as served, connect(served, request("/wait/0")) as sock:
            until(lambda: [c for c in group_of(served).connections.values() if c.owned])
            if deed == "sends more":
                sock.sendall(GET * 3)
            elif deed == "resets":
                reset(sock)
            else:
                sock.shutdown(socket.SHUT_WR)
            until(lambda: [c for c in group_of(served).connections.values() if not c.interest])
            assert_quiet(served, counting)

    def test_while_a_generator_waits_for_its_reader(self, desk, counting):
        with serve(desk) as served, connect(served, request("/stream"), room=4096) as sock:
            until(lambda: [c for c in group_of(served).connections.values() if c.owned])
            sock.sendall(GET)
            table = group_of(served).connections
            until(lambda: [c for c in table.values() if not c.interest & READ])
            assert_quiet(served, counting)

    def test_at_max_connections(self, desk, counting):
        with serve(desk, max_connections=1) as served, connect(served, GET) as first:
            assert answer(first) == (200, b"hello")
            with connect(served, GET):
                assert_quiet(served, counting)

    @pytest.mark.parametrize("deed", ["waits", "leaves"])
    def test_while_no_thread_is_left(self, desk, counting, deed):
        with serve(desk, max_threads=1) as served, connect(served, request("/wait/0")) as first:
            until(lambda: group_of(served).full)
            with connect(served, GET) as second:
                until(lambda: group_of(served)._parked)
                if deed == "leaves":
                    second.close()
                assert_quiet(served, counting)
                assert len(group_of(served)._parked) == 1
                desk.open()
                assert answer(first) == (200, b"hello")
                if deed == "waits":
                    assert answer(second) == (200, b"hello")


# --- no thread is left ---------------------------------------------------------------------------


class TestNoThreadIsLeft:
    def test_output_and_deadlines_go_on_and_calls_wait(self, desk):
        with serve(desk, max_threads=1, read_timeout=0.3) as served, contextlib.ExitStack() as on:
            reader = on.enter_context(connect(served, request("/big"), room=65536))
            half = on.enter_context(connect(served, b"GET / HT"))
            until(lambda: sorted(states(served)) == [HEAD, FLUSHING])
            first = on.enter_context(connect(served, request("/wait/0")))
            until(lambda: group_of(served).full)
            assert answer(reader) == (200, b"x" * (32 << 20))
            assert answer(half)[0] == 408
            waiting = on.enter_context(connect(served, GET))
            turns(served, 3)
            assert desk.seen == ["/big", "/wait/0"]
            desk.open()
            assert (answer(first), answer(waiting)) == ((200, b"hello"), (200, b"hello"))

    def test_the_server_can_be_stopped(self, desk):
        with serve(desk, max_threads=1) as served, contextlib.ExitStack() as on:
            first = on.enter_context(connect(served, request("/wait/0")))
            until(lambda: group_of(served).full)
            on.enter_context(connect(served, GET))
            until(lambda: len(group_of(served).connections) == 2)
            assert not served.server.shutdown(0.05)
            assert read_all(first)[0] == b""


# --- threads -------------------------------------------------------------------------------------


class TestThreads:
    def test_a_slow_upload_holds_none(self, desk):
        with serve(desk) as served, contextlib.ExitStack() as on:
            turns(served, 1)
            before = threading.active_count()
            uploads = [on.enter_context(connect(served, POST % 4000)) for _ in range(50)]
            for _ in range(3):
                for sock in uploads:
                    sock.sendall(b"x" * 1000)
                turns(served, 2)
            until(lambda: states(served) == [BODY] * 50)
            assert threading.active_count() == before
            assert group_of(served).stuck() == []
            assert desk.seen == []
            for sock in uploads:
                sock.sendall(b"x" * 1000)
            assert [answer(sock) for sock in uploads] == [(200, b"4000")] * 50

    def test_one_answer_is_made_on_one_thread(self):
        """Also when it waits for its reader and loses the lead in between."""
        threads, closed = [], threading.Event()

        class Pieces:
            def __init__(self):
                self.left = 512

            def __iter__(self):
                return self

            def __next__(self):
                threads.append(threading.get_ident())
                self.left -= 1
                if not self.left:
                    raise StopIteration
                return b"x" * (1 << 16)

            def close(self):
                threads.append(threading.get_ident())
                closed.set()

        def app(environ, start_response):
            if environ["PATH_INFO"] != "/stream":
                start_response("200 OK", [])
                return [b"hello"]
            threads.append(threading.get_ident())
            start_response("200 OK", [])
            return Pieces()

        with serve(app) as served, connect(served, request("/stream"), room=65536) as slow:
            until(lambda: [c for c in group_of(served).connections.values() if c.owned])
            for _ in range(5):
                with connect(served, GET) as other:
                    assert answer(other) == (200, b"hello")
            assert answer(slow) == (200, b"x" * (511 << 16))
            assert closed.wait(20)
        assert len(threads) == 514
        assert len(set(threads)) == 1

    def test_handlers_that_burn_do_not_stop_the_loop(self):
        """However many there are: the others wait for a while, not for all of them."""
        stop, block = threading.Event(), bytes(1 << 20)

        def app(environ, start_response):
            start_response("200 OK", [])
            if environ["PATH_INFO"] == "/burn":
                while not stop.is_set():
                    hashlib.sha256(block).digest()  # burns without the interpreter's lock
            return [b"hello"]

        try:
            with serve(app) as served, contextlib.ExitStack() as on:
                burners = [on.enter_context(connect(served, request("/burn"))) for _ in range(4)]
                with connect(served, GET) as sock:
                    sock.settimeout(60)
                    try:
                        assert answer(sock) == (200, b"hello")
                    finally:
                        stop.set()
                assert [answer(each) for each in burners] == [(200, b"hello")] * 4
        finally:
            stop.set()


class TestStreams:
    @pytest.mark.parametrize("before", [0, 1])
    def test_a_piece_arrives_while_the_next_one_is_made(self, before, monkeypatch):
        """PEP 3333: also what the kernel refused at first, and also behind a pipelined answer."""
        piece, gate = bytes(900_000), threading.Event()
        admit = InlineLoop.admit

        def narrow(loop, sock, base):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            admit(loop, sock, base)

        def app(environ, start_response):
            start_response("200 OK", [("Content-Length", str(len(piece) + 3))])
            if environ["PATH_INFO"] == "/quick":
                return [piece, b"end"]
            return pieces()

        def pieces():
            yield piece
            assert gate.wait(60)
            yield b"end"

        monkeypatch.setattr(InlineLoop, "admit", narrow)
        data = request("/quick") * before + request("/stream")
        with serve(app) as served, connect(served, data, room=4096) as sock:
            try:
                left = (before + 1) * len(piece) + 3 * before
                while left > 0:
                    left -= len(sock.recv(1 << 16))
            finally:
                gate.set()
            while not sock.recv(1 << 16).endswith(b"end"):
                pass

    def test_a_stream_behind_a_pipelined_request_hears_that_its_client_has_gone(self):
        over = threading.Event()

        def app(environ, start_response):
            start_response("200 OK", [])
            return forever() if environ["PATH_INFO"] == "/stream" else [b"hello"]

        def forever():
            try:
                while not over.wait(0.001):
                    yield b"x" * 20
            finally:
                over.set()

        with serve(app) as served:
            with connect(served, request("/") + request("/stream")) as sock:
                assert sock.recv(1 << 16)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            assert over.wait(5)  # long before a MiB of it would have been kept


# --- the end of a connection ---------------------------------------------------------------------


class TestEnds:
    def test_the_last_answer_of_a_slow_handler_ends(self, desk):
        """Nothing else happens on the server, and the client still sees the end."""
        with serve(desk) as served:
            for version in ("1.0", "1.1"):
                door = len(desk.seen)
                fields = ["Connection: close"]
                with connect(served, request(f"/wait/{door}", *fields, version=version)) as sock:
                    until(lambda: [c for c in group_of(served).connections.values() if c.owned])
                    desk.doors[door].set()
                    sock.settimeout(5)
                    data, was_reset = read_all(sock)
                    assert data.endswith(b"hello")
                    assert not was_reset

    def test_late_bytes_do_not_destroy_the_last_answer(self, desk):
        """A line end behind a request, or a request behind the last one: no reset (RFC 9112, 9.6)."""  # noqa: E501
        size = 32 << 20
        with serve(desk) as served, connect(served, request("/big", "Connection: close")) as sock:
            until(lambda: states(served) == [CLOSING])
            sock.sendall(b"\r\n")
            data, was_reset = read_all(sock)
            assert not was_reset
            assert len(data.partition(b"\r\n\r\n")[2]) == size

    @pytest.mark.parametrize("path", ["/stream", "/big"])
    def test_a_reader_that_stalls_is_cut(self, desk, path):
        with serve(desk, write_timeout=0.1) as served:
            with connect(served, request(path), room=65536) as sock:
                until(lambda: desk.seen == [path])
                until(lambda: not states(served))
                with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
                    answer(sock)

    def test_a_stalled_answer_that_only_the_end_delimits_is_a_reset(self, desk):
        with serve(desk, write_timeout=0.1) as served:
            with connect(served, request("/stream", version="1.0"), room=65536) as sock:
                until(lambda: desk.seen)
                until(lambda: not states(served))
                data, was_reset = read_all(sock)
                assert was_reset
                assert len(data) < 512 << 16

    @pytest.mark.parametrize("how", [socket.socket.close, reset])
    @pytest.mark.parametrize(
        "data",
        [b"", GET, b"GET / HT", POST % 10 + b"abc", request("/big"), request("/stream"), b"BAD\r\n\r\n",  # noqa: E501
         request("/wait/0"), b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",  # noqa: E501
         POST % (1 << 20) + b"x" * (1 << 19)],
    )  # fmt: skip
    def test_a_client_that_leaves_costs_no_descriptor(self, desk, data, how):
        storage = Storage(body_memory=1000, total_memory=10000)
        disk = storage.free("disk")
        with serve(Engine(desk, storage=storage)) as served:
            with connect(served, GET) as other:
                assert answer(other) == (200, b"hello")
            until(lambda: not states(served))
            turns(served, 2)
            before = os.listdir("/proc/self/fd")
            sock = connect(served, data, room=4096)
            until(lambda: states(served))
            turns(served, 3)
            how(sock)
            desk.open()
            until(lambda: not states(served))
            turns(served, 2)
            assert os.listdir("/proc/self/fd") == before
            assert (storage.free("memory"), storage.free("disk")) == (10000, disk)
            with connect(served, GET) as other:
                assert answer(other) == (200, b"hello")


# --- framing -------------------------------------------------------------------------------------


class TestFraming:
    @pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
    @pytest.mark.parametrize("kind", [list, iter])
    def test_what_has_no_body_does_not_shift_the_next_answer(self, method, status, kind):
        def app(environ, start_response):
            if environ["PATH_INFO"] == "/next":
                start_response("200 OK", [])
                return [b"next"]
            start_response(f"{status} Whatever", [("Content-Type", "text/plain")])
            return kind([b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfake"])

        data = request("/", method=method) + request("/next", "Connection: close")
        with serve(app) as served, connect(served, data) as sock:
            received, _ = read_all(sock)
        assert received.count(b"HTTP/1.1 ") == 2
        assert b"fake" not in received
        assert received.endswith(b"\r\n\r\nnext")

    def test_a_failure_among_pipelined_requests(self, desk, caplog):
        with serve(desk) as served:
            with connect(served, GET + request("/fail") + POST % 3 + b"abc" + b"\0" + GET) as sock:
                received, _ = read_all(sock)
        statuses = re.findall(rb"HTTP/1\.1 ([0-9]+) [A-Z]", received)
        assert received.count(b"HTTP/1.1 ") == 4
        assert statuses == [b"200", b"500", b"200", b"400"]
        assert b"wanted" not in received

    def test_continue_and_then_the_answer(self, desk):
        with serve(desk) as served:
            ask = POST[:-2] % 3 + b"Expect: 100-continue\r\n\r\n"
            with connect(served, ask) as sock:
                assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
                sock.sendall(b"abc" + ask)
                assert answer(sock) == (200, b"3")

    def test_a_body_too_large_is_refused_before_it_is_invited(self, desk):
        with serve(Engine(desk, limits=Limits(body=2))) as served:
            with connect(served, POST[:-2] % 3 + b"Expect: 100-continue\r\n\r\n") as sock:
                data, _ = read_all(sock)
        assert data.startswith(b"HTTP/1.1 413 ")
        assert desk.seen == []

    def test_half_closed_and_still_answered(self, desk):
        with serve(desk) as served, connect(served, GET * 40) as sock:
            sock.shutdown(socket.SHUT_WR)
            data, was_reset = read_all(sock)
        assert data.count(b"HTTP/1.1 200 OK\r\n") == 40
        assert not was_reset


# --- budgets and memory --------------------------------------------------------------------------


class TestBudgets:
    def test_reading_pauses_and_goes_on(self, desk):
        storage = Storage(body_memory=1000, total_memory=1000, total_disk=0)
        with serve(Engine(desk, storage=storage)) as served, contextlib.ExitStack() as on:
            first = on.enter_context(connect(served, POST % 1000 + b"x" * 900))
            until(lambda: states(served) == [BODY])
            second = on.enter_context(connect(served, POST % 500 + b"y" * 400))
            until(lambda: sorted(states(served)) == [BODY, PAUSED])
            second.sendall(b"y" * 100)
            first.sendall(b"x" * 100)
            assert answer(first) == (200, b"1000")
            assert answer(second) == (200, b"500")
            until(lambda: storage.free("memory") == 1000)

    def test_who_finds_no_room_in_time_is_told_so(self, desk):
        engine = Engine(desk, storage=Storage(total_memory=0, total_disk=0))
        with serve(engine, body_timeout=0.1) as served, connect(served, POST % 9 + b"abc") as sock:
            assert answer(sock)[0] == 503
        assert desk.seen == []

    def test_ever_new_requests_leave_no_trace(self):
        """Names, values, paths, cookies, statuses and response fields that never repeat."""

        def app(environ, start_response):
            tag = environ["QUERY_STRING"]
            start_response(f"200 OK {tag}", [(f"X-{tag}", tag), ("Set-Cookie", tag)])
            return [b""]

        def ask(sock, first, count):
            for number in range(first, first + count):
                tag = f"{number:08}"
                fields = [f"X-{tag}: {tag}", f"Cookie: a={tag}", f"User-Agent: {tag}", f"Accept: {tag}"]  # noqa: E501
                sock.sendall(request(f"/{tag}?{tag}", *fields))
                assert answer(sock)[0] == 200

        with serve(app) as served, connect(served) as sock:
            ask(sock, 0, 1500)
            tracemalloc.start()
            try:
                ask(sock, 10000, 1500)
                before = tracemalloc.get_traced_memory()[0]
                ask(sock, 20000, 1500)
                grown = tracemalloc.get_traced_memory()[0] - before
            finally:
                tracemalloc.stop()
        assert max(map(len, (_names, _lines))) <= 1024
        assert max(map(len, (_field_lines, _status_lines))) <= 512
        assert grown < 1 << 18  # 174 bytes a request; the bounded memos may fill meanwhile

    def test_the_parser_remembers_no_secret(self, echo):
        secret = "s3cr3t-of-the-client"
        fields = [f"Cookie: a={secret}", f"Authorization: Basic {secret}", f"X-Api-Key: {secret}"]
        with connect(echo, request("/", *fields)) as sock:
            assert answer(sock)[0] == 200
        assert not [line for line in _lines if secret in line]

    def test_a_client_cannot_fill_the_log(self, desk, caplog):
        with serve(desk) as served:
            for data in (b"BAD\r\n\r\n", b"\0", b"GET / HT", POST % 9, request("/big"), b"\r\n" * 50):  # noqa: E501
                for how in (socket.socket.close, reset):
                    sock = connect(served, data, room=4096)
                    turns(served, 2)
                    how(sock)
            until(lambda: not states(served))
        assert caplog.records == []


# --- deadlines -----------------------------------------------------------------------------------


def test_time_that_the_server_lost_is_not_the_clients(monkeypatch):
    """After a stop of the process what lies in the kernel is read before deadlines are judged."""
    ahead = [0.0]
    halt, halted, go = threading.Event(), threading.Event(), threading.Event()

    class Stopped(Counting):
        def __init__(self):
            super().__init__()
            self.inner = default_poller(lambda: time.monotonic() + ahead[0])

        def poll(self, timeout):
            if halt.is_set():
                halted.set()
                assert go.wait(20)
            return self.inner.poll(timeout)

    monkeypatch.setattr(hop.server, "default_poller", Stopped)
    with serve(plain) as served, connect(served, b"GET / HTTP/1.1\r\n") as half:
        with connect(served, GET) as idle:
            assert answer(idle) == (200, b"hello")
            until(lambda: sorted(states(served)) == [IDLE, HEAD])
            halt.set()
            group_of(served).post(lambda _: None)
            assert halted.wait(20)
            half.sendall(b"Host: x\r\n\r\n")
            idle.sendall(GET)
            ahead[0] = 3600.0
            halt.clear()
            go.set()
            assert (answer(half), answer(idle)) == ((200, b"hello"), (200, b"hello"))


# --- the end of the server -----------------------------------------------------------------------


class TestShutdown:
    def test_it_does_not_wait_for_a_client_that_keeps_its_connection(self, desk):
        """The answer was under way when the end began; it says close, or the server closes."""
        with serve(desk, keep_alive_timeout=None) as served:
            with connect(served, request("/wait/0")) as sock:
                until(lambda: [c for c in group_of(served).connections.values() if c.owned])
                served.server.begin_shutdown(10)
                until(lambda: served.server._groups[0].draining)
                desk.open()
                assert answer(sock) == (200, b"hello")
                assert served.server.finished.wait(5)

    def test_an_engine_can_be_served_again(self, desk):
        engine = Engine(desk)
        for _ in range(2):
            with serve(engine) as served, connect(served) as sock:
                for _ in range(2):
                    sock.sendall(GET)
                    assert answer(sock) == (200, b"hello")

    def test_one_that_came_before_the_start_is_not_lost(self, desk):
        server = Server(Engine(desk))
        server.begin_shutdown(60)
        thread = threading.Thread(target=server.serve, args=("127.0.0.1:0",), daemon=True)
        thread.start()
        thread.join(5)
        try:
            assert not thread.is_alive()
        finally:
            server.begin_shutdown(0)


class TestProcesses:
    def test_an_interrupt_from_the_terminal_is_graceful(self, tmp_path):
        """It goes to the whole group of processes: the children get it twice."""
        (tmp_path / "slow.py").write_text(
            "import pathlib, time\n"
            "def application(environ, start_response):\n"
            "    pathlib.Path('called').touch()\n"
            "    while not pathlib.Path('go').exists(): time.sleep(0.01)\n"
            "    start_response('200 OK', [])\n"
            "    return [b'slow']\n"
        )
        with socket.create_server(("127.0.0.1", 0)) as listener:
            process = subprocess.Popen(
                [sys.executable, "-m", "hop", "slow", "--processes", "2",
                 "--bind", f"fd://{listener.fileno()}"],
                cwd=tmp_path, start_new_session=True, pass_fds=[listener.fileno()],
                env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE,
            )  # fmt: skip
            try:
                with socket.create_connection(listener.getsockname(), timeout=20) as sock:
                    sock.sendall(request("/", "Connection: close"))
                    until((tmp_path / "called").exists)
                    os.killpg(process.pid, signal.SIGINT)
                    with pytest.raises(subprocess.TimeoutExpired):
                        process.wait(0.5)
                    (tmp_path / "go").touch()
                    assert answer(sock) == (200, b"slow")
                assert process.wait(20) == 0
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate(timeout=20)
