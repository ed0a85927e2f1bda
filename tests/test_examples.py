"""The example application over real sockets, on the standard library's server and on hop."""

import contextlib
import http.client
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from examples import app
from examples.peers import free_port
from examples.static import Folder, content_type
from examples.std import MAX_DRAIN, Body, StdServer, Truncated, split_address
from tests.servers import SERVERS, std

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=SERVERS)
def serve(request):
    """A function that serves an application in this mode until the test ends; the port."""
    with contextlib.ExitStack() as stack:
        yield lambda application: stack.enter_context(SERVERS[request.param](application))


@pytest.fixture
def port(serve):
    return serve(app.application)


def ask(port, target, method="GET", body=None, **headers):
    """One request; status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, names)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def exchange(port, data):
    """Send bytes, then read until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(65536):
                answer += piece
        return answer


# the overview


def test_overview_is_plain_for_curl_and_wrk(port):
    status, headers, body = ask(port, "/", Accept="*/*")
    assert (status, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert body == app.OVERVIEW
    assert headers["Vary"] == "Accept"


def test_overview_is_html_for_a_browser(port):
    status, headers, body = ask(port, "/", Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert body.startswith(b"<!doctype html>")


def test_overview_names_every_route_and_loads_nothing_from_elsewhere():
    page = app.PAGE.decode()
    linked = {part.split('"')[0] for part in page.split('href="')[1:]} - {"data:,"}
    linked = {link for link in linked if not link.startswith("#")}
    assert linked <= {*app.ROUTES, *app.FOLDERS}
    for route in (*app.ROUTES, *app.FOLDERS):
        assert f'"{route}"' in page
        assert f"\n  {route} " in app.OVERVIEW.decode()
    for outside in ("http:", "https:", "src=", "@import", "url("):
        assert outside not in page


def test_head_has_the_headers_and_no_body(port):
    status, headers, body = ask(port, "/", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(app.OVERVIEW)), b"")


def test_only_get_and_head(port):
    status, headers, body = ask(port, "/", "POST", b"x=1")
    assert (status, headers["Allow"], body) == (405, "GET, HEAD", b"")


def test_unknown_path(port):
    assert ask(port, "/nowhere")[0] == 404


# the file


def test_file_is_the_application_s_source(port):
    status, headers, body = ask(port, "/file")
    assert (status, headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
    assert body == Path(app.__file__).read_bytes()
    assert headers["Content-Length"] == str(len(body))


def test_file_is_not_sent_again_when_the_client_has_it(port):
    modified = ask(port, "/file")[1]["Last-Modified"]
    status, headers, body = ask(port, "/file", If_Modified_Since=modified)
    assert (status, headers["Last-Modified"], body) == (304, modified, b"")
    assert ask(port, "/file", If_Modified_Since="Mon, 01 Jan 2001 00:00:00 GMT")[0] == 200
    assert ask(port, "/file", If_Modified_Since="yesterday")[0] == 200


def test_head_of_the_file(port):
    status, headers, body = ask(port, "/file", "HEAD")
    size = Path(app.__file__).stat().st_size
    assert (status, headers["Content-Length"], body) == (200, str(size), b"")


# the book


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book of a few files in the place of the woven one."""
    root = tmp_path / "html"
    (root / "chapters").mkdir(parents=True)
    (root / "index.html").write_text("<p>the book</p>")
    (root / "chapters" / "index.html").write_text("<p>chapters</p>")
    (root / "style.css").write_text("p {}")
    (root / "code.js").write_text("1")
    (root / "data.unknown").write_bytes(b"\0\1")
    (root / "gr\xfc\xdfe.html").write_text("<p>hello</p>")
    (root / "empty").mkdir()
    (tmp_path / "secret").write_text("secret")
    (root / "way-out").symlink_to(tmp_path / "secret")
    monkeypatch.setitem(app.FOLDERS, "/book/", Folder("/book/", root, app.NO_BOOK))
    return root


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/book/", "text/html; charset=utf-8", b"<p>the book</p>"),
        ("/book/index.html", "text/html; charset=utf-8", b"<p>the book</p>"),
        ("/book/chapters/", "text/html; charset=utf-8", b"<p>chapters</p>"),
        ("/book/style.css?v=1", "text/css; charset=utf-8", b"p {}"),
        ("/book/code.js", "text/javascript; charset=utf-8", b"1"),
        ("/book/data.unknown", "application/octet-stream", b"\0\1"),
        ("/book/gr%C3%BC%C3%9Fe.html", "text/html; charset=utf-8", b"<p>hello</p>"),
    ],
)
def test_book_serves_its_files(book, port, path, kind, body):
    status, headers, answer = ask(port, path)
    assert (status, headers["Content-Type"], answer) == (200, kind, body)
    assert ask(port, path, If_Modified_Since=headers["Last-Modified"])[0] == 304


@pytest.mark.parametrize(
    "path",
    [
        "/book/nothing", "/book/empty/", "/book/style.css/", "/book/../secret",
        "/book/%2e%2e/secret", "/book/..%2fsecret", "/book/chapters/%2e%2e/%2e%2e/secret",
        "/book/way-out", "/book//etc/passwd", "/book/%00", "/book/..%5csecret", "/book/%ff",
        "/book/" + "x" * 300,
    ],
)
def test_book_has_no_way_out(book, port, path):
    status, _, body = ask(port, path)
    assert (status, body) == (404, b"No such page.\n")


@pytest.mark.parametrize(
    ("path", "place"), [("/book", "/book/"), ("/book/chapters", "/book/chapters/")]
)
def test_directories_end_in_a_slash(book, port, path, place):
    status, headers, _ = ask(port, path)
    assert (status, headers["Location"]) == (308, place)


def test_a_missing_book_says_how_to_make_it(tmp_path, monkeypatch, port):
    folder = Folder("/book/", tmp_path / "none", app.NO_BOOK)
    monkeypatch.setitem(app.FOLDERS, "/book/", folder)
    status, _, body = ask(port, "/book/index.html")
    assert status == 404
    assert b"make book" in body


def test_a_file_wrapper_is_not_required(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a" * 100_000)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/a.txt"}
    result: Any = Folder("/", tmp_path, "")(environ, lambda status, headers, exc_info=None: print)
    assert b"".join(result) == b"a" * 100_000
    result.close()


def test_content_type_of_compressed_and_nameless_files():
    assert content_type("x.svg") == "image/svg+xml"
    assert content_type("objects.inv") == "application/octet-stream"


# WSGI over HTTP/1.1: what the example rests on, in both modes


def echo(environ, start_response):
    """The body, and what was asked, in headers of the answer."""
    body = environ["wsgi.input"].read()
    headers = [
        ("Content-Type", "application/octet-stream"),
        ("X-Path", environ["PATH_INFO"]), ("X-Query", environ["QUERY_STRING"]),
        ("X-Twice", environ.get("HTTP_TWICE", "")), ("X-Cookie", environ.get("HTTP_COOKIE", "")),
        ("X-Under", environ.get("HTTP_UNDER_SCORE", "")),
        ("X-Length", environ.get("CONTENT_LENGTH", "")),
    ]
    start_response("200 OK", headers)
    return [body]


def test_connection_is_kept_alive(serve):
    port = serve(echo)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.connect()
    sock = connection.sock
    for number in range(3):
        connection.request("POST", "/", b"%d" % number)
        assert connection.getresponse().read() == b"%d" % number
        assert connection.sock is sock
    connection.close()


def test_environ(serve):
    answer = exchange(serve(echo), (
        b"PUT /a%20b%C3%A4?x=%20y HTTP/1.1\r\nHost: h\r\nTwice: 1\r\nTwice: 2\r\n"
        b"Cookie: a=1\r\nCookie: b=2\r\nUnder_Score: no\r\n"
        b"Content-Length: 2\r\nConnection: close\r\n\r\nhi"
    ))
    for field in (
        b"X-Path: /a b\xc3\xa4\r\n", b"X-Query: x=%20y\r\n", b"X-Twice: 1, 2\r\n",
        b"X-Cookie: a=1; b=2\r\n", b"X-Under: \r\n", b"X-Length: 2\r\n",
    ):
        assert field in answer
    assert answer.endswith(b"\r\n\r\nhi")


def test_absolute_target(serve):
    answer = exchange(serve(echo), (
        b"GET http://h/a?b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    ))
    assert b"X-Path: /a\r\nX-Query: b\r\n" in answer


def test_chunked_request(serve):
    answer = exchange(serve(echo), (
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;name=value\r\nhello\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
        b"GET /second HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    ))
    assert b"\r\n\r\nhello0123456789HTTP/1.1 200" in answer
    assert b"X-Path: /second\r\n" in answer


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"Content-Length: 1\r\nTransfer-Encoding: chunked", b"400"),
        (b"Transfer-Encoding: gzip, chunked", b"501"),
        (b"Content-Length: +1", b"400"),
        (b"Content-Length: 1\r\nContent-Length: 1", b"400"),
    ],
)
def test_ambiguous_framing_is_refused(serve, fields, status):
    called = []
    port = serve(lambda environ, start_response: called.append(1))
    answer = exchange(port, b"POST / HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n\r\n0\r\n\r\n")
    assert answer[9:12] == status
    assert not called


def test_expect_continue(serve):
    with socket.create_connection(("127.0.0.1", serve(echo)), timeout=10) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n"
                     b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
        reader = sock.makefile("rb")
        assert reader.readline().startswith(b"HTTP/1.1 100 ")
        assert reader.readline() == b"\r\n"
        sock.sendall(b"hi")
        assert reader.read().endswith(b"\r\n\r\nhi")
        reader.close()


def pieces(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"one "
    yield b""
    yield b"two"


def test_stream_is_chunked(serve):
    answer = exchange(serve(pieces), b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\ntransfer-encoding: chunked" in head.lower()
    assert body == b"4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"


def test_stream_to_an_old_client_ends_with_the_connection(serve):
    answer = exchange(serve(pieces), b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head.lower()
    assert b"transfer-encoding" not in head.lower()
    assert body == b"one two"


def test_old_client_may_keep_its_connection(serve):
    answer = exchange(serve(echo), (
        b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n1"
        b"POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\n2"
    ))
    assert b"\r\nconnection: keep-alive\r\n" in answer.lower()
    assert answer.count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_no_body_where_none_may_be(serve, status):
    def bare(environ, start_response):
        start_response(status, [])
        return [b"never"]

    answer = exchange(serve(bare), (
        b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    ))
    assert b"never" not in answer
    assert answer.count(f"HTTP/1.1 {status}".encode()) == 2
    if status.startswith("204"):
        assert b"content-length" not in answer.lower()


def test_head_of_a_stream(serve):
    answer = exchange(serve(pieces), (
        b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\nHEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    ))
    assert answer.count(b"HTTP/1.1 200") == 2
    assert b"one" not in answer


def test_write_and_exc_info(serve):
    def application(environ, start_response):
        start_response("200 OK", [("X-First", "1")])
        try:
            raise ValueError
        except ValueError:
            write = start_response("202 Accepted", [("X-Second", "2")], sys.exc_info())
        write(b"written, ")
        return [b"returned"]

    status, headers, body = ask(serve(application), "/")
    assert (status, headers["X-First"], headers["X-Second"]) == (202, None, "2")
    assert body == b"written, returned"


def test_empty_answer(serve):
    def nothing(environ, start_response):
        start_response("200 OK", [])
        return []

    assert ask(serve(nothing), "/")[2] == b""


def test_failure_is_500_and_says_nothing_more(serve, capfd):
    def failing(environ, start_response):
        raise RuntimeError("secret")

    status, _, body = ask(serve(failing), "/")
    assert status == 500
    assert b"secret" not in body


def test_failure_in_the_middle_cuts_the_connection(serve, capfd):
    def failing(environ, start_response):
        start_response("200 OK", [])
        yield b"half"
        raise RuntimeError("secret")

    answer = exchange(serve(failing), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    body = answer.partition(b"\r\n\r\n")[2]  # a version in the head may end in 0, too
    assert b"0\r\n\r\n" not in body
    assert b"secret" not in answer


@pytest.mark.parametrize(("promised", "got"), [("2", b"bo"), ("9", b"body")])
def test_body_that_differs_from_its_length(serve, promised, got, capfd):
    def wrong(environ, start_response):
        start_response("200 OK", [("Content-Length", promised)])
        return iter([b"bo", b"dy"])

    request = b"GET / HTTP/1.1\r\nHost: h\r\n%b\r\n" % (
        b"Connection: close\r\n" if promised == "2" else b""
    )
    assert exchange(serve(wrong), request).partition(b"\r\n\r\n")[2] == got


def test_line_break_in_a_header_is_a_failure(serve, capfd):
    def injecting(environ, start_response):
        start_response("200 OK", [("X-A", "1\r\nX-B: 2")])
        return [b"x"]

    status, headers, _ = ask(serve(injecting), "/")
    assert (status, headers["X-B"]) == (500, None)


def test_unread_body_does_not_become_the_next_request(serve):
    def deaf(environ, start_response):
        start_response("200 OK", [("Content-Length", "0")])
        return []

    body = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    answer = exchange(serve(deaf), (
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body) +
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    ))
    assert answer.count(b"HTTP/1.1 200") == 2


def test_truncated_body_is_never_whole(serve, capfd):
    read = []

    def reading(environ, start_response):
        read.append(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return []

    with socket.create_connection(("127.0.0.1", serve(reading)), timeout=10) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nhalf")
        sock.shutdown(socket.SHUT_WR)
        assert not sock.recv(65536).startswith(b"HTTP/1.1 200")
    assert read == []


def test_validator_finds_nothing(serve, capfd):
    status, _, body = ask(serve(validator(app.application)), "/file")
    assert (status, body) == (200, Path(app.__file__).read_bytes())


# the standard library's server alone


def body_of(data, length=None):
    return Body(io.BufferedReader(io.BytesIO(data)), length)


def test_body_of_a_length_stops_there():
    body = body_of(b"hello and more", 5)
    assert (body.read(), body.read(), body.done) == (b"hello", b"", True)
    assert body_of(b"", 0).read() == b""


def test_chunked_body():
    body = body_of(b"3\r\nabc\r\n2 ;x=1\r\nde\r\n0\r\nT: 1\r\n\r\nrest")
    assert body.read() == b"abcde"
    assert body.stream.read() == b"rest"


@pytest.mark.parametrize(
    "data",
    [b"", b"3", b"3\r\nab", b"3\r\nabcd\r\n", b"-1\r\n", b"0x3\r\nabc\r\n", b"3\nabc\n", b"\r\n",
     b"3;\0\r\nabc\r\n", b"0\r\n", b"0\r\nT: 1\r\n", b"1" * 9000 + b"\r\n"],
)
def test_broken_chunks(data):
    with pytest.raises(Truncated):
        body_of(data).read()


def test_drain_has_a_limit():
    assert body_of(b"x" * MAX_DRAIN, MAX_DRAIN).drain()
    assert not body_of(b"x" * (MAX_DRAIN + 1), MAX_DRAIN + 1).drain()


def test_too_much_unread_body_ends_the_connection():
    def deaf(environ, start_response):
        start_response("200 OK", [("Content-Length", "0")])
        return []

    with std(deaf) as port:
        answer = exchange(port, (
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (2 * MAX_DRAIN)
            + b"x" * (2 * MAX_DRAIN)
        ))
    assert answer.count(b"HTTP/1.1 200") <= 1  # a reset may take the answer with it


@pytest.mark.parametrize("nodelay", [False, True])
def test_nodelay_is_an_option(nodelay):
    seen = []

    class Spy(StdServer):
        def finish_request(self, request, client_address):
            super().finish_request(request, client_address)
            seen.append(request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)

    server = Spy(app.application, "127.0.0.1:0", nodelay)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    exchange(server.server_port, b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    thread.join(10)
    deadline = time.monotonic() + 10
    while not seen and time.monotonic() < deadline:
        time.sleep(0.001)
    server.server_close()
    assert seen == [nodelay]


@pytest.mark.parametrize(
    ("text", "address"),
    [(":1826", ("", 1826)), ("localhost:0", ("localhost", 0)), ("[::1]:80", ("::1", 80))],
)
def test_addresses(text, address):
    assert split_address(text) == address


@pytest.mark.parametrize("text", ["", "1826", "localhost", ":", ":x", ":65536", ":-1"])
def test_bad_addresses(text):
    with pytest.raises(ValueError, match="not an address"):
        split_address(text)


# the command


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "examples", *arguments], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )


def wait_for(port):
    deadline = time.monotonic() + 20
    while True:
        try:
            return ask(port, "/")
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("mode", SERVERS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_serves_and_stops(mode, number):
    port = free_port()
    flag = "-type" if number == signal.SIGTERM else "--type"
    with command(flag, mode, "--addr", f"127.0.0.1:{port}", "--debug-addr", "[::1]:0") as process:
        try:
            assert wait_for(port)[2] == app.OVERVIEW
            os.kill(process.pid, number)
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("mode", SERVERS)
def test_taken_port_is_one_line_and_status_1(mode):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with command("-type", mode, "-addr", address) as process:
            _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert len(said.splitlines()) == 1
    assert address in said


@pytest.mark.parametrize(
    "arguments",
    [["-type", "other"], ["-type", "std", "--addr", "nowhere"], ["--addr", "nowhere"],
     ["--debug-addr", "x"], ["--unknown"]],
)
def test_bad_arguments_are_status_2(arguments):
    with command(*arguments) as process:
        _, said = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "Traceback" not in said


@pytest.mark.parametrize("mode", SERVERS)
def test_the_second_port_can_be_asked_what_goes_on(mode):
    port = free_port()
    arguments = ["-type", mode, "-addr", f"127.0.0.1:{port}", "-debug-addr", "127.0.0.1:0"]
    with command(*arguments) as process:
        try:
            said = process.stderr.readline()
            debug = re.search(r"look inside on http://127\.0\.0\.1:([0-9]+)/debug/", said)[1]
            status, _, text = ask(int(debug), "/debug/threads")
            assert status == 200
            assert b"MainThread" in text
            assert wait_for(port)[0] == 200  # so it has begun, and hears signals
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("mode", SERVERS)
def test_without_the_second_port_the_example_serves_all_the_same(mode):
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for address in ("none", f"127.0.0.1:{taken.getsockname()[1]}"):
            arguments = ["-type", mode, "-addr", f"127.0.0.1:{port}", "-debug-addr", address]
            with command(*arguments) as process:
                try:
                    assert "nothing to look inside" in process.stderr.readline()
                    assert wait_for(port)[2] == app.OVERVIEW
                    process.terminate()
                    assert process.wait(20) == 0
                finally:
                    process.kill()


def test_the_second_port_is_for_this_machine():
    with command("-debug-addr", ":0") as process:
        _, said = process.communicate(timeout=20)
    assert process.returncode == 2
    assert len(said.splitlines()) == 1
    assert "other machines" in said
