"""The adaptor without a socket: what is written is kept, and h11 reads it as a client would."""

import gzip
import http.client
import io
import itertools
import logging
import os
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.simple_server import ServerHandler
from wsgiref.validate import check_environ, validator  # type: ignore[attr-defined]

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hop.adaptor
from hop.adaptor import (
    FRAMING,
    JOIN_LIMIT,
    DateField,
    ErrorStream,
    FileWrapper,
    Framing,
    ResponseWriter,
    base_environ,
    build_environ,
)
from hop.errors import ClientDisconnected
from hop.parser import parse_head

GET = b"GET /a?b=1 HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = GET.replace(b"GET", b"HEAD")
OLD = b"GET / HTTP/1.0\r\n\r\n"
OLD_KEPT = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
DATE = DateField(clock=lambda: 784111777.0)
DATE.renew(0.0)
COMMON = DATE.lines
BASE = base_environ("x", "80", sys.stderr)
PLAIN = [("Content-Type", "text/plain")]
MAX_UNSENT = 1 << 12


class Wire:
    """A transport that keeps what it is given. `room` bytes leave at once, the rest waits."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.peer: str | None = None
        self.writes: list[bytes] = []
        self.log: list[Any] = []
        self.room = room
        self.flushes = 0
        self.backlog: list[bytes] | None = None
        self.loop = self
        self.draining = False
        self.max_unsent = MAX_UNSENT

    def write(self, data: bytes) -> None:
        assert data, "an empty write is a system call for nothing"
        self.writes.append(data)
        self.room -= len(data)
        if self.room < 0:
            self.backlog = [*(self.backlog or ()), data]

    def send_file(self, file: Any, offset: int, count: int) -> None:
        self.log.append(("file", offset, count))
        self.write(os.pread(file.fileno(), count, offset))

    def flush(self) -> bool:
        self.flushes += 1
        return not self.backlog

    def assist(self, conn: Any) -> None:
        self.log.append("assist")

    def pending(self) -> int:
        return sum(map(len, self.backlog or ()))

    def wait_writable(self, conn: Any) -> None:
        assert conn is self
        self.log.append(("wait", self.pending()))
        self.backlog = None

    def peer_address(self) -> str:
        return "192.0.2.9"

    def peer_name(self) -> tuple[str, int] | str:
        return "192.0.2.9", 5

    def gone(self) -> bool:
        return False

    def reset(self) -> None:
        self.log.append("reset")

    @property
    def sent(self) -> bytes:
        return b"".join(self.writes)

    @property
    def head(self) -> bytes:
        return self.sent.partition(b"\r\n\r\n")[0] + b"\r\n"

    @property
    def body(self) -> bytes:
        return self.sent.partition(b"\r\n\r\n")[2]

    def fields(self, name: str) -> list[str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:-1]
        pairs = [line.split(": ", 1) for line in lines]
        return [value for key, value in pairs if key.lower() == name.lower()]


App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def call(app: App, request: bytes = GET, wire: Wire | None = None) -> tuple[Wire, ResponseWriter]:
    """One request as the engine handles it; an exception becomes a 500 or a cut answer."""
    wire = wire or Wire()
    head = parse_head(request)
    assert head is not None
    response = ResponseWriter(wire, head, COMMON, None)
    environ = build_environ(BASE, head, io.BytesIO(request[head.end :]), response)
    try:
        result = app(environ, response.start_response)
        try:
            response.send(result)
        finally:
            if hasattr(result, "close"):
                result.close()
    except (ValueError, TypeError, RuntimeError, LookupError):
        response.fail()
    if response.unsent:
        wire.write(response.unsent)
    return wire, response


def simple(
    result: Any = (), status: str = "200 OK", headers: list[tuple[str, str]] | None = None
) -> App:
    """An application that says and returns what it is told; a callable makes the iterable."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response(status, PLAIN if headers is None else headers)
        return result() if callable(result) else result

    return app


def writer(request: bytes = GET, wire: Wire | None = None) -> ResponseWriter:
    head = parse_head(request)
    assert head is not None
    return ResponseWriter(wire or Wire(), head, COMMON, None)


def with_length(length: object) -> list[tuple[str, str]]:
    return [*PLAIN, ("Content-Length", str(length))]


class TestEnviron:
    def environ(self, request: bytes, wire: Wire | None = None) -> dict[str, Any]:
        seen: list[dict[str, Any]] = []

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
            seen.append(environ)
            start_response("200 OK", PLAIN)
            return []

        call(app, request, wire)
        return seen[0]

    def test_has_what_pep_3333_wants(self):
        environ = self.environ(
            b"POST /caf%C3%A9?q=1 HTTP/1.1\r\nHost: x:81\r\nX-Y: z\r\nContent-Length: 2\r\n\r\nhi"
        )
        check_environ(environ)
        assert type(environ) is dict
        wanted = {
            "REQUEST_METHOD": "POST", "PATH_INFO": "/caf\xc3\xa9", "QUERY_STRING": "q=1",
            "REQUEST_URI": "/caf%C3%A9?q=1", "SERVER_PROTOCOL": "HTTP/1.1", "SCRIPT_NAME": "",
            "SERVER_NAME": "x", "SERVER_PORT": "80", "HTTP_HOST": "x:81", "HTTP_X_Y": "z",
            "CONTENT_LENGTH": "2", "REMOTE_ADDR": "192.0.2.9", "wsgi.input_terminated": True,
            "wsgi.file_wrapper": FileWrapper, "wsgi.run_once": False, "wsgi.multithread": True,
            "wsgi.multiprocess": False, "wsgi.url_scheme": "http", "wsgi.version": (1, 0),
        }  # fmt: skip
        assert {key: environ[key] for key in wanted} == wanted
        assert environ["wsgi.input"].read() == b"hi"

    def test_a_known_address_is_not_asked_for(self):
        wire = Wire()
        wire.peer = "192.0.2.1"
        assert self.environ(GET, wire)["REMOTE_ADDR"] == "192.0.2.1"

    def test_the_base_stays_as_it_was(self):
        before = dict(BASE)
        assert self.environ(GET)["SERVER_NAME"] == "x"
        assert before == BASE

    def test_hop_gives_the_writer_and_the_context(self):
        wire = Wire()
        head = parse_head(GET)
        assert head is not None
        response = ResponseWriter(wire, head, COMMON, 77.5)
        environ = build_environ(BASE, head, io.BytesIO(), response)
        assert environ["hop.response"] is response
        context = environ["hop.context"]
        assert (context.deadline, context.gone) == (77.5, False)
        assert context.remote_address == ("192.0.2.9", 5)

    def test_the_flags_are_those_of_the_server(self):
        base = base_environ("x", "80", None, multithread=False, multiprocess=True)
        assert (base["wsgi.multithread"], base["wsgi.multiprocess"]) == (False, True)


class TestErrorStream:
    def test_text_becomes_records(self):
        records: list[str] = []
        log = logging.Logger("x")  # noqa: LOG001

        def keep(record: logging.LogRecord) -> bool:
            records.append(record.getMessage())
            return False

        log.addFilter(keep)
        stream = ErrorStream(log)
        print("100 % wrong", file=stream)
        assert stream.write("two\nlines\n") == 10
        stream.writelines(["a", "b\n"])
        stream.flush()
        assert records == ["100 % wrong", "two\nlines", "ab"]


class TestDate:
    def test_is_formatted_once_a_second(self):
        times = iter([784111777.75, 784111778.0, 784111779.5])
        date = DateField(clock=lambda: next(times))
        seen = []
        for now in (10.0, 10.2, 10.25, 11.2, 11.25):  # at 10.25 the wall clock's second ended
            if now >= date.until:
                date.renew(now)
            seen.append(date.lines)
        assert seen[0] == b"Server: hop\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        assert [line[-10:-6] for line in seen] == [b"9:37", b"9:37", b"9:38", b"9:38", b"9:39"]


class TestStartResponse:
    @pytest.mark.parametrize(
        "status",
        ["100 Continue", "103 Early Hints", "600 X", "200", "20 OK", "200OK", "", "2000 OK",
         "200 O\r\nK", "200 O\0K", "200 €", "\u0662\u0660\u0660 OK", 200, None, b"200 OK"],
    )  # fmt: skip
    def test_a_bad_status_is_the_applications_error(self, status: Any):
        with pytest.raises((ValueError, TypeError)):
            writer().start_response(status, [])

    @pytest.mark.parametrize(
        "field",
        [("X", "a\r\nb"), ("X", "a\nb"), ("X", "a\rb"), ("X", "a\0"), ("X", "€"), ("X", "\x7f"),
         ("X\r\n", "a"), ("X Y", "a"), ("", "a"), ("X:", "a"), ("\xe9", "a"), ("Date", "a\n"),
         ("Location", "/\r\nX: y"), ("Connection", "close\n"), ("X", "a\n"),
         ("X", 1), (1, "X"), ("X", None), (b"X", b"a"), ("X",), ("X", "a", "b"), ["X", "a"], 5],
    )  # fmt: skip
    def test_a_bad_field_is_the_applications_error(self, field: Any):
        response = writer()
        with pytest.raises((ValueError, TypeError)):
            response.start_response("200 OK", [field])
        assert response.status == "", "and what is half set up is not sent"
        with pytest.raises(RuntimeError):
            response.send([])

    @pytest.mark.parametrize("headers", [None, 5, [["Content-Type", "text/plain"]], ["X"]])
    def test_a_wrong_shape_is_told_in_one_line(self, headers: Any):
        with pytest.raises(TypeError, match=r"a list of \(str, str\) tuples"):
            writer().start_response("200 OK", headers)

    @pytest.mark.parametrize("status", [200, None, b"200 OK", ["200 OK"]])
    def test_a_status_that_is_no_str_is_told_likewise(self, status: Any):
        with pytest.raises(TypeError, match="wanted: a str"):
            writer().start_response(status, [])

    def test_latin_1_passes_as_it_is(self):
        wire, _ = call(simple([b""], "200 caf\xe9", [("X", "caf\xe9"), ("Y", ""), ("Z", "a\tb")]))
        assert wire.head.startswith(b"HTTP/1.1 200 caf\xe9\r\n")
        assert b"X: caf\xe9\r\nY: \r\nZ: a\tb\r\n" in wire.head

    def test_an_empty_reason_keeps_its_blank(self):
        assert call(simple([], "200 "))[0].head.startswith(b"HTTP/1.1 200 \r\n")

    def test_repeated_fields_stay_apart_and_in_order(self):
        wire, _ = call(simple([], headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]))
        assert wire.fields("Set-Cookie") == ["a=1", "b=2"]

    def test_a_second_call_is_an_error(self):
        response = writer()
        response.start_response("200 OK", [])
        with pytest.raises(RuntimeError, match="twice"):
            response.start_response("200 OK", [])

    def test_exc_info_replaces_what_was_said(self):
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
            start_response("200 OK", [("X-Old", "1"), ("Content-Length", "99"), ("Date", "never")])
            try:
                raise LookupError("wanted")
            except LookupError:
                start_response("404 Not Found", [("X-New", "1")], sys.exc_info())
            return [b"page"]

        wire, response = call(app)
        assert wire.head.startswith(b"HTTP/1.1 404")
        assert b"X-Old" not in wire.head
        assert b"X-New: 1\r\n" in wire.head
        assert wire.fields("Content-Length") == ["4"]
        assert wire.fields("Date") == ["Sun, 06 Nov 1994 08:49:37 GMT"]
        assert wire.body == b"page"
        assert response.status == "404 Not Found"

    def test_exc_info_behind_the_head_is_raised_again(self):
        response = writer()
        response.start_response("200 OK", [])(b"piece")
        try:
            raise LookupError("wanted")
        except LookupError as error:
            wanted, info = error, sys.exc_info()
        with pytest.raises(LookupError) as caught:
            response.start_response("500 Oh", [], info)  # type: ignore[arg-type]
        assert caught.value is wanted
        assert response.status == "200 OK"

    def test_a_failed_replacement_is_not_sent(self):
        response = writer()
        response.start_response("200 OK", [])
        with pytest.raises(ValueError, match="X Y"):
            response.start_response("500 Oh", [("X Y", "")], (ValueError, ValueError(), None))  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="did not call"):
            response.send([b""])

    def test_without_it_nothing_is_sent(self):
        wire, _ = call(lambda environ, start_response: [b"body"])
        assert wire.head.startswith(b"HTTP/1.1 500")
        assert b"body" not in wire.body


class TestFields:
    @pytest.mark.parametrize(
        "value",
        ["", "-1", "+5", "5 ", " 5", "1_0", "7, 7", "0x5", "\u0665", "\xb2", "5\r\n", "9" * 19],
    )
    def test_a_content_length_is_a_number(self, value: str):
        with pytest.raises(ValueError, match="one number"):
            writer().start_response("200 OK", with_length(value))

    @pytest.mark.parametrize("other", ["5", "6"])
    def test_there_is_only_one(self, other: str):
        with pytest.raises(ValueError, match="one number"):
            writer().start_response("200 OK", [*with_length(5), ("content-length", other)])

    def test_it_stands_there_once(self):
        wire, _ = call(simple([b"12345"], headers=[("CONTENT-LENGTH", "005")]))
        assert wire.fields("content-length") == ["5"]
        assert wire.body == b"12345"

    def test_date_and_server_of_the_application_win(self):
        for headers in itertools.permutations([("Date", "today"), ("server", "mine")]):
            wire, _ = call(simple([], headers=list(headers)))
            assert wire.fields("Date") == ["today"]
            assert wire.fields("Server") == ["mine"]
        wire, _ = call(simple([], headers=[("Server", "mine")]))
        assert wire.fields("Date") == ["Sun, 06 Nov 1994 08:49:37 GMT"]
        wire, _ = call(simple([], headers=[("DATE", "today")]))
        assert wire.fields("Server") == ["hop"]
        assert wire.fields("Date") == ["today"]

    @pytest.mark.parametrize(
        "name", ["Keep-Alive", "TE", "Transfer-Encoding", "Upgrade", "Proxy-Connection"]
    )
    def test_fields_of_the_connection_are_dropped(self, name: str):
        wire, response = call(simple([b"x"], headers=[(name, "chunked")]))
        assert wire.fields(name) == []
        assert wire.body == b"x"
        assert response.keep_alive

    def test_the_connection_can_be_asked_to_close(self):
        wire, response = call(simple([b"x"], headers=[("connection", "Keep-Alive, CLOSE")]))
        assert wire.fields("Connection") == ["close"]
        assert not response.keep_alive
        wire, response = call(simple([b"x"], headers=[("Connection", "keep-alive")]))
        assert wire.fields("Connection") == []
        assert response.keep_alive

    def test_nothing_private_or_long_is_remembered(self):
        hop.adaptor._field_lines.clear()
        long = ("X-Long", "x" * 300)
        private = [("Set-Cookie", "a=1"), ("Location", "/"), ("ETag", "1")]
        call(simple([b"x"], headers=[*private, ("Last-Modified", "x"), ("X-A", "1"), long]))
        assert list(hop.adaptor._field_lines) == [("X-A", "1")]
        wire, _ = call(simple([b"x"], headers=[("X-A", "1"), long]))
        assert wire.fields("X-A") == ["1"]
        assert wire.fields("X-Long") == ["x" * 300]

    def test_an_adversary_cannot_make_the_memory_grow(self):
        def fill(count: int) -> None:
            for number in range(count):
                response = writer()
                response.start_response(f"200 {number}", [("X-Request", str(number))])

        fill(2000)
        tracemalloc.start()
        try:
            fill(2000)
            before = tracemalloc.get_traced_memory()[0]
            fill(6000)
            assert tracemalloc.get_traced_memory()[0] - before < 100_000
        finally:
            tracemalloc.stop()
        assert 0 < len(hop.adaptor._field_lines) <= 512
        assert 0 < len(hop.adaptor._status_lines) <= 512

    @pytest.mark.parametrize("name", ["Content-Length", "content-length"])
    def test_a_length_is_remembered_with_its_number(self, name):
        hop.adaptor._field_lines.clear()
        for _ in range(2):  # the second time from the memory
            wire, _ = call(simple([b"x"], headers=[(name, "1"), ("X-C", "1")]))
            assert wire.fields("Content-Length") == ["1"]
            assert hop.adaptor._field_lines[name, "1"] == (b"Content-Length: 1\r\n", 1)
            with pytest.raises(ValueError, match="one number, not two"):
                writer().start_response("200 OK", [(name, "1"), (name, "1")])
            wire, _ = call(simple([b"x"], status="204 No Content", headers=[(name, "1")]))
            assert wire.fields("Content-Length") == []

    def test_what_repeats_is_checked_once(self):
        hop.adaptor._field_lines.clear()
        call(simple([], headers=[("X-B", "1")]))
        line = hop.adaptor._field_lines["X-B", "1"]
        call(simple([], headers=[("X-B", "1")]))
        assert hop.adaptor._field_lines["X-B", "1"] is line


class TestFraming:
    def test_the_table_has_every_case(self):
        assert set(FRAMING) == set(itertools.product([True, False], repeat=3))
        for (bodiless, known, http11), framing in FRAMING.items():
            expected = (
                Framing.NONE if bodiless
                else Framing.LENGTH if known
                else Framing.CHUNKED if http11
                else Framing.CLOSE
            )  # fmt: skip
            assert framing is expected

    def test_head_gets_the_length_that_get_would_have(self):
        wire, response = call(simple([b"12345"]), HEAD)
        assert wire.fields("Content-Length") == ["5"]
        assert wire.body == b""
        assert response.keep_alive
        assert response.size == 0

    def test_head_with_nothing_says_nothing(self):
        wire, response = call(simple([]), HEAD)
        assert wire.fields("Content-Length") == []
        assert response.keep_alive
        assert wire.fields("Transfer-Encoding") == []

    @pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
    @pytest.mark.parametrize("result", [[], [b"no"], lambda: iter([b"n", b"o"])])
    def test_some_statuses_have_no_body(self, status: str, result: Any):
        wire, response = call(simple(result, status))
        assert wire.body == b""
        assert response.keep_alive
        assert wire.fields("Content-Length") == wire.fields("Transfer-Encoding") == []

    def test_a_304_may_say_how_long_it_would_have_been(self):
        assert call(simple([], "304 Not", with_length(9)))[0].fields("Content-Length") == ["9"]
        assert call(simple([], "204 No", with_length(9)))[0].fields("Content-Length") == []

    def test_101_is_the_last_word_of_http(self):
        upgrade = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
        wire, response = call(simple([b"x"], "101 Switching Protocols", upgrade))
        assert wire.fields("Connection") == ["upgrade"]
        assert wire.fields("Upgrade") == ["websocket"]
        assert wire.body == b""
        assert not response.keep_alive
        assert wire.fields("Content-Length") == []

    def test_426_says_what_would_be_welcome(self):
        wire, response = call(simple([b"x"], "426 Upgrade Required", [("Upgrade", "websocket")]))
        assert wire.fields("Upgrade") == ["websocket"]
        assert wire.fields("Connection") == ["upgrade"]
        assert (wire.body, response.keep_alive) == (b"x", True)

    def test_http_1_0_is_told_when_the_connection_stays(self):
        wire, response = call(simple([b"x"]), OLD_KEPT)
        assert wire.fields("Connection") == ["keep-alive"]
        assert response.keep_alive
        wire, response = call(simple([b"x"]), OLD)
        assert wire.fields("Connection") == ["close"]
        assert not response.keep_alive

    def test_http_1_0_without_a_length_closes(self):
        wire, response = call(simple(lambda: iter([b"a", b"b"])), OLD_KEPT)
        assert wire.fields("Connection") == ["close"]
        assert not response.keep_alive
        assert wire.body == b"ab"
        assert wire.fields("Transfer-Encoding") == []


class TestBody:
    def test_a_small_list_is_one_write(self):
        wire, response = call(simple([b"one", b"", b"two"]))
        assert len(wire.writes) == 1
        assert wire.body == b"onetwo"
        assert response.size == 6
        assert response.sent
        assert response.keep_alive

    def test_so_is_a_tuple(self):
        wire, _ = call(simple((b"one",)))
        assert len(wire.writes) == 1
        assert wire.fields("Content-Length") == ["3"]

    def test_a_large_body_is_not_copied(self):
        body = b"x" * (JOIN_LIMIT + 1)
        assert call(simple([body]))[0].writes[1] is body
        assert call(simple([body], headers=with_length(len(body))))[0].writes[1] is body
        known = with_length(len(body))
        assert call(simple(lambda: iter([body]), headers=known))[0].writes[1] is body
        assert call(simple(lambda: iter([body])))[0].writes[1] is body
        assert len(call(simple([body[1:]]))[0].writes) == 1

    def test_a_piece_of_known_length_is_not_copied_either(self):
        piece = b"second"
        wire, _ = call(simple(lambda: iter([b"first", piece]), headers=with_length(11)))
        assert wire.writes[1] is piece

    def test_each_piece_leaves_at_once(self):
        wire = Wire()
        seen: list[int] = []

        def pieces() -> Iterator[bytes]:
            for piece in (b"a", b"", b"bc"):
                yield piece
                seen.append(len(wire.writes))

        call(simple(pieces), wire=wire)
        assert seen == [1, 1, 2]
        assert wire.body == b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"

    def test_the_size_of_a_chunk_is_hexadecimal(self):
        assert call(simple(lambda: iter([b"x" * 26])))[0].body.startswith(b"1a\r\nxxx")

    def test_empty_pieces_send_nothing(self):
        wire, response = call(simple(lambda: iter([b"", b""])))
        assert wire.fields("Content-Length") == ["0"]
        assert wire.body == b""
        assert len(wire.writes) == 1
        assert response.keep_alive

    def test_start_response_may_come_with_the_first_piece(self):
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
            yield b""
            start_response("200 OK", PLAIN)
            yield b"late"

        assert call(app)[0].body == b"4\r\nlate\r\n0\r\n\r\n"

    def test_write_comes_before_the_iterable(self):
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
            write = start_response("200 OK", PLAIN)
            write(b"")
            write(b"one")
            write(b"")
            return [b"two"]

        wire, response = call(app)
        assert wire.body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        assert response.size == 6

    @pytest.mark.parametrize("body", [["text"], "text", lambda: iter(["text"]), b"bytes", None, 5])
    def test_a_body_that_is_not_made_of_bytes_is_a_500(self, body: Any):
        wire, response = call(simple(body))
        assert wire.head.startswith(b"HTTP/1.1 500")
        assert wire.body == b"Internal Server Error\n"
        assert response.keep_alive

    def test_it_says_what_it_got(self):
        response = writer()
        with pytest.raises(TypeError, match="not str"):
            response.start_response("200 OK", [])("text")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "result", [[b"123", b"456"], lambda: iter([b"123", b"456"]), lambda: iter([b"123456"])]
    )
    def test_a_body_that_is_too_long_is_cut(self, result: Any):
        wire, response = call(simple(result, headers=with_length(4)))
        assert wire.body == b"1234"
        assert response.size == 4
        assert response.keep_alive

    @pytest.mark.parametrize("result", [[b"123"], lambda: iter([b"123"]), [], lambda: iter([])])
    def test_a_body_that_is_too_short_closes(self, result: Any):
        wire, response = call(simple(result, headers=with_length(4)))
        assert wire.body in (b"", b"123")
        assert not response.keep_alive
        assert wire.fields("Content-Length") == ["4"]

    def test_a_body_in_pieces_of_just_its_length(self):
        wire, response = call(simple(lambda: iter([b"12", b"34"]), headers=with_length(4)))
        assert wire.body == b"1234"
        assert response.keep_alive

    @pytest.mark.parametrize("request_", [HEAD, GET])
    def test_a_stream_without_an_end_is_left(self, request_: bytes):
        taken = iter(range(10_000))  # without an end, as far as this test goes
        endless = (b"x" for _ in taken)
        wire, _ = call(simple(lambda: endless, headers=with_length(3)), request_)
        assert wire.body == (b"" if request_ is HEAD else b"xxx")
        assert next(taken) < 6

    def test_code_behind_the_last_piece_runs(self):
        done: list[int] = []

        def pieces() -> Iterator[bytes]:
            yield b"123"
            done.append(1)

        call(simple(pieces, headers=with_length(3)))
        assert done == [1]

    def test_write_beyond_the_length_sends_nothing(self):
        wire = Wire()
        response = writer(wire=wire)
        write = response.start_response("200 OK", with_length(2))
        for piece in (b"12", b"34", b"56"):
            write(piece)
        response.send([])
        assert wire.body == b"12"
        assert response.size == 2
        assert response.keep_alive

    def test_a_server_that_stops_keeps_no_connection(self):
        wire = Wire()
        wire.draining = True
        _, response = call(simple([b"x"]), wire=wire)
        assert wire.fields("Connection") == ["close"]
        assert not response.keep_alive

    def test_a_slow_client_holds_a_generator_and_no_list(self):
        piece = b"x" * (MAX_UNSENT // 2)
        wire, _ = call(simple(lambda: iter([piece] * 4)), wire=Wire(room=0))
        waits = [entry for entry in wire.log if entry != "assist"]
        assert [entry[0] for entry in waits] == ["wait", "wait"]
        assert waits[0][1] > MAX_UNSENT
        wire, _ = call(simple([piece] * 4), wire=Wire(room=0))
        assert wire.log == []

    def test_a_piece_does_not_wait_for_the_next_one(self):
        wire = Wire()
        wire.backlog = []  # answers before it are held back
        write = writer(wire=wire).start_response("200 OK", [])
        write(b"one")
        write(b"two")
        assert wire.flushes == 2

    def test_exactly_the_high_water_mark_does_not_wait(self):
        wire = Wire()
        response = writer(wire=wire)
        write = response.start_response("200 OK", with_length(2 * MAX_UNSENT))
        write(b"x")
        wire.room = 0
        write(b"x" * MAX_UNSENT)
        assert wire.log == ["assist"]  # the thread goes on, and somebody else sends meanwhile
        write(b"x")
        assert wire.log == ["assist", ("wait", MAX_UNSENT + 1)]

    def test_a_client_that_left_is_nobodys_mistake(self):
        class Broken(Wire):
            def write(self, data: bytes) -> None:
                raise ClientDisconnected("gone")

        with pytest.raises(ClientDisconnected):
            call(simple([b"x"]), wire=Broken())


class TestTrailers:
    def app(self, trailers: Any, result: Any = None, headers: Any = None) -> App:
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            start_response("200 OK", headers or PLAIN)
            environ["hop.response"].trailers = trailers
            return iter([b"ab"]) if result is None else result

        return app

    def test_stand_behind_the_last_chunk(self):
        wire, _ = call(self.app([("X-Sum", "1"), ("X-Sum", "2")]))
        assert wire.body == b"2\r\nab\r\n0\r\nX-Sum: 1\r\nX-Sum: 2\r\n\r\n"

    def test_make_a_list_chunked(self):
        wire, _ = call(self.app([("X-Sum", "1")], [b"ab"]))
        assert wire.body == b"2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n"

    @pytest.mark.parametrize("result", [[], [b""]])
    def test_follow_an_empty_body_too(self, result: list[bytes]):
        assert call(self.app([("X-Sum", "1")], result))[0].body == b"0\r\nX-Sum: 1\r\n\r\n"

    def test_need_chunks(self):
        for request in (OLD_KEPT, HEAD):
            assert b"X-Sum" not in call(self.app([("X-Sum", "1")]), request)[0].sent
        wire, _ = call(self.app([("X-Sum", "1")], headers=with_length(2)))
        assert wire.body == b"ab"

    @pytest.mark.parametrize(
        "field", [("Content-Length", "2"), ("Transfer-Encoding", "x"), ("Connection", "close"),
                  ("X", "a\r\n"), ("X Y", "a"), ("X",)]
    )  # fmt: skip
    def test_a_bad_one_cuts_the_answer(self, field: Any):
        wire, response = call(self.app([field]))
        assert wire.body == b"2\r\nab\r\n"
        assert not response.keep_alive


class TestFiles:
    @pytest.fixture
    def path(self, tmp_path: Any) -> str:
        path = tmp_path / "file"
        path.write_bytes(b"0123456789")
        return str(path)

    def app(self, file: Any, headers: Any = None) -> App:
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            start_response("200 OK", headers or PLAIN)
            return environ["wsgi.file_wrapper"](file)

        return app

    @pytest.mark.parametrize("buffering", [0, -1])
    def test_a_plain_file_is_sent_from_where_it_stands(self, path: str, buffering: int):
        with open(path, "rb", buffering) as file:
            file.seek(4)
            wire, response = call(self.app(file))
            assert file.closed
        assert wire.log == [("file", 4, 6)]
        assert wire.body == b"456789"
        assert wire.fields("Content-Length") == ["6"]
        assert response.keep_alive
        assert response.size == 6

    def test_a_part_that_was_read_is_not_sent_again(self, path: str):
        with open(path, "rb") as file:
            assert file.read(3) == b"012"
            assert call(self.app(file))[0].body == b"3456789"

    def test_a_declared_length_cuts_it(self, path: str):
        with open(path, "rb") as file:
            wire, response = call(self.app(file, with_length(3)))
        assert wire.body == b"012"
        assert response.keep_alive
        assert response.size == 3

    def test_a_file_that_is_too_short_closes(self, path: str):
        with open(path, "rb") as file:
            wire, response = call(self.app(file, with_length(11)))
        assert wire.body == b"0123456789"
        assert not response.keep_alive

    def test_head_touches_no_file(self, path: str):
        with open(path, "rb") as file:
            wire, response = call(self.app(file), HEAD)
        assert wire.fields("Content-Length") == ["10"]
        assert wire.body == b""
        assert wire.log == []
        assert response.keep_alive
        assert response.size == 0

    def test_behind_write_it_is_read_in_pieces(self, path: str):
        with open(path, "rb") as file:

            def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
                start_response("200 OK", with_length(13))(b"...")
                return FileWrapper(file, 4)

            wire, _ = call(app)
        assert wire.body == b"...0123456789"
        assert wire.log == []
        assert len(wire.writes) == 4

    def test_only_plain_files_have_an_extent(self, path: str, tmp_path: Any):
        packed = str(tmp_path / "packed")
        with gzip.open(packed, "wb") as file:
            file.write(b"0123456789")
        with gzip.open(packed) as inner:
            assert FileWrapper(inner).extent() is None
            assert FileWrapper(io.BufferedReader(inner)).extent() is None  # type: ignore[arg-type]
        with open(path) as text, open(path, "r+b") as both:
            assert FileWrapper(text).extent() is None
            assert FileWrapper(both).extent() is None
        assert FileWrapper(io.BytesIO(b"x")).extent() is None
        closed = open(path, "rb")  # noqa: SIM115
        closed.close()
        assert FileWrapper(closed).extent() is None

    def test_a_pipe_has_none(self):
        reader, end = os.pipe()
        os.write(end, b"from a pipe")
        os.close(end)
        with open(reader, "rb") as file:
            assert FileWrapper(file).extent() is None
            assert call(self.app(file))[0].body == b"b\r\nfrom a pipe\r\n0\r\n\r\n"

    def test_a_device_has_none(self):
        with open("/dev/null", "rb", 0) as file:
            assert FileWrapper(file).extent() is None
            assert call(self.app(file))[0].fields("Content-Length") == ["0"]

    def test_an_empty_file_is_an_empty_body(self, tmp_path: Any):
        (tmp_path / "empty").touch()
        with open(tmp_path / "empty", "rb") as file:
            wire, response = call(self.app(file))
        assert wire.fields("Content-Length") == ["0"]
        assert response.keep_alive
        assert wire.log == []

    @pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="there is no /proc")
    def test_a_file_that_hides_its_size_is_read(self):
        with open("/proc/self/status", "rb") as file:
            wire, _ = call(self.app(file))
        assert b"Name:" in wire.body
        assert wire.log == []

    def test_a_wrapper_closes_if_the_file_can(self):
        class NoClose:
            def read(self, size: int) -> bytes:
                return b""

        assert not hasattr(FileWrapper(NoClose()), "close")
        file = io.BytesIO(b"0123456789")
        assert list(FileWrapper(file, 4)) == [b"0123", b"4567", b"89"]
        FileWrapper(file).close()
        assert file.closed

    def test_a_subclass_goes_its_own_way(self, path: str):
        class Shouting(FileWrapper):
            def __next__(self) -> bytes:
                return super().__next__().replace(b"0", b"!")

        with open(path, "rb") as file:
            wire, _ = call(simple(lambda: Shouting(file)))
        assert b"!123456789" in wire.body
        assert wire.log == []


class TestFailure:
    def failing(self, pieces: list[bytes], headers: Any = None) -> App:
        def result() -> Iterator[bytes]:
            yield from pieces
            raise LookupError("wanted")

        return simple(result, headers=headers)

    def test_before_the_head_is_a_500(self):
        wire, response = call(self.failing([b""], [("X-Secret", "1"), ("Content-Length", "9")]))
        assert wire.head.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert b"Secret" not in wire.sent
        assert b"wanted" not in wire.sent
        assert wire.body == b"Internal Server Error\n"
        assert response.keep_alive
        assert response.status.startswith("500")

    def test_trailers_of_the_answer_that_failed_are_forgotten(self):
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            environ["hop.response"].trailers = [("X-Sum", "1")]
            raise LookupError("wanted")

        wire, _ = call(app)
        assert b"X-Sum" not in wire.sent
        assert wire.fields("Content-Length") == ["22"]

    def test_head_gets_the_head_of_a_500(self):
        wire, _ = call(self.failing([]), HEAD)
        assert wire.fields("Content-Length") == ["22"]
        assert wire.body == b""

    def test_in_the_middle_of_chunks_the_last_is_left_out(self):
        wire, response = call(self.failing([b"ab"]))
        assert wire.body == b"2\r\nab\r\n"
        assert not response.keep_alive
        assert wire.log == []

    def test_in_the_middle_of_a_length_the_rest_is_missing(self):
        wire, response = call(self.failing([b"ab"], with_length(9)))
        assert wire.body == b"ab"
        assert not response.keep_alive
        assert wire.log == []

    def test_where_the_end_is_the_end_it_becomes_a_reset(self):
        wire, response = call(self.failing([b"ab"]), OLD)
        assert wire.body == b"ab"
        assert not response.keep_alive
        assert wire.log == ["reset"]


    @pytest.mark.parametrize("request_", [GET, OLD])
    def test_a_complete_answer_is_not_cut_by_its_close(self, request_: bytes):
        class Result:
            def __iter__(self) -> Iterator[bytes]:
                return iter([b"ab"])

            def close(self) -> None:
                raise LookupError("wanted")

        wire, response = call(simple(Result), request_)
        assert wire.body in (b"2\r\nab\r\n0\r\n\r\n", b"ab")
        assert wire.log == []
        assert not response.keep_alive


# h11 is the oracle: it reads every answer of a matrix as a client.

RESULTS: dict[str, Any] = {
    "empty list": [],
    "list": [b"abc"],
    "list of three": [b"a", b"", b"bc"],
    "tuple": (b"abc",),
    "large": [b"x" * (JOIN_LIMIT + 5)],
    "generator": lambda: iter([b"a", b"bc"]),
    "holes": lambda: iter([b"", b"a", b"", b"bc", b""]),
    "nothing": lambda: iter([b""]),
    "large pieces": lambda: iter([b"x" * (JOIN_LIMIT + 1), b"y"]),
}
STATUSES = ["200 OK", "404 Not Found", "204 No Content", "304 Not Modified", "500 Oh"]


def read_as_client(method: bytes, sent: bytes, closed: bool) -> tuple[int, bytes, list[Any], Any]:
    """Status, body, trailers and final state, as h11 sees them."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(sent)
    if closed:
        client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage), "the client sees the end"
    assert client.trailing_data[0] == b"", "and nothing behind it"
    return response.status_code, body, list(event.headers), client.their_state


@pytest.mark.parametrize("result", RESULTS.values(), ids=RESULTS)
@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("declared", [False, True])
def test_h11_reads_the_same_body_and_the_same_end(result: Any, status: str, declared: bool):
    whole = b"".join(result() if callable(result) else result)
    for method, version, close in itertools.product(
        [b"GET", b"HEAD", b"POST"], [b"1.1", b"1.0"], [False, True]
    ):
        connection = b"close" if close else b"keep-alive"
        request = b"%b / HTTP/%b\r\nHost: x\r\nConnection: %b\r\n\r\n" % (
            method, version, connection,
        )  # fmt: skip
        headers = with_length(len(whole)) if declared else PLAIN
        wire, response = call(simple(result, status, headers), request)
        bodiless = method == b"HEAD" or status[:3] in ("204", "304")
        by_close = not (bodiless or declared) and callable(result) and whole and version == b"1.0"
        assert response.keep_alive is not (close or bool(by_close))
        code, body, _, state = read_as_client(method, wire.sent, closed=not response.keep_alive)
        assert code == int(status[:3])
        assert body == (b"" if bodiless else whole)
        assert (state is h11.DONE) is response.keep_alive


def test_h11_reads_trailers():
    wire, _ = call(TestTrailers().app([("X-Sum", "1")]))
    assert read_as_client(b"GET", wire.sent, False)[1:3] == (b"ab", [(b"x-sum", b"1")])


@given(
    pieces=st.lists(st.binary(max_size=40), max_size=6),
    declared=st.none() | st.integers(0, 120),
    head=st.booleans(),
    as_list=st.booleans(),
)
def test_what_was_announced_is_what_comes(
    pieces: list[bytes], declared: int | None, head: bool, as_list: bool
):
    whole = b"".join(pieces)
    headers = PLAIN if declared is None else with_length(declared)
    result = pieces if as_list else (lambda: iter(pieces))
    wire, response = call(simple(result, headers=headers), HEAD if head else GET)
    if head:
        assert wire.body == b""
        assert response.keep_alive
    elif declared is not None and declared > len(whole):
        assert wire.body == whole
        assert not response.keep_alive
    else:
        method = b"GET"
        _, body, _, state = read_as_client(method, wire.sent, False)
        assert body == whole[:declared]
        assert state is h11.DONE


@pytest.mark.parametrize("name", RESULTS)
def test_the_standard_library_answers_the_same(name: str):
    app = simple(RESULTS[name], headers=[*PLAIN, ("X-Field", "1")])
    output = io.BytesIO()
    environ = {"REQUEST_METHOD": "GET", "SERVER_PROTOCOL": "HTTP/1.0", "SERVER_SOFTWARE": "x"}
    handler = ServerHandler(io.BytesIO(), output, io.StringIO(), environ)
    handler.close = lambda: None  # type: ignore[method-assign]
    handler.run(app)  # type: ignore[arg-type]
    theirs_head, _, theirs = output.getvalue().partition(b"\r\n\r\n")
    wire, _ = call(app, OLD)
    assert wire.body == theirs
    assert wire.head.split(b"\r\n")[0][9:] == theirs_head.split(b"\r\n")[0][9:] == b"200 OK"
    for line in (b"Content-Type: text/plain", b"X-Field: 1"):
        assert line in wire.head
        assert line in theirs_head


@pytest.mark.parametrize("request_", [GET, HEAD, OLD, OLD_KEPT])
@pytest.mark.parametrize("pieces", [[b"abc"], [b"", b"a", b"bc"]])
def test_the_validator_has_no_objection(request_: bytes, pieces: list[bytes]):
    closed: list[int] = []

    class Result:
        def __iter__(self) -> Iterator[bytes]:
            yield from pieces

        def close(self) -> None:
            closed.append(1)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        body = environ["wsgi.input"]
        assert (body.read(1), body.readline(), body.readlines(), list(body)) == (b"", b"", [], [])
        environ["wsgi.errors"].flush()
        start_response("200 OK", PLAIN)
        return Result()

    wire, _ = call(validator(app), request_)  # type: ignore[arg-type]
    assert wire.head.startswith(b"HTTP/1.1 200")
    assert closed == [1]


def test_the_validator_sees_a_list_as_well():
    wire, _ = call(validator(simple([b"abc"])))  # type: ignore[arg-type]
    parsed = http.client.parse_headers(io.BytesIO(wire.head.partition(b"\r\n")[2] + b"\r\n"))
    assert parsed["Content-Type"] == "text/plain"


def test_tempfiles_are_sent_too():
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"12345")
        file.flush()
        with open(file.name, "rb") as plain:
            assert call(TestFiles().app(plain))[0].log == [("file", 0, 5)]


def test_a_response_leaves_no_cycle_behind():
    import gc
    import weakref

    class Body(io.BytesIO):
        pass

    head = parse_head(GET)
    assert head is not None
    gc.disable()
    try:
        body = Body()
        response = ResponseWriter(Wire(), head, COMMON, None)
        environ = build_environ(BASE, head, body, response)
        response.send(simple([b"x"])(environ, response.start_response))
        alive = weakref.ref(body)
        del body, environ, response, head
        assert alive() is None, "the request went without the collector's help"
    finally:
        gc.enable()


class Heir:
    """Somebody who takes the connection behind a response, or instead of one."""

    def __init__(self, silent: bool) -> None:
        self.silent = silent
        self.failures = 0

    def failed(self) -> "Heir | None":
        self.failures += 1
        return self if self.silent else None

    def succeed(self, whole: bool) -> None:
        raise NotImplementedError


def leaving(heir: Heir, result: Any = (), status: str = "101 Switching Protocols") -> App:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        environ["hop.response"].pass_to(heir)
        return simple(result, status)(environ, start_response)

    return app


class TestSuccessor:
    def test_behind_101_nothing_frames_what_is_sent(self):
        wire, response = call(leaving(Heir(False), [b"first"]))
        assert wire.head.startswith(b"HTTP/1.1 101 ")
        assert wire.fields("Connection") == ["upgrade"]
        assert wire.fields("Content-Length") == wire.fields("Transfer-Encoding") == []
        assert wire.body == b"first"
        assert response.successor
        assert not response.keep_alive

    @pytest.mark.parametrize("result", [[b"a", b"b"], lambda: iter([b"a", b"b"])])
    def test_behind_200_the_end_of_the_connection_ends_it(self, result: Any):
        wire, response = call(leaving(Heir(False), result, "200 OK"))
        assert wire.fields("Connection") == ["close"]
        assert wire.fields("Content-Length") == wire.fields("Transfer-Encoding") == []
        assert wire.body == b"ab"
        assert response.successor is not None

    def test_a_file_is_sent_in_pieces(self):
        wire, _ = call(leaving(Heir(False), lambda: FileWrapper(io.BytesIO(b"page")), "200 OK"))
        assert wire.body == b"page"
        assert wire.log == []

    @pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
    def test_nobody_follows_on_an_answer_without_body(self, status: str):
        heir = Heir(False)
        wire, response = call(leaving(heir, [b"page"], status))
        assert (wire.body, response.successor, heir.failures) == (b"", None, 1)

    def test_nor_on_one_to_head(self):
        heir = Heir(False)
        wire, response = call(leaving(heir, [], "200 OK"), HEAD)
        assert (wire.body, response.successor, heir.failures) == (b"", None, 1)
        assert wire.fields("Connection") == ["close"]

    def test_a_failure_before_the_head_is_an_ordinary_500(self):
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            environ["hop.response"].pass_to(heir)
            raise LookupError

        heir = Heir(False)
        wire, response = call(app)
        assert wire.head.startswith(b"HTTP/1.1 500 ")
        assert wire.fields("Content-Length") == ["22"]
        assert (response.successor, heir.failures) == (None, 1)

    def test_of_a_silent_one_nothing_is_sent(self):
        file = io.BytesIO(b"x")
        for result in ([b"page"], lambda: iter([b"page"]), (), lambda: FileWrapper(file)):
            wire, response = call(leaving(Heir(True), result, "200 OK"))
            assert wire.sent == b""
            assert response.successor
            assert not response.keep_alive
            assert response.status == "101 Switching Protocols"

    def test_a_status_given_before_stays(self):
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            start_response("418 Teapot", [])
            environ["hop.response"].pass_to(Heir(True))
            return []

        wire, response = call(app)
        assert wire.sent == b""
        assert response.status == "418 Teapot"

    def test_a_silent_one_outlives_a_failure(self):
        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            environ["hop.response"].pass_to(heir)
            raise LookupError

        heir = Heir(True)
        wire, response = call(app)
        assert wire.sent == b""
        assert wire.log == []
        assert response.successor is heir

    def test_what_cannot_be_meant_is_an_error(self):
        response = writer()
        response.pass_to(Heir(True))
        write = response.start_response("200 OK", [])
        write(b"")
        with pytest.raises(RuntimeError, match="write to its socket"):
            write(b"page")
        with pytest.raises(RuntimeError, match="taken over already"):
            response.pass_to(Heir(False))
        response = writer()
        response.start_response("200 OK", [])(b"page")
        with pytest.raises(RuntimeError, match="too late"):
            response.pass_to(Heir(True))
        assert response.successor is None
