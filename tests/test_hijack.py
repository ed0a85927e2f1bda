"""The way out of HTTP, over real sockets: what is sent, who runs what, and every end."""

import contextlib
import errno
import gc
import logging
import select
import socket
import threading
import time
import weakref
from functools import partial

import flask
import pytest

from hop.adaptor import ErrorStream, base_environ
from hop.engine import ConnectionState, Engine
from hop.errors import ClientDisconnected
from hop.hijack import Bridge, Channel, HijackedSocket, HijackRefused, Later
from hop.leader import InlineLoop, LeaderFollowers
from hop.poller import READ, WRITE, default_poller
from hop.testing import serve

BASE = base_environ("test.example", "80", ErrorStream(logging.getLogger("hop.error")))
TIMEOUTS = dict.fromkeys(ConnectionState, 30.0)
UPGRADED, HIJACKED = ConnectionState.UPGRADED, ConnectionState.HIJACKED
CLOSED, CLOSING, CALL = ConnectionState.CLOSED, ConnectionState.CLOSING, ConnectionState.CALL
SWITCH = ("101 Switching Protocols", [("Upgrade", "test")])


def until(condition, timeout=20.0):
    """Wait for a condition that becomes true by itself; fail when it does not."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def request(path="/", method="GET", *fields):
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: Upgrade", "Upgrade: test"]
    return "\r\n".join([*lines, *fields, "", ""]).encode()


def knock(served, path="/", more=b"", method="GET"):
    client = socket.create_connection((served.host, served.port), timeout=20)
    client.sendall(request(path, method) + more)
    return client


def read(client, end):
    """Bytes up to and with `end`."""
    data = b""
    while not data.endswith(end):
        piece = client.recv(65536)
        assert piece, data
        data += piece
    return data


def head(client):
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        data += client.recv(1)
    return data


def rest(client):
    """All bytes until the end, which may be a reset."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(65536):
            data += piece
    client.close()
    return data


def body(client):
    return rest(client).partition(b"\r\n\r\n")[2]


def group_of(served):
    return served.server._groups[0]


class Notes(list):
    """What happened, in order; and a way to wait for it."""

    def note(self, *what):
        self.append(what[0] if len(what) == 1 else what)


@pytest.fixture
def notes():
    return Notes()


def channel_app(handler, setup=lambda channel: None, status=SWITCH, result=(), **callbacks):
    """An application that sets a read handler, and what else it is told."""

    def app(environ, start_response):
        channel = environ["hop.hijacker"].set_read_handler(handler, **callbacks)
        setup(channel)
        start_response(*status)
        return list(result)

    return app


def echo(channel, data):
    channel.write(data)


def hello(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


def routed(**apps):
    def app(environ, start_response):
        return apps.get(environ["PATH_INFO"][1:], hello)(environ, start_response)

    return app


class TestHijackedSocket:
    @pytest.fixture
    def pair(self):
        mine, client = socket.socketpair()
        client.settimeout(20)
        yield HijackedSocket(mine), client
        mine.close()
        client.close()

    def test_what_was_read_with_the_head_comes_first(self, pair):
        sock, client = pair
        sock.behind = b"behind"
        client.sendall(b" and more")
        assert sock.recv(3, socket.MSG_PEEK) == b"beh"
        assert [sock.recv(4), sock.recv(99), sock.recv(99)] == [b"behi", b"nd", b" and more"]

    def test_recv_into(self, pair):
        sock, client = pair
        sock.behind = b"behind"
        client.sendall(b"more")
        room = bytearray(8)
        assert (sock.recv_into(room, 4), bytes(room[:4])) == (4, b"behi")
        assert (sock.recv_into(room), bytes(room[:2])) == (2, b"nd")
        assert (sock.recv_into(room), bytes(room[:4])) == (4, b"more")

    def test_recv_into_never_takes_more_than_was_asked_for(self, pair):
        sock, client = pair
        client.sendall(b"abcdef")
        room = bytearray(8)
        assert (sock.recv_into(room, 2), bytes(room)) == (2, b"ab" + bytes(6))
        sock.behind = b"wxyz"
        room = bytearray(2)
        assert (sock.recv_into(room, 4), bytes(room), sock.behind) == (2, b"wx", b"yz")

    def test_the_rest_is_a_socket(self, pair):
        sock, client = pair
        assert sock.send(b"ab") == 2
        sock.sendall(b"cd")
        assert client.recv(9) == b"abcd"
        sock.settimeout(0.01)
        assert sock.gettimeout() == 0.01
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert sock.getpeername() == sock.getsockname() == ""
        sock.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""

    def test_after_close_everything_fails_as_with_a_closed_socket(self, pair):
        sock, client = pair
        sock.behind = b"behind"
        assert select.select([sock], [], [], 0) == ([], [], [])
        with sock:
            pass
        assert client.recv(1) == b""
        assert sock.fileno() == -1
        sock.close()
        operations = [
            lambda: sock.recv(1),
            lambda: sock.recv_into(bytearray(1)),
            lambda: sock.send(b"x"),
            lambda: sock.settimeout(1),
            sock.getpeername,
        ]
        for operation in operations:
            with pytest.raises(OSError, match="Bad file descriptor") as caught:
                operation()
            assert caught.value.errno == errno.EBADF

    def test_closing_after_the_other_end_has_gone(self, pair):
        sock, _client = pair
        sock._sock.shutdown(socket.SHUT_RDWR)
        sock._sock.close()
        sock.close()
        assert sock.fileno() == -1


class TestHijack:
    def test_raw_bytes_both_ways_and_nothing_of_a_response(self):
        def app(environ, start_response):
            start_response("200 OK", [])
            with environ["hop.hijacker"].hijack() as sock:
                while data := sock.recv(100):
                    sock.sendall(b"<" + data + b">")
                sock.sendall(b"end")
            start_response("200 OK", [])
            return [b"thrown away"]

        with serve(app) as served:
            client = knock(served, more=b"behind")
            assert read(client, b">") == b"<behind>"
            client.sendall(b"more")
            assert read(client, b">") == b"<more>"
            client.shutdown(socket.SHUT_WR)
            assert rest(client) == b"end"
            until(lambda: not group_of(served).connections)
            assert served.server.engine.bridge.hijacked == 0
            assert group_of(served)._busy == 0

    def test_the_socket_blocks_and_ends_with_the_application(self):
        kept = []

        def app(environ, start_response):
            sock = environ["hop.hijacker"].hijack()
            assert sock.gettimeout() is None
            kept.append(sock)
            sock.sendall(b"bye")
            return []

        with serve(app) as served:
            assert rest(knock(served)) == b"bye"
            with pytest.raises(OSError, match="Bad file"):
                kept[0].recv(1)

    def test_the_threads_end_when_they_are_back(self):
        """A hundred are lent for good; of them as many stay as `max_threads` has a use for."""

        def app(environ, start_response):
            with environ["hop.hijacker"].hijack() as sock:
                sock.sendall(b"in.")
                sock.recv(1)
            return []

        with serve(app, max_threads=4) as served:
            clients = [knock(served) for _ in range(100)]
            assert [read(client, b".") for client in clients] == [b"in."] * 100
            threads = [follower.thread for follower in group_of(served)._everyone]
            many = threading.active_count()
            assert len(threads) > 100
            for client in clients:
                client.close()
            until(lambda: sum(thread.is_alive() for thread in threads) <= 5)
            assert threading.active_count() <= many - 96
            client = knock(served)  # and one who comes now is served as before
            assert read(client, b".") == b"in."
            client.close()

    def test_pipelined_requests_are_answered_first(self):
        def app(environ, start_response):
            with environ["hop.hijacker"].hijack() as sock:
                sock.sendall(b"hijacked with " + sock.recv(99))
            return []

        with serve(routed(hijack=app)) as served:
            client = socket.create_connection((served.host, served.port), timeout=20)
            client.sendall(request("/a") + request("/b") + request("/hijack") + b"the rest")
            data = rest(client)
        assert data.count(b"\r\n\r\nhello") == 2
        assert data.endswith(b"\r\n\r\nhellohijacked with the rest")

    def test_behind_a_body(self):
        def app(environ, start_response):
            posted = environ["wsgi.input"].read()
            with environ["hop.hijacker"].hijack() as sock:
                sock.sendall(posted + b"|" + sock.recv(99))
            return []

        with serve(app) as served:
            for early in (0, 4, 7):  # bytes behind the head that come with it
                client = socket.create_connection((served.host, served.port), timeout=20)
                client.sendall(request("/", "POST", "Content-Length: 4") + b"bodybehind"[:early])
                if early == 0:
                    until(
                        lambda: any(
                            conn.state == ConnectionState.BODY
                            for conn in list(group_of(served).connections.values())
                        )
                    )
                client.sendall(b"bodybehind"[early:])
                expected = b"body|beh" if early == 7 else b"body|behind"
                assert rest(client).startswith(expected[:9])

    def test_flask(self, caplog):
        app = flask.Flask(__name__)

        @app.get("/socket")
        def view():
            with flask.request.environ["hop.hijacker"].hijack() as sock:
                sock.sendall(b"raw " + sock.recv(99))
            return "thrown away"

        with serve(app) as served:
            assert rest(knock(served, "/socket", b"words")) == b"raw words"
        assert not caplog.records

    def test_write_and_yield_are_mistakes(self, caplog):
        caught = []

        def writes(environ, start_response):
            write = start_response("200 OK", [])
            environ["hop.hijacker"].hijack().sendall(b"raw")
            write(b"")
            try:
                start_response("200 OK", [])(b"too late")
            except RuntimeError as error:
                caught.append(str(error))
            return []

        def yields(environ, start_response):
            environ["hop.hijacker"].hijack().sendall(b"raw")
            yield b""
            yield b"too late"

        with serve(routed(writes=writes, yields=yields)) as served:
            assert rest(knock(served, "/writes")) == b"raw"
            assert caught == ["the connection was hijacked: write to its socket"]
            assert not caplog.records
            assert rest(knock(served, "/yields")) == b"raw"
            until(lambda: caplog.records)
        assert caught[0] in caplog.text

    @pytest.mark.parametrize("error", [ConnectionError, BrokenPipeError, StopIteration])
    def test_how_libraries_leave_is_not_worth_a_line(self, error, caplog):
        def app(environ, start_response):
            environ["hop.hijacker"].hijack().sendall(b"raw")
            raise error

        with serve(app) as served:
            assert rest(knock(served)) == b"raw"
            until(lambda: not group_of(served).connections)
        assert not caplog.records

    def test_other_failures_are(self, caplog):
        def app(environ, start_response):
            environ["hop.hijacker"].hijack().sendall(b"raw")
            raise ValueError("on purpose")

        with serve(app) as served:
            assert rest(knock(served)) == b"raw"
            until(lambda: not group_of(served).connections)
            assert served.server.engine.bridge.hijacked == 0
        assert "on purpose" in caplog.text

    def test_an_ordinary_connection_error_is_a_failure(self, caplog):
        def app(environ, start_response):
            raise ConnectionError("the database has gone")

        with serve(app) as served:
            client = knock(served)
            assert head(client).startswith(b"HTTP/1.1 500")
            client.close()
        assert "the database has gone" in caplog.text

    def test_the_503_beyond_max_hijacked(self, caplog):
        gate, inside = threading.Event(), threading.Semaphore(0)
        raised = []

        def app(environ, start_response):
            try:
                sock = environ["hop.hijacker"].hijack()
            except HijackRefused as error:
                raised.append(error)
                raise
            inside.release()
            gate.wait(20)
            sock.sendall(b"raw")
            return []

        with serve(app, max_hijacked=2) as served:
            clients = [knock(served) for _ in range(2)]
            assert all(inside.acquire(timeout=20) for _ in clients)
            refused = rest(knock(served))
            gate.set()
            assert [rest(client) for client in clients] == [b"raw", b"raw"]
            until(lambda: served.server.engine.bridge.hijacked == 0)
            assert rest(knock(served)) == b"raw"
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"Connection: close\r\n" in refused
        assert refused.endswith(b"too many connections are hijacked\n")
        assert len(raised) == 1
        assert isinstance(raised[0], ConnectionError)
        assert not caplog.records

    def test_the_503_reaches_the_client_of_a_framework_that_catches_everything(self):
        app = flask.Flask(__name__)

        @app.get("/")
        def view():
            flask.request.environ["hop.hijacker"].hijack()
            return "never"

        @app.errorhandler(Exception)
        def handle(error):
            return "my own page", 500

        with serve(app, max_hijacked=0) as served:
            answer = rest(knock(served))
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"my own page" not in answer

    def test_they_do_not_count_as_max_threads(self):
        gate, inside = threading.Event(), threading.Semaphore(0)

        def app(environ, start_response):
            environ["hop.hijacker"].hijack()
            inside.release()
            gate.wait(20)
            return []

        with serve(routed(hijack=app), max_threads=1) as served:
            clients = [knock(served, "/hijack") for _ in range(5)]
            assert all(inside.acquire(timeout=20) for _ in clients)
            client = knock(served, "/hello")
            assert read(client, b"hello").endswith(b"\r\n\r\nhello")
            client.close()
            gate.set()
            assert [rest(client) for client in clients] == [b""] * 5

    def test_the_graceful_stop_ends_the_input(self):
        got = []

        def app(environ, start_response):
            with environ["hop.hijacker"].hijack() as sock:
                sock.sendall(b"ready")
                got.append(sock.recv(99))
                sock.sendall(b"farewell")
            return []

        with serve(app) as served:
            client = knock(served)
            read(client, b"ready")
            assert served.server.shutdown()
        assert got == [b""]
        assert rest(client) == b"farewell"

    def test_the_hard_stop_cuts_it(self):
        done = threading.Event()

        def app(environ, start_response):
            sock = environ["hop.hijacker"].hijack()
            sock.sendall(b"ready")
            while sock.recv(99) or not done.is_set():
                done.wait(0.001)
            return []

        with serve(app, shutdown_timeout=0.05) as served:
            client = knock(served)
            read(client, b"ready")
            assert not served.server.shutdown()
            done.set()
        assert rest(client) == b""


class TestMisuse:
    TWICE = "the connection has been taken over already"
    LATE = "too late to take the connection over: the head has gone out"

    @pytest.mark.parametrize("first", ["hijack", "channel"])
    @pytest.mark.parametrize("second", ["hijack", "channel"])
    def test_twice(self, first, second):
        caught = []

        def take(hijacker, how):
            return hijacker.hijack() if how == "hijack" else hijacker.set_read_handler(echo)

        def app(environ, start_response):
            hijacker = environ["hop.hijacker"]
            taken = take(hijacker, first)
            with pytest.raises(RuntimeError) as error:
                take(hijacker, second)
            caught.append(str(error.value))
            taken.close()
            start_response(*SWITCH)
            return []

        with serve(app) as served:
            rest(knock(served))
        assert caught == [self.TWICE]

    @pytest.mark.parametrize("how", ["hijack", "set_read_handler"])
    def test_after_the_head(self, how):
        caught, kept = [], []

        def attempt(hijacker):
            with pytest.raises(RuntimeError) as error:
                hijacker.hijack() if how == "hijack" else hijacker.set_read_handler(echo)
            caught.append(str(error.value))

        def app(environ, start_response):
            kept.append(environ["hop.hijacker"])
            start_response("200 OK", [("Connection", "close")])(b"head and body")
            attempt(kept[0])
            return []

        with serve(app) as served:
            assert b"head and body" in rest(knock(served))
            attempt(kept[0])
        assert caught == [self.LATE] * 2

    def test_the_lazy_socket_of_a_channel(self):
        caught = []

        def app(environ, start_response):
            environ["hop.hijacker"].set_read_handler(echo).close()
            with pytest.raises(RuntimeError) as error:
                environ["werkzeug.socket"].fileno()
            caught.append(str(error.value))
            start_response(*SWITCH)
            return []

        with serve(app) as served:
            rest(knock(served))
        assert caught == [self.TWICE]

    def test_without_a_bridge_there_is_no_hijacker(self):
        seen = []
        engine = Engine(
            lambda environ, start_response: seen.append(environ) or hello({}, start_response)
        )
        with rig(engine) as (loop, client, _conn):
            engine.bridge = None
            client.sendall(request())
            turn(loop)
        assert not seen[0].get("hop.hijacker")
        assert "werkzeug.socket" not in seen[0]


class TestLazySocket:
    def test_present_for_upgrades_only(self):
        seen = []

        def app(environ, start_response):
            seen.append([key for key in ("hop.hijacker", "werkzeug.socket", "gunicorn.socket")
                         if key in environ])  # fmt: skip
            return hello(environ, start_response)

        with serve(app) as served:
            client = knock(served)
            read(client, b"hello")
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            read(client, b"hello")
            client.close()
        assert [len(keys) for keys in seen] == [3, 1]

    def test_looking_at_it_does_not_hijack(self):
        def app(environ, start_response):
            sock = environ["werkzeug.socket"]
            assert sock is environ["gunicorn.socket"]
            assert "LazySocket" in repr(sock)
            assert sock == sock
            assert not hasattr(sock, "behind")
            with pytest.raises(AttributeError, match="'chess'"):
                assert sock.chess
            return hello(environ, start_response)

        with serve(app) as served:
            client = knock(served)
            assert read(client, b"hello").startswith(b"HTTP/1.1 200 OK")
            client.close()

    def test_its_first_use_does_and_all_see_the_same(self):
        def app(environ, start_response):
            environ["gunicorn.socket"].sendall(b"raw " + environ["werkzeug.socket"].recv(99))
            assert environ["hop.hijacker"].socket().fileno() == environ["werkzeug.socket"].fileno()
            return []

        with serve(app) as served:
            assert rest(knock(served, more=b"words")) == b"raw words"


@contextlib.contextmanager
def rig(app, kind=InlineLoop, clock=time.monotonic, **options):
    """A loop that is driven by hand, one client, and the connection."""
    engine = app if isinstance(app, Engine) else Engine(app)
    engine.bridge = Bridge()
    loop = kind(default_poller(clock), engine, timeouts=TIMEOUTS, **options)
    mine, client = socket.socketpair()
    mine.setblocking(False)
    client.settimeout(20)
    loop.admit(mine, BASE)
    conn = loop.connections[mine.fileno()]
    try:
        yield loop, client, conn
    finally:
        client.close()
        if not loop.stopped.is_set():
            loop._stop()


def turn(loop, times=1):
    """Turns of the loop; it never waits."""
    for _ in range(times):
        loop.poller.wake()
        loop._between()
        loop._batch()


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Fixed:
    """A loop and connection on which nothing moves."""

    now, max_unsent, backlog, interest = 0.0, 10, None, READ
    loop = property(lambda self: self)

    def __init__(self):
        self.posted = []

    def post(self, fn, argument=None):
        self.posted.append(argument)

    def again(self, conn):
        self.posted.append("again")


class TestBridge:
    def test_it_counts(self):
        bridge = Bridge(2)
        assert [bridge.enter() for _ in range(3)] == [True, True, False]
        bridge.leave()
        assert bridge.enter()
        assert bridge.hijacked == 2

    def test_a_loop_of_one_thread_can_be_hijacked_too(self):
        def app(environ, start_response):
            with environ["hop.hijacker"].hijack() as sock:
                sock.sendall(b"raw " + sock.recv(99))
            return []

        with rig(app) as (loop, client, _conn):
            client.sendall(request() + b"words")
            turn(loop, 2)
            assert rest(client) == b"raw words"
            turn(loop)
            assert not loop.connections

    def test_where_no_thread_is_left_to_lead_it_is_refused(self):
        class Lonely(LeaderFollowers):
            def _reserve(self):
                return None

        raised = []

        def app(environ, start_response):
            with pytest.raises(HijackRefused) as error:
                environ["hop.hijacker"].hijack()
            raised.append(error)
            return hello(environ, start_response)

        with rig(app, Lonely) as (loop, client, _conn):
            client.sendall(request())
            turn(loop, 2)
            assert client.recv(999).startswith(b"HTTP/1.1 503 ")
            assert loop.engine.bridge.hijacked == loop._busy == 0
            assert not loop.calls
        assert len(raised) == 1

    def test_what_waits_from_before_is_sent_first(self):
        def app(environ, start_response):
            environ["hop.response"].conn.cork()
            environ["hop.response"].conn.write(b"earlier ")
            environ["hop.hijacker"].hijack().sendall(b"raw")
            return []

        with rig(app) as (loop, client, _conn):
            client.sendall(request())
            turn(loop, 3)
            assert rest(client) == b"earlier raw"

    def test_who_hijacks_while_the_server_begins_to_stop(self):
        got = []

        def app(environ, start_response):
            environ["hop.response"].conn.loop.draining = True
            got.append(environ["hop.hijacker"].hijack().recv(9))
            return []

        with rig(app) as (loop, client, _conn):
            client.sendall(request())
            turn(loop)
            assert got == [b""]


class TestChannel:
    def test_what_was_returned_then_what_was_early_then_answers(self):
        def opening(channel):
            assert not channel.write(b"early ")
            assert channel.pending == 6

        app = channel_app(echo, opening, result=[b"returned ", b"twice "])
        with serve(app) as served:
            client = knock(served, more=b"behind")
            data = read(client, b"behind")
            client.sendall(b"more")
            read(client, b"more")
            client.close()
        lines, _, words = data.partition(b"\r\n\r\n")
        assert lines.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"\r\nConnection: upgrade" in lines
        assert b"\r\nUpgrade: test" in lines
        assert b"Content-Length" not in lines
        assert b"Transfer-Encoding" not in lines
        assert words == b"returned twice early behind"

    def test_what_was_early_is_more_than_the_kernel_takes(self):
        """Behind the head more had come, so there is a cork; the rest leaves as there is room."""
        app = channel_app(echo, lambda channel: channel.write(bytes(1 << 23)))
        with serve(app) as served:
            client = knock(served, more=b"behind")
            data = read(client, b"behind")
            client.close()
        assert data.partition(b"\r\n\r\n")[2] == bytes(1 << 23) + b"behind"

    def test_the_client_has_gone_while_there_was_a_cork(self, notes):
        channels = []

        def app(environ, start_response):
            channel = environ["hop.hijacker"].set_read_handler(echo, on_close=notes.note)
            channel.write(b"early")
            start_response(*SWITCH)
            channels.append(channel)
            environ["hop.response"].conn.sock.shutdown(socket.SHUT_RDWR)
            return []

        with rig(app) as (loop, client, conn):
            client.sendall(request() + b"behind")
            turn(loop, 3)
            assert notes == channels
            assert conn.state == CLOSED

    @pytest.mark.parametrize("how", ["list", "generator", "write", "file"])
    def test_an_event_stream(self, how, tmp_path):
        (tmp_path / "first").write_bytes(b"data: first\n\n")

        def app(environ, start_response):
            channel = environ["hop.hijacker"].set_read_handler(echo)
            channel.write(b"data: second\n\n")
            write = start_response("200 OK", [("Content-Type", "text/event-stream")])
            if how == "write":
                write(b"data: first\n\n")
                return []
            if how == "file":
                return environ["wsgi.file_wrapper"](open(tmp_path / "first", "rb"))
            pieces = [b"data: first\n\n"]
            return iter(pieces) if how == "generator" else pieces

        with serve(app) as served:
            client = knock(served)
            lines, _, words = read(client, b"second\n\n").partition(b"\r\n\r\n")
            client.close()
        assert lines.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nConnection: close" in lines
        assert b"Content-Length" not in lines
        assert b"Transfer-Encoding" not in lines
        assert words == b"data: first\n\ndata: second\n\n"

    def test_what_came_with_the_head_holds_nothing_back(self):
        """Each word is read before the next one is spoken: none waits for the handler's end."""
        gates = [threading.Semaphore(0) for _ in range(3)]

        def handler(channel, data):
            for number, gate in enumerate(gates):
                channel.write(b"<%d>" % number)
                gate.acquire(timeout=20)

        with serve(channel_app(handler)) as served:
            client = knock(served, more=b"words")
            for number, gate in enumerate(gates):
                assert read(client, b"<%d>" % number)
                gate.release()
            client.close()

    def test_a_length_that_the_application_gave_stays(self):
        app = channel_app(
            echo, lambda channel: (channel.write(b"word"), channel.close()),
            status=("200 OK", [("Content-Length", "4")]),
        )  # fmt: skip
        with serve(app) as served:
            assert b"\r\nContent-Length: 4\r\n" in (data := rest(knock(served)))
        assert data.endswith(b"\r\n\r\nword")

    def test_nobody_speaks_behind_the_answer_to_head(self, notes):
        app = channel_app(
            echo,
            lambda channel: channel.write(b"early"),
            status=("200 OK", []),
            on_close=lambda channel: notes.note("closed"),
        )
        with serve(app) as served:
            lines, _, words = rest(knock(served, method="HEAD")).partition(b"\r\n\r\n")
        assert lines.startswith(b"HTTP/1.1 200")
        assert words == b""
        assert notes == ["closed"]

    def test_flask(self, notes):
        app = flask.Flask(__name__)

        @app.get("/channel")
        def view():
            flask.request.environ["hop.hijacker"].set_read_handler(echo)
            return flask.Response(status=101, headers={"Upgrade": "test"})

        with serve(app) as served:
            client = knock(served, "/channel", b"words")
            assert read(client, b"words").startswith(b"HTTP/1.1 101 ")
            client.close()

    def test_it_carries_bytes(self):
        channel = Channel(Fixed(), echo)
        with pytest.raises(TypeError, match="not str"):
            channel.write("text")
        assert (channel.data, channel.closed, channel.pending) == (None, False, 0)

    def test_who_is_at_the_other_end(self, notes):
        app = channel_app(lambda channel, data: notes.note(channel.peer_name()))
        with serve(app) as served:
            client = knock(served, more=b"x")
            until(lambda: notes)
            assert notes == [client.getsockname()]
            client.close()

    def test_no_thread_is_held(self):
        with serve(channel_app(echo)) as served:
            clients = [knock(served) for _ in range(100)]
            for client in clients:
                head(client)
            until(lambda: not group_of(served)._busy)
            assert len(group_of(served)._everyone) <= 4
            for client in clients:
                client.close()

    def test_it_is_not_reused_for_http(self, notes):
        with serve(channel_app(lambda channel, data: notes.note(data))) as served:
            client = knock(served)
            head(client)
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            until(lambda: notes)
            client.close()
        assert notes == [b"GET / HTTP/1.1\r\n\r\n"]


class TestWriting:
    def test_from_many_threads_in_the_order_of_each(self):
        channels, ready = [], threading.Event()

        def app(environ, start_response):
            channels.append(environ["hop.hijacker"].set_read_handler(lambda *_: ready.set()))
            start_response(*SWITCH)
            return []

        def talk(name):
            for number in range(300):
                channels[0].write(b"%d:%d;" % (name, number) + b"x" * 500 + b"\n")

        with serve(app) as served:
            client = knock(served, more=b"go")
            assert ready.wait(20)
            head(client)
            threads = [threading.Thread(target=talk, args=(name,)) for name in range(8)]
            for thread in threads:
                thread.start()
            lines = []
            with client.makefile("rb") as file:
                for _ in range(8 * 300):
                    lines.append(file.readline().partition(b";")[0])
            for thread in threads:
                thread.join()
            client.close()
        for name in range(8):
            mine = [line for line in lines if line.startswith(b"%d:" % name)]
            assert mine == [b"%d:%d" % (name, number) for number in range(300)]

    def test_back_pressure(self, notes):
        drained, channels = threading.Event(), []

        def handler(channel, data):
            channels.append(channel)
            while not channel.write(bytes(100_000)):
                notes.append("more")
            notes.append("high")

        app = channel_app(handler, on_drain=lambda channel: drained.set())
        with serve(app, max_unsent=1_000_000) as served:
            client = knock(served)
            head(client)
            client.sendall(b"go")
            until(lambda: "high" in notes)
            assert channels[0].pending > 1_000_000
            assert not drained.is_set()
            expected = 100_000 * len(notes)
            received = 0
            while received < expected:
                received += len(client.recv(1 << 20))
            assert drained.wait(20)
            assert channels[0].pending == 0
            channels[0].write(b"done")
            assert read(client, b"done") == b"done"
            client.close()

    def test_on_drain_need_not_be_set(self):
        with rig(channel_app(echo), max_unsent=10) as (loop, client, conn):
            client.sendall(request())
            turn(loop)
            channel = conn.incoming
            assert head(client)
            assert channel.write(bytes(1 << 22))
            left = 1 << 22
            while left:
                left -= len(client.recv(1 << 20))
                turn(loop)
            assert channel.pending == 0

    def test_what_was_early_counts(self, notes):
        app = channel_app(
            echo,
            lambda channel: notes.note(channel.write(b"x" * 11)),
            on_drain=lambda channel: notes.note("drained"),
        )
        with rig(app, max_unsent=10) as (loop, client, _conn):
            client.sendall(request())
            turn(loop)
        assert notes == [True, "drained"]

    def test_output_flows_while_a_handler_blocks(self, notes):
        gate, entered = threading.Event(), threading.Event()

        def handler(channel, data):
            channel.write(bytes(20_000_000))
            entered.set()
            gate.wait(20)

        with serve(channel_app(handler)) as served:
            client = knock(served)
            head(client)
            client.sendall(b"go")
            received = 0
            while received < 20_000_000:
                received += len(client.recv(1 << 20))
            assert entered.is_set()
            assert not gate.is_set()
            gate.set()
            client.close()

    def test_after_the_end_it_is_dropped(self, notes):
        channels = []
        app = channel_app(echo, channels.append, on_close=lambda channel: notes.note(
            channel.write(b"dropped"), channel.closed))  # fmt: skip
        with serve(app) as served:
            client = knock(served)
            head(client)
            channels[0].close()
            assert rest(client) == b""
            assert not channels[0].write(b"dropped")
        assert notes == [(False, True)]

    def test_to_a_client_that_has_gone(self, notes):
        with rig(channel_app(echo, on_close=lambda channel: notes.note("closed"))) as (
            loop, client, conn,
        ):  # fmt: skip
            client.sendall(request())
            turn(loop)
            channel = conn.incoming
            client.close()
            channel.write(b"nobody")
            assert channel.closed
            turn(loop, 2)
            assert notes == ["closed"]
            assert conn.state == CLOSED

    def test_to_a_client_that_goes_while_something_waits(self, notes):
        with rig(channel_app(echo, on_close=lambda channel: notes.note("closed"))) as (
            loop, client, conn,
        ):  # fmt: skip
            client.sendall(request())
            turn(loop)
            channel = conn.incoming
            channel.write(bytes(1 << 24))
            assert channel.pending
            client.close()
            turn(loop, 3)
            assert notes == ["closed"]
            assert conn.state == CLOSED
            assert channel.flush()


class TestHandlers:
    def test_a_handler_that_blocks_holds_up_nobody(self, notes):
        gate, entered = threading.Event(), threading.Event()

        def handler(channel, data):
            if data == b"block":
                entered.set()
                gate.wait(20)
            channel.write(data)

        with serve(routed(channel=channel_app(handler))) as served:
            blocked, other = knock(served, "/channel"), knock(served, "/channel")
            head(blocked), head(other)
            blocked.sendall(b"block")
            assert entered.wait(20)
            blocked.sendall(b"later")
            other.sendall(b"quick")
            assert read(other, b"quick") == b"quick"
            plain = knock(served)
            assert read(plain, b"hello").endswith(b"hello")
            gate.set()
            assert read(blocked, b"later") == b"blocklater"
            for client in (blocked, other, plain):
                client.close()

    def test_one_that_raises_closes_its_own_channel_alone(self, notes, caplog):
        def handler(channel, data):
            channel.write(b"first")
            if data == b"fail":
                raise ValueError("on purpose")

        app = channel_app(handler, on_close=lambda channel: notes.note("closed"))
        with serve(app) as served:
            failing, other = knock(served), knock(served)
            head(failing), head(other)
            failing.sendall(b"fail")
            assert rest(failing) == b"first"
            assert notes == ["closed"]
            other.sendall(b"fine")
            assert read(other, b"first") == b"first"
            other.close()
        assert "on purpose" in caplog.text
        assert notes == ["closed"] * 2

    def test_when_all_threads_are_busy_it_waits_and_is_flushed(self):
        gate, entered = threading.Event(), threading.Event()
        channels = []

        def block(environ, start_response):
            entered.set()
            gate.wait(20)
            return hello(environ, start_response)

        app = routed(block=block, channel=channel_app(echo, channels.append))
        with serve(app, max_threads=1) as served:
            client = knock(served, "/channel")
            head(client)
            client.sendall(b"before")
            read(client, b"before")
            blocked = knock(served, "/block")
            assert entered.wait(20)
            until(lambda: group_of(served).full)
            client.sendall(b"while full")
            until(lambda: group_of(served)._parked)
            size = 20_000_000
            channels[0].write(bytes(size))
            while size:
                size -= len(client.recv(1 << 20))
            assert group_of(served).full
            gate.set()
            assert read(client, b"while full") == b"while full"
            assert read(blocked, b"hello").endswith(b"hello")
            client.close()
            blocked.close()

    def test_in_eager_mode(self):
        with serve(channel_app(echo)) as served:
            group_of(served).eager = True
            group_of(served).blocking = 1.0
            client = knock(served)
            head(client)
            for number in range(20):
                client.sendall(b"%03d" % number)
                assert read(client, b"%03d" % number) == b"%03d" % number
            client.close()


class TestLater:
    def test_in_order_and_not_after_cancel(self, notes):
        done = threading.Event()

        def handler(channel, data):
            cancelled = channel.call_later(0.0, lambda: notes.note("cancelled"))
            channel.call_later(0.002, lambda: (notes.note("second"), done.set()))
            channel.call_later(0.0, lambda: notes.note("first"))
            cancelled.cancel()
            cancelled.cancel()

        with serve(channel_app(handler)) as served:
            client = knock(served, more=b"go")
            assert done.wait(20)
            client.close()
        assert notes == ["first", "second"]

    def test_it_waits_for_a_handler_that_blocks(self, notes):
        gate, entered, done = threading.Event(), threading.Event(), threading.Event()
        inside = []

        def timer():
            notes.note("timer", len(inside))
            done.set()

        def handler(channel, data):
            inside.append(1)
            channel.call_later(0.0, timer)
            entered.set()
            gate.wait(20)
            notes.note("handler")
            inside.pop()

        with serve(channel_app(handler)) as served:
            client = knock(served, more=b"go")
            assert entered.wait(20)
            conn = next(iter(group_of(served).connections.values()))
            until(lambda: conn.incoming._due)  # its time has come, and it waits
            assert notes == []
            gate.set()
            assert done.wait(20)
            client.close()
        assert notes == ["handler", ("timer", 0)]

    def test_what_became_due_when_the_owner_had_looked_already(self, notes):
        with rig(channel_app(echo)) as (loop, client, conn):
            client.sendall(request())
            turn(loop)
            conn.owned = True
            conn.incoming._due.append(lambda: notes.note("due"))
            conn.owned = False
            loop._settle(conn)
            turn(loop, 2)
        assert notes == ["due"]

    def test_a_timer_that_blocks_loses_the_lead(self):
        gate, entered = threading.Event(), threading.Event()

        def block():
            entered.set()
            gate.wait(20)

        def handler(channel, data):
            channel.call_later(0.0, block)

        with serve(routed(channel=channel_app(handler))) as served:
            client = knock(served, "/channel", b"go")
            assert entered.wait(20)
            other = knock(served)
            read(other, b"hello")
            gate.set()
            client.close()
            other.close()

    @pytest.mark.parametrize("delay", [float("nan"), float("inf")])
    def test_a_delay_that_is_none(self, delay):
        """It would stop the poller, and with it everybody."""
        with rig(channel_app(echo)) as (loop, client, conn):
            client.sendall(request())
            turn(loop)
            with pytest.raises(ValueError, match="no delay"):
                conn.incoming.call_later(delay, print)

    def test_a_timer_is_no_input(self):
        clock = Clock()
        with rig(channel_app(echo), clock=clock) as (loop, client, conn):
            client.sendall(request())
            turn(loop)
            channel = conn.incoming
            channel.read_timeout = 5.0

            def tick():
                channel.call_later(1.0, tick)

            tick()
            for _ in range(20):
                clock.now += 0.5
                turn(loop, 2)
            assert channel.closed

    def test_from_another_thread_and_not_after_the_end(self, notes):
        clock = Clock()
        with rig(channel_app(echo), clock=clock) as (loop, client, conn):
            client.sendall(request())
            turn(loop)
            channel = conn.incoming
            handles = [channel.call_later(delay, lambda delay=delay: notes.note(delay))
                       for delay in (1.0, 2.0, 3.0)]  # fmt: skip
            turn(loop)
            clock.now += 1.5
            turn(loop, 2)
            assert notes == [1.0]
            handles[1].cancel()
            clock.now += 1.0
            turn(loop, 2)
            channel.close()
            channel.call_later(0.0, lambda: notes.note("never"))
            clock.now += 1.0
            turn(loop, 3)
            assert notes == [1.0]
            assert all(isinstance(handle, Later) for handle in handles)

    def test_its_timers_go_with_it(self):
        class Data:
            pass

        with rig(channel_app(echo)) as (loop, client, conn):
            client.sendall(request())
            turn(loop)
            channel, data = conn.incoming, Data()
            kept = weakref.ref(data)
            handles = [channel.call_later(100.0, partial(print, data)) for _ in range(3)]
            turn(loop)
            handles[0].cancel()
            del data
            assert kept()
            channel.close()
            turn(loop, 2)
            assert kept() is None

    def test_those_that_have_rung_are_forgotten(self, notes):
        with rig(channel_app(echo)) as (loop, client, conn):
            client.sendall(request())
            turn(loop)
            channel = conn.incoming
            for _ in range(10):
                channel.call_later(0.0, lambda: notes.note("rung"))
                turn(loop, 3)
            assert notes == ["rung"] * 10
            assert len(channel._timers) == 1

    def test_before_the_head(self, notes):
        done = threading.Event()
        app = channel_app(echo, lambda channel: channel.call_later(0, done.set))
        with serve(app) as served:
            client = knock(served)
            assert done.wait(20)
            client.close()


class TestTheEnd:
    """`on_close` is called exactly once, whatever it was."""

    @pytest.mark.parametrize("how", ["end", "reset", "close", "abort", "raise", "late", "handler"])
    def test_every_reason(self, how, notes, caplog):
        channels = []

        def handler(channel, data):
            if how == "raise":
                raise ValueError("on purpose")
            channel.close()

        app = channel_app(handler, channels.append, on_close=notes.note)
        with serve(app) as served:
            client = knock(served)
            head(client)
            if how == "end":
                client.shutdown(socket.SHUT_WR)
            elif how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.close()
            elif how == "late":
                channels[0].read_timeout = 0.0
            elif how in ("raise", "handler"):
                client.sendall(b"x")
            else:
                getattr(channels[0], how)()
            if how != "reset":
                assert rest(client) == b""
            until(lambda: not group_of(served).connections)
            channels[0].close()
            channels[0].abort()
        assert notes == channels

    def test_close_sends_what_waits(self, notes):
        def handler(channel, data):
            channel.write(bytes(20_000_000))
            channel.close()

        app = channel_app(handler, on_close=lambda channel: notes.note(channel.pending > 0))
        with serve(app) as served:
            client = knock(served)
            head(client)
            client.sendall(b"go")
            until(lambda: notes)
            assert len(rest(client)) == 20_000_000
        assert notes == [True]

    def test_abort_does_not(self):
        def handler(channel, data):
            channel.write(bytes(20_000_000))
            channel.abort()

        with serve(channel_app(handler)) as served:
            client = knock(served)
            head(client)
            client.sendall(b"go")
            assert len(rest(client)) < 20_000_000

    def test_the_end_of_input_while_something_waits(self, notes):
        def handler(channel, data):
            channel.write(bytes(20_000_000))

        app = channel_app(handler, on_close=lambda channel: notes.note("closed"))
        with serve(app) as served:
            client = knock(served)
            head(client)
            client.sendall(b"go")
            client.shutdown(socket.SHUT_WR)
            until(lambda: notes)
            assert len(rest(client)) == 20_000_000

    def test_before_the_head(self, notes):
        app = channel_app(
            echo, lambda channel: (channel.write(b"early"), channel.close()),
            on_close=lambda channel: notes.note("closed"),
        )  # fmt: skip
        with serve(app) as served:
            assert body(knock(served)) == b"early"
        assert notes == ["closed"]

    def test_an_application_that_fails_afterwards(self, notes, caplog):
        def app(environ, start_response):
            environ["hop.hijacker"].set_read_handler(
                echo, on_close=lambda channel: notes.note("closed")
            )
            raise ValueError("on purpose")

        with serve(app) as served:
            data = rest(knock(served))
        assert data.startswith(b"HTTP/1.1 500 ")
        assert data.endswith(b"Internal Server Error\n")
        assert notes == ["closed"]

    def test_one_that_fails_behind_the_head(self, notes, caplog):
        def app(environ, start_response):
            environ["hop.hijacker"].set_read_handler(
                echo, on_close=lambda channel: notes.note("closed")
            )
            start_response("200 OK", [])
            yield b"first"
            raise ValueError("on purpose")

        with serve(app) as served:
            client = knock(served)
            read(client, b"first")
            with pytest.raises(ConnectionResetError):
                client.recv(9)
            client.close()
        assert notes == ["closed"]

    def test_a_client_that_leaves_before_the_head(self, notes):
        def app(environ, start_response):
            environ["hop.hijacker"].set_read_handler(
                echo, on_close=lambda channel: notes.note("closed")
            )
            raise ClientDisconnected("it has gone")

        with rig(app) as (loop, client, conn):
            client.sendall(request())
            turn(loop)
            assert notes == ["closed"]
            assert conn.state == CLOSED

    def test_on_close_that_fails(self, caplog):
        def fail(channel):
            raise ValueError("on purpose")

        with serve(channel_app(echo, lambda channel: channel.close(), on_close=fail)) as served:
            rest(knock(served))
        assert "on_close failed" in caplog.text

    def test_the_graceful_stop(self, notes):
        def setup(channel):
            if notes == []:
                channel.on_shutdown = lambda channel: (channel.write(b"farewell"), channel.close())
            notes.append("set up")

        app = channel_app(echo, setup, on_close=lambda channel: notes.note("closed"))
        with serve(app) as served:
            polite, plain = knock(served), knock(served)
            head(polite), head(plain)
            assert served.server.shutdown()
        assert rest(polite) + rest(plain) == b"farewell"
        assert notes == ["set up"] * 2 + ["closed"] * 2

    def test_the_graceful_stop_while_the_application_runs(self, notes):
        def setup(channel):
            channel.on_shutdown = lambda channel: (notes.note("stop"), channel.close())
            channel._conn.loop.draining = True

        with rig(channel_app(echo, setup)) as (loop, client, _conn):
            client.sendall(request())
            turn(loop)
            assert notes == ["stop"]  # nobody has called `drain`

    def test_the_graceful_stop_asks_once(self, notes):
        def setup(channel):
            channel.on_shutdown = lambda channel: notes.note("stop")

        with rig(channel_app(echo, setup)) as (loop, client, conn):
            client.sendall(request())
            turn(loop)
            loop._drain(None)
            loop._drain(None)
            turn(loop, 3)
            assert notes == ["stop"]
            assert conn.state == UPGRADED

    def test_the_hard_stop(self, notes):
        with rig(channel_app(echo, on_close=lambda channel: notes.note("closed"))) as (
            loop, client, _conn,
        ):  # fmt: skip
            client.sendall(request())
            turn(loop)
            loop._stop()
            assert notes == ["closed"]
            assert head(client)
            assert client.recv(1) == b""

    def test_the_hard_stop_finds_one_that_came_back_at_the_last_moment(self, notes):
        def on_close(channel):
            notes.note(channel._conn.loop.stopped.is_set())

        with rig(channel_app(echo, on_close=on_close)) as (loop, client, conn):
            client.sendall(request())
            turn(loop)
            conn.owned, cut_off = True, loop._cut_off

            def return_and_cut_off():
                conn.owned = False
                cut_off()

            loop._cut_off = return_and_cut_off
            loop._stop()
            assert notes == [False]  # nobody was told of the end before
            assert loop.stopped.is_set()
            assert conn.sock.fileno() == -1

    def test_the_hard_stop_while_a_handler_is_stuck(self, notes):
        gate, entered = threading.Event(), threading.Event()

        def handler(channel, data):
            entered.set()
            gate.wait(20)

        app = channel_app(handler, on_close=lambda channel: notes.note("closed"))
        with serve(app, shutdown_timeout=0.05) as served:
            client = knock(served, more=b"go")
            assert entered.wait(20)
            until(lambda: group_of(served)._busy)
            assert not served.server.shutdown()
            assert notes == []
            gate.set()
            until(lambda: notes)
            client.close()
        assert notes == ["closed"]


class TestDeadlines:
    @pytest.fixture
    def clocked(self, notes):
        clock = Clock()
        app = channel_app(
            lambda channel, data: notes.note(data), on_close=lambda channel: notes.note("closed")
        )
        with rig(app, clock=clock) as (loop, client, conn):
            client.sendall(request())
            turn(loop)
            yield clock, loop, client, conn, conn.incoming

    def pass_time(self, clock, loop, seconds):
        for _ in range(int(seconds * 4)):
            clock.now += 0.25
            turn(loop)
        turn(loop, 2)

    def test_those_of_http_are_lifted(self, clocked, notes):
        clock, loop, _client, conn, _channel = clocked
        self.pass_time(clock, loop, 100)
        assert conn.state == UPGRADED
        assert notes == []

    def test_a_client_that_falls_silent(self, clocked, notes):
        clock, loop, client, _conn, channel = clocked
        channel.read_timeout = 10.0
        self.pass_time(clock, loop, 8)
        client.sendall(b"alive")
        self.pass_time(clock, loop, 8)
        assert notes == [b"alive"]
        self.pass_time(clock, loop, 4)
        assert notes == [b"alive", "closed"]
        assert head(client)
        assert client.recv(1) == b""

    def test_one_that_does_not_read(self, clocked, notes):
        clock, loop, client, conn, channel = clocked
        channel.write_timeout = 10.0
        self.pass_time(clock, loop, 20)
        channel.write(bytes(1 << 24))
        self.pass_time(clock, loop, 8)
        client.recv(1 << 22)
        self.pass_time(clock, loop, 8)
        assert notes == []
        self.pass_time(clock, loop, 6)
        assert notes == ["closed"]
        assert conn.state == CLOSED

    def test_who_has_spoken_and_was_not_heard_is_not_blamed(self, clocked, notes):
        clock, loop, client, _conn, channel = clocked
        channel.read_timeout = 10.0
        client.sendall(b"alive")
        channel.look(clock.now + 20)
        assert not channel.closed
        turn(loop)
        assert notes == [b"alive"]
        channel.look(clock.now + 20)
        assert channel.closed

    def test_who_has_read_and_was_not_asked_is_not_blamed(self, clocked):
        """Only what it takes counts; that it goes on talking is no excuse."""
        clock, _loop, client, conn, channel = clocked
        channel.write_timeout = 10.0
        channel.write(bytes(1 << 24))
        client.sendall(b"talking")
        while not conn.has_news(WRITE):
            client.recv(1 << 20)
        channel.look(clock.now + 20)
        assert not channel.closed
        conn.flush()
        channel.look(clock.now + 20)
        assert channel.closed

    def test_words_come_before_the_timer_that_asks_for_them(self, clocked, notes):
        clock, loop, client, _conn, channel = clocked
        channel.call_later(1.0, lambda: notes.note("asked"))
        turn(loop)
        clock.now += 2.0  # the process stood still
        client.sendall(b"alive")
        turn(loop, 2)
        assert notes == [b"alive", "asked"]

    def test_the_last_words_are_not_lost_where_they_have_been_read(self, clocked):
        """There is room, and only the loop has not come to it."""
        clock, loop, client, conn, channel = clocked
        channel.write_timeout = 10.0
        channel.write(bytes(1 << 24))
        channel.close()
        turn(loop)
        assert conn.state == CLOSING
        size = len(client.recv(1 << 20))
        while not conn.has_news(WRITE):
            size += len(client.recv(1 << 20))
        clock.now += 20.0
        loop.poller.wake()
        loop._between()  # the timers; the batch comes behind them
        assert not conn.gone()
        while conn.state == CLOSING:
            turn(loop)
            size += len(client.recv(1 << 20))
        while data := client.recv(1 << 20):
            size += len(data)
        assert size > 1 << 24

    def test_nobody_keeps_a_channel_that_has_said_its_last_words(self):
        class Data:
            pass

        with rig(channel_app(echo)) as (loop, client, conn):
            client.sendall(request())
            turn(loop)
            conn.incoming.data = data = Data()
            kept = weakref.ref(data)
            del data
            conn.incoming.write_timeout = 10.0
            conn.incoming.write(bytes(1 << 24))
            conn.incoming.close()
            assert kept()
            turn(loop, 2)
            assert conn.state == CLOSING  # and the timer of its patience is armed
            gc.collect()
            assert kept() is None

    def test_who_cannot_be_heard_is_not_blamed(self, clocked, notes):
        clock, loop, _client, conn, channel = clocked
        channel.read_timeout = 10.0
        loop.full = True
        loop._park(conn)
        self.pass_time(clock, loop, 30)
        loop.full = False
        turn(loop)
        self.pass_time(clock, loop, 8)
        assert notes == []

    def test_the_last_words_have_the_channels_patience(self, clocked, notes):
        clock, loop, client, conn, channel = clocked
        channel.write_timeout = 10.0
        channel.write(bytes(1 << 24))
        channel.close()
        self.pass_time(clock, loop, 8)
        assert notes == ["closed"]
        client.recv(1 << 20)  # it takes something: the clock begins anew
        self.pass_time(clock, loop, 8)
        assert conn.state == CLOSING
        self.pass_time(clock, loop, 5)
        assert conn.state == CLOSED

    def test_an_abort_behind_a_close(self, clocked, notes):
        clock, loop, _client, conn, channel = clocked
        channel.write(bytes(1 << 24))
        channel.close()
        self.pass_time(clock, loop, 1)
        assert conn.state == CLOSING
        channel.abort()
        turn(loop, 3)
        assert conn.state == CLOSED
        assert notes == ["closed"]

    def test_a_parked_channel_is_not_parked_twice(self, clocked):
        _clock, loop, client, conn, channel = clocked
        loop.full = True
        channel.write(bytes(1 << 24))
        turn(loop, 2)
        assert (conn.interest, list(loop._parked)) == (WRITE, [conn])
        client.recv(1 << 20)
        turn(loop, 2)
        assert (conn.interest, list(loop._parked)) == (WRITE, [conn])
        loop.full = False
        turn(loop)
        assert conn.interest == READ | WRITE
