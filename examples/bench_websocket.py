"""WebSockets: what they cost when they say nothing, when they echo, and when one speaks to all.

`python -m examples.bench_websocket [echo|idle|broadcast|inprocess] [SERVER ...]`

Each server has a process of its own; the load comes from another (examples/load_ws.py), which
offers no compression. Servers and load have a processor each where there are two.
"""

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from examples.idle import RESERVE, IdleRow, still_open
from examples.inprocess import OperationRow, gauge, std_server
from examples.load_ws import Echoes, masked, unmasked, upgrade
from examples.peers import PEERS_PYTHON, ROOT, Served, free_port, running
from examples.targets import judge

# A name for the tables: how examples/launch_ws.py calls the server, and the path of its echo.
SERVERS = {
    "bare": ("bare", "/"),
    "hop-wsproto-low": ("hop", "/ws-wsproto-low"),
    "hop-wsproto-high": ("hop", "/ws-wsproto-high"),
    "hop-websockets-event": ("hop", "/ws-websockets-event"),
    "hop-websockets-std": ("hop", "/ws-websockets-std"),
    "hop-websocket": ("hop", "/websocket"),
    "std": ("std", "/ws-websockets-std"),
    "picows": ("picows", "/"),
    "aiohttp": ("aiohttp", "/"),
    "websockets": ("websockets", "/"),
    "uvicorn-wsproto": ("uvicorn-wsproto", "/"),
    "uvicorn-websockets": ("uvicorn-websockets", "/"),
    "flask-sock-werkzeug": ("flask-sock-werkzeug", "/"),
    "flask-sock-gunicorn": ("flask-sock-gunicorn", "/"),
}
OURS = ("bare", "hop", "std")  # kinds that run on the Python that runs the benchmark
NEEDS = {
    "uvicorn-wsproto": "uvicorn wsproto uvloop", "uvicorn-websockets": "uvicorn websockets uvloop",
    "flask-sock-werkzeug": "flask_sock werkzeug", "flask-sock-gunicorn": "flask_sock gunicorn",
    "picows": "picows uvloop",
}
THREADED = ("std", "hop-websockets-std", "flask-sock-werkzeug", "flask-sock-gunicorn")
MANY_THREADS = 2_000  # connections that a server with a thread for each is asked to hold
POOLED = 500  # connections that a pool of threads is asked to hold


@dataclass(frozen=True)
class EchoRow(Echoes):
    """An echo under load. `cpu` and `user` are microseconds of processor time of the server for
    a message there and back; `threads` is what it had while it was loaded."""

    workload: str
    server: str
    connections: int
    cpu: float
    user: float
    threads: int


@dataclass(frozen=True)
class BroadcastRow:
    """One message to all, `rounds` times. `cpu` is microseconds of processor time of the server
    for each receiver, `milliseconds` from sending it until the last one had it."""

    workload: str
    server: str
    connections: int
    rounds: int
    errors: int
    cpu: float
    milliseconds: float


@cache
def installed(kind: str, python: Path = PEERS_PYTHON) -> bool:
    """Whether this server can be started here."""
    if kind in OURS:
        return True
    probe = "import sys, importlib.util as u; sys.exit(not all(map(u.find_spec, sys.argv[1:])))"
    names = NEEDS.get(kind, kind).split()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return not subprocess.call([python, "-c", probe, *names], timeout=60)
    return False


def available(names: Iterable[str], python: Path = PEERS_PYTHON) -> list[str]:
    """Those of the servers that can be started here."""
    return [name for name in names if installed(SERVERS[name][0], python)]


def processors() -> tuple[int | None, int | None]:
    """For the server and for the load."""
    cpus = sorted(os.sched_getaffinity(0))
    return (cpus[0], cpus[1]) if len(cpus) > 1 else (None, None)


@contextlib.contextmanager
def serving(kind: str, cpu: int | None = None, python: Path = PEERS_PYTHON) -> Iterator[Served]:
    """Run a server of this kind while the block runs. Raises RuntimeError when it fails."""
    port = free_port()
    own = sys.executable if kind in OURS else str(python)
    command = [own, "-m", "examples.launch_ws", kind, str(port)]
    command += ["--cpu", str(cpu)] if cpu is not None else []
    with running(kind, port, command) as served:
        yield served


# messages there and back


def measure(name: str, connections: int = 100, seconds: float = 3.0, size: int = 64) -> EchoRow:
    """One server under load; the handshakes and a quarter of the time as warm-up do not count."""
    kind, path = SERVERS[name]
    mine, other = processors()
    command = [sys.executable, "-m", "examples.load_ws"]
    with serving(kind, mine) as served:
        command += [str(served.port), path, str(connections), str(seconds), "--size", str(size)]
        if other is not None:
            command = ["taskset", "-c", str(other), *command]
        with subprocess.Popen(
            command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as load:
            assert load.stdin is not None
            assert load.stdout is not None
            if load.stdout.readline() != "ready\n":
                raise RuntimeError(f"{name} did not take {connections} connections")
            before, threads = served.cpu(), served.threads()
            load.stdin.write("\n")
            load.stdin.flush()
            echoes = Echoes(**json.loads(load.stdout.readline()))
            used = served.cpu() - before
    each = 1e6 / max(echoes.messages, 1)
    return EchoRow(
        **vars(echoes), workload=f"echo, {size} bytes", server=name, connections=connections,
        cpu=used.total * each, user=used.user * each, threads=threads,
    )


def echo(
    names: Iterable[str] = SERVERS, *, connections: int = 100, seconds: float = 3.0,
    rounds: int = 3,
) -> list[EchoRow]:
    """Every server under the same load, in turns; of each the row with the median CPU."""
    names = available(names)
    runs = [[measure(name, connections, seconds) for name in names] for _ in range(rounds)]
    rows = []
    for of_one in zip(*runs, strict=True):
        rows.append(sorted(of_one, key=lambda row: row.cpu)[len(of_one) // 2])
    return rows


# saying nothing


def possible() -> int:
    """Raise this process's descriptor limit as far as it may; how many connections that is."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard - RESERVE


def hold(name: str, wanted: int) -> IdleRow:
    """Open so many WebSockets, or as many as can be had, and look at the server."""
    kind, path = SERVERS[name]
    with serving(kind) as served, contextlib.ExitStack() as stack:
        for number in range(20):  # code and caches that the first ones need are not their price
            upgrade(served.port, path, number).close()
        settle(served)
        threads, memory = served.threads(), served.resident()
        held = []
        for number in range(wanted):
            try:
                held.append(stack.enter_context(upgrade(served.port, path, number)))
            except OSError:
                break
        settle(served)
        grown, peak = served.resident() - memory, served.threads() - threads
        established = still_open(held)
    return IdleRow(
        workload="idle WebSockets", server=name, wanted=wanted, connections=established,
        peak_threads=peak, threads_each=peak / max(established, 1),
        bytes_each=grown / max(established, 1),
    )


def settle(served: Served) -> None:
    """Wait until the server uses no more processor time, two seconds at most."""
    for _ in range(20):
        before = served.cpu().total
        time.sleep(0.1)
        if served.cpu().total - before < 0.005:
            return


def idle(names: Iterable[str] = SERVERS, *, count: int | None = None) -> list[IdleRow]:
    """WebSockets that say nothing, on each server, as many as the descriptor limit allows; a
    server with a thread for each is asked for fewer."""
    most, rows = possible(), []
    for name in available(names):
        limit = POOLED if name.endswith("gunicorn") else MANY_THREADS if name in THREADED else None
        wanted = count or most
        rows.append(hold(name, min(wanted, limit or wanted)))
    return rows


# one to all


class Audience:
    """Receivers of what one of them says."""

    def __init__(self, port: int, count: int) -> None:
        self.poller, self.clients = select.epoll(), {}
        for number in range(count):
            sock = upgrade(port, "/broadcast", number)
            self.clients[sock.fileno()] = sock
            self.poller.register(sock, select.EPOLLIN)

    def hear(self, payload: bytes) -> int:
        """Say this, and wait until everybody has it; how many have not."""
        wanted = unmasked(payload)
        left = {fd: len(wanted) for fd in self.clients}
        next(iter(self.clients.values())).sendall(masked(payload))
        while left and (events := self.poller.poll(10.0)):
            for fd, _ in events:
                data = self.clients[fd].recv(65536)
                left[fd] -= len(data)
                if not left[fd]:
                    del left[fd]
                elif not data or left[fd] < 0:
                    return len(left)
        return len(left)

    def close(self) -> None:
        for sock in self.clients.values():
            sock.close()
        self.poller.close()


def broadcast(
    names: Iterable[str] = ("hop-websocket", "websockets", "aiohttp"), *, receivers: int = 5000,
    rounds: int = 10, size: int = 64,
) -> list[BroadcastRow]:
    """One message to everybody, `rounds` times after one that does not count."""
    possible()
    rows = []
    for name in available(names):
        mine, other = processors()
        before_us = os.sched_getaffinity(0)
        with serving(SERVERS[name][0], mine) as served:
            audience = Audience(served.port, receivers)
            try:
                if other is not None:
                    os.sched_setaffinity(0, {other})
                errors = audience.hear(b"w" * size)
                before, start = served.cpu(), time.perf_counter()
                for _ in range(rounds):
                    errors += audience.hear(b"m" * size)
                took = time.perf_counter() - start
                used = served.cpu() - before
            finally:
                os.sched_setaffinity(0, before_us)
                audience.close()
        rows.append(BroadcastRow(
            f"broadcast, {size} bytes", name, receivers, rounds, errors,
            1e6 * used.total / (rounds * receivers), 1000 * took / rounds,
        ))
    return rows


# client and server in one process


@contextlib.contextmanager
def hop_server(_: object) -> Iterator[int]:
    """hop in a thread; the port."""
    from examples.ws_workloads import application
    from hop.testing import serve

    with serve(application) as served:
        yield served.port


def inprocess(
    names: Iterable[str] = SERVERS, *, operations: int = 2000, size: int = 64
) -> list[OperationRow]:
    """One client, one server, one process: a message there and back, as an operation."""
    from examples.app import application

    rows = []
    for name in names:
        kind, path = SERVERS[name]
        if kind not in ("hop", "std"):
            continue
        frame, wanted = masked(b"m" * size), unmasked(b"m" * size)
        start = hop_server if kind == "hop" else std_server
        with start(application) as port, upgrade(port, path) as sock:

            def operation() -> bytes:
                sock.sendall(frame)  # noqa: B023
                answer = sock.recv(65536)
                while len(answer) < len(wanted) and (more := sock.recv(65536)):  # noqa: B023
                    answer += more
                return answer

            if operation() != wanted:
                raise RuntimeError(f"{name} did not echo")
            rows.append(gauge("a message in one process", name, operation, operations))
    return rows


BENCHMARKS: dict[str, Callable[..., list[EchoRow] | list[IdleRow] | list[BroadcastRow]
                              | list[OperationRow]]] = {
    "echo": echo, "idle": idle, "broadcast": broadcast, "inprocess": inprocess,
}


def main() -> None:
    from examples.report import table

    name, *servers = sys.argv[1:] or ["echo"]
    if name not in BENCHMARKS or not set(servers) <= set(SERVERS):
        sys.exit(__doc__)
    rows = BENCHMARKS[name](servers) if servers else BENCHMARKS[name]()
    print(f"{name}\n{table(rows)}", *judge(f"ws-{name}", rows), sep="\n")


if __name__ == "__main__":
    main()
