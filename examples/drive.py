"""`python -m examples.drive ORDER`: our own load generator; the order and its answer are JSON."""

import dataclasses
import json
import math
import re
import select
import socket
import sys
import time
from collections.abc import Callable, Sequence

from examples.bulk import transfer
from examples.load import HOST, PERCENTS, PIPELINED, Load, Order

LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
PATIENCE = 30.0  # seconds without any answer
BIND_ADDRESS_NO_PORT = 24  # the port is chosen at `connect`, from all that are free there (ip(7))
FIELDS = [
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/128.0\r\n",
    b"Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\n",
    b"Accept-Language: en-GB,en;q=0.7\r\n",
    b"Accept-Encoding: gzip, deflate\r\n",
]


def same(number: int, path: str = "/") -> bytes:
    """What wrk sends by default."""
    return b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode()


def different(number: int, path: str = "/") -> bytes:
    """A head that differs from every other in path, query, cookie and the order of its fields."""
    turn = number % len(FIELDS)
    return b"GET /p/%d?q=%d HTTP/1.1\r\nHost: localhost\r\n%bCookie: session=%d\r\n%b" % (
        number, number * 7, b"".join(FIELDS[turn:] + FIELDS[:turn]), number * 31,
        b"X-Request-Id: %d\r\n\r\n" % number,
    )


def new(number: int, path: str = "/") -> bytes:
    """A head of which no line comes again, under names whose lines a server may remember."""
    return (
        b"GET / HTTP/1.1\r\nHost: h%d\r\nUser-Agent: a%d\r\nAccept: b/%d\r\n"
        b"Accept-Language: c%d\r\nAccept-Encoding: d%d\r\nX-%d: e\r\n\r\n" % ((number,) * 6)
    )


def pipelined(number: int, path: str = "/") -> bytes:
    """Sixteen at a time."""
    return same(number, path) * PIPELINED


KINDS: dict[str, Callable[[int, str], bytes]] = {
    "same": same, "different": different, "new": new, "pipelined": pipelined,
}


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed; nan when there are none."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Client:
    """One connection; a request, or a pipeline of some, is on the way at most."""

    __slots__ = ("answer", "begins", "left", "sock", "started")

    def __init__(self, port: int, source: str = HOST) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
        self.sock.bind((source, 0))
        self.sock.connect((HOST, port))
        self.answer = b""
        self.begins = 0  # where in `answer` the next one begins
        self.left = 0  # answers that have not come
        self.started = 0.0

    def ask(self, request: bytes, answers: int = 1) -> None:
        self.answer, self.begins, self.left = b"", 0, answers
        self.started = time.perf_counter()
        self.sock.sendall(request)

    def receive(self) -> bool:
        """Take what has arrived; whether all the answers are complete.

        Raises ConnectionError when the server has closed, or answers without Content-Length.
        """
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("closed before the answer was complete")
        self.answer += data
        while self.left and (head := self.answer.find(b"\r\n\r\n", self.begins)) >= 0:
            length = LENGTH.search(self.answer, self.begins, head)
            if length is None:
                raise ConnectionError("an answer without Content-Length")
            ends = head + 4 + int(length[1])
            if len(self.answer) < ends:
                break
            self.left -= 1
            if self.left:
                self.begins = ends
        return not self.left

    def succeeded(self) -> bool:
        """Whether the last answer was a good one."""
        return self.answer[self.begins + 9 : self.begins + 10] in (b"2", b"3")


def seen(latencies: list[float], answers: int, errors: int, received: int, elapsed: float) -> Load:
    """The report; `latencies` and `elapsed` are in seconds, `received` in bytes."""
    latencies.sort()
    return Load(
        generator="own",
        requests=answers,
        errors=errors,
        requests_per_second=answers / elapsed,
        transfer=received / elapsed,
        mean=1000 * sum(latencies) / len(latencies) if latencies else math.nan,
        p50=1000 * percentile(latencies, 0.5),
        p99=1000 * percentile(latencies, 0.99),
        latencies=[[p, 1000 * percentile(latencies, p / 100)] for p in PERCENTS if latencies],
    )


def drive(order: Order) -> Load:
    """Keep so many connections busy for so long, and until there has been an answer at least; runs
    in the calling thread. Raises TimeoutError when there is none."""
    poller, clients = select.epoll(), {}
    latencies: list[float] = []
    received = errors = number = 0
    make, lot = KINDS[order.kind], PIPELINED if order.kind == "pipelined" else 1

    def connect() -> None:
        nonlocal number
        client = Client(order.port)
        clients[client.sock.fileno()] = client
        poller.register(client.sock.fileno(), select.EPOLLIN)
        number += 1
        client.ask(make(number, order.path), lot)

    for _ in range(order.connections):
        connect()
    start = time.perf_counter()
    while (left := start + order.seconds - time.perf_counter()) > 0 or not (latencies or errors):
        events = poller.poll(left if left > 0 else PATIENCE)
        if not events and left <= 0:
            raise TimeoutError("no answer at all")
        for fd, _ in events:
            client = clients[fd]
            try:
                if not client.receive():
                    continue
                latencies.append(time.perf_counter() - client.started)
                received += len(client.answer)
                errors += not client.succeeded()
                number += 1
                client.ask(make(number, order.path), lot)
            except ConnectionError:
                errors += 1
                poller.unregister(fd)
                clients.pop(fd).sock.close()
                connect()
    elapsed = time.perf_counter() - start
    for client in clients.values():
        client.sock.close()
    poller.close()
    return seen(latencies, len(latencies) * lot, errors, received, elapsed)


def pace(order: Order) -> Load:
    """Ask at a steady rate, over the connections in turn, however long the answers take.

    A latency counts from the moment at which the request was due: had it been sent late because
    an earlier answer was late, a count from the sending would omit that.
    """
    clients = [Client(order.port) for _ in range(order.connections)]
    latencies: list[float] = []
    received = errors = 0
    start = time.perf_counter()
    for number in range(max(1, round(order.seconds * order.rate))):
        due = start + number / order.rate
        time.sleep(max(0.0, due - time.perf_counter()))
        client = clients[number % len(clients)]
        client.ask(same(number, order.path))
        while not client.receive():
            pass
        latencies.append(time.perf_counter() - due)
        received += len(client.answer)
        errors += not client.succeeded()
    elapsed = time.perf_counter() - start
    for client in clients:
        client.sock.close()
    return seen(latencies, len(latencies), errors, received, elapsed)


def bulk(order: Order) -> Load:
    """Whole bodies of many bytes, one after the other on every connection."""
    began = time.perf_counter()
    latencies, errors = transfer(order)
    elapsed = time.perf_counter() - began
    return seen(latencies, len(latencies), errors, len(latencies) * order.size, elapsed)


GENERATORS: dict[str, Callable[[Order], Load]] = {
    **dict.fromkeys(KINDS, drive), "steady": pace, "download": bulk, "upload": bulk,
}


def main() -> None:
    order = Order(**json.loads(sys.argv[1]))
    print(json.dumps(dataclasses.asdict(GENERATORS[order.kind](order))))


if __name__ == "__main__":
    main()
