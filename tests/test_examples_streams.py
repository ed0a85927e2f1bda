"""The example's streams, `/sse`, `/sse-generator` and `/file`, over sockets in both modes."""

import contextlib
import http.client
import socket
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from examples import app, bench_sse, sse
from hop.streams import EventStream
from tests.servers import SERVERS

SOURCE = Path(app.__file__).read_bytes()


@pytest.fixture(params=SERVERS)
def port(request):
    with SERVERS[request.param](app.application) as port:
        yield port


@contextlib.contextmanager
def listening(port, path, **fields):
    """A client of an event stream: the head, and a function that reads on until it has seen so
    many events, without the comments between them."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        lines = [f"GET {path} HTTP/1.1", "Host: h", *(f"{k}: {v}" for k, v in fields.items())]
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        response = http.client.HTTPResponse(sock)
        response.begin()
        seen = bytearray()

        def until(count):
            while len(events := [text for text in seen.decode().split("\n\n")[:-1]
                                 if not text.startswith(":")]) < count:
                data = response.read1(65536)
                assert data, "the stream has ended"
                seen.extend(data)
            return events[:count]

        yield response, until
        response.close()


def ask(port, path, method="GET", **fields):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        names = {name.replace("_", "-"): value for name, value in fields.items()}
        connection.request(method, path, headers=names)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def seconds(events):
    """The ids of the events that have a time, checked against what they say."""
    found = []
    for text in events:
        if text.startswith(":"):
            continue
        fields = dict(line.split(": ", 1) for line in text.splitlines())
        if "event" not in fields and "data" in fields:
            second = int(fields["id"])
            assert fields["data"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))
            found.append(second)
    return found


# the clock


def test_the_time_comes_every_second(port):
    before = int(time.time())
    with listening(port, "/sse") as (response, until):
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        events = until(4)
        after = int(time.time()) + 1
        assert events[0] == "retry: 1000"
        told = seconds(events)
        assert len(told) == 3
        assert told == sorted(set(told))
        assert before <= told[0] <= told[-1] <= after


def test_the_generator_says_the_same(port):
    with listening(port, "/sse-generator") as (response, until):
        assert response.headers["Content-Type"] == "text/event-stream"
        assert len(seconds(until(2))) == 2


def test_who_comes_back_is_told_how_much_was_missed(port):
    last = int(time.time()) - 10
    with listening(port, "/sse", **{"Last-Event-ID": str(last)}) as (_, until):
        _, missed, now = until(3)
        assert missed.startswith("event: missed\ndata: ")
        (second,) = seconds([now])
        assert int(missed.rpartition(" ")[2]) in (second - last - 1, second - last - 2)


@pytest.mark.parametrize("last", ["", "x", "-5", "\xb2", "9" * 40, "9" * 11])
def test_what_was_seen_last_is_not_believed_blindly(last):
    assert sse.missed(last) == 0


class Channel:
    """A channel on paper."""

    on_close = write_timeout = None

    def __init__(self):
        self.said, self.timers = b"", []

    def write(self, data):
        self.said += data

    def call_later(self, delay, fn):
        self.timers.append((round(delay, 6), fn))

    def told(self):
        said, self.said = self.said, b""
        return seconds(said.decode().split("\n\n"))


def test_one_timer_tells_everybody_and_passes_on(monkeypatch):
    now = [1000.25]
    monkeypatch.setattr(time, "time", lambda: now[0])
    clock, channels = sse.Clock(), [Channel() for _ in range(3)]
    streams = [EventStream(channel, heartbeat=None) for channel in channels]
    for stream in streams:
        clock.opened(stream)
    first = channels[0]
    assert [channel.told() for channel in channels] == [[1000]] * 3
    assert [len(channel.timers) for channel in channels] == [1, 0, 0]
    now[0] = 1000.9996  # the timer goes off early
    first.timers[0][1]()
    now[0] = 1007.2  # and then much too late
    first.timers[1][1]()
    assert [channel.told() for channel in channels] == [[1001, 1007]] * 3
    assert [delay for delay, _ in first.timers] == [0.75, 1.0004, 0.8]
    first.on_close(first)
    (driver,) = [channel for channel in channels[1:] if channel.timers]
    assert driver.timers[0][0] == 0.8
    (other,) = {*channels[1:]} - {driver}
    other.on_close(other)
    now[0] = 1008.0
    driver.timers[0][1]()
    assert [channel.told() for channel in (first, driver, other)] == [[], [1008], []]
    driver.on_close(driver)
    assert (clock.streams, clock.driver) == (set(), None)
    driver.timers[-1][1]()  # a timer that was on its way
    again = Channel()
    clock.opened(EventStream(again, heartbeat=None))
    assert len(again.timers) == 1


@pytest.mark.parametrize("path", ["/sse", "/sse-generator"])
def test_head_has_the_type_and_no_stream(port, path):
    status, headers, body = ask(port, path, "HEAD")
    assert (status, headers["Content-Type"], body) == (200, "text/event-stream", b"")


def test_a_hundred_clocks_need_no_thread_on_hop_and_a_hundred_elsewhere():
    """Threads of one part have ended before the next one counts."""
    at_rest = threading.active_count()

    def further(server, path, count):
        deadline = time.monotonic() + 30
        while threading.active_count() > at_rest:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with SERVERS[server](app.application) as port, contextlib.ExitStack() as stack:
            stack.enter_context(listening(port, "/sse"))[1](2)
            before = threading.active_count()
            clients = [stack.enter_context(listening(port, path)) for _ in range(count)]
            for _, until in clients:
                until(2)
            return threading.active_count() - before

    assert further("hop", "/sse", 100) <= 3  # followers, not one for each
    assert further("std", "/sse", 100) == 100
    assert further("hop", "/sse-generator", 20) >= 19


def test_a_stop_ends_the_stream_on_hop():
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.ExitStack())
        port = server.enter_context(SERVERS["hop"](app.application))
        response, until = stack.enter_context(listening(port, "/sse"))
        until(2)
        server.close()
        while response.read1(65536):
            pass


def test_curl_hears_the_clock(port):
    command = ["curl", "-sN", "--max-time", "2.5", f"http://127.0.0.1:{port}/sse"]
    done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    assert done.returncode == 28  # its time was up; the stream was not
    assert len(seconds(done.stdout.decode().split("\n\n")[:-1])) >= 2


# the file


def test_a_part_of_the_file(port):
    status, headers, body = ask(port, "/file", Range="bytes=10-19")
    assert (status, body) == (206, SOURCE[10:20])
    assert headers["Content-Range"] == f"bytes 10-19/{len(SOURCE)}"


def test_the_file_and_its_conditions(port):
    status, headers, body = ask(port, "/file")
    etag, modified = headers["ETag"], headers["Last-Modified"]
    assert (status, body, headers["Accept-Ranges"]) == (200, SOURCE, "bytes")
    again = partial(ask, port, "/file")
    assert again(If_None_Match=etag)[0] == 304
    assert again(If_None_Match='"x"', If_Modified_Since=modified)[0] == 200
    assert again(If_Modified_Since=modified)[0] == 304
    assert again(If_Match='"x"')[0] == 412
    assert again(If_Range=etag, Range="bytes=-9")[::2] == (206, SOURCE[-9:])
    assert again(If_Range='"x"', Range="bytes=-9")[::2] == (200, SOURCE)
    status, headers, body = again(Range=f"bytes={len(SOURCE)}-")
    assert (status, headers["Content-Range"], body) == (416, f"bytes */{len(SOURCE)}", b"")


def test_curl_resumes_the_file(port, tmp_path):
    broken = tmp_path / "app.py"
    broken.write_bytes(SOURCE[:100])
    url = f"http://127.0.0.1:{port}/file"
    subprocess.run(["curl", "-sS", "-C", "-", "-o", broken, url], check=True, timeout=20)
    assert broken.read_bytes() == SOURCE


# the benchmark


def test_the_benchmark_counts_what_it_says():
    bare, std, hop, timers = bench_sse.run(12)
    for row in (bare, std, hop):
        assert (row.workload, row.events) == ("an event to every stream", bench_sse.EVENTS)
    assert (bare.server, std.server, hop.server) == ("bare", "std", "hop")
    assert std.latency > 0
    assert hop.latency > 0
    assert (timers.workload, timers.server) == ("a timer for each stream", "hop")
    assert bench_sse.TICKING - 1 <= timers.events <= bench_sse.TICKING + 1
    for row in (bare, std, hop, timers):
        assert row.streams == 12
        assert row.cpu >= 0
    assert max(hop.threads, timers.threads) <= 2  # followers, not one for each
    assert std.threads >= 10  # one that is ending may have been counted before
