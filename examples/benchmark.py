"""`python -m examples.benchmark [NAME]`: measure hop beside other servers, and judge it.

  wrk        the overview page: hop against std and whatever peers are installed
  hello      CPU per request beside a bare epoll loop, 100 connections
  mixed      handlers that block, against pools of 64 threads
  idle       threads and memory of idle connections (THREAD_BENCH_CONN_COUNT sets how many)
  inprocess  one operation: without a kernel, and over a socket in one process
  parser     hop's parser against h11 and httptools
  all        one after the other; this is what happens without a name

`make peers` installs the other servers into build/peers. Servers and load generator have a
processor each where there are two.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from examples import idle, inprocess, measure
from examples.peers import PEERS_PYTHON, installed
from examples.targets import Verdict, judge, passed

LABELS = {
    "requests_per_second": "requests/s", "transfer": "KiB/s", "mean": "mean ms", "p50": "p50 ms",
    "p99": "p99 ms", "cpu": "CPU µs", "user": "of it user", "microseconds": "µs",
    "peak_bytes": "peak bytes", "blocks_left": "blocks left", "peak_threads": "further threads",
    "threads_each": "threads each", "bytes_each": "bytes each",
}
HIDDEN = {"generator", "requests"}
COMPARED = ("requests_per_second", "transfer", "mean", "p50", "p99", "cpu", "microseconds",
            "threads_each", "bytes_each")


def show(value: object) -> str:
    """A cell of the table: floats with three significant digits or none behind the point."""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(rows: Sequence[Any]) -> str:
    """Rows of one dataclass as text in columns; workload and server come first."""
    if not rows:
        return "nothing was measured"
    names = [field.name for field in dataclasses.fields(rows[0]) if field.name not in HIDDEN]
    names.sort(key=["workload", "server"].__contains__, reverse=True)
    lines = [[LABELS.get(name, name) for name in names]]
    for row in rows:
        values = {**dataclasses.asdict(row), "transfer": getattr(row, "transfer", 0) / 1024}
        lines.append([show(values[name]) for name in names])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if name in ("workload", "server") else cell.rjust(width)
            for name, cell, width in zip(names, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def differences(rows: Sequence[Any]) -> dict[str, dict[str, float]]:
    """For each workload that both served: every figure of hop divided by that of std."""
    by_key = {(row.workload, row.server): row for row in rows}
    result: dict[str, dict[str, float]] = {}
    for workload in dict.fromkeys(row.workload for row in rows):
        hop, std = by_key.get((workload, "hop")), by_key.get((workload, "std"))
        if hop and std:
            result[workload] = {
                name: getattr(hop, name) / getattr(std, name)
                for name in COMPARED
                if getattr(std, name, 0)
            }
    return result


def machine() -> dict[str, Any]:
    """What was measured on: without it figures mean little."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": len(os.sched_getaffinity(0)),
    }


def notes(name: str, rows: Sequence[Any], peers_python: Path) -> list[str]:
    """What a reader must know to read the figures right."""
    said = []
    if any(getattr(row, "generator", "") == "own" for row in rows):
        said.append("wrk was not used: load came from examples/load.py, itself in Python, "
                    "which limits throughput; compare CPU per request")
    if name == "idle":
        said.append(f"keep-alive time-out raised to {idle.KEEP_ALIVE} s for the run")
    if name in ("wrk", "hello", "mixed") and not installed(peers_python):
        said.append(f"no other servers found with {peers_python.name}: `make peers`")
    return said


def settings(name: str, options: argparse.Namespace) -> measure.Run:
    """How to load; `wrk` is as one would run it by hand, unless options say otherwise."""
    by_hand = name == "wrk"
    return measure.Run(
        seconds=options.seconds or (30.0 if by_hand else 3.0),
        warm_up=(5.0 if by_hand else 1.0) if options.warm_up is None else options.warm_up,
        rounds=options.rounds or (1 if by_hand else 3),
        connections=options.connections or (300 if by_hand else 100),
        threads=6 if by_hand else 1,
        pin=not by_hand,
        generator=options.generator,
        peers_python=options.peers_python,
    )


def run_load(
    name: str, benchmark: Callable[..., Sequence[Any]], options: argparse.Namespace
) -> list[Any]:
    """`wrk`, `hello` or `mixed`."""
    return list(benchmark(settings(name, options), options.servers))


def run_idle(options: argparse.Namespace) -> list[Any]:
    """The servers named, or std and hop."""
    servers = options.servers or ("std", "hop")
    return list(idle.idle(tuple(servers), peers_python=options.peers_python))


def run_parser(options: argparse.Namespace) -> list[Any]:
    """The rows of examples/bench_parser.py, which may not be there."""
    if importlib.util.find_spec("examples.bench_parser") is None:
        return []
    return list(importlib.import_module("examples.bench_parser").run())


BENCHMARKS: dict[str, Callable[[argparse.Namespace], list[Any]]] = {
    "wrk": lambda options: run_load("wrk", measure.wrk, options),
    "hello": lambda options: run_load("hello", measure.hello, options),
    "mixed": lambda options: run_load("mixed", measure.mixed, options),
    "idle": run_idle,
    "inprocess": lambda options: list(inprocess.inprocess(options.operations)),
    "parser": run_parser,
}


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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as JSON")
    parser.add_argument("--servers", type=lambda text: tuple(text.split(",")),
                        help="measure these only, for example hop,bare,granian")
    parser.add_argument("--seconds", type=float, help="each run (wrk: 30, others: 3)")
    parser.add_argument("--warm-up", type=float, help="before each run (wrk: 5, others: 1)")
    parser.add_argument("--rounds", type=int, help="the median counts (wrk: 1, others: 3)")
    parser.add_argument("--connections", type=int, help="at a time (wrk: 300, others: 100)")
    parser.add_argument("--operations", type=int, default=5000, help="for inprocess")
    parser.add_argument("--generator", choices=("wrk", "own"), help="default: wrk if installed")
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON,
                        help="the Python that has the other servers")
    return parser.parse_args(argv)


def report(name: str, options: argparse.Namespace) -> tuple[dict[str, Any], list[Verdict]]:
    """Run one benchmark and print it; what there is to keep of it, and its verdicts."""
    rows = BENCHMARKS[name](options)
    verdicts, compared = judge(name, rows), differences(rows)
    said = notes(name, rows, options.peers_python)
    print(f"{name}\n{table(rows)}\n")
    for workload, figures in compared.items():
        ratios = ", ".join(f"{LABELS[key]} × {show(ratio)}" for key, ratio in figures.items())
        print(f"hop against std, {workload}: {ratios}")
    print(*said, *verdicts, "", sep="\n", flush=True)
    kept = {
        "benchmark": name, "notes": said, "hop against std": compared,
        "rows": [dataclasses.asdict(row) for row in rows],
        "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
    }
    return kept, verdicts


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; the exit status: 1 when a target was to be met and was not."""
    options = arguments(argv)
    names = list(BENCHMARKS) if options.name == "all" else [options.name]
    reports = [report(name, options) for name in names]
    if options.json:
        everything = {"machine": machine(), "benchmarks": [kept for kept, _ in reports]}
        options.json.write_text(json.dumps(everything, indent=2) + "\n")
    met = all(passed(verdicts, options.allow_missing) for _, verdicts in reports)
    return int(options.check and not met)


if __name__ == "__main__":
    sys.exit(main())
