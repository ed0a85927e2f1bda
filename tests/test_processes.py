"""Several processes: who gets which client, who is replaced, and an end that all hear of."""

import contextlib
import http.client
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from hop import Engine, Server
from hop.server import Processes, SharedDoor
from tests.apps.plain import app
from tests.test_server import (
    GET,
    ROOT,
    answer,
    answers,
    children_of,
    command,
    connect,
    free_port,
    get,
    until,
)

PID = b"GET /pid HTTP/1.1\r\nHost: x\r\n\r\n"
HALF = b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\nab"


def asked(sock, request=PID):
    """The body of the answer."""
    sock.sendall(request)
    return answer(sock)[1]


def ask_pid(port):
    """Which process answers a new client."""
    with connect(port) as sock:
        return int(asked(sock))


@contextlib.contextmanager
def family(processes=2, **options):
    """A server of several processes, its port, and its children, all of which have answered."""
    port = free_port()
    with command("--bind", f"127.0.0.1:{port}", "--processes", str(processes), **options) as parent:
        until(lambda: answers(port))
        until(lambda: len(children_of(parent.pid)) == processes)
        children = children_of(parent.pid)
        seen = set()
        until(lambda: seen.add(ask_pid(port)) or seen == children)
        yield parent, port, children


@contextlib.contextmanager
def a_client_of_each(port, children, request=None):
    """For each child an open connection, which has sent `request` after a first answer."""
    with contextlib.ExitStack() as stack:
        clients = {}

        def all_there():
            sock = stack.enter_context(connect(port))
            clients.setdefault(int(asked(sock)), sock)
            return set(clients) == children

        until(all_there)
        for sock in clients.values():
            if request:
                sock.sendall(request)
        yield clients


def gone(pids):
    """Whether none of the processes is left, not even as a zombie."""
    return not any(os.path.exists(f"/proc/{pid}/cmdline") for pid in pids)


def python(code, *arguments, **options):
    """A program with hop in it, to be ended by the caller."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def ended(process, timeout=60):
    """Exit status, output and errors of a program that ends by itself."""
    try:
        out, errors = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            process.kill()
    return process.returncode, out, errors


class TestSpread:
    @pytest.mark.parametrize(("processes", "least"), [(2, 100), (4, 40)])
    def test_new_clients_are_dealt_to_all(self, processes, least):
        """By the kernel's dice: 400 clients, and what each gets is off by 10 now and then."""
        with family(processes) as (_, port, children):
            spread = Counter(ask_pid(port) for _ in range(400))
        assert set(spread) == children
        assert min(spread.values()) > least

    def test_a_crowd_does_not_stay_with_whoever_wakes_first(self):
        """64 at once, who stay; ten such crowds. So are their requests spread: 3 for each."""
        with family() as (_, port, children):
            for _ in range(10):
                with contextlib.ExitStack() as stack:
                    crowd = [stack.enter_context(socket.socket()) for _ in range(64)]
                    for sock in crowd:
                        sock.setblocking(False)
                        sock.connect_ex(("127.0.0.1", port))
                    for sock in crowd:
                        sock.settimeout(20)
                    spread = Counter(asked(sock) for _ in range(3) for sock in crowd)
                    assert {int(pid) for pid in spread} == children
                    assert min(spread.values()) >= 3 * 10
                    assert all(count % 3 == 0 for count in spread.values())

    @pytest.mark.no_poller
    def test_in_one_queue_they_take_turns(self):
        """A descriptor that was inherited has no siblings. With the flag alone, one gets all."""
        with socket.create_server(("127.0.0.1", 0), backlog=100) as owned:
            port, fd = owned.getsockname()[1], owned.fileno()
            with command("--bind", f"fd://{fd}", "--processes", "2", pass_fds=[fd]) as parent:
                seen = set()
                until(lambda: seen.add(ask_pid(port)) or len(seen) == 2)
                spread = Counter(ask_pid(port) for _ in range(100))
                assert set(spread) == children_of(parent.pid)
        assert min(spread.values()) >= 20

    def test_a_unix_socket_is_shared_and_its_file_goes(self, tmp_path):
        path = tmp_path / "sock"
        with command("--bind", f"unix:{path}", "--processes", "2") as parent:
            assert str(path) in parent.stderr.readline()  # it listens

            def ask():
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(20)
                    sock.connect(str(path))
                    return int(asked(sock))

            until(lambda: ask() in children_of(parent.pid))
            parent.terminate()
            assert parent.wait(20) == 0
        assert not path.exists()

    def test_who_has_let_one_in_goes_to_the_end_of_the_line(self):
        """The kernel wakes first who has watched longest: so it is watched anew after each."""

        class Poller:
            calls = []

            def register(self, *_):
                self.calls.append("register")

            def unregister(self, _):
                self.calls.append("unregister")

        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            poller, let_in = Poller(), []
            door = SharedDoor(poller, listener.dup(), let_in.append)
            client = connect(listener.getsockname()[1])
            door.resume()
            poller.calls.clear()
            assert [door.on_readable() for _ in range(2)] == [1, 0]  # nobody else: no turn is lost
            assert poller.calls == ["unregister", "register"]
            door.close()
            for sock in (client, *let_in):
                sock.close()

    def test_a_full_process_lets_others_have_their_turn(self):
        """A shared door that its own admission has paused must not open itself again."""

        class Poller:
            registered = 0

            def register(self, *_):
                self.registered += 1

            def unregister(self, _):
                self.registered -= 1

        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            poller, let_in = Poller(), []
            door = SharedDoor(poller, listener.dup(), lambda sock: (let_in.append(sock), end()))

            def end():
                if len(let_in) == 2:
                    door.pause()

            clients = [connect(listener.getsockname()[1]) for _ in range(3)]
            assert [door.on_readable() for _ in range(3)] == [1, 1, 0]
            assert (poller.registered, len(let_in)) == (0, 2)
            door.close()
            for sock in (*clients, *let_in):
                sock.close()


class TestPort:
    def test_a_strangers_port_is_an_error(self):
        with socket.create_server(("127.0.0.1", 0)) as stranger:
            bind = f"127.0.0.1:{stranger.getsockname()[1]}"
            with command("--bind", bind, "--processes", "2") as process:
                status, _, errors = ended(process)
        assert status == 1
        assert len(errors.splitlines()) == 1
        assert bind in errors

    def test_so_is_the_port_of_another_hop(self):
        """Although the siblings' flag is on that port, and the user is the same."""
        with (
            family() as (_, port, _),
            command("--bind", f"127.0.0.1:{port}", "--processes", "2") as process,
        ):
            assert ended(process)[0] == 1
            assert answers(port)

    def test_the_main_thread_is_wanted(self):
        server, errors = Server(Engine(app), processes=2), []

        def serve():
            try:
                server.serve("127.0.0.1:0")
            except ValueError as error:
                errors.append(str(error))

        thread = threading.Thread(target=serve)
        thread.start()
        thread.join(20)
        assert "main thread" in errors[0]
        assert server._listeners == []
        assert server._family is None
        assert server.finished.is_set()


class TestReplacement:
    def test_the_others_clients_notice_nothing(self):
        with (
            family(3) as (parent, port, children),
            a_client_of_each(port, children) as idle,
            a_client_of_each(port, children, HALF) as busy,
        ):
            victim = min(children)
            os.kill(victim, signal.SIGKILL)
            for clients in (idle, busy):
                with contextlib.suppress(ConnectionResetError):
                    assert clients.pop(victim).recv(100) == b""
            assert {pid: int(asked(sock)) for pid, sock in idle.items()} == {p: p for p in idle}
            until(lambda: len(children_of(parent.pid) - {victim}) == 3)
            assert {pid: int(asked(sock)) for pid, sock in idle.items()} == {p: p for p in idle}
            assert [asked(sock, b"cdef") for sock in busy.values()] == [b"6", b"6"]
            successor = (children_of(parent.pid) - children).pop()
            until(lambda: ask_pid(port) == successor)
            parent.terminate()
            assert parent.wait(20) == 0
            said = parent.stderr.read()
        assert f"process {victim} ended with status -9; starting another" in said

    def test_the_queue_of_the_dead_is_inherited(self):
        """Nobody who waits for a child is reset when it dies: the place has a successor."""
        with family() as (_, port, children), contextlib.ExitStack() as stack:
            victim = min(children)
            os.kill(victim, signal.SIGSTOP)
            until(lambda: Path(f"/proc/{victim}/stat").read_text().rpartition(")")[2][1] == "T")
            crowd = [stack.enter_context(connect(port, PID)) for _ in range(40)]
            os.kill(victim, signal.SIGKILL)
            pids = {int(answer(sock)[1]) for sock in crowd}
            assert len(pids) == 2
            assert victim not in pids

    def test_one_child_alone_may_be_asked_to_leave(self):
        with (
            family() as (parent, port, children),
            a_client_of_each(port, children, HALF) as busy,
        ):
            leaver = min(children)
            os.kill(leaver, signal.SIGTERM)
            os.kill(leaver, signal.SIGTERM)  # it is the same stop
            assert asked(busy[leaver], b"cdef") == b"6"
            until(lambda: len(children_of(parent.pid) - {leaver}) == 2)
            until(lambda: answers(port))
            assert [asked(sock, b"cdef") for pid, sock in busy.items() if pid != leaver] == [b"6"]

    def test_it_happens_where_sigchld_was_ignored(self):
        """Such an inheritance would reap children without a word."""

        def ignore():
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)

        with family(preexec_fn=ignore) as (parent, port, children):
            victim = min(children)
            os.kill(victim, signal.SIGKILL)
            until(lambda: len(children_of(parent.pid) - {victim}) == 2)
            until(lambda: answers(port))

    def test_a_child_that_dies_at_once_does_not_make_the_parent_spin(self):
        program = python("""
            import os, sys, time
            from hop import Engine, Server

            class Frail(Server):
                def run(self, **_):
                    place = self._listeners[0].fileno()
                    os.write(1, f"{place} {time.monotonic()}\\n".encode())
                    os._exit(3)

            Frail(Engine(print), processes=2).serve("127.0.0.1:0")
        """)
        births = defaultdict(list)
        for _ in range(8):
            place, moment = program.stdout.readline().split()
            births[place].append(float(moment))
        program.terminate()
        status, _, errors = ended(program)
        assert status == 0
        assert "status 3; starting another" in errors
        assert len(births) == 2
        for moments in births.values():
            pauses = [later - sooner for sooner, later in itertools.pairwise(moments)]
            assert min(pauses) > 0.4

    def test_one_place_in_trouble_does_not_delay_another(self, monkeypatch):
        processes = Processes(Server(Engine(app), processes=2))
        started = []
        monkeypatch.setattr(processes, "_fork", lambda place: started.append(place) or 100 + place)
        processes._attend()
        assert started == [0, 1]
        processes._ended(100, 0, time.monotonic(), 1)
        processes._ended(101, 1, time.monotonic() - 60, -9)
        assert 0 < processes._vacant[0] - time.monotonic() <= 0.5
        processes._attend()
        assert started == [0, 1, 1]
        processes._children.clear()
        processes._close()

    def test_a_fork_that_fails_is_tried_again(self, monkeypatch, caplog):
        processes = Processes(Server(Engine(app), processes=1))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fork", lambda: (_ for _ in ()).throw(BlockingIOError("enough")))
            processes._attend()
        assert "no process can be started, trying again: enough" in caplog.text
        assert processes._children == {}
        assert 0 < processes._patience() <= 0.5
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        processes._close()


class TestEnd:
    @pytest.mark.parametrize("to", ["the parent", "everybody"])
    def test_what_is_in_flight_anywhere_is_answered(self, to):
        """`everybody` is how systemd does it: each child then hears of it twice."""
        with (
            family() as (parent, port, children),
            a_client_of_each(port, children) as idle,
            a_client_of_each(port, children, HALF) as busy,
        ):
            for pid in children if to == "everybody" else ():
                os.kill(pid, signal.SIGTERM)
                assert idle.pop(pid).recv(100) == b""  # it has heard; the parent will say it again
            parent.terminate()
            assert [sock.recv(100) for sock in idle.values()] == [b""] * len(idle)
            until(lambda: not answers(port))
            assert children_of(parent.pid) == children
            for sock in busy.values():
                sock.sendall(b"cdef")
                response = http.client.HTTPResponse(sock)
                response.begin()
                assert (response.status, response.read()) == (200, b"6")
                assert response.getheader("Connection") == "close"
            assert parent.wait(20) == 0
            assert gone(children)

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_second_signal_cuts_everywhere(self, number):
        stuck = b"GET /stuck HTTP/1.1\r\nHost: x\r\n\r\n"
        with (
            family(start_new_session=True) as (parent, port, children),
            a_client_of_each(port, children) as idle,
            a_client_of_each(port, children, stuck) as busy,
        ):
            for _ in range(2):
                if number == signal.SIGINT:
                    os.killpg(parent.pid, number)  # as a terminal does
                else:
                    parent.send_signal(number)
                for sock in idle.values():
                    assert sock.recv(100) == b""
            for sock in busy.values():
                assert sock.recv(100) == b""
            assert parent.wait(20) == 0
            assert gone(children)
            assert parent.stderr.read().count("time.sleep(60)") == 2

    @pytest.fixture
    def heard(self):
        """Who ignores SIGHUP, as under nohup, hands that on to every process that it starts."""
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        yield
        signal.signal(signal.SIGHUP, before)

    @pytest.mark.usefixtures("heard")
    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
    def test_orphans_finish_and_go(self, number):
        with (
            family() as (parent, port, children),
            a_client_of_each(port, children) as idle,
            a_client_of_each(port, children, HALF) as busy,
        ):
            parent.send_signal(number)
            assert parent.wait(20) == -number
            assert [sock.recv(100) for sock in idle.values()] == [b"", b""]
            assert [asked(sock, b"cdef") for sock in busy.values()] == [b"6", b"6"]
            until(lambda: gone(children))
            assert not answers(port)

    def test_a_child_that_runs_no_python_any_more_is_killed(self):
        """A bad regular expression holds the interpreter's lock; no handler of ours can run."""
        program = python("""
            import os, re, sys
            import hop.server
            from hop import Engine, Server

            hop.server.GRACE = 0.2

            def app(environ, start_response):
                os.write(1, b"in\\n")
                re.match("(a+)+$", "a" * 64 + "b")

            def announce(addresses):
                print(addresses[0].rpartition(":")[2], flush=True)

            server = Server(Engine(app), processes=2, shutdown_timeout=0.2)
            server.serve("127.0.0.1:0", announce=announce)
        """)
        with connect(int(program.stdout.readline()), GET) as sock:
            assert program.stdout.readline() == "in\n"
            program.terminate()
            assert ended(program)[0] == 0
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(100) == b""

    def test_the_parent_keeps_the_deadline(self, request):
        """SIGTERM until then, SIGQUIT at it, SIGKILL a while after."""
        processes = Processes(Server(Engine(app), processes=2))
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent("""
            import signal
            heard = []
            for number in (signal.SIGTERM, signal.SIGQUIT):
                signal.signal(number, lambda number, _: print(number, flush=True))
            print("ready", flush=True)
            while True:
                signal.pause()
        """)], stdout=subprocess.PIPE, text=True)  # fmt: skip
        request.addfinalizer(child.kill)
        assert child.stdout.readline() == "ready\n"
        processes._children[child.pid] = 0, time.monotonic()
        server = processes._server
        server.begin_shutdown(100)
        for late, number in ((-100, signal.SIGTERM), (0, signal.SIGQUIT)):
            server._deadline = time.monotonic() - late
            processes._attend()
            processes._attend()  # the same hour: nothing is sent again
            assert int(child.stdout.readline()) == number
        assert 0 < processes._patience() <= 5
        server._deadline = time.monotonic() - 6
        processes._attend()
        assert processes._patience() is None
        assert child.wait(20) == -signal.SIGKILL
        child.stdout.close()
        processes._children.clear()
        processes._close()

    @pytest.mark.parametrize("early", [True, False])
    def test_another_thread_may_end_it(self, early):
        program = python("""
            import sys, threading
            from hop import Engine, Server
            from tests.apps.plain import app

            server = Server(Engine(app), processes=2)

            def end():
                server.started.wait()
                print(server.shutdown(20))

            if sys.argv[1] == "True":
                server.begin_shutdown(20)
            thread = threading.Thread(target=end)
            announce = thread.start if sys.argv[1] == "False" else bool
            server.serve("127.0.0.1:0", announce=lambda _: announce())
            assert server.started.is_set()
        """, str(early))  # fmt: skip
        status, out, errors = ended(program)
        assert (status, errors) == (0, "")
        assert out == ("" if early else "True\n")

    def test_shutdown_tells_that_somebody_was_cut(self):
        program = python("""
            import threading
            from hop import Engine, Server
            from tests.apps.plain import app
            from tests.test_server import connect

            server = Server(Engine(app), processes=2)
            arrived = threading.Event()

            def end():
                server.started.wait()
                sock = connect(int(server.addresses[0].rpartition(":")[2]))
                sock.sendall(b"GET /stuck HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
                print(server.shutdown(1))

            server.serve("127.0.0.1:0", announce=lambda _: threading.Thread(target=end).start())
        """)
        status, out, _ = ended(program)
        assert (status, out) == (0, "False\n")


class TestChild:
    def test_told_twice_it_is_the_same_stop(self):
        processes = Processes(Server(Engine(app), processes=2))
        processes._leave()
        deadline = processes._server._deadline
        processes._leave()
        assert processes._server._deadline == deadline > time.monotonic()
        processes._close()

    def test_what_was_printed_is_not_lost_nor_printed_twice(self, tmp_path):
        (tmp_path / "talker.py").write_text(
            "import os\n"
            "print('imported')\n"
            "def application(environ, start_response):\n"
            "    print('asked')\n"
            "    start_response('200 OK', [])\n"
            "    return [b'%d' % os.getpid()]\n"
        )
        port = free_port()
        buffered = {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}
        with command("--bind", f"127.0.0.1:{port}", "--processes", "2", "--chdir", str(tmp_path),
                     app="talker", env=buffered) as parent:  # fmt: skip
            until(lambda: answers(port))
            asked_for = 1
            for _ in range(20):
                get(port)
                asked_for += 1
            parent.terminate()
            out, _ = parent.communicate(timeout=20)
        lines = Counter(out.splitlines())
        assert lines["imported"] == 1
        assert lines["asked"] >= asked_for

    def test_programs_that_it_starts_hear_ctrl_c(self, tmp_path):
        """An ignored signal would be ignored in them as well (execve(2))."""
        (tmp_path / "starter.py").write_text(
            "import subprocess\n"
            "def application(environ, start_response):\n"
            "    start_response('200 OK', [])\n"
            "    return [subprocess.check_output(['cat', '/proc/self/status'])]\n"
        )
        port = free_port()
        with command("--bind", f"127.0.0.1:{port}", "--processes", "2", "--chdir", str(tmp_path),
                     app="starter"):  # fmt: skip
            until(lambda: answers(port))
            status = dict(line.split(":", 1) for line in get(port)[1].decode().splitlines())
        masks = {name: int(status[name], 16) for name in ("SigIgn", "SigBlk")}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            assert [name for name, mask in masks.items() if mask >> (number - 1) & 1] == []

    def test_it_holds_no_listener_of_another_place(self):
        """Else a queue would be open that nobody reads, once its own child has drained it."""
        with family(3) as (_, port, children):
            inodes = {}
            for pid in children:
                links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
                inodes[pid] = {link[8:-1] for link in links if link.startswith("socket:[")}
            listening = {
                fields[9]
                for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
                if (fields := line.split())[3] == "0A" and fields[1].endswith(f":{port:04X}")
            }
            assert len(listening) == 3
            assert [len(held & listening) for held in inodes.values()] == [1, 1, 1]
            assert set.union(*inodes.values()) >= listening


def test_ringing_after_the_end_does_no_harm():
    processes = Processes(Server(Engine(app), processes=2))
    ear = processes._ear.dup()
    processes.ring()
    assert ear.recv(10) == b"\0"
    processes._close()
    processes.ring()
    assert select.select([ear], [], [], 0)[0]
    assert ear.recv(10) == b""
    ear.close()
