"""hop.poller: one contract for both back ends, on real descriptors; time is a fake clock's."""

import contextlib
import errno
import logging
import os
import resource
import select
import socket
import struct
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from hop.poller import (
    BATCH,
    HANGUP,
    LONGEST_WAIT,
    READ,
    WRITE,
    Acceptor,
    EpollPoller,
    Poller,
    SelectorPoller,
    default_poller,
)

BACK_ENDS = [EpollPoller, SelectorPoller]


class FakeClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=BACK_ENDS)
def poller(request, clock):
    poller = request.param(clock)
    yield poller
    finishes(poller.close)  # a poller that lost a wake-up would wait for it for ever


@pytest.fixture
def epoller(clock):
    with contextlib.closing(EpollPoller(clock)) as poller:
        yield poller


@pytest.fixture
def pair():
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    yield a, b
    a.close()
    b.close()


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0), backlog=200) as sock:
        sock.setblocking(False)
        yield sock


def never(*_):
    pytest.fail("called, and should not have been")


def connect(listener):
    return socket.create_connection(listener.getsockname(), timeout=5)


def finishes(work):
    """Run *work* in a thread; it must end within 5 s. Returns what it returned."""
    box = []
    thread = threading.Thread(target=lambda: box.append(work()), daemon=True)
    thread.start()
    thread.join(5)
    assert box, "still waiting"
    return box[0]


def fill(sock):
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(65536))


def drain(sock):
    with contextlib.suppress(BlockingIOError):
        while sock.recv(65536):
            pass


def flags(poller, fd):
    """What the kernel says it watches *fd* for, in an epoll object's fdinfo."""
    for line in Path(f"/proc/self/fdinfo/{poller._epoll.fileno()}").read_text().splitlines():
        words = line.split()
        if words[:2] == ["tfd:", str(fd)]:
            return int(words[3], 16)
    return None


# --- readiness


def test_nothing_is_ready_until_bytes_arrive(poller, pair):
    a, b = pair
    poller.register(a.fileno(), READ)
    assert poller.poll(0) == []
    b.send(b"x")
    assert poller.poll(None) == [(a.fileno(), READ)]


def test_what_was_not_read_is_reported_again(poller, pair):
    a, b = pair
    poller.register(a.fileno(), READ)
    b.send(b"two")
    for _ in range(3):
        assert poller.poll(0) == [(a.fileno(), READ)]
    a.recv(1)
    assert poller.poll(0) == [(a.fileno(), READ)]
    a.recv(100)
    assert poller.poll(0) == []


def test_end_of_input_is_readable(poller, pair):
    a, b = pair
    poller.register(a.fileno(), READ)
    b.shutdown(socket.SHUT_WR)
    [(fd, events)] = poller.poll(0)
    assert (fd, events & READ) == (a.fileno(), READ)
    assert a.recv(1) == b""


def test_a_closed_peer_is_reported_to_who_reads_and_to_who_writes(poller, pair):
    a, b = pair
    fill(a)
    b.close()
    poller.register(a.fileno(), READ)
    [(_, events)] = poller.poll(0)
    assert events & (READ | HANGUP)
    poller.modify(a.fileno(), WRITE)
    [(_, events)] = poller.poll(0)
    assert events & (WRITE | HANGUP)
    with pytest.raises(OSError, match=r"pipe|reset"):
        a.send(b"x")


def test_epoll_tells_a_reset_by_hangup(epoller, listener):
    client = connect(listener)
    server, _ = listener.accept()
    epoller.register(server.fileno(), READ)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert epoller.poll(5) == [(server.fileno(), READ | HANGUP)]
    server.close()


def test_writable_until_the_buffer_is_full(poller, pair):
    a, b = pair
    poller.register(a.fileno(), WRITE)
    assert poller.poll(0) == [(a.fileno(), WRITE)]
    fill(a)
    assert poller.poll(0) == []
    drain(b)
    assert poller.poll(0) == [(a.fileno(), WRITE)]


def test_modify_changes_what_is_reported(poller, pair):
    a, b = pair
    b.send(b"x")
    poller.register(a.fileno(), READ)
    assert poller.poll(0) == [(a.fileno(), READ)]
    poller.modify(a.fileno(), WRITE)
    assert poller.poll(0) == [(a.fileno(), WRITE)]
    poller.modify(a.fileno(), READ | WRITE)
    assert poller.poll(0) == [(a.fileno(), READ | WRITE)]


def test_an_unregistered_descriptor_is_silent(poller, pair):
    a, b = pair
    poller.register(a.fileno(), READ)
    b.send(b"x")
    poller.unregister(a.fileno())
    assert poller.poll(0) == []


@contextlib.contextmanager
def crowd(poller, size):
    """Register so many readable descriptors: copies of one, to stay below any limit."""
    reader, writer = socket.socketpair()
    writer.send(b"x")
    fds = {os.dup(reader.fileno()) for _ in range(size)}
    for fd in fds:
        poller.register(fd, READ)
    yield fds
    for fd in fds:
        poller.unregister(fd)
        os.close(fd)
    reader.close()
    writer.close()


def test_more_descriptors_than_one_batch_all_get_their_turn(poller):
    with crowd(poller, BATCH + 60) as fds:
        poller.wake()
        seen: set[int] = set()
        for _ in range(3):
            events = poller.poll(0)
            assert 0 < len(events) <= len(fds)
            seen.update(fd for fd, _ in events)
        assert seen == fds


def test_one_call_of_epoll_returns_at_most_a_batch(epoller):
    with crowd(epoller, BATCH + 1):
        assert len(epoller.poll(0)) == BATCH


# --- mistakes of the caller


def test_registering_twice_is_an_error(poller, pair):
    poller.register(pair[0].fileno(), READ)
    with pytest.raises(KeyError, match="registered"):
        poller.register(pair[0].fileno(), WRITE)


def test_what_is_not_registered_cannot_be_modified_or_unregistered(poller, pair):
    fd = pair[0].fileno()
    with pytest.raises(KeyError):
        poller.modify(fd, READ)
    with pytest.raises(KeyError):
        poller.unregister(fd)
    pair[0].close()
    with pytest.raises(KeyError):
        poller.modify(fd, READ)
    with pytest.raises(KeyError):
        poller.unregister(fd)


@pytest.mark.parametrize("events", [0, 2, HANGUP, READ | HANGUP])
def test_events_must_ask_for_something_and_for_nothing_else(poller, pair, events):
    with pytest.raises(ValueError, match="READ, WRITE"):
        poller.register(pair[0].fileno(), events)
    poller.register(pair[0].fileno(), READ)
    with pytest.raises(ValueError, match="READ, WRITE"):
        poller.modify(pair[0].fileno(), events)


def test_a_closed_descriptor_cannot_be_registered(poller, pair):
    fd = pair[0].fileno()
    pair[0].close()
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what matters
        poller.register(fd, READ)
    assert caught.value.errno == errno.EBADF


def test_a_plain_file_cannot_be_watched(poller):
    with tempfile.TemporaryFile() as file, pytest.raises(PermissionError):
        poller.register(file.fileno(), READ)


def test_the_kernel_forgets_a_descriptor_that_was_closed_first(epoller, pair):
    a, _ = pair
    fd = a.fileno()
    epoller.register(fd, READ)
    a.close()
    with pytest.raises(KeyError):
        epoller.unregister(fd)


# --- exclusive


def test_exclusive_reaches_the_kernel_and_cannot_be_modified(epoller, listener):
    epoller.register(listener.fileno(), READ, exclusive=True)
    assert flags(epoller, listener.fileno()) & select.EPOLLEXCLUSIVE
    with pytest.raises(OSError, match="Invalid") as caught:
        epoller.modify(listener.fileno(), READ)
    assert caught.value.errno == errno.EINVAL


def test_without_exclusive_there_is_no_such_flag(epoller, listener):
    epoller.register(listener.fileno(), READ)
    assert not flags(epoller, listener.fileno()) & select.EPOLLEXCLUSIVE


def test_exclusive_is_accepted_everywhere(poller, listener):
    poller.register(listener.fileno(), READ, exclusive=True)
    with connect(listener):
        assert poller.poll(5) == [(listener.fileno(), READ)]


# --- time


def test_now_is_the_clock_when_poll_returned(poller, clock):
    assert poller.now == 1000.0
    clock.time = 1001.5
    assert poller.now == 1000.0
    poller.poll(0)
    assert poller.now == 1001.5


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_time_out_is_waited_for_in_full(back_end):
    with contextlib.closing(back_end()) as poller:
        start = poller.now
        assert poller.poll(0.0101) == []
        assert poller.now - start >= 0.0101


def test_timers_are_due_in_their_order_and_once(poller, clock):
    calls = []
    poller.call_later(2.0, lambda: calls.append("late"))
    poller.call_later(1.0, lambda: calls.append("first"))
    poller.call_later(1.0, lambda: calls.append("second"))
    assert poller.due() == []
    clock.time += 1.0
    assert poller.due() == [], "the poller's time moves on only in poll"
    poller.poll(None)
    for timer in poller.due():
        timer()
        timer()
    assert calls == ["first", "second"]
    clock.time += 1.0
    poller.poll(None)
    for timer in poller.due():
        timer()
    assert calls == ["first", "second", "late"]
    assert poller.due() == []


def test_a_cancelled_timer_is_never_due(poller, clock):
    timer = poller.call_later(1.0, never)
    timer.cancel()
    timer.cancel()
    clock.time += 5
    poller.poll(0)
    assert poller.due() == []


def test_a_cancelled_timer_behind_a_live_one_is_never_due(poller, clock):
    alive = poller.call_later(1.0, print)
    poller.call_later(2.0, never).cancel()
    clock.time += 5
    poller.poll(0)
    assert poller.due() == [alive]


def test_a_timer_cancelled_between_due_and_its_call_is_not_called(poller, clock):
    def cancel_the_second():
        timers[1].cancel()

    timers = [poller.call_later(0.0, cancel_the_second), poller.call_later(0.0, never)]
    poller.poll(None)
    due = poller.due()
    assert due == timers
    for timer in due:
        timer()


def test_a_timer_that_sets_itself_again_is_not_due_in_the_same_round(poller):
    def again():
        poller.call_later(0.0, again)

    again()
    poller.poll(None)
    [timer] = poller.due()
    timer()
    [_] = poller.due()


def test_delay_counts_from_the_call_even_when_now_is_old(poller, clock):
    clock.time += 60.0
    assert poller.call_later(1.0, print).when == 1061.0


class Kernel:
    """Takes the place of epoll object and selector; notes the time-outs asked for."""

    def __init__(self):
        self.asked = []

    def poll(self, timeout, maxevents):
        assert maxevents == BATCH
        return self.select(timeout)

    def select(self, timeout):
        self.asked.append(timeout)
        return []

    def close(self):
        pass


@pytest.fixture
def kernel(poller):
    kernel = Kernel()
    name = "_epoll" if isinstance(poller, EpollPoller) else "_selector"
    getattr(poller, name).close()
    setattr(poller, name, kernel)
    return kernel


def test_without_timers_the_time_out_goes_to_the_kernel_as_it_is(poller, kernel):
    for timeout in (None, 0, 2.5):
        poller.poll(timeout)
    assert kernel.asked == [None, 0, 2.5]


def test_a_timer_shortens_the_wait_by_the_fresh_clock(poller, kernel, clock):
    poller.call_later(10.0, print)
    poller.poll(None)
    poller.poll(3.0)
    poller.poll(30.0)
    clock.time += 4.0
    poller.poll(None)
    clock.time += 10.0
    poller.poll(None)
    assert kernel.asked == [10.0, 3.0, 10.0, 6.0, 0.0]


def test_a_cancelled_timer_does_not_shorten_the_wait(poller, kernel):
    poller.call_later(1.0, print).cancel()
    poller.call_later(9.0, print)
    poller.poll(None)
    poller.call_later(2.0, print).cancel()
    poller.poll(None)
    assert kernel.asked == [9.0, 9.0]


@pytest.mark.parametrize("delay", [1e12, float("inf")])
def test_a_far_timer_does_not_overflow_the_kernel(poller, kernel, delay):
    poller.call_later(delay, print)
    poller.poll(None)
    assert kernel.asked == [LONGEST_WAIT]


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_short_timer_costs_one_poll_and_no_busy_loop(back_end):
    with contextlib.closing(back_end()) as poller:
        poller.call_later(0.0003, print)
        polls, due = 0, poller.due()
        while not due:
            poller.poll(None)
            polls += 1
            due = poller.due()
        assert polls <= 2


def test_cancelled_timers_do_not_pile_up(poller, clock):
    calls = []
    for number in range(100):
        poller.call_later(float(number), lambda number=number: calls.append(number))
    for _ in range(10_000):
        poller.call_later(500.0, never).cancel()
    assert len(poller._timers) <= 200
    clock.time += 1000.0
    poller.poll(0)
    for timer in poller.due():
        timer()
    assert calls == list(range(100))


# --- wake


def test_wake_ends_a_wait(poller):
    thread = threading.Thread(target=poller.wake)

    def wait():
        thread.start()
        return poller.poll(None)

    assert finishes(wait) == []
    thread.join()


def test_a_wake_before_the_poll_is_kept_and_counts_once(poller, monkeypatch):
    rings = []
    ring = poller._ring

    def counted():
        rings.append(1)
        ring()

    monkeypatch.setattr(poller, "_ring", counted)
    for _ in range(5):
        poller.wake()
    assert rings == [1]
    assert finishes(lambda: poller.poll(None)) == []
    assert not select.select([poller._bell[0]], [], [], 0)[0], "emptied"
    poller.wake()
    assert rings == [1, 1]
    assert finishes(lambda: poller.poll(None)) == []


def test_a_wake_does_not_hide_other_events(poller, pair):
    a, b = pair
    poller.register(a.fileno(), READ)
    b.send(b"x")
    poller.wake()
    assert poller.poll(None) == [(a.fileno(), READ)]


@pytest.mark.parametrize("when", ["before emptying", "after emptying"])
def test_a_wake_while_one_is_swallowed_does_not_end_all_wakes(poller, monkeypatch, when):
    hush = poller._hush

    def meddle():
        if when == "before emptying":
            poller.wake()
        hush()
        if when == "after emptying":
            poller.wake()

    monkeypatch.setattr(poller, "_hush", meddle)
    poller.wake()
    assert finishes(lambda: poller.poll(None)) == []
    monkeypatch.setattr(poller, "_hush", hush)
    poller.wake()
    assert finishes(lambda: poller.poll(None)) == []


def test_poll_does_not_wait_for_a_wake_that_has_not_rung_yet(poller, monkeypatch):
    ring, gate = poller._ring, threading.Event()
    monkeypatch.setattr(poller, "_ring", lambda: gate.wait(5) and ring())
    waker = threading.Thread(target=poller.wake)
    waker.start()
    assert finishes(lambda: poller.poll(0)) == []
    gate.set()
    assert finishes(lambda: poller.poll(None)) == []
    waker.join()


def test_no_message_is_left_behind_by_many_wakers(poller):
    mailbox: deque[int] = deque()
    each, wakers = 2000, 4

    def post():
        for _ in range(each):
            mailbox.append(1)
            poller.wake()

    def collect():
        got = 0
        while got < each * wakers:
            poller.poll(None)
            while mailbox:
                got += mailbox.popleft()
        return got

    threads = [threading.Thread(target=post) for _ in range(wakers)]
    for thread in threads:
        thread.start()
    assert finishes(collect) == each * wakers
    for thread in threads:
        thread.join()


# --- close


def test_a_closed_poller_refuses_to_poll_and_may_be_closed_again(poller):
    poller.close()
    poller.close()
    with pytest.raises(ValueError, match="closed"):
        poller.poll(0)


def test_close_gives_all_descriptors_back(clock):
    for back_end in BACK_ENDS:
        before = os.listdir("/proc/self/fd")
        poller = back_end(clock)
        assert len(os.listdir("/proc/self/fd")) > len(before)
        poller.close()
        assert os.listdir("/proc/self/fd") == before


def test_a_wake_after_close_does_not_write_into_a_stranger(poller):
    poller.close()
    pairs = [socket.socketpair() for _ in range(3)]  # takes the numbers that became free
    poller.wake()
    ends = [end for pair in pairs for end in pair]
    assert select.select(ends, [], [], 0)[0] == []
    for end in ends:
        end.close()


def test_a_wake_before_close_is_not_written_afterwards(poller, monkeypatch):
    ring, gate, entered = poller._ring, threading.Event(), threading.Event()

    def late():
        entered.set()
        gate.wait(5)
        ring()

    monkeypatch.setattr(poller, "_ring", late)
    waker = threading.Thread(target=poller.wake)
    waker.start()
    assert entered.wait(5)
    closer = threading.Thread(target=poller.close)
    closer.start()
    closer.join(0.02)
    assert closer.is_alive(), "close must wait for the wake that has begun"
    gate.set()
    closer.join(5)
    waker.join(5)
    assert not closer.is_alive()


# --- which back end


def test_the_base_class_is_only_an_interface():
    with pytest.raises(TypeError, match="abstract"):
        Poller()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("selector", SelectorPoller), ("epoll", EpollPoller), ("", EpollPoller)],
)
def test_the_environment_picks_the_back_end(monkeypatch, clock, name, kind):
    monkeypatch.setenv("HOP_POLLER", name)
    with contextlib.closing(default_poller(clock)) as poller:
        assert type(poller) is kind
        assert poller.now == 1000.0


def test_without_epoll_the_portable_one_is_the_default(monkeypatch):
    monkeypatch.delenv("HOP_POLLER", raising=False)
    real = select.epoll
    monkeypatch.delattr(select, "epoll")
    poller = default_poller()
    monkeypatch.setattr(select, "epoll", real, raising=False)
    assert type(poller) is SelectorPoller
    poller.close()


def test_an_unknown_back_end_is_an_error(monkeypatch):
    monkeypatch.setenv("HOP_POLLER", "kpoll")
    with pytest.raises(ValueError, match="epoll or selector, not 'kpoll'"):
        default_poller()


# --- accepting


class Door:
    """A listener with a script: each `accept` raises or returns the next thing."""

    def __init__(self, *script):
        self.ear, self.mouth = socket.socketpair()
        self.mouth.send(b"always readable")
        self.script = list(script)

    def fileno(self):
        return self.ear.fileno()

    def accept(self):
        step = self.script.pop(0) if self.script else BlockingIOError()
        if isinstance(step, OSError):
            raise step
        return step, "somebody"

    def close(self):
        self.ear.close()
        self.mouth.close()


def door_with(*script: object) -> Any:
    return Door(*script)


@pytest.fixture
def visitor():
    a, b = socket.socketpair()
    yield a
    a.close()
    b.close()


def test_accepted_sockets_do_not_block(poller, listener):
    guests: list[socket.socket] = []
    acceptor = Acceptor(poller, listener, guests.append)
    with connect(listener) as client:
        assert poller.poll(5) == [(acceptor.fileno(), READ)]
        assert acceptor.on_readable() == 1
        [guest] = guests
        assert guest.getblocking() is False
        assert guest.getpeername() == client.getsockname()
        with pytest.raises(BlockingIOError):
            guest.recv(1)
        guest.close()
    assert acceptor.on_readable() == 0
    assert poller.poll(0) == []


def test_a_batch_is_bounded_and_the_rest_is_reported_again(poller, listener):
    guests: list[socket.socket] = []
    acceptor = Acceptor(poller, listener, guests.append, batch=3)
    clients = [connect(listener) for _ in range(7)]
    counts = []
    while poller.poll(0):
        counts.append(acceptor.on_readable())
    assert counts == [3, 3, 1]
    for sock in clients + guests:
        sock.close()


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM])
def test_a_connection_that_failed_does_not_stop_the_next(poller, visitor, number):
    guests: list[socket.socket] = []
    door = door_with(OSError(number, "gone"), visitor)
    with contextlib.closing(Acceptor(poller, door, guests.append)) as acceptor:
        assert acceptor.on_readable() == 1
        assert guests == [visitor]
        assert poller.poll(0) == [(door.fileno(), READ)], "still watched"


def test_failing_connections_count_against_the_batch(poller):
    door = door_with(*[ConnectionAbortedError(errno.ECONNABORTED, "gone") for _ in range(9)])
    with contextlib.closing(Acceptor(poller, door, never, batch=4)) as acceptor:
        assert acceptor.on_readable() == 0
        assert len(door.script) == 5


EXHAUSTED = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL]


@pytest.mark.parametrize("number", EXHAUSTED)
def test_when_the_listener_fails_it_steps_back_and_comes_again(
    poller, clock, visitor, number, caplog
):
    guests: list[socket.socket] = []
    door = door_with(OSError(number, "out of it"), OSError(number, "out of it"), visitor)
    with contextlib.closing(Acceptor(poller, door, guests.append, pause=0.5)) as acceptor:
        assert poller.poll(0) == [(door.fileno(), READ)]
        for _ in range(2):
            assert acceptor.on_readable() == 0
            assert poller.poll(0) == [], "a connection waits, but the loop does not spin"
            clock.time += 0.5
            poller.poll(0)
            [retry] = poller.due()
            retry()
            assert poller.poll(0) == [(door.fileno(), READ)]
        assert acceptor.on_readable() == 1
        assert guests == [visitor]
    assert [record.name for record in caplog.records] == ["hop.error"]
    assert "every 0.5 s" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR


def test_after_a_success_the_next_failure_is_logged_again(poller, visitor, caplog):
    full = OSError(errno.EMFILE, "full")
    door = door_with(full, visitor, BlockingIOError(), full)
    with contextlib.closing(Acceptor(poller, door, lambda sock: None)) as acceptor:
        for _ in range(3):
            acceptor.on_readable()
            acceptor.resume()
    assert len(caplog.records) == 2


def test_success_and_failure_in_one_batch_is_no_recovery(poller, visitor, caplog):
    full = OSError(errno.EMFILE, "full")
    door = door_with(full, visitor, full)
    with contextlib.closing(Acceptor(poller, door, lambda sock: None)) as acceptor:
        assert acceptor.on_readable() == 0
        acceptor.resume()
        assert acceptor.on_readable() == 1
    assert len(caplog.records) == 1


def test_a_report_that_comes_after_a_pause_lets_nobody_in(poller, listener):
    acceptor = Acceptor(poller, listener, never)
    with connect(listener):
        assert poller.poll(5) == [(listener.fileno(), READ)]
        acceptor.pause()  # by another event of the same batch
        assert acceptor.on_readable() == 0


def test_out_of_descriptors_for_real(poller, clock, listener, caplog):
    guests: list[socket.socket] = []
    acceptor = Acceptor(poller, listener, guests.append)
    clients = [connect(listener) for _ in range(2)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
    try:
        assert acceptor.on_readable() == 1, "one number was free"
        assert poller.poll(0) == []
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Too many open files" in caplog.text
    clock.time += 0.1
    poller.poll(0)
    for timer in poller.due():
        timer()
    assert acceptor.on_readable() == 1
    for sock in clients + guests:
        sock.close()


def test_pause_leaves_guests_in_the_backlog_and_resume_lets_them_in(poller, listener):
    guests: list[socket.socket] = []
    acceptor = Acceptor(poller, listener, guests.append)
    acceptor.pause()
    acceptor.pause()
    with connect(listener):
        assert poller.poll(0) == []
        acceptor.resume()
        acceptor.resume()
        assert poller.poll(5) == [(listener.fileno(), READ)]
        assert acceptor.on_readable() == 1
        guests[0].close()


def test_who_pauses_while_guests_come_in_gets_no_more_of_them(poller, listener):
    guests: list[socket.socket] = []

    def deliver(sock):
        guests.append(sock)
        if len(guests) == 2:
            acceptor.pause()

    acceptor = Acceptor(poller, listener, deliver)
    clients = [connect(listener) for _ in range(5)]
    assert poller.poll(5)
    assert acceptor.on_readable() == 2
    assert poller.poll(0) == []
    for sock in clients + guests:
        sock.close()


def test_pause_also_ends_a_retry(poller, clock):
    door = door_with(OSError(errno.EMFILE, "full"))
    with contextlib.closing(Acceptor(poller, door, never)) as acceptor:
        acceptor.on_readable()
        acceptor.pause()
        clock.time += 10
        assert poller.poll(0) == []
        assert poller.due() == []


def test_resume_does_not_wait_for_the_retry(poller, clock):
    door = door_with(OSError(errno.EMFILE, "full"))
    with contextlib.closing(Acceptor(poller, door, never)) as acceptor:
        acceptor.on_readable()
        acceptor.resume()
        assert poller.poll(0) == [(door.fileno(), READ)]
        clock.time += 10
        poller.poll(0)
        assert poller.due() == []


def test_close_closes_the_listener_and_leaves_nothing_behind(poller, clock, listener):
    fd = listener.fileno()
    acceptor = Acceptor(poller, listener, never)
    acceptor.close()
    assert listener.fileno() == -1
    with pytest.raises(KeyError):
        poller.unregister(fd)


def test_an_exclusive_acceptor_stays_exclusive_after_a_pause(epoller, listener):
    acceptor = Acceptor(epoller, listener, never, exclusive=True)
    acceptor.pause()
    assert flags(epoller, listener.fileno()) is None
    acceptor.resume()
    assert flags(epoller, listener.fileno()) & select.EPOLLEXCLUSIVE
