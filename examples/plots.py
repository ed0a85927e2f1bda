"""`python -m examples.plots RESULTS.json DIR`: pictures of what the benchmarks measured, as PNG.

`python -m examples.benchmark NAME --plots DIR` makes them at once. Each shows one benchmark, and
is made if that is among the results.
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.table import SHARES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, Any]]
SIZE = (7.2, 4.4)
COLOURS = {
    "hop": "#c0392b", "bare": "#7f8c8d", "nginx": "#27ae60", "bjoern": "#2980b9",
    "fastwsgi": "#16a085", "granian": "#d68910", "uvicorn": "#8e44ad", "waitress": "#2c3e50",
    "gunicorn": "#a04000", "std": "#b2babb", "std-nodelay": "#b2babb", "gevent": "#5d6d7e",
    "cheroot": "#b7950b",
}
# Where lines may lie on each other, or print has no colours, marks tell them apart.
MARKS = {"hop": "o", "bare": "s", "granian": "^", "waitress": "D", "bjoern": "v"}


def style(server: str) -> dict[str, Any]:
    """How a server looks in every picture."""
    return {
        "color": COLOURS.get(server, "#444444"), "label": server,
        "linewidth": 2.4 if server == "hop" else 1.4, "zorder": 3 if server == "hop" else 2,
    }


def by_server(rows: Iterable[dict[str, Any]]) -> dict[str, Rows]:
    """The rows of each server, in their order."""
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(row["server"], []).append(row)
    return found


def throughput(axes: "Axes", rows: Rows) -> None:
    """Requests a second against CPU per request: on one saturated core, one is the other's
    inverse, and who lies below that line waits for something else."""
    rows = [row for row in rows if row["cpu"]]
    for number, row in enumerate(sorted(rows, key=lambda row: row["cpu"])):
        axes.scatter(row["cpu"], row["requests_per_second"], s=45, **style(row["server"]))
        axes.annotate(
            row["server"], (row["cpu"], row["requests_per_second"]), textcoords="offset points",
            xytext=(6, 5) if number % 2 else (-6, -12), ha="left" if number % 2 else "right",
            fontsize=8,
        )
    limits = [min(row["cpu"] for row in rows) * 0.8, max(row["cpu"] for row in rows) * 1.3]
    axes.plot(limits, [1e6 / cpu for cpu in limits], "--", color="#999999", linewidth=1)
    axes.set(
        xscale="log", yscale="log", xlabel="CPU of the server per request, µs",
        ylabel="requests a second",
        title="hello: throughput against CPU (dashed: one core, fully used)",
    )


def latency(axes: "Axes", rows: Rows) -> None:
    """What share of the requests took longer than so long."""
    for row in rows:
        points = [(value, 100 - percent) for percent, value in row["latencies"] if percent < 100]
        if points:
            axes.plot(*zip(*points, strict=True), **style(row["server"]))
    axes.set(
        xscale="log", yscale="log", xlabel="latency, ms", ylabel="% of requests that took longer",
        title=f"{rows[0]['workload']}: latency, {rows[0]['connections']} connections",
    )
    axes.legend(fontsize=8, ncols=2)


def memory(axes: "Axes", rows: Rows) -> None:
    """Resident memory while idle connections are added."""
    for row in rows:
        connections = [count for count, _ in row["growth"]]
        grown = [size / 1e6 for _, size in row["growth"]]
        axes.plot(connections, grown, **style(row["server"]))
    axes.set(
        xlabel="idle connections", ylabel="resident memory grown by, MB",
        title="memory against connections", yscale="symlog", ylim=(0, None),
    )
    axes.legend(fontsize=8)


def connections(axes: "Axes", rows: Rows) -> None:
    """What a request costs when there are more connections."""
    for server, mine in by_server(rows).items():
        axes.plot(
            [row["connections"] for row in mine], [row["cpu"] for row in mine],
            marker=MARKS.get(server, "o"), **style(server),
        )
    axes.set(
        xscale="log", yscale="log", xlabel="connections",
        ylabel="CPU of the server per request, µs", title="cost against number of connections",
    )
    axes.legend(fontsize=8)


def share(axes: "Axes", rows: Rows) -> None:
    """Throughput over the share of requests that sleep."""
    for server, mine in by_server(rows).items():
        axes.plot(
            [float(row["workload"].split()[0]) for row in mine],
            [row["requests_per_second"] for row in mine],
            marker=MARKS.get(server, "o"), **style(server),
        )
    axes.set(
        yscale="log", xlabel="% of requests that sleep for 10 ms",
        ylabel="requests a second", title="mixed load: 64 threads each, 100 connections",
    )
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xticks(list(SHARES))
    axes.set_xlim(0, 10.5)
    axes.legend(fontsize=8)


PLOTS: dict[str, tuple[str, Callable[["Axes", Rows], None]]] = {
    "throughput": ("hello", throughput),
    "latency": ("hello", latency),
    "latency-mixed": ("mixed", latency),
    "memory": ("idle", memory),
    "connections": ("connections", connections),
    "share": ("share", share),
}


def draw(everything: dict[str, Any], folder: Path) -> list[Path]:
    """Every picture for which there are results; where they are. `everything` is the JSON."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []
    folder.mkdir(parents=True, exist_ok=True)
    results = {section["benchmark"]: section["rows"] for section in everything["benchmarks"]}
    for name, (benchmark, paint) in PLOTS.items():
        rows = results.get(benchmark, [])
        if benchmark == "mixed":
            rows = [row for row in rows if row["workload"] == rows[0]["workload"]]
        if not rows:
            continue
        figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
        paint(axes, rows)
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        made.append(folder / f"{name}.png")
        figure.savefig(made[-1], dpi=110)
        pyplot.close(figure)
    return made


def main() -> None:
    for path in draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])):
        print(path)


if __name__ == "__main__":
    main()
