"""Files by parts and events as they happen: each rule alone, then over sockets on both servers."""

import contextlib
import errno
import http.client
import io
import itertools
import os
import re
import socket
import subprocess
import tempfile
import threading
import time
from email.utils import formatdate
from functools import partial
from pathlib import Path

import flask
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hop import streams
from hop.adaptor import FileWrapper
from hop.streams import Section, Version, byte_range, choose, http_date, send_file
from tests.servers import SERVERS, validated

NOON = 784_900_800  # Tue, 15 Nov 1994 12:00:00 GMT
DATE = formatdate(NOON, usegmt=True)
BEFORE, AFTER = formatdate(NOON - 1, usegmt=True), formatdate(NOON + 1, usegmt=True)
CONTENT = os.urandom(100_000)
SIZE = len(CONTENT)
OTHER = '"another"'


@pytest.fixture
def film(tmp_path):
    """A file that has been at rest since 1994."""
    path = tmp_path / "film.bin"
    path.write_bytes(CONTENT)
    os.utime(path, (NOON, NOON))
    return path


ETAG = f'"{NOON * 10**9:x}-{SIZE:x}"'
VERSION = Version(ETAG, NOON, True)

# which bytes

PARTS = {
    "bytes=0-0": range(1),
    "bytes=0-499": range(500),
    "bytes=500-999": range(500, 1000),
    "bytes=500-": range(500, 1000),
    "bytes=999-": range(999, 1000),
    "bytes=0-999999": range(1000),
    "bytes=-1": range(999, 1000),
    "bytes=-1000": range(1000),
    "bytes=-2000": range(1000),
    "BYTES=1-2": range(1, 3),
    "bytes= 1-2\t": range(1, 3),
    "bytes=,1-2,": range(1, 3),
    "bytes=000001-2": range(1, 3),
}
NO_PARTS = ["bytes=1000-", "bytes=1000-1000", "bytes=5000-6000", "bytes=-0"]
IGNORED = [
    "", "bytes", "bytes=", "bytes=-", "bytes=1", "bytes=2-1", "bytes=0-1,2-3", "bytes=0-1, -5",
    "bytes=a-b", "bytes=+1-2", "bytes=1_0-20", "bytes=-1-2", "bytes=\u0661-\u0662", "lines=0-1",
    "bytes:0-1", "bytes=0x1-2", "bytes=1-2;x", "bytes=" + "9" * 5000 + "-", "bytes=0--1",
    "bytes 0-1", "xbytes=0-1",
]


@pytest.mark.parametrize(("value", "part"), PARTS.items())
def test_a_range_that_has_bytes(value, part):
    assert byte_range(value, 1000) == part


@pytest.mark.parametrize("value", NO_PARTS)
def test_a_range_behind_the_end_is_empty(value):
    part = byte_range(value, 1000)
    assert part is not None
    assert len(part) == 0


@pytest.mark.parametrize("value", IGNORED)
def test_what_is_no_single_range_is_ignored(value):
    assert byte_range(value, 1000) is None


def test_ranges_of_nothing():
    assert byte_range("bytes=-5", 0) is None
    assert byte_range("bytes=0-", 0) == range(0)
    assert byte_range("bytes=0-5", 0) == range(0)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_range_is_what_slicing_says(first, last, size):
    data = bytes(range(size))
    part = byte_range(f"bytes={first}-{last}", size)
    if first > last:
        assert part is None
    else:
        assert data[part.start : max(part.start, part.stop)] == data[first : last + 1]
        assert len(part) == len(data[first : last + 1])
    suffix = byte_range(f"bytes=-{last}", size)
    if size:
        assert data[suffix.start : suffix.stop] == (data[-last:] if last else b"")


@given(st.text(alphabet="bytes=-,0123456789 \t", max_size=20), st.integers(0, 50))
def test_no_range_field_breaks_anything(value, size):
    part = byte_range(value, size)
    assert part is None or len(part) == 0 or 0 <= part.start < part.stop <= size


# dates

@pytest.mark.parametrize(
    "value",
    ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"],
)
def test_three_forms_of_one_date(value):
    assert http_date(value) == 784111777


@pytest.mark.parametrize(
    "value",
    [
        "", "yesterday", "784111777", "Sun, 06 Nov 1994 08:49:37", "Sun, 06 Nov 1994 08:49:37 UTC",
        "Sun, 06 Nov 1994 08:49:37 +0000", "Sun, 6 Nov 1994 08:49:37 GMT",
        "Sun, 31 Feb 2021 08:49:37 GMT", "Sun, 06 Nov 1994 25:49:37 GMT",
        "Sun, 06 Xyz 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 GMT, " * 2,
        "Sun, 00 Jan 0000 00:00:00 GMT", "1994-11-06T08:49:37Z",
        "Sun, \u0660\u0666 Nov 1994 08:49:37 GMT",
    ],
)
def test_what_is_no_date(value):
    assert http_date(value) is None


@given(st.integers(0, 4_102_444_800))
def test_a_date_that_we_write_is_read_again(seconds):
    assert http_date(formatdate(seconds, usegmt=True)) == seconds


@given(st.text(max_size=40))
def test_no_date_breaks_anything(value):
    http_date(value)


# versions


def status_of(mtime_ns, size=1000):
    return os.stat_result(
        (0o100644, 1, 1, 1, 0, 0, size, 0, mtime_ns // 10**9, 0),
        {"st_mtime": mtime_ns / 1e9, "st_mtime_ns": mtime_ns},
    )


def test_the_tag_changes_with_time_and_size():
    base = Version.of(status_of(NOON * 10**9), NOON + 9)
    later = Version.of(status_of(NOON * 10**9 + 1), NOON + 9)
    longer = Version.of(status_of(NOON * 10**9, 1001), NOON + 9)
    assert len({base.etag, later.etag, longer.etag}) == 3
    assert base.modified == later.modified == NOON
    assert base.etag[0] == base.etag[-1] == '"'


def test_a_file_from_the_future_was_changed_now():
    version = Version.of(status_of((NOON + 100) * 10**9), NOON + 0.5)
    assert (version.modified, version.settled) == (NOON, False)


@pytest.mark.parametrize(("age", "settled"), [(0.0, False), (0.99, False), (1.0, True), (9, True)])
def test_a_second_must_be_over(age, settled):
    assert Version.of(status_of(NOON * 10**9), NOON + age).settled is settled


# the table of RFC 9110, section 13.2.2

W = f"W/{ETAG}"
CASES = [
    # fields of the request, status of GET
    ({}, 200),
    ({"If-Match": "*"}, 200),
    ({"If-Match": ETAG}, 200),
    ({"If-Match": f"{OTHER}, {ETAG}"}, 200),
    ({"If-Match": f'"a,b",{ETAG}'}, 200),
    ({"If-Match": OTHER}, 412),
    ({"If-Match": W}, 412),
    ({"If-Match": '"*"'}, 412),
    ({"If-Match": ETAG.strip('"')}, 412),
    ({"If-Match": ""}, 412),
    ({"If-Unmodified-Since": DATE}, 200),
    ({"If-Unmodified-Since": AFTER}, 200),
    ({"If-Unmodified-Since": BEFORE}, 412),
    ({"If-Unmodified-Since": "yesterday"}, 200),
    ({"If-Match": ETAG, "If-Unmodified-Since": BEFORE}, 200),
    ({"If-Match": OTHER, "If-Unmodified-Since": AFTER}, 412),
    ({"If-None-Match": "*"}, 304),
    ({"If-None-Match": ETAG}, 304),
    ({"If-None-Match": W}, 304),
    ({"If-None-Match": f"{OTHER}, {W}"}, 304),
    ({"If-None-Match": f"{OTHER},{ETAG}"}, 304),
    ({"If-None-Match": OTHER}, 200),
    ({"If-None-Match": '"*"'}, 200),
    ({"If-None-Match": ETAG.strip('"')}, 200),
    ({"If-None-Match": ""}, 200),
    ({"If-Modified-Since": DATE}, 304),
    ({"If-Modified-Since": AFTER}, 304),
    ({"If-Modified-Since": BEFORE}, 200),
    ({"If-Modified-Since": "tomorrow"}, 200),
    ({"If-Modified-Since": f"{DATE}, {DATE}"}, 200),
    ({"If-None-Match": OTHER, "If-Modified-Since": AFTER}, 200),
    ({"If-None-Match": ETAG, "If-Modified-Since": BEFORE}, 304),
    ({"If-Match": ETAG, "If-None-Match": ETAG}, 304),
    ({"If-Match": OTHER, "If-None-Match": ETAG}, 412),
    ({"If-Match": ETAG, "If-None-Match": OTHER}, 200),
    ({"If-Unmodified-Since": BEFORE, "If-Modified-Since": AFTER}, 412),
    ({"If-Unmodified-Since": AFTER, "If-Modified-Since": AFTER}, 304),
    ({"Range": "bytes=5-9"}, 206),
    ({"Range": "bytes=-5"}, 206),
    ({"Range": "bytes=99999-"}, 206),
    ({"Range": "bytes=100000-"}, 416),
    ({"Range": "bytes=-0"}, 416),
    ({"Range": "bytes=5-2"}, 200),
    ({"Range": "bytes=0-1,5-6"}, 200),
    ({"Range": "lines=1-2"}, 200),
    ({"Range": "bytes=5-9", "If-Range": ETAG}, 206),
    ({"Range": "bytes=5-9", "If-Range": OTHER}, 200),
    ({"Range": "bytes=5-9", "If-Range": W}, 200),
    ({"Range": "bytes=5-9", "If-Range": DATE}, 206),
    ({"Range": "bytes=5-9", "If-Range": AFTER}, 200),
    ({"Range": "bytes=5-9", "If-Range": BEFORE}, 200),
    ({"Range": "bytes=5-9", "If-Range": "*"}, 200),
    ({"Range": "bytes=100000-", "If-Range": OTHER}, 200),
    ({"Range": "bytes=100000-", "If-Range": ETAG}, 416),
    ({"If-Range": ETAG}, 200),
    ({"Range": "bytes=5-9", "If-None-Match": ETAG}, 304),
    ({"Range": "bytes=5-9", "If-None-Match": OTHER}, 206),
    ({"Range": "bytes=100000-", "If-None-Match": ETAG}, 304),
    ({"Range": "bytes=5-9", "If-Match": ETAG}, 206),
    ({"Range": "bytes=5-9", "If-Match": OTHER}, 412),
    ({"Range": "bytes=5-9", "If-Unmodified-Since": BEFORE}, 412),
    ({"Range": "bytes=5-9", "If-Match": ETAG, "If-Range": OTHER}, 200),
]
NAMES = ["; ".join(f"{name}: {value}" for name, value in fields.items()) for fields, _ in CASES]


def environ_of(fields, method="GET"):
    environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in fields.items()}
    return {"REQUEST_METHOD": method, **environ}


@pytest.mark.parametrize(("fields", "status"), CASES, ids=NAMES)
def test_the_table(fields, status):
    assert choose(environ_of(fields), VERSION, SIZE)[0].startswith(str(status))


@pytest.mark.parametrize(("fields", "status"), CASES, ids=NAMES)
def test_head_knows_no_range(fields, status):
    expected = 200 if status in (206, 416) else status
    chosen, part = choose(environ_of(fields, "HEAD"), VERSION, SIZE)
    assert chosen.startswith(str(expected))
    assert part == range(SIZE)


@pytest.mark.parametrize(("fields", "status"), CASES, ids=NAMES)
def test_other_methods_get_the_whole(fields, status):
    assert choose(environ_of(fields, "POST"), VERSION, SIZE) == (streams.OK, range(SIZE))


def test_a_date_that_may_still_come_to_mean_something_else_joins_no_parts():
    fields = environ_of({"Range": "bytes=5-9", "If-Range": DATE})
    assert choose(fields, Version(ETAG, NOON, False), SIZE)[0] == streams.OK
    by_tag = environ_of({"Range": "bytes=5-9", "If-Range": ETAG})
    assert choose(by_tag, Version(ETAG, NOON, False), SIZE)[0] == streams.PARTIAL


def test_django_comes_to_the_same_preconditions():
    """Every combination of the four fields, with Django's handling as the oracle."""
    from django.conf import settings
    from django.http import HttpResponse
    from django.test import RequestFactory
    from django.utils.cache import get_conditional_response

    if not settings.configured:
        settings.configure()
    tags = [None, "*", ETAG, OTHER, W, f"{OTHER}, {ETAG}", f"{W}, {OTHER}"]
    dates = [None, BEFORE, DATE, AFTER, "yesterday"]
    seen = set()
    for match, unmodified, none, modified in itertools.product(tags, dates, tags, dates):
        values = {"If-Match": match, "If-Unmodified-Since": unmodified,
                  "If-None-Match": none, "If-Modified-Since": modified}
        environ = environ_of({name: value for name, value in values.items() if value})
        request = RequestFactory().get("/", **environ)
        theirs = get_conditional_response(request, ETAG, NOON, HttpResponse()).status_code
        ours = streams.evaluate(environ, VERSION)
        assert ours.startswith(str(theirs)), environ
        seen.add(ours)
    assert len(seen) == 3


# a file without a server


class Answer:
    """A start_response that keeps what it was told."""

    def __init__(self):
        self.status, self.fields = "", {}

    def __call__(self, status, headers, exc_info=None):
        assert not self.status
        self.status, self.fields = status, dict(headers)
        assert len(self.fields) == len(headers)


def send(file, method="GET", wrapper=None, more=(), **fields):
    environ = environ_of({name.replace("_", "-"): value for name, value in fields.items()}, method)
    if wrapper is not None:
        environ["wsgi.file_wrapper"] = wrapper
    answer = Answer()
    result = send_file(environ, answer, file, "video/mp4", more)
    body = b"".join(result)
    if hasattr(result, "close"):
        result.close()
    return answer, body


@pytest.mark.parametrize("wrapper", [None, FileWrapper, lambda file, size: iter(
    lambda: file.read(size), b"")], ids=["none", "hop", "another"])
@pytest.mark.parametrize(
    ("value", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=70000-", 70_000, SIZE), ("bytes=5-80004", 5, 80_005)],
)
def test_a_part(film, wrapper, value, start, stop):
    answer, body = send(film, wrapper=wrapper, Range=value)
    assert answer.status == "206 Partial Content"
    assert answer.fields["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert answer.fields["Content-Length"] == str(stop - start)
    length = stop - start  # hop's wrapper goes on to the end; the response writer cuts
    assert body[:length] == CONTENT[start:stop]
    assert len(body) == (SIZE - start if wrapper is FileWrapper else length)


def test_the_whole_and_its_fields(film):
    answer, body = send(film, more=[("Cache-Control", "max-age=60")])
    assert body == CONTENT
    assert (answer.status, answer.fields) == ("200 OK", {
        "ETag": ETAG, "Last-Modified": DATE, "Accept-Ranges": "bytes",
        "Content-Type": "video/mp4", "Content-Length": str(SIZE), "Cache-Control": "max-age=60",
    })


def test_not_modified_describes_no_content(film):
    more = [("Cache-Control", "max-age=60"), ("Content-Disposition", "inline")]
    answer, body = send(film, more=more, If_None_Match=ETAG)
    assert (answer.status, body) == ("304 Not Modified", b"")
    assert set(answer.fields) == {"ETag", "Last-Modified", "Accept-Ranges", "Cache-Control"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"If_Match": OTHER}, {}),
        ({"Range": "bytes=100000-"}, {"Content-Range": "bytes */100000"}),
    ],
)
def test_errors_do_not_carry_what_is_meant_for_the_file(film, fields, expected):
    answer, body = send(film, more=[("Cache-Control", "max-age=60")], **fields)
    nothing = {"Content-Type": "text/plain", "Content-Length": "0"}
    assert (answer.fields, body) == ({**nothing, **expected}, b"")


def test_an_empty_file(tmp_path):
    (tmp_path / "empty").touch()
    for fields in ({}, {"Range": "bytes=-5"}):
        answer, body = send(tmp_path / "empty", **fields)
        assert (answer.status, answer.fields["Content-Length"], body) == ("200 OK", "0", b"")
    assert send(tmp_path / "empty", Range="bytes=0-")[0].status.startswith("416")


@pytest.mark.parametrize("opened", [
    partial(open, mode="rb"), partial(open, mode="rb", buffering=0), partial(open, mode="r+b"),
    str, Path,
], ids=["buffered", "raw", "to read and write", "str", "path"])
def test_what_may_be_sent(film, opened):
    file = opened(film)
    assert send(file, Range="bytes=5-9")[1] == CONTENT[5:10]
    assert isinstance(file, str | Path) or file.closed


def test_a_temporary_file_without_a_name():
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(b"0123456789")
    file.flush()
    assert send(file)[1] == b"0123456789"


def test_what_is_no_plain_file_is_refused(tmp_path):
    for path, error in ((tmp_path, IsADirectoryError), (tmp_path / "none", FileNotFoundError),
                        ("/dev/null", OSError)):
        answer = Answer()
        with pytest.raises(error):
            send_file(environ_of({}), answer, path)
        assert answer.status == ""


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused = []

    def attempt():
        try:
            send_file(environ_of({}), Answer(), tmp_path / "pipe")
        except OSError as error:
            refused.append(error.errno)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    assert refused == [errno.EINVAL]


def closed_files(fields, method="GET", failing=False):
    """Whether an answer without a body, or a failing start_response, leaves the file open."""
    file = io.FileIO(os.memfd_create("x"), "r+")
    file.write(CONTENT)

    def start_response(status, headers):
        if failing:
            raise RuntimeError(status)

    with contextlib.suppress(RuntimeError):
        assert send_file(environ_of(fields, method), start_response, file) == []
    return file.closed


def test_the_file_is_closed_where_it_is_not_sent():
    assert closed_files({}, "HEAD")
    assert closed_files({"If-Match": OTHER})
    assert closed_files({"If-None-Match": "*"})
    assert closed_files({"Range": "bytes=100000-"})
    assert closed_files({}, failing=True)


def test_a_section_ends_where_it_should():
    file = io.BytesIO(b"0123456789")
    file.seek(3)
    section = Section(file, 5)
    assert [section.read(2) for _ in range(5)] == [b"34", b"56", b"7", b"", b""]
    section.close()
    assert file.closed


def test_a_section_of_a_file_that_became_shorter():
    assert Section(io.BytesIO(b"0123"), 9).read(9) == b"0123"


# a file over sockets


@pytest.fixture(params=SERVERS)
def serve(request):
    """A function that serves an application in this mode until the test ends; the port."""
    with contextlib.ExitStack() as stack:
        yield lambda application: stack.enter_context(SERVERS[request.param](application))


def read_all(sock):
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            answer += piece
    return answer


def exchange(port, *lines, method="GET"):
    """One raw request; status, fields in lower case, everything behind the head."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        request = [f"{method} / HTTP/1.1", "Host: h", *lines, "Connection: close", "", ""]
        sock.sendall("\r\n".join(request).encode("latin-1"))
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    return int(first.split()[1]), fields, body


def cinema(path):
    return lambda environ, start_response: send_file(environ, start_response, path, "video/mp4")


def test_the_table_over_sockets(serve, film):
    port = serve(cinema(film))
    for fields, status in CASES:
        for method in ("GET", "HEAD"):
            lines = [f"{name}: {value}" for name, value in fields.items()]
            got, headers, body = exchange(port, *lines, method=method)
            expected = 200 if method == "HEAD" and status in (206, 416) else status
            assert got == expected, fields
            if method == "HEAD" or status not in (200, 206):
                assert body == b""
            elif status == 200:
                assert body == CONTENT
            else:
                first, last = headers["content-range"][6:].split("/")[0].split("-")
                assert body == CONTENT[int(first) : int(last) + 1]
            if status in (200, 206) and method == "GET":
                assert headers["content-length"] == str(len(body))
                assert (headers["etag"], headers["last-modified"]) == (ETAG, DATE)


def test_the_validator_has_no_complaint(serve, film):
    port = serve(validated(cinema(film)))
    for fields, status in ((("Range: bytes=5-9",), 206), ((), 200), (("If-Match: x",), 412),
                           ((f"If-None-Match: {ETAG}",), 304), (("Range: bytes=100000-",), 416)):
        assert exchange(port, *fields)[0] == status


def test_a_connection_is_kept_after_every_answer(serve, film):
    """Whatever was sent, the next answer begins where it ends."""
    port = serve(cinema(film))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        lines = ["Range: bytes=5-9", "Range: bytes=100000-", f"If-None-Match: {ETAG}",
                 "If-Match: x", "Range: bytes=70000-70009", "Connection: close"]
        for line in lines:
            sock.sendall(f"GET / HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n".encode())
        answer = read_all(sock)
    statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [206, 416, 304, 412, 206, 200]
    assert answer.endswith(CONTENT)


def test_curl_resumes(serve, film, tmp_path):
    """`curl -C -` goes on where a broken download ended; `-r` asks for a part."""
    url = f"http://127.0.0.1:{serve(cinema(film))}/"
    broken = tmp_path / "broken"
    broken.write_bytes(CONTENT[:60_000])
    subprocess.run(["curl", "-sS", "-C", "-", "-o", broken, url], check=True, timeout=20)
    assert broken.read_bytes() == CONTENT
    done = subprocess.run(["curl", "-sS", "-r", "-5", url], check=True, timeout=20,
                          capture_output=True)
    assert done.stdout == CONTENT[-5:]


def test_on_hop_the_kernel_sends_the_part(film, monkeypatch):
    calls = []

    def sendfile(sock, fd, offset, count):
        calls.append((offset, count))
        return original(sock, fd, offset, count)

    original = os.sendfile
    monkeypatch.setattr(os, "sendfile", sendfile)
    with SERVERS["hop"](cinema(film)) as port:
        assert exchange(port, "Range: bytes=50000-50099")[2] == CONTENT[50_000:50_100]
    assert calls == [(50_000, 100)]


def test_a_file_that_becomes_shorter_is_not_taken_for_whole(serve, tmp_path):
    path = tmp_path / "shrinking"
    path.write_bytes(bytes(20_000_000))

    def shrink(environ, start_response):
        result = send_file(environ, start_response, path)
        os.truncate(path, 1_000_000)
        return result

    status, fields, body = exchange(serve(shrink))
    assert (status, fields["content-length"]) == (200, "20000000")
    assert len(body) == 1_000_000


def test_a_file_that_grows_is_cut_at_what_was_promised(serve, tmp_path):
    path = tmp_path / "growing"
    path.write_bytes(CONTENT)

    def grow(environ, start_response):
        result = send_file(environ, start_response, path)
        with open(path, "ab") as file:
            file.write(b"more" * 100_000)
        return result

    assert exchange(serve(grow))[2] == CONTENT
    path.write_bytes(CONTENT)
    assert exchange(serve(grow), "Range: bytes=99990-")[2] == CONTENT[99_990:]


def test_a_small_part_does_not_read_the_rest():
    """A server that reads to the end reads no more than the part."""
    read = []

    class Counting(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            read.append(len(data))
            return data

    file = Counting(os.memfd_create("x"), "r+")
    file.write(CONTENT)
    assert send(file, Range="bytes=5-9")[1] == CONTENT[5:10]
    assert sum(read) == 5


def test_a_file_that_has_just_changed_is_not_joined_by_its_date(film):
    now = time.time()
    os.utime(film, (now, now))
    answer, _ = send(film, Range="bytes=5-9", If_Range=formatdate(now, usegmt=True))
    assert answer.status == "200 OK"


# events in bytes


def browser(stream):
    """An EventSource (WHATWG HTML, section 9.2.6): (type, data, last event id), and retry."""
    data = kind = last_id = id_buffer = ""
    retry, events = None, []
    *lines, _ = re.split("\r\n|\r|\n", stream.decode().removeprefix("\ufeff"))
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            last_id = id_buffer
            if data:
                events.append((kind or "message", data.removesuffix("\n"), last_id))
            data = kind = ""
        elif name == "event":
            kind = value
        elif name == "data":
            data += value + "\n"
        elif name == "id" and "\0" not in value:
            id_buffer = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            retry = int(value)
    return events, retry


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TRICKY = st.text(st.sampled_from("ab:\r\n \t\0\x0b\x1c\x85\u2028\ufeff"), max_size=12)
LINE = st.one_of(TEXT, TRICKY).filter(lambda text: not set(text) & set("\r\n\0"))


@given(st.lists(st.tuples(st.one_of(TEXT, TRICKY), LINE, LINE)))
def test_every_event_comes_out_as_it_went_in(wanted):
    sent = b"".join(
        streams.event(data, event=kind, id=name) + streams.comment(kind)
        for data, kind, name in wanted
    )
    assert browser(sent)[0] == [
        (kind or "message", re.sub("\r\n|\r", "\n", data), name) for data, kind, name in wanted
    ]


@given(st.one_of(st.none(), TEXT), st.integers(0, 10**9))
def test_retry_arrives_with_and_without_data(data, retry):
    events, arrived = browser(streams.event(data, retry=retry))
    assert arrived == retry
    assert len(events) == (data is not None)


def test_an_event_in_bytes():
    assert streams.event("a") == b"data: a\n\n"
    assert streams.event("a\r\nb\rc\nd") == b"data: a\ndata: b\ndata: c\ndata: d\n\n"
    assert streams.event("x", event="e", id="1", retry=5) == (
        b"event: e\nid: 1\nretry: 5\ndata: x\n\n")
    assert streams.event("") == b"data: \n\n"
    assert streams.event(None, id="") == b"id: \n\n"
    assert streams.event("\u2028 \x85") == "data: \u2028 \x85\n\n".encode()
    assert streams.comment() == b": \n\n"
    assert streams.comment("hi") == b": hi\n\n"


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b", "\n"])
def test_what_would_forge_a_field_is_refused(bad):
    for call in (partial(streams.event, "x", event=bad), partial(streams.event, "x", id=bad),
                 partial(streams.comment, bad)):
        with pytest.raises(ValueError, match="no line break"):
            call()


def test_other_mistakes_are_refused():
    with pytest.raises(ValueError, match="less than no time"):
        streams.event("x", retry=-1)
    with pytest.raises(ValueError, match="surrogates"):
        streams.event("\ud800")


def test_the_last_event_id_is_utf_8():
    assert streams.last_event_id({}) == ""
    assert streams.last_event_id({"HTTP_LAST_EVENT_ID": "\xc3\xa9t\xc3\xa9"}) == "\xe9t\xe9"
    assert streams.last_event_id({"HTTP_LAST_EVENT_ID": "\xff"}) == "\ufffd"


# a stream on a channel that is played by hand


class Paper:
    """A channel on paper, which takes `room` bytes before it says that it is enough."""

    def __init__(self, room=1 << 20):
        self.closed, self.on_close, self.write_timeout = False, None, None
        self.room, self.paper, self.timers, self.ends = room, b"", [], []

    def write(self, data):
        if not self.closed:
            self.paper += data
        return not self.closed and len(self.paper) > self.room

    def call_later(self, delay, fn):
        self.timers.append((delay, fn))

    def close(self):
        self.end("closed")

    def abort(self):
        self.end("aborted")

    def end(self, how):
        if not self.closed:
            self.closed = True
            self.ends.append(how)
            self.on_close(self)

    def beat(self):
        before = len(self.paper)
        (_, fn), self.timers[:] = self.timers[0], self.timers[1:]
        fn()
        return self.paper[before:]


def test_a_heartbeat_is_sent_into_silence_only():
    paper = Paper()
    stream = streams.EventStream(paper, heartbeat=15.0)
    assert [paper.beat(), paper.beat()] == [b": \n\n", b": \n\n"]
    stream.send("x")
    assert [paper.beat(), paper.beat()] == [b"", b": \n\n"]
    assert [delay for delay, _ in paper.timers] == [15.0]


def test_no_heartbeat_and_a_stall_limit():
    paper = Paper()
    streams.EventStream(paper, heartbeat=None)
    assert paper.timers == []
    assert paper.write_timeout == streams.STALL


def test_a_slow_client_is_cut_off_and_others_hear_everything():
    quick, slow = Paper(), Paper(room=20)
    watching, gone = set(), []
    for paper in (slow, quick):
        stream = streams.EventStream(paper, "7")
        watching.add(stream)
        stream.on_close = lambda stream: (gone.append(stream), watching.discard(stream))
    for _ in range(3):
        streams.broadcast(watching, streams.event("everybody"))
    assert quick.paper == streams.event("everybody") * 3
    assert slow.ends == ["aborted"]
    assert [stream.channel for stream in gone] == [slow]
    assert [stream.channel for stream in watching] == [quick]
    assert gone[0].last_event_id == "7"
    gone[0].send("too late")


def test_an_end_that_nobody_asked_to_be_told_of():
    paper = Paper()
    stream = streams.EventStream(paper)
    stream.send("x", event="e", id="1")
    stream.close()
    assert (paper.paper, paper.ends) == (b"event: e\nid: 1\ndata: x\n\n", ["closed"])


# the stand-in


def test_the_stand_in_keeps_order_and_timers():
    channel = streams.ThreadChannel()
    gone = []
    channel.on_close = gone.append
    channel.call_later(0.02, lambda: channel.write(b"third "))
    channel.call_later(0.02, lambda: channel.write(b"fourth "))
    channel.call_later(0.01, lambda: channel.write(b"second "))
    channel.call_later(0.03, channel.close)
    channel.write(b"first ")
    assert b"".join(channel.run()) == b"first second third fourth "
    assert gone == [channel]
    assert channel.closed
    assert channel.write(b"x") is False


def test_timers_of_one_moment_keep_their_order(monkeypatch):
    channel = streams.ThreadChannel()
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    for text in (b"1", b"2", b"3"):
        channel.call_later(0, partial(channel.write, text))
    channel.call_later(0, channel.close)
    assert b"".join(channel.run()) == b"123"


def test_the_stand_in_is_written_to_by_others():
    channel = streams.ThreadChannel()
    body = channel.run()
    answers = [channel.write(b"0")]
    assert next(body) == b"0"
    threads = [threading.Thread(target=channel.write, args=(b"%d" % n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    received = b""
    while len(received) < 8:
        received += next(body)
    for thread in threads:
        thread.join()
    channel.close()
    assert list(body) == []
    assert sorted(received) == list(b"12345678")
    assert answers == [False]


def test_the_stand_in_wakes_a_thread_that_waits():
    channel = streams.ThreadChannel()
    received = []
    thread = threading.Thread(target=lambda: received.extend(channel.run()))
    thread.start()
    channel.write(b"x")
    channel.call_later(0, channel.close)
    thread.join(10)
    assert received == [b"x"]


def test_the_stand_in_ends_at_once_or_after_what_waits():
    closed, aborted = streams.ThreadChannel(), streams.ThreadChannel()
    for channel in (closed, aborted):
        channel.write(b"waits")
        channel.call_later(3600, channel.close)
    closed.close()
    aborted.abort()
    assert closed.write(b"more") is False
    assert (list(closed.run()), list(aborted.run())) == ([b"waits"], [])


def test_the_stand_in_says_when_too_much_waits():
    channel = streams.ThreadChannel(mark=10)
    assert [channel.write(b"12345"), channel.write(b"12345"), channel.write(b"1")] == [
        False, False, True]
    stream = streams.EventStream(channel, heartbeat=None)
    stream.send("x")
    assert list(channel.run()) == []


def test_a_server_that_closes_the_stand_in_ends_the_stream():
    channel = streams.ThreadChannel()
    gone = []
    streams.EventStream(channel).on_close = gone.append
    channel.write(b"x")
    body = channel.run()
    next(body)
    body.close()
    assert len(gone) == 1
    assert channel.closed


def test_a_timer_that_fails_ends_the_stream():
    channel = streams.ThreadChannel()
    gone = []
    channel.on_close = gone.append
    channel.call_later(0, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(channel.run())
    assert gone == [channel]


# event streams over WSGI


def test_on_hop_a_stream_takes_the_connection_over():
    paper, answer, opened = Paper(), Answer(), []

    class Hijacker:
        def set_read_handler(self, handler):
            assert answer.status == "200 OK"
            handler(paper, b"whatever it says")
            return paper

    environ = {**environ_of({"Last-Event-ID": "9"}), "hop.hijacker": Hijacker()}
    result = streams.event_stream(environ, answer, opened.append, heartbeat=7.0,
                                  headers=[("X-More", "1")])
    assert result == []
    assert answer.fields == {
        "Content-Type": "text/event-stream", "Cache-Control": "no-store",
        "X-Accel-Buffering": "no", "X-More": "1"}
    assert opened[0].last_event_id == "9"
    assert opened[0].channel is paper
    assert [delay for delay, _ in paper.timers] == [7.0]


def test_elsewhere_it_holds_the_thread():
    def opened(stream):
        stream.send("hello")
        stream.close()

    answer = Answer()
    body = b"".join(streams.event_stream(environ_of({}), answer, opened))
    assert body == b": \n\ndata: hello\n\n"  # the comment makes the head leave at once


def test_head_gets_no_stream():
    environ = {**environ_of({}, "HEAD"), "hop.hijacker": None}
    answer = Answer()
    assert streams.event_stream(environ, answer, pytest.fail) == []
    assert answer.fields["Content-Type"] == "text/event-stream"


class Listener:
    """A client of an event stream, over a raw socket."""

    def __init__(self, port, path="/", last=""):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=10)
        field = f"Last-Event-ID: {last}\r\n" if last else ""
        self.sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\n{field}\r\n".encode())
        self.response = http.client.HTTPResponse(self.sock)
        self.response.begin()
        self.seen = b""

    def until(self, text):
        """Read on until this has been seen; everything since the last time."""
        while text not in self.seen:
            data = self.response.read1(65536)
            assert data, "the stream has ended"
            self.seen += data
        seen, self.seen = self.seen, b""
        return seen

    def rest(self):
        return self.response.read()

    def close(self):
        self.response.close()
        self.sock.close()


def soon(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class News:
    """An application with a stream, and everything that happens to it."""

    def __init__(self, heartbeat=15.0):
        self.heartbeat, self.watching, self.gone = heartbeat, set(), []

    def __call__(self, environ, start_response):
        return streams.event_stream(environ, start_response, self.opened,
                                    heartbeat=self.heartbeat)

    def opened(self, stream):
        self.watching.add(stream)
        stream.on_close = self.closed
        stream.send(f"after {stream.last_event_id or 'nothing'}")

    def closed(self, stream):
        self.watching.discard(stream)
        self.gone.append(stream)


@contextlib.contextmanager
def listening(*arguments, **options):
    client = Listener(*arguments, **options)
    try:
        yield client
    finally:
        client.close()


def test_a_stream_in_both_modes(serve):
    news = News(heartbeat=0.05)
    port = serve(news)
    with listening(port) as first, listening(port, last="4") as second:
        assert first.response.headers["Content-Type"] == "text/event-stream"
        assert first.response.headers["Content-Length"] is None
        assert b"data: after nothing\n\n" in first.until(b"nothing\n\n")
        assert b"data: after 4\n\n" in second.until(b"4\n\n")
        soon(lambda: len(news.watching) == 2)
        streams.broadcast(news.watching, streams.event("news", id="5"))
        for client in (first, second):
            assert b"id: 5\ndata: news\n\n" in client.until(b"news\n\n")
        assert first.until(b": \n\n")  # a heartbeat
        first.close()
        soon(lambda: len(news.gone) == 1)
        for stream in list(news.watching):
            stream.send("bye")
            stream.close()
        assert second.rest().endswith(b"data: bye\n\n")
        soon(lambda: len(news.gone) == 2)
    assert news.watching == set()
    assert len(set(news.gone)) == 2


def test_flask_passes_both_on(serve, film):
    site = flask.Flask("site")
    news = News(heartbeat=0.05)
    site.add_url_rule("/news", "news", lambda: flask.Response.from_app(news, flask.request.environ))
    site.add_url_rule("/film", "film", lambda: flask.Response.from_app(
        cinema(film), flask.request.environ))
    port = serve(site)
    with listening(port, "/news") as client:
        assert b"data: after nothing\n\n" in client.until(b"nothing\n\n")
        assert client.until(b": \n\n")
    soon(lambda: news.gone)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/film", headers={"Range": "bytes=70000-"})
    response = connection.getresponse()
    assert (response.status, response.read()) == (206, CONTENT[70_000:])
    connection.request("GET", "/film", headers={"If-None-Match": ETAG})
    assert connection.getresponse().status == 304
    connection.close()
