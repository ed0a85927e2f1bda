"""Load on a server: wrk where it is installed and fits, otherwise a small generator of our own.

Our own is written in Python and costs about as much processor time as the server that it asks, so
its throughput says little; it runs in a process of its own and says who it is. Some loads wrk
cannot make: a steady rate, and transfers of many megabytes.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOST = "127.0.0.1"
BY_WRK = ("same", "different", "new", "pipelined")
PIPELINED = 16  # requests at a time
PERCENTS = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.99, 100)
MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}
BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Order:
    """What a generator is to do.

    `kind`: "same", "different", "new" (every header line), "pipelined" - each of the connections
    has one request at a time, or one lot; "steady" - `rate` requests a second; "download" or
    "upload" - bodies of `size` bytes, one after the other, and no further one after `seconds`.
    """

    port: int
    kind: str = "same"
    connections: int = 100
    seconds: float = 1.0
    path: str = "/"
    rate: int = 0
    size: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Load:
    """What a generator saw. Latencies are in milliseconds, `transfer` in bytes a second.

    `latencies` holds pairs of a percentage and the latency that so many requests did not exceed.
    """

    generator: str
    requests: int
    errors: int
    requests_per_second: float
    transfer: float
    mean: float
    p50: float
    p99: float
    latencies: list[list[float]]


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


def quantity(text: str, units: dict[str, float] | dict[str, int]) -> float:
    """`1.50ms` or `2.3M` in the base unit. Raises ValueError for anything else."""
    match = re.fullmatch(r"(-?[0-9.]+(?:nan)?|-?nan)([a-zA-Z]*)", text)
    if match is None or match[2] not in units:
        raise ValueError(f"not a quantity: {text!r}")
    return float(match[1]) * units[match[2]]


def read_wrk(text: str) -> Load:
    """What wrk and requests.lua printed. Raises ValueError when it is not wrk's report.

    wrk loses count of pipelined latencies and prints 0 for a percentile: that is none, nan.
    """

    def find(pattern: str) -> str:
        match = re.search(pattern, text)
        if match is None:
            raise ValueError(f"wrk said: {text.strip()[-500:]!r}")
        return match[1]

    errors = [int(number) for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", text)]
    for line in re.findall(r"Socket errors: (.*)", text):
        errors += [int(number) for number in re.findall(r"\d+", line)]
    percentiles = re.findall(r"^percentile ([0-9.]+) ([0-9.]+)$", text, re.MULTILINE)
    return Load(
        generator="wrk",
        requests=int(find(r"(\d+) requests in")),
        errors=sum(errors),
        requests_per_second=float(find(r"Requests/sec: +([0-9.]+)")),
        transfer=quantity(find(r"Transfer/sec: +([0-9.]+[KMG]?)B"), BYTES),
        mean=quantity(find(r"Latency +(\S+)"), MILLISECONDS),
        p50=quantity(find(r"\n +50% +(\S+)"), MILLISECONDS) or math.nan,
        p99=quantity(find(r"\n +99% +(\S+)"), MILLISECONDS) or math.nan,
        latencies=[[float(p), float(value) / 1000] for p, value in percentiles if float(value)],
    )


def output(command: list[str], cpu: int | None) -> str:
    """Run the generator on this processor; what it printed."""
    with pinned(cpu):
        process = subprocess.Popen(
            command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    with process:
        assert process.stdout is not None
        return process.stdout.read().decode()


def wrk(order: Order, cpu: int | None) -> Load:
    """One run of wrk; it counts in whole seconds, so that of the order is rounded up."""
    command = [
        "wrk", f"-t{min(order.threads, order.connections)}", f"-c{order.connections}",
        f"-d{math.ceil(order.seconds)}s", "--latency", "-s", str(HERE / "requests.lua"),
        f"http://{HOST}:{order.port}{order.path}", "--", order.kind,
    ]
    return read_wrk(output(command, cpu))


def own(order: Order, cpu: int | None) -> Load:
    """Our generator in a process of its own, so that its work is not counted as anybody else's.

    Raises ValueError when it fails.
    """
    command = [sys.executable, "-m", "examples.drive", json.dumps(dataclasses.asdict(order))]
    said = output(command, cpu)
    try:
        return Load(**json.loads(said))
    except json.JSONDecodeError:
        raise ValueError(f"the generator said: {said.strip()[-500:]!r}") from None


def generate(order: Order, *, cpu: int | None = None, generator: str | None = None) -> Load:
    """Load the server as ordered. `cpu` pins the generator, `generator` is `wrk` or `own` for
    those who want to choose. Raises ValueError when the generator fails."""
    if order.kind in BY_WRK and (generator or ("wrk" if shutil.which("wrk") else "own")) == "wrk":
        return wrk(order, cpu)
    return own(order, cpu)
