"""What a connection costs that has nothing to say: threads and resident memory."""

import os
import resource
import select
import socket
from dataclasses import dataclass
from pathlib import Path

from examples.load import Client, same
from examples.peers import PEERS_PYTHON, Served, serving

RESERVE = 64  # descriptors that the processes need for themselves
PER_ADDRESS = 20_000  # connections from one source address; the port range allows some more
MANY_THREADS = 2_000  # as many connections as a server with a thread for each is asked to hold
KEEP_ALIVE = 3_600  # seconds; raised for the run, or the first would end before the last begins


@dataclass(frozen=True)
class IdleRow:
    """A server that holds `connections` idle ones, out of `wanted`.

    `peak_threads` counts threads beyond those after start, `bytes_each` is resident memory per
    connection in bytes; both are of the server's process and its children.
    """

    workload: str
    server: str
    wanted: int
    connections: int
    peak_threads: int
    threads_each: float
    bytes_each: float


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
    peak, held = 0, []
    try:
        for number in range(count):
            try:
                held.append(connect(served.port, number))
            except OSError:
                break
            if number % 500 == 0:
                peak = max(peak, served.threads() - threads)
        peak = max(peak, served.threads() - threads)
        grown, established = served.resident() - memory, still_open(held)
    finally:
        for sock in held:
            sock.close()
    return IdleRow(
        workload="idle", server=server, wanted=count, connections=established,
        peak_threads=peak, threads_each=peak / max(established, 1),
        bytes_each=grown / max(established, 1),
    )


def idle(
    servers: tuple[str, ...] = ("std", "hop"), count: int | None = None,
    peers_python: Path = PEERS_PYTHON,
) -> list[IdleRow]:
    """Idle keep-alive connections on each server, in a process of its own.

    `std` is asked for 2,000 at most, unless `count` says otherwise: each costs it a thread.
    Raises this process's descriptor limit as far as it may.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows = []
    for server in servers:
        wanted = count or (min(possible(), MANY_THREADS) if server == "std" else possible())
        with serving(
            server, keep_alive=KEEP_ALIVE, peers_python=peers_python
        ) as served:
            rows.append(hold(served, wanted, server))
    return rows
