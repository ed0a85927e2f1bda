"""A load of WebSocket messages: many connections, each with one message on the way.

Runs in a process of its own and costs little: the frame is made once, and an echo is compared
with what it must be, not parsed. `python -m examples.load_ws PORT PATH CONNECTIONS SECONDS` says
`ready` when it has connected and warmed up, waits for a line, and prints what it saw as JSON.
"""

import argparse
import json
import math
import resource
import select
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass

HOST = "127.0.0.1"
PER_ADDRESS = 20_000  # connections from one source address
HANDSHAKE = (
    b"GET %b HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
BIND_ADDRESS_NO_PORT = 24  # ip(7): IP_BIND_ADDRESS_NO_PORT
MASK = b"\x1d\xa4\x52\xe7"


def masked(payload: bytes, first: int = 0x82) -> bytes:
    """A client's frame (RFC 6455, 5.2): binary by default, its payload shorter than 65,536."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)
    mask = (MASK * (size // 4 + 1))[:size]
    plain = int.from_bytes(payload) ^ int.from_bytes(mask)
    return bytes([first]) + length + MASK + plain.to_bytes(size)


def unmasked(payload: bytes, first: int = 0x82) -> bytes:
    """The same frame as a server sends it."""
    size = len(payload)
    return bytes([first]) + (bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2)) + payload


def upgrade(port: int, path: str, number: int = 0) -> socket.socket:
    """Connection `number`, its handshake done.

    Raises OSError when the server does not take it, or refuses, or says more than the handshake.
    """
    sock = socket.socket()
    sock.settimeout(20)
    try:
        # A port is chosen for this pair of addresses alone, and given back at once at the end:
        # tens of thousands of connections would use them up for everybody.
        sock.setsockopt(socket.SOL_IP, BIND_ADDRESS_NO_PORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((f"127.0.0.{2 + number // PER_ADDRESS}", 0))
        sock.connect((HOST, port))
        sock.sendall(HANDSHAKE % path.encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            data = sock.recv(4096)
            answer += data
            if not data or not answer.startswith(b"HTTP/1.1 101"[: len(answer)]):
                raise ConnectionError(f"refused: {answer[:100]!r}")
    except OSError:
        sock.close()
        raise
    return sock


@dataclass(frozen=True)
class Echoes:
    """What came back: `messages` right ones, `errors` connections lost or answered wrongly;
    times from sending to having are in milliseconds."""

    messages: int
    errors: int
    messages_per_second: float
    p50: float
    p99: float


class Echo:
    """Connections to an echo; each sends the next message when the last one is back."""

    def __init__(self, port: int, path: str, connections: int, size: int) -> None:
        payload = bytes(range(97, 97 + 26)) * (size // 26 + 1)
        self.frame, self.wanted = masked(payload[:size]), unmasked(payload[:size])
        self.poller = select.epoll()
        self.clients: dict[int, socket.socket] = {}
        self.partial: dict[int, bytes] = {}
        self.started: dict[int, float] = {}
        for number in range(connections):
            sock = upgrade(port, path, number)
            self.clients[sock.fileno()] = sock
            self.poller.register(sock, select.EPOLLIN)

    def run(self, seconds: float) -> Echoes:
        """Keep all connections busy for so long, then take what is still on the way."""
        clock, latencies, errors = time.perf_counter, [], 0
        began = clock()
        until = began + seconds
        for fd, sock in self.clients.items():
            self.started[fd] = clock()
            sock.sendall(self.frame)
        waiting = set(self.clients)
        while waiting and (events := self.poller.poll(5.0)):
            for fd, _ in events:
                if fd not in waiting:
                    continue
                sock = self.clients[fd]
                try:
                    data = self.partial.pop(fd, b"") + sock.recv(65536)
                    if data != self.wanted:
                        if self.wanted.startswith(data) and data:
                            self.partial[fd] = data
                            continue
                        raise ConnectionError("not the echo")
                    now = clock()
                    latencies.append(now - self.started[fd])
                    if now < until:
                        self.started[fd] = now
                        sock.sendall(self.frame)
                    else:
                        waiting.discard(fd)
                except OSError:
                    errors += 1
                    waiting.discard(fd)
                    self.poller.unregister(fd)
                    self.clients.pop(fd).close()
        elapsed = clock() - began
        latencies.sort()

        def share(part: float) -> float:
            return 1000 * latencies[int(part * (len(latencies) - 1))] if latencies else math.nan

        return Echoes(
            len(latencies), errors + len(waiting), len(latencies) / elapsed, share(0.5), share(0.99)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("connections", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--size", type=int, default=64, help="bytes in a message")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    echo = Echo(options.port, options.path, options.connections, options.size)
    echo.run(options.seconds / 4)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(asdict(echo.run(options.seconds))), flush=True)


if __name__ == "__main__":
    main()
