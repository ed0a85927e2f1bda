"""Every workload under which servers are compared: what is served, by whom, and who asks for it."""

from dataclasses import dataclass

# Each by itself, without a pool of threads that somebody has to choose.
FAST = ("bare", "nginx", "hop", "bjoern", "fastwsgi", "granian", "uvicorn")
SLOWER = ("gevent", "waitress", "cheroot", "gunicorn", "std-nodelay")
POOLS = ("hop", "waitress", "gunicorn", "granian")
MANY = 1000  # connections whose coming and going is kept out of what a request costs


@dataclass(frozen=True)
class Workload:
    """`app` (examples/workloads.py, or MODULE:NAME) on each of the `servers` (examples/launch.py),
    asked for `path` by `connections` in the manner of `load` (`Order.kind`, with its `rate` and
    `size`).

    `threads`: of a server that has a pool. `beside`: other clients, by kind and number
    (examples/beside.py). `alone`: the server has one processor and the generator another, where
    there are two; otherwise both have all. `once`: one request, however long it takes.
    """

    name: str
    servers: tuple[str, ...]
    app: str = "hello"
    load: str = "same"
    path: str = "/"
    connections: int = 100
    rate: int = 0
    size: int = 0
    threads: int | None = None
    beside: tuple[str, int] | None = None
    alone: bool = True
    once: bool = False

    @property
    def target(self) -> str:
        """The application as MODULE:NAME."""
        return self.app if ":" in self.app else f"examples.workloads:{self.app}"


SLEEPS = {
    "every request sleeps 0.5 ms": "sleep_500us",
    "every request sleeps 1 ms": "sleep_1ms",
    "every request sleeps 5 ms": "sleep_5ms",
}
SHARES = {
    0: "hello", 0.1: "one_in_1000", 0.5: "one_in_200", 1: "one_in_100", 2: "one_in_50",
    5: "one_in_20", 10: "one_in_10",
}
PLACES = {"": True, ", two cores": False}
MEGABYTES_100 = 100 << 20
GIGABYTE = 1 << 30

WORKLOADS: dict[str, tuple[Workload, ...]] = {
    "wrk": (
        Workload("overview page", ("std", "std-nodelay", "hop"), "examples.app:application",
                 connections=300, alone=False),
    ),
    "hello": (Workload("hello", (*FAST, *SLOWER, "hop-hasty")),),
    "different": (
        Workload(
            "every request different",
            tuple(name for name in (*FAST, "waitress", "hop-hasty") if name != "bare"),
            load="different",
        ),
    ),
    "connections": tuple(
        Workload(f"{count:,} connections", ("bare", "hop", "bjoern"), connections=count)
        for count in (100, 1_000, 10_000)
    ),
    "steady": tuple(
        Workload(
            f"{rate:,} a second", ("hop", "hop-unwatched"), load="steady", rate=rate,
            connections=10,
        )
        for rate in (100, 1_000)
    ),
    "pipelined": (
        Workload(
            "16 pipelined", tuple(name for name in FAST if name != "bare"), load="pipelined",
        ),
    ),
    "mixed": tuple(
        Workload("every 200th request sleeps 100 ms" + place, POOLS, "every_200th", threads=64,
                 alone=alone)
        for place, alone in PLACES.items()
    ),
    "sleeps": tuple(
        Workload(name + place, POOLS, app, threads=64, alone=alone)
        for name, app in SLEEPS.items()
        for place, alone in PLACES.items()
    ),
    "share": tuple(
        Workload(f"{share} % sleep 10 ms", ("hop", "waitress", "granian"), app, threads=64)
        for share, app in SHARES.items()
    ),
    "burners": tuple(
        Workload(
            name + place, ("hop", "waitress", "granian"), "several", threads=64,
            beside=("burn", count), alone=alone,
        )
        for name, count in {"nobody burns": 0, "one burns": 1, "four burn": 4}.items()
        for place, alone in PLACES.items()
    ),
    "file": (
        Workload(
            "a file of 100 MB", ("nginx", "hop", "waitress"), "file", "download", "/file",
            connections=4, size=MEGABYTES_100,
        ),
    ),
    "upload": (
        Workload(
            "an upload of 100 MB", ("hop", "waitress"), "sink", "upload", connections=4,
            size=MEGABYTES_100,
        ),
    ),
    "gigabyte": (
        Workload("a gigabyte down", ("hop", "waitress"), "generated", "download",
                 connections=1, size=GIGABYTE, once=True),
        Workload("a gigabyte up", ("hop", "waitress"), "sink", "upload",
                 connections=1, size=GIGABYTE, once=True),
    ),
    "stalled": tuple(
        Workload(name, ("hop",), "several", beside=beside)
        for name, beside in {
            "nobody stalls": None, "5,000 stopped": ("stopped", 5_000),
            "5,000 slow readers": ("reader", 5_000), "5,000 slow writers": ("writer", 5_000),
        }.items()
    ),
    "adversary": (Workload("ever-new headers", ("hop", "hop-forgetful"), load="new"),),
    "processes": (Workload("hello", ("hop", "hop-twice"), "counting"),),
}
