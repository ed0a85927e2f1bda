"""`python -m examples.benchmark [NAME]`: measure hop beside other servers, and judge it.

  wrk          the overview page: hop against std, as one would run wrk by hand
  hello        CPU per request beside a bare epoll loop and every peer, 100 connections
  different    every request different in path, query, cookies and header order
  connections  100, 1,000 and 10,000 of them
  steady       a low rate, with the monitor and without
  pipelined    16 requests at a time
  mixed        every 200th request sleeps 100 ms, against pools of 64 threads
  sleeps       every request sleeps 0.5, 1 or 5 ms, against the same
  share        0 to 10 % of the requests sleep 10 ms
  burners      fast requests beside handlers that burn processor time
  file         100 MB down, against nginx
  upload       100 MB up, against waitress
  gigabyte     one down and one up, in constant memory
  stalled      beside 5,000 stopped clients, slow readers, slow writers
  adversary    ever-new headers, against hop without its memo
  processes    two of them
  idle         threads and memory of idle connections (THREAD_BENCH_CONN_COUNT sets how many)
  memo         how often the memo of header lines is hit
  inprocess    one operation: without a kernel, and over a socket in one process
  parser       hop's parser against h11 and httptools
  sse          one event to 5,000 event streams, and a timer for each of them
  ws-echo      WebSocket messages there and back, in every style and by every peer
  ws-idle      threads and memory of WebSockets that say nothing
  ws-broadcast one message to 5,000 receivers
  ws-inprocess one message there and back, client and server in one process
  all          one after the other; this is what happens without a name

`make peers` installs the other servers into build/peers. Server and load generator have a
processor each where there are two, unless a workload is about having two. The defaults are for a
first look; for figures that are to be trusted: `--seconds 5 --rounds 5` on a machine that does
nothing else.
"""

import argparse
import dataclasses
import functools
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from examples import bench_sse, bench_websocket, idle, inprocess, measure, memo
from examples.peers import OURS, PEERS, PEERS_PYTHON, installed
from examples.report import COLUMNS, differences, machine, show, strict, table
from examples.table import WORKLOADS
from examples.targets import Verdict, judge, passed

Result = tuple[list[Any], list[str]]  # rows, and what must be known to read them right
IDLE = ("std", "hop", "bjoern", "granian", "uvicorn", "waitress")
_began = time.monotonic()


def progress(text: str) -> None:
    """A line for who waits, not for who reads the result."""
    print(f"{time.monotonic() - _began:6.0f} s  {text}", file=sys.stderr, flush=True)


def settings(name: str, options: argparse.Namespace) -> measure.Run:
    """How to load; `wrk` is as one would run it by hand, unless options say otherwise."""
    by_hand = name == "wrk"
    return measure.Run(
        seconds=options.seconds or (10.0 if by_hand else 2.0),
        warm_up=(3.0 if by_hand else 1.0) if options.warm_up is None else options.warm_up,
        rounds=options.rounds,
        connections=options.connections,
        threads=6 if by_hand else 1,
        generator=options.generator,
        peers_python=options.peers_python,
        progress=progress,
    )


def run_workloads(name: str, options: argparse.Namespace) -> Result:
    """What is in the table under this name."""
    rows, notes = measure.survey(WORKLOADS[name], settings(name, options), options.servers)
    if any(row.generator == "own" for row in rows):
        notes.append("load came from examples/drive.py, itself in Python, which limits "
                     "throughput of many small requests; compare CPU per request")
    return list(rows), notes


def run_idle(options: argparse.Namespace) -> Result:
    """The servers named, or some that differ."""
    there = {*OURS, *installed(options.peers_python)}
    wanted = options.servers or IDLE
    notes = [f"keep-alive time-out raised to {idle.KEEP_ALIVE} s for the run"]
    notes += [f"not installed here: {name} (`make peers`)" for name in wanted if name not in there]
    names = [name for name in wanted if name in there]
    rows = idle.idle(names, peers_python=options.peers_python, progress=progress)
    return list(rows), notes


def run_parser(options: argparse.Namespace) -> Result:
    """The rows of examples/bench_parser.py, which may not be there."""
    if importlib.util.find_spec("examples.bench_parser") is None:
        return [], []
    return list(importlib.import_module("examples.bench_parser").run()), []


def run_sse(options: argparse.Namespace) -> Result:
    """The servers named, of those that this benchmark knows."""
    wanted = tuple(server for server in options.servers if server in bench_sse.SERVERS)
    return list(bench_sse.run(servers=wanted if options.servers else bench_sse.SERVERS)), []


def run_websocket(name: str, options: argparse.Namespace) -> Result:
    """The servers named, of those that speak WebSocket; what is not installed is left out."""
    wanted = [server for server in options.servers if server in bench_websocket.SERVERS]
    more = {"seconds": options.seconds or 2.0, "rounds": options.rounds} if name == "echo" else {}
    rows = bench_websocket.BENCHMARKS[name](*[wanted] * bool(options.servers), **more)
    return list(rows), []


BENCHMARKS: dict[str, Callable[[argparse.Namespace], Result]] = {
    **{name: functools.partial(run_workloads, name) for name in WORKLOADS},
    "idle": run_idle,
    "memo": lambda options: (list(memo.memo()), []),
    "inprocess": lambda options: (list(inprocess.inprocess(options.operations)), []),
    "parser": run_parser,
    "sse": run_sse,
    **{f"ws-{name}": functools.partial(run_websocket, name) for name in bench_websocket.BENCHMARKS},
}


def known_servers(name: str) -> set[str]:
    """What may be asked for by `--servers`; nothing where there is no choice."""
    if name in WORKLOADS:
        return {server for workload in WORKLOADS[name] for server in workload.servers}
    if name.startswith("ws-"):
        return {*bench_websocket.SERVERS}
    return {"idle": {*OURS, *PEERS}, "sse": {*bench_sse.SERVERS}}.get(name, set())


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with status 2 when it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.benchmark", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", choices=(*BENCHMARKS, "all"), default="all")
    parser.add_argument("--check", action="store_true", help="status 1 when a target is missed")
    parser.add_argument(
        "--allow-missing", action="store_true",
        help="with --check: a target whose peer is not installed counts as met",
    )
    parser.add_argument("--json", type=Path, metavar="FILE",
                        help="write everything there as JSON; other benchmarks in it stay")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw pictures there")
    parser.add_argument("--servers", type=lambda text: tuple(text.split(",")), default=(),
                        help="of each workload's servers these only, for example hop,bare,granian")
    parser.add_argument("--seconds", type=float, help="each run (wrk: 10, others: 2)")
    parser.add_argument("--warm-up", type=float, help="before each run (wrk: 3, others: 1)")
    parser.add_argument("--rounds", type=int, default=1, help="the median counts (1)")
    parser.add_argument("--connections", type=int, help="at a time, whatever the workload says")
    parser.add_argument("--operations", type=int, default=5000, help="for inprocess")
    parser.add_argument("--generator", choices=("wrk", "own"), help="default: wrk if installed")
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON,
                        help="the Python that has the other servers")
    options = parser.parse_args(argv)
    names = BENCHMARKS if options.name == "all" else [options.name]
    known = set().union(*map(known_servers, names))
    if unknown := [server for server in options.servers if server not in known]:
        parser.error(f"--servers: {options.name} does not know {', '.join(unknown)}; "
                     f"it knows {', '.join(sorted(known)) or 'no servers to choose from'}")
    return options


def report(name: str, options: argparse.Namespace) -> tuple[dict[str, Any], list[Verdict]]:
    """Run one benchmark and print it; what there is to keep of it, and its verdicts."""
    try:
        rows, notes = BENCHMARKS[name](options)
    except (OSError, RuntimeError, ValueError) as error:  # the others shall not be lost by it
        rows, notes = [], [f"{name} failed: {error}"]
    verdicts, compared = judge(name, rows), differences(rows)
    print(f"{name}\n{table(rows)}\n")
    for workload, figures in compared.items():
        ratios = ", ".join(f"{COLUMNS[key][0]} × {show(ratio)}" for key, ratio in figures.items())
        print(f"hop against std, {workload}: {ratios}")
    print(*notes, *verdicts, "", sep="\n", flush=True)
    kept = {
        "benchmark": name, "notes": notes, "hop against std": compared,
        "rows": [dataclasses.asdict(row) for row in rows],
        "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
    }
    return kept, verdicts


def keep(everything: dict[str, Any], path: Path) -> None:
    """Write the file; what it has of benchmarks that were not run now stays."""
    if path.exists():
        fresh = {section["benchmark"] for section in everything["benchmarks"]}
        old = json.loads(path.read_text())["benchmarks"]
        everything["benchmarks"] += [each for each in old if each["benchmark"] not in fresh]
    path.write_text(json.dumps(everything, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit status: 1 when a target was to be met and was not."""
    options = arguments(argv)
    names = list(BENCHMARKS) if options.name == "all" else [options.name]
    reports = []
    for name in names:
        reports.append(report(name, options))
        sections = [kept for kept, _ in reports]
        everything = strict({"machine": machine(options.peers_python), "benchmarks": sections})
        if options.json:
            keep(everything, options.json)
    if options.plots:
        from examples.plots import draw

        print(*draw(everything, options.plots), sep="\n")
    met = all(passed(verdicts, options.allow_missing) for _, verdicts in reports)
    return int(options.check and not met)


if __name__ == "__main__":
    sys.exit(main())
