# Tangled from notebooks/01_listener.ipynb. Edit the notebook.
"""Listener.

From a bind string to a socket that listens, and to nobody else's port.
"""

import contextlib
import errno
import ipaddress
import os
import re
import socket
import stat
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = [
    "DEFAULT",
    "FORMS",
    "LONGEST_UNIX_PATH",
    "Bind",
    "FdBind",
    "ListenConfig",
    "TcpBind",
    "UnixBind",
    "close_listener",
    "describe",
    "open_listener",
    "open_sibling",
    "parse_bind",
]


class TcpBind(NamedTuple):
    """A TCP port; an empty host means every interface, IPv6 and IPv4 alike."""

    host: str
    port: int


class UnixBind(NamedTuple):
    """A Unix domain socket, known by the path of its file."""

    path: str


class FdBind(NamedTuple):
    """A socket that listens already and was inherited under this descriptor number."""

    fd: int


Bind = TcpBind | UnixBind | FdBind


def _host(bind: str, text: str) -> str:
    """The host without its brackets; no name is looked up here."""
    host = text.strip("[]")
    try:
        if text.startswith("["):
            ipaddress.IPv6Address(host)
        else:
            host.encode("idna")
    except ValueError:  # UnicodeError is one
        raise ValueError(f"bind {bind!r}: {text!r} is no address and no host name") from None
    return host


def _port(bind: str, digits: str) -> int:
    port = int(digits)
    if port > 65535:
        raise ValueError(f"bind {bind!r}: port {port} is above 65535")
    return port


FORMS = "host:port, :port, [ipv6]:port, unix:/path or fd://N"
LONGEST_UNIX_PATH = 107  # bytes: sun_path holds 108, and the last is a NUL (unix(7))


def parse_bind(bind: str) -> Bind:
    """Read a bind string; ValueError with a one-line text when it is none.

    >>> parse_bind("[::1]:1826")
    TcpBind(host='::1', port=1826)
    """
    if bind.startswith("unix:"):
        path = bind.removeprefix("unix:")
        if not 0 < len(os.fsencode(path)) <= LONGEST_UNIX_PATH:
            raise ValueError(f"bind {bind!r}: the path must have 1 to {LONGEST_UNIX_PATH} bytes")
        return UnixBind(path)
    if inherited := re.fullmatch(r"fd://([0-9]{1,9})", bind):
        return FdBind(int(inherited[1]))
    if tcp := re.fullmatch(r"(\[[^\[\]]*\]|[^\[\]:/@\s]*):([0-9]{1,5})", bind):
        return TcpBind(_host(bind, tcp[1]), _port(bind, tcp[2]))
    raise ValueError(f"bind {bind!r}: expected {FORMS}")


@dataclass(frozen=True, slots=True)
class ListenConfig:
    """What a listening socket is asked for beyond its address.

    backlog: finished handshakes the kernel keeps until somebody accepts them (it cuts
    the number to net.core.somaxconn); reuse_port: further sockets of the same user may
    share the port (see open_sibling); defer_accept: seconds for which a connection that
    has sent nothing yet is kept from accept (Linux); fast_open: how many connections may
    bring data in their SYN (RFC 7413), 0 for none; notsent_lowat: bytes of an answer that
    the kernel takes in before it may send them, 0 for as many as its buffers hold;
    unix_mode: the mode of the socket file, None for what the umask says. An option that
    is none of a socket's family is left out.
    """

    backlog: int = 2048
    reuse_port: bool = False
    defer_accept: int = 0
    fast_open: int = 0
    notsent_lowat: int = 1 << 17 if hasattr(socket, "TCP_NOTSENT_LOWAT") else 0
    unix_mode: int | None = None


DEFAULT = ListenConfig()


def _address(host: str, port: int) -> tuple[int, Any]:
    """Family and address to bind; a name that has both families gives its IPv4 address."""
    if not host and socket.has_dualstack_ipv6():
        return socket.AF_INET6, ("::", port)
    found = socket.getaddrinfo(
        host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, *_, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    return family, address


def _tcp_socket(family: int, *, dual_stack: bool) -> socket.socket:
    """A TCP socket that is about to be bound; IPv6 alone unless *dual_stack*."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
    return sock


def _set_options(sock: socket.socket, config: ListenConfig) -> None:
    """Non-blocking, and on TCP the options that accepted sockets inherit (tcp(7))."""
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return
    options = {
        "TCP_NODELAY": 1,
        "TCP_DEFER_ACCEPT": config.defer_accept,
        "TCP_FASTOPEN": config.fast_open,
        "TCP_NOTSENT_LOWAT": config.notsent_lowat,
    }
    for name, value in options.items():
        if value and not hasattr(socket, name):
            raise OSError(errno.ENOPROTOOPT, f"this system has no {name}")
        if value:
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _open_tcp(bind: TcpBind, config: ListenConfig) -> socket.socket:
    """A listener whose port nobody else held when it was bound."""
    family, address = _address(*bind)
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(_tcp_socket(family, dual_stack=not bind.host))
        sock.bind(address)
        if config.reuse_port:  # set before bind it would let us in beside a stranger
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _set_options(sock, config)
        sock.listen(config.backlog)
        undo.pop_all()
    return sock


def open_sibling(first: socket.socket, config: ListenConfig = DEFAULT) -> socket.socket:
    """One more listener on the port of *first*; the kernel spreads connections over them.

    OSError (EADDRINUSE) unless *first* was opened with reuse_port. Linux.
    """
    dual_stack = first.family == socket.AF_INET6 and not first.getsockopt(
        socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
    )
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(_tcp_socket(first.family, dual_stack=dual_stack))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(first.getsockname())
        _set_options(sock, config)
        sock.listen(config.backlog)
        undo.pop_all()
    return sock


def _remove_stale(path: str) -> None:
    """Remove the socket file at *path* if nobody listens on it; all else stays."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            if probe.connect_ex(path) == errno.ECONNREFUSED:
                os.unlink(path)


def _open_unix(path: str, config: ListenConfig) -> socket.socket:
    """A listener at *path*, whose file has its mode before anybody can connect."""
    _remove_stale(path)
    with contextlib.ExitStack() as undo:
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.bind(path)
        undo.callback(os.unlink, path)
        if config.unix_mode is not None:
            os.chmod(path, config.unix_mode)
        _set_options(sock, config)
        sock.listen(config.backlog)
        undo.pop_all()
    return sock


class _Adopted(socket.socket):
    """A listener that somebody else has opened: its file is theirs."""


def close_listener(sock: socket.socket) -> None:
    """Close; the file of our own Unix socket goes too, once no process listens on it any more."""
    ours = sock.family == socket.AF_UNIX and not isinstance(sock, _Adopted)
    path = sock.getsockname() if ours else ""
    sock.close()
    if path and isinstance(path, str):  # an abstract name (bytes) has no file
        with contextlib.suppress(OSError):  # who may not remove it leaves it
            _remove_stale(path)


def _adopt(fd: int, config: ListenConfig) -> socket.socket:
    """The socket that listens under *fd*; if it is refused it stays open, and not ours."""
    with contextlib.ExitStack() as undo:
        sock = _Adopted(fileno=fd)  # asks the kernel for family and type
        undo.callback(sock.detach)
        if sock.type != socket.SOCK_STREAM or not sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            raise OSError(errno.EINVAL, "not a stream socket that listens")
        sock.set_inheritable(False)
        _set_options(sock, config)
        undo.pop_all()
    return sock


def open_listener(bind: str, config: ListenConfig = DEFAULT) -> socket.socket:
    """Open what *bind* names: a listening, non-blocking socket, the caller's to close.

    ValueError for a string that is no bind; OSError, with the bind in its text, for a
    port in use, an address that is not here, a descriptor that does not listen.
    """
    where = parse_bind(bind)
    try:
        if isinstance(where, TcpBind):
            return _open_tcp(where, config)
        if isinstance(where, UnixBind):
            return _open_unix(where.path, config)
        return _adopt(where.fd, config)
    except OSError as error:
        error.filename = bind
        raise


def describe(sock: socket.socket) -> str:
    """Where *sock* listens, for logs: "http://127.0.0.1:1826", "unix:/run/hop.sock"."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return "unix:" + os.fsdecode(name).replace("\0", "@", 1)
    host, port = name[:2]
    return f"http://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"http://{host}:{port}"
