"""Leader and followers: every race is forced by hand, every clock is played."""

import contextlib
import itertools
import logging
import os
import select
import socket
import sys
import threading
import time
from collections import deque
from functools import partial
from types import SimpleNamespace

import pytest

from hop.adaptor import ErrorStream, base_environ
from hop.engine import ConnectionState, Engine
from hop.errors import ClientDisconnected
from hop.leader import (
    BURN,
    BURNERS,
    BUSY,
    CALM,
    COMPANY,
    CROWD,
    DOUBT,
    DROWSY,
    FEW,
    FORBEARANCE,
    GATHER,
    HASTE,
    LONG,
    LONGEST_HASTE,
    MANY,
    NAP,
    OVERDUE,
    PEACE,
    QUIET,
    REST,
    SHORT,
    SHORTEST,
    SLICES,
    SOON,
    SWEEP,
    TURNS,
    Follower,
    InlineLoop,
    LeaderFollowers,
    Monitor,
    Watch,
)
from hop.poller import READ, WRITE, Acceptor, default_poller

IDLE, HEAD, BODY, PAUSED, CALL, FLUSHING, CLOSING, REFUSING, LINGERING, *_, CLOSED = ConnectionState
TIMEOUTS = dict.fromkeys(ConnectionState, 30.0)
BASE = base_environ("test.example", "80", ErrorStream(logging.getLogger("hop.error")))


def until(condition, timeout=20.0):
    """Wait for a condition that becomes true by itself; fail when it does not."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def requests(*paths):
    return b"".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Gates:
    """An application. A path that has a gate waits for it to be opened; all threads are noted."""

    def __init__(self, *paths):
        self.gates = {path: threading.Event() for path in paths}
        self.threads = {}

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        self.threads.setdefault(path, []).append(threading.current_thread())
        if path in self.gates:
            assert self.gates[path].wait(20)
        start_response("200 OK", [("Content-Length", str(len(path)))])
        return [path.encode()]

    def open(self, *paths):
        for path in paths or self.gates:
            self.gates[path].set()


def admitted(loop):
    """A client, and the connection that the loop made of its other end."""
    mine, client = socket.socketpair()
    mine.setblocking(False)
    client.settimeout(20)
    loop.admit(mine, BASE)
    return client, loop.connections[mine.fileno()]


def bodies(client, count):
    """The bodies of the next answers."""
    data = b""
    while data.count(b"HTTP/1.1 ") < count or not _whole(data):
        piece = client.recv(65536)
        assert piece, "the connection has ended"
        data += piece
    return [part.partition(b"\r\n\r\n")[2].decode() for part in data.split(b"HTTP/1.1 ")[1:]]


def _whole(data):
    head, found, body = data.rpartition(b"\r\n\r\n")
    length = head.rpartition(b"Content-Length: ")[2].split(b"\r\n")[0]
    return bool(found) and len(body) == int(length)


def readable(clients):
    return len(select.select(clients, [], [], 0)[0])


def deliver(loop):
    """Read the mail of a loop that nobody runs."""
    while loop._mailbox:
        fn, argument = loop._mailbox.popleft()
        fn(argument)


def reported(loop):
    """What the poller has to say at this moment."""
    return loop.poller.poll(0)


class Understudy:
    """A follower without a thread."""

    def __init__(self):
        self.baton = threading.Lock()
        self.baton.acquire()
        self.thread = threading.Thread(name="understudy")
        self.cpu = 1.0
        self.sleeping = True

    def cpu_time(self):
        return self.cpu

    def asleep(self):
        return self.sleeping


@pytest.fixture
def cleanup():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def make(cleanup):
    """Makes loops, closed at the end with everything in them."""

    def make(kind=InlineLoop, app=None, clock=time.monotonic, timeouts=(), **options):
        loop = kind(
            default_poller(clock), Engine(app or Gates()),
            timeouts={**TIMEOUTS, **dict(timeouts)}, **options,
        )  # fmt: skip

        def close():
            loop.over = True
            for conn in loop.connections.values():
                conn.close()
            for acceptor in loop.acceptors.values():
                acceptor.sock.close()
            loop.poller.close()

        cleanup.callback(close)
        return loop

    return make


@pytest.fixture
def loop(make):
    return make()


@pytest.fixture
def enter(cleanup):
    """Makes clients of a loop, closed at the end."""

    def enter(loop):
        client, conn = admitted(loop)
        cleanup.callback(client.close)
        return client, conn

    return enter


@pytest.fixture
def rehearse(make):
    """Makes groups that nobody runs; their followers have no threads."""

    def rehearse(understudies=3, **options):
        group = make(LeaderFollowers, **options)
        group._everyone = [Understudy() for _ in range(understudies)]
        group._followers = [*group._everyone]
        group.leader = group._followers.pop()
        return group

    return rehearse


@pytest.fixture
def run(make, cleanup):
    """Makes groups that run in their threads, with a monitor or without."""

    def run(app, monitor=False, kind=LeaderFollowers, clients=0, **options):
        group = make(kind, app, **options)
        ends = [admitted(group)[0] for _ in range(clients)]
        for end in ends:
            cleanup.callback(end.close)
        group.start()

        def end():
            getattr(app, "open", lambda: None)()
            group.stop()
            assert group.stopped.wait(20)
            for follower in group._everyone:
                follower.thread.join(20)
                assert not follower.thread.is_alive()

        cleanup.callback(end)
        if monitor:
            watcher = Monitor([group])
            thread = threading.Thread(target=watcher.run, args=(group.stopped.is_set, lambda: True))
            thread.start()

            def dismiss():
                group.stop()
                group.stopped.wait(20)
                watcher.wake()
                thread.join(20)
                assert not thread.is_alive()

            cleanup.callback(dismiss)
            cleanup.callback(getattr(app, "open", lambda: None))
        return group, ends

    return run


class TestTable:
    def test_a_full_house_closes_its_doors_until_somebody_leaves(self, make, cleanup):
        loop = make(max_connections=2)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        acceptor = Acceptor(loop.poller, listener, lambda sock: loop.admit(sock, BASE))
        loop.acceptors[acceptor.fileno()] = acceptor
        for _ in range(3):
            cleanup.enter_context(socket.create_connection(listener.getsockname(), timeout=20))
        loop._doors.append(acceptor.fileno())
        loop.poller.wake()
        loop._between()
        assert len(loop.connections) == 2
        assert acceptor.fileno() not in dict(reported(loop))
        [leaver, _] = loop.connections.values()
        leaver.state = CLOSED
        loop._settle(leaver)
        until(lambda: acceptor.fileno() in dict(reported(loop)))
        loop._doors.append(acceptor.fileno())
        loop._again.append(leaver)
        loop._between()
        assert len(loop.connections) == 2

    def test_the_poller_watches_for_what_the_state_waits_for(self, loop, enter):
        client, conn = enter(loop)
        fd = conn.sock.fileno()
        client.send(b"x")
        seen = []
        for state in (IDLE, FLUSHING, PAUSED, LINGERING):
            conn.state = state
            loop._settle(conn)
            seen.append(reported(loop))
        assert seen == [[(fd, READ)], [(fd, WRITE)], [], [(fd, READ)]]

    def test_an_unchanged_interest_costs_nothing(self, loop, enter, monkeypatch):
        _, conn = enter(loop)
        monkeypatch.setattr(loop, "poller", None)
        loop._settle(conn)
        assert conn.interest == READ

    def test_what_is_owned_or_closed_is_left_alone(self, loop, enter):
        _, conn = enter(loop)
        conn.owned, conn.state = True, CLOSED
        loop._settle(conn)
        assert conn.interest == READ
        assert len(loop.connections) == 1
        conn.owned = False
        loop._settle(conn)
        conn.close()
        loop._settle(conn)
        assert not loop.connections

    def test_an_entry_is_recognised_by_identity(self, loop, enter):
        _, conn = enter(loop)
        stranger = SimpleNamespace()
        loop.connections[conn.sock.fileno()] = stranger
        loop._forget(conn)
        assert loop.connections.pop(conn.sock.fileno()) is stranger
        assert not loop._freed
        conn.close()

    def test_descriptors_are_closed_when_the_batch_has_ended(self, loop, enter):
        (leaver, conn), (other, stays) = enter(loop), enter(loop)
        leaver.close()
        other.send(requests("/x"))
        fd = conn.sock.fileno()
        loop._events = iter([(fd, READ), (stays.sock.fileno(), READ), (fd, READ)])
        assert loop._batch() is None
        assert conn.sock.fileno() == fd  # its number cannot come back within the batch
        assert bodies(other, 1) == ["/x"]
        loop.poller.wake()
        loop._between()
        assert conn.sock.fileno() < 0


class TestEvents:
    def test_a_mistake_of_ours_costs_one_connection(self, loop, enter, caplog, monkeypatch):
        (one, _), (two, _) = enter(loop), enter(loop)
        one.send(b"x")
        two.send(requests("/x"))
        received, calls = loop.engine.received, itertools.count()

        def faulty(conn, data):
            if not next(calls):
                raise RuntimeError("a mistake")
            received(conn, data)

        monkeypatch.setattr(loop.engine, "received", faulty)
        loop._events = iter(reported(loop))
        loop._batch()
        assert len(loop.connections) == 1
        assert "one connection is dropped" in caplog.text
        assert bodies(two, 1) == ["/x"]

    def test_a_client_that_left_is_no_mistake(self, loop, enter, caplog, monkeypatch):
        client, conn = enter(loop)

        def left(conn, data):
            raise ClientDisconnected

        monkeypatch.setattr(loop.engine, "received", left)
        client.send(b"x")
        assert loop._serve(conn)
        assert not loop.connections
        assert not caplog.text

    def test_readiness_without_bytes_does_no_harm(self, loop, enter):
        _, conn = enter(loop)
        assert loop._serve(conn)
        assert conn.state == IDLE
        loop.draining = True
        assert loop._serve(conn)
        assert conn.state == CLOSED

    def test_what_was_read_before_is_resumed(self, loop, enter):
        client, conn = enter(loop)
        conn.incoming = requests("/before")
        assert loop._serve(conn)
        assert bodies(client, 1) == ["/before"]

    def test_unsent_output_goes_on_when_there_is_room(self, loop, enter):
        client, conn = enter(loop)
        conn.write(bytes(1 << 21))
        conn.state = FLUSHING
        received = 0
        while conn.backlog is not None:
            received += len(client.recv(1 << 20))
            loop._serve(conn)
        assert conn.state == IDLE
        while received < 1 << 21:
            received += len(client.recv(1 << 20))

    def test_a_slow_client_leaves_it_flushing(self, loop, enter):
        _, conn = enter(loop)
        conn.write(bytes(1 << 24))
        conn.state = FLUSHING
        loop._serve(conn)
        assert conn.state == FLUSHING
        assert conn.interest == WRITE

    def test_continue_is_sent_when_there_is_room(self, loop, enter):
        """The kernel is full of an answer that it took whole; then comes a request with Expect."""
        client, conn = enter(loop)
        filling = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filling += conn.sock.send(bytes(1 << 16))
        client.send(
            b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        loop._serve(conn)
        assert (conn.state, conn.interest) == (BODY, READ | WRITE)
        while filling:
            filling -= len(client.recv(filling))
        loop._serve(conn)
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (conn.state, conn.interest, conn.backlog) == (BODY, READ, None)

    def test_who_was_refused_is_read_to_the_end(self, loop, enter):
        client, conn = enter(loop)
        client.send(b"nonsense\r\n\r\n")
        loop._serve(conn)
        assert conn.state == LINGERING
        loop._serve(conn)  # nothing to read yet
        assert conn.state == LINGERING
        client.send(b"more")
        client.close()
        loop._serve(conn)
        loop._serve(conn)
        assert conn.state == CLOSED
        assert not loop.connections

    def test_what_came_back_closed_is_only_forgotten(self, loop, enter):
        client, conn = enter(loop)
        conn.state = CLOSED
        client.send(b"x")
        loop._serve(conn)
        assert not loop.connections
        assert loop._freed == [conn]

    def test_a_loop_that_is_full_begins_no_call_but_does_the_rest(self, loop, enter):
        (waits, parked), (_, flushing) = enter(loop), enter(loop)
        loop.full = True
        waits.send(requests("/later"))
        assert loop._serve(parked)
        flushing.state = FLUSHING
        assert loop._serve(flushing)
        assert flushing.state == IDLE
        assert parked.interest == 0
        assert reported(loop) == []
        loop.now += 1000
        loop._look_at(parked)  # not its fault: its time does not run
        assert parked.state == IDLE
        loop.full = False
        assert loop._unpark() == [(parked.sock.fileno(), READ)]
        assert parked.since == loop.now
        loop._serve(parked)
        assert bodies(waits, 1) == ["/later"]

    def test_a_thread_that_comes_free_while_one_parks_is_not_missed(self, loop, enter):
        """The giver looks into the tray before it is filled: then who fills it must look again."""
        _, conn = enter(loop)
        loop._park(conn)  # `full` has become false since it was asked
        loop._next_sweep = loop.now + 1
        assert loop._patience() == 0.0
        loop._between()
        loop._batch()
        assert not loop._parked
        assert conn.interest == READ

    def park(self, loop, enter, count):
        """Connections with a request each, parked one after the other."""
        pairs = [enter(loop) for _ in range(count)]
        loop.full = True
        for client, conn in pairs:
            client.send(requests("/x"))
            loop._serve(conn)
        loop.full = False
        return pairs

    def test_the_parked_go_on_one_by_one_in_the_order_in_which_they_came(self, loop, enter):
        """One at a time, for there may be one thread; the next, since it was not needed."""
        pairs = self.park(loop, enter, 3)
        for count, (client, conn) in enumerate(pairs, 1):
            loop._between()
            loop._batch()
            assert list(loop._parked) == [conn for _, conn in pairs[count:]]
            assert bodies(client, 1) == ["/x"]
            assert conn.interest == READ

    def test_nobody_goes_on_while_no_thread_is_free(self, loop, enter):
        self.park(loop, enter, 1)
        loop.full = True
        loop.poller.wake()
        loop._between()
        assert list(loop._events) == []
        assert loop._patience() > 0

    def test_the_parked_come_before_all_others(self, loop, enter):
        (_, other), [(_, conn)] = enter(loop), self.park(loop, enter, 1)
        loop.again(other)
        loop._between()
        assert [fd for fd, _ in loop._events] == [conn.sock.fileno(), other.sock.fileno()]

    def test_who_is_set_aside_once_more_keeps_its_place(self, loop, enter):
        conns = [conn for _, conn in self.park(loop, enter, 2)]
        loop._between()
        loop.full = True  # another has taken the thread
        loop._batch()
        assert list(loop._parked) == conns

    def test_who_ends_meanwhile_waits_no_more(self, loop, enter):
        [(_, conn)] = self.park(loop, enter, 1)
        loop._forget(conn)
        assert not loop._parked

    def test_an_event_for_somebody_elses_connection_silences_it(self, loop, enter):
        client, conn = enter(loop)
        conn.owned = True
        client.send(requests("/x"))
        assert loop._serve(conn)
        assert reported(loop) == []
        assert not readable([client])


class TestRounds:
    def test_an_error_between_two_batches_does_not_end_the_loop(self, loop, caplog, monkeypatch):
        rounds = itertools.count()

        def failing():
            if next(rounds) == 2:
                loop.over = True
            raise RuntimeError("odd")

        monkeypatch.setattr(loop, "_between", failing)
        assert loop.serve() is None
        assert caplog.text.count("which goes on") == 3

    def test_a_letter_that_fails_does_not_take_the_next(self, loop, monkeypatch, caplog):
        def fail(_):
            raise RuntimeError("odd")

        monkeypatch.setattr(loop, "_wait", lambda: setattr(loop, "over", True))
        loop.post(fail)
        letters = []
        loop.post(letters.append, "read")
        loop.serve()
        assert letters == ["read"]

    def test_a_door_that_fails_is_not_tried_for_ever(self, loop, monkeypatch):
        class Jammed:
            def on_readable(self):
                raise OSError("jammed")

        loop.acceptors[12345] = Jammed()
        loop._doors.append(12345)
        with pytest.raises(OSError, match="jammed"):
            loop._between()
        assert not loop._doors
        loop.acceptors.clear()

    def test_events_of_strangers_are_ignored(self, loop):
        loop._events = iter([(12345, READ)])
        loop._batch()
        loop.poller.wake()
        loop._between()
        assert not loop._doors

    def test_no_letter_is_slept_over(self, loop, monkeypatch):
        """Posted at the worst moment: when the leader has looked, and does not sleep yet."""
        rings = []
        patience = loop._patience

        def interrupted():
            found = patience()
            loop.post(rings.append, "letter")
            return found

        wake = loop.poller.wake
        monkeypatch.setattr(loop, "_patience", interrupted)
        monkeypatch.setattr(loop.poller, "wake", lambda: (rings.append("ring"), wake()))
        thread = threading.Thread(target=loop._wait, daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert rings == ["ring"]

    def test_a_leader_that_is_busy_is_not_woken(self, loop, monkeypatch):
        monkeypatch.setattr(loop, "poller", None)
        loop.post(print)
        assert loop._patience() == 0.0

    def test_an_empty_server_waits_for_ever_and_others_until_the_sweep(self, loop, enter):
        assert loop._patience() is None
        enter(loop)
        loop._next_sweep = loop.now + 0.125
        assert loop._patience() == 0.125
        loop._next_sweep = loop.now - 1
        assert loop._patience() == 0.0

    def test_timers_run_and_one_that_fails_takes_no_other_along(self, loop, caplog):
        called = []
        loop.poller.call_later(0, lambda: 1 / 0)
        loop.poller.call_later(0, lambda: called.append("second"))
        while not called:
            loop._wait()
        assert "error in a timer" in caplog.text

    def test_connections_that_are_ready_again_come_first(self, loop, enter):
        (_, again), (two, other) = enter(loop), enter(loop)
        again.incoming = requests("/again")
        loop._settle(again)
        two.send(requests("/new"))
        loop._wait()
        assert [fd for fd, _ in loop._events] == [again.sock.fileno(), other.sock.fileno()]
        assert not loop._again


class TestAnswersThatLeaveTogether:
    """Whole answers wait for the end of their batch, and for nothing else."""

    @pytest.fixture(autouse=True)
    def patience(self, monkeypatch):
        """Two are a crowd here, and everything is quick."""
        monkeypatch.setattr("hop.leader.CROWD", 2)
        monkeypatch.setattr("hop.leader.QUICK", 60.0)

    @pytest.fixture
    def ask(self, loop, enter):
        """Clients that have asked, with the batch of their requests."""

        def ask(*paths, group=None):
            group = group or loop
            pairs = [enter(group) for _ in paths]
            for (client, _), path in zip(pairs, paths, strict=True):
                client.send(requests(path))
            group._wait()
            group._release_at = time.monotonic() + 60
            return pairs

        return ask

    def test_they_leave_when_the_batch_is_over(self, loop, ask, monkeypatch):
        pairs = ask("/1", "/2", "/3")
        waiting, serve = [], loop._serve
        monkeypatch.setattr(
            loop, "_serve", lambda conn: (waiting.append(readable(clients)), serve(conn))[1]
        )
        clients = [client for client, _ in pairs]
        loop._batch()
        assert waiting == [0, 0, 0]
        assert sorted(bodies(client, 1) for client in clients) == [["/1"], ["/2"], ["/3"]]
        assert {(conn.state, conn.interest) for _, conn in pairs} == {(IDLE, READ)}

    def test_one_alone_waits_for_nobody(self, loop, ask):
        ((client, conn),) = ask("/1")
        loop._serve(conn)
        assert readable([client]) == 1

    def due(self, loop, clients, seen, late=0.0):
        """At each call: how many clients have an answer. At the first one the time is up."""

        def begin(conn, call):
            seen.append(readable(clients))
            if len(seen) == 1:
                loop._release_at = self.up = time.monotonic() - late

        return begin

    def test_nor_do_they_wait_when_the_time_is_up(self, loop, ask, monkeypatch):
        clients, seen = [client for client, _ in ask("/1", "/2", "/3")], []
        monkeypatch.setattr(loop, "begin", self.due(loop, clients, seen))
        loop._batch()
        assert seen[:2] == [0, 1]
        assert loop._release_at > self.up + GATHER / 2  # and a new time has begun
        assert loop._gather_from == 0.0

    def test_nor_do_they_wait_when_a_call_was_slow(self, loop, ask, monkeypatch):
        clients, seen = [client for client, _ in ask("/1", "/2", "/3")], []

        def begin(conn, call):
            seen.append(readable(clients))
            if len(seen) == 2:
                monkeypatch.setattr("hop.leader.QUICK", 0.0)  # slower than that is any call

        monkeypatch.setattr(loop, "begin", begin)
        loop._batch()
        assert seen == [0, 0, 2]

    def test_each_event_is_timed_alone(self, loop, ask, monkeypatch):
        clients, seen, now = [client for client, _ in ask("/1", "/2", "/3", "/4")], [], [loop.now]
        monkeypatch.setattr("hop.leader.QUICK", 2.0)
        monkeypatch.setattr("hop.leader.time", SimpleNamespace(monotonic=lambda: now[0]))
        loop._release_at = loop.now + 60

        def begin(conn, call):
            seen.append(readable(clients))
            now[0] += 1.5

        monkeypatch.setattr(loop, "begin", begin)
        loop._batch()
        assert seen == [0, 0, 0, 0]

    def test_sending_is_nobody_s_event(self, loop, ask, monkeypatch):
        clients, seen, now = [client for client, _ in ask("/1", "/2", "/3")], [], [loop.now]
        monkeypatch.setattr("hop.leader.QUICK", 2.0)
        monkeypatch.setattr("hop.leader.time", SimpleNamespace(monotonic=lambda: now[0]))
        loop._release_at, release = loop.now + 60, loop._release

        def begin(conn, call):
            seen.append(readable(clients))
            now[0] += 2.5 if len(seen) == 1 else 0.5

        def long_release():
            release()
            loop._release_at = now[0] + 60
            now[0] += 5

        monkeypatch.setattr(loop, "begin", begin)
        monkeypatch.setattr(loop, "_release", long_release)
        loop._batch()
        assert seen == [0, 1, 1]

    @pytest.mark.parametrize("number", [CROWD - 1, CROWD])
    def test_few_wait_for_nobody(self, loop, enter, monkeypatch, number):
        monkeypatch.setattr("hop.leader.CROWD", CROWD)
        for _ in range(number):
            client, _ = enter(loop)
            client.send(requests("/"))
        loop._wait()
        assert loop._gathering is (number == CROWD)

    def test_nor_behind_answers_of_another_kind(self, make, enter, monkeypatch):
        def app(environ, start_response):
            start_response("200 OK", [("Content-Length", "1")])
            return [b"x"] if environ["PATH_INFO"] == "/plain" else iter([b"x"])

        loop, seen = make(app=app), []
        pairs = [enter(loop) for _ in range(3)]
        for (client, _), path in zip(pairs, ("/plain", "/stream", "/stream"), strict=True):
            client.send(requests(path))
        loop._wait()
        monkeypatch.setattr(loop, "begin", self.due(loop, [pairs[0][0]], seen))
        loop._batch()
        assert seen == [0, 1, 1]

    def test_who_finds_one_overdue_holds_nothing_back_for_a_while(self, loop, ask, monkeypatch):
        seen = []
        pairs = ask("/1", "/2")
        monkeypatch.setattr(loop, "begin", self.due(loop, [], seen, late=OVERDUE * 1.01))
        loop._batch()
        assert loop._gather_from - time.monotonic() == pytest.approx(HASTE, rel=0.9)
        for now, gathering in ((loop._gather_from, False), (loop._gather_from + 0.1, True)):
            for client, _ in pairs:
                client.send(requests("/again"))
            monkeypatch.setattr(loop.poller, "_clock", lambda now=now: now)
            loop._wait()
            assert loop._gathering is gathering

    def test_the_while_is_longer_if_it_comes_again_soon(self, loop):
        def overdue(after):
            """The while that follows when one is overdue so long after the last one was over."""
            now = loop._gather_from + after
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(time, "monotonic", lambda: now)
                loop._release_at = now - OVERDUE * 1.01
                loop._release()
            return loop._gather_from - now

        loop._gather_from = 1000.0
        assert overdue(HASTE) == pytest.approx(HASTE)
        assert overdue(HASTE * 0.9) == pytest.approx(2 * HASTE)
        assert overdue(HASTE * 1.9) == pytest.approx(4 * HASTE)
        for _ in range(10):
            longest = overdue(0.0)
        assert longest == pytest.approx(LONGEST_HASTE)
        assert overdue(LONGEST_HASTE * 1.1) == pytest.approx(HASTE)

    def test_a_client_that_leaves_when_the_time_is_up_stays_forgotten(self, loop, ask, monkeypatch):
        (client, conn), _ = ask("/1", "/2")
        fd = conn.sock.fileno()
        monkeypatch.setattr(loop, "begin", self.due(loop, [], []))

        def broken(self, data):
            raise ClientDisconnected("left")

        with monkeypatch.context() as patched:
            patched.setattr(type(conn), "write", broken)
            loop._batch()
        assert conn.state == CLOSED
        assert (conn.interest, conn in loop._freed) == (0, True)
        client.send(b"more")
        assert fd not in [fd for fd, _ in reported(loop)]

    def test_an_answer_leaves_though_an_error_behind_it_ends_the_connection(
        self, loop, ask, monkeypatch, caplog
    ):
        pairs = ask("/1", "/2")
        monkeypatch.setattr(loop.engine, "_access", True)
        monkeypatch.setattr(loop.engine, "_log", None)
        loop._batch()
        for client, conn in pairs:
            assert bodies(client, 1)
            assert (conn.state, conn.interest) == (CLOSED, 0)
        assert "one connection is dropped" in caplog.text

    def test_nor_where_a_connection_may_come_up_twice(self, loop, enter, ask):
        """The first request was read before, the second one is an event, and leaves at once."""
        (client, conn), (other, _) = ask("/", "/x")
        client.send(requests("/second").replace(b"Host", b"Connection: close\r\nHost"))
        conn.sock.recv(len(requests("/")))
        conn.incoming = requests("/first")
        loop._settle(conn)
        loop._wait()
        loop._batch()
        assert bodies(client, 2) == ["/first", "/second"]
        assert bodies(other, 1) == ["/x"]

    def test_nor_where_one_was_parked(self, loop, ask):
        (_, conn), _ = ask("/1", "/2")
        loop._parked[conn] = None
        loop._wait()
        assert not loop._gathering

    def test_what_the_kernel_does_not_take_is_flushed_later(self, make, enter):
        size = 1 << 16

        def app(environ, start_response):
            start_response("200 OK", [("Content-Length", str(size))])
            return [bytes(size)]

        loop = make(app=app)
        (slow, conn), (quick, _) = enter(loop), enter(loop)
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        slow.send(requests("/"))
        quick.send(requests("/"))
        loop._wait()
        loop._release_at = time.monotonic() + 60
        loop._batch()
        assert (conn.state, conn.interest) == (FLUSHING, WRITE)
        received = b""
        while len(received) < size or loop.connections[conn.sock.fileno()].state != IDLE:
            received += slow.recv(1 << 16)
            loop._serve(conn)
        while received.count(b"\0") < size:
            received += slow.recv(1 << 16)
        assert conn.interest == READ

    def test_who_left_meanwhile_is_forgotten(self, loop, ask, monkeypatch):
        (_, gone), (client, _) = ask("/1", "/2")

        def broken(data):
            raise ClientDisconnected("left")

        with monkeypatch.context() as patched:
            patched.setattr(type(gone), "write", lambda conn, data: (
                broken(data) if conn is gone else conn.sock.send(data)))  # fmt: skip
            loop._batch()
        assert gone.state == CLOSED
        assert gone not in loop.connections.values()
        assert bodies(client, 1) == ["/2"]

    def test_who_takes_the_lead_sends_what_the_last_leader_held(self, rehearse, ask, monkeypatch):
        group = rehearse()
        (first, conn), (_, stuck), (_, third) = ask("/1", "/2", "/3", group=group)
        group._serve(conn)
        held, call, at_the_third = readable([first]), object(), []
        group.begin(stuck, call)
        assert group.promote(stuck, call)
        group._events = iter([(third.sock.fileno(), READ)])
        monkeypatch.setattr(group, "begin", lambda *_: at_the_third.append(readable([first])))
        group._batch()
        assert (held, at_the_third) == (0, [1])

    def test_a_thread_that_has_lost_the_lead_sends_its_own(self, rehearse, ask):
        group = rehearse()
        (client, conn), _ = ask("/1", "/2", group=group)
        conn.owned = True
        group.answer(conn, b"its own")
        assert client.recv(100) == b"its own"

    def test_an_answer_behind_a_backlog_keeps_its_place(self, loop, ask):
        (client, conn), _ = ask("/1", "/2")
        conn.cork()
        conn.write(b"first, ")
        loop.answer(conn, b"second")
        assert conn.flush()
        assert client.recv(100) == b"first, second"


class TestDeadlines:
    def expire(self, make, enter, state, after=10.5, owned=False, unread=()):
        clock = Clock()
        loop = make(clock=clock, timeouts={state: 10.0})
        client, conn = enter(loop)
        conn.state = state
        conn.owned = owned
        conn.since, loop.now = clock.now, clock.now + after
        expired = []
        loop.engine.expired = expired.append
        if state is FLUSHING:
            conn.write(bytes(1 << 23))
        for data in unread:
            client.send(data)
        loop._look_at(conn)
        return loop, client, conn, expired

    @pytest.mark.parametrize("state", [IDLE, HEAD, BODY, PAUSED, FLUSHING, LINGERING])
    def test_who_is_late_is_told_so(self, make, enter, state):
        *_, conn, expired = self.expire(make, enter, state)
        assert expired == [conn]

    @pytest.mark.parametrize("state", [IDLE, HEAD, BODY])
    def test_who_has_spoken_and_was_not_heard_is_not_late(self, make, enter, state):
        """The process stood still, or more were ready than one poll reports."""
        loop, _, conn, expired = self.expire(make, enter, state, unread=[b"GET"])
        assert not expired
        conn.receive()
        loop._look_at(conn)
        assert expired == [conn]

    def test_who_has_read_and_was_not_asked_is_not_late(self, make, enter):
        loop, client, conn, expired = self.expire(make, enter, FLUSHING)
        expired.clear()
        while not conn.has_news(WRITE):
            client.recv(1 << 20)
        loop._look_at(conn)
        assert not expired

    def test_room_is_not_a_client_s_affair(self, make, enter):
        """Who waits for room cannot do anything about it, not even by speaking or leaving."""
        *_, conn, expired = self.expire(make, enter, PAUSED, unread=[b"more"])
        assert expired == [conn]

    def test_nobody_is_late_before_the_time(self, make, enter):
        *_, expired = self.expire(make, enter, HEAD, after=9.5)
        assert not expired

    def test_who_is_watched_for_nothing_and_waits_for_nothing_is_left_alone(self, make, enter):
        loop, _, conn, expired = self.expire(make, enter, IDLE, after=1.0)
        conn.interest = 0
        loop._look_at(conn)
        assert not expired
        assert not loop._again

    def test_none_switches_a_deadline_off(self, loop, enter):
        _, conn = enter(loop)
        loop.timeouts[IDLE] = None
        loop.now += 1e9
        loop._look_at(conn)
        assert conn.state == IDLE

    def test_who_waits_for_room_is_tried_again(self, make, enter):
        loop, _, conn, expired = self.expire(make, enter, PAUSED, after=1.0)
        assert not expired
        assert loop._again == [conn]

    def test_a_call_that_takes_too_long_is_cut_but_not_closed(self, make, enter):
        _, client, conn, expired = self.expire(make, enter, CALL, owned=True)
        assert client.recv(1) == b""
        assert not expired
        assert conn.sock.fileno() >= 0

    def test_what_the_owner_does_otherwise_is_no_business_of_ours(self, make, enter):
        _, client, _, expired = self.expire(make, enter, IDLE, owned=True)
        assert not expired
        assert not readable([client])

    def test_a_connection_given_back_while_it_is_looked_at_is_spared(self, loop):
        """Late by what it was as long as it was owned, not owned by what it is now."""

        class Returning:
            interest, incoming = READ, None
            since = loop.now - 1000.0
            owned = True

            @property
            def state(self):
                self.owned = False  # the owner gives it back at this very moment
                return IDLE

        expired = []
        loop.engine.expired = expired.append
        loop._look_at(Returning())
        assert not expired

    def test_the_sweep_takes_a_slice_at_a_time_and_leaves_nobody_out(self, make, enter):
        clock = Clock()
        loop = make(clock=clock)
        for _ in range(4 * SLICES + 1):
            enter(loop)
        looked = []
        loop._look_at = looked.append
        loop._next_sweep = 0.0
        sizes = []
        for _ in range(SLICES):
            loop.now = clock.now
            for _ in range(2):  # the second time it is too early: the clock has not moved
                loop.poller.wake()
                loop._between()
                sizes.append(len(looked))
            clock.now += SWEEP
        assert sizes[:4] == [5, 5, 10, 10]
        assert len(looked) == len(set(looked)) == 4 * SLICES + 1


class TestWaiting:
    def test_until_the_client_has_read(self, loop, enter):
        client, conn = enter(loop)
        conn.write(bytes(1 << 22))
        thread = threading.Thread(target=loop.wait_writable, args=(conn,))
        thread.start()
        size = 0
        while size < 1 << 22:
            size += len(client.recv(1 << 20))
        thread.join(20)
        assert conn.backlog is None

    def test_not_longer_than_the_write_time_out(self, loop, enter):
        _, conn = enter(loop)
        loop.timeouts[FLUSHING] = 0.01
        conn.write(bytes(1 << 24))
        with pytest.raises(ClientDisconnected, match="stopped reading"):
            loop.wait_writable(conn)

    def test_for_ever_without_one(self, loop, enter):
        _, conn = enter(loop)
        loop.timeouts[FLUSHING] = None
        conn.write(bytes(1 << 24))
        conn.cut()
        with pytest.raises(ClientDisconnected):
            loop.wait_writable(conn)


class TestTheEnd:
    def test_draining_answers_what_has_begun_and_closes_the_rest(self, loop, enter):
        (half, conn), (idle, _) = enter(loop), enter(loop)
        half.send(b"GET /half HTTP/1.1\r\n")
        loop._serve(conn)
        thread = threading.Thread(target=loop.serve)
        thread.start()
        loop.drain()
        assert idle.recv(1) == b""
        assert not loop.stopped.is_set()
        half.send(b"Host: x\r\n\r\n")
        assert bodies(half, 1) == ["/half"]
        half.close()
        thread.join(20)
        assert loop.stopped.is_set()

    def test_draining_lets_in_who_has_knocked_though_the_house_was_full(self, make, cleanup):
        loop = make(max_connections=1)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        acceptor = Acceptor(loop.poller, listener, lambda sock: loop.admit(sock, BASE))
        loop.acceptors[acceptor.fileno()] = acceptor
        clients = [
            cleanup.enter_context(socket.create_connection(listener.getsockname(), timeout=20))
            for _ in range(5)
        ]
        for client in clients:
            client.sendall(requests("/in"))
        acceptor.on_readable()
        assert len(loop.connections) == 1
        loop.drain()
        thread = threading.Thread(target=loop.serve)
        thread.start()
        assert [bodies(client, 1) for client in clients] == [["/in"]] * 5
        for client in clients:
            client.close()
        thread.join(20)
        assert loop.stopped.is_set()

    def test_an_answer_that_is_cut_is_seen_to_be_cut(self, loop, enter):
        _, conn = enter(loop)
        conn.write(bytes(1 << 24))
        conn.state = FLUSHING
        resets = []
        loop.connections[conn.sock.fileno()] = SimpleNamespace(
            owned=False, state=FLUSHING, backlog=conn.backlog, close=conn.close, incoming=None,
            reset=lambda: resets.append(1),
        )
        loop._stop()
        assert resets == [1]

    def test_half_a_body_gives_its_room_back(self, loop, enter):
        client, _ = enter(loop)
        storage = loop.engine.storage
        free = storage.free("memory")
        client.send(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        loop._wait()
        loop._batch()
        assert storage.free("memory") < free
        loop._stop()
        assert storage.free("memory") == free

    def test_stopping_cuts_everybody_off(self, loop, enter, cleanup):
        (one, conn), (two, owned) = enter(loop), enter(loop)
        listener = socket.create_server(("127.0.0.1", 0))
        loop.acceptors[1] = Acceptor(loop.poller, listener, print)
        owned.owned = True
        loop.stop()
        loop.stop()  # the second letter is not read any more
        assert loop.serve() is None
        assert one.recv(1) == two.recv(1) == b""
        assert conn.sock.fileno() < 0 <= owned.sock.fileno()
        owned.close()
        assert listener.fileno() < 0
        with pytest.raises(ValueError, match="closed"):
            loop.poller.poll(0)
        loop.acceptors.clear()


class TestAnEndThatFails:
    def test_those_who_wait_for_it_are_told_all_the_same(self, run, caplog):
        group, _ = run(Gates(), clients=2)
        until(lambda: group._polling)

        def drop(conn):
            raise OSError("odd")

        group.engine.drop = drop
        group.stop()
        assert group.stopped.wait(20)
        for follower in group._everyone:
            follower.thread.join(20)
            assert not follower.thread.is_alive()
        assert "odd" in caplog.text


class TestFollower:
    def test_without_a_clock_for_threads(self, monkeypatch):
        monkeypatch.delattr(time, "pthread_getcpuclockid", raising=False)
        led = threading.Event()
        follower = Follower(SimpleNamespace(lead=lambda me: led.set()))
        follower.baton.release()
        assert led.wait(20)
        follower.thread.join(20)
        assert follower.cpu_time() == 0.0

    @pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="no such clock here")
    def test_it_leads_as_often_as_it_gets_the_baton(self):
        turns = itertools.count(1)
        led = []

        def lead(me):
            led.append(me)
            return next(turns) < 3

        follower = Follower(SimpleNamespace(lead=lead))
        for count in (1, 2, 3):
            follower.baton.release()
            until(lambda count=count: len(led) == count)
        follower.thread.join(20)
        assert led == [follower] * 3
        follower.cpu_clock = -12345678  # nobody's
        assert follower.cpu_time() == 0.0

    def test_asleep(self):
        gate = threading.Event()
        follower = Follower(SimpleNamespace(lead=lambda me: gate.wait(20) and False))
        until(follower.asleep)
        follower.baton.release()
        gate.set()
        follower.thread.join(20)
        follower.thread = SimpleNamespace(native_id="nobody")
        assert follower.asleep()

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
    def test_awake(self):
        over = threading.Event()

        def burn(me):
            while not over.is_set():
                pass
            return False

        follower = Follower(SimpleNamespace(lead=burn))
        follower.baton.release()
        until(lambda: not follower.asleep())
        over.set()
        follower.thread.join(20)


class CountingLock:
    """A lock that knows how often it was taken."""

    def __init__(self):
        self.lock, self.taken = threading.Lock(), 0

    def __enter__(self):
        self.taken += 1
        return self.lock.__enter__()

    def __exit__(self, *exception):
        return self.lock.__exit__(*exception)


class TestTheRace:
    """The end of a call and a promotion race for the record; exactly one wins."""

    def state(self, group, conn):
        return conn.owned, group._busy, len(group.calls), len(group._followers)

    def test_the_end_wins(self, rehearse, enter):
        group = rehearse()
        _, conn = enter(group)
        first, call = group.leader, object()
        group.begin(conn, call)
        group._lock = CountingLock()
        group.end(conn)
        assert group._lock.taken == 0  # a fast call takes no lock
        assert not group.promote(conn, call)
        assert self.state(group, conn) == (False, 0, 0, 2)
        assert group.leader is first

    def test_the_promotion_wins(self, rehearse, enter):
        group = rehearse()
        _, conn = enter(group)
        first, call = group.leader, object()
        group.begin(conn, call)
        assert group.promote(conn, call)
        group._lock = CountingLock()
        group.end(conn)
        assert group._lock.taken == 1  # the promotion may still be at work: wait for it
        assert self.state(group, conn) == (True, 1, 0, 1)
        assert group.leader is not first
        assert not group.leader.baton.locked()  # it may go

    def test_what_is_held_back_leaves_when_the_call_is_stuck(self, rehearse, enter):
        group = rehearse()
        client, conn = enter(group)
        conn.cork()
        conn.write(b"an answer before")
        call = object()
        group.begin(conn, call)
        assert conn.pending()
        assert group.promote(conn, call)
        assert client.recv(100) == b"an answer before"
        conn.write(b"the next")  # by the thread that was stuck: the cork is still in
        assert conn.pending() == 8
        group.begin(conn, object())  # a further call on that thread
        assert client.recv(100) == b"the next"

    def test_an_eager_thread_holds_nothing_back(self, rehearse, enter):
        group = rehearse()
        client, conn = enter(group)
        group.eager = True
        conn.cork()
        conn.write(b"an answer before")
        group.begin(conn, object())
        assert client.recv(100) == b"an answer before"

    def test_the_call_ends_while_a_thread_is_started(self, rehearse, enter, monkeypatch):
        group = rehearse()
        _, conn = enter(group)
        first, call, reserve = group.leader, object(), group._reserve

        def slowly():
            follower = reserve()
            assert group.calls.pop(conn) is call  # the end's first step
            return follower

        monkeypatch.setattr(group, "_reserve", slowly)
        group.begin(conn, call)
        assert not group.promote(conn, call)
        assert self.state(group, conn) == (False, 0, 0, 2)
        assert group.leader is first

    def test_a_later_call_is_not_promoted_for_an_earlier_one(self, rehearse, enter):
        group = rehearse()
        _, conn = enter(group)
        stuck = object()
        group.begin(conn, stuck)
        group.end(conn)
        group.begin(conn, object())
        assert not group.promote(conn, stuck)
        assert self.state(group, conn) == (False, 0, 1, 2)

    def test_the_connection_is_owned_before_the_next_one_leads(self, rehearse, enter):
        group = rehearse()
        _, conn = enter(group)
        seen = []
        follower = group._followers[-1]
        follower.baton = SimpleNamespace(
            release=lambda: seen.append((conn.owned, group._busy, group.leader is follower))
        )
        group._hand_over(conn)
        assert seen == [(True, 1, True)]

    def test_without_a_further_thread_the_call_stays_inline(self, rehearse, enter, monkeypatch):
        group = rehearse(understudies=1)
        _, conn = enter(group)

        def refuse(self):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        call = object()
        group.begin(conn, call)
        assert not group.promote(conn, call)
        assert group.calls == {conn: call}
        group.end(conn)
        group.eager = True
        group.begin(conn, call)
        assert group.calls == {conn: call}
        assert not conn.owned
        conn.write(bytes(1 << 24))
        with pytest.raises(ClientDisconnected, match="no thread"):
            group.wait_writable(conn)
        assert not conn.owned

    def test_a_connection_that_is_owned_needs_no_record(self, rehearse, enter):
        group = rehearse()
        _, conn = enter(group)
        group._hand_over(conn)
        group.begin(conn, object())
        assert not group.calls
        group.end(conn)
        assert group._busy == 1


class TestEager:
    def test_the_lead_passes_on_before_the_call(self, rehearse, enter):
        group = rehearse()
        group.eager = True
        _, conn = enter(group)
        first = group.leader
        conn.since = 0.0
        group.begin(conn, object())
        assert group.leader is not first
        assert conn.owned
        assert not group.calls
        assert conn.since > 0.0  # from here on its time is taken

    def test_it_is_left_when_few_calls_are_long(self, rehearse, enter):
        group = rehearse()
        group.eager, group.blocking = True, 1.0
        for _ in range(30):
            group._note(SHORT * 2)
        assert group.eager
        assert group.blocking > 0.9
        noted, rung = 0, []
        group.wake_monitor = lambda: rung.append(group.eager)
        while group.eager:
            group._note(SHORT / 2)
            noted += 1
            assert noted < 1000
        assert noted > 50
        assert group.blocking < FEW
        group._note(SHORT / 2)  # on a thread that began its call before
        assert rung == [False]  # the monitor has something to watch again
        assert group._mailbox == deque([(group.be_patient, False)])

    def test_calls_are_noted_as_long_as_it_lasts(self, rehearse, enter):
        group = rehearse()
        group.eager, group.blocking = True, 1.0
        _, conn = enter(group)
        group.begin(conn, object())
        conn.since = time.monotonic() + 1000  # no time at all
        group.end(conn)
        assert group.blocking < 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="a policy of Linux")
class TestPatience:
    """Threads of an eager group that wake do not push aside the one that runs."""

    @pytest.fixture
    def policies(self, monkeypatch):
        """The policies of this thread, one after the other; in truth it keeps its own."""
        policies = [os.SCHED_OTHER]

        def set_it(pid, policy, parameters):
            assert (pid, parameters.sched_priority) == (0, 0)
            policies.append(policy)

        monkeypatch.setattr(os, "sched_getscheduler", lambda pid: policies[-1])
        monkeypatch.setattr(os, "sched_setscheduler", set_it)
        return policies

    def test_it_begins_where_many_take_turns_and_ends_with_that(self, rehearse, policies):
        group = rehearse()
        group.over = True
        for eager, busy, policy in (
            (False, TURNS, os.SCHED_OTHER),
            (True, TURNS - 1, os.SCHED_OTHER),
            (True, TURNS, os.SCHED_BATCH),
            (True, TURNS + 1, os.SCHED_BATCH),
            (True, TURNS - 1, os.SCHED_OTHER),
        ):
            group.eager, group._busy = eager, busy
            group.lead(Understudy())
            assert policies[-1] == policy
        assert policies == [os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_OTHER]

    @pytest.mark.parametrize("policy", ["SCHED_FIFO", "SCHED_BATCH", "SCHED_IDLE"])
    def test_the_owner_s_policy_is_left_alone(self, rehearse, policies, policy):
        policies[0] = owner_s = getattr(os, policy)  # by name: elsewhere there are fewer
        group = rehearse()
        group.be_patient(True)
        group.be_patient(False)
        assert policies == [owner_s]

    def test_where_it_is_forbidden_there_is_none(self, rehearse, policies, monkeypatch):
        def forbidden(*arguments):
            raise PermissionError

        monkeypatch.setattr(os, "sched_setscheduler", forbidden)
        rehearse().be_patient(True)
        assert policies == [os.SCHED_OTHER]

    def test_a_leader_hears_that_it_is_over(self, rehearse, policies):
        group = rehearse()
        group.eager, group.blocking = True, FEW
        group.be_patient(True)
        group._note(0.0)
        assert not group.eager
        assert policies[-1] == os.SCHED_BATCH  # a thread can speak for itself only
        deliver(group)
        assert policies[-1] == os.SCHED_OTHER

    def test_who_goes_away_for_long_is_not(self, rehearse, policies, enter):
        group = rehearse()
        _, conn = enter(group)
        group._hand_over(conn)
        group.be_patient(True)
        assert group.excuse(conn)
        assert policies[-1] == os.SCHED_OTHER

    def test_the_system_takes_it(self, rehearse):
        found, group = [], rehearse()

        def thread():
            for patient in (True, False):
                group.be_patient(patient)
                found.append(os.sched_getscheduler(0))

        other = threading.Thread(target=thread)
        other.start()
        other.join()
        assert found == [os.SCHED_BATCH, os.SCHED_OTHER]
        assert os.sched_getscheduler(0) == os.SCHED_OTHER  # it is a matter of one thread


class TestTheLeadThatLies:
    """The last thread that may go into a call leaves the lead to whoever comes back first."""

    @pytest.fixture
    def lying(self, rehearse, enter):
        """A full group without a leader, and the two connections whose calls are under way."""
        group = rehearse(max_threads=2)
        group.eager, group.blocking, group.duration = True, 1.0, 0.9 * SOON
        conns = [enter(group)[1] for _ in range(2)]
        first = group.leader
        group.begin(conns[0], object())
        second = group.leader
        assert second is not None
        group.begin(conns[1], object())
        return group, {conns[0]: first, conns[1]: second}

    def test_the_last_one_wakes_nobody(self, lying):
        group, owners = lying
        assert group.leader is None
        assert (group._busy, group.full, len(group._followers)) == (2, True, 1)
        assert all(conn.owned for conn in owners)
        assert group._followers[0].baton.locked()

    def test_whoever_comes_back_first_takes_it(self, lying):
        group, owners = lying
        conn, me = owners.popitem()
        me.baton.acquire(blocking=False)
        assert group._give_back(conn, me)
        assert group.leader is me
        assert not me.baton.locked()  # it goes on at once
        assert (group._busy, group.full, len(group._followers)) == (1, False, 1)
        conn, other = owners.popitem()
        assert group._give_back(conn, other)
        assert group.leader is me
        assert group._followers[-1] is other

    def test_it_goes_on_with_the_batch(self, run):
        """Nobody but those who come back could have served the others."""
        app = Gates()
        group, clients = run(app, clients=8, max_threads=2)
        group.eager, group._note = True, lambda took: None
        group.duration, group.appoint = 0.0, lambda: None
        for number, client in enumerate(clients):
            client.send(requests(f"/{number}", "/behind"))
        assert [bodies(client, 2) for client in clients] == [
            [f"/{number}", "/behind"] for number in range(8)
        ]
        group.appoint = partial(LeaderFollowers.appoint, group)

    @pytest.mark.parametrize("duration", [1.1 * SOON, 0.1, 1.0])
    def test_where_nobody_is_expected_soon_a_follower_leads(self, rehearse, enter, duration):
        group = rehearse(max_threads=2)
        group.eager, group.duration = True, duration
        for _ in range(2):
            group.begin(enter(group)[1], object())
        assert group.leader is not None
        assert group.full

    def test_a_single_thread_leaves_it_to_nobody(self, rehearse, enter):
        group = rehearse(max_threads=1)
        group.eager, group.duration = True, 0.0
        group.begin(enter(group)[1], object())
        assert group.leader is not None
        assert group.full

    def test_who_goes_away_for_long_leaves_it_to_a_follower(self, rehearse, enter):
        """To a hijacked connection, or into the wait for a slow client."""
        group = rehearse(max_threads=1, understudies=3)
        group.duration = 0.0
        conns = [enter(group)[1] for _ in range(2)]
        group.begin(conns[0], object())
        assert group.excuse(conns[0])
        assert group.leader is not None
        group.begin(conns[1], object())
        group.wait_writable(conns[1])
        assert group.leader is not None

    def test_where_all_who_were_expected_leave_somebody_is_appointed(self, lying):
        """They all hijack: nobody comes back, and soon nobody is in a call."""
        group, owners = lying
        for conn in owners:
            assert group.excuse(conn)
        assert group._busy == 0
        assert group.leader is not None
        assert not group.leader.baton.locked()

    def test_it_does_not_lie_while_there_is_mail(self, rehearse, enter):
        """It may be the order to stop, and nobody minds who leads behind that."""
        group = rehearse(max_threads=2)
        group.eager, group.duration = True, 0.0
        group.begin(enter(group)[1], object())
        group.stop()
        group.begin(enter(group)[1], object())
        assert group.leader is not None
        assert group.full

    def test_how_long_calls_take_is_learnt_from_those_that_end(self, rehearse):
        group = rehearse()
        assert group.duration == 1.0  # nothing is known, and nobody expected
        for _ in range(500):
            group._note(0.001)
        assert 0.001 < group.duration < 0.002
        group._note(1.0)
        assert group.duration > 0.015

    def test_the_monitor_lets_somebody_lead_at_its_second_look(self, lying):
        group, _ = lying
        watch = Watch(group)
        spare = group._followers[0]
        assert watch.look(100.0)  # something to see, so it stays awake
        assert group.leader is None
        watch.look(100.1)
        assert group.leader is spare
        assert not spare.baton.locked()
        assert group._busy == 2

    def test_it_is_no_second_look_if_somebody_has_led_meanwhile(self, lying):
        """In a full group nobody leads for half of the time, and for a moment each."""
        group, owners = lying
        watch = Watch(group)
        for now in range(100, 105):
            watch.look(now)
            assert group.leader is None
            conn, me = owners.popitem()
            me.baton.acquire(blocking=False)
            group._give_back(conn, me)
            owners[conn] = me
            group.begin(conn, object())

    def test_it_wakes_a_monitor_that_sleeps(self, rehearse, enter):
        group = rehearse(max_threads=2)
        group.eager, group.duration, rung = True, 0.0, []
        group.wake_monitor = lambda: rung.append(group.leader)
        group.monitor_parked = True
        group.begin(enter(group)[1], object())
        assert rung == []
        group.begin(enter(group)[1], object())
        assert rung == [None]
        assert not group.monitor_parked

    def test_a_monitor_that_lies_down_sees_it(self, lying):
        group, _ = lying
        monitor = Monitor([group])
        monitor._bell = bell = FakeBell()
        monitor._park()
        assert bell.sleeps == []

    def test_nobody_is_appointed_where_somebody_leads(self, lying):
        group, owners = lying
        for conn, me in owners.items():
            me.baton.acquire(blocking=False)
            group._give_back(conn, me)
        leader, waiting = group.leader, [*group._followers]
        group.appoint()
        assert (group.leader, group._followers) == (leader, waiting)

    @pytest.mark.parametrize("over", [True, False])
    def test_nobody_is_appointed_before_the_beginning_and_after_the_end(self, rehearse, over):
        group = rehearse()
        group.leader, group.over = None, over
        if not over:
            group._everyone = []
        group.appoint()
        assert group.leader is None

    def test_where_no_thread_can_be_had_it_goes_on_lying(self, lying):
        group, _ = lying
        group._reserve = lambda: None
        group.appoint()
        assert group.leader is None

    def test_the_hard_stop_does_not_wait_for_those_who_are_away(self, run):
        app = Gates("/a", "/b")
        group, clients = run(app, clients=3, max_threads=2)
        group.eager, group._note, group.duration = True, lambda took: None, 0.0
        for client, path in zip(clients, ("/a", "/b"), strict=False):
            client.send(requests(path))
        until(lambda: group._busy == 2 and group.leader is None)
        group.stop()
        assert group.stopped.wait(10)  # the handlers wait for twice as long
        assert clients[2].recv(1) == b""
        app.open()


    def test_those_who_all_hijack_do_not_take_the_lead_with_them(self, run):
        gate = Gates("/wait")

        def app(environ, start_response):
            conn = environ["hop.response"].conn
            answer = gate(environ, start_response)
            if environ["PATH_INFO"] == "/wait":
                assert conn.loop.excuse(conn)
                conn.loop.welcome_back(conn)
            return answer

        app.open = gate.open
        group, clients = run(app, clients=3, max_threads=2)
        group.eager, group._note, group.duration = True, lambda took: None, 0.0
        for client in clients[:2]:
            client.send(requests("/wait"))
        until(lambda: group._busy == 2 and group.leader is None)
        clients[2].send(requests("/quick"))
        gate.open()
        assert bodies(clients[2], 1) == ["/quick"]


class TestThereAndBack:
    @pytest.mark.parametrize("silence_first", [True, False])
    def test_silence_and_return_in_both_orders(self, rehearse, enter, silence_first):
        group = rehearse()
        client, conn = enter(group)
        me = group.leader
        group._hand_over(conn)
        steps = [lambda: group._silence(conn), lambda: group._give_back(conn, me)]
        for step in steps if silence_first else reversed(steps):
            step()
        deliver(group)
        client.send(b"x")
        assert reported(group) == [(conn.sock.fileno(), READ)]
        assert not conn.owned
        assert group._busy == 0

    def test_given_back_in_the_middle_of_the_silence(self, rehearse, enter, monkeypatch):
        """The owner returns it when it was silenced already, and the leader looks again."""
        group = rehearse()
        client, conn = enter(group)
        me, watch = group.leader, group._watch
        group._hand_over(conn)

        def interrupted(conn, interest):
            if interest == 0:
                conn.owned = False  # the owner saw the old interest: it posts nothing
            watch(conn, interest)

        monkeypatch.setattr(group, "_watch", interrupted)
        group._silence(conn)
        client.send(b"x")
        assert reported(group) == [(conn.sock.fileno(), READ)]
        assert me is not group.leader

    def test_an_ordinary_return_needs_no_letter(self, rehearse, enter):
        group = rehearse()
        _, conn = enter(group)
        me = group.leader
        group._hand_over(conn)
        group._give_back(conn, me)
        assert not group._mailbox
        assert group._reserve() is me  # the last one in is the first one out

    @pytest.mark.parametrize("state", [FLUSHING, HEAD, CLOSED])
    def test_what_is_not_at_rest_is_settled_by_the_leader(self, rehearse, enter, state):
        group = rehearse()
        _, conn = enter(group)
        me = group.leader
        group._hand_over(conn)
        conn.state = state
        group._give_back(conn, me)
        deliver(group)
        if state == CLOSED:
            assert group._freed == [conn]
        else:
            assert conn.interest == (WRITE if state == FLUSHING else READ)

    def test_what_was_read_already_is_served_before_anything_new(self, rehearse, enter):
        group = rehearse()
        _, conn = enter(group)
        me = group.leader
        group._hand_over(conn)
        conn.incoming = requests("/left")
        group._give_back(conn, me)
        deliver(group)
        assert group._again == [conn]

    def test_who_comes_back_makes_room_for_the_parked(self, rehearse, enter):
        group = rehearse(max_threads=1)
        (_, slow), (client, parked) = enter(group), enter(group)
        me = group.leader
        group._hand_over(slow)
        assert group.full
        client.send(requests("/x"))
        group._serve(parked)
        assert parked.interest == 0
        group._give_back(slow, me)
        assert not group.full
        deliver(group)
        group._serve(parked)
        assert bodies(client, 1) == ["/x"]

    def test_who_comes_back_after_the_end_closes_its_connection(self, rehearse, enter):
        group = rehearse()
        _, conn = enter(group)
        me = group.leader
        group._hand_over(conn)
        waiting = [*group._followers]
        group._stop()
        assert conn.sock.fileno() >= 0  # the owner's
        assert not any(follower.baton.locked() for follower in waiting)
        assert not group._give_back(conn, me)
        assert conn.sock.fileno() < 0
        assert not group._followers

    def lend(self, group, enter):
        """A call that is excused: its connection, and the thread that has it."""
        _, conn = enter(group)
        me = group.leader
        group.begin(conn, object())
        assert group.excuse(conn)
        return conn, me

    def bring_back(self, group, conn, me):
        """Whether the thread of an excused call stays."""
        group.welcome_back(conn)
        return group._give_back(conn, me)

    def test_a_lent_thread_that_comes_back_makes_no_room(self, rehearse, enter):
        """It counts again before it stops counting: who blocks meanwhile still takes the room."""
        group = rehearse(understudies=4, max_threads=1)
        lent = self.lend(group, enter)
        _, blocked = enter(group)
        group.begin(blocked, call := object())
        assert group.promote(blocked, call)
        assert (group._busy, group.full) == (1, True)
        self.bring_back(group, *lent)
        assert (group._busy, group.full) == (1, True)
        assert self.lend(group, enter)
        assert (group._busy, group.full) == (1, True)

    def test_there_is_room_for_as_many_as_there_are_threads(self, rehearse, enter):
        group = rehearse(understudies=4, max_threads=3)
        pairs = [enter(group) for _ in range(4)]
        for _, conn in pairs:
            group._park(conn)
        assert len(group._unpark()) == 3
        group._hand_over(pairs[0][1])
        assert len(group._unpark()) == 2
        for _ in range(3):  # lent threads that come back, and have not stopped counting yet
            group.welcome_back(pairs[0][1])
        assert group._room() < 0
        assert group._unpark() == []

    def test_who_comes_back_at_rest_while_the_group_drains_is_closed(self, rehearse, enter):
        group = rehearse()
        _, conn = enter(group)
        me = group.leader
        group._hand_over(conn)
        group._drain(None)
        group._give_back(conn, me)
        deliver(group)
        assert group._again == [conn]

    def test_of_the_lent_threads_only_those_stay_that_can_be_of_use(self, rehearse, enter):
        group = rehearse(understudies=5, max_threads=2)
        lent = [self.lend(group, enter) for _ in range(4)]
        assert not group._followers
        assert [self.bring_back(group, *each) for each in lent] == [True, True, False, False]
        (_, first), (_, second), *_ = lent
        assert group._followers == [first, second]
        assert set(group._everyone) == {group.leader, first, second}
        assert group.stuck() == []
        assert (group._busy, group.full) == (0, False)
        assert not any(conn.owned for conn, _ in lent)

    def test_whoever_is_in_a_call_will_want_the_place_in_the_line(self, rehearse, enter):
        group = rehearse(understudies=4, max_threads=2)
        _, slow = enter(group)
        me = group.leader
        group._hand_over(slow)
        lent = [self.lend(group, enter) for _ in range(2)]
        assert [self.bring_back(group, *each) for each in lent] == [True, False]
        assert group.stuck() == [me.thread]
        assert group._give_back(slow, me)
        assert group._followers == [lent[0][1], me]
        assert len(group._everyone) == 3

    def test_a_connection_of_a_thread_that_ends_is_settled_all_the_same(self, rehearse, enter):
        group = rehearse(understudies=3, max_threads=1)
        lent = [self.lend(group, enter) for _ in range(2)]
        last, me = lent[1]
        last.state = CLOSED
        _, parked = enter(group)
        group._parked[parked] = None
        group._polling = True
        assert [self.bring_back(group, *each) for each in lent] == [True, False]
        assert me not in group._everyone
        assert group.poller._wake_pending.locked()
        deliver(group)
        assert group._freed == [last]

    def test_who_stays_is_sent_home_by_the_stop(self, rehearse, enter):
        group = rehearse()
        conn, me = self.lend(group, enter)
        assert self.bring_back(group, conn, me)
        group._stop()
        assert not me.baton.locked()
        assert not group.lead(me)

    def test_who_comes_back_behind_the_stop_ends(self, rehearse, enter):
        group = rehearse()
        conn, me = self.lend(group, enter)
        group._stop()
        assert not self.bring_back(group, conn, me)
        assert not group._followers


class TestThreads:
    def promote(self, group):
        until(lambda: group.calls)
        [(conn, call)] = group.calls.items()
        assert group.promote(conn, call)

    def test_a_stuck_handler_is_in_nobodys_way(self, run):
        app = Gates("/slow")
        group, (slow, *others) = run(app, clients=4)
        slow.send(requests("/slow", "/behind"))
        self.promote(group)
        for client in others:
            client.send(requests("/quick"))
        assert [bodies(client, 1) for client in others] == [["/quick"]] * 3
        until(lambda: group.stuck() == app.threads["/slow"])
        app.open()
        assert bodies(slow, 2) == ["/slow", "/behind"]
        assert app.threads["/behind"] == app.threads["/slow"]  # the same thread, in order
        until(lambda: not group._busy)
        assert group.stuck() == []

    def test_a_fast_load_costs_no_thread_beyond_the_first_two(self, run):
        app = Gates()
        group, clients = run(app, clients=20)
        for _ in range(10):
            for client in clients:
                client.send(requests("/x"))
            for client in clients:
                assert bodies(client, 1) == ["/x"]
        assert len(group._everyone) == 2
        assert len(set(app.threads["/x"])) == 1

    def test_threads_that_were_lent_end_when_they_are_back(self, run, cleanup):
        """Thirty excused calls at a time, three times, in a group of two: three threads stay."""
        came, gate = threading.Semaphore(0), threading.Event()
        cleanup.callback(gate.set)

        def app(environ, start_response):
            conn = next(c for c in group.connections.values() if c in group.calls)
            assert group.excuse(conn)
            came.release()
            assert gate.wait(20)
            group.welcome_back(conn)
            start_response("200 OK", [])
            return [environ["PATH_INFO"].encode()]

        group, clients = run(app, clients=30, max_threads=2)
        for _ in range(3):
            gate.clear()
            for client in clients:
                client.send(requests("/x"))
                assert came.acquire(timeout=20)
            threads = [follower.thread for follower in group._everyone]
            assert len(threads) == 31
            gate.set()
            assert [bodies(client, 1) for client in clients] == [["/x"]] * 30
            until(lambda threads=threads: sum(thread.is_alive() for thread in threads) == 3)
            assert len(group._everyone) == 3
            until(lambda: not group.stuck())  # the last ones are on their way back

    def test_the_leader_is_among_the_stuck_while_it_is_in_a_call(self, run):
        app = Gates("/slow")
        group, (slow,) = run(app, clients=1)
        slow.send(requests("/slow"))
        until(lambda: group.calls)
        until(lambda: app.threads)
        assert group.stuck() == app.threads["/slow"]

    def test_at_max_threads_a_leader_remains_that_begins_no_call(self, run):
        app = Gates("/a", "/b")
        group, (a, b, *others) = run(app, clients=5, max_threads=2)
        for client, path in ((a, "/a"), (b, "/b")):
            client.send(requests(path))
            self.promote(group)
        for client in others:
            client.send(requests("/later"))
        until(lambda: len(group._parked) == 3)
        assert len(group._everyone) == 3
        assert "/later" not in app.threads
        app.open("/a")
        assert [bodies(client, 1) for client in others] == [["/later"]] * 3
        app.open("/b")
        assert (bodies(a, 1), bodies(b, 1)) == (["/a"], ["/b"])

    def test_one_thread_at_most_is_enough(self, run):
        app = Gates("/slow")
        group, (slow, other) = run(app, clients=2, max_threads=1)
        slow.send(requests("/slow"))
        self.promote(group)
        other.send(requests("/x"))
        until(lambda: group._parked)
        app.open()
        assert (bodies(slow, 1), bodies(other, 1)) == (["/slow"], ["/x"])

    def test_draining_waits_for_the_parked(self, run):
        app = Gates("/slow")
        group, (slow, parked) = run(app, clients=2, max_threads=1)
        slow.send(requests("/slow"))
        self.promote(group)
        parked.send(requests("/x"))
        until(lambda: group._parked)
        group.drain()
        until(lambda: group.draining)
        app.open()
        assert bodies(slow, 1) == ["/slow"]
        assert bodies(parked, 1) == ["/x"]
        for client in (slow, parked):
            assert client.recv(1) == b""
            client.close()
        assert group.stopped.wait(20)

    def test_a_generator_keeps_its_thread_while_its_client_is_slow(self, run):
        threads = []

        def app(environ, start_response):
            start_response("200 OK", [])
            if environ["PATH_INFO"] == "/quick":
                return [b"quick"]

            def parts():
                for _ in range(64):
                    threads.append(threading.current_thread())
                    yield bytes(1 << 17)

            return parts()

        group, (reader, other) = run(app, clients=2, max_unsent=1 << 17)
        reader.send(requests("/parts"))
        until(lambda: group._busy)
        other.send(requests("/quick"))
        data = other.recv(65536)
        while not data.endswith(b"quick") and b"0\r\n\r\n" not in data:
            data += other.recv(65536)
        assert len(threads) < 64
        size = 0
        while size < 64 << 17:
            size += len(reader.recv(1 << 20))
        until(lambda: not group._busy)
        assert len(threads) == 64
        assert len(set(threads)) == 1

    def test_stopping_leaves_stuck_threads_to_themselves(self, run):
        app = Gates("/slow")
        group, (slow, idle) = run(app, clients=2)
        slow.send(requests("/slow"))
        self.promote(group)
        [conn] = [conn for conn in group.connections.values() if conn.owned]
        group.stop()
        assert group.stopped.wait(20)
        assert slow.recv(1) == idle.recv(1) == b""
        assert conn.sock.fileno() >= 0
        app.open()
        until(lambda: conn.sock.fileno() < 0)

    def test_an_error_in_the_loop_does_not_lose_the_lead(self, run, caplog):
        app = Gates()
        group, (client,) = run(app, clients=1)
        group.post(lambda _: 1 / 0)
        until(lambda: "which goes on" in caplog.text)
        client.send(requests("/x"))
        assert bodies(client, 1) == ["/x"]

    def test_eager_threads_answer_like_the_others(self, run):
        app = Gates("/slow")

        class Eager(LeaderFollowers):
            def _note(self, took):
                pass

        group, (slow, other) = run(app, clients=2, kind=Eager)
        group.eager = True
        slow.send(requests("/slow", "/behind"))
        until(lambda: group._busy)
        for _ in range(50):
            other.send(requests("/x"))
            assert bodies(other, 1) == ["/x"]
        app.open()
        assert bodies(slow, 2) == ["/slow", "/behind"]
        assert len(group._everyone) <= 4

    def test_the_monitor_pulls_the_lever(self, run):
        app = Gates("/slow")
        group, ends = run(app, monitor=True, clients=12)
        for end in ends[:4]:
            end.send(requests("/slow"))
        for end in ends[4:]:
            end.send(requests("/quick"))
        assert [bodies(end, 1) for end in ends[4:]] == [["/quick"]] * 8
        until(lambda: group._busy == 4)
        app.open()
        assert [bodies(end, 1) for end in ends[:4]] == [["/slow"]] * 4


class Watched:
    """A group as a watch sees it, and the hands of its clocks."""

    def __init__(self, rehearse, enter):
        self.group = rehearse(understudies=12)
        self.enter = enter
        self.now = 100.0
        self.spent = 5.0
        self.watch = Watch(self.group, process_time=lambda: self.spent)
        self.conn = None

    def call(self):
        """A new call on a new connection, in place of the present one."""
        self.group.calls.clear()
        _, self.conn = self.enter(self.group)
        self.group.begin(self.conn, object())

    def look(self, seconds=REST, cpu=0.0, others=0.0):
        """Let time pass, and the CPU clocks of the leader and of others run; then look."""
        self.now += seconds
        self.spent += cpu + others
        if self.group.leader is not None:
            self.group.leader.cpu += cpu
        return self.watch.look(self.now)


@pytest.fixture
def watched(rehearse, enter):
    return Watched(rehearse, enter)


class TestJudging:
    def test_without_a_leader_or_a_call_there_is_nothing_to_see(self, watched):
        assert not watched.look()
        watched.group.eager = True
        assert not watched.look()
        assert not watched.watch.promoted

    def test_a_call_that_blocks_is_promoted_at_the_second_look(self, watched):
        watched.call()
        assert watched.look()
        assert not watched.conn.owned
        assert watched.look()
        assert watched.conn.owned
        assert watched.watch.promoted

    def test_short_calls_are_left_alone(self, watched):
        for _ in range(5):
            watched.call()
            assert watched.look()
            assert not watched.conn.owned

    def test_two_calls_of_one_connection_are_two(self, watched):
        watched.call()
        watched.look()
        watched.group.end(watched.conn)
        watched.group.begin(watched.conn, object())
        watched.look()
        assert not watched.conn.owned

    def test_a_leader_that_waits_for_a_processor_keeps_the_lead(self, watched):
        watched.call()
        watched.group.leader.sleeping = False
        for _ in range(10):
            watched.look(sys.getswitchinterval() / 2)
        assert not watched.conn.owned
        watched.group.leader.sleeping = True
        watched.look()
        assert watched.conn.owned

    def test_a_burner_is_promoted_after_some_switch_intervals(self, watched):
        interval = sys.getswitchinterval()
        watched.call()
        watched.look()
        for _ in range(BURN):
            watched.look(interval * 0.99, interval * 0.99)
            assert not watched.conn.owned
        watched.look(interval, interval)
        assert watched.conn.owned
        assert not watched.watch.promoted  # nothing has blocked: no reason to look more often

    @pytest.fixture(autouse=True)
    def interval(self):
        before = sys.getswitchinterval()
        sys.setswitchinterval(0.0005)  # ten of them are well below FORBEARANCE
        yield
        sys.setswitchinterval(before)

    def test_a_burner_with_little_of_a_processor_is_one_all_the_same(self, watched):
        interval = sys.getswitchinterval()
        watched.call()
        watched.group.leader.sleeping = False
        watched.look()
        for _ in range(BURN):
            watched.look(interval * 0.99, interval / 4)
            assert not watched.conn.owned
        watched.look(interval, interval / 4)
        assert watched.conn.owned

    def burn(self, watched):
        """A new call burns for long; whether it lost the lead."""
        watched.call()
        for _ in range(3):
            watched.look(BURN * sys.getswitchinterval(), BURN * sys.getswitchinterval())
        return watched.conn.owned

    def test_burners_are_bounded(self, watched):
        burners = []
        for _ in range(BURNERS):
            assert self.burn(watched)
            burners.append(watched.conn)
        assert not self.burn(watched)
        burners[0].owned = False  # one has come to its end
        watched.look(0.001, 0.001)
        assert watched.conn.owned

    def test_a_burner_too_many_is_let_go_after_some_time(self, watched):
        for _ in range(BURNERS):
            assert self.burn(watched)
        watched.call()
        watched.look()
        for _ in range(10):
            watched.look(FORBEARANCE / 11, FORBEARANCE / 11)
            assert not watched.conn.owned
        watched.look(FORBEARANCE / 5, FORBEARANCE / 5)
        assert watched.conn.owned

    def test_a_burner_that_nobody_can_relieve_is_no_burner(self, watched, monkeypatch):
        monkeypatch.setattr(watched.group, "promote", lambda conn, call: False)
        assert not self.burn(watched)
        assert watched.watch._burners == []


class TestCompany:
    """Others compute beside the leader: it keeps the interpreter's lock in its calls."""

    @pytest.fixture
    def beside(self, watched):
        """In a call, beside somebody who computes."""
        watched.look()
        watched.call()
        watched.look(REST, 0.0, REST)
        assert watched.group.keeping is not None
        return watched

    @pytest.mark.parametrize("cpu", [0.0, REST / 2, REST])
    def test_a_quarter_of_the_time_is_enough(self, watched, cpu):
        watched.look()
        watched.look(REST, cpu, REST * COMPANY * 0.99)
        assert watched.group.keeping is None
        watched.look(REST, cpu, REST * COMPANY * 1.01)
        assert watched.group.keeping is not None
        watched.look(REST, cpu, REST * COMPANY * 0.99)
        assert watched.group.keeping is None

    def test_an_eager_group_has_none(self, beside):
        beside.group.eager = True
        beside.look(REST, 0.0, REST)
        assert beside.group.keeping is None

    def test_nor_one_that_has_become_eager_and_has_no_calls(self, beside):
        beside.group.eager = True
        beside.group.calls.clear()
        beside.look(REST, 0.0, REST)
        assert beside.group.keeping is None

    def test_a_new_leader_says_nothing_until_the_next_look(self, beside):
        beside.group.promote(beside.conn, beside.group.calls[beside.conn])
        beside.group.leader.cpu = 50.0
        beside.look()
        assert beside.group.keeping is not None
        beside.look()
        assert beside.group.keeping is None

    def test_whoever_waits_for_the_lock_loses_the_lead_and_has_not_blocked(self, beside):
        beside.group.leader.sleeping = False  # nobody asks
        beside.look(REST, REST / 4, REST)
        assert beside.conn.owned
        assert not beside.watch.promoted
        assert beside.group.blocking == 0.0

    def test_who_has_the_lock_keeps_the_lead(self, beside):
        beside.look(REST / 4, REST / 4, REST)
        assert not beside.conn.owned

    def test_a_group_whose_calls_block_becomes_eager(self, beside):
        beside.group.leader.sleeping = False  # nobody asks
        looks = 0
        while not beside.group.eager:
            beside.call()
            beside.look(REST, 0.0, REST)
            looks += 1
            assert looks < 100
        beside.look(REST, 0.0, REST)
        assert beside.group.keeping is None

    def test_one_whose_calls_wait_for_their_turn_does_not(self, beside):
        for _ in range(100):
            beside.call()
            beside.look(REST, REST / 9, REST)
        assert not beside.group.eager
        assert beside.group.blocking == 0.0

    def test_a_leader_whose_clock_cannot_be_read_has_none(self, watched):
        watched.group.leader.cpu = 0.0
        watched.look()
        watched.look(REST, 0.0, REST)
        assert watched.group.keeping is None

    def test_beside_a_thread_that_computes(self, run):
        group, (end,) = run(Gates(), monitor=True, clients=1)
        over = threading.Event()

        def burn():
            while not over.is_set():
                pass

        def asked():
            end.send(requests("/quick"))
            assert bodies(end, 1) == ["/quick"]

        burner = threading.Thread(target=burn)
        burner.start()
        try:
            until(lambda: asked() or group.keeping is not None)
        finally:
            over.set()
            burner.join()
        until(lambda: asked() or group.keeping is None)


class TestEstimate:
    def test_many_that_block_make_it_eager(self, watched):
        looks = 0
        while not watched.group.eager:
            watched.call()
            watched.look()
            looks += 1
            assert looks < 100
        assert looks == 12
        assert watched.group.blocking == 1.0
        watched.group.calls.clear()
        assert not watched.look()  # the monitor has nothing to see now
        assert not watched.watch.promoted

    def test_a_call_that_began_before_it_went_eager_loses_the_lead_all_the_same(self, watched):
        while not watched.group.eager:
            watched.call()
            watched.look()
        assert not watched.conn.owned
        assert watched.look()
        assert watched.conn.owned
        assert not watched.look()

    def test_work_speaks_against_it(self, watched):
        for number in range(200):
            watched.call()
            watched.look(REST, REST if number % 3 else 0.0)
        assert not watched.group.eager
        assert 0.2 < watched.group.blocking < MANY

    def test_silence_says_nothing(self, watched):
        watched.group.blocking = 0.5
        for _ in range(20):
            watched.look()
        assert watched.group.blocking == 0.5
        watched.call()
        watched.look()  # in a call, but not at the last look
        assert watched.group.blocking == 0.5

    def test_who_waits_for_a_processor_says_nothing(self, watched):
        watched.group.leader.sleeping = False
        for _ in range(20):
            watched.call()
            watched.look()
        assert watched.group.blocking == 0.0

    def test_a_promotion_counts_as_blocked(self, watched):
        watched.look()
        watched.call()
        watched.look()
        watched.look()
        assert watched.watch.promoted
        before = watched.group.blocking
        watched.look()
        assert watched.group.blocking > before

    def test_a_lead_that_was_handed_over_says_nothing(self, watched):
        watched.look()
        watched.call()
        watched.group.calls.clear()
        watched.group._hand_over(watched.conn)
        watched.look()
        assert watched.group.blocking == 0.0


class FakeBell:
    """Notes how long it would have slept; does something at each sleep, False: nobody rang."""

    def __init__(self, then=lambda: None):
        self.sleeps, self.then, self.rung = [], then, 0

    def acquire(self, timeout=None):
        self.sleeps.append(timeout)
        return self.then() is not False

    def release(self):
        self.rung += 1


class TestMonitor:
    def test_the_quantum_is_halved_by_promotions_and_doubled_in_peace(self, rehearse, enter):
        clock, group = Clock(), rehearse(understudies=12)
        monitor = Monitor([group], clock=clock)
        quanta = []
        for _ in range(6):
            _, conn = enter(group)
            group.begin(conn, object())
            for _ in range(2):
                clock.now += monitor.quantum
                assert monitor.look()
            quanta.append(monitor.quantum)
        assert quanta[:3] == [REST / 2, REST / 4, REST / 8]
        assert quanta[-1] == SHORTEST
        for _ in range(9):
            clock.now += CALM * 0.6
            assert not monitor.look()
            quanta.append(monitor.quantum)
        assert quanta[-9:-5] == [SHORTEST, SHORTEST * 2, SHORTEST * 2, SHORTEST * 4]
        assert quanta[-1] == PEACE * 0.8
        for _ in range(2):
            clock.now += CALM * 1.1
            monitor.look()
            assert monitor.quantum == PEACE

    def test_a_call_that_is_seen_ends_the_peace(self, rehearse, enter):
        clock, group = Clock(), rehearse()
        monitor = Monitor([group], clock=clock)
        for _ in range(2):
            clock.now += CALM * 1.1
            monitor.look()
        assert monitor.quantum == PEACE
        _, conn = enter(group)
        for _ in range(3):  # nor does it come back while calls are seen
            group.begin(conn, object())
            clock.now += CALM * 1.1
            assert monitor.look()
            assert monitor.quantum == REST
            group.end(conn)

    def test_it_is_drowsy_before_it_parks(self, rehearse):
        group = rehearse()
        monitor = Monitor([group])
        rounds = itertools.count()
        monitor._bell = bell = FakeBell(lambda: bell.sleeps[-1] == NAP)  # rung when it is parked
        monitor.run(lambda: next(rounds) == QUIET + 1, lambda: True)
        assert bell.sleeps[: DROWSY - 1] == [REST] * (DROWSY - 1)
        assert bell.sleeps[DROWSY - 1 : QUIET - 1] == [LONG] * (QUIET - DROWSY)
        assert bell.sleeps[QUIET - 1 :] == [NAP, REST]  # parked; and awake again

    def test_a_call_keeps_it_awake(self, rehearse, enter):
        group = rehearse()
        _, conn = enter(group)
        group.leader.sleeping = False
        group.begin(conn, object())
        monitor = Monitor([group])
        rounds = itertools.count()
        monitor._bell = bell = FakeBell()
        monitor.run(lambda: next(rounds) == QUIET + 10, lambda: True)
        assert bell.sleeps == [DOUBT] + [REST] * (QUIET + 9)

    def test_a_call_that_is_seen_for_the_first_time_is_looked_at_again_soon(self, rehearse, enter):
        clock, group = Clock(), rehearse()
        group.leader.cpu = 0.0  # so nobody can tell whether there is company
        _, conn = enter(group)
        monitor = Monitor([group], clock=clock)
        rounds = itertools.count()

        def then():
            clock.now += bell.sleeps[-1]
            if len(bell.sleeps) == 3:
                group.begin(conn, object())
            return False

        monitor._bell = bell = FakeBell(then)
        monitor.run(lambda: next(rounds) == 6, lambda: True)
        # nothing; a call that is new, and asleep at the second look; a calm group again
        assert bell.sleeps[2:5] == [REST, DOUBT, REST / 2]
        assert conn.owned

    def test_a_new_call_is_in_doubt_but_never_two_looks_in_a_row(self, rehearse, enter):
        group = rehearse()
        _, conn = enter(group)
        group.leader.sleeping = False
        watch, seen = Watch(group), []
        for call in ("a", "a", "a", "b", None, "b", "c", "d"):
            group.calls = {conn: call} if call else {}
            watch.look(100.0)
            seen.append(watch.doubtful)
        assert seen == [True, False, False, True, False, True, False, True]
        group.calls, group.eager = {}, True
        watch.doubtful = True
        watch.look(100.0)
        assert not watch.doubtful

    def test_it_does_not_park_when_it_may_not(self, rehearse):
        group = rehearse()
        monitor = Monitor([group])
        rounds = itertools.count()
        monitor._bell = bell = FakeBell(lambda: False)
        monitor.run(lambda: next(rounds) == QUIET + 10, lambda: False)
        assert bell.sleeps[-10:] == [LONG] * 10

    def test_who_rings_wakes_it_up_for_good(self, rehearse):
        group = rehearse()
        monitor = Monitor([group])
        rounds = itertools.count()
        monitor._bell = bell = FakeBell(lambda: len(bell.sleeps) == DROWSY + 2)
        monitor.run(lambda: next(rounds) == DROWSY + 3, lambda: False)
        assert bell.sleeps[DROWSY - 1 :] == [LONG, LONG, LONG, REST]

    def test_many_requests_keep_it_awake_though_no_call_is_seen(self, rehearse):
        clock, group = Clock(), rehearse()
        monitor = Monitor([group], clock=clock)
        assert not monitor.look()
        for more, busy in ((0, False), (BUSY, False), (BUSY + 1, True), (0, False)):
            group.engine.requests += more
            clock.now += 1.0
            assert monitor.look() is busy

    def test_a_call_wakes_it(self, rehearse, enter):
        group = rehearse()
        (_, conn), monitor = enter(group), Monitor([group])
        naps = itertools.count()
        bell = FakeBell(then=lambda: next(naps) > 0 and group.begin(conn, object()))
        monitor._bell = bell
        monitor._park()
        assert bell.sleeps == [NAP, NAP]  # no sleep is without an end: a signal may have come
        assert bell.rung == 1
        group.begin(conn, object())  # awake: no further ring
        assert bell.rung == 1

    def test_a_call_that_begins_while_it_lies_down_keeps_it_up(self, rehearse, enter):
        """Both publish, then look: the call begins just before the monitor shows its flag."""
        group = rehearse()
        (_, conn), monitor = enter(group), Monitor([group])
        monitor._bell = bell = FakeBell()

        class Flag:
            def __set__(self, instance, value):
                if value and not group.calls:
                    group.calls[conn] = object()

        group.__class__ = type("Interrupted", (LeaderFollowers,), {"monitor_parked": Flag()})
        monitor._park()
        group.__class__ = LeaderFollowers
        assert bell.sleeps == []

    def test_a_wake_up_before_the_sleep_is_kept_and_two_are_one(self, rehearse):
        monitor = Monitor([rehearse()])
        monitor.wake()
        monitor.wake()
        assert monitor._bell.acquire(timeout=20)
        assert not monitor._bell.acquire(blocking=False)

    def test_every_group_is_looked_at(self, rehearse, enter):
        idle, busy = rehearse(), rehearse()
        _, conn = enter(busy)
        busy.begin(conn, object())
        clock = Clock()
        monitor = Monitor([idle, busy], clock=clock)
        assert monitor.look()
        clock.now += REST
        assert monitor.look()
        assert conn.owned


class Guest:
    """What stands in `incoming` of a connection that has left HTTP; it notes who calls."""

    def __init__(self, flushes=True):
        self.heard, self.flushes = [], flushes

    def __getattr__(self, name):
        def called(*arguments):
            self.heard.append(name)
            return self.flushes

        return called


class TestBeyondHttp:
    @pytest.fixture
    def guest(self, loop, enter):
        client, conn = enter(loop)
        conn.state, conn.incoming = ConnectionState.UPGRADED, Guest()
        return client, conn, conn.incoming

    def test_it_is_served_and_settled_unless_it_is_calm(self, loop, guest):
        _, conn, incoming = guest
        assert loop._serve(conn)
        assert incoming.heard == ["ready"]
        loop._watch(conn, 0)
        assert loop._serve(conn)  # calm, but nobody watched it
        assert incoming.heard == ["ready", "ready", "settle"]
        assert conn.interest == READ
        incoming.flushes = False
        assert loop._serve(conn)
        assert incoming.heard[3:] == ["ready", "settle"]

    def test_room_is_watched_for_while_something_waits(self, loop, guest):
        _, conn, _ = guest
        conn.cork()
        loop._settle(conn)
        assert conn.interest == READ | WRITE
        conn.backlog = None
        loop._settle(conn)
        assert conn.interest == READ

    def test_whoever_asks_is_served_in_the_next_batch(self, loop, guest):
        _, conn, incoming = guest
        loop.post(loop.again, conn)
        loop.poller.wake()
        loop._between()
        loop._batch()
        assert "ready" in incoming.heard

    @pytest.mark.parametrize(("flushes", "interest"), [(True, 0), (False, WRITE)])
    def test_an_owned_one_is_still_sent_what_waits(self, loop, guest, flushes, interest):
        _, conn, incoming = guest
        incoming.flushes = flushes
        conn.owned = True
        assert loop._serve(conn)
        assert (incoming.heard, conn.interest) == (["flush"], interest)

    def test_so_is_a_parked_one_which_is_parked_once(self, loop, guest):
        _, conn, incoming = guest
        incoming.flushes = False
        loop.full = True
        assert loop._serve(conn)
        assert loop._serve(conn)
        assert (incoming.heard, conn.interest) == (["flush", "flush"], WRITE)
        assert list(loop._parked) == [conn]

    def test_its_deadlines_are_its_own(self, loop, guest):
        _, conn, incoming = guest
        loop.now += 10_000
        loop._look_at(conn)
        assert incoming.heard == ["look"]
        assert conn.state == ConnectionState.UPGRADED

    @pytest.mark.parametrize("state", ["UPGRADED", "HIJACKED"])
    def test_it_hears_of_the_graceful_stop(self, loop, guest, state):
        _, conn, incoming = guest
        conn.state = ConnectionState[state]
        loop._drain(None)
        assert incoming.heard == ["drain"]

    def test_it_hears_of_the_hard_one_before_anybody_is_told(self, loop, guest, monkeypatch):
        _, conn, incoming = guest
        told = loop.stopped.set
        monkeypatch.setattr(loop.stopped, "set", lambda: incoming.heard.append("over") or told())
        loop._stop()
        assert incoming.heard == ["conclude", "over"]
        assert conn.sock.fileno() < 0

    def test_an_owned_one_hears_it_from_its_owner(self, rehearse, enter):
        group = rehearse()
        _, conn = enter(group)
        conn.state, conn.incoming = ConnectionState.UPGRADED, (incoming := Guest())
        me = group.leader
        group._hand_over(conn)
        group._stop()
        assert incoming.heard == []
        group._give_back(conn, me)
        assert incoming.heard == ["conclude"]
        assert conn.sock.fileno() < 0

    def test_a_loop_of_one_thread_excuses_everybody(self, loop, enter):
        _, conn = enter(loop)
        assert loop.excuse(conn)
        loop.welcome_back(conn)

    def test_an_excused_thread_passes_the_lead_on_and_is_not_counted(self, rehearse, enter):
        group = rehearse(max_threads=1)
        _, conn = enter(group)
        _, parked = enter(group)
        me = group.leader
        group.begin(conn, object())
        group._parked[parked] = None
        group._polling = True
        assert group.excuse(conn)
        assert group.poller._wake_pending.locked()
        assert (group._busy, group.full, conn.owned) == (0, False, True)
        assert group.leader is not me
        assert not group.calls
        group.welcome_back(conn)
        group._give_back(conn, me)
        assert (group._busy, conn.owned) == (0, False)

    def test_an_owner_is_excused_as_well(self, rehearse, enter):
        group = rehearse()
        _, conn = enter(group)
        group._hand_over(conn)
        leader = group.leader
        assert group.excuse(conn)
        assert (group._busy, group.leader) == (0, leader)

    def test_nobody_is_excused_where_nobody_could_lead(self, rehearse, enter, monkeypatch):
        group = rehearse()
        _, conn = enter(group)
        call = object()
        group.begin(conn, call)
        monkeypatch.setattr(group, "_reserve", lambda: None)
        assert not group.excuse(conn)
        assert group.calls == {conn: call}
        assert not conn.owned
