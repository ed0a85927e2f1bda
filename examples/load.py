"""Load on a server: wrk where it is installed, otherwise a small generator of our own.

Both keep a number of connections busy, each with one request at a time, for some seconds. Our
own is written in Python and costs about as much processor time as the server that it asks, so
its throughput says little; it runs in a process of its own and says who it is.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}
BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
FIELDS = [
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/128.0\r\n",
    b"Accept: text/html,application/xhtml+xml;q=0.9,*/*;q=0.8\r\n",
    b"Accept-Language: en-GB,en;q=0.7\r\n",
    b"Accept-Encoding: gzip, deflate\r\n",
]


@dataclass(frozen=True)
class Load:
    """What a generator saw. Latencies are in milliseconds, `transfer` in bytes a second."""

    generator: str
    requests: int
    errors: int
    requests_per_second: float
    transfer: float
    mean: float
    p50: float
    p99: float


@contextlib.contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Processes started in the block run on this processor; the calling thread moves back."""
    if cpu is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed; nan when there are none."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


# wrk


def quantity(text: str, units: dict[str, float] | dict[str, int]) -> float:
    """`1.50ms` or `2.3M` in the base unit. Raises ValueError for anything else."""
    match = re.fullmatch(r"(-?[0-9.]+(?:nan)?|-?nan)([a-zA-Z]*)", text)
    if match is None or match[2] not in units:
        raise ValueError(f"not a quantity: {text!r}")
    return float(match[1]) * units[match[2]]


def read_wrk(text: str) -> Load:
    """What wrk printed. Raises ValueError when it is not wrk's report."""

    def find(pattern: str) -> str:
        match = re.search(pattern, text)
        if match is None:
            raise ValueError(f"wrk said: {text.strip()[-500:]!r}")
        return match[1]

    errors = [int(number) for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", text)]
    for line in re.findall(r"Socket errors: (.*)", text):
        errors += [int(number) for number in re.findall(r"\d+", line)]
    return Load(
        generator="wrk",
        requests=int(find(r"(\d+) requests in")),
        errors=sum(errors),
        requests_per_second=float(find(r"Requests/sec: +([0-9.]+)")),
        transfer=quantity(find(r"Transfer/sec: +([0-9.]+[KMG]?)B"), BYTES),
        mean=quantity(find(r"Latency +(\S+)"), MILLISECONDS),
        p50=quantity(find(r"\n +50% +(\S+)"), MILLISECONDS),
        p99=quantity(find(r"\n +99% +(\S+)"), MILLISECONDS),
    )


def wrk(
    port: int, connections: int, seconds: float, threads: int, cpu: int | None, varied: bool
) -> Load:
    """One run of wrk; it counts in whole seconds, so `seconds` is rounded up."""
    command = [
        "wrk", f"-t{min(threads, connections)}", f"-c{connections}", f"-d{math.ceil(seconds)}s",
        "--latency", *(["-s", str(HERE / "vary.lua")] if varied else []),
        f"http://{HOST}:{port}/",
    ]
    with pinned(cpu):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with process:
        assert process.stdout is not None
        return read_wrk(process.stdout.read().decode())


# our own


def same(number: int) -> bytes:
    """What wrk sends by default."""
    return b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def different(number: int) -> bytes:
    """A head that differs from every other in path, query, cookie and the order of its fields."""
    turn = number % len(FIELDS)
    return b"GET /p/%d?q=%d HTTP/1.1\r\nHost: localhost\r\n%bCookie: session=%d\r\n%b" % (
        number, number * 7, b"".join(FIELDS[turn:] + FIELDS[:turn]), number * 31,
        b"X-Request-Id: %d\r\n\r\n" % number,
    )


class Client:
    """One connection with at most one request on the way."""

    __slots__ = ("answer", "ends", "sock", "started")

    def __init__(self, port: int, source: str = HOST) -> None:
        self.sock = socket.create_connection((HOST, port), 10, (source, 0))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer = b""
        self.ends = 0  # the answer's length, once its head is there
        self.started = 0.0

    def ask(self, request: bytes) -> None:
        self.answer, self.ends = b"", 0
        self.started = time.perf_counter()
        self.sock.sendall(request)

    def receive(self) -> bool:
        """Take what has arrived; whether the answer is complete.

        Raises ConnectionError when the server has closed, or answers without Content-Length.
        """
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("closed before the answer was complete")
        self.answer += data
        if not self.ends:
            head = self.answer.find(b"\r\n\r\n")
            if head < 0:
                return False
            length = LENGTH.search(self.answer, 0, head)
            if length is None:
                raise ConnectionError("an answer without Content-Length")
            self.ends = head + 4 + int(length[1])
        return len(self.answer) >= self.ends

    def succeeded(self) -> bool:
        return self.answer[9:10] in (b"2", b"3")


def drive(
    port: int, connections: int, seconds: float, make: Callable[[int], bytes] = same
) -> Load:
    """Keep so many connections busy for so long; runs in the calling thread."""
    poller, clients = select.epoll(), {}
    latencies: list[float] = []
    received = errors = number = 0

    def connect() -> None:
        nonlocal number
        client = Client(port)
        clients[client.sock.fileno()] = client
        poller.register(client.sock.fileno(), select.EPOLLIN)
        number += 1
        client.ask(make(number))

    start = time.perf_counter()
    for _ in range(connections):
        connect()
    while (left := start + seconds - time.perf_counter()) > 0:
        for fd, _ in poller.poll(left):
            client = clients[fd]
            try:
                if not client.receive():
                    continue
                latencies.append(time.perf_counter() - client.started)
                received += len(client.answer)
                errors += not client.succeeded()
                number += 1
                client.ask(make(number))
            except ConnectionError:
                errors += 1
                poller.unregister(fd)
                clients.pop(fd).sock.close()
                connect()
    elapsed = time.perf_counter() - start
    for client in clients.values():
        client.sock.close()
    poller.close()
    latencies.sort()
    return Load(
        generator="own",
        requests=len(latencies),
        errors=errors,
        requests_per_second=len(latencies) / elapsed,
        transfer=received / elapsed,
        mean=1000 * sum(latencies) / len(latencies) if latencies else math.nan,
        p50=1000 * percentile(latencies, 0.5),
        p99=1000 * percentile(latencies, 0.99),
    )


def own(port: int, connections: int, seconds: float, cpu: int | None, varied: bool) -> Load:
    """`drive` in a process of its own, so that its work is not counted as anybody else's."""
    command = [
        sys.executable, "-m", "examples.load", str(port), str(connections), str(seconds),
        *(["--varied"] if varied else []),
    ]
    with pinned(cpu):
        process = subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        return Load(**json.loads(process.stdout.read()))


def generate(
    port: int,
    connections: int,
    seconds: float,
    *,
    threads: int = 1,
    cpu: int | None = None,
    varied: bool = False,
    generator: str | None = None,
) -> Load:
    """Load the server on this port with wrk, or with our own generator where that is missing.

    `cpu` pins the generator, `varied` makes every request different, `generator` is `wrk` or
    `own` for those who want to choose. Raises ValueError when the generator fails.
    """
    if (generator or ("wrk" if shutil.which("wrk") else "own")) == "wrk":
        return wrk(port, connections, seconds, threads, cpu, varied)
    return own(port, connections, seconds, cpu, varied)


def main() -> None:
    parser = argparse.ArgumentParser(description=drive.__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("connections", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--varied", action="store_true")
    options = parser.parse_args()
    make = different if options.varied else same
    result = drive(options.port, options.connections, options.seconds, make)
    print(json.dumps(dataclasses.asdict(result)))


if __name__ == "__main__":
    main()
