"""The second port: what it shows, to whom, and that it shows it while the server is stuck."""

import contextlib
import gc
import http.client
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hop import Engine, Server, debug
from hop.connection import Connection
from hop.debug import (
    DebugApp,
    check_bind,
    collapsed,
    connections,
    debug_port,
    doing,
    look,
    sample,
    survey,
)
from hop.engine import ConnectionState
from hop.server import snapshot
from hop.testing import serve

GET = b"GET %b HTTP/1.1\r\nHost: test.example\r\n\r\n"


class Site:
    """An application: /wait stands at a gate, /big is 32 MB, all else answers at once."""

    def __init__(self):
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/wait":
            self.stand_still()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [bytes(32 << 20) if path == "/big" else path.encode()]

    def stand_still(self):
        self.entered.release()
        assert self.gate.wait(60)


@pytest.fixture
def site():
    site = Site()
    yield site
    site.gate.set()


@contextlib.contextmanager
def client(served, path):
    """A client that has sent a request."""
    with socket.create_connection((served.host, served.port), 60) as sock:
        sock.sendall(GET % path)
        yield sock


@contextlib.contextmanager
def waiting(site, served, path=b"/wait"):
    """A client whose handler stands at the gate; at the end the gate is opened."""
    with client(served, path) as sock:
        assert site.entered.acquire(timeout=60)
        try:
            yield sock
        finally:
            site.gate.set()
            assert sock.recv(100).startswith(b"HTTP/1.1 200")


def wait_until(condition):
    """Wait for something that is bound to become true."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def fetch(url, path, method="GET", **headers):
    """Status, fields and text of an answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def ask(app, path, **fields):
    """Status, fields and text, through wsgiref's inspector and without a socket."""
    path, _, query = path.partition("?")
    environ = {"SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": query}
    environ |= {"HTTP_HOST": "localhost:6060"} | fields
    setup_testing_defaults(environ)
    environ = {name: value for name, value in environ.items() if value is not None}
    seen = []
    result = validator(app)(environ, lambda status, headers, _=None: seen.append((status, headers)))
    body = b"".join(result)
    result.close()
    (status, headers), = seen
    assert dict(headers)["Content-Length"] == str(len(body))
    return int(status[:3]), dict(headers), body.decode()


@pytest.fixture
def idle_app():
    """The pages of a server that has not begun."""
    return DebugApp(Server(Engine(Site())))


# ---------------------------------------------------------------- the reason for it all


def test_it_answers_while_the_server_cannot(site):
    with serve(site, max_threads=2) as served, debug_port(served.server, "127.0.0.1:0") as url:
        with waiting(site, served), client(served, b"/wait"):
            assert site.entered.acquire(timeout=60)
            with client(served, b"/late") as late:
                late.settimeout(0.05)
                with pytest.raises(TimeoutError):
                    late.recv(100)
                for path in ("", "threads", "connections", "vars", "metrics", "heap"):
                    assert fetch(url, f"/debug/{path}")[0] == 200
                text = fetch(url, "/debug/threads")[2]
                assert text.count("in stand_still") == 2
                figures = json.loads(fetch(url, "/debug/vars")[2])
                assert figures["hop_groups"] == {"eager": 0, "full": 1}
                assert figures["hop_threads"]["call"] >= 2
                site.gate.set()
                late.settimeout(60)
                assert late.recv(100).startswith(b"HTTP/1.1 200")


# ---------------------------------------------------------------- threads


def test_threads_says_who_is_in_which_call(site):
    with serve(site) as served, waiting(site, served, b"/wait?order=7") as sock:
        wait_until(lambda: any(conn.owned for conn in connections(served.server)))
        wait_until(lambda: {does.what for _, _, does in survey()} >= {"leader", "monitor"})
        text = debug.threads_page()
        port = sock.getsockname()[1]
    first, *others = re.split(r"\n(?=\S+.* \(\d+\): )", text.split("\n\n", 1)[1])
    assert re.match(
        r"hop \(\d+\): in a call for [0-9.]+ s: GET /wait\?order=7, "
        rf"client 127\.0\.0\.1:{port}; has lost the lead\n", first
    )  # fmt: skip
    assert "assert self.gate.wait(60)" in first
    assert any("leads: waits for events" in other for other in others)
    assert any("watches the calls" in other for other in others)
    assert any(other.startswith("MainThread") and "does not serve" in other for other in others)
    assert text.startswith(f"{1 + len(others)} threads\n")


def test_a_call_that_still_has_the_lead(site):
    with serve(site, max_threads=1) as served, waiting(site, served):
        conn, = connections(served.server)
        frames = [stack for _, stack, does in survey() if does.what == "call"]
        does = doing(frames[0])
        assert does.conn is conn
        assert does.request == "GET /wait"
        conn.since = 100.0
        conn.owned, owned = False, conn.owned
        assert "for 5.0 s: GET /wait" in debug.heading(does, 105.0)
        assert debug.heading(does, 105.0).endswith("still leads")
        assert "for 0.0 s" in debug.heading(does, 99.0)
        conn.owned = owned


def test_the_longest_call_comes_first(site):
    with serve(site) as served, waiting(site, served, b"/wait"):
        wait_until(lambda: any(conn.owned for conn in connections(served.server)))
        with client(served, b"/wait"):
            assert site.entered.acquire(timeout=60)
            wait_until(lambda: len([1 for _, _, does in survey() if does.conn]) == 2)
            old = max(connections(served.server), key=lambda conn: conn.since)
            old.since -= 1000
            text = debug.threads_page()
            site.gate.set()
    times = [float(found) for found in re.findall(r"in a call for ([0-9.]+) s", text)]
    assert len(times) == 2
    assert times[0] >= 1000 > times[1]
    assert text.index("in a call") < text.index("MainThread")


def test_a_channels_handler_is_a_call_without_a_request(site):
    def app(environ, start_response):
        environ["hop.hijacker"].set_read_handler(lambda channel, data: site.stand_still())
        start_response("101 Switching Protocols", [("Upgrade", "chat")])
        return []

    with serve(app) as served, client(served, b"/chat") as sock:
        assert sock.recv(1000).startswith(b"HTTP/1.1 101")
        sock.sendall(b"hello")
        assert site.entered.acquire(timeout=60)
        wait_until(lambda: any(conn.owned for conn in connections(served.server)))
        text = debug.threads_page()
        row = debug.connections_page(served.server, {}).splitlines()[3].split()
        site.gate.set()
    port = sock_port(row[0])
    assert f"in a handler of a channel, client 127.0.0.1:{port}; has lost the lead\n" in text
    assert (row[1], row[6]) == ("UPGRADED", "hop")


def sock_port(name):
    return int(name.rpartition(":")[2])


def test_a_hijacked_connection_names_its_thread(site):
    def app(environ, start_response):
        environ["hop.hijacker"].hijack()
        site.stand_still()
        return []

    with serve(app) as served, client(served, b"/raw"):
        assert site.entered.acquire(timeout=60)
        text = debug.threads_page()
        row = debug.connections_page(served.server, {}).splitlines()[3].split()
        site.gate.set()
    assert re.search(r"s: GET /raw, client 127.0.0.1:\d+; has hijacked the connection\n", text)
    assert (row[1], row[6]) == ("HIJACKED", "hop")


def test_who_is_silent_by_nature_is_not_overdue(site):
    """A call first, then what waits to be sent, then the calm ones, the oldest first."""
    loop = type("Loop", (), {"now": 0.0, "buffer_size": 1})()
    ends = [socket.socketpair() for _ in range(5)]
    states = ["UPGRADED", "IDLE", "HIJACKED", "CALL", "UPGRADED"]
    conns = []
    for number, ((mine, _), state) in enumerate(zip(ends, states, strict=True)):
        conn = Connection(mine, loop, {}, ConnectionState[state])
        conn.since = float(number)
        conns.append(conn)
    conns[4].backlog = type("Backlog", (), {"size": 7})()
    server = Server(Engine(site))
    server._groups = [type("Group", (), {"connections": dict(enumerate(conns))})()]
    rows = [line.split() for line in debug.connections_page(server, {}).splitlines()[3:]]
    for end in ends:
        end[0].close()
        end[1].close()
    assert [(row[1], row[3]) for row in rows] == [
        ("CALL", "0"), ("UPGRADED", "7"), ("UPGRADED", "0"), ("IDLE", "0"), ("HIJACKED", "0"),
    ]  # fmt: skip


def test_doing_is_told_by_code_and_type():
    frames = own_frames()
    assert doing(frames).what == "other"
    assert doing([Frame(Engine._respond.__code__, {}), *frames]).what == "other"
    assert doing([Frame(Engine._respond.__code__, {"conn": 1}), *frames]).what == "other"


class Frame:
    """A frame that is about to be left, or has been renamed inside."""

    def __init__(self, code, local):
        self.f_code, self.f_locals = code, local


def own_frames():
    return snapshot()[threading.get_ident()]


def test_a_follower_is_one_that_stands_in_run():
    with serve(Site()) as served:
        group, = debug.groups(served.server)
        follower = group._followers[0]
        wait_until(lambda: debug.Doing("follower") in [
            does for thread, _, does in survey() if thread is follower.thread
        ])


def test_a_thread_that_has_ended_is_left_out(monkeypatch):
    monkeypatch.setattr(sys, "_current_frames", dict)
    assert survey() == []


@pytest.mark.parametrize("gil", [True, False])
def test_without_the_gil_no_frame_is_touched(idle_app, monkeypatch, gil):
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: gil, raising=False)
    if not gil:
        monkeypatch.setattr(sys, "_current_frames", lambda: pytest.fail("touched"))
    status = 200 if gil else 501
    assert ask(idle_app, "/debug/threads")[0] == status
    assert ask(idle_app, "/debug/profile?seconds=0&format=collapsed")[0] == status
    for path in ("connections", "vars", "metrics"):
        assert ask(idle_app, f"/debug/{path}")[0] == 200


# ---------------------------------------------------------------- connections


def test_connections_shows_the_slow_client_first(site):
    with serve(site) as served, contextlib.ExitStack() as stack:
        for path in (b"/a", b"/b", b"/big", b"/c"):
            stack.enter_context(client(served, path))
        server = served.server
        wait_until(lambda: sorted(conn.state.name for conn in connections(server))
                   == ["FLUSHING", "IDLE", "IDLE", "IDLE"])  # fmt: skip
        text = debug.connections_page(server, {"limit": "2"})
        assert text.startswith("4 connections, 2 shown\n\nclient ")
        row = text.splitlines()[3].split()
        assert row[0].startswith("127.0.0.1:")
        assert row[1] == "FLUSHING"
        assert int(row[3]) > 1 << 20
        assert int(row[4]) > 0
        assert row[6] == "leader"
        assert len(debug.connections_page(server, {}).splitlines()) == 3 + 4


def test_connections_names_the_thread_that_owns_one(site):
    with serve(site) as served, waiting(site, served) as sock:
        wait_until(lambda: any(conn.owned for conn in connections(served.server)))
        sock.sendall(b"more")
        wait_until(lambda: " 4 hop (" in debug.connections_page(served.server, {}))
        row = debug.connections_page(served.server, {}).splitlines()[3]
        thread, = [thread for thread, _, does in survey() if does.what == "call"]
        assert row.endswith(f" {thread.name} ({thread.native_id})")
        assert row.split()[1] == "CALL"


def test_a_connection_that_has_been_closed_meanwhile():
    left, right = socket.socketpair()
    loop = type("Loop", (), {"now": 0.0, "buffer_size": 1})()
    conn = Connection(left, loop, {}, ConnectionState.IDLE)
    right.send(b"12345")
    assert debug.queue(conn, debug.termios.FIONREAD) == 5
    assert debug.peer(conn) == "-"
    right.close()
    left.close()
    assert debug.queue(conn, debug.termios.FIONREAD) == 0
    assert debug.peer(conn) == "-"
    assert debug.unsent(conn) == 0


def test_a_peer_is_written_with_its_port():
    class Peer:
        def __init__(self, name):
            self.peer_name = lambda: name

    assert debug.peer(Peer(("192.0.2.1", 4711))) == "192.0.2.1:4711"
    assert debug.peer(Peer("/run/client.sock")) == "/run/client.sock"


# ---------------------------------------------------------------- figures


def test_the_metrics_are_what_prometheus_reads(site, monkeypatch):
    with serve(site) as served:
        with client(served, b"/a") as sock:
            assert sock.recv(100)
            wait_until(lambda: [c.state.name for c in connections(served.server)] == ["IDLE"])
            monkeypatch.setattr(served.server.engine, "requests", 17, raising=False)
            status, headers, text = ask(DebugApp(served.server), "/debug/metrics")
            figures = json.loads(debug.vars_page(served.server))
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["hop_requests"].type == "counter"
    assert families["hop_connections"].type == "gauge"
    assert all(family.documentation for family in families.values())
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families.values() for sample in family.samples
    }  # fmt: skip
    assert values["hop_requests_total",] == 17 == figures["hop_requests_total"]
    assert values["hop_connections", "idle"] == 1 == figures["hop_connections"]["idle"]
    assert values["hop_connections_max",] == served.server.max_connections
    assert values["hop_body_room_bytes", "memory"] == 256 << 20
    assert values["process_cpu_seconds_total",] > 0
    assert values["process_max_fds",] > values["process_open_fds",] > 3
    assert figures["pid"] == os.getpid()
    assert figures["addresses"] == served.server.addresses
    assert set(figures["hop_threads"]) == {"call", "leader", "follower", "monitor", "other"}


def test_requests_are_counted(site):
    with serve(site) as served:
        for count in (1, 2):
            with client(served, b"/") as sock:
                assert sock.recv(100)
            assert json.loads(debug.vars_page(served.server))["hop_requests_total"] == count


def test_unsent_bytes_and_letters_are_added_up(site):
    with serve(site) as served, client(served, b"/big"):

        def agree():
            shown = json.loads(debug.vars_page(served.server))["hop_unsent_bytes"]
            return shown == sum(map(debug.unsent, connections(served.server))) > 0

        wait_until(agree)


def test_descriptors_and_collections_are_counted():
    def figures():
        return {metric.name: metric.values for metric in debug.process_metrics()}

    before = figures()
    with open(os.devnull):
        gc.collect()
        after = figures()
    assert after["process_open_fds"][""] == before["process_open_fds"][""] + 1
    assert after["python_gc_collections_total"]["2"] > before["python_gc_collections_total"]["2"]
    assert before["process_open_fds"][""] <= len(os.listdir("/dev/fd"))


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_peak_is_in_bytes_everywhere(monkeypatch, platform, unit):
    peak = debug.resource.getrusage(debug.resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(sys, "platform", platform)
    found = {metric.name: metric.values[""] for metric in debug.process_metrics()
             if metric.name == "process_peak_memory_bytes"}  # fmt: skip
    assert peak <= found["process_peak_memory_bytes"] / unit < 2 * peak


def test_without_proc_the_memory_in_use_is_left_out(monkeypatch):
    def no_file(*_):
        raise FileNotFoundError

    monkeypatch.setattr(debug, "open", no_file, raising=False)
    names = [metric.name for metric in debug.process_metrics()]
    assert "process_resident_memory_bytes" not in names
    assert "process_open_fds" in names


# ---------------------------------------------------------------- profile


@contextlib.contextmanager
def thread(function, *arguments, name="worker"):
    worker = threading.Thread(target=function, args=arguments, name=name)
    worker.start()
    try:
        yield worker
    finally:
        worker.join(60)


def test_a_look_counts_each_thread_once():
    gate, entered = threading.Event(), threading.Event()

    def stand():
        entered.set()
        gate.wait(60)

    found = Counter()
    with thread(stand, name="a;b"):
        entered.wait(60)
        look(found)
        look(found)
        gate.set()
    mine = {stack: count for stack, count in found.items() if stack[0] == "a;b"}
    (name, codes), = {(name, codes) for name, codes in mine if stand.__code__ in codes}
    assert codes[0].co_qualname == "Thread._bootstrap"  # the outermost first
    line, = [line for line in collapsed(Counter(mine)).splitlines() if "Event.wait" in line]
    assert line.startswith("a,b;Thread._bootstrap (")
    assert line.count(";") == len(codes)
    assert line.endswith(f" {found[name, codes]}")
    assert sum(mine.values()) == 2
    assert "test_a_look_counts_each_thread_once.<locals>.stand (tests/test_debug.py)" in line
    assert not any(frame.f_code in codes for codes in [c for _, c in found]
                   for frame in own_frames()[1:2])  # fmt: skip


def test_who_waits_for_work_is_left_out(site):
    with serve(site) as served, waiting(site, served):
        wait_until(lambda: any(conn.owned for conn in connections(served.server)))
        def innermost(waiting):
            found = Counter()
            look(found, waiting)
            return {code.co_qualname for _, codes in found for code in codes[-2:]}

        poll = f"{type(debug.groups(served.server)[0].poller).__name__}.poll"
        wait_until(lambda: innermost(waiting=True) >= {poll, "Monitor.run", "Event.wait"})
        wait_until(lambda: not innermost(waiting=False) & {poll, "Monitor.run", "Follower._run"})
        assert "Event.wait" in innermost(waiting=False)


def test_a_thread_unknown_to_threading_has_a_question_mark(monkeypatch):
    gate, entered = threading.Event(), threading.Event()

    def stand():
        entered.set()
        gate.wait(60)

    with thread(stand):
        entered.wait(60)
        monkeypatch.setattr(threading, "enumerate", list)
        found = Counter()
        look(found)
        monkeypatch.undo()
        gate.set()
    assert any(name == "?" and stand.__code__ in codes for name, codes in found)


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self, monkeypatch, late=0.0):
        self.now, self.waits, self.late = 1000.0, [], late
        self.intervals = []
        monkeypatch.setattr(debug.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(debug, "look", self.look)
        self.looks = 0

    def look(self, found, waiting):
        self.looks += 1
        self.now += self.late
        self.intervals.append(sys.getswitchinterval())
        found["x", ()] += 1

    def is_set(self):
        return False

    def wait(self, seconds):
        assert seconds >= 0
        self.waits.append(seconds)
        self.now += seconds
        return False


def test_looks_are_evenly_spaced(monkeypatch):
    before = sys.getswitchinterval()
    clock = Clock(monkeypatch, late=0.001)
    found = sample(1.0, clock)
    assert found.total() == clock.looks == 99
    assert clock.waits[0] == 0
    assert clock.waits[1:] == pytest.approx([1 / 99 - 0.001] * 98)
    assert clock.intervals == pytest.approx([0.0001] * 99)
    assert sys.getswitchinterval() == before


def test_missed_looks_are_not_made_up_for(monkeypatch):
    clock = Clock(monkeypatch, late=0.1)
    assert sample(1.0, clock).total() in (10, 11)
    assert set(clock.waits) == {0.0}


def test_a_profile_ends_with_the_server_and_restores_the_interval(monkeypatch):
    before = sys.getswitchinterval()
    stop = threading.Event()
    stop.set()
    assert sample(60, stop).total() == 0
    monkeypatch.setattr(debug, "look", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample(60, threading.Event())
    assert sys.getswitchinterval() == before


def test_a_shorter_interval_is_left_alone(monkeypatch):
    before = sys.getswitchinterval()
    clock = Clock(monkeypatch)
    sys.setswitchinterval(0.00005)
    try:
        sample(0.1, clock)
    finally:
        sys.setswitchinterval(before)
    assert clock.intervals == pytest.approx([0.00005] * clock.looks, abs=2e-6)


def test_the_profile_finds_who_holds_up_the_server(site):
    with serve(site) as served, waiting(site, served):
        app = DebugApp(served.server)
        status, headers, text = ask(app, "/debug/profile?seconds=0.2&format=collapsed")
        page = ask(app, "/debug/profile?seconds=0.1")
        everybody = ask(app, "/debug/profile?seconds=0.2&format=collapsed&waiting=1")[2]
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    stuck = [line for line in text.splitlines() if "Site.stand_still" in line]
    assert stuck
    assert all(re.fullmatch(r"[^;]+(;[^;]+)+ [1-9][0-9]*", line) for line in text.splitlines())
    assert page[1]["Content-Type"].startswith("text/html")
    assert "stand_still" in page[2]
    assert "Follower._run (hop/leader.py);" in everybody


def test_the_tree_agrees_with_the_counts():
    """pyinstrument's own arithmetic on our samples."""
    from pyinstrument.session import Session

    kept = []
    code, other = Site.__call__.__code__, Site.stand_still.__code__
    found = Counter({("hop", (code, other)): 60, ("hop", (code,)): 30, ("main", (other,)): 9})
    real = Session.from_json

    def keep(record):
        kept.append(real(record))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "from_json", staticmethod(keep))
        page = debug.tree_page(found, 1.0, 0.25)
    assert page.lstrip().lower().startswith("<!doctype html>")
    root = kept[0].root_frame()
    assert root.time == pytest.approx(1.0)
    assert (kept[0].duration, kept[0].cpu_time) == (1.0, 0.25)
    times = {(frame.function, frame.parent.function): frame.time for frame in walk(root)}
    assert times["Site.__call__", "hop"] == pytest.approx(90 / 99)
    assert times["Site.stand_still", "Site.__call__"] == pytest.approx(60 / 99)
    assert times["Site.stand_still", "main"] == pytest.approx(9 / 99)


def walk(frame):
    for child in frame.children:
        yield child
        yield from walk(child)


def test_without_pyinstrument_the_tree_is_501_at_once(idle_app, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyinstrument.renderers", None)
    monkeypatch.setattr(debug, "sample", lambda *_: pytest.fail("sampled in vain"))
    status, _, text = ask(idle_app, "/debug/profile?seconds=60")
    assert status == 501
    assert "pip install" in text
    assert "format=collapsed" in text


def test_pyinstrument_is_imported_only_on_demand():
    code = "import hop.debug, sys; print('pyinstrument' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


def test_one_profile_at_a_time(site):
    with serve(site) as served, debug_port(served.server, "127.0.0.1:0") as url:
        answers = []

        def long():
            answers.append(fetch(url, "/debug/profile?seconds=60&format=collapsed"))

        with thread(long):
            def busy():
                return fetch(url, "/debug/heap")[0] == 409

            wait_until(busy)
            assert fetch(url, "/debug/profile?format=collapsed")[0] == 409
            assert fetch(url, "/debug/threads")[0] == 200
            app = next(
                frame.f_locals["self"] for _, frames, _ in survey() for frame in frames
                if frame.f_code is DebugApp.profile.__code__
            )  # fmt: skip
            app.stop()
        assert answers[0][0] == 200
        assert fetch(url, "/debug/heap")[0] == 200


@pytest.mark.parametrize("query", [
    "profile?seconds=61", "profile?seconds=-1", "profile?seconds=nan", "profile?seconds=x",
    "profile?format=png", "connections?limit=1001", "heap?top=1e9",
])  # fmt: skip
def test_numbers_out_of_bounds_are_400(idle_app, query, monkeypatch):
    monkeypatch.setattr(tracemalloc, "is_tracing", lambda: True)
    assert ask(idle_app, f"/debug/{query}")[0] == 400


def test_bounds_themselves_are_allowed():
    assert debug.number({"n": "60"}, "n", 5, 60) == 60
    assert debug.number({"n": "0"}, "n", 5, 60) == 0
    assert debug.number({}, "n", 5, 60) == 5


# ---------------------------------------------------------------- heap


def test_the_heap_shows_what_was_kept(idle_app):
    assert "Nothing is traced" in ask(idle_app, "/debug/heap")[2]
    status, _, text = ask(idle_app, "/debug/heap?do=start", REQUEST_METHOD="POST")
    try:
        assert (status, text) == (200, "tracing: on\n")
        kept = [bytes(5000) for _ in range(100)]
        text = ask(idle_app, "/debug/heap?top=1")[2]
        more = ask(idle_app, "/debug/heap")[2]
    finally:
        status, _, stopped = ask(idle_app, "/debug/heap?do=stop", REQUEST_METHOD="POST")
    assert (status, stopped) == (200, "tracing: off\n")
    assert len(kept) == 100
    lines = text.splitlines()
    assert "bytes allocated since the start still live" in lines[0]
    found = re.fullmatch(r" *([0-9,]+) B +([0-9,]+) blocks  .*test_debug.py:\d+", lines[2])
    size, blocks = found.groups()
    assert 500_000 < int(size.replace(",", "")) < 600_000
    assert 100 <= int(blocks) <= 105
    assert lines[3].strip() == "kept = [bytes(5000) for _ in range(100)]"
    assert len(lines) == 4 < len(more.splitlines())
    assert "hop/debug.py" not in more
    assert "tracemalloc.py" not in more


def test_tracing_is_switched_by_post_alone(idle_app):
    assert ask(idle_app, "/debug/heap?do=start")[0] == 200
    assert not tracemalloc.is_tracing()
    assert ask(idle_app, "/debug/heap?do=dance", REQUEST_METHOD="POST")[0] == 400
    assert ask(idle_app, "/debug/heap", REQUEST_METHOD="POST")[0] == 400


# ---------------------------------------------------------------- the application


def test_the_index_links_to_every_page(idle_app):
    _, headers, text = ask(idle_app, "/debug/")
    assert headers["Content-Type"].startswith("text/html")
    links = re.findall(r'href="/debug/([^"]*)"', text)
    assert [link.replace("&amp;", "&") for link in links] == list(debug.LINKS)
    assert {f"/debug/{link.partition('?')[0]}" for link in debug.LINKS} | {"/debug/"} == set(
        idle_app._pages
    )
    assert re.findall(r'method="post" action="/debug/heap\?do=(\w+)"', text) == ["start", "stop"]
    for link in debug.LINKS:
        if "profile" not in link:
            assert ask(idle_app, f"/debug/{link}")[0] == 200


@pytest.mark.parametrize("path", ["/", "/debug", "/threads", "/debug/nothing", "/debug/threads/"])
def test_everything_else_is_404(idle_app, path):
    status, _, text = ask(idle_app, path)
    assert status == 404
    assert text == "404 Not Found: the index is at /debug/\n"


@pytest.mark.parametrize(("path", "method", "allow"), [
    ("/debug/threads", "POST", "GET, HEAD"),
    ("/debug/heap", "DELETE", "GET, HEAD, POST"),
    ("/debug/profile", "POST", "GET, HEAD"),
])  # fmt: skip
def test_other_methods_are_405_with_allow(idle_app, path, method, allow):
    status, headers, _ = ask(idle_app, path, REQUEST_METHOD=method)
    assert (status, headers["Allow"]) == (405, allow)


def test_head_is_answered(idle_app):
    with serve(idle_app) as served:
        status, headers, text = fetch(served.url, "/debug/threads", "HEAD")
    assert (status, text) == (200, "")
    assert int(headers["Content-Length"]) > 0


def test_every_answer_forbids_the_browser_to_load_from_elsewhere(idle_app):
    for path in ("/debug/", "/debug/vars", "/nothing"):
        headers = ask(idle_app, path)[1]
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
        assert "http" not in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_name_that_is_no_text_does_no_harm(idle_app, monkeypatch):
    monkeypatch.setattr(debug, "threads_page", lambda: "\udcff")
    assert ask(idle_app, "/debug/threads")[2] == "\\udcff"


# ---------------------------------------------------------------- who may ask


@pytest.mark.parametrize("host", [
    "localhost", "localhost:6060", "LOCALHOST:6060", "127.0.0.1:6060", "127.3.2.1", "[::1]:6060",
])  # fmt: skip
def test_hosts_of_the_loopback_are_let_in(idle_app, host):
    assert ask(idle_app, "/debug/vars", HTTP_HOST=host)[0] == 200


@pytest.mark.parametrize("host", [
    "evil.example:6060", "localhost.evil.example", "127.0.0.1.evil.example", "evil.localhost",
    "10.0.0.7", "0.0.0.0:6060", "[::]", "[", "", "localhost@evil.example", "192.0.2.1:6060",
])  # fmt: skip
def test_rebinding_is_refused(idle_app, host):
    assert ask(idle_app, "/debug/vars", HTTP_HOST=host)[0] == 403


def test_no_host_at_all_is_refused(idle_app):
    assert ask(idle_app, "/debug/vars", HTTP_HOST=None)[0] == 403


@pytest.mark.parametrize(("client", "status"), [
    ("127.0.0.1", 200), ("::1", 200), ("", 200), ("192.0.2.7", 403), ("2001:db8::1", 403),
])  # fmt: skip
def test_clients_of_this_machine_only(idle_app, client, status):
    assert ask(idle_app, "/debug/vars", REMOTE_ADDR=client)[0] == status


@pytest.mark.parametrize(("site", "status"), [
    ("none", 200), ("same-origin", 200), ("same-site", 403), ("cross-site", 403), ("", 403),
])  # fmt: skip
def test_another_site_cannot_make_a_browser_ask(idle_app, site, status):
    assert ask(idle_app, "/debug/vars", HTTP_SEC_FETCH_SITE=site)[0] == status


def test_where_fetch_metadata_speaks_it_decides_alone(idle_app):
    """A privacy setting sends Origin: null, and a proxy another Host, from the page's own form."""
    there = {"HTTP_SEC_FETCH_SITE": "same-origin", "HTTP_ORIGIN": "null"}
    assert ask(idle_app, "/debug/vars", **there)[0] == 200


@pytest.mark.parametrize(("origin", "status"), [
    ("http://localhost:6060", 200), ("https://localhost:6060", 200), ("HTTP://LOCALHOST:6060", 200),
    ("null", 403), ("", 403), ("http://evil.example", 403), ("http://localhost", 403),
    ("http://localhost:6061", 403), ("http://localhost:6060.evil.example", 403),
    ("http://evil.example@localhost:6060", 403), ("http://localhost:6060, http://a.example", 403),
    ("ftp://localhost:6060", 403), ("localhost:6060", 403),
])  # fmt: skip
def test_another_origins_form_is_refused_without_fetch_metadata(idle_app, origin, status):
    assert ask(idle_app, "/debug/vars", HTTP_ORIGIN=origin)[0] == status


def test_another_origins_form_changes_nothing(site):
    with serve(site) as served, debug_port(served.server, "127.0.0.1:0") as url:
        start, foreign = "/debug/heap?do=start", {"Origin": "http://evil.example"}
        assert fetch(url, start, "POST", **foreign)[0] == 403
        assert not tracemalloc.is_tracing()
        assert fetch(url, "/debug/heap?do=stop", "POST", Origin=url)[0] == 200  # a button of ours


@pytest.mark.parametrize("host", ["", None])
def test_an_origin_without_a_host_is_refused(host):
    app = DebugApp(Server(Engine(Site())), allow_remote=True)
    assert ask(app, "/debug/vars", HTTP_HOST=host, HTTP_ORIGIN="null")[0] == 403


def test_remote_clients_when_they_are_allowed():
    app = DebugApp(Server(Engine(Site())), allow_remote=True)
    there = {"REMOTE_ADDR": "192.0.2.7", "HTTP_HOST": "server.example:6060"}
    assert ask(app, "/debug/vars", **there)[0] == 200
    assert ask(app, "/debug/vars", HTTP_SEC_FETCH_SITE="cross-site", **there)[0] == 403
    assert ask(app, "/debug/vars", HTTP_ORIGIN="http://server.example:6060", **there)[0] == 200
    assert ask(app, "/debug/vars", HTTP_ORIGIN="http://evil.example", **there)[0] == 403


@pytest.mark.parametrize("bind", [
    "localhost:6060", "127.0.0.1:6060", "127.1.2.3:1", "[::1]:6060", "unix:/run/debug.sock",
])  # fmt: skip
def test_binds_of_the_loopback(bind):
    check_bind(bind)


@pytest.mark.parametrize("bind", [
    ":6060", "0.0.0.0:6060", "[::]:6060", "192.0.2.1:6060", "fd://3",
])  # fmt: skip
def test_other_binds_are_refused(bind):
    server = Server(Engine(Site()))
    with pytest.raises(ValueError, match="could be reached from other machines"):
        with debug_port(server, bind):
            pytest.fail("it was opened")


def test_a_name_with_a_second_address_is_refused(monkeypatch):
    def lookup(host, port, **_):
        return [(2, 1, 6, "", ("127.0.0.1", port)), (2, 1, 6, "", ("192.0.2.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(ValueError, match="other machines"):
        check_bind("localhost:6060")


def test_what_is_no_bind_says_so():
    with pytest.raises(ValueError, match="expected host:port"):
        check_bind("6060")


# ---------------------------------------------------------------- the port


def test_every_interface_when_it_is_allowed(site):
    with serve(site) as served, debug_port(served.server, ":0", allow_remote=True) as url:
        port = url.rpartition(":")[2]
        assert fetch(f"http://127.0.0.1:{port}", "/debug/vars", Host="server.example")[0] == 200


def test_a_unix_socket_is_its_owners(site, tmp_path):
    path = tmp_path / "debug.sock"
    with serve(site) as served, debug_port(served.server, f"unix:{path}"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(b"GET /debug/vars HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_it_closes_at_once_even_during_a_profile(site):
    with serve(site) as served:
        with debug_port(served.server, "127.0.0.1:0") as url:
            asked = threading.Thread(
                target=lambda: answers.append(
                    fetch(url, "/debug/profile?seconds=60&format=collapsed")[0]
                )
            )
            answers: list[int] = []
            asked.start()
            wait_until(lambda: fetch(url, "/debug/heap")[0] == 409)
            began = time.monotonic()
        assert time.monotonic() - began < 30
        asked.join(60)
        assert answers == [200]
    host, _, port = url.removeprefix("http://").rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)))
    wait_until(lambda: not [each for each in threading.enumerate() if each.name == "hop"])


def test_several_processes_are_refused():
    server = Server(Engine(Site()), processes=2)
    with pytest.raises(ValueError, match="processes=1"):
        with debug_port(server, "127.0.0.1:0"):
            pytest.fail("it was opened")


def test_a_port_in_use_is_an_error(site):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            with debug_port(Server(Engine(site)), f"127.0.0.1:{port}"):
                pytest.fail("it was opened")


def test_it_may_be_open_before_the_server_begins(site):
    server = Server(Engine(site))
    with debug_port(server, "127.0.0.1:0") as url:
        assert json.loads(fetch(url, "/debug/vars")[2])["hop_connections"]["idle"] == 0
        assert fetch(url, "/debug/connections")[2].startswith("0 connections, 0 shown")
