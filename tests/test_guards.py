"""What one request costs may not grow unnoticed: counts, and no times."""

import collections
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests import guards
from tests.test_server import ROOT, answers, connect, free_port, until

REQUESTS = 100
#: What the leader does in steady state, and what it may not do: whatever the network, the poller,
#: or a pipe to somebody else can be told.
TRACED = "%network,epoll_wait,epoll_pwait,epoll_ctl,poll,fcntl,ioctl,write,writev,sendfile"
STEADY = {"recvfrom": REQUESTS, "sendto": REQUESTS, "epoll_wait": REQUESTS}


def bare():
    """An environment in which nobody measures what a new process runs."""
    kept = {name: os.environ[name] for name in os.environ if not name.startswith("COV")}
    return {**kept, "PYTHONPATH": str(ROOT)}


def figures(plant=""):
    """The figures of a process of its own, and its exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.guards", *([plant] if plant else [])],
        cwd=ROOT, env=bare(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.returncode


class TestCounts:
    def test_a_request_costs_no_more_than_it_did(self):
        found, status = figures()
        assert found["wrong"] == []
        assert status == 0

    @pytest.mark.parametrize(
        ("plant", "wrong"),
        [
            ("apart", ["at once take .*'send': 32.0.*, not", "^2 sends for post"]),
            ("hoarder", ["times hello .left", "times post .traced", "left in the loop"]),
            ("talker", ["[0-9]+ calls", "C calls", "instructions"]),
        ],
    )
    def test_a_mistake_is_noticed(self, plant, wrong):
        found, status = figures(plant)
        assert status == 1
        for text in wrong:
            assert [line for line in found["wrong"] if re.search(text, line)], text

    def test_it_counts_what_it_says(self):
        def inner():
            return len([])

        def operation():
            inner()
            inner()

        assert guards.count_calls(operation) == (2, 2)
        assert guards.count_instructions(lambda: None) < guards.count_instructions(operation)

    def test_a_ceiling_that_is_far_away_guards_nothing(self):
        """Who makes a request cheaper shall lower the ceiling."""
        found, _ = figures()
        for name, ceiling in guards.CEILINGS[max(guards.CEILINGS)].items():
            ceiling = guards.CEILINGS.get(tuple(found["python"]), {name: ceiling})[name]
            assert found[name] > 0.9 * ceiling - 1, name


class TestSystemCalls:
    """Counted by the kernel, on a server as users start it."""

    @pytest.fixture(autouse=True)
    def strace(self, tmp_path):
        if shutil.which("strace") is None:
            pytest.skip("strace is missing")
        tried = subprocess.run(
            ["strace", "-o", str(tmp_path / "trial"), "true"], capture_output=True, text=True
        )
        if tried.returncode:
            pytest.skip(f"no ptrace here: {tried.stderr.strip()}")

    def traced(self, directory, name):
        """System calls that were completed between two marks, with REQUESTS requests there."""
        log, port = directory / "log", free_port()
        strace = ["strace", "-D", "-f", "-qq", "-s", "64", "-o", str(log), "-e", f"trace={TRACED}"]
        hop = [sys.executable, "-m", "hop", name, "--bind", f"127.0.0.1:{port}"]
        with subprocess.Popen([*strace, *hop], cwd=ROOT, env=bare()) as process:
            try:
                until(lambda: answers(port), 60)
                with connect(port) as sock:
                    for path in ["warm"] * 20 + ["begin"] + ["between"] * REQUESTS + ["end"]:
                        sock.sendall(b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
                        whole(sock)
                until(lambda: '"GET /end' in log.read_text())
            finally:
                process.kill()
        lines = [line for line in log.read_text().splitlines() if completed(line)]
        (begin,) = [n for n, line in enumerate(lines) if '"GET /begin' in line]
        (end,) = [n for n, line in enumerate(lines) if '"GET /end' in line]
        return collections.Counter(completed(line) for line in lines[begin + 1 : end])

    def test_one_read_one_write_one_wait(self, tmp_path):
        made = self.traced(tmp_path, "tests.apps.traced")
        made["sendto"] -= 1  # the answer to the mark
        made["epoll_wait"] -= 1  # the wait for the other mark
        assert made == STEADY

    def test_a_mistake_is_noticed(self, tmp_path):
        made = self.traced(tmp_path, "tests.apps.apart")
        assert made["sendto"] == 2 * REQUESTS + 2


def completed(line):
    """The system call that ended with this line of strace; None for half a one, or no event."""
    found = re.search(r"^[0-9]+ +(?:(\w+)\(|<\.\.\. (\w+) resumed>).*\) += (-?[0-9]+)", line)
    if found is None:
        return None
    name = (found[1] or found[2]).replace("epoll_pwait", "epoll_wait")
    idle = name == "epoll_wait" and int(found[3]) < 1
    return None if idle or "TCGETS" in line else name  # the monitor has opened a file


def whole(sock):
    """Read one answer; its length is where `tests.guards` says it."""
    data = b""
    while not data.partition(b"\r\n\r\n")[2].endswith(b"\n"):
        data += sock.recv(65536)
    return data
