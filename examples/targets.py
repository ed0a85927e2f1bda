"""What the benchmarks must show, in one table, and the judge of it."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

RELATIONS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge}


@dataclass(frozen=True)
class Target:
    """`figure` of `server` under `workload`, divided by that of `against` where there is one,
    stands in `relation` to `bound`."""

    benchmark: str
    workload: str
    figure: str
    relation: str
    bound: float
    against: str | None = None
    server: str = "hop"

    def __str__(self) -> str:
        limit = f"{self.bound:g} times {self.against}" if self.against else f"{self.bound:g}"
        return f"{self.server}: {self.workload}: {self.figure} {self.relation} {limit}"


EVERY = "every request sleeps {} ms".format

TARGETS = (
    Target("inprocess", "no kernel, small head", "microseconds", "<=", 8.0),
    Target("hello", "hello", "cpu", "<=", 1.8, "bare"),
    Target("hello", "hello", "cpu", "<", 1.0, "granian"),
    Target("hello", "hello", "cpu", "<=", 0.5, "uvicorn"),
    Target("idle", "idle", "connections", ">=", 19_000),
    Target("idle", "idle", "peak_threads", "<=", 0),
    Target("idle", "idle", "bytes_each", "<=", 600),
    Target(
        "mixed", "every 200th request sleeps 100 ms", "requests_per_second", ">=", 2.5, "waitress"
    ),
    Target("mixed", EVERY("1"), "requests_per_second", ">=", 1.0, "waitress"),
    Target("mixed", EVERY("5"), "requests_per_second", ">=", 1.0, "waitress"),
)


@dataclass(frozen=True)
class Verdict:
    """`value` is what the target speaks of; `met` is None where it could not be judged."""

    target: Target
    value: float | None
    met: bool | None
    note: str = ""

    def __str__(self) -> str:
        word = {True: "met", False: "MISSED", None: "NOT JUDGED"}[self.met]
        value = "" if self.value is None else f" ({self.value:.3g})"
        return f"{word}: {self.target}{value}{self.note and f': {self.note}'}"


def judge_one(target: Target, rows: Sequence[Any]) -> Verdict:
    """One target against the rows of one run. Failed requests are a miss, whoever's they are."""
    found = {row.server: row for row in rows if row.workload == target.workload}
    names = [target.server, *([target.against] if target.against else [])]
    for name in names:
        if name not in found:
            return Verdict(target, None, None, f"{name} was not measured")
        if getattr(found[name], "errors", 0):
            return Verdict(target, None, False, f"{name} failed {found[name].errors} requests")
    figures = [float(getattr(found[name], target.figure)) for name in names]
    if target.against and not figures[1] > 0:
        return Verdict(target, None, None, f"{target.against} shows {figures[1]:g}")
    value = figures[0] / figures[1] if target.against else figures[0]
    return Verdict(target, value, bool(RELATIONS[target.relation](value, target.bound)))


def judge(
    benchmark: str, rows: Sequence[Any], targets: Iterable[Target] = TARGETS
) -> list[Verdict]:
    """Every target of this benchmark."""
    return [judge_one(target, rows) for target in targets if target.benchmark == benchmark]


def passed(verdicts: Iterable[Verdict], allow_missing: bool = False) -> bool:
    """Whether all are met; one that could not be judged counts as missed unless it is allowed."""
    return all(allow_missing if verdict.met is None else verdict.met for verdict in verdicts)
