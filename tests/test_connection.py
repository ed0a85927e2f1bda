"""hop.connection: exact accounts on a scripted socket, and the kernel's manners on real ones."""

import errno
import os
import select
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hop.connection import (
    BUDGET,
    KEPT,
    SMALL,
    Backlog,
    BytesPart,
    Connection,
    FilePart,
    Keeping,
)
from hop.errors import ClientDisconnected
from hop.poller import READ, WRITE, default_poller

REFUSE = BlockingIOError(errno.EAGAIN, "try again")
RESET = ConnectionResetError(errno.ECONNRESET, "reset by peer")


class ScriptedSocket:
    """Takes what its script allows: for each call a number of bytes, or an error to raise.

    When the script is over it takes everything.
    """

    def __init__(self, *script: int | OSError) -> None:
        self.script = list(script)
        self.taken = bytearray()
        self.offered: list[int] = []

    def _allowed(self, offered: int) -> int:
        self.offered.append(offered)
        step = self.script.pop(0) if self.script else offered
        if isinstance(step, OSError):
            raise step
        return min(step, offered)

    def send(self, data: Any) -> int:
        sent = self._allowed(len(data))
        self.taken += data[:sent]
        return sent

    def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
        """In the place of `os.sendfile`."""
        data = os.pread(fd, self._allowed(count), offset)
        self.taken += data
        return len(data)

    def fileno(self) -> int:
        return 1826

    def close(self) -> None:
        self.script = [RESET] * 9


def connected(sock: Any, *, now: float = 1.0) -> Connection:
    loop = SimpleNamespace(now=now, buffer_size=1 << 16, keeping=None)
    return Connection(sock, loop, {})


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """The server's end, not blocking, and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        client.settimeout(20)
        server, _ = listener.accept()
    server.setblocking(False)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server, client


def readable(sock: socket.socket) -> None:
    assert select.select([sock], [], [], 20)[0], "nothing arrived"


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 20), b""))


@pytest.fixture(params=[None, Keeping(1 << 16)], ids=["lock put down", "lock kept"])
def conn(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A connection over TCP; its client is `conn.state`."""
    server, client = tcp_pair()
    conn = connected(server)
    conn.loop.keeping = request.param
    conn.state = client
    yield conn
    client.close()
    conn.close()


@pytest.fixture
def file() -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(range(256)) * 40)
        file.flush()
        yield file


def open_descriptors() -> set[int]:
    return {fd for fd in range(1024) if _is_open(fd)}


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


# the parts of a backlog


def test_a_bytes_part_shrinks_by_what_was_sent_and_copies_nothing():
    data = bytes(range(100))
    part = BytesPart(data)
    sock: Any = ScriptedSocket(30, 0, 70)
    assert (part.send(sock), len(part)) == (30, 70)
    assert part.view.obj is data
    assert (part.send(sock), len(part)) == (0, 70)
    assert (part.send(sock), len(part)) == (70, 0)
    assert not part
    assert bytes(sock.taken) == data


def test_a_bytes_part_offers_no_more_than_the_budget():
    sock: Any = ScriptedSocket()
    part = BytesPart(bytes(BUDGET + 1))
    assert part.send(sock) == BUDGET
    assert sock.offered == [BUDGET]


def test_a_closed_bytes_part_holds_nothing():
    part = BytesPart(b"x" * 10)
    part.close()
    part.close()
    assert len(part) == 0


def test_a_file_part_reads_where_it_is_told_and_leaves_the_files_position(file):
    file.seek(7)
    sock: Any = ScriptedSocket(10)
    part = FilePart(file, 256, 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sendfile", sock.sendfile)
        assert (part.send(sock), len(part), part.offset) == (10, 290, 266)
        assert (part.send(sock), len(part), part.offset) == (290, 0, 556)
    assert bytes(sock.taken) == bytes(range(256)) + bytes(range(44))
    assert file.tell() == 7
    part.close()


def test_a_file_part_asks_for_no_more_than_the_budget(file, monkeypatch):
    sock: Any = ScriptedSocket()
    monkeypatch.setattr(os, "sendfile", sock.sendfile)
    part = FilePart(file, 0, 2 * BUDGET)
    part.send(sock)
    assert sock.offered == [BUDGET]
    part.close()


def test_a_file_part_outlives_the_file_it_came_from(monkeypatch, file):
    sock: Any = ScriptedSocket()
    monkeypatch.setattr(os, "sendfile", sock.sendfile)
    part = FilePart(file, 0, 3)
    file.close()
    assert part.send(sock) == 3
    part.close()


def test_a_file_part_gives_its_descriptor_back_once(file):
    before = open_descriptors()
    part = FilePart(file, 0, 5)
    assert len(open_descriptors() - before) == 1
    part.close()
    assert open_descriptors() == before
    reused = os.dup(file.fileno())
    part.close()
    assert _is_open(reused)
    os.close(reused)


def test_a_file_that_became_shorter_is_a_failure(file, monkeypatch):
    sock: Any = ScriptedSocket()
    monkeypatch.setattr(os, "sendfile", sock.sendfile)
    part = FilePart(file, 256 * 40, 5)
    with pytest.raises(ClientDisconnected, match="shorter"):
        part.send(sock)
    assert len(part) == 5
    part.close()


# the backlog


def test_small_pieces_leave_in_one_send_large_ones_on_their_own():
    backlog = Backlog()
    large = b"L" * SMALL
    for data in (b"a", b"b" * (SMALL - 1), large, b"c", b"", b"d"):
        backlog.append(data)
    assert backlog.size == 2 * SMALL + 2
    sock: Any = ScriptedSocket()
    backlog.send(sock)
    assert sock.offered == [SMALL, SMALL, 2]
    assert bytes(sock.taken) == b"a" + b"b" * (SMALL - 1) + large + b"cd"
    assert (backlog.size, len(backlog.parts)) == (0, 0)


def test_a_large_piece_is_not_copied():
    backlog = Backlog()
    data = b"L" * SMALL
    backlog.append(data)
    (part,) = backlog.parts
    assert isinstance(part, BytesPart)
    assert part.view.obj is data


def test_small_pieces_behind_a_started_one_keep_their_order():
    backlog = Backlog()
    sock: Any = ScriptedSocket(2, REFUSE)
    backlog.append(b"abc")
    with pytest.raises(BlockingIOError):
        backlog.send(sock)
    backlog.append(b"def")
    assert backlog.size == 4
    backlog.send(sock)
    assert bytes(sock.taken) == b"abcdef"


def test_a_file_stands_between_what_came_before_and_behind_it(file, monkeypatch):
    sock: Any = ScriptedSocket(1, 1, 1, REFUSE)
    monkeypatch.setattr(os, "sendfile", sock.sendfile)
    backlog = Backlog()
    backlog.append(b"<")
    backlog.append_file(FilePart(file, 65, 3))
    backlog.append(b">")
    with pytest.raises(BlockingIOError):
        backlog.send(sock)
    assert backlog.size == 2
    backlog.send(sock)
    assert bytes(sock.taken) == b"<ABC>"
    assert backlog.size == 0


def test_one_send_stops_when_the_budget_is_spent():
    backlog = Backlog()
    for _ in range(5):
        backlog.append(bytes(BUDGET // 2))
    sock: Any = ScriptedSocket()
    sizes = []
    while backlog.size:
        backlog.send(sock)
        sizes.append(len(sock.taken))
    assert sizes == [BUDGET, 2 * BUDGET, 2 * BUDGET + BUDGET // 2]


@pytest.mark.parametrize("error", [REFUSE, RESET])
def test_the_account_is_exact_after_an_error(error):
    backlog = Backlog()
    backlog.append(b"x" * SMALL)
    backlog.append(b"y" * SMALL)
    sock: Any = ScriptedSocket(SMALL, 100, error)
    with pytest.raises(type(error)):
        backlog.send(sock)
    assert backlog.size == sum(map(len, backlog.parts)) == SMALL - 100


def test_a_closed_backlog_is_empty_and_its_files_are_closed(file):
    before = open_descriptors()
    backlog = Backlog()
    backlog.append(b"x" * SMALL)
    backlog.append_file(FilePart(file, 0, 5))
    backlog.append(b"small")
    backlog.close()
    assert open_descriptors() == before
    assert (backlog.size, len(backlog.parts), len(backlog.small)) == (0, 0, 0)


def test_a_file_that_was_sent_is_closed_at_once(file, monkeypatch):
    sock: Any = ScriptedSocket()
    monkeypatch.setattr(os, "sendfile", sock.sendfile)
    before = open_descriptors()
    backlog = Backlog()
    backlog.append_file(FilePart(file, 0, 5))
    backlog.send(sock)
    assert open_descriptors() == before


# writing


def test_what_the_kernel_takes_leaves_no_backlog():
    sock = ScriptedSocket()
    conn = connected(sock)
    conn.write(b"hello")
    assert conn.backlog is None
    assert (bytes(sock.taken), sock.offered, conn.pending()) == (b"hello", [5], 0)


def test_what_the_kernel_refuses_is_kept_and_sent_later():
    sock = ScriptedSocket(3, REFUSE, 1)
    conn = connected(sock)
    conn.write(b"abcdef")
    assert conn.pending() == 3
    assert conn.flush() is False
    conn.write(b"ghi")
    assert conn.pending() == 6
    assert conn.flush() is True
    assert conn.backlog is None
    assert bytes(sock.taken) == b"abcdefghi"


@pytest.mark.parametrize(("taken", "left"), [(REFUSE, 3), (1, 2), (2, 1)])
def test_not_one_byte_is_lost_however_little_the_kernel_takes(taken, left):
    sock = ScriptedSocket(taken)
    conn = connected(sock)
    conn.write(b"abc")
    assert conn.pending() == left
    assert conn.flush() is True
    assert bytes(sock.taken) == b"abc"


def test_nothing_is_sent_past_a_backlog():
    sock = ScriptedSocket(REFUSE)
    conn = connected(sock)
    conn.write(b"first")
    conn.write(b"second")
    assert sock.offered == [5]
    assert conn.pending() == 11


def test_the_rest_of_a_large_write_is_a_view_of_it():
    conn = connected(ScriptedSocket(1000))
    data = bytes(100_000)
    conn.write(data)
    assert conn.backlog is not None
    (part,) = conn.backlog.parts
    assert isinstance(part, BytesPart)
    assert part.view.obj is data
    assert conn.pending() == 99_000


def test_no_write_offers_the_kernel_more_than_the_budget():
    sock = ScriptedSocket()
    conn = connected(sock)
    conn.write(bytes(BUDGET))
    assert conn.backlog is None
    conn.write(bytes(BUDGET) + b"end")
    assert sock.offered == [BUDGET, BUDGET]
    assert conn.pending() == 3
    assert conn.flush() is True
    assert sock.taken.endswith(b"end")


def test_writing_to_a_client_that_left_says_so():
    conn = connected(ScriptedSocket(RESET))
    with pytest.raises(ClientDisconnected, match="reset by peer"):
        conn.write(b"abc")
    assert conn.pending() == 0


def test_flushing_to_a_client_that_left_says_so():
    conn = connected(ScriptedSocket(REFUSE, RESET))
    conn.write(b"abc")
    with pytest.raises(ClientDisconnected, match="reset by peer"):
        conn.flush()
    assert conn.pending() == 3


def test_flushing_nothing_is_done_at_once():
    sock = ScriptedSocket()
    assert connected(sock).flush() is True
    assert sock.offered == []


def test_what_is_sent_for_a_call_does_not_move_the_clock_of_the_call():
    """The client that takes a little now and then cannot prolong a handler's time."""
    conn = connected(ScriptedSocket(REFUSE, 1, REFUSE))
    conn.write(b"abc")
    conn.owned, conn.loop.now = True, 2.0
    assert conn.flush() is False
    assert (conn.pending(), conn.since) == (2, 1.0)


def test_only_progress_moves_the_clock_of_a_connection():
    conn = connected(ScriptedSocket(REFUSE, REFUSE, 1, REFUSE))
    assert conn.since == 1.0
    conn.write(b"abc")
    conn.loop.now = 2.0
    assert conn.flush() is False
    assert conn.since == 1.0
    assert conn.flush() is False
    assert conn.since == 2.0
    conn.loop.now = 3.0
    assert conn.flush() is True
    assert conn.since == 3.0


def test_files_are_sent_in_order_and_an_empty_one_is_none(file, monkeypatch):
    sock = ScriptedSocket(1, REFUSE)
    monkeypatch.setattr(os, "sendfile", sock.sendfile)
    conn = connected(sock)
    conn.write(b"<")
    conn.send_file(file, 0, 0)
    assert conn.backlog is None
    conn.send_file(file, 65, 2)
    assert conn.pending() == 2
    conn.write(b"-")
    conn.send_file(file, 67, 2)
    conn.write(b">")
    assert bytes(sock.taken) == b"<AB-CD>"
    assert conn.backlog is None


def test_a_file_of_a_client_that_left_is_closed_with_the_connection(file, monkeypatch):
    sock = ScriptedSocket(RESET)
    monkeypatch.setattr(os, "sendfile", sock.sendfile)
    conn = connected(sock)
    before = open_descriptors()
    with pytest.raises(ClientDisconnected):
        conn.send_file(file, 0, 5)
    conn.close()
    assert open_descriptors() == before


def test_without_a_descriptor_to_spare_nothing_is_queued(file, monkeypatch):
    def none_left(fd):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "dup", none_left)
    conn = connected(ScriptedSocket())
    with pytest.raises(OSError, match="too many"):
        conn.send_file(file, 0, 5)
    assert conn.backlog is None


ACTIONS = st.one_of(
    st.integers(0, 3 * SMALL).map(lambda size: ("write", size)),
    st.integers(0, 5000).map(lambda size: ("file", size)),
    st.just(("flush", 0)),
)
KERNEL = st.one_of(st.integers(1, 2 * SMALL), st.just(REFUSE))


@settings(max_examples=150, deadline=None)
@given(st.lists(ACTIONS, max_size=25), st.lists(KERNEL, max_size=40))
def test_whatever_the_kernel_takes_the_bytes_arrive_in_order(actions, script):
    sock = ScriptedSocket(*script)
    conn = connected(sock)
    expected = bytearray()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile() as file:
        patch.setattr(os, "sendfile", sock.sendfile)
        content = os.urandom(5000)
        file.write(content)
        file.flush()
        for number, (action, size) in enumerate(actions):
            if action == "write":
                data = bytes([number]) * size
                expected += data
                conn.write(data)
            elif action == "file":
                expected += content[5000 - size :]
                conn.send_file(file, 5000 - size, size)
            else:
                conn.flush()
            assert conn.pending() == len(expected) - len(sock.taken)
            assert (conn.backlog is None) == (conn.pending() == 0)
        for _ in range(len(script) + len(actions) + 1):
            conn.flush()
        assert conn.backlog is None
        assert sock.taken == expected


def test_a_write_in_many_small_pieces_takes_little_more_than_its_bytes():
    conn = connected(ScriptedSocket(REFUSE))
    for _ in range(10_000):
        conn.write(b"7\r\na piece\r\n")
    backlog = conn.backlog
    assert backlog is not None
    assert sys.getsizeof(backlog.small) < 1.3 * conn.pending()
    assert not backlog.parts


# receiving


def test_receive_tells_bytes_nothing_and_the_end_apart(conn):
    assert conn.receive() is None
    conn.state.sendall(b"hello")
    readable(conn.sock)
    assert conn.receive() == b"hello"
    conn.state.close()
    readable(conn.sock)
    assert conn.receive() == b""


def test_receive_takes_a_buffer_at_most(conn):
    conn.loop.buffer_size = 3
    conn.loop.keeping = conn.loop.keeping and Keeping(3)
    conn.state.sendall(b"hello")
    readable(conn.sock)
    assert conn.receive() == b"hel"
    assert conn.receive() == b"lo"


# calls that keep the interpreter's lock


def test_a_call_that_keeps_the_lock_never_waits_whatever_the_mode_of_the_socket(conn):
    conn.loop.keeping = Keeping(100)
    conn.sock.setblocking(True)
    assert conn.receive() is None
    while conn.backlog is None:
        conn.write(bytes(KEPT))
    assert conn.pending() > 0


@pytest.mark.parametrize("data", [bytes(KEPT + 1), bytearray(10), memoryview(bytes(10))])
def test_what_is_large_or_not_bytes_goes_the_usual_way(data):
    sock: Any = ScriptedSocket()
    assert Keeping(100).send(sock, data) == len(data)
    assert sock.taken == data


def test_bytes_that_lie_about_their_length_are_not_believed():
    class Liar(bytes):
        def __len__(self) -> int:
            return 5000

    server, client = tcp_pair()
    Keeping(100).send(server, Liar(b"x"))
    server.close()
    assert read_all(client) == b"x"
    client.close()


def test_a_call_that_a_signal_interrupts_is_tried_later():
    def interrupted(*_: object) -> int:
        raise InterruptedError(errno.EINTR, "interrupted")

    server, client = tcp_pair()
    conn = connected(server)
    conn.loop.keeping = SimpleNamespace(recv=interrupted, send=interrupted)
    assert conn.receive() is None
    conn.write(b"later")
    assert conn.pending() == 5
    assert conn.flush()
    server.close()
    assert read_all(client) == b"later"
    client.close()


def test_nobody_else_runs_while_it_reads_and_writes():
    """With an interval of seconds, a thread that waits for the lock has it when we put it down."""
    server, client = tcp_pair()
    conn, gate, ran = connected(server), threading.Event(), []
    other = threading.Thread(target=lambda: ran.append(gate.wait(20)))
    conn.loop.keeping, usual = Keeping(100), sys.getswitchinterval()
    sys.setswitchinterval(5.0)  # before the thread begins: it waits by what it finds
    try:
        other.start()
        gate.set()
        until = time.monotonic() + 0.01
        while time.monotonic() < until:  # by then it is awake, and waits for the lock
            pass
        for _ in range(200):
            assert conn.receive() is None
            conn.write(b"x")
        while_kept = list(ran)
    finally:
        sys.setswitchinterval(usual)
    other.join(20)
    assert (while_kept, ran) == ([], [True])
    server.close()
    assert read_all(client) == b"x" * 200
    client.close()


def test_a_reset_is_an_end_too(conn):
    connected(conn.state).reset()
    conn.state.close()
    readable(conn.sock)
    assert conn.receive() == b""


# real sockets


def test_a_slow_reader_over_tcp_gets_everything_and_the_poller_is_asked_only_for_the_rest(conn):
    data = os.urandom(1 << 20) * 12
    poller = default_poller()
    poller.register(conn.sock.fileno(), READ)
    conn.write(data)
    assert 0 < conn.pending() < len(data)
    poller.modify(conn.sock.fileno(), WRITE)
    received = bytearray()

    def read():
        received.extend(read_all(conn.state))

    reader = threading.Thread(target=read)
    reader.start()
    while not conn.flush():
        assert poller.poll(20)
    conn.hang_up()
    reader.join(20)
    assert received == data
    poller.close()


def test_a_file_over_tcp_without_a_byte_through_python(conn, monkeypatch):
    content = os.urandom(1 << 20) * 3
    sends = []
    monkeypatch.setattr(BytesPart, "send", lambda part, sock: sends.append(part))
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        conn.send_file(file, 1000, len(content) - 1000)
    received = bytearray()
    reader = threading.Thread(target=lambda: received.extend(read_all(conn.state)))
    reader.start()
    while not conn.flush():
        assert select.select([], [conn.sock], [], 20)[1]
    conn.hang_up()
    reader.join(20)
    assert received == content[1000:]
    assert sends == []


def test_gone_sees_the_end_and_leaves_what_arrived(conn):
    assert conn.gone() is False
    conn.state.sendall(b"x")
    readable(conn.sock)
    conn.state.shutdown(socket.SHUT_WR)
    assert conn.gone() is False
    assert conn.receive() == b"x"
    readable(conn.sock)
    assert conn.gone() is True


def test_gone_does_not_wait_on_a_socket_that_was_made_blocking(conn):
    conn.sock.setblocking(True)
    assert conn.gone() is False


def test_gone_sees_a_reset(conn):
    connected(conn.state).reset()
    conn.state.close()
    readable(conn.sock)
    assert conn.gone() is True


def test_news_is_what_the_kernel_has_and_nobody_took(conn):
    assert conn.has_news(READ) is False
    assert conn.has_news(WRITE) is True
    conn.state.sendall(b"x")
    readable(conn.sock)
    assert conn.has_news(READ) is True
    assert conn.receive() == b"x"
    assert conn.has_news(READ) is False
    conn.write(bytes(1 << 25))
    while conn.has_news(WRITE):
        assert not conn.flush()
    assert conn.has_news(READ | WRITE) is False


@pytest.mark.parametrize("events", [READ, WRITE])
def test_the_end_is_news(conn, events):
    connected(conn.state).reset()
    conn.state.close()
    assert conn.has_news(events) is True


def test_hang_up_ends_one_direction_only(conn):
    conn.write(b"bye")
    conn.hang_up()
    assert read_all(conn.state) == b"bye"
    conn.state.sendall(b"one more thing")
    readable(conn.sock)
    assert conn.receive() == b"one more thing"


def test_cut_ends_both_directions_and_leaves_the_socket_to_its_owner(conn):
    conn.cut()
    assert conn.state.recv(1) == b""
    assert conn.receive() == b""
    with pytest.raises(ClientDisconnected):
        conn.write(b"x")
    assert conn.sock.fileno() >= 0


def test_a_plain_close_is_a_clean_end_for_the_client(conn):
    conn.write(b"half an ans")
    conn.close()
    assert read_all(conn.state) == b"half an ans"


def test_close_after_reset_is_a_failure_for_the_client(conn):
    conn.write(b"half an ans")
    conn.reset()
    conn.close()
    with pytest.raises(ConnectionResetError):
        read_all(conn.state)


@pytest.mark.parametrize("ending", [Connection.hang_up, Connection.cut, Connection.reset])
def test_endings_may_come_too_late(conn, ending):
    conn.close()
    ending(conn)
    assert conn.gone() is True


def test_close_forgets_everything_and_may_come_twice(conn, file):
    before = open_descriptors()
    conn.write(bytes(12 << 20))
    conn.send_file(file, 0, 100)
    conn.incoming = object()
    conn.close()
    conn.close()
    assert conn.pending() == 0
    assert (conn.backlog, conn.incoming) == (None, None)
    after = open_descriptors()
    assert (len(before - after), after - before) == (1, set())


# who the client is


def test_the_peer_is_asked_for_once(conn):
    host, port = conn.state.getsockname()
    assert conn.peer is None
    assert conn.peer_name() == (host, port)
    assert conn.peer_address() == host == "127.0.0.1"
    conn.close()
    assert conn.peer_address() == "127.0.0.1"


def test_a_peer_that_left_before_it_was_asked_for_has_no_name(conn):
    conn.close()
    assert conn.peer_name() == ""
    assert conn.peer_address() == ""


def test_an_ipv4_client_of_an_ipv6_listener_has_its_ipv4_address():
    class Mapped(ScriptedSocket):
        def getpeername(self):
            return ("::ffff:192.0.2.1", 5000, 0, 0)

    assert connected(Mapped()).peer_name() == ("192.0.2.1", 5000)
    assert connected(Mapped()).peer_address() == "192.0.2.1"


def test_a_unix_peer_has_a_path_and_no_address(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        client.bind(str(tmp_path / "c"))
        client.connect(str(tmp_path / "s"))
        conn = connected(listener.accept()[0])
        assert conn.peer_name() == str(tmp_path / "c")
        assert conn.peer_address() == ""
        conn.close()


# what it costs to be idle


def test_an_idle_connection_holds_nothing_but_its_ten_slots(conn):
    assert len(Connection.__slots__) <= 10
    assert not hasattr(conn, "__dict__")
    assert (conn.backlog, conn.incoming, conn.peer) == (None, None, None)
    assert conn.interest == READ
    assert conn.owned is False



class TestCork:
    def test_what_is_corked_leaves_in_one_send(self):
        sock: Any = ScriptedSocket()
        conn = connected(sock)
        conn.cork()
        conn.write(b"one ")
        conn.write(b"two")
        assert (sock.offered, conn.pending()) == ([], 7)
        assert conn.flush()
        assert sock.offered == [7]
        assert conn.backlog is None

    def test_a_push_leaves_the_cork_in(self):
        sock: Any = ScriptedSocket()
        conn = connected(sock)
        conn.cork()
        conn.write(b"one ")
        conn.push()
        assert (sock.offered, conn.pending()) == ([4], 0)
        conn.write(b"two")
        assert sock.offered == [4]
        assert conn.flush()
        assert sock.offered == [4, 3]

    def test_a_backlog_that_the_kernel_refused_is_not_corked_but_pushed(self):
        sock: Any = ScriptedSocket(1, BlockingIOError())
        conn = connected(sock)
        conn.write(b"one")
        backlog = conn.backlog
        conn.cork()
        assert conn.backlog is backlog
        assert conn.push()  # refused again
        assert not conn.push()
        assert (conn.backlog, conn.pending(), bytes(sock.taken)) == (backlog, 0, b"one")

    def test_without_a_backlog_there_is_nothing_to_push(self):
        sock: Any = ScriptedSocket()
        assert not connected(sock).push()
        assert sock.offered == []

    def test_the_owner_hears_of_an_error_and_the_one_who_pushes_does_not(self, conn):
        conn.cork()
        conn.write(b"one")
        conn.cut()
        assert not conn.push()
        with pytest.raises(ClientDisconnected):
            conn.flush()

    def test_two_threads_do_not_send_at_once(self):
        """Whoever appends waits for the one who sends: what is sent does not grow meanwhile."""
        conn, order = connected(ScriptedSocket()), []

        class Slow:
            def send(self, data: bytes) -> int:
                writer.start()
                assert conn.backlog is not None
                assert conn.backlog.lock.locked()
                order.append("sent")
                return len(data)

        def write() -> None:
            conn.write(b"two")
            order.append("written")

        writer = threading.Thread(target=write)
        conn.cork()
        conn.write(b"one")
        conn.sock = Slow()  # type: ignore[assignment]
        conn.push()
        writer.join(20)
        assert order == ["sent", "written"]
        assert conn.pending() == 3

    def test_a_file_is_not_appended_while_a_push_sends(self, conn, file):
        conn.cork()
        conn.backlog.lock.acquire()
        thread = threading.Thread(target=conn.send_file, args=(file, 0, 10))
        thread.start()
        thread.join(0.05)
        assert conn.pending() == 0
        conn.backlog.lock.release()
        thread.join(20)
        assert not thread.is_alive()

    def test_nothing_is_closed_while_a_push_sends(self, conn):
        conn.cork()
        conn.write(b"one")
        lock = conn.backlog.lock
        lock.acquire()
        thread = threading.Thread(target=conn.close)
        thread.start()
        thread.join(0.05)
        assert conn.sock.fileno() >= 0
        lock.release()
        thread.join(20)
        assert conn.sock.fileno() == -1
