"""The server's life: start, options, signals, and an end that loses nobody."""

import contextlib
import gc
import http.client
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest

from hop import Engine, Server
from hop.debug import debug_port
from hop.server import LOOKING, STOP, _log_stacks, snapshot
from hop.testing import serve
from tests.apps.plain import app

ROOT = Path(__file__).parent.parent
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def until(condition, timeout=20.0):
    """Wait for a condition that becomes true by itself; fail when it does not."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def connect(port, data=b""):
    sock = socket.create_connection(("127.0.0.1", port), timeout=20)
    if data:
        sock.sendall(data)
    return sock


def answer(sock):
    """Status and body of the next answer."""
    response = http.client.HTTPResponse(sock)
    response.begin()
    return response.status, response.read()


def get(port, path="/"):
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with connect(port, request.encode()) as sock:
        return answer(sock)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@contextlib.contextmanager
def command(*arguments, app="tests.apps.plain:app", **options):
    """`python -m hop`, ended with the block if it has not ended before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hop", app, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)


def answers(port):
    """Whether somebody serves there."""
    try:
        return get(port)[0] == 200
    except OSError:
        return False


class TestServe:
    def test_an_address_for_every_bind(self, tmp_path):
        server = Server(Engine(app))
        path = tmp_path / "sock"
        thread = threading.Thread(target=server.serve, args=("127.0.0.1:0", f"unix:{path}"))
        thread.start()
        server.started.wait(10)
        assert server.addresses[1] == f"unix:{path}"
        assert get(int(server.addresses[0].rpartition(":")[2])) == (200, b"hello")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(path))
            sock.sendall(GET)
            assert answer(sock) == (200, b"hello")
        assert server.shutdown(10)
        thread.join(10)
        assert not path.exists()

    def test_a_start_that_fails_leaves_nothing_open(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = f"127.0.0.1:{other.getsockname()[1]}"
            path = tmp_path / "sock"
            with pytest.raises(OSError, match="in use"):
                Server(Engine(app)).serve(f"unix:{path}", taken)
        assert not path.exists()

    def test_several_pollers(self):
        with serve(app, pollers=3) as served:
            assert [get(served.port) for _ in range(12)] == [(200, b"hello")] * 12

    def test_testing_raises_what_the_server_raises(self):
        with pytest.raises(ValueError, match="bind"), serve(app, bind="nonsense"):
            raise AssertionError("must not start")

    def test_the_environ_names_the_server(self):
        def shows(environ, start_response):
            start_response("200 OK", [])
            return [f"{environ['SERVER_NAME']} {environ['SERVER_PORT']}".encode()]

        with serve(shows) as served:
            assert get(served.port)[1].decode() == f"127.0.0.1 {served.port}"

    def test_beyond_max_connections_clients_wait(self):
        with serve(app, max_connections=2) as served, contextlib.ExitStack() as stack:
            first, second = (stack.enter_context(connect(served.port, GET)) for _ in range(2))
            assert (answer(first), answer(second)) == ((200, b"hello"), (200, b"hello"))
            third = stack.enter_context(connect(served.port, GET))
            third.settimeout(0.2)
            with pytest.raises(TimeoutError):
                third.recv(1)
            first.close()
            third.settimeout(20)
            assert answer(third) == (200, b"hello")


class TestDeadlines:
    @pytest.mark.parametrize(
        ("option", "data", "status"),
        [
            ("keep_alive_timeout", b"", None),
            ("read_timeout", b"GET / HT", 408),
            ("body_timeout", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab", 408),
        ],
    )
    def test_a_client_that_stops_is_sent_away(self, option, data, status):
        with serve(app, **{option: 0.05}) as served, connect(served.port, data) as sock:
            if status is None:
                assert sock.recv(100) == b""
            else:
                assert answer(sock)[0] == status

    def test_dripping_does_not_extend_a_head(self):
        with serve(app, read_timeout=0.3) as served, connect(served.port) as sock:
            sock.settimeout(0.02)
            received = b""
            with contextlib.suppress(OSError):
                for byte in GET[:-1] * 1000:
                    sock.sendall(bytes([byte]))
                    with contextlib.suppress(TimeoutError):
                        received = sock.recv(100)
                        break
            assert received.startswith(b"HTTP/1.1 4")

    def test_a_client_that_does_not_read_is_cut_off(self):
        with serve(app, write_timeout=0.05) as served, connect(served.port) as sock:
            sock.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            group = served.server._groups[0]
            until(lambda: group.connections)
            until(lambda: not group.connections)
            with pytest.raises((OSError, http.client.IncompleteRead)):
                answer(sock)

    def test_a_handler_that_takes_too_long(self):
        from tests.apps import plain

        plain.gate.clear()
        with serve(Engine(app, request_timeout=0.05)) as served:
            with connect(served.port, b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n") as sock:
                assert sock.recv(100) == b""
            assert get(served.port) == (200, b"hello")
            plain.gate.set()


class TestShutdown:
    def test_idle_connections_are_closed_and_what_is_in_flight_is_answered(self):
        from tests.apps import plain

        plain.gate.clear()
        with serve(app) as served, connect(served.port, GET) as idle:
            assert answer(idle) == (200, b"hello")
            waiting = [
                connect(served.port, b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n") for _ in range(3)
            ]
            group = served.server._groups[0]
            until(lambda: len([c for c in group.connections.values() if c.owned]) == 3)
            served.server.begin_shutdown(20)
            assert idle.recv(1) == b""
            plain.gate.set()
            for sock in waiting:
                response = http.client.HTTPResponse(sock)
                response.begin()
                assert (response.status, response.read()) == (200, b"waited")
                assert response.getheader("Connection") == "close"
                sock.close()

    def test_nobody_in_the_backlog_is_reset(self):
        """Clients whose handshake is done, but whom nobody has accepted yet, get an answer."""
        from tests.apps import plain

        plain.gate.clear()
        with serve(app, max_connections=1) as served:
            with connect(served.port, b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n") as first:
                until(lambda: served.server._groups[0].connections)
                waiting = [connect(served.port, GET) for _ in range(20)]
                served.server.begin_shutdown(20)
                plain.gate.set()
                assert answer(first) == (200, b"waited")
                assert [answer(sock) for sock in waiting] == [(200, b"hello")] * 20
                for sock in waiting:
                    sock.close()

    def test_what_is_stuck_is_cut_off_and_named(self, caplog):
        request = b"GET /stuck HTTP/1.1\r\nHost: x\r\n\r\n"
        with serve(app) as served, connect(served.port, request) as s:
            group = served.server._groups[0]
            until(lambda: [c for c in group.connections.values() if c.owned])
            assert not served.server.shutdown(0.05)
            assert s.recv(1) == b""
        assert "time.sleep(60)" in caplog.text

    def test_a_half_sent_body_may_be_finished(self):
        with serve(app) as served:
            head = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n"
            sock = connect(served.port, head + b"abc")
            group = served.server._groups[0]
            until(lambda: [c for c in group.connections.values() if c.incoming])
            served.server.begin_shutdown(20)
            until(lambda: group.draining)
            sock.sendall(b"def")
            assert answer(sock) == (200, b"6")
            sock.close()


class TestStacks:
    def test_the_walk_is_one_step_and_complete(self):
        """Python code that runs in the middle of it would let other threads move their frames."""
        called = []
        sys.setprofile(
            lambda frame, event, arg: event in ("call", "c_call")
            and called.append(getattr(arg, "__name__", frame.f_code.co_name))
        )
        try:
            taken = snapshot()
        finally:
            sys.setprofile(None)
        start = called.index("disable")
        assert called[start + 1] == "enable"
        frame, expected = sys._getframe(), []
        while frame is not None:
            expected.append(frame)
            frame = frame.f_back
        mine = taken[threading.get_ident()]
        assert mine[0].f_code is snapshot.__code__
        assert mine[1:] == expected
        assert set(taken) >= {each.ident for each in threading.enumerate()}

    def test_the_collector_does_not_run_while_frames_are_taken(self, monkeypatch):
        seen = []
        real = sys._current_frames
        monkeypatch.setattr(sys, "_current_frames", lambda: seen.append(gc.isenabled()) or real())
        assert threading.get_ident() in snapshot()
        assert gc.isenabled()
        gc.disable()
        try:
            snapshot()
            assert not gc.isenabled()
        finally:
            gc.enable()
        monkeypatch.setattr(sys, "_current_frames", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            snapshot()
        assert gc.isenabled()
        assert seen == [False, False]

    def test_two_observers_do_not_switch_the_collector_on_for_each_other(self, monkeypatch):
        taken = []
        monkeypatch.setattr(sys, "_current_frames", lambda: taken.append(LOOKING.locked()) or {})
        snapshot()
        assert taken == [True]
        assert not LOOKING.locked()

    def test_without_the_gil_no_frame_is_touched(self, monkeypatch, caplog):
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
        monkeypatch.setattr(sys, "_current_frames", lambda: pytest.fail("touched"))
        assert snapshot() == {}
        _log_stacks(Stuck(threading.current_thread()))
        assert f"stuck here:\nthread {threading.current_thread().name}, whose" in caplog.text

    def test_the_log_has_the_stack_and_no_walk_step_by_step(self, monkeypatch, caplog):
        monkeypatch.setattr(traceback, "walk_stack", lambda frame: pytest.fail("walked"))
        _log_stacks(Stuck(threading.current_thread()))
        assert "cut off at shutdown, stuck here:\n  File " in caplog.text
        names = re.findall(r", in (\w+)$", caplog.text, re.MULTILINE)
        assert names[-3:] == [
            "test_the_log_has_the_stack_and_no_walk_step_by_step", "_log_stacks", "snapshot",
        ]  # fmt: skip

    def test_who_has_ended_or_never_begun_is_left_out(self, monkeypatch, caplog):
        monkeypatch.setattr(sys, "_current_frames", dict)
        _log_stacks(Stuck(threading.current_thread(), threading.Thread(target=int)))
        assert caplog.text == ""


class Stuck:
    """As much of a group as the log looks at."""

    def __init__(self, *threads):
        self.stuck = lambda: threads


class TestCrowds:
    def test_those_who_stall_hold_up_nobody(self):
        """100 half-sent heads, 100 half-sent bodies, 60 clients that never read."""
        with serve(app) as served, contextlib.ExitStack() as stack:
            port = served.port
            for data, count in (
                (b"GET / HTTP/1.1\r\nHo", 100),
                (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc", 100),
                (b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n", 60),
            ):
                for _ in range(count):
                    stack.enter_context(connect(port, data))
            group = served.server._groups[0]
            until(lambda: len(group.connections) == 260)
            threads = threading.active_count()
            assert [get(port) for _ in range(50)] == [(200, b"hello")] * 50
            assert threading.active_count() <= threads + 1


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["nosuchmodule:app"], "no module named 'nosuchmodule'"),
            (["tests.apps.plain:nothing"], "has no 'nothing'"),
            (["tests.apps.plain:application_is"], "not a WSGI application"),
            (["tests.apps.plain:app", "--bind", "here"], "bind 'here'"),
            (["tests.apps.plain:app", "--threads", "0"], "--threads"),
            (["tests.apps.plain:app", "--keep-alive-timeout", "soon"], "--keep-alive-timeout"),
            ([], "MODULE:APP"),
        ],
    )
    def test_a_mistake_is_one_line_and_status_2(self, arguments, text):
        done = subprocess.run(
            [sys.executable, "-m", "hop", *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2
        assert text in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr

    def test_a_taken_port_is_one_line_and_status_1(self):
        with socket.create_server(("127.0.0.1", 0)) as other:
            bind = f"127.0.0.1:{other.getsockname()[1]}"
            done = subprocess.run(
                [sys.executable, "-m", "hop", "tests.apps.plain:app", "--bind", bind],
                cwd=ROOT, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert bind in done.stderr

    def test_help_teaches(self):
        done = subprocess.run(
            [sys.executable, "-m", "hop", "--help"], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0
        assert "python -m hop mysite.wsgi" in done.stdout
        for option in ("--keep-alive-timeout", "--processes", "--limit-body", "--threads"):
            assert option in done.stdout

    @pytest.mark.parametrize("name", ["tests.apps.plain:factory()", "tests.apps.plain"])
    def test_factories_and_default_names(self, name):
        port = free_port()
        with command("--bind", f"127.0.0.1:{port}", app=name):
            until(lambda: answers(port))

    def test_the_access_log(self):
        port = free_port()
        with command("--bind", f"127.0.0.1:{port}", "--access-log") as process:
            until(lambda: answers(port))
            process.terminate()
            assert '"GET / HTTP/1.1" 200 5' in process.communicate(timeout=20)[1]

    def test_an_inherited_descriptor(self):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port, fd = sock.getsockname()[1], sock.fileno()
            with command("--bind", f"fd://{fd}", pass_fds=[fd]):
                sock.close()
                until(lambda: answers(port))


class TestAccessLog:
    """What chapter 08 says of a line: when it is written, and what stands in it."""

    @pytest.fixture
    def lines(self, caplog):
        """What has been logged so far; on before any engine is made."""
        with caplog.at_level(logging.INFO, "hop.access"):
            yield lambda: [record.getMessage() for record in caplog.records]

    def test_an_upgraded_connection_has_its_line_at_once(self, lines):
        def app(environ, start_response):
            environ["hop.hijacker"].set_read_handler(lambda channel, data: channel.write(data))
            start_response("101 Switching Protocols", [("Upgrade", "echo")])
            return []

        with serve(app) as served, connect(served.port, GET) as client:
            until(lines)
            client.sendall(b"words")  # it is open, and says more than the line counts
            said = b""
            while not said.endswith(b"words"):
                piece = client.recv(200)
                assert piece
                said += piece
            assert lines() == ['127.0.0.1 "GET / HTTP/1.1" 101 0']

    def test_a_hijacked_connection_has_its_line_at_the_end(self, lines):
        def app(environ, start_response):
            sock = environ["hop.hijacker"].hijack()
            sock.sendall(b"tell me")
            sock.recv(1)
            return []

        with serve(app) as served, connect(served.port, GET) as client:
            assert client.recv(7, socket.MSG_WAITALL) == b"tell me"
            assert lines() == []
            client.sendall(b"!")
            until(lines)
            assert lines() == ['127.0.0.1 "GET / HTTP/1.1" 101 0']

    def test_a_unix_socket_has_no_address(self, lines, tmp_path):
        path = str(tmp_path / "sock")
        with serve(app, bind=f"unix:{path}"), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(path)
            client.sendall(GET + b"nonsense\r\n\r\n")
            until(lambda: len(lines()) == 2)
        assert lines() == ['- "GET / HTTP/1.1" 200 5', '- "-" 400 0']

    def test_the_second_port_writes_into_the_same_log(self, lines):
        with serve(app) as served, debug_port(served.server, "127.0.0.1:0") as url:
            port = int(url.rpartition(":")[2])
            with connect(port, b"GET /debug/vars HTTP/1.1\r\nHost: localhost\r\n\r\n") as client:
                assert answer(client)[0] == 200
            until(lines)
        assert lines()[0].startswith('127.0.0.1 "GET /debug/vars HTTP/1.1" 200 ')


class TestSignals:
    def test_a_handler_that_python_does_not_know_gives_way_to_the_default(self, monkeypatch):
        """What a program in C has set is None in Python, and cannot be set again."""
        handlers = []
        monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.append(handler))
        with Server(Engine(app))._stopped_by((signal.SIGTERM,)):
            assert len(handlers) == 1
        assert handlers[1:] == [signal.SIG_DFL]

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_the_server_gracefully(self, number):
        port = free_port()
        with command("--bind", f"127.0.0.1:{port}") as process:
            until(lambda: answers(port))
            with connect(port, b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n") as waiting:
                with connect(port, GET) as other:
                    assert answer(other) == (200, b"hello")
                    process.send_signal(number)
                    assert other.recv(1) == b""
                assert process.poll() is None
                waiting.close()
            process.send_signal(number)
            assert process.wait(20) == 0

    def test_a_second_signal_ends_it_at_once(self):
        port = free_port()
        with command("--bind", f"127.0.0.1:{port}") as process:
            until(lambda: answers(port))
            with connect(port, b"GET /stuck HTTP/1.1\r\nHost: x\r\n\r\n") as sock:
                with connect(port, GET) as other:
                    assert answer(other) == (200, b"hello")
                    process.terminate()
                    assert other.recv(1) == b""
                process.terminate()
                assert process.wait(20) == 0
                assert sock.recv(1) == b""

    def test_processes_share_the_port_and_are_replaced(self):
        port = free_port()
        with command("--bind", f"127.0.0.1:{port}", "--processes", "2") as process:
            until(lambda: answers(port))
            children = f"/proc/{process.pid}/task/{process.pid}/children"
            if not os.path.exists(children):
                pytest.skip("no list of children in /proc")

            def pids():
                return {int(pid) for pid in Path(children).read_text().split()}

            until(lambda: len(pids()) == 2)
            victim = int(get(port, "/pid")[1])
            assert victim in pids()
            os.kill(victim, signal.SIGKILL)
            until(lambda: len(pids() - {victim}) == 2)
            until(lambda: answers(port))
            process.terminate()
            assert process.wait(20) == 0
            assert "starting another" in process.communicate()[1]


def test_running_out_of_descriptors_loses_nobody():
    """A server at its descriptor limit waits instead of spinning, and serves again afterwards."""
    port = free_port()

    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    with command("--bind", f"127.0.0.1:{port}", "--max-connections", "1000", preexec_fn=few) as p:
        until(lambda: answers(port))
        with contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(connect(port)) for _ in range(60)]
            crowd[0].sendall(GET)
            assert answer(crowd[0]) == (200, b"hello")
        until(lambda: answers(port))
        p.terminate()
        errors = p.communicate(timeout=20)[1]
    assert re.search("accept failed, trying again", errors)
    assert len(errors.splitlines()) < 10


def children_of(pid):
    """The processes whose parent is `pid`, or skip where /proc does not tell."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if not path.exists():
        pytest.skip("no list of children in /proc")
    return {int(child) for child in path.read_text().split()}


def started(server, *binds):
    """Serve in a thread: the thread, and the port."""
    thread = threading.Thread(target=server.serve, args=binds or ("127.0.0.1:0",), daemon=True)
    thread.start()
    assert server.started.wait(20)
    return thread, int(server.addresses[0].rpartition(":")[2])


class TestLife:
    def test_it_is_finished_even_if_its_doors_cannot_be_closed(self, monkeypatch):
        def refuse(server):
            raise PermissionError

        monkeypatch.setattr(Server, "close_listeners", refuse)
        server = Server(Engine(app))
        with pytest.raises((PermissionError, ValueError)):
            server.serve("nonsense")
        assert server.finished.is_set()

    @pytest.mark.parametrize(
        ("threads", "pollers", "several"), [(1, 1, False), (1, 2, True), (2, 1, True)]
    )
    def test_multithread_is_what_the_application_sees(self, threads, pollers, several):
        server = Server(Engine(app), max_threads=threads, pollers=pollers)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            assert server._base_environ(listener)["wsgi.multithread"] is several

    def test_a_shutdown_before_the_start_is_not_forgotten(self):
        server = Server(Engine(app))
        server.begin_shutdown(20)
        server.serve("127.0.0.1:0")
        assert server.finished.is_set()
        assert server.shutdown(20)

    def test_clients_can_connect_when_the_addresses_are_announced(self):
        seen = []

        def announce(addresses):
            seen.append((addresses, server.started.is_set()))
            waiting.append(connect(int(addresses[0].rpartition(":")[2]), GET))

        waiting = []
        server = Server(Engine(app))
        thread = threading.Thread(
            target=server.serve, args=("127.0.0.1:0",), kwargs={"announce": announce}
        )
        thread.start()
        assert server.started.wait(20)
        assert seen == [(server.addresses, False)]
        with waiting[0] as sock:
            assert answer(sock) == (200, b"hello")
        assert server.shutdown(20)
        thread.join(20)

    @pytest.mark.parametrize("pollers", [1, 2])
    def test_nobody_is_let_into_a_queue_that_no_one_reads(self, pollers):
        """While the last answers are made the port is closed: not only our handles of it."""
        from tests.apps import plain

        plain.gate.clear()
        server = Server(Engine(app), pollers=pollers)
        thread, port = started(server)
        with connect(port, b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n") as busy:
            until(lambda: any(c.owned for g in server._groups for c in g.connections.values()))
            server.begin_shutdown(20)
            until(lambda: not server._listeners)
            with pytest.raises(ConnectionRefusedError):
                connect(port)
            plain.gate.set()
            assert answer(busy) == (200, b"waited")
        thread.join(20)
        assert server.finished.is_set()

    def test_in_the_main_thread_a_signal_ends_it_and_its_handlers_come_back(self):
        before = [signal.getsignal(number) for number in STOP]
        server = Server(Engine(app))
        pages = []

        def client():
            server.started.wait(20)
            pages.append(get(int(server.addresses[0].rpartition(":")[2])))
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=client)
        thread.start()
        server.serve("127.0.0.1:0")
        thread.join(20)
        assert pages == [(200, b"hello")]
        assert [signal.getsignal(number) for number in STOP] == before

    def test_room_for_connections(self, monkeypatch):
        for limit, room in ((1024, 960), (40, 1), (resource.RLIM_INFINITY, (1 << 20) - 64)):
            monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
            assert Server(Engine(app)).max_connections == room

    def test_options_reach_the_groups(self):
        with serve(app, max_unsent=4321, buffer_size=1234, max_threads=3, pollers=2,
                   max_connections=7) as served:  # fmt: skip
            for group in served.server._groups:
                assert (group.max_unsent, group.buffer_size, group.max_threads) == (4321, 1234, 3)
                assert group.max_connections == 3


class TestFamily:
    def test_orphans_do_not_serve_on(self):
        port = free_port()
        with command("--bind", f"127.0.0.1:{port}", "--processes", "2") as process:
            until(lambda: answers(port))
            until(lambda: len(children_of(process.pid)) == 2)
            orphans = children_of(process.pid)
            process.kill()
            process.wait(20)
            until(lambda: not any(os.path.exists(f"/proc/{pid}/cmdline") for pid in orphans))
            assert not answers(port)

    def test_ctrl_c_counts_once(self):
        """A terminal sends SIGINT to all; what is in flight is answered all the same."""
        port = free_port()
        with command(
            "--bind", f"127.0.0.1:{port}", "--processes", "2", start_new_session=True
        ) as process:
            until(lambda: answers(port))
            until(lambda: len(children_of(process.pid)) == 2)
            half = connect(port, b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nab")
            with connect(port, GET) as idle:
                assert answer(idle) == (200, b"hello")
                os.killpg(process.pid, signal.SIGINT)
                assert idle.recv(1) == b""
            until(lambda: not answers(port))  # the parent has passed its signal on
            half.settimeout(0.3)
            with pytest.raises(TimeoutError):
                half.recv(1)  # nothing, neither an answer nor an end
            half.settimeout(20)
            half.sendall(b"cdef")
            assert answer(half) == (200, b"6")
            half.close()
            assert process.wait(20) == 0
