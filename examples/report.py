"""What was measured, as a table to read and as a record to keep."""

import dataclasses
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.peers import versions

# Heading and unit of a column; whatever is not here is headed by its name.
COLUMNS: dict[str, tuple[str, float]] = {
    "requests_per_second": ("requests/s", 1), "transfer": ("MB/s", 1e6), "mean": ("mean ms", 1),
    "p50": ("p50 ms", 1), "p99": ("p99 ms", 1), "cpu": ("CPU µs", 1), "user": ("of it user", 1),
    "grown": ("KiB grown", 1024), "microseconds": ("µs", 1), "peak_bytes": ("peak bytes", 1),
    "blocks_left": ("blocks left", 1), "peak_threads": ("further threads", 1),
    "threads_each": ("threads each", 1), "bytes_each": ("bytes each", 1),
    "hit_rate": ("hit rate", 1),
}
HIDDEN = {"generator", "requests", "latencies", "growth", "mean"}
COMPARED = ("requests_per_second", "transfer", "mean", "p50", "p99", "cpu", "microseconds",
            "threads_each", "bytes_each")


def show(value: object) -> str:
    """A cell of the table: floats with three significant digits or none behind the point."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def scaled(name: str, value: Any) -> Any:
    """The value in the unit of its column."""
    unit = COLUMNS.get(name, ("", 1))[1]
    return value if unit == 1 else value / unit


def empty(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def table(rows: Sequence[Any]) -> str:
    """Rows of one dataclass as text in columns; workload and server come first, and a column
    without any value does not come."""
    if not rows:
        return "nothing was measured"
    names = [
        field.name for field in dataclasses.fields(rows[0])
        if field.name not in HIDDEN and not all(empty(getattr(row, field.name)) for row in rows)
    ]
    names.sort(key=["workload", "server"].__contains__, reverse=True)
    lines = [[COLUMNS.get(name, (name, 1))[0] for name in names]]
    lines += [[show(scaled(name, getattr(row, name))) for name in names] for row in rows]
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


def machine(peers_python: Path) -> dict[str, Any]:
    """What was measured, and on what: without it figures mean little."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": len(os.sched_getaffinity(0)),
        "peers": versions(peers_python),
    }


def strict(value: Any) -> Any:
    """The same without nan, which JSON does not know: null."""
    if isinstance(value, dict):
        return {key: strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [strict(each) for each in value]
    return None if empty(value) else value
