"""The least that can echo WebSocket frames: an epoll loop, short frames, nothing checked.

A yardstick for examples/bench_websocket.py, not a server: it shows what the kernel and the
interpreter's loop cost before anybody speaks WebSocket properly.
"""

import base64
import hashlib
import re
import select
import socket

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
KEY = re.compile(rb"sec-websocket-key: *(\S+)", re.IGNORECASE)
ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\n\r\n"
)
LONGEST = 125  # bytes of payload


def accept(head: bytes) -> bytes:
    """The answer to a handshake."""
    key = KEY.search(head)
    digest = hashlib.sha1((key[1] if key else b"") + GUID).digest()
    return ANSWER % base64.b64encode(digest)


def echo(data: bytes) -> bytes:
    """The frames in `data`, unmasked; all of them whole and short, as this load sends them."""
    output, start = b"", 0
    while start < len(data):
        size = data[start + 1] & 127
        body = start + 6
        mask = data[start + 2 : body] * (size // 4 + 1)
        plain = int.from_bytes(data[body : body + size]) ^ int.from_bytes(mask[:size])
        output += bytes((data[start], size)) + plain.to_bytes(size)
        start = body + size
    return output


def serve(host: str, port: int) -> None:
    """Echo until the process ends."""
    listener = socket.create_server((host, port), backlog=4096)
    poller, clients = select.epoll(), {}
    poller.register(listener, select.EPOLLIN)
    while True:
        for fd, _ in poller.poll():
            if fd == listener.fileno():
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = client
                poller.register(client, select.EPOLLIN)
                continue
            client = clients[fd]
            try:
                data = client.recv(65536)
                if data:
                    client.send(accept(data) if data.startswith(b"GET ") else echo(data))
                    continue
            except ConnectionError:
                pass
            poller.unregister(fd)
            clients.pop(fd).close()
