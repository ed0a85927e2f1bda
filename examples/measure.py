"""Servers under load: throughput, latency, memory, and what a request costs the processor."""

import contextlib
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from examples.drive import Client, same
from examples.load import Load, Order, generate, pinned
from examples.peers import OURS, PEERS_PYTHON, ROOT, Cpu, Served, installed, serving
from examples.table import MANY, Workload
from examples.workloads import FILE

FEW = 20  # clock ticks, too few to tell user from system
RESERVE = 200  # descriptors that server and generator need beside the connections


@dataclass(frozen=True)
class Row(Load):
    """A server under one load. `cpu` and `user` are microseconds of processor time a request,
    of the server's process and its children: user and system together, and user alone.

    `grown`: bytes of resident memory at the worst moment of the load beyond those before it;
    `spread`: of several processes, requests of the least busy one divided by the busiest one's.
    """

    workload: str
    server: str
    connections: int
    cpu: float
    user: float
    grown: int
    spread: float = math.nan


@dataclass(frozen=True)
class Run:
    """How to load: `rounds` runs of `seconds` each, after `warm_up` seconds that do not count.

    `connections` replaces what the workloads say.
    """

    seconds: float = 2.0
    warm_up: float = 1.0
    rounds: int = 1
    connections: int | None = None
    threads: int = 1
    generator: str | None = None
    peers_python: Path = PEERS_PYTHON
    progress: Callable[[str], object] = lambda text: None


def processors(alone: bool) -> tuple[int | None, int | None]:
    """For the server and for the generator; None is any."""
    cpus = sorted(os.sched_getaffinity(0))
    return (cpus[0], cpus[1]) if alone and len(cpus) > 1 else (None, None)


@contextlib.contextmanager
def file_of(size: int) -> Iterator[None]:
    """`workloads.FILE` has so many bytes while the block runs."""
    with FILE.open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
        file.truncate(size)
    try:
        yield
    finally:
        FILE.unlink()


@contextlib.contextmanager
def others(beside: tuple[str, int] | None, port: int, cpu: int | None) -> Iterator[None]:
    """Other clients, in a process of their own. RuntimeError when they cannot connect."""
    kind, count = beside or ("", 0)
    if not count:
        yield
        return
    command = [sys.executable, "-m", "examples.beside", kind, str(port), str(count)]
    with pinned(cpu):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the other clients ({kind}) could not connect")
        yield
    finally:
        process.kill()
        process.communicate()


def spread(port: int) -> float:
    """Ask `workloads.counting`, over many new connections, who has answered how often."""
    answered: dict[bytes, int] = {}
    for _ in range(100):
        client = Client(port)
        client.ask(same(0, "/count"))
        while not client.receive():
            pass
        pid, count = client.answer.rpartition(b"\r\n\r\n")[2].split()
        answered[pid] = int(count)
        client.sock.close()
    return min(answered.values()) / max(answered.values()) if len(answered) > 1 else 0.0


def observe(served: Served, order: Order, load: Callable[[Order], Load]) -> tuple[Load, Cpu]:
    """One load, and what the server spent from its beginning until there was nothing left."""
    before = served.cpu()
    seen = load(order)
    served.settle()
    return seen, served.cpu() - before


def steady_state(
    served: Served, order: Order, load: Callable[[Order], Load]
) -> tuple[Load, Cpu, int]:
    """What was seen, spent, and the number of requests for which that was spent.

    With many connections a short run is subtracted from a long one: what it costs to connect and
    to close is in both, and not what a request costs.
    """
    if order.connections < MANY:
        seen, used = observe(served, order, load)
        return seen, used, seen.requests
    first, less = observe(served, replace(order, seconds=1.0), load)
    seen, used = observe(served, replace(order, seconds=order.seconds + 2.0), load)
    return seen, used - less, seen.requests - first.requests


def measure(server: str, workload: Workload, run: Run) -> Row:
    """One round: start the server, warm it up, load it, stop it."""
    mine, other = processors(workload.alone)
    connections = run.connections or workload.connections

    def load(order: Order) -> Load:
        return generate(order, cpu=other, generator=run.generator)

    with contextlib.ExitStack() as stack:
        if workload.app == "file":
            stack.enter_context(file_of(workload.size))
        served = stack.enter_context(serving(
            server, workload.target, cpu=mine, threads=workload.threads,
            peers_python=run.peers_python,
        ))
        order = Order(
            served.port, workload.load, connections, 0.0 if workload.once else run.seconds,
            workload.path, workload.rate, workload.size, run.threads,
        )
        stack.enter_context(others(workload.beside, served.port, other))
        if run.warm_up and not workload.once:
            load(replace(order, seconds=run.warm_up))
        served.forget_peak()
        resident = served.resident()
        seen, used, requests = steady_state(served, order, load)
        grown = served.peak() - resident
        share = spread(served.port) if workload.app == "counting" else math.nan
    each = 1e6 / requests if requests > 0 else math.nan
    user = used.user * each if used.ticks >= FEW else math.nan
    return Row(
        **vars(seen), workload=workload.name, server=server, connections=connections,
        cpu=used.total * each, user=user, grown=grown, spread=share,
    )


def middle(rows: Sequence[Row]) -> Row:
    """The row whose CPU per request is the median: the whole row, as one run saw it."""
    ordered = sorted(rows, key=lambda row: (math.isnan(row.cpu), row.cpu))
    return ordered[(len(rows) - 1) // 2]


def compare(
    servers: Iterable[str], workload: Workload, run: Run
) -> tuple[list[Row], list[str]]:
    """Every server under the same load, in turns, so that a bad minute meets them all alike; and
    what went wrong. Who fails once is left out."""
    rounds: dict[str, list[Row]] = {server: [] for server in servers}
    failures = []
    for number in range(run.rounds):
        for server in list(rounds):
            try:
                row = measure(server, workload, run)
            except (OSError, RuntimeError, ValueError) as error:
                failures.append(f"{workload.name}: {server} failed: {error}")
                run.progress(failures[-1])
                del rounds[server]
                continue
            rounds[server].append(row)
            run.progress(
                f"{workload.name}: {server}, round {number + 1} of {run.rounds}: "
                f"{row.requests_per_second:,.0f}/s, {row.cpu:.1f} µs of CPU each"
            )
    return [middle(rows) for rows in rounds.values()], failures


def missing(workload: Workload, run: Run) -> list[str]:
    """Those of the workload's servers that are not installed."""
    there = {*OURS, *installed(run.peers_python)}
    return [name for name in workload.servers if name not in there]


def too_many(workload: Workload, run: Run) -> int:
    """The descriptor limit, if the workload's connections do not fit under it; otherwise 0."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = (run.connections or workload.connections) + (workload.beside or ("", 0))[1]
    return limit if count + RESERVE > limit else 0


def survey(
    workloads: Iterable[Workload], run: Run, only: Iterable[str] = ()
) -> tuple[list[Row], list[str]]:
    """Measure all of them (the servers named, if any are), and say what was left out, and why."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows, notes, chosen = list[Row](), set[str](), set(only)
    for workload in workloads:
        absent = missing(workload, run)
        notes |= {f"not installed here, so not measured: {name} (`make peers`)" for name in absent}
        if limit := too_many(workload, run):
            notes.add(f"{workload.name}: not measured, the descriptor limit is {limit:,}")
            continue
        names = [name for name in workload.servers if name not in absent]
        names = [name for name in names if not chosen or name in chosen]
        found, failures = compare(names, workload, run)
        rows += found
        notes.update(failures)
    for row in rows:
        if row.generator == "wrk" and row.requests <= row.connections:
            notes.add(f"{row.workload}: {row.server} stood still after {row.requests} answers")
    return rows, sorted(notes)
