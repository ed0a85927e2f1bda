"""The benchmark harness: its arithmetic on made-up rows, its measuring with tiny real runs."""

import dataclasses
import importlib
import importlib.machinery
import importlib.util
import json
import math
import os
import re
import resource
import shutil
import socket
import sys
import threading
import time
import types
from dataclasses import replace

import pytest

from examples import (
    bare,
    bench_sse,
    bench_websocket,
    benchmark,
    beside,
    bulk,
    drive,
    idle,
    inprocess,
    launch,
    load,
    measure,
    memo,
    peers,
    plots,
    report,
    targets,
    workloads,
)
from examples.load import Load, Order, read_wrk
from examples.measure import Row, Run
from examples.table import MANY, WORKLOADS, Workload
from examples.targets import ANY_PEER, TARGETS, Target, judge, passed
from hop import parser
from tests.test_bench_websocket import SPOKEN
from tests.test_bench_websocket import rows_for as websocket_rows

TINY = Run(seconds=0.1, warm_up=0.0, connections=2, generator="own")
HELLO = WORKLOADS["hello"][0]


def row(workload, server, cpu=10.0, errors=0, rate=1000.0, grown=0, spread=math.nan, p50=1.0):
    return Row(
        generator="own", requests=100, errors=errors, requests_per_second=rate, transfer=1e6,
        mean=1.0, p50=p50, p99=2.0, latencies=[[50, p50], [99, 2.0], [100, 3.0]],
        workload=workload, server=server, connections=100, cpu=cpu, user=cpu / 2, grown=grown,
        spread=spread,
    )


def idle_row(server="hop", threads=0, each=400.0):
    growth = [[0, 0], [19_900, int(19_900 * each)]]
    return idle.IdleRow("idle", server, 19_900, 19_900, threads, threads / 19_900, each, growth)


# the judge

PLAIN = {
    "cpu": 100.0, "requests_per_second": 1000.0, "transfer": 1e6, "grown": 1 << 20, "p50": 1.0,
    "spread": math.nan,
}


def shown(target, worse=1.0):
    """What hop shows if it just meets the target, while everybody else shows what is PLAIN."""
    least = target.bound * (PLAIN[target.figure] if target.against or target.over else 1)
    return least / worse if target.relation == ">=" else least * 0.999 * worse


def figures_row(workload, server, figures):
    """A row with these figures, and what is plain where they say nothing."""
    return replace(row(workload, server), **{**PLAIN, **figures})


def rows_for(name, worse=1.0):
    """Rows of every server that the benchmark compares. hop's figures are such that it just meets
    all of the targets, or is so many times worse."""
    if name == "idle":
        return [idle_row(each=450.0 * worse)]
    if name == "inprocess":
        return [
            inprocess.OperationRow(target.workload, "hop", 10, target.bound * worse, 3000, 0.0)
            for target in TARGETS if target.benchmark == name
        ]
    if name == "sse":
        figures = (5000, 20, int(worse - 1), 1600.0, 11.9 * worse, 60.0)
        return [bench_sse.SseRow("an event to every stream", "hop", *figures)]
    rows = []
    for workload in WORKLOADS[name]:
        for server in workload.servers:
            figures = {}
            for target in TARGETS:
                asked = target.benchmark, target.workload, target.server
                if asked == (name, workload.name, server):
                    hardest = max if target.relation == ">=" else min
                    value = shown(target, worse)
                    figures[target.figure] = hardest(figures.get(target.figure, value), value)
            rows.append(figures_row(workload.name, server, figures))
    return rows


# The rows of WebSockets have tests of their own.
JUDGED = [
    name for name in dict.fromkeys(target.benchmark for target in TARGETS)
    if not name.startswith("ws-")
]
LOADED = [target for target in TARGETS if target.benchmark in WORKLOADS]


@pytest.mark.parametrize("name", JUDGED)
def test_good_figures_meet_every_target(name):
    verdicts = judge(name, rows_for(name))
    assert [str(verdict) for verdict in verdicts if not verdict.met] == []
    assert passed(verdicts)


@pytest.mark.parametrize("name", JUDGED)
def test_a_planted_slowdown_of_two_trips(name):
    verdicts = judge(name, rows_for(name, worse=2.0))
    assert not passed(verdicts, allow_missing=True)
    assert any(str(verdict).startswith("MISSED: hop") for verdict in verdicts)


@pytest.mark.parametrize("target", LOADED, ids=str)
def test_every_target_trips_by_itself(target):
    others = {target.against, "granian"} - {None, ANY_PEER}
    rows = [figures_row(target.workload, server, {}) for server in others]
    rows += [figures_row(target.over, server, {}) for server in (*others, target.server)]
    for worse, met in ((1.0, True), (2.0, False)):
        mine = figures_row(target.workload, target.server, {target.figure: shown(target, worse)})
        assert targets.judge_one(target, [*rows, mine]).met is met


def test_a_further_thread_trips():
    assert not passed(judge("idle", [idle_row(threads=1)]))


def test_fewer_connections_trip():
    assert not passed(judge("idle", [replace(idle_row(), connections=18_000)]))


def test_every_target_belongs_to_a_benchmark_and_to_something_it_measures():
    for target in TARGETS:
        assert target.benchmark in benchmark.BENCHMARKS
        for workload in WORKLOADS.get(target.benchmark, ()):
            if workload.name == target.workload:
                assert target.server in workload.servers
                assert target.against in (*workload.servers, ANY_PEER, None)
        names = [workload.name for workload in WORKLOADS.get(target.benchmark, ())]
        assert not names or target.workload in names
        assert target.over is None or target.over in names


def test_a_missing_peer_is_named_and_fails_unless_allowed():
    rows = [each for each in rows_for("hello") if each.server != "granian"]
    verdicts = judge("hello", rows)
    unjudged = [verdict for verdict in verdicts if verdict.met is None]
    assert [str(verdict) for verdict in unjudged] == [
        "NOT JUDGED: hop: hello: cpu <= 0.7 times granian: granian was not measured"
    ]
    assert not passed(verdicts)
    assert passed(verdicts, allow_missing=True)


def test_failed_requests_are_a_miss():
    target = Target("hello", "hello", "cpu", "<=", 9.0, "bare")
    verdict = targets.judge_one(target, [row("hello", "hop", errors=3), row("hello", "bare")])
    assert (verdict.met, verdict.note) == (False, "hop failed 3 requests")


def test_a_peer_that_shows_nothing_is_not_judged():
    target = Target("hello", "hello", "cpu", "<=", 9.0, "bare")
    verdict = targets.judge_one(target, [row("hello", "hop"), row("hello", "bare", cpu=math.nan)])
    assert verdict.met is None


def test_relations_at_their_bound():
    rows = [row("hello", "hop", 10.0), row("hello", "bare", 10.0)]
    met = {
        relation: targets.judge_one(Target("x", "hello", "cpu", relation, 1.0, "bare"), rows).met
        for relation in targets.RELATIONS
    }
    assert met == {"<=": True, "<": False, ">=": True}


def test_growth_is_compared_with_growth():
    rows = [
        row("few", "hop", 10.0), row("few", "bare", 5.0),
        row("many", "hop", 16.0), row("many", "bare", 8.0),
    ]
    target = Target("x", "many", "cpu", "<=", 1.1, "bare", "few")
    assert targets.judge_one(target, rows).value == pytest.approx(1.0)
    assert targets.judge_one(replace(target, against=None), rows).value == pytest.approx(1.6)
    assert str(target) == "hop: many: cpu <= 1.1 times bare, in times that of 'few'"
    unmeasured = targets.judge_one(target, rows[1:])
    assert (unmeasured.met, unmeasured.note) == (None, "hop was not measured")
    nothing = targets.judge_one(target, [replace(rows[0], cpu=0.0), *rows[1:]])
    assert (nothing.met, nothing.note) == (None, "hop shows 0 under 'few'")


def test_any_peer_is_the_best_of_them():
    rows = [
        row("w", "hop", rate=1500.0), row("w", "hop-twice", rate=9000.0),
        row("w", "granian", rate=1000.0), row("w", "nginx", rate=2000.0),
    ]
    target = Target("x", "w", "requests_per_second", ">=", 1.0, ANY_PEER)
    verdict = targets.judge_one(target, rows)
    assert (verdict.met, verdict.value, verdict.note) == (False, 0.75, "nginx")
    assert targets.judge_one(target, rows[:3]).met is True
    alone = targets.judge_one(target, rows[:2])
    assert (alone.met, alone.note) == (None, "any peer was not measured")
    cheapest = Target("x", "w", "cpu", "<=", 1.0, ANY_PEER)
    costs = [row("w", "hop", 9.0), row("w", "a", 10.0), row("w", "b", 8.0)]
    assert targets.judge_one(cheapest, costs).note == "b"


# wrk's report

REPORT = """\
Running 3s test @ http://127.0.0.1:1/
  1 threads and 100 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.05ms  350.12us   9.87ms   91.67%
    Req/Sec    95.21k     2.33k   98.44k    86.67%
  Latency Distribution
     50%  812.00us
     75%    1.10ms
     90%    1.31ms
     99%    2.20s
  284117 requests in 3.00s, 26.28MB read
"""
TAIL = "Requests/sec:  94693.80\nTransfer/sec:      8.76MB\npercentile 50 812\npercentile 99.9 0\n"


def test_wrk_s_report_is_read():
    result = read_wrk(REPORT + TAIL)
    assert dataclasses.asdict(result) == {
        "generator": "wrk", "requests": 284117, "errors": 0, "requests_per_second": 94693.8,
        "transfer": pytest.approx(8.76 * 1024**2), "mean": 1.05, "p50": pytest.approx(0.812),
        "p99": 2200.0, "latencies": [[50.0, 0.812]],
    }


def test_a_percentile_that_wrk_does_not_know_is_none():
    text = REPORT.replace("812.00us", "0.00us").replace("2.20s", "0.00us")
    result = read_wrk(text + TAIL)
    assert math.isnan(result.p50)
    assert math.isnan(result.p99)


def test_wrk_s_errors_are_added_up():
    errors = ("  Socket errors: connect 1, read 2, write 3, timeout 4\n"
              "  Non-2xx or 3xx responses: 5\n")
    assert read_wrk(REPORT + errors + TAIL).errors == 15


def test_what_is_not_wrk_s_report_is_refused():
    with pytest.raises(ValueError, match="unable to connect"):
        read_wrk("unable to connect to 127.0.0.1:1 Connection refused")


@pytest.mark.parametrize("text", ["", "ms", "1.5xs", "x"])
def test_not_a_quantity(text):
    with pytest.raises(ValueError, match="not a quantity"):
        load.quantity(text, load.MILLISECONDS)


def test_percentiles():
    ordered = [float(number) for number in range(1, 101)]
    assert drive.percentile(ordered, 0.5) == 50.0
    assert drive.percentile(ordered, 0.99) == 99.0
    assert drive.percentile([7.0], 0.01) == 7.0
    assert math.isnan(drive.percentile([], 0.5))


# the loads


def test_varied_requests_differ():
    heads = [drive.different(number) for number in range(8)]
    assert len(set(heads)) == 8
    assert len({head.split(b"\r\n")[2] for head in heads}) == len(drive.FIELDS)
    for head in heads:
        assert head.endswith(b"\r\n\r\n")


def test_no_line_of_new_requests_comes_again():
    heads = [drive.new(number) for number in range(50)]
    lines = [line for head in heads for line in head[:-4].split(b"\r\n")[1:]]
    assert len(lines) == len(set(lines)) == 300
    for head in heads:
        assert parser.parse_head(head).end == len(head)


def test_wrk_is_used_where_it_is_and_where_it_can(monkeypatch):
    asked = []
    monkeypatch.setattr(load, "wrk", lambda *arguments: asked.append("wrk"))
    monkeypatch.setattr(load, "own", lambda *arguments: asked.append("own"))
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/wrk")
    load.generate(Order(1))
    load.generate(Order(1, "steady"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    load.generate(Order(1))
    load.generate(Order(1), generator="wrk")
    assert asked == ["wrk", "own", "own", "wrk"]


def test_wrk_is_called_with_what_was_asked(tmp_path, monkeypatch):
    seen = tmp_path / "seen"
    script = tmp_path / "wrk"
    script.write_text(f"#!/bin/sh\necho \"$@\" > {seen}\ncat <<'END'\n{REPORT}{TAIL}END\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    order = Order(1826, "different", 4, 1.5, "/x", threads=6)
    assert load.generate(order).requests == 284117
    assert seen.read_text().split() == [
        "-t4", "-c4", "-d2s", "--latency", "-s", str(load.HERE / "requests.lua"),
        "http://127.0.0.1:1826/x", "--", "different",
    ]


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
@pytest.mark.parametrize("kind", load.BY_WRK)
def test_what_wrk_asks_is_what_our_own_asks(kind):
    """The first request of both, as the server gets it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        script = threading.Thread(target=lambda: load.output(
            ["wrk", "-t1", "-c1", "-d1s", "-s", str(load.HERE / "requests.lua"),
             f"http://127.0.0.1:{port}/", "--", kind], None,
        ))
        script.start()
        listener.settimeout(30)
        expected = drive.KINDS[kind](1, "/")
        got = b""
        for _ in range(20):  # wrk may try a connection first, and counts what it sends on it
            with listener.accept()[0] as conn:
                conn.settimeout(30)
                while len(got) < len(expected) and (data := conn.recv(65536)):
                    got += data
            if got:
                break
        script.join()
    number = int(next(iter(re.findall(rb"/p/(\d+)|X-(\d+)", got)), (b"1", b""))[kind == "new"])
    expected = drive.KINDS[kind](number, "/")
    assert re.sub(rb"127.0.0.1:\d+", b"localhost", got) == expected


def answering(*answers):
    """An application that gives these statuses in turn, then the last one for ever."""
    left = list(answers)

    def application(environ, start_response):
        status = left.pop(0) if len(left) > 1 else left[0]
        headers = [] if status == "close" else [("Content-Length", "2")]
        start_response("200 OK" if status == "close" else status, headers)
        return iter([b"ok"])

    return application


@pytest.mark.parametrize("kind", ["same", "different", "new"])
def test_drive_counts_what_comes_back(kind):
    with inprocess.std_server(answering("200 OK")) as port:
        result = drive.drive(Order(port, kind, 3, 0.3))
    assert result.requests > 0
    assert result.errors == 0
    assert 0 < result.p50 <= result.p99
    assert [percent for percent, _ in result.latencies] == list(load.PERCENTS)
    assert result.mean > 0
    assert result.transfer > 0


def test_pipelined_answers_are_counted_one_by_one():
    with inprocess.hop_server(workloads.hello) as port:
        result = drive.drive(Order(port, "pipelined", 2, 0.3))
    assert result.requests > 0
    assert result.requests % 16 == 0
    assert result.errors == 0


def test_drive_counts_failures():
    with inprocess.std_server(answering("500 Internal Server Error")) as port:
        result = drive.drive(Order(port, "same", 1, 0.3))
    assert result.errors == result.requests > 0


def test_drive_counts_answers_it_cannot_read_and_connects_again():
    with inprocess.std_server(answering("close", "200 OK")) as port:
        result = drive.drive(Order(port, "same", 1, 0.5))
    assert result.errors == 1
    assert result.requests > 0


def test_a_server_that_never_answers_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(drive, "PATIENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(TimeoutError):
        drive.drive(Order(listener.getsockname()[1], connections=1, seconds=0.1))


def test_a_steady_rate_is_kept_and_lateness_counts():
    slow = threading.Event()

    def application(environ, start_response):
        if not slow.is_set():
            slow.set()
            time.sleep(0.2)
        return workloads.hello(environ, start_response)

    with inprocess.std_server(application) as port:
        result = drive.pace(Order(port, "steady", 2, 0.3, rate=100))
    assert (result.requests, result.errors) == (30, 0)
    assert result.p50 > 20  # milliseconds: those that waited behind the slow one count


@pytest.mark.parametrize(("kind", "app"), [("download", "generated"), ("upload", "sink")])
def test_bodies_go_down_and_up(kind, app):
    size = 3 << 20
    with inprocess.hop_server(getattr(workloads, app)) as port:
        order = Order(port, kind, 2, 0.0, f"/?{size}", size=size)
        result = drive.GENERATORS[kind](order)
    assert (result.requests, result.errors) == (2, 0)
    assert result.transfer > 0


def test_a_transfer_of_another_length_is_an_error():
    with inprocess.hop_server(workloads.generated) as port:
        order = Order(port, "download", 1, 0.0, "/?100", size=101)
        assert bulk.transfer(order)[1] == 1
    with inprocess.hop_server(answering("200 OK")) as port:
        assert bulk.transfer(Order(port, "upload", 1, 0.0, size=100))[1] == 1


def test_a_transfer_that_cannot_end_is_refused():
    with inprocess.std_server(answering("close")) as port, pytest.raises(OSError, match="without"):
        bulk.transfer(Order(port, "download", 1, 0.0, size=2))


def test_a_transfer_that_is_cut_off_is_refused():
    def cut(environ, start_response):
        start_response("200 OK", [("Content-Length", "100000")])
        return [b"x"]

    with inprocess.hop_server(cut) as port, pytest.raises(ConnectionError, match="closed"):
        bulk.transfer(Order(port, "download", 1, 0.0, size=100_000))


def test_our_own_generator_says_what_went_wrong():
    with pytest.raises(ValueError, match="refused"):
        load.own(Order(1), None)


def test_generators_are_pinned_and_the_caller_is_not():
    before = os.sched_getaffinity(0)
    one = min(before)
    with load.pinned(one):
        assert os.sched_getaffinity(0) == {one}
    assert os.sched_getaffinity(0) == before
    with load.pinned(None):
        assert os.sched_getaffinity(0) == before


# clients that others have to live with


class Enough(Exception):
    """Ends what goes on for ever."""


@pytest.mark.parametrize("kind", beside.BEGINNING)
def test_slow_clients_move_and_stay(kind, monkeypatch):
    with inprocess.hop_server(workloads.several) as port:
        sock = beside.begin(kind, port)
        if kind == "reader":
            sock.setblocking(True)
        assert beside.moved(kind, sock)
        sock.close()


def test_who_is_thrown_out_comes_back(monkeypatch):
    begun, naps, announced = [], [], []
    real = beside.begin

    def begin(kind, port):
        begun.append(real(kind, port))
        return begun[-1]

    def nap(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            assert announced == []
            begun[0].close()
        if len(naps) == beside.SLICES + 2:
            raise Enough

    monkeypatch.setattr(beside, "begin", begin)
    monkeypatch.setattr(time, "sleep", nap)
    with inprocess.hop_server(workloads.several) as port:
        with pytest.raises(Enough):
            beside.stall("stopped", port, 3, lambda: announced.append(len(begun)))
        for sock in begun:
            sock.close()
    assert announced == [3]
    assert len(begun) == 4


def test_burners_ask_again():
    asked = threading.Event()
    paths = []

    def application(environ, start_response):
        paths.append(environ["PATH_INFO"])
        if len(paths) > 2:
            asked.set()
            start_response("200 OK", [])
            return iter([b"of a length", b"that is not told"])
        return workloads.hello(environ, start_response)

    with inprocess.std_server(application) as port, pytest.raises(ConnectionError):
        beside.burn(port, 1, lambda: None)
    assert asked.is_set()
    assert set(paths) == {"/burn"}


def test_others_run_beside_and_end():
    with inprocess.hop_server(workloads.several) as port:
        with measure.others(("burn", 2), port, None):
            pass
        with pytest.raises(RuntimeError, match="could not connect"), measure.others(
            ("stopped", 1), 1, None
        ):
            pass


# the servers


@pytest.mark.parametrize("kind", ["bare", "std", "std-nodelay", *(
    kind for kind in peers.OURS if kind.startswith("hop")
)])
def test_serving_starts_watches_and_stops(kind):
    with peers.serving(kind, cpu=min(os.sched_getaffinity(0))) as served:
        order = Order(served.port, "same" if kind == "bare" else "different", 2, 0.3)
        result = load.own(order, None)
        assert result.requests > 0
        assert result.errors == 0
        assert served.cpu().total > 0
        assert served.threads() >= 1
        assert served.resident() > 1 << 20
        served.forget_peak()
        assert served.peak() >= served.resident() * 0.9
    assert served.members() == {}


@pytest.mark.skipif(peers.nginx() is None, reason="nginx is not installed")
def test_nginx_answers_like_the_others():
    with measure.file_of(3 << 20), peers.serving("nginx") as served:
        result = load.own(Order(served.port, connections=1, seconds=0.2), None)
        assert result.requests > 0
        assert result.errors == 0
        order = Order(served.port, "download", 1, 0.0, "/file", size=3 << 20)
        assert bulk.transfer(order)[1] == 0
    assert not workloads.FILE.exists()


def test_a_server_that_does_not_start_says_why():
    with (
        pytest.raises(RuntimeError, match="no_such_name"),
        peers.serving("std", "examples.workloads:no_such_name"),
    ):
        pass


def test_peers_are_found_by_importing(tmp_path, monkeypatch):
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} \"$@\"\n")
    fake.chmod(0o755)
    (tmp_path / "bjoern.py").write_text("")
    metadata = tmp_path / "bjoern-1.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: bjoern\nVersion: 1.0\n")
    (tmp_path / "fastwsgi.py").write_text("raise ImportError")
    found = peers.versions(fake)
    assert found["bjoern"] == "1.0"
    assert "fastwsgi" not in found
    monkeypatch.setattr(peers, "nginx", lambda: None)
    assert peers.installed(tmp_path / "none") == ()


def test_a_pool_is_as_large_as_asked_or_as_the_server_likes():
    options = launch.Options("x:y", 1)
    assert launch.pool(options, "threads") == {}
    assert launch.pool(replace(options, threads=64), "numthreads") == {"numthreads": 64}


def test_every_server_of_the_table_can_be_launched():
    named = {name for table in WORKLOADS.values() for each in table for name in each.servers}
    assert named <= set(launch.KINDS)
    assert named <= {*peers.OURS, *peers.PEERS}


def test_user_time_is_a_share_of_the_ticks():
    used = peers.Cpu(1.0, 90, 100) - peers.Cpu(0.5, 60, 60)
    assert used == peers.Cpu(0.5, 30, 40)
    assert used.user == 0.375
    assert peers.Cpu(0.1, 0, 0).user == 0


# the benchmarks

ROWS = [
    pytest.param(name, workload, id=f"{name}: {workload.name}")
    for name, table in WORKLOADS.items()
    for workload in table
    if not workload.name.endswith(", two cores")  # only the place differs
]


@pytest.mark.parametrize(("name", "workload"), ROWS)
def test_every_row_is_measured_with_a_tiny_load(name, workload, monkeypatch):
    beside_few = workload.beside and (workload.beside[0], min(workload.beside[1], 3))
    size = min(workload.size, 2 << 20)
    monkeypatch.setattr(workloads, "GIGABYTE", size)
    tiny = replace(workload, beside=beside_few, size=size, path=workload.path)
    if workload.app == "generated":
        tiny = replace(tiny, path=f"/?{size}")
    result = measure.measure("hop", tiny, TINY)
    assert (result.workload, result.server, result.errors) == (workload.name, "hop", 0)
    assert result.requests > 0
    assert result.cpu > 0
    assert (name == "processes") == (not math.isnan(result.spread))


def test_connecting_to_many_is_not_what_a_request_costs(monkeypatch):
    costs = iter([(1000, 0.5), (5000, 0.9)])
    clock = [0.0]

    class Quiet(peers.Served):
        def cpu(self):
            return peers.Cpu(clock[0], 0, 0)

        def settle(self):
            pass

    def answer(order):
        requests, cost = next(costs)
        clock[0] += cost
        return replace(row("x", "hop"), requests=requests)

    served = Quiet("hop", 1, 1)
    _, used, requests = measure.steady_state(served, Order(1, connections=MANY), answer)
    assert used.total == pytest.approx(0.4)
    assert requests == 4000


def test_two_processes_are_told_apart():
    result = measure.measure("hop-twice", WORKLOADS["processes"][0], replace(TINY, connections=20))
    assert 0 < result.spread <= 1


def test_compare_takes_turns_and_the_median(monkeypatch):
    costs = {"a": iter([3.0, 1.0, 2.0]), "b": iter([9.0, 9.0, 7.0])}
    asked, said = [], []

    def fake(server, workload, run):
        asked.append(server)
        return row(workload.name, server, next(costs[server]))

    monkeypatch.setattr(measure, "measure", fake)
    rows, failures = measure.compare(["a", "b"], HELLO, Run(rounds=3, progress=said.append))
    assert failures == []
    assert asked == ["a", "b"] * 3
    assert [(each.server, each.cpu) for each in rows] == [("a", 2.0), ("b", 9.0)]
    assert len(said) == 6
    assert said[-1] == "hello: b, round 3 of 3: 1,000/s, 7.0 µs of CPU each"


def test_who_fails_is_named_and_left_out(monkeypatch):
    def fake(server, workload, run):
        if server == "a":
            raise RuntimeError("the server did not start: no luck")
        return row(workload.name, server)

    monkeypatch.setattr(measure, "measure", fake)
    rows, failures = measure.compare(["a", "b"], HELLO, Run(rounds=2))
    assert [each.server for each in rows] == ["b"]
    assert failures == ["hello: a failed: the server did not start: no luck"]


def test_one_benchmark_that_fails_does_not_lose_the_others(monkeypatch, tmp_path, capsys):
    def fail(options):
        raise RuntimeError("no luck")

    monkeypatch.setattr(benchmark, "BENCHMARKS", {"idle": fail, "memo": lambda o: ([], [])})
    kept = tmp_path / "kept.json"
    assert benchmark.main(["--check", "--json", str(kept)]) == 1
    assert "idle failed: no luck" in capsys.readouterr().out
    names = [each["benchmark"] for each in json.loads(kept.read_text())["benchmarks"]]
    assert names == ["idle", "memo"]


def test_what_is_not_measured_is_named(monkeypatch):
    monkeypatch.setattr(measure, "installed", lambda python: ("nginx",))
    monkeypatch.setattr(measure, "measure", lambda server, workload, run: row(workload, server))
    busy = Workload("busy", ("hop",), connections=10**9)
    rows, notes = measure.survey([HELLO, busy], Run(), ())
    assert [each.server for each in rows] == ["bare", "nginx", "hop", "std-nodelay", "hop-hasty"]
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert f"busy: not measured, the descriptor limit is {limit:,}" in notes
    for name in ("bjoern", "fastwsgi", "granian", "uvicorn", "gevent", "gunicorn"):
        assert f"not installed here, so not measured: {name} (`make peers`)" in notes
    still = replace(row("16 pipelined", "hop"), generator="wrk", requests=100)
    monkeypatch.setattr(measure, "measure", lambda server, workload, run: still)
    rows, notes = measure.survey([HELLO], Run(), ("hop", "granian"))
    assert [each.server for each in rows] == ["hop"]
    assert "16 pipelined: hop stood still after 100 answers" in notes


def test_processors_are_kept_apart(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 1})
    assert measure.processors(True) == (1, 3)
    assert measure.processors(False) == (None, None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1})
    assert measure.processors(True) == (None, None)


def call(application, path="/", query="", **more):
    """The body that an application answers with; the status must be good, the length right."""
    said = []
    environ = {"PATH_INFO": path, "QUERY_STRING": query, **more}
    body = b"".join(application(environ, lambda status, headers: said.append((status, headers))))
    (status, headers), = said
    assert status == "200 OK"
    assert int(dict(headers)["Content-Length"]) == len(body)
    return body


def test_workloads_answer():
    for table in WORKLOADS.values():
        for workload in table:
            module, _, name = workload.target.partition(":")
            assert callable(getattr(importlib.import_module(module), name))
    for name in ("hello", "every_200th", "sleep_500us", "sleep_1ms", "one_in_10", "several"):
        assert call(getattr(workloads, name)) == workloads.HELLO
    assert bare.ANSWER.endswith(b"\r\n\r\n" + workloads.HELLO)
    assert call(workloads.several, "/big") == workloads.BIG
    assert len(call(workloads.generated, query="100000")) == 100_000
    pid, number = call(workloads.counting, "/count").split()
    assert int(pid) == os.getpid()
    assert call(workloads.counting) == workloads.HELLO
    assert int(call(workloads.counting, "/count").split()[1]) == int(number) + 2


def test_only_so_many_sleep(monkeypatch):
    naps = []
    monkeypatch.setattr(time, "sleep", naps.append)
    for _ in range(400):
        call(workloads.every_200th)
    assert naps == [0.1, 0.1]


def test_burning_uses_the_processor():
    before = time.thread_time()
    call(workloads.several, "/burn")
    assert time.thread_time() - before >= workloads.BURN


# idle


def test_idle_connections_are_held():
    said = []
    std, hop = idle.idle(("std", "hop"), 40, progress=said.append)
    assert (std.connections, std.wanted) == (40, 40)
    assert 39 <= std.peak_threads <= 40  # that of the probe may still be ending at the start
    assert hop.connections == 40
    assert hop.peak_threads < 40
    assert hop.threads_each == hop.peak_threads / 40
    assert [count for count, _ in hop.growth] == [0, 40]
    assert hop.growth[-1][1] == hop.bytes_each * 40
    assert len(said) == 2


def test_the_count_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("THREAD_BENCH_CONN_COUNT", "7")
    assert idle.possible() == 7
    monkeypatch.delenv("THREAD_BENCH_CONN_COUNT")
    assert idle.possible() > 100
    for bad in ("0", "-3", "many"):
        monkeypatch.setenv("THREAD_BENCH_CONN_COUNT", bad)
        with pytest.raises(ValueError, match=r"."):
            idle.possible()


def test_closed_connections_are_not_counted():
    def closing(environ, start_response):
        start_response("200 OK", [("Content-Length", "2"), ("X", "y")])
        return [b"ok"]

    with inprocess.std_server(closing) as port:
        held = [idle.connect(port, number) for number in range(3)]
        assert idle.still_open(held) == 3
        held[0].sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        with held[0].makefile("rb") as reader:
            reader.read()
        assert idle.still_open(held) == 2
        for sock in held:
            sock.close()


def test_a_server_that_answers_badly_is_not_held():
    with inprocess.std_server(answering("close")) as port, pytest.raises(OSError, match="without"):
        idle.connect(port, 0)


# the memo


def test_the_memo_s_hits_are_counted():
    before = parser._lines, parser._field
    rows = {each.workload: each for each in memo.memo()}
    assert (parser._lines, parser._field) == before
    assert rows["wrk"].hit_rate == 1 - 1 / rows["wrk"].lines
    assert rows["ever-new lines"].hit_rate == 0
    assert 0.7 < rows["every request different"].hit_rate < 0.72
    session = rows["a browser's session, ten pages"]
    assert 0.7 < session.hit_rate < 0.95
    for each in rows.values():
        assert each.kept <= 1024


def test_a_forgetful_parser_reads_the_same(monkeypatch):
    for name in ("_lines", "_names", "_field"):
        monkeypatch.setattr(parser, name, getattr(parser, name))
    heads = [inprocess.BROWSER, drive.same(0), drive.new(1), drive.different(2)]
    remembered = [parser.parse_head(head) for head in heads]
    memo.forget()
    assert [parser.parse_head(head) for head in heads] == remembered
    assert len(parser._lines) == len(parser._names) == 0


def test_a_run_without_an_answer_is_not_the_middle_one():
    rows = [types.SimpleNamespace(cpu=cpu) for cpu in (math.nan, 3.0, 2.0)]
    assert measure.middle(rows).cpu == 3.0
    assert math.isnan(measure.middle(rows[:1]).cpu)


def test_in_haste_an_answer_is_sent_when_it_is_made(monkeypatch):
    from hop.leader import InlineLoop

    ran, sent = [], []
    monkeypatch.setattr(InlineLoop, "answer", InlineLoop.answer)
    monkeypatch.setattr(launch, "hop", ran.append)
    launch.hop_hasty(launch.Options("x:y", 1))
    InlineLoop.answer(None, types.SimpleNamespace(write=sent.append), b"an answer")
    assert ran
    assert sent == [b"an answer"]


def test_without_a_monitor_nobody_looks(monkeypatch):
    from hop import leader

    ran = []
    monkeypatch.setattr(leader.Monitor, "run", leader.Monitor.run)
    monkeypatch.setattr(launch, "hop", ran.append)
    launch.hop_unwatched(launch.Options("x:y", 1))
    monitor = leader.Monitor([])
    monkeypatch.setattr(monitor, "look", None)
    answers = iter([False, True])
    monitor.wake()
    monitor.run(lambda: next(answers), lambda: True)
    assert ran
    assert next(answers, None) is None


# in process


def burn(environ, start_response):
    """`workloads.hello`, and 100 µs of work that nobody asked for."""
    until = time.perf_counter() + 1e-4
    while time.perf_counter() < until:
        pass
    return workloads.hello(environ, start_response)


def test_inprocess_measures_hop_and_std():
    rows = inprocess.inprocess(5)
    assert [(each.workload, each.server) for each in rows] == [
        *[(workload, "hop") for workload in inprocess.HEADS],
        ("over a socket", "hop"), ("over a socket", "std"),
    ]
    for each in rows:
        assert each.microseconds > 0
        assert each.peak_bytes > 0


def test_heads_that_are_never_repeated_are_not():
    lines = [line for head in inprocess.NEVER for line in head[:-4].split(b"\r\n")]
    assert len(set(lines)) == len(lines) > 10_000
    assert all(parser.parse_head(head).end == len(head) for head in inprocess.NEVER[::100])


def test_every_head_is_answered_without_a_kernel():
    for make in inprocess.HEADS.values():
        operation = inprocess.without_kernel(make=make)
        for _ in range(3):
            assert operation().endswith(b"\r\n\r\n" + workloads.HELLO)


def test_an_application_that_fails_is_not_measured(caplog):
    def failing(environ, start_response):
        raise RuntimeError

    with pytest.raises(RuntimeError, match="did not answer"):
        inprocess.without_kernel(failing)


def test_a_slow_application_really_trips_the_target():
    rows = [inprocess.gauge("no kernel, small head", "hop", inprocess.without_kernel(burn), 5, 1)]
    verdicts = judge("inprocess", rows)
    assert verdicts[0].met is False


# the pictures


def test_each_picture_is_drawn_with_a_line_for_every_server(tmp_path, monkeypatch):
    from matplotlib import pyplot

    series = {}
    real = pyplot.close

    def close(figure):
        axes, = figure.axes
        name = axes.get_title()
        series[name] = len(axes.lines) + len(axes.collections)
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        real(figure)

    monkeypatch.setattr(pyplot, "close", close)
    everything = report.strict({"benchmarks": [
        {"benchmark": name, "rows": [dataclasses.asdict(each) for each in rows]}
        for name, rows in (
            *((name, rows_for(name)) for name in ("hello", "mixed", "connections", "share")),
            ("idle", [idle_row(), idle_row("std", 2000, 30_000.0)]),
        )
    ]})
    made = plots.draw(json.loads(json.dumps(everything)), tmp_path / "new")
    assert sorted(path.name for path in made) == sorted(f"{name}.png" for name in plots.PLOTS)
    for path in made:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert list(series.values()) == [
        len(HELLO.servers) + 1,  # and a line for the limit
        len(HELLO.servers), len(WORKLOADS["mixed"][0].servers), 2,
        len(WORKLOADS["connections"][0].servers), len(WORKLOADS["share"][0].servers),
    ]


def test_only_what_was_measured_is_drawn(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.json"
    rows = [dataclasses.asdict(idle_row())]
    results.write_text(json.dumps({"benchmarks": [{"benchmark": "idle", "rows": rows}]}))
    monkeypatch.setattr(sys, "argv", ["plots", str(results), str(tmp_path)])
    plots.main()
    assert capsys.readouterr().out.split() == [str(tmp_path / "memory.png")]


# the command


def test_table_has_a_line_for_every_row():
    text = report.table([row("hello", "hop", 12.345), row("hello", "std", math.nan)])
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[0].split()[:2] == ["workload", "server"]
    assert "12.3" in lines[1]
    assert " - " in lines[2]
    assert "spread" not in text  # no row has any
    assert "spread" in report.table([row("hello", "hop", spread=0.9)])


def test_differences_between_hop_and_std():
    rows = [row("page", "hop", 5.0, rate=4000.0), row("page", "std", 10.0), row("other", "hop")]
    compared = report.differences(rows)
    assert set(compared) == {"page"}
    assert compared["page"]["cpu"] == 0.5
    assert compared["page"]["requests_per_second"] == 4.0


def measured(rows):
    return lambda workloads, run, servers: (rows, [])


def test_command_prints_judges_and_keeps(monkeypatch, tmp_path, capsys):
    kept = tmp_path / "kept.json"
    rows = rows_for("hello")
    monkeypatch.setattr(measure, "survey", measured(rows))
    pictures = tmp_path / "pictures"
    asked = ["hello", "--check", "--json", str(kept), "--plots", str(pictures)]
    assert benchmark.main(asked) == 0
    said = capsys.readouterr().out
    assert "met: hop: hello: cpu <= 1.6 times bare" in said
    assert "examples/drive.py" in said
    assert (pictures / "throughput.png").exists()
    recorded = json.loads(kept.read_text(), parse_constant=pytest.fail)
    assert recorded["machine"]["processors"] >= 1
    (section,) = recorded["benchmarks"]
    assert section["benchmark"] == "hello"
    assert [each["server"] for each in section["rows"]] == list(HELLO.servers)
    assert all(verdict["met"] for verdict in section["verdicts"])
    assert benchmark.main(["memo", "--json", str(kept)]) == 0
    assert benchmark.main(["memo", "--json", str(kept)]) == 0
    names = [each["benchmark"] for each in json.loads(kept.read_text())["benchmarks"]]
    assert names == ["memo", "hello"]


@pytest.mark.parametrize("name", [name for name in JUDGED if name in WORKLOADS])
def test_command_fails_when_a_target_is_missed(name, monkeypatch, capsys):
    monkeypatch.setattr(measure, "survey", measured(rows_for(name, 2.0)))
    assert benchmark.main([name, "--check", "--allow-missing"]) == 1
    assert "MISSED" in capsys.readouterr().out
    assert benchmark.main([name]) == 0


def test_command_fails_when_a_peer_is_missing(monkeypatch, capsys):
    rows = [each for each in rows_for("hello") if each.server in ("hop", "bare")]
    monkeypatch.setattr(measure, "survey", measured(rows))
    assert benchmark.main(["hello", "--check"]) == 1
    assert benchmark.main(["hello", "--check", "--allow-missing"]) == 0


def test_without_a_name_everything_is_run(monkeypatch, capsys):
    asked = []

    def run(name):
        def rows(options):
            asked.append(name)
            if name in SPOKEN:
                return websocket_rows(name), []
            return rows_for(name) if name in JUDGED else [], []

        return rows

    monkeypatch.setattr(
        benchmark, "BENCHMARKS", {name: run(name) for name in benchmark.BENCHMARKS}
    )
    assert benchmark.main(["--check"]) == 0
    assert asked == list(benchmark.BENCHMARKS)
    assert all(f"  {name} " in benchmark.__doc__ for name in asked)


def test_wrk_runs_as_by_hand_unless_told_otherwise():
    by_hand = benchmark.settings("wrk", benchmark.arguments(["wrk"]))
    assert (by_hand.threads, by_hand.seconds, by_hand.warm_up) == (6, 10.0, 3.0)
    arguments = ["hello", "--seconds", "2", "--warm-up", "0", "--rounds", "5"]
    run = benchmark.settings("hello", benchmark.arguments(arguments))
    assert (run.seconds, run.warm_up, run.rounds) == (2.0, 0.0, 5)
    assert (run.connections, run.threads) == (None, 1)


def test_command_measures_for_real(capsys):
    assert benchmark.main(["inprocess", "--operations", "3"]) == 0
    assert "over a socket" in capsys.readouterr().out
    assert benchmark.main(["memo"]) == 0
    assert "a browser's session" in capsys.readouterr().out
    options = ["--seconds", "0.2", "--warm-up", "0", "--generator", "own", "--connections", "2"]
    assert benchmark.main(["hello", *options, "--servers", "hop,bare"]) == 0
    said = capsys.readouterr()
    assert [line.split()[1] for line in said.out.splitlines()[2:4]] == ["bare", "hop"]
    assert " s  hello: hop, round 1 of 1: " in said.err


def test_idle_by_the_command(monkeypatch, capsys):
    asked = []

    def fake(servers, peers_python, progress):
        asked.append(servers)
        return [idle_row()]

    monkeypatch.setattr(idle, "idle", fake)
    monkeypatch.setattr(benchmark, "installed", lambda python: ("bjoern",))
    assert benchmark.main(["idle", "--check"]) == 0
    said = capsys.readouterr().out
    assert "keep-alive time-out raised to 3600 s" in said
    assert "not installed here: granian (`make peers`)" in said
    assert benchmark.main(["idle", "--servers", "hop,bjoern"]) == 0
    assert asked == [["std", "hop", "bjoern"], ["hop", "bjoern"]]


def test_the_parser_s_benchmark_is_asked_where_it_is(monkeypatch, capsys):
    module = types.ModuleType("examples.bench_parser")
    module.run = lambda: rows_for("inprocess")  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec("examples.bench_parser", None)
    monkeypatch.setitem(sys.modules, "examples.bench_parser", module)
    assert benchmark.main(["parser"]) == 0
    assert "small head" in capsys.readouterr().out
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert benchmark.main(["parser"]) == 0
    assert "nothing was measured" in capsys.readouterr().out


def test_unknown_benchmark_is_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["nothing"])
    assert ended.value.code == 2


@pytest.mark.parametrize(("name", "server", "told"), [
    ("ws-echo", "hop-websokcet", "ws-echo does not know hop-websokcet; it knows aiohttp, bare, "),
    ("ws-idle", "granian", "ws-idle does not know granian; it knows "),  # it is an HTTP server
    ("hello", "aiohttp", "hello does not know aiohttp; it knows bare, "),
    ("sse", "granian", "sse does not know granian; it knows bare, hop, std"),
    ("idle", "hop,apache", "idle does not know apache; it knows bare, bjoern, "),
    ("memo", "hop", "memo does not know hop; it knows no servers to choose from"),
    ("all", "apache", "all does not know apache; it knows aiohttp, "),
])  # fmt: skip
def test_servers_that_a_benchmark_does_not_know_are_refused(capsys, name, server, told):
    with pytest.raises(SystemExit) as ended:
        benchmark.main([name, "--servers", server])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_every_server_that_is_measured_may_be_named():
    assert {*idle.FEWER, *benchmark.IDLE} <= benchmark.known_servers("idle")
    for name in benchmark.BENCHMARKS:
        for server in benchmark.known_servers(name):
            for asked in (name, "all"):
                assert benchmark.arguments([asked, "--servers", server]).servers == (server,)


def test_where_none_of_the_servers_named_is_known_nothing_is_run(monkeypatch):
    asked = []
    monkeypatch.setattr(bench_sse, "run", lambda servers: asked.append(servers) or [])
    spoken = {"idle": lambda *names: asked.append(names) or []}
    monkeypatch.setattr(bench_websocket, "BENCHMARKS", spoken)
    for servers in ("granian", "hop,hop-websocket", ""):
        options = benchmark.arguments(["all", *["--servers", servers] * bool(servers)])
        benchmark.run_sse(options)
        benchmark.run_websocket("idle", options)
    assert asked == [(), ([],), ("hop",), (["hop-websocket"],), bench_sse.SERVERS, ()]


def test_load_is_a_plain_record():
    assert [field.name for field in dataclasses.fields(Load)] == [
        "generator", "requests", "errors", "requests_per_second", "transfer", "mean", "p50", "p99",
        "latencies",
    ]
