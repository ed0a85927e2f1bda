"""One operation in this process: hop with no kernel at all, then hop and std over a socket.

Python keeps no count of all that was ever allocated, so an operation's memory is given as the
most that was in use at once (`peak_bytes`) and as what it left behind (`blocks_left`).
"""

import gc
import socket
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from examples.drive import same
from examples.std import StdServer
from examples.workloads import hello

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from hop.connection import Keeping

BROWSER = (
    b"GET /index.html HTTP/1.1\r\nHost: localhost:1826\r\nConnection: keep-alive\r\n"
    b'sec-ch-ua: "Chromium";v="126", "Not.A/Brand";v="24"\r\nsec-ch-ua-mobile: ?0\r\n'
    b'sec-ch-ua-platform: "Linux"\r\nUpgrade-Insecure-Requests: 1\r\n'
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    b"Chrome/126.0.0.0 Safari/537.36\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    b"Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-User: ?1\r\n"
    b"Sec-Fetch-Dest: document\r\nAccept-Encoding: gzip, deflate, br\r\n"
    b"Accept-Language: en-GB,en;q=0.9\r\n\r\n"
)
# Heads of which no line comes again before a memo of a few thousand lines has forgotten it.
NEVER = [
    BROWSER.replace(b"/index", b"/page/%d?index" % number).replace(b": ", b": %d" % number)
    .replace(b"\r\n\r\n", b"\r\nCookie: session=%d\r\n\r\n" % number)
    for number in range(1000)
]  # fmt: skip
HEADS: dict[str, Callable[[int], bytes]] = {
    "no kernel, small head": same,
    "no kernel, browser's head": lambda number: BROWSER,
    "no kernel, never repeated": lambda number: NEVER[number % len(NEVER)],
}
Operation = Callable[[], bytes]


@dataclass(frozen=True)
class OperationRow:
    """One request and its answer, `operations` times; the best of several repeats."""

    workload: str
    server: str
    operations: int
    microseconds: float
    peak_bytes: int
    blocks_left: float


def gauge(
    workload: str,
    server: str,
    operation: Operation,
    operations: int,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> OperationRow:
    """Time the operation, then run it again to see its memory, which slows it.

    `clock` is the wall's, or `time.process_time` for an operation that waits for nobody: what
    else the machine does is then not counted.
    """
    best = float("inf")
    operation()
    for _ in range(repeats):
        start = clock()
        for _ in range(operations):
            operation()
        best = min(best, clock() - start)
    gc.collect()
    blocks = sys.getallocatedblocks()
    for _ in range(operations):
        operation()
    gc.collect()
    blocks = sys.getallocatedblocks() - blocks
    return OperationRow(
        workload, server, operations, 1e6 * best / operations,
        peak_bytes(operation, min(operations, 50)), blocks / operations,
    )


def peak_bytes(operation: Operation, operations: int) -> int:
    """The most that one operation had allocated at once; the median of several."""
    peaks = []
    tracemalloc.start()
    try:
        for _ in range(operations):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            operation()
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    return sorted(peaks)[len(peaks) // 2]


# without a kernel


class FakeSocket:
    """A client that asks again as soon as it is answered, and takes whatever is sent."""

    def __init__(self, make: Callable[[int], bytes]) -> None:
        self.make, self.number, self.sent = make, 0, b""

    def recv(self, size: int) -> bytes:
        self.number += 1
        return self.make(self.number)

    def send(self, data: bytes) -> int:
        self.sent = data
        return len(data)

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 50_000


class FakeLoop:
    """As much of the loop as a connection needs, with a clock that stands still."""

    now = 0.0
    buffer_size = 65536
    keeping: "Keeping | None" = None
    max_unsent = 1 << 20
    draining = False

    def begin(self, conn: Any, call: object) -> None: ...

    def end(self, conn: Any) -> None: ...

    def answer(self, conn: Any, data: bytes) -> None:
        conn.write(data)

    def wait_writable(self, conn: Any) -> None: ...

    def assist(self, conn: Any) -> None: ...


def without_kernel(
    application: "WSGIApplication" = hello, make: Callable[[int], bytes] = same
) -> Operation:
    """An operation that reads a request, answers it and sends, with everything real but the
    socket, the poller and the threads. `make` gives the request for a number."""
    from hop.adaptor import base_environ
    from hop.connection import Connection
    from hop.engine import ConnectionState, Engine

    sock: Any = FakeSocket(make)
    conn: Any = Connection(
        sock, FakeLoop(), base_environ("localhost", "1826", sys.stderr), ConnectionState.IDLE
    )
    engine = Engine(application)
    receive, received = conn.receive, engine.received

    def operation() -> bytes:
        received(conn, receive() or b"")
        return sock.sent  # type: ignore[no-any-return]

    if not operation().startswith(b"HTTP/1.1 200"):
        raise RuntimeError("hop did not answer over the fake socket")
    return operation


# over a socket


@contextmanager
def std_server(application: "WSGIApplication") -> Iterator[int]:
    """The standard library's server in a thread, with TCP_NODELAY, as Go's server has it; the
    port. Without it, each operation would take 40 ms."""
    server = StdServer(application, "127.0.0.1:0", nodelay=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def hop_server(application: "WSGIApplication") -> Iterator[int]:
    """hop in a thread; the port."""
    from hop.testing import serve

    with serve(application) as served:
        yield served.port


SERVERS = {"hop": hop_server, "std": std_server}


@contextmanager
def over_socket(server: str, application: "WSGIApplication" = hello) -> Iterator[Operation]:
    """An operation that asks over a kept connection and reads the answer, in the calling thread
    (the server has another)."""
    with (
        SERVERS[server](application) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
    ):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = same(0)

        def ask() -> bytes:
            sock.sendall(request)
            answer = sock.recv(65536)
            while answer and b"\r\n\r\nHello" not in answer:
                answer += sock.recv(65536)
            return answer

        yield ask


def inprocess(operations: int = 5000, application: "WSGIApplication" = hello) -> list[OperationRow]:
    """hop without a kernel for three kinds of head, then hop and std over a socket."""
    rows = [
        gauge(
            workload, "hop", without_kernel(application, make), operations // 4 or 1, 20,
            time.process_time,
        )
        for workload, make in HEADS.items()
    ]
    for server in SERVERS:
        with over_socket(server, application) as operation:
            rows.append(gauge("over a socket", server, operation, max(operations // 5, 1)))
    return rows
