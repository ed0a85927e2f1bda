"""What one request costs, counted and not timed: system calls, calls, instructions, what stays.

    python -m tests.guards [plant]

prints the figures as JSON and ends with status 1 if one is above its ceiling. `plant` is the name
of a mistake of PLANTS to be made first: each guard is tried on one. A figure belongs to one read
from the socket of a kept connection, in steady state, and is the same in every run and on every
machine; it differs between versions of Python. Run it in a process of its own: what traces a
program, coverage among others, would count as the program's.
"""

import collections
import gc
import json
import socket
import sys
import threading
import tracemalloc
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from examples.inprocess import FakeLoop
from hop.adaptor import base_environ
from hop.connection import Connection
from hop.engine import ConnectionState, Engine
from hop.leader import LeaderFollowers
from hop.poller import Poller, default_poller

__all__ = ["CEILINGS", "PLANTS", "application", "judge", "main", "measure"]

HEAD = b"Host: localhost:1826\r\nAccept: */*\r\n\r\n"
GET = b"GET / HTTP/1.1\r\n" + HEAD
READS = {
    "hello": GET,
    "four pipelined": GET * 4,
    "post": b"POST /read HTTP/1.1\r\nContent-Length: 5\r\n" + HEAD + b"a=bcd",
    "missing": b"GET /missing HTTP/1.1\r\n" + HEAD,
}
#: The most that a hello may take, by version of Python: Python functions called, C functions
#: called, bytecode instructions. A few above what was counted last; whoever makes them fewer
#: lowers the ceiling.
CEILINGS = {
    (3, 11): {"calls": 18, "C calls": 21, "instructions": 805},
    (3, 12): {"calls": 18, "C calls": 21, "instructions": 768},
    (3, 13): {"calls": 18, "C calls": 21, "instructions": 762},
}
WARM_UP, REQUESTS = 300, 1000
#: How often what stays is counted, if a few blocks are left: noise passes, a leak does not.
TRIES = 3


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Hello, an echo, or nothing of that name."""
    path, status, body = environ["PATH_INFO"], "200 OK", b"Hello, world!\n"
    if path == "/read":
        body = environ["wsgi.input"].read()
    elif path == "/missing":
        status, body = "404 Not Found", b"nothing here\n"
    length = str(len(body))
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", length)])
    return [body]


class Client:
    """A socket without a kernel: asks the same again, and takes whatever is sent."""

    def __init__(self, request: bytes) -> None:
        self.request, self.sent, self.sends = request, b"", 0

    def recv(self, size: int) -> bytes:
        return self.request

    def send(self, data: bytes) -> int:
        self.sent = data
        self.sends += 1
        return len(data)

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 50_000


def without_kernel(
    engine: Engine, request: bytes, client: Client | None = None
) -> Callable[[], None]:
    """An operation: one read, answered; everything is real but socket, poller and threads."""
    client = client or Client(request)
    base = base_environ("localhost", "1826", sys.stderr)
    sock: Any = client
    conn: Any = Connection(sock, FakeLoop(), base, ConnectionState.IDLE)

    def operation() -> None:
        engine.received(conn, conn.receive())

    operation()
    if not client.sent or conn.state != ConnectionState.IDLE:
        raise RuntimeError(f"no answer to {request!r}")
    for _ in range(WARM_UP):
        operation()
    return operation


def count_sends(engine: Engine, request: bytes) -> int:
    """How many sends answer one read."""
    client = Client(request)
    operation = without_kernel(engine, request, client)
    client.sends = 0
    operation()
    return client.sends


# calls and instructions


def count_calls(operation: Callable[[], None]) -> tuple[int, int]:
    """How many Python and C functions an operation calls."""
    counts: collections.Counter[str] = collections.Counter()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        counts[event] += 1

    sys.setprofile(profile)
    operation()
    sys.setprofile(None)
    return counts["call"] - 1, counts["c_call"] - 1  # without `operation`, and `setprofile`


def count_instructions(operation: Callable[[], None]) -> int:
    """How many bytecode instructions an operation runs."""
    return _monitored(operation) if sys.version_info >= (3, 12) else _traced(operation)


def _traced(operation: Callable[[], None]) -> int:
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    sys.settrace(trace)
    operation()
    sys.settrace(None)
    return count


def _monitored(operation: Callable[[], None]) -> int:
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    count, tool = 0, monitoring.PROFILER_ID

    def instruction(code: CodeType, offset: int) -> None:
        nonlocal count
        count += 1

    monitoring.use_tool_id(tool, "guards")
    monitoring.register_callback(tool, monitoring.events.INSTRUCTION, instruction)
    operation()
    monitoring.set_events(tool, monitoring.events.INSTRUCTION)
    operation()
    monitoring.set_events(tool, 0)
    monitoring.free_tool_id(tool)
    return count


# what stays


def blocks_left(operation: Callable[[], None]) -> int:
    """Memory blocks that are there after REQUESTS operations and were not before.

    The counting itself leaves some, which an operation that does nothing shows.
    """
    return _settled(lambda: _left(operation) - _left(lambda: None))


def _left(operation: Callable[[], None]) -> int:
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(REQUESTS):
        operation()
    gc.collect()
    return sys.getallocatedblocks() - before


def traced_left(operation: Callable[[], None]) -> int:
    """The same, counted by tracemalloc, which also knows of blocks that are not Python's."""
    return _settled(lambda: _traced_left(operation))


def _settled(count: Callable[[], int]) -> int:
    """The first count that is no noise: nothing is left, or something of every request."""
    for _ in range(TRIES):
        left = count()
        if left <= 0 or left >= REQUESTS:
            break
    return left


def _traced_left(operation: Callable[[], None]) -> int:
    tracemalloc.start()
    operation()
    gc.collect()
    before = tracemalloc.take_snapshot()
    for _ in range(REQUESTS):
        operation()
    gc.collect()
    after = tracemalloc.take_snapshot()
    tracemalloc.stop()
    own = [tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, __file__)]
    grown = after.filter_traces(own).compare_to(before.filter_traces(own), "filename")
    return sum(line.count_diff for line in grown)


# system calls


SYSTEM_CALLS = [
    "accept", "bind", "close", "connect", "detach", "get_inheritable", "getpeername",
    "getsockname", "getsockopt", "listen", "recv", "recv_into", "recvfrom", "recvfrom_into",
    "recvmsg", "recvmsg_into", "send", "sendall", "sendfile", "sendmsg", "sendto",
    "set_inheritable", "setblocking", "setsockopt", "settimeout", "shutdown",
]  # fmt: skip


def counted(kind: type, names: list[str], counts: "collections.Counter[str]") -> Any:
    """A class like `kind` that counts the calls of its methods `names`."""

    def method(name: str) -> Callable[..., Any]:
        real = getattr(kind, name)

        def call(self: Any, *arguments: Any) -> Any:
            counts[name] += 1
            return real(self, *arguments)

        return call

    return type(f"Counted{kind.__name__}", (kind,), {name: method(name) for name in names})


def _counting_poller(counts: "collections.Counter[str]") -> Poller:
    """A poller that counts the waits from which somebody was served."""
    kind = counted(type(default_poller()), ["register", "modify", "unregister"], counts)

    def poll(self: Any, timeout: float | None) -> list[tuple[int, int]]:
        events: list[tuple[int, int]] = super(kind, self).poll(timeout)
        counts["wait"] += bool(events)
        return events

    kind.poll = poll
    poller: Poller = kind()
    return poller


def _hold(events: tuple[threading.Event, threading.Event]) -> None:
    """Keep the leader busy until it is let go."""
    events[0].set()
    events[1].wait()


class Crowd:
    """Clients of a group of threads, over pairs of sockets, with the calls that it makes.

    There is no monitor: on a slow machine it would now and then give the lead to another thread.
    """

    def __init__(self, engine: Engine, clients: int) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.group = LeaderFollowers(
            _counting_poller(self.counts), engine, timeouts=dict.fromkeys(ConnectionState)
        )
        kind = counted(socket.socket, SYSTEM_CALLS, self.counts)
        base = base_environ("localhost", "1826", sys.stderr)
        self.clients = []
        self.group.start()
        for _ in range(clients):
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            self.clients.append(ours)
            self.group.post(lambda sock: self.group.admit(sock, base), kind(fileno=theirs.detach()))

    def round(self) -> None:
        """Each client asks once. All requests are there before the leader looks."""
        busy, free = threading.Event(), threading.Event()
        self.group.post(_hold, (busy, free))
        busy.wait()
        for client in self.clients:
            client.sendall(GET)
        free.set()
        for client in self.clients:
            answer = b""
            while not answer.endswith(b"world!\n"):
                answer += client.recv(65536)

    def close(self) -> None:
        """Everybody goes."""
        self.group.stop()
        self.group.stopped.wait()
        for client in self.clients:
            client.close()


def measure_loop(engine: Engine, clients: int = 16, rounds: int = 64) -> dict[str, Any]:
    """Calls of sockets and poller in a round, and the blocks that are left after `rounds`."""
    crowd = Crowd(engine, clients)
    crowd.round()
    before = crowd.counts.copy()
    for _ in range(rounds):
        crowd.round()
    made = {name: (crowd.counts[name] - before[name]) / rounds for name in crowd.counts}

    def left() -> int:
        gc.collect()
        blocks = sys.getallocatedblocks()
        for _ in range(rounds):
            crowd.round()
        gc.collect()
        return sys.getallocatedblocks() - blocks

    blocks = _settled(left)
    crowd.close()
    return {"system calls": {name: n for name, n in made.items() if n}, "left in the loop": blocks}


# mistakes


class Hoarder(Engine):
    """Keeps the environ of every request."""

    kept: list[object] = []

    def _call(self, head: Any, environ: Any, response: Any) -> bool:
        self.kept.append(environ)
        return super()._call(head, environ, response)


class Talker(Engine):
    """Calls one more function for every request."""

    def received(self, conn: Any, data: bytes) -> None:
        self.noted(data)
        super().received(conn, data)

    def noted(self, data: bytes) -> None:
        for byte in data[:10]:
            byte.bit_length()


def _send_apart() -> type[Engine]:
    """Head and body leave in two sends."""
    write = Connection.write

    def apart(self: Connection, data: bytes) -> None:
        head, end, body = data.partition(b"\r\n\r\n")
        write(self, head + end)
        write(self, body)

    Connection.write = apart  # type: ignore[method-assign]
    return Engine


PLANTS: dict[str, Callable[[], type[Engine]]] = {
    "": lambda: Engine,
    "apart": _send_apart,
    "hoarder": lambda: Hoarder,
    "talker": lambda: Talker,
}


# figures and judgement


def measure(kind: type[Engine] = Engine) -> dict[str, Any]:
    """All figures, with an engine of this kind."""
    engine = kind(application)
    figures: dict[str, Any] = {name: {} for name in ("left", "traced", "sends")}
    figures["python"] = sys.version_info[:2]
    hello = without_kernel(engine, GET)
    figures["calls"], figures["C calls"] = count_calls(hello)
    figures["instructions"] = count_instructions(hello)
    for name, request in READS.items():
        operation = without_kernel(engine, request)
        figures["left"][name] = blocks_left(operation)
        figures["traced"][name] = traced_left(operation)
        figures["sends"][name] = count_sends(engine, request)
    return {**figures, **measure_loop(engine)}


def judge(figures: dict[str, Any]) -> list[str]:
    """What is wrong with the figures, a line for each."""
    wrong = []
    version = tuple(figures["python"])
    for name, ceiling in CEILINGS.get(version, CEILINGS[max(CEILINGS)]).items():
        if figures[name] > ceiling:
            wrong.append(f"a hello takes {figures[name]} {name}, above the ceiling of {ceiling}")
    for way in ("left", "traced"):
        for name, blocks in figures[way].items():
            if blocks > 0:
                wrong.append(f"{blocks} blocks are left after {REQUESTS} times {name} ({way})")
    wrong += [f"{n} sends for {name}" for name, n in figures["sends"].items() if n != 1]
    if figures["left in the loop"] >= REQUESTS:
        wrong.append(f"{figures['left in the loop']} blocks are left in the loop")
    wanted = {"recv": 16.0, "send": 16.0, "wait": 1.0}
    if figures["system calls"] != wanted:
        wrong.append(f"16 clients at once take {figures['system calls']}, not {wanted}")
    return wrong


def main(arguments: list[str]) -> int:
    """Measure, print, judge."""
    figures = measure(PLANTS[arguments[0] if arguments else ""]())
    figures["wrong"] = judge(figures)
    print(json.dumps(figures, indent=1))
    return int(bool(figures["wrong"]))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
