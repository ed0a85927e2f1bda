"""What an open event stream costs: threads, memory, and CPU for one event to all of them."""

import contextlib
import gc
import json
import math
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from examples.peers import HOST, Served, serving
from hop.streams import EventStream, broadcast, event, event_stream

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

SERVERS = ("bare", "std", "hop")
STREAMS = 5_000
MANY_THREADS = 500  # streams for a server with a thread for each
EVENTS = 20
WARM_UP = 3  # events that are not counted
TICKING = 4.0  # seconds in which every stream's own timer goes off once a second
PATIENCE = 60.0  # seconds for an event to reach all
DATA = "x" * 40
PAYLOAD = event(DATA)

watching: set[EventStream] = set()


def opened(stream: EventStream) -> None:
    """One more who is told what is published."""
    stream.on_close = watching.discard
    watching.add(stream)


def tick(stream: EventStream) -> None:
    """An event every second, by a timer of the stream's own."""
    stream.write(PAYLOAD)
    stream.channel.call_later(1.0, partial(tick, stream))


HANDLERS = {"/stream": opened, "/ticking": tick}


def application(environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
    """A stream; at /publish one event to all of them, at /count how many there are."""
    path = environ["PATH_INFO"]
    if path in HANDLERS:
        return event_stream(environ, start_response, HANDLERS[path], heartbeat=3600.0)
    if path == "/publish":
        broadcast(watching, event(DATA))
    body = json.dumps(len(watching)).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


@dataclass(frozen=True)
class SseRow:
    """So many `events` to each of `streams` clients: `cpu` is microseconds of the server's
    processor time for each stream and event, `latency` milliseconds until the last client has an
    event (nan where there is no such moment), `threads` those beyond a server without streams,
    `bytes_each` resident memory for each stream."""

    workload: str
    server: str
    streams: int
    events: int
    threads: int
    bytes_each: float
    cpu: float
    latency: float


def ask(port: int, path: str) -> int:
    """One request on a connection of its own; the number that is answered."""
    with socket.create_connection((HOST, port), timeout=PATIENCE) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        with sock.makefile("rb") as answer:
            return int(answer.read().rpartition(b"\r\n\r\n")[2])


def connected(port: int) -> socket.socket:
    """A client with an address of this process's own, so that the ports of others do not matter.

    It closes with a reset: thousands of ports would otherwise be taken for a minute.
    """
    source = (f"127.{1 + os.getpid() % 250}.0.1", 0)
    sock = socket.create_connection((HOST, port), PATIENCE, source)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return sock


def open_stream(port: int, path: str) -> socket.socket:
    """A stream whose head has arrived."""
    sock = connected(port)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(4096)
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def streams(port: int, count: int, path: str) -> Iterator[dict[int, socket.socket]]:
    """So many open streams, by descriptor."""
    opened: dict[int, socket.socket] = {}
    try:
        for _ in range(count):
            sock = open_stream(port, path)
            opened[sock.fileno()] = sock
        yield opened
    finally:
        for sock in opened.values():
            sock.close()


def receive(opened: dict[int, socket.socket], poller: select.epoll) -> None:
    """Read until one event has reached every stream. Raises TimeoutError when it does not."""
    missing = set(opened)
    deadline = time.monotonic() + PATIENCE
    while missing and time.monotonic() < deadline:
        for fd, _ in poller.poll(1.0, 1024):
            if opened[fd].recv(4096).count(PAYLOAD.rstrip()):
                missing.discard(fd)
    if missing:
        raise TimeoutError(f"{len(missing)} streams heard nothing")


def published(served: Served, count: int, server: str) -> SseRow:
    """Open so many streams, and send events to all of them."""
    ask(served.port, "/count")
    threads, memory = served.threads(), served.resident()
    latencies = []
    with streams(served.port, count, "/stream") as opened, select.epoll() as poller:
        while ask(served.port, "/count") < count:
            time.sleep(0.01)
        for fd in opened:
            poller.register(fd, select.EPOLLIN)
        further, grown = served.threads() - threads, served.resident() - memory
        for number in range(WARM_UP + EVENTS):
            if number == WARM_UP:
                before = served.cpu()
            begun = time.perf_counter()
            ask(served.port, "/publish")
            receive(opened, poller)
            latencies.append(time.perf_counter() - begun)
        spent = (served.cpu() - before).total
        further = max(further, served.threads() - threads)
    return SseRow(
        workload="an event to every stream", server=server, streams=count, events=EVENTS,
        threads=further, bytes_each=grown / count, cpu=spent / EVENTS / count * 1e6,
        latency=sorted(latencies[WARM_UP:])[EVENTS // 2] * 1e3,
    )


def drain(opened: dict[int, socket.socket]) -> int:
    """Read what has arrived; the number of events."""
    count = 0
    for sock in opened.values():
        with contextlib.suppress(BlockingIOError):
            count += sock.recv(1 << 16).count(PAYLOAD.rstrip())
    return count


def ticking(served: Served, count: int, server: str) -> SseRow:
    """Let a timer of its own send an event to each stream, every second."""
    ask(served.port, "/count")
    threads, memory = served.threads(), served.resident()
    with streams(served.port, count, "/ticking") as opened:
        grown = served.resident() - memory
        drain(opened)
        before = served.cpu()
        time.sleep(TICKING)
        spent, further = (served.cpu() - before).total, served.threads() - threads
        events = drain(opened)
    return SseRow(
        workload="a timer for each stream", server=server, streams=count,
        events=round(events / count), threads=further, bytes_each=grown / count,
        cpu=spent / max(events, 1) * 1e6, latency=math.nan,
    )


def bare(count: int) -> SseRow:
    """What the kernel alone takes: one thread, so many sockets, a `send` to each, nothing else."""
    clients: dict[int, socket.socket] = {}
    ends, spent = [], 0.0
    try:
        with socket.create_server((HOST, 0), backlog=64) as listener:
            for _ in range(count):
                client = connected(listener.getsockname()[1])
                client.setblocking(False)
                clients[client.fileno()] = client
                end = listener.accept()[0]
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ends.append(end)
        for number in range(WARM_UP + EVENTS):
            begun = time.process_time()
            for end in ends:
                end.send(PAYLOAD)
            spent += (time.process_time() - begun) * (number >= WARM_UP)
            drain(clients)
    finally:
        for sock in (*clients.values(), *ends):
            sock.close()
    return SseRow(
        workload="an event to every stream", server="bare", streams=count, events=EVENTS,
        threads=0, bytes_each=math.nan, cpu=spent / EVENTS / count * 1e6, latency=math.nan,
    )


def run(count: int | None = None, servers: tuple[str, ...] = SERVERS) -> list[SseRow]:
    """One event to all streams, and on hop a timer for each, with a process for each server.

    `bare` is no server, but what the kernel alone takes. `std` is given 500 streams unless
    `count` says otherwise. Raises this process's descriptor
    limit as far as it may.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows = []
    for server in servers:
        wanted = count or (MANY_THREADS if server == "std" else STREAMS)
        gc.collect()
        if server == "bare":
            rows.append(bare(wanted))
            continue
        with serving(server, "examples.bench_sse:application", nodelay=True) as served:
            rows.append(published(served, wanted, server))
            if server == "hop":
                rows.append(ticking(served, wanted, server))
    return rows
