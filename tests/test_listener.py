"""hop.listener: bind strings, and the sockets they open, on real sockets of this machine."""

import contextlib
import errno
import os
import select
import socket
import stat
import struct
from pathlib import Path

import pytest

from hop.listener import (
    FdBind,
    ListenConfig,
    TcpBind,
    UnixBind,
    close_listener,
    describe,
    open_listener,
    open_sibling,
    parse_bind,
)

pytestmark = pytest.mark.no_poller


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
linux = pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="Linux only")


@contextlib.contextmanager
def listening(bind, config=None):
    sock = open_listener(bind) if config is None else open_listener(bind, config)
    try:
        yield sock
    finally:
        close_listener(sock)


def accept(sock):
    """Accept one connection from the non-blocking *sock*, waiting for it at most 5 s."""
    sock.settimeout(5)
    try:
        connection, _ = sock.accept()
    finally:
        sock.setblocking(False)
    return connection


def port_of(sock):
    return sock.getsockname()[1]


def backlog_of(sock):
    """tcpi_sacked of a listening socket: the length its accept queue may reach (tcp_diag)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return struct.unpack_from("=I", info, 28)[0]


# --- bind strings


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        (":1826", TcpBind("", 1826)),
        (":0", TcpBind("", 0)),
        (":65535", TcpBind("", 65535)),
        ("127.0.0.1:80", TcpBind("127.0.0.1", 80)),
        ("localhost:00080", TcpBind("localhost", 80)),
        ("a_b-c.example.:8080", TcpBind("a_b-c.example.", 8080)),
        ("[::1]:1826", TcpBind("::1", 1826)),
        ("[::]:1826", TcpBind("::", 1826)),
        ("[fe80::1%eth0]:1826", TcpBind("fe80::1%eth0", 1826)),
        ("unix:/run/hop.sock", UnixBind("/run/hop.sock")),
        ("unix:hop.sock", UnixBind("hop.sock")),
        ("unix:" + "x" * 107, UnixBind("x" * 107)),
        ("fd://3", FdBind(3)),
        ("fd://0", FdBind(0)),
        ("fd:3", TcpBind("fd", 3)),
    ],
)
def test_what_a_bind_string_means(bind, expected):
    assert parse_bind(bind) == expected
    assert type(parse_bind(bind)) is type(expected)


@pytest.mark.parametrize(
    "bind",
    [
        "", "foo", "80", "foo:", "foo:bar", ":-1", ":+80", ": 80", ":80 ", "\uff18:\u0668\u0660",
        ":123456", "::1:1826", "[::1]", "[::1]1826", "http://localhost:80", "user@host:80",
        "a b:80", "[[::1]]:80", "fd://", "fd://x", "fd://-1", "fd3", ":80\n", "fd://3\n",
        "fd://1234567890", "[:80", "]:80",
    ],
)  # fmt: skip
def test_what_is_no_bind_names_all_the_forms(bind):
    with pytest.raises(ValueError, match=r"expected host:port, :port, \[ipv6\]:port") as caught:
        parse_bind(bind)
    assert str(caught.value).startswith(f"bind {bind!r}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bind", "reason"),
    [
        (":65536", "port 65536 is above 65535"),
        ("localhost:99999", "port 99999 is above 65535"),
        ("[foo]:80", "'[foo]' is no address"),
        ("[]:80", "'[]' is no address"),
        ("[127.0.0.1]:80", "'[127.0.0.1]' is no address"),
        ("a..b:80", "'a..b' is no address and no host name"),
        (".:80", "'.' is no address and no host name"),
        ("x" * 64 + ".example:80", "no host name"),
        ("unix:", "the path must have 1 to 107 bytes"),
        ("unix:" + "x" * 108, "the path must have 1 to 107 bytes"),
        ("unix:" + "\u00fc" * 54, "the path must have 1 to 107 bytes"),
    ],
)
def test_a_bad_part_of_a_bind_is_named(bind, reason):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        open_listener(bind)
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"bind {bind!r}: ")
    assert type(caught.value) is ValueError


# --- TCP


def test_a_listener_does_not_block_and_is_not_inherited_by_programs():
    with listening("127.0.0.1:0") as sock:
        assert sock.getblocking() is False
        assert sock.get_inheritable() is False
        with pytest.raises(BlockingIOError):
            sock.accept()


def test_a_host_is_the_only_interface():
    with listening("127.0.0.1:0") as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
        with socket.create_connection(("127.0.0.1", port_of(sock)), 5), accept(sock) as server:
            assert server.getsockname() == sock.getsockname()


def test_no_host_listens_on_both_families():
    with listening(":0") as sock:
        for host in ["127.0.0.1", "::1"] if has_ipv6() else ["127.0.0.1"]:
            with socket.create_connection((host, port_of(sock)), 5), accept(sock) as server:
                assert server.getpeername()[0] in {host, f"::ffff:{host}"}


def test_no_host_is_ipv4_where_there_is_no_ipv6(monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with listening(":0") as sock:
        assert sock.family == socket.AF_INET
        assert sock.getsockname()[0] == "0.0.0.0"


@needs_ipv6
@pytest.mark.parametrize("host", ["::", "::1"])
def test_an_ipv6_address_leaves_ipv4_alone(host):
    with (
        listening(f"[{host}]:0") as six,
        listening(f"0.0.0.0:{port_of(six)}") as four,
        socket.create_connection(("127.0.0.1", port_of(six)), 5),
        accept(four) as server,
    ):
        assert server.family == socket.AF_INET


def test_a_name_with_both_families_is_its_ipv4_address(monkeypatch):
    six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
    four = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [six, four])
    with listening("both.example:0") as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


@needs_ipv6
def test_a_name_with_ipv6_alone_is_that(monkeypatch):
    six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [six])
    with listening("six.example:0") as sock:
        assert sock.getsockname()[0] == "::1"


def test_an_unknown_name_is_an_oserror_with_the_bind(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(socket.gaierror, match=r"not known: 'nowhere\.example:80'"):
        open_listener("nowhere.example:80")


def test_a_taken_port_is_an_oserror_with_the_bind():
    with listening("127.0.0.1:0") as first:
        bind = f"127.0.0.1:{port_of(first)}"
        with pytest.raises(OSError, match=f"in use: '{bind}'") as caught:
            open_listener(bind)
        assert caught.value.errno == errno.EADDRINUSE
        bound = first.getsockname()
    with listening(bind) as again:  # nothing of the failed attempt is left over
        assert again.getsockname() == bound


def test_an_ipv4_listener_takes_the_port_from_both_families():
    with listening("127.0.0.1:0") as first, pytest.raises(OSError, match="in use"):
        open_listener(f":{port_of(first)}")


def test_a_port_in_time_wait_is_free():
    with listening("127.0.0.1:0") as sock:
        port = port_of(sock)
        client = socket.create_connection(("127.0.0.1", port), 5)
        server = accept(sock)
        server.close()  # who closes first keeps the port in TIME_WAIT
        assert client.recv(1) == b""
        client.close()
    with listening(f"127.0.0.1:{port}") as again:
        assert port_of(again) == port


def test_accepted_connections_have_no_nagle():
    with listening("127.0.0.1:0") as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        with socket.create_connection(("127.0.0.1", port_of(sock)), 5), accept(sock) as server:
            if os.path.exists("/proc/net/tcp"):
                assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


@linux
def test_the_backlog_is_what_was_asked_for():
    with listening("127.0.0.1:0", ListenConfig(backlog=7)) as sock:
        assert backlog_of(sock) == 7
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    with listening("127.0.0.1:0") as sock:
        assert backlog_of(sock) == min(2048, somaxconn)


@linux
def test_defer_accept_hides_a_connection_until_it_speaks():
    with (
        listening("127.0.0.1:0", ListenConfig(defer_accept=30)) as sock,
        socket.create_connection(("127.0.0.1", port_of(sock)), 5) as client,
    ):
        with pytest.raises(BlockingIOError):
            sock.accept()
        client.sendall(b"x")
        with accept(sock) as server:
            server.setblocking(False)
            assert server.recv(1) == b"x"


@linux
def test_without_defer_accept_a_silent_connection_is_accepted():
    with (
        listening("127.0.0.1:0") as sock,
        socket.create_connection(("127.0.0.1", port_of(sock)), 5),
        accept(sock) as server,
    ):
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN) == 0


@linux
def test_fast_open_sets_the_length_of_its_queue():
    with listening("127.0.0.1:0", ListenConfig(fast_open=16)) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN) == 16


@pytest.mark.parametrize("lowat", [1 << 17, 4096])
def test_what_waits_unsent_in_the_kernel_is_bounded(lowat):
    config = ListenConfig() if lowat == 1 << 17 else ListenConfig(notsent_lowat=lowat)
    room, piece, total = 8192, bytes(4096), 0
    with listening("127.0.0.1:0", config) as sock, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        client.connect(("127.0.0.1", port_of(sock)))
        with accept(sock) as server:
            assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == lowat
            server.setblocking(False)
            while select.select([], [server], [], 0.1)[1]:
                with contextlib.suppress(BlockingIOError):
                    total += server.send(piece)
    assert total <= lowat + 4 * room + (1 << 16)  # what the client has taken, and one buffer more


@linux
def test_without_a_bound_the_kernel_takes_what_its_buffers_hold():
    with (
        listening("127.0.0.1:0", ListenConfig(notsent_lowat=0)) as sock,
        socket.create_connection(("127.0.0.1", port_of(sock)), 5),
        accept(sock) as server,
    ):
        assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 0


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("TCP_DEFER_ACCEPT", {"defer_accept": 1, "notsent_lowat": 0}),
        ("TCP_FASTOPEN", {"fast_open": 1, "notsent_lowat": 0}),
        ("TCP_NOTSENT_LOWAT", {"notsent_lowat": 1}),
    ],
)
def test_an_option_the_system_has_not_is_an_error_only_when_asked_for(monkeypatch, name, option):
    monkeypatch.delattr(socket, name, raising=False)
    with pytest.raises(OSError, match=f"this system has no {name}: '127.0.0.1:0'"):
        open_listener("127.0.0.1:0", ListenConfig(**option))
    with listening("127.0.0.1:0", ListenConfig(notsent_lowat=0)) as sock:
        assert port_of(sock) > 0


# --- several listeners on one port

SHARED = ListenConfig(reuse_port=True)


@linux
@pytest.mark.parametrize("bind", ["127.0.0.1:0", ":0"])
def test_siblings_share_the_connections(bind):
    with listening(bind, SHARED) as first, contextlib.ExitStack() as stack:
        sibling = stack.enter_context(open_sibling(first, SHARED))
        assert sibling.getsockname() == first.getsockname()
        assert sibling.getblocking() is False
        assert backlog_of(sibling) == backlog_of(first)
        for _ in range(64):
            stack.enter_context(socket.create_connection(("127.0.0.1", port_of(first)), 5))
        counts = []
        for sock in (first, sibling):
            counts.append(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    stack.enter_context(sock.accept()[0])
                    counts[-1] += 1
        assert sum(counts) == 64
        assert min(counts) > 0  # all 64 on one side: 2 ** -63


@needs_ipv6
@linux
def test_a_sibling_of_an_ipv6_listener_is_ipv6_alone():
    with listening("[::1]:0", SHARED) as first, open_sibling(first, SHARED) as sibling:
        assert sibling.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


@linux
def test_a_listener_that_does_not_share_has_no_siblings():
    with listening("127.0.0.1:0") as first, pytest.raises(OSError, match="in use"):
        open_sibling(first)


@linux
def test_a_stranger_that_would_share_is_still_a_stranger():
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        with pytest.raises(OSError, match="in use"):
            open_listener(f"127.0.0.1:{port_of(stranger)}", SHARED)


@linux
def test_nobody_comes_in_beside_a_listener_that_does_not_share():
    with listening("127.0.0.1:0") as sock, socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            stranger.bind(sock.getsockname())


# --- Unix sockets


def test_a_unix_socket_comes_and_goes_with_its_file(tmp_path):
    path = tmp_path / "hop.sock"
    with listening(f"unix:{path}") as sock:
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert sock.getblocking() is False
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            accept(sock).close()
            assert client.recv(1) == b""
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_mode_of_the_file(tmp_path, mode):
    path = tmp_path / "hop.sock"
    with listening(f"unix:{path}", ListenConfig(unix_mode=mode)):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_the_mode_is_the_umasks_when_nothing_is_said(tmp_path):
    old = os.umask(0o027)
    try:
        with listening(f"unix:{tmp_path / 'hop.sock'}"):
            assert stat.S_IMODE((tmp_path / "hop.sock").stat().st_mode) == 0o750
    finally:
        os.umask(old)


def test_options_of_tcp_are_no_error_on_a_unix_socket(tmp_path):
    config = ListenConfig(reuse_port=True, defer_accept=1, fast_open=16)
    with listening(f"unix:{tmp_path / 'hop.sock'}", config) as sock:
        assert sock.family == socket.AF_UNIX


def test_a_stale_file_is_replaced(tmp_path):
    path = tmp_path / "hop.sock"
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
        crashed.listen()
    assert path.exists()
    with listening(f"unix:{path}") as sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        accept(sock).close()


def test_a_path_on_which_somebody_listens_is_taken(tmp_path):
    bind = f"unix:{tmp_path / 'hop.sock'}"
    with listening(bind) as sock:
        with pytest.raises(OSError, match="in use") as caught:
            open_listener(bind)
        assert caught.value.filename == bind
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "hop.sock"))  # still the first one's
            accept(sock).close()


def test_a_full_backlog_is_not_taken_for_a_stale_file(tmp_path):
    bind = f"unix:{tmp_path / 'hop.sock'}"
    with listening(bind, ListenConfig(backlog=1)), contextlib.ExitStack() as stack:
        refused = 0
        while not refused:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            refused = client.connect_ex(str(tmp_path / "hop.sock"))
        assert refused == errno.EAGAIN
        with pytest.raises(OSError, match="in use"):
            open_listener(bind)


@pytest.mark.parametrize("kind", ["file", "directory", "link", "datagram"])
def test_nothing_else_is_ever_removed(tmp_path, kind):
    path = tmp_path / "precious"
    with contextlib.ExitStack() as stack:
        if kind == "file":
            path.write_text("precious")
        elif kind == "directory":
            path.mkdir()
        elif kind == "link":
            path.symlink_to(tmp_path / "elsewhere")
        else:
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind(str(path))
        with pytest.raises(OSError, match="in use"):
            open_listener(f"unix:{path}")
        assert os.path.lexists(path)


def test_a_failure_after_bind_leaves_no_file(tmp_path, monkeypatch):
    def forbidden(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", forbidden)
    with pytest.raises(PermissionError):
        open_listener(f"unix:{tmp_path / 'hop.sock'}", ListenConfig(unix_mode=0o600))
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_missing_is_an_oserror_with_the_bind(tmp_path):
    bind = f"unix:{tmp_path / 'no' / 'hop.sock'}"
    with pytest.raises(FileNotFoundError) as caught:
        open_listener(bind)
    assert caught.value.filename == bind


def test_the_file_stays_while_another_process_listens(tmp_path):
    path = tmp_path / "hop.sock"
    mine = open_listener(f"unix:{path}")
    inherited_copy = mine.dup()  # what a forked child holds
    close_listener(mine)
    assert path.exists()
    close_listener(inherited_copy)
    assert not path.exists()


def test_closing_leaves_a_successors_file_alone(tmp_path):
    path = tmp_path / "hop.sock"
    old = open_listener(f"unix:{path}")
    path.unlink()
    with listening(f"unix:{path}"):
        close_listener(old)
        assert path.exists()


def test_closing_an_adopted_one_leaves_its_owner_in_peace(tmp_path):
    """No knock, which could start the next server; and the file stays, whoever listens."""
    path = tmp_path / "supervisor.sock"
    theirs = open_listener(f"unix:{path}")
    adopted = open_listener(f"fd://{theirs.dup().detach()}")
    also = adopted.dup()
    close_listener(adopted)
    with pytest.raises(BlockingIOError):
        theirs.accept()
    theirs.close()
    close_listener(also)
    assert path.exists()


def test_closing_does_not_mind_that_the_file_may_not_be_removed(tmp_path, monkeypatch):
    """Who dropped the rights with which it was made, for instance."""

    def refuse(path):
        raise PermissionError(errno.EACCES, "not yours", path)

    sock = open_listener(f"unix:{tmp_path / 'hop.sock'}")
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", refuse)
        close_listener(sock)
    assert sock.fileno() == -1
    assert (tmp_path / "hop.sock").exists()


def test_closing_does_not_mind_that_the_file_has_gone(tmp_path):
    sock = open_listener(f"unix:{tmp_path / 'hop.sock'}")
    (tmp_path / "hop.sock").unlink()
    close_listener(sock)
    assert sock.fileno() == -1


# --- inherited descriptors


@pytest.fixture
def inherited():
    """A socket as a supervisor hands it over: listening, blocking, inheritable."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.set_inheritable(True)
        yield sock


def test_an_inherited_listener_is_adopted(inherited):
    name, fd = inherited.getsockname(), inherited.detach()
    with listening(f"fd://{fd}") as sock:
        assert sock.fileno() == fd
        assert sock.getsockname() == name
        assert sock.getblocking() is False
        assert sock.get_inheritable() is False
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        with socket.create_connection(name, 5):
            accept(sock).close()


def test_an_inherited_unix_listener_is_adopted(tmp_path):
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(tmp_path / "hop.sock"))
        theirs.listen()
        with listening(f"fd://{theirs.dup().detach()}") as sock:
            assert describe(sock) == f"unix:{tmp_path / 'hop.sock'}"
        assert (tmp_path / "hop.sock").exists()  # the supervisor still listens on it


def test_a_descriptor_that_is_closed():
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError, match=f"'fd://{writer}'") as caught:
        open_listener(f"fd://{writer}")
    assert caught.value.errno == errno.EBADF


def test_a_descriptor_that_is_no_socket():
    reader, writer = os.pipe()
    try:
        with pytest.raises(OSError, match=f"'fd://{reader}'") as caught:
            open_listener(f"fd://{reader}")
        assert caught.value.errno == errno.ENOTSOCK
        os.write(writer, b"x")  # neither end was closed
        assert os.read(reader, 1) == b"x"
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_that_does_not_listen_is_refused_and_stays_open(kind):
    with socket.socket(socket.AF_INET, kind) as sock:
        with pytest.raises(OSError, match="not a stream socket that listens: 'fd://"):
            open_listener(f"fd://{sock.fileno()}")
        sock.bind(("127.0.0.1", 0))
        assert sock.getblocking() is True


@linux
def test_a_listener_of_packets_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(tmp_path / "packets"))
        sock.listen()
        with pytest.raises(OSError, match="not a stream socket that listens"):
            open_listener(f"fd://{sock.fileno()}")
        assert os.get_inheritable(sock.fileno()) is False


# --- names for logs


def test_describe_tcp():
    with listening("127.0.0.1:0") as sock:
        assert describe(sock) == f"http://127.0.0.1:{port_of(sock)}"


@needs_ipv6
def test_describe_ipv6():
    with listening("[::1]:0") as sock:
        assert describe(sock) == f"http://[::1]:{port_of(sock)}"


@linux
def test_an_abstract_name_is_described_and_has_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(f"\0hop-test-{os.getpid()}")
        theirs.listen()
        sock = open_listener(f"fd://{theirs.detach()}")
        assert describe(sock) == f"unix:@hop-test-{os.getpid()}"
        close_listener(sock)
        assert sock.fileno() == -1
