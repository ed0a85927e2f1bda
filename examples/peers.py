"""Servers in processes of their own: started, watched through /proc, and stopped."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
PEERS_PYTHON = ROOT / "build" / "peers" / "bin" / "python"
OURS = ("hop", "std", "bare")  # these run on the Python that runs the benchmark
PEERS = ("waitress", "gunicorn", "cheroot", "granian", "uvicorn", "bjoern", "fastwsgi")
HOST = "127.0.0.1"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
PATIENCE = 20.0  # seconds for a server to start, and again to stop

PROBE = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    print(name)
"""


@cache
def installed(python: Path = PEERS_PYTHON) -> tuple[str, ...]:
    """The peers that this Python can import, in the order of `PEERS`; none if there is no such."""
    try:
        probe = subprocess.run(
            [python, "-c", PROBE, *PEERS], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(probe.stdout.split())


@dataclass(frozen=True)
class Cpu:
    """Seconds of processor time."""

    user: float
    system: float

    @property
    def total(self) -> float:
        return self.user + self.system

    def __sub__(self, earlier: "Cpu") -> "Cpu":
        return Cpu(self.user - earlier.user, self.system - earlier.system)


@dataclass(frozen=True)
class Served:
    """A running server. What it uses is summed over its process and that one's children."""

    kind: str
    port: int
    group: int  # the process group, which is the first process's id

    def members(self) -> list[list[str]]:
        """The fields of /proc/PID/stat, from the state on, of every process in the group."""
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    text = Path(entry.path, "stat").read_text()
                    fields = text.rpartition(") ")[2].split()
                    if int(fields[2]) == self.group:
                        found.append(fields)
        return found

    def cpu(self) -> Cpu:
        """Used so far, as the operating system accounts for it (proc(5): utime, stime)."""
        members = self.members()
        return Cpu(
            sum(int(fields[11]) for fields in members) / TICK,
            sum(int(fields[12]) for fields in members) / TICK,
        )

    def threads(self) -> int:
        return sum(int(fields[17]) for fields in self.members())

    def resident(self) -> int:
        """Bytes of resident memory."""
        return sum(int(fields[21]) for fields in self.members()) * PAGE


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(process: "subprocess.Popen[bytes]", port: int, log: IO[bytes]) -> None:
    """Until the port accepts. Raises RuntimeError, with what the server said last, when the
    process ends or takes too long."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
            return
        time.sleep(0.02)
    log.seek(0)
    said = log.read().decode(errors="replace").splitlines()[-3:]
    raise RuntimeError("the server did not start: " + " / ".join(said))


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End the whole group: politely, and after a few seconds for good."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, PATIENCE)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    # The second signal goes out even when the first process is gone: a child may be left.


@contextlib.contextmanager
def serving(
    kind: str,
    target: str = "examples.workloads:hello",
    *,
    threads: int = 64,
    keep_alive: int = 600,
    nodelay: bool = False,
    cpu: int | None = None,
    peers_python: Path = PEERS_PYTHON,
) -> Iterator[Served]:
    """Run a server of this kind (see `OURS` and `PEERS`) while the block runs.

    `cpu` pins it to one processor. Raises RuntimeError when it does not come up.
    """
    python = sys.executable if kind in OURS else str(peers_python)
    port = free_port()
    command = [
        python, "-m", "examples.launch", kind, target, str(port),
        "--threads", str(threads), "--keep-alive", str(keep_alive),
    ]
    command += ["--nodelay"] * nodelay
    command += ["--cpu", str(cpu)] if cpu is not None else []
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
        )
        try:
            wait_until_ready(process, port, log)
            yield Served(kind, port, process.pid)
        finally:
            stop(process)
