"""Servers in processes of their own: started, watched through /proc, and stopped."""

import contextlib
import os
import re
import shutil
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
OURS = (  # these run on the Python that runs the benchmark; see examples/launch.py
    "hop", "hop-hasty", "hop-unwatched", "hop-forgetful", "hop-twice", "std", "std-nodelay",
    "bare",
)
PEERS = (
    "bjoern", "fastwsgi", "granian", "uvicorn", "waitress", "cheroot", "gunicorn", "gevent",
    "nginx",
)
HOST = "127.0.0.1"
PROCESS_CLOCK = 2  # the scheduler's clock of a process (clock_getcpuclockid(3))
PAGE = os.sysconf("SC_PAGE_SIZE")
PATIENCE = 60.0  # seconds for a server to start, and again to stop

PROBE = """
import importlib, importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        print(name, importlib.metadata.version(name))
    except ImportError:
        continue
"""


def nginx() -> str | None:
    """Where the program is, if it is installed."""
    return shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")


def output(*command: str | Path) -> str:
    """What the program prints; nothing if there is none, or if it fails."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


@cache
def versions(python: Path = PEERS_PYTHON) -> dict[str, str]:
    """The peers that can be started: those that this Python can import, and nginx."""
    lines = output(python, "-c", PROBE, *PEERS).splitlines()
    found = dict(line.split() for line in lines if line.count(" ") == 1)
    if path := nginx():
        found["nginx"] = output(path, "-v").strip().rpartition("/")[2]
    return {name: found[name] for name in PEERS if name in found}


def installed(python: Path = PEERS_PYTHON) -> tuple[str, ...]:
    """Their names."""
    return tuple(versions(python))


@dataclass(frozen=True)
class Cpu:
    """Seconds of processor time; and of so many clock ticks at which the operating system looked,
    those that found it in user mode."""

    total: float
    user_ticks: int
    ticks: int

    @property
    def user(self) -> float:
        """Seconds in user mode; a guess when there were few ticks."""
        return self.total * self.user_ticks / max(self.ticks, 1)

    def __sub__(self, earlier: "Cpu") -> "Cpu":
        return Cpu(
            self.total - earlier.total, self.user_ticks - earlier.user_ticks,
            self.ticks - earlier.ticks,
        )


@dataclass(frozen=True)
class Served:
    """A running server. What it uses is summed over its process and that one's children."""

    kind: str
    port: int
    group: int  # the process group, which is the first process's id

    def members(self) -> dict[int, list[str]]:
        """The fields of /proc/PID/stat, from the state on, of every process in the group."""
        found = {}
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    text = Path(entry.path, "stat").read_text()
                    fields = text.rpartition(") ")[2].split()
                    if int(fields[2]) == self.group:
                        found[int(entry.name)] = fields
        return found

    def cpu(self) -> Cpu:
        """Used so far: from each process's clock, which is exact, and its ticks, which are not
        (proc(5): utime, stime)."""
        total, user, system = 0.0, 0, 0
        for pid, fields in self.members().items():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                total += time.clock_gettime(~pid << 3 | PROCESS_CLOCK)
            user += int(fields[11])
            system += int(fields[12])
        return Cpu(total, user, user + system)

    def threads(self) -> int:
        return sum(int(fields[17]) for fields in self.members().values())

    def resident(self) -> int:
        """Bytes of resident memory."""
        return sum(int(fields[21]) for fields in self.members().values()) * PAGE

    def peak(self) -> int:
        """The most bytes of resident memory since `forget_peak` (proc(5): VmHWM)."""
        kibibytes = 0
        for pid in self.members():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                kibibytes += sum(map(int, re.findall(r"VmHWM:\s*(\d+)", status)))
        return kibibytes * 1024

    def forget_peak(self) -> None:
        """Let `peak` begin at what is resident now (proc(5): clear_refs)."""
        for pid in self.members():
            with contextlib.suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")

    def settle(self) -> None:
        """Wait until the server has nothing left to do, two seconds at most."""
        for _ in range(40):
            before = self.cpu().total
            time.sleep(0.05)
            if self.cpu().total - before < 0.001:
                return


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
def running(kind: str, port: int, command: list[str]) -> Iterator[Served]:
    """Run the command while the block runs. Raises RuntimeError when nobody listens in time."""
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


@contextlib.contextmanager
def serving(
    kind: str,
    target: str = "examples.workloads:hello",
    *,
    threads: int | None = None,
    keep_alive: int = 600,
    nodelay: bool = False,
    cpu: int | None = None,
    peers_python: Path = PEERS_PYTHON,
) -> Iterator[Served]:
    """Run a server of this kind (see `OURS` and `PEERS`) while the block runs.

    `threads`: those of its pool, if it has one and shall not choose; `keep_alive`: seconds; `cpu`
    pins it to one processor. Raises RuntimeError when it does not come up.
    """
    python = sys.executable if kind in (*OURS, "nginx") else str(peers_python)
    port = free_port()
    kind += "-nodelay" * (nodelay and kind == "std")
    command = [
        python, "-m", "examples.launch", kind, target, str(port), "--keep-alive", str(keep_alive)
    ]
    command += ["--threads", str(threads)] if threads is not None else []
    command += ["--cpu", str(cpu)] if cpu is not None else []
    with running(kind, port, command) as served:
        yield served
