"""What a connection costs that has nothing to say: threads and resident memory."""

import os
import resource
import select
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from examples.drive import Client, same
from examples.peers import PEERS_PYTHON, Served, serving

RESERVE = 64  # descriptors that the processes need for themselves
PER_ADDRESS = 20_000  # connections from one source address; the port range allows some more
FEWER = {"std": 2_000, "waitress": 2_000}  # a thread for each; a list of all at every turn
KEEP_ALIVE = 3_600  # seconds; raised for the run, or the first would end before the last begins


@dataclass(frozen=True)
class IdleRow:
    """A server that holds `connections` idle ones, out of `wanted`.

    `peak_threads` counts threads beyond those after start, `bytes_each` is resident memory per
    connection in bytes; both are of the server's process and its children. `growth` holds pairs
    of a number of connections and the bytes that they had added by then, where that was noted.
    """

    workload: str
    server: str
    wanted: int
    connections: int
    peak_threads: int
    threads_each: float
    bytes_each: float
    growth: list[list[int]] = field(default_factory=list)


def possible() -> int:
    """THREAD_BENCH_CONN_COUNT, or as many connections as this process may have descriptors.

    Raises ValueError when the variable holds no positive number.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - RESERVE
    count = int(os.environ.get("THREAD_BENCH_CONN_COUNT", limit))
    if count <= 0:
        raise ValueError("THREAD_BENCH_CONN_COUNT must be a positive number")
    return count


def connect(port: int, number: int) -> socket.socket:
    """Connection `number`, kept alive after one request and its answer.

    Raises OSError when the server does not take it, or does not answer within ten seconds.
    """
    client = Client(port, f"127.0.0.{2 + number // PER_ADDRESS}")
    try:
        client.ask(same(number))
        while not client.receive():
            pass
    except OSError:
        client.sock.close()
        raise
    return client.sock


def still_open(connections: list[socket.socket]) -> int:
    """How many the server has not closed: with nothing asked, only an end can be read."""
    poller = select.poll()
    for sock in connections:
        poller.register(sock, select.POLLIN)
    return len(connections) - len(poller.poll(0))


def hold(served: Served, count: int, server: str) -> IdleRow:
    """Open so many connections, or as many as can be had, and look at the server."""
    for number in range(20):  # code and caches that the first requests need are not their price
        connect(served.port, number).close()
    threads, memory = served.threads(), served.resident()
    peak, growth = 0, [[0, 0]]
    held: list[socket.socket] = []
    try:
        for number in range(count):
            try:
                held.append(connect(served.port, number))
            except OSError:
                break
            if len(held) % 500 == 0:
                peak = max(peak, served.threads() - threads)
                growth.append([len(held), served.resident() - memory])
        peak = max(peak, served.threads() - threads)
        growth.append([len(held), served.resident() - memory])
        established = still_open(held)
    finally:
        for sock in held:
            sock.close()
    return IdleRow(
        workload="idle", server=server, wanted=count, connections=established,
        peak_threads=peak, threads_each=peak / max(established, 1),
        bytes_each=growth[-1][1] / max(established, 1), growth=growth,
    )


def idle(
    servers: Iterable[str] = ("std", "hop"), count: int | None = None,
    peers_python: Path = PEERS_PYTHON, progress: Callable[[str], object] = lambda text: None,
) -> list[IdleRow]:
    """Idle keep-alive connections on each server, in a process of its own.

    Some are asked to hold `FEWER`, unless `count` says otherwise. Raises this process's
    descriptor limit as far as it may.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows = []
    for server in servers:
        wanted = count or min(possible(), FEWER.get(server, possible()))
        with serving(server, keep_alive=KEEP_ALIVE, peers_python=peers_python) as served:
            rows.append(hold(served, wanted, server))
        progress(f"idle: {server}: {rows[-1].bytes_each:,.0f} bytes each")
    return rows
