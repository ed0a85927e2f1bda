"""The WebSocket benchmarks: their load, their yardstick, and that a wrong echo is no success."""

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Iterator

import pytest

from examples import bench_websocket, benchmark, load_ws
from examples.bare_ws import accept, echo
from examples.bench_websocket import SERVERS, Audience, available, hold, installed, measure
from examples.load_ws import Echo, masked, unmasked, upgrade
from examples.targets import TARGETS, judge, passed

pytestmark = pytest.mark.no_poller
SPOKEN = ["ws-echo", "ws-idle", "ws-broadcast"]  # benchmarks that are judged
ACCEPTED = accept(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")


@pytest.mark.parametrize("size", [0, 1, 3, 4, 64, 125])
def test_the_yardstick_echoes_what_the_load_sends(size):
    payload = bytes(range(size))
    assert echo(masked(payload)) == unmasked(payload)
    assert echo(masked(payload) + masked(b"x")) == unmasked(payload) + unmasked(b"x")


def test_the_yardstick_accepts_with_the_key_of_the_rfc():
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in ACCEPTED


@pytest.mark.parametrize("size", [125, 126, 65_535])
def test_frames_of_other_lengths(size):
    from wsproto.frame_protocol import FrameProtocol

    frames = FrameProtocol(client=False, extensions=[])
    frames.receive_bytes(masked(b"x" * size))
    assert next(frames.received_frames()).payload == b"x" * size
    assert bytes(frames.send_data(b"x" * size)) == unmasked(b"x" * size)


@contextlib.contextmanager
def scripted(*clients: list[bytes]) -> Iterator[int]:
    """A server that reads once before each answer of the script, and then closes; the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(sock: socket.socket, answers: list[bytes]) -> None:
            with sock:
                for answer in answers:
                    sock.recv(65536)
                    sock.sendall(answer)

        def run() -> None:
            threads = []
            for answers in clients:
                arguments = (listener.accept()[0], answers)
                threads.append(threading.Thread(target=serve, args=arguments))
                threads[-1].start()
            for thread in threads:
                thread.join(10)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 501 Not Implemented\r\n\r\n", b"HTTP/1.1 101", b""])
def test_a_refused_handshake_is_an_error(answer):
    with scripted([answer]) as port, pytest.raises(ConnectionError):
        upgrade(port, "/")


def test_lost_connections_and_wrong_answers_are_counted():
    right = unmasked(b"abcd")
    with scripted([ACCEPTED, right], [ACCEPTED, b"\x82\x04abcX"]) as port:
        load = Echo(port, "/", 2, 4)
        assert load.frame == masked(b"abcd")
        seen = load.run(0.0)
    assert (seen.messages, seen.errors) == (1, 1)
    assert seen.p50 == seen.p99 > 0


def test_an_echo_in_pieces_is_an_echo():
    wanted = unmasked(b"abcd")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        load = Echo(0, "/", 0, 4)
        load.clients[ours.fileno()] = ours
        load.poller.register(ours, 1)
        theirs.sendall(wanted[:3])
        timer = threading.Timer(0.05, theirs.sendall, [wanted[3:]])
        timer.start()
        seen = load.run(0.0)
        timer.join()
    assert (seen.messages, seen.errors) == (1, 0)


@pytest.mark.parametrize("name", ["bare", "std", "hop-wsproto-low"])
def test_a_row_for_a_server(name):
    row = measure(name, connections=5, seconds=0.2)
    assert row.server == name
    assert row.messages > 10
    assert row.errors == 0
    assert row.cpu >= row.user >= 0
    assert row.threads == 6 if name == "std" else row.threads < 6
    idle = hold(name, 20)
    assert idle.connections == idle.wanted == 20
    assert idle.peak_threads == (20 if name == "std" else 0)


def test_an_audience_hears_what_one_of_it_says(monkeypatch):
    pairs = [socket.socketpair() for _ in range(3)]
    ours = iter(pair[0] for pair in pairs)
    monkeypatch.setattr(bench_websocket, "upgrade", lambda *where: next(ours))
    audience = Audience(0, 3)
    for _, theirs in pairs:
        theirs.sendall(unmasked(b"all"))
    assert audience.hear(b"all") == 0
    assert pairs[0][1].recv(100) == masked(b"all")
    pairs[2][1].close()
    assert audience.hear(b"all") > 0
    audience.close()
    for pair in pairs:
        pair[1].close()


def test_what_is_not_installed_is_left_out(tmp_path):
    missing = tmp_path / "python"
    assert not installed("aiohttp", missing)
    ours = available(SERVERS, missing)
    assert {SERVERS[name][0] for name in ours} == {"bare", "hop", "std"}


def test_messages_in_one_process():
    rows = bench_websocket.inprocess(["bare", "std", "hop-wsproto-low"], operations=3)
    assert [row.server for row in rows] == ["std", "hop-wsproto-low"]
    assert all(row.microseconds > 0 for row in rows)


def rows_for(name, worse=1.0):
    """Rows that just meet every target, or are so many times worse; everybody else shows 100."""
    plain = {
        "ws-echo": bench_websocket.EchoRow(1000, 0, 1.0, 1.0, 1.0, "", "", 100, 100.0, 50.0, 3),
        "ws-idle": bench_websocket.IdleRow("", "", 19_900, 19_900, 0, 0.0, 1.0),
        "ws-broadcast": bench_websocket.BroadcastRow("", "", 5000, 10, 0, 1.0, 1.0),
    }[name]
    rows = {}
    for target in TARGETS:
        if target.benchmark == name:
            for server in filter(None, (target.server, target.against)):
                new = dataclasses.replace(plain, workload=target.workload, server=server)
                rows.setdefault(server, new)
            value = target.bound * (100.0 if target.against else 1.0)
            value = value / worse if target.relation == ">=" else value * worse
            mine = {target.figure: value}
            rows[target.server] = dataclasses.replace(rows[target.server], **mine)
    return list(rows.values())


@pytest.mark.parametrize("name", SPOKEN)
def test_good_figures_meet_every_target_and_a_planted_slowdown_of_two_trips(name):
    good, bad = judge(name, rows_for(name)), judge(name, rows_for(name, worse=2.0))
    assert len(good) == len(bad) > 0
    assert [str(verdict) for verdict in good if not verdict.met] == []
    missed = {verdict.target.server for verdict in bad if not verdict.met}
    assert missed == {verdict.target.server for verdict in bad}
    with_thread = [dataclasses.replace(row, peak_threads=1) for row in rows_for("ws-idle")]
    assert not passed(judge("ws-idle", with_thread))


def test_each_benchmark_can_be_asked_for(monkeypatch):
    asked = []

    def measured(*names, **more):
        asked.append((names, more))
        return []

    for name in bench_websocket.BENCHMARKS:
        monkeypatch.setitem(bench_websocket.BENCHMARKS, name, measured)
    for name in ("ws-echo", "ws-idle", "ws-broadcast", "ws-inprocess"):
        assert benchmark.main([name, "--servers", "bare,picows", "--rounds", "2"]) == 0
    assert benchmark.main(["ws-idle"]) == 0
    named = ["bare", "picows"]
    assert asked == [
        ((named,), {"seconds": 2.0, "rounds": 2}), ((named,), {}), ((named,), {}),
        ((named,), {}), ((), {}),
    ]


def test_rows_can_be_shown():
    from examples.report import table

    row = bench_websocket.EchoRow(1, 0, 1.0, 1.0, 1.0, "echo", "hop", 1, 1.0, 1.0, 1)
    assert "hop" in table([row])
    assert dataclasses.is_dataclass(load_ws.Echoes)
