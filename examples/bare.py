"""The least a Python server can do: epoll, one recv, find the blank line, send a constant.

It knows no HTTP. What it costs per request is the kernel's share and the interpreter's; what a
real server costs beyond it is that server's own.
"""

import select
import socket

from examples.workloads import HELLO

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (
    len(HELLO), HELLO,
)


def serve(host: str, port: int) -> None:
    """Answer for ever, one request for every recv that holds a blank line."""
    listener = socket.create_server((host, port), backlog=2048)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setblocking(False)
    poller = select.epoll()
    poller.register(listener.fileno(), select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poller.poll():
            connection = connections.get(fd)
            if connection is None:
                connection, _ = listener.accept()
                connection.setblocking(False)
                connections[connection.fileno()] = connection
                poller.register(connection.fileno(), select.EPOLLIN)
                continue
            try:
                data = connection.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                poller.unregister(fd)
                connections.pop(fd).close()
            elif data.find(b"\r\n\r\n") >= 0:
                connection.send(ANSWER)
