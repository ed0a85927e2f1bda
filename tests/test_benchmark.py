"""The benchmark harness: its arithmetic on made-up rows, its measuring with tiny real runs."""

import dataclasses
import importlib.machinery
import importlib.util
import json
import math
import os
import shutil
import sys
import time
import types
from pathlib import Path

import pytest

from examples import bare, benchmark, idle, inprocess, load, measure, peers, targets, workloads
from examples.load import Load, read_wrk
from examples.measure import Row, Run
from examples.targets import TARGETS, Target, judge, passed

TINY = Run(seconds=0.5, warm_up=0.0, rounds=1, connections=2, generator="own")


def row(workload, server, cpu=10.0, errors=0, rate=1000.0):
    return Row(
        generator="own", requests=100, errors=errors, requests_per_second=rate, transfer=1e6,
        mean=1.0, p50=1.0, p99=2.0, workload=workload, server=server, cpu=cpu, user=cpu / 2,
    )


# the judge

GOOD = {"bare": 7.3, "hop": 12.5, "granian": 17.5, "uvicorn": 28.0}


def hello_rows(slower=1.0):
    return [
        row("hello", server, cpu * (slower if server == "hop" else 1))
        for server, cpu in GOOD.items()
    ]


def mixed_rows(slower=1.0):
    rates = {"every 200th request sleeps 100 ms": 4.0, "every request sleeps 1 ms": 1.8,
             "every request sleeps 5 ms": 1.8}
    return [
        row(workload, server, rate=rate)
        for workload, ratio in rates.items()
        for server, rate in (("hop", 1000 * ratio / slower), ("waitress", 1000.0))
    ]


def idle_rows(threads=0, each=400.0):
    return [idle.IdleRow("idle", "hop", 19_900, 19_900, threads, threads / 19_900, each)]


def operation_rows(slower=1.0):
    return [inprocess.OperationRow("no kernel, small head", "hop", 10, 5.0 * slower, 3000, 0.0)]


MEASURED = {
    "hello": hello_rows, "mixed": mixed_rows, "inprocess": operation_rows,
    "idle": lambda slower=1.0: idle_rows(each=400 * slower),
}


@pytest.mark.parametrize("name", MEASURED)
def test_good_figures_meet_every_target(name):
    verdicts = judge(name, MEASURED[name]())
    assert verdicts
    assert all(verdict.met for verdict in verdicts)
    assert passed(verdicts)


@pytest.mark.parametrize("name", MEASURED)
def test_a_planted_slowdown_of_two_trips(name):
    verdicts = judge(name, MEASURED[name](slower=2.0))
    assert not passed(verdicts, allow_missing=True)
    assert any(str(verdict).startswith("MISSED: hop: ") for verdict in verdicts)


def test_a_further_thread_trips():
    assert not passed(judge("idle", idle_rows(threads=1)))


def test_every_target_belongs_to_a_benchmark_and_to_something_it_measures():
    for target in TARGETS:
        assert target.benchmark in benchmark.BENCHMARKS
        verdict = targets.judge_one(target, MEASURED[target.benchmark]())
        assert verdict.met is True


def test_a_missing_peer_is_named_and_fails_unless_allowed():
    rows = [each for each in hello_rows() if each.server != "granian"]
    verdicts = judge("hello", rows)
    unjudged = [verdict for verdict in verdicts if verdict.met is None]
    assert [str(verdict) for verdict in unjudged] == [
        "NOT JUDGED: hop: hello: cpu < 1 times granian: granian was not measured"
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
TAIL = "Requests/sec:  94693.80\nTransfer/sec:      8.76MB\n"


def test_wrk_s_report_is_read():
    result = read_wrk(REPORT + TAIL)
    assert dataclasses.asdict(result) == {
        "generator": "wrk", "requests": 284117, "errors": 0, "requests_per_second": 94693.8,
        "transfer": pytest.approx(8.76 * 1024**2), "mean": 1.05, "p50": pytest.approx(0.812),
        "p99": 2200.0,
    }


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
    assert load.percentile(ordered, 0.5) == 50.0
    assert load.percentile(ordered, 0.99) == 99.0
    assert load.percentile([7.0], 0.01) == 7.0
    assert math.isnan(load.percentile([], 0.5))


# the loads


def test_varied_requests_differ():
    heads = [load.different(number) for number in range(8)]
    assert len(set(heads)) == 8
    assert len({head.split(b"\r\n")[2] for head in heads}) == len(load.FIELDS)
    for head in heads:
        assert head.endswith(b"\r\n\r\n")


def test_wrk_is_used_where_it_is(monkeypatch):
    asked = []
    monkeypatch.setattr(load, "wrk", lambda *arguments: asked.append("wrk"))
    monkeypatch.setattr(load, "own", lambda *arguments: asked.append("own"))
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/wrk")
    load.generate(1, 1, 1)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    load.generate(1, 1, 1)
    load.generate(1, 1, 1, generator="wrk")
    assert asked == ["wrk", "own", "wrk"]


def test_wrk_is_called_with_what_was_asked(tmp_path, monkeypatch):
    seen = tmp_path / "seen"
    script = tmp_path / "wrk"
    script.write_text(f"#!/bin/sh\necho \"$@\" > {seen}\ncat <<'END'\n{REPORT}{TAIL}END\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert load.generate(1826, 4, 1.5, threads=6, varied=True).requests == 284117
    assert seen.read_text().split() == [
        "-t4", "-c4", "-d2s", "--latency", "-s", str(Path(load.__file__).parent / "vary.lua"),
        "http://127.0.0.1:1826/",
    ]


def answering(*answers):
    """An application that gives these statuses in turn, then the last one for ever."""
    left = list(answers)

    def application(environ, start_response):
        status = left.pop(0) if len(left) > 1 else left[0]
        headers = [] if status == "close" else [("Content-Length", "2")]
        start_response("200 OK" if status == "close" else status, headers)
        return iter([b"ok"])

    return application


def test_drive_counts_what_comes_back():
    with inprocess.std_server(answering("200 OK")) as port:
        result = load.drive(port, 3, 0.5)
    assert result.requests > 0
    assert result.errors == 0
    assert 0 < result.p50 <= result.p99
    assert result.mean > 0
    assert result.transfer > 0


def test_drive_counts_failures():
    with inprocess.std_server(answering("500 Internal Server Error")) as port:
        result = load.drive(port, 1, 0.5, load.different)
    assert result.errors == result.requests > 0


def test_drive_counts_answers_it_cannot_read_and_connects_again():
    with inprocess.std_server(answering("close", "200 OK")) as port:
        result = load.drive(port, 1, 0.5)
    assert result.errors == 1
    assert result.requests > 0


def test_generators_are_pinned_and_the_caller_is_not():
    before = os.sched_getaffinity(0)
    one = min(before)
    with load.pinned(one):
        assert os.sched_getaffinity(0) == {one}
    assert os.sched_getaffinity(0) == before
    with load.pinned(None):
        assert os.sched_getaffinity(0) == before


# the servers


@pytest.mark.parametrize("kind", ["bare", "std", "hop"])
def test_serving_starts_watches_and_stops(kind):
    with peers.serving(kind, cpu=min(os.sched_getaffinity(0))) as served:
        result = load.own(served.port, 2, 0.5, None, varied=kind != "bare")
        assert result.requests > 0
        assert result.errors == 0
        assert served.cpu().total > 0
        assert served.threads() >= 1
        assert served.resident() > 1 << 20
    assert served.members() == []


def test_a_server_that_does_not_start_says_why():
    with (
        pytest.raises(RuntimeError, match="no_such_name"),
        peers.serving("std", "examples.workloads:no_such_name"),
    ):
        pass


def test_peers_are_found_by_importing(tmp_path):
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} \"$@\"\n")
    fake.chmod(0o755)
    (tmp_path / "bjoern.py").write_text("")
    (tmp_path / "fastwsgi.py").write_text("raise ImportError")
    found = peers.installed(fake)
    assert "bjoern" in found
    assert "fastwsgi" not in found
    assert peers.installed(tmp_path / "none") == ()


# the benchmarks


def test_measure_a_real_server():
    result = measure.measure("hop", "hello", measure.HELLO, TINY)
    assert (result.workload, result.server, result.errors) == ("hello", "hop", 0)
    assert result.requests > 0
    assert result.cpu >= result.user >= 0


def test_compare_takes_turns_and_the_median(monkeypatch):
    costs = {"a": iter([3.0, 1.0, 2.0]), "b": iter([9.0, 9.0, 7.0])}
    asked = []

    def fake(server, workload, target, run, *, varied=False):
        asked.append(server)
        return row(workload, server, next(costs[server]))

    monkeypatch.setattr(measure, "measure", fake)
    rows = measure.compare(["a", "b"], "hello", "x:y", Run(rounds=3))
    assert asked == ["a", "b"] * 3
    assert [(each.server, each.cpu) for each in rows] == [("a", 2.0), ("b", 9.0)]


@pytest.mark.parametrize("name", ["hello", "mixed", "wrk"])
def test_benchmarks_measure_what_the_targets_ask_for(name, monkeypatch, tmp_path):
    monkeypatch.setattr(
        measure, "measure",
        lambda server, workload, *_, nodelay=False, **__: row(workload, server + "!" * nodelay),
    )
    monkeypatch.setattr(measure, "installed", lambda python: peers.PEERS)
    rows = getattr(measure, name)(Run())
    found = {(each.workload, each.server) for each in rows}
    for target in TARGETS:
        if target.benchmark == name:
            assert (target.workload, target.server) in found
            assert (target.workload, target.against) in found
    if name == "wrk":
        assert {server for _, server in found} == {"std", "std!", "hop", *peers.PEERS}


def test_only_what_is_installed_is_measured():
    run = Run(peers_python=Path("/nowhere/python"))
    assert measure.available(["bare", "granian", "hop"], run) == ["bare", "hop"]


def test_processors_are_kept_apart(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 1})
    assert Run().processors() == (1, 3)
    assert Run(pin=False).processors() == (None, None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1})
    assert Run().processors() == (None, None)


def test_workloads_answer_hello():
    def start_response(status, headers, exc_info=None):
        assert (status, dict(headers)["Content-Length"]) == ("200 OK", str(len(workloads.HELLO)))
        return lambda data: None

    for name in (*measure.MIXED.values(), measure.HELLO):
        application = getattr(workloads, name.partition(":")[2])
        assert list(application({}, start_response)) == [workloads.HELLO]
    assert bare.ANSWER.endswith(b"\r\n\r\n" + workloads.HELLO)


# idle


def test_idle_connections_are_held(monkeypatch):
    std, hop = idle.idle(("std", "hop"), 40)
    assert (std.connections, std.wanted) == (40, 40)
    assert 39 <= std.peak_threads <= 40  # that of the probe may still be ending at the start
    assert hop.connections == 40
    assert hop.peak_threads < 40
    assert hop.threads_each == hop.peak_threads / 40


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
    assert [verdict.met for verdict in verdicts] == [False]


# the command


def test_table_has_a_line_for_every_row():
    text = benchmark.table([row("hello", "hop", 12.345), row("hello", "std", math.nan)])
    lines = text.splitlines()
    assert len(lines) == 3
    assert lines[0].split()[:2] == ["workload", "server"]
    assert "12.3" in lines[1]
    assert lines[2].split()[-1] == "-"
    assert "977" in lines[1]  # 1e6 bytes a second in KiB


def test_differences_between_hop_and_std():
    rows = [row("page", "hop", 5.0, rate=4000.0), row("page", "std", 10.0), row("other", "hop")]
    compared = benchmark.differences(rows)
    assert set(compared) == {"page"}
    assert compared["page"]["cpu"] == 0.5
    assert compared["page"]["requests_per_second"] == 4.0


def test_command_prints_judges_and_keeps(monkeypatch, tmp_path, capsys):
    kept = tmp_path / "kept.json"
    monkeypatch.setattr(measure, "hello", lambda run, servers: hello_rows())
    assert benchmark.main(["hello", "--check", "--json", str(kept)]) == 0
    said = capsys.readouterr().out
    assert "met: hop: hello: cpu <= 1.8 times bare (1.71)" in said
    assert "wrk was not used" in said
    report = json.loads(kept.read_text())
    assert report["machine"]["processors"] >= 1
    (section,) = report["benchmarks"]
    assert section["benchmark"] == "hello"
    assert [each["server"] for each in section["rows"]] == list(GOOD)
    assert all(verdict["met"] for verdict in section["verdicts"])


def test_command_fails_when_a_target_is_missed(monkeypatch, capsys):
    monkeypatch.setattr(measure, "hello", lambda run, servers: hello_rows(2.0))
    assert benchmark.main(["hello", "--check", "--allow-missing"]) == 1
    assert benchmark.main(["hello"]) == 0


def test_command_fails_when_a_peer_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(measure, "hello", lambda run, servers: hello_rows()[:2])
    monkeypatch.setattr(benchmark, "installed", lambda python: ())
    assert benchmark.main(["hello", "--check"]) == 1
    assert benchmark.main(["hello", "--check", "--allow-missing"]) == 0
    assert "make peers" in capsys.readouterr().out


def test_without_a_name_everything_is_run(monkeypatch, capsys):
    asked = []

    def run(name):
        def rows(options):
            asked.append(name)
            return MEASURED.get(name, hello_rows)()

        return rows

    monkeypatch.setattr(
        benchmark, "BENCHMARKS", {name: run(name) for name in benchmark.BENCHMARKS}
    )
    assert benchmark.main(["--check"]) == 0
    assert asked == list(benchmark.BENCHMARKS)
    assert "keep-alive time-out raised" in capsys.readouterr().out


def test_wrk_runs_as_by_hand_unless_told_otherwise():
    by_hand = benchmark.settings("wrk", benchmark.arguments(["wrk"]))
    assert (by_hand.threads, by_hand.connections, by_hand.seconds) == (6, 300, 30.0)
    assert (by_hand.warm_up, by_hand.rounds, by_hand.pin) == (5.0, 1, False)
    arguments = ["hello", "--seconds", "2", "--warm-up", "0", "--rounds", "5"]
    run = benchmark.settings("hello", benchmark.arguments(arguments))
    assert (run.seconds, run.warm_up, run.rounds, run.pin) == (2.0, 0.0, 5, True)
    assert (run.connections, run.threads) == (100, 1)


def test_command_measures_for_real(capsys):
    assert benchmark.main(["inprocess", "--operations", "3"]) == 0
    assert "over a socket" in capsys.readouterr().out


def test_idle_by_the_command(monkeypatch, capsys):
    asked = []

    def fake(servers, peers_python):
        asked.append(servers)
        return idle_rows()

    monkeypatch.setattr(idle, "idle", fake)
    assert benchmark.main(["idle", "--check"]) == 0
    assert benchmark.main(["idle", "--servers", "hop,bjoern"]) == 0
    assert asked == [("std", "hop"), ("hop", "bjoern")]


def test_the_parser_s_benchmark_is_asked_where_it_is(monkeypatch, capsys):
    module = types.ModuleType("examples.bench_parser")
    module.run = operation_rows  # type: ignore[attr-defined]
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


def test_load_is_a_plain_record():
    assert [field.name for field in dataclasses.fields(Load)] == [
        "generator", "requests", "errors", "requests_per_second", "transfer", "mean", "p50", "p99"
    ]
