"""`python -m examples.beside KIND PORT COUNT`: clients that others have to live with.

  burn      ask for what burns processor time, again and again
  stopped   begin a request, and send no more
  reader    ask for a megabyte, and read a little of it now and then
  writer    announce a megabyte, and send a byte of it now and then

Prints "ready" when all of them have begun, and goes on until it is killed. Who is thrown out comes
back.
"""

import contextlib
import itertools
import select
import socket
import sys
import time
from collections.abc import Callable

from examples.drive import Client, same
from examples.load import HOST

PERIOD = 5.0  # seconds in which each slow client moves once
SLICES = 50
BEGINNING = {
    "stopped": b"GET / HTTP/1.1\r\nHost: local",
    "reader": b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "writer": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n",
}


def ready() -> None:
    print("ready", flush=True)


def burn(port: int, count: int, announce: Callable[[], None] = ready) -> None:
    """Each connection has one such request on the way at all times."""
    poller, clients = select.epoll(), {}
    for _ in range(count):
        client = Client(port)
        clients[client.sock.fileno()] = client
        poller.register(client.sock.fileno(), select.EPOLLIN)
        client.ask(same(0, "/burn"))
    announce()
    while True:
        for fd, _ in poller.poll():
            if clients[fd].receive():
                clients[fd].ask(same(0, "/burn"))


def begin(kind: str, port: int) -> socket.socket:
    """A slow client that has begun, with a small buffer for what it is sent."""
    sock = socket.socket()
    if kind == "reader":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(30)
    sock.connect((HOST, port))
    sock.sendall(BEGINNING[kind])
    sock.setblocking(False)
    return sock


def moved(kind: str, sock: socket.socket) -> bool:
    """Let it move; False when the server has thrown it out, or has answered."""
    try:
        if kind == "writer":
            sock.send(b"x")
        data = sock.recv(1024)
        return kind == "reader" and bool(data)
    except BlockingIOError:
        return True
    except OSError:
        return False


def stall(kind: str, port: int, count: int, announce: Callable[[], None] = ready) -> None:
    """Hold so many slow clients; a slice of them moves at a time.

    They are ready when each has moved once: by then the kernel, which at first asks a full window
    again and again whether it has room, does so less often (RFC 9293, section 3.8.6.1).
    """
    clients = [begin(kind, port) for _ in range(count)]
    for turn in itertools.count():
        if turn == 1:
            announce()
        for first in range(SLICES):
            time.sleep(PERIOD / SLICES)
            for number in range(first, count, SLICES):
                if not moved(kind, clients[number]):
                    clients[number].close()
                    clients[number] = begin(kind, port)


def main() -> None:
    kind, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with contextlib.suppress(KeyboardInterrupt):
        if kind == "burn":
            burn(port, count)
        else:
            stall(kind, port, count)


if __name__ == "__main__":
    main()
