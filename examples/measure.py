"""Servers under load: throughput, latency, and what a request costs the server's processor."""

import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.load import Load, generate
from examples.peers import OURS, PEERS_PYTHON, installed, serving

HELLO = "examples.workloads:hello"
PAGE = "examples.app:application"
MIXED = {
    "every 200th request sleeps 100 ms": "examples.workloads:every_200th",
    "every request sleeps 0.5 ms": "examples.workloads:sleep_500us",
    "every request sleeps 1 ms": "examples.workloads:sleep_1ms",
    "every request sleeps 5 ms": "examples.workloads:sleep_5ms",
}


@dataclass(frozen=True)
class Row(Load):
    """A server under one load. `cpu` and `user` are microseconds of processor time a request,
    of the server's process and its children: user and system together, and user alone."""

    workload: str
    server: str
    cpu: float
    user: float


@dataclass(frozen=True)
class Run:
    """How to load: `rounds` runs of `seconds` each, after `warm_up` seconds that do not count.

    Where there are two processors, `pin` keeps server and generator apart.
    """

    seconds: float = 3.0
    warm_up: float = 1.0
    rounds: int = 3
    connections: int = 100
    threads: int = 1
    pin: bool = True
    generator: str | None = None
    peers_python: Path = PEERS_PYTHON

    def processors(self) -> tuple[int | None, int | None]:
        """For the server and for the generator."""
        cpus = sorted(os.sched_getaffinity(0))
        return (cpus[0], cpus[1]) if self.pin and len(cpus) > 1 else (None, None)


def measure(
    server: str, workload: str, target: str, run: Run, *,
    varied: bool = False, nodelay: bool = False,
) -> Row:
    """One round: start the server, warm it up, load it, stop it."""
    mine, other = run.processors()

    def load(seconds: float) -> Load:
        return generate(
            served.port, run.connections, seconds, threads=run.threads, cpu=other,
            varied=varied, generator=run.generator,
        )

    with serving(
        server, target, cpu=mine, nodelay=nodelay, peers_python=run.peers_python
    ) as served:
        if run.warm_up:
            load(run.warm_up)
        before = served.cpu()
        result = load(run.seconds)
        used = served.cpu() - before
    each = 1e6 / max(result.requests, 1)
    return Row(
        **vars(result), workload=workload, server=f"{server}, TCP_NODELAY" if nodelay else server,
        cpu=used.total * each, user=used.user * each,
    )


def middle(rows: Sequence[Row]) -> Row:
    """The row whose CPU per request is the median: the whole row, as one run saw it."""
    cpu = statistics.median_low(row.cpu for row in rows)
    return next(row for row in rows if row.cpu == cpu)


def compare(
    servers: Iterable[str], workload: str, target: str, run: Run, *, varied: bool = False
) -> list[Row]:
    """Every server under the same load, in turns, so that a bad minute meets them all alike."""
    servers = list(servers)
    rounds = [
        [measure(server, workload, target, run, varied=varied) for server in servers]
        for _ in range(run.rounds)
    ]
    return [middle(rows) for rows in zip(*rounds, strict=True)]


def available(names: Iterable[str], run: Run) -> list[str]:
    """Those of the servers that can be started here."""
    there = {*OURS, *installed(run.peers_python)}
    return [name for name in names if name in there]


def hello(run: Run, servers: Iterable[str] | None = None) -> list[Row]:
    """CPU per request of the smallest application beside the bare loop; then with no two
    requests alike."""
    names = available(
        servers or ("bare", "hop", "bjoern", "fastwsgi", "granian", "uvicorn", "waitress"), run
    )
    return [
        *compare(names, "hello", HELLO, run),
        *compare(names, "hello, varied", HELLO, run, varied=True),
    ]


def mixed(run: Run, servers: Iterable[str] | None = None) -> list[Row]:
    """Handlers that block, against servers with a pool of 64 threads."""
    names = available(servers or ("hop", "waitress", "gunicorn", "granian"), run)
    return [
        row for workload, target in MIXED.items() for row in compare(names, workload, target, run)
    ]


def wrk(run: Run, servers: Iterable[str] | None = None) -> list[Row]:
    """The overview page: hop, the standard library, and whatever else is installed.

    The standard library's server is measured as it comes, and with Nagle's algorithm off: as it
    comes, each answer's body waits 40 ms for the client to acknowledge its head.
    """
    names = list(servers or ("std", "hop", *installed(run.peers_python)))
    rows = []
    for name in available(names, run):
        rows += compare([name], "overview page", PAGE, run)
        if name == "std":
            rows.append(measure(name, "overview page", PAGE, run, nodelay=True))
    return rows
