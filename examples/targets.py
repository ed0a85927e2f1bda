"""What the benchmarks must show, in one table, and the judge of it."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

RELATIONS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge}
ANY_PEER = "any peer"  # the best of those that are not hop itself, in another way


@dataclass(frozen=True)
class Target:
    """`figure` of `server` under `workload`, divided by that of `against` where there is one,
    stands in `relation` to `bound`.

    `over` is another workload: then what counts is how many times the figure under that one it
    is, of both servers.
    """

    benchmark: str
    workload: str
    figure: str
    relation: str
    bound: float
    against: str | None = None
    over: str | None = None
    server: str = "hop"

    def __str__(self) -> str:
        limit = f"{self.bound:,g} times {self.against}" if self.against else f"{self.bound:,g}"
        growth = f", in times that of {self.over!r}" if self.over else ""
        return f"{self.server}: {self.workload}: {self.figure} {self.relation} {limit}{growth}"


def bounds(
    benchmark: str, workload: str, figure: str, relation: str, **against: float
) -> list[Target]:
    """One target for each peer (`_` is `-` in its name), with the bound that holds for it."""
    return [
        Target(benchmark, workload, figure, relation, bound, name.replace("_", "-"))
        for name, bound in against.items()
    ]


MEBIBYTE = 1 << 20
RATE = "requests_per_second"
SLEEPS = "every request sleeps {} ms".format
PLACES = ("", ", two cores")
BUSIEST = ("10,000 connections", "1,000 connections")
STALLED = ("5,000 stopped", "5,000 slow readers", "5,000 slow writers")

TARGETS = (
    Target("inprocess", "no kernel, small head", "microseconds", "<=", 5.0),
    Target("inprocess", "no kernel, browser's head", "microseconds", "<=", 8.0),
    Target("inprocess", "no kernel, never repeated", "microseconds", "<=", 12.0),
    *bounds("hello", "hello", "cpu", "<=", bare=1.6, bjoern=1.35, granian=0.7, uvicorn=0.45,
            waitress=0.15, gunicorn=0.1, std_nodelay=0.1),
    *bounds("different", "every request different", "cpu", "<=", bjoern=1.35, granian=0.75,
            uvicorn=0.55),
    *[Target("connections", name, "cpu", "<=", 1.1, "bare", "100 connections")
      for name in BUSIEST],
    *[Target("steady", f"{rate} a second", "cpu", "<=", 1.3, "hop-unwatched")
      for rate in ("100", "1,000")],
    Target("pipelined", "16 pipelined", "cpu", "<=", 0.5, "granian"),
    Target("pipelined", "16 pipelined", RATE, ">=", 1.0, ANY_PEER),
    *[target for place in PLACES for target in (
        *bounds("mixed", f"every 200th request sleeps 100 ms{place}", RATE, ">=",
                granian=0.9, waitress=4.0),
        Target("mixed", f"every 200th request sleeps 100 ms{place}", "p50", "<", 2.0),
        *[target for length in ("0.5", "1", "5")
          for target in bounds("sleeps", SLEEPS(length) + place, RATE, ">=",
                               waitress=1.5, gunicorn=1.5, granian=0.6)],
    )],
    *[target for name in ("one burns", "four burn")
      for target in bounds("burners", f"{name}, two cores", RATE, ">=",
                           waitress=1.0, granian=1.0)],
    Target("idle", "idle", "connections", ">=", 19_000),
    Target("idle", "idle", "peak_threads", "<=", 0),
    Target("idle", "idle", "bytes_each", "<=", 450),
    Target("file", "a file of 100 MB", "transfer", ">=", 0.9, "nginx"),
    Target("file", "a file of 100 MB", "grown", "<=", 8 * MEBIBYTE),
    Target("upload", "an upload of 100 MB", "transfer", ">=", 1.0, "waitress"),
    Target("upload", "an upload of 100 MB", "grown", "<=", 16 * MEBIBYTE),
    *[Target("gigabyte", f"a gigabyte {way}", "grown", "<=", 16 * MEBIBYTE)
      for way in ("down", "up")],
    *[Target("stalled", name, "cpu", "<=", 1.3, over="nobody stalls") for name in STALLED],
    Target("adversary", "ever-new headers", "cpu", "<=", 1.1, "hop-forgetful"),
    Target("adversary", "ever-new headers", "grown", "<=", 2 * MEBIBYTE),
    Target("sse", "an event to every stream", "cpu", "<=", 12.0),
    Target("sse", "an event to every stream", "threads", "<=", 0),
    *[Target("ws-echo", "echo, 64 bytes", "cpu", "<=", bound, against, server=server)
      for server, bound, against in (
          ("hop-wsproto-low", 2.2, "bare"), ("hop-wsproto-high", 0.9, "uvicorn-wsproto"),
          ("hop-websocket", 1.6, "bare"),
      )],
    *[Target("ws-idle", "idle WebSockets", figure, relation, bound, server=server)
      for server, each in (("hop-wsproto-low", 2_500), ("hop-wsproto-high", 7_000))
      for figure, relation, bound in (
          ("connections", ">=", 19_000), ("peak_threads", "<=", 0), ("bytes_each", "<=", each),
      )],
    Target("ws-broadcast", "broadcast, 64 bytes", "cpu", "<=", 12.0, server="hop-websocket"),
    Target("processes", "hello", "cpu", "<=", 1.1, "hop", server="hop-twice"),
    Target("processes", "hello", "spread", ">=", 0.5, server="hop-twice"),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """`value` is what the target speaks of; `met` is None where it could not be judged."""

    target: Target
    value: float | None
    met: bool | None
    note: str = ""

    def __str__(self) -> str:
        word = {True: "met", False: "MISSED", None: "NOT JUDGED"}[self.met]
        value = "" if self.value is None else f" ({self.value:,.3g})"
        return f"{word}: {self.target}{value}{self.note and f': {self.note}'}"


def best(rows: Sequence[Any], target: Target) -> Any | None:
    """The row of the peer that is hardest to match."""
    peers = [
        row for row in rows
        if row.workload == target.workload and not row.server.startswith(target.server)
    ]
    hardest = max if target.relation == ">=" else min
    return hardest(peers, key=lambda row: getattr(row, target.figure), default=None)


class Unjudged(Exception):
    """Why a target cannot be judged; `failed`: because of failed requests."""

    def __init__(self, text: str, failed: bool = False) -> None:
        super().__init__(text)
        self.failed = failed


def figure(target: Target, rows: Sequence[Any], server: str) -> float:
    """The figure of one server; of growth, if that is what the target speaks of."""
    values = []
    for workload in (target.workload, target.over):
        if workload is None:
            continue
        row = next((r for r in rows if (r.workload, r.server) == (workload, server)), None)
        if row is None:
            raise Unjudged(f"{server} was not measured")
        if errors := getattr(row, "errors", 0):
            raise Unjudged(f"{server} failed {errors} requests", failed=True)
        values.append(float(getattr(row, target.figure)))
    if len(values) == 2 and not values[1] > 0:
        raise Unjudged(f"{server} shows {values[1]:g} under {target.over!r}")
    return values[0] / values[1] if len(values) == 2 else values[0]


def judge_one(target: Target, rows: Sequence[Any]) -> Verdict:
    """One target against the rows of one run. Failed requests are a miss, whoever's they are."""
    against, note = target.against, ""
    if against == ANY_PEER and (row := best(rows, target)) is not None:
        against = note = row.server
    try:
        value = figure(target, rows, target.server)
        if against:
            other = figure(target, rows, against)
            if not other > 0:
                raise Unjudged(f"{against} shows {other:g}")
            value /= other
    except Unjudged as reason:
        return Verdict(target, None, False if reason.failed else None, str(reason))
    return Verdict(target, value, bool(RELATIONS[target.relation](value, target.bound)), note)


def judge(
    benchmark: str, rows: Sequence[Any], targets: Iterable[Target] = TARGETS
) -> list[Verdict]:
    """Every target of this benchmark."""
    return [judge_one(target, rows) for target in targets if target.benchmark == benchmark]


def passed(verdicts: Iterable[Verdict], allow_missing: bool = False) -> bool:
    """Whether all are met; one that could not be judged counts as missed unless it is allowed."""
    return all(allow_missing if verdict.met is None else verdict.met for verdict in verdicts)
