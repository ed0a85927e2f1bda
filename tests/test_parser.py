"""hop.parser: the corpus whole, byte by byte and cut in two; limits; memos; linear time."""

import dataclasses
from http import HTTPStatus
from typing import Any

import pytest

from hop import parser
from hop.errors import ProtocolError
from hop.parser import ChunkedDecoder, Limits, RequestHead, parse_head
from tests.corpus import Case, load
from tests.drive import Outcome, Watched, play, splits

CASES = load()
HOST = b"Host: a\r\n"


def judge(case: Case, outcome: Outcome, after: bytes = b"") -> None:
    assert outcome.status == case.status
    assert outcome.complete == (case.sees is not None)
    if case.sees is None:
        return
    seen = outcome.as_seen()
    wanted = {"body": seen["body"], "rest": "", **case.sees}
    wanted["rest"] += after.decode("latin-1")
    for name in wanted.pop("absent", []):
        assert name not in seen["variables"]
    assert wanted.pop("variables", {}).items() <= seen["variables"].items()
    assert {key: seen[key] for key in wanted} == wanted


@pytest.mark.parametrize("case", CASES, ids=str)
class TestCorpus:
    def test_whole(self, case: Case) -> None:
        judge(case, play([case.raw]))

    def test_byte_by_byte(self, case: Case) -> None:
        judge(case, play(case.raw[n : n + 1] for n in range(len(case.raw))))

    def test_cut_in_two(self, case: Case) -> None:
        for two in splits(case.raw):
            judge(case, play(two))

    def test_a_second_time(self, case: Case) -> None:
        """What the memos hold by now changes nothing."""
        judge(case, play([case.raw]))
        judge(case, play([case.raw]))


@pytest.mark.parametrize("case", [case for case in CASES if not case.waits], ids=str)
def test_followed_by_more(case: Case) -> None:
    judge(case, play([case.raw + b"\x00GET"]), after=b"\x00GET")


def test_the_corpus_is_large_and_its_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 160
    assert len({case.raw for case in CASES}) == len(CASES)


def refused(raw: bytes, limits: Limits = parser.DEFAULT_LIMITS) -> int:
    with pytest.raises(ProtocolError) as caught:
        parse_head(raw, 0, limits)
    return caught.value.status.value


def parsed(raw: bytes | bytearray, start: int = 0, **limits: Any) -> RequestHead:
    head = parse_head(raw, start, Limits(**limits))
    assert head is not None
    return head


class TestHead:
    def test_all_fields(self) -> None:
        raw = b"POST /a%20b?c HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nX-B: c\r\n\r\nabc"
        assert dataclasses.asdict(parsed(raw)) == {
            "method": "POST",
            "target": "/a%20b?c",
            "path": "/a b",
            "query": "c",
            "protocol": "HTTP/1.1",
            "variables": {"HTTP_HOST": "a", "CONTENT_LENGTH": "3", "HTTP_X_B": "c"},
            "content_length": 3,
            "chunked": False,
            "keep_alive": True,
            "expect_continue": False,
            "end": len(raw) - 3,
        }

    def test_starts_anywhere(self) -> None:
        first, second = (b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in (1, 2))
        for data in (first + second, bytearray(first + second)):
            assert parsed(data).end == len(first)
            head = parsed(data, len(first))
            assert (head.path, head.end) == ("/2", len(data))

    def test_the_bytes_before_start_are_not_its_business(self) -> None:
        assert parse_head(b"\n\x00\r\n\r\nGET", 6) is None
        with pytest.raises(ProtocolError):
            parse_head(b"body\r\n", 5)

    def test_variables_are_new_each_time(self) -> None:
        raw = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
        parsed(raw).variables["HTTP_HOST"] = "changed"
        assert parsed(raw).variables == {"HTTP_HOST": "a"}

    def test_the_error_knows_its_answer(self) -> None:
        with pytest.raises(ProtocolError) as caught:
            parse_head(b"GET / HTTP/1.1\r\n\r\n")
        assert caught.value.status is HTTPStatus.BAD_REQUEST
        assert caught.value.reason == "missing Host"


class TestLimits:
    LINE = b"GET / HTTP/1.1"

    def test_line(self) -> None:
        raw = self.LINE + b"\r\n" + HOST + b"\r\n"
        assert parsed(raw, line=14).path == "/"
        assert refused(raw, Limits(line=13)) == 414
        assert parse_head(self.LINE + b"\r", 0, Limits(line=14)) is None
        assert refused(self.LINE + b"\r", Limits(line=13)) == 414
        assert refused(b"\r\n" + self.LINE + b"\r", Limits(line=13)) == 414

    def test_leading_line_does_not_count(self) -> None:
        assert parse_head(b"\r\n" + self.LINE + b"\r", 0, Limits(line=14)) is None

    def test_field_line(self) -> None:
        raw = self.LINE + b"\r\nHost: abcdefghij\r\n\r\n"
        assert parsed(raw, line=16).path == "/"
        assert refused(raw, Limits(line=15)) == 431

    def test_head(self) -> None:
        raw = self.LINE + b"\r\n" + HOST + b"\r\n"
        assert parsed(raw, head=len(raw)).path == "/"
        assert refused(raw, Limits(head=len(raw) - 1)) == 431
        assert parse_head(raw[:-1], 0, Limits(head=len(raw) - 1)) is None
        assert refused(raw[:-1], Limits(head=len(raw) - 2)) == 431

    def test_head_of_nothing(self) -> None:
        assert refused(b"\r\n\r\n", Limits(head=1)) == 431

    def test_fields(self) -> None:
        raw = self.LINE + b"\r\n" + HOST + b"A: b\r\n\r\n"
        assert parsed(raw, fields=2).path == "/"
        assert refused(raw, Limits(fields=1)) == 431
        assert parsed(b"\r\n" + raw, fields=2).path == "/"

    @pytest.mark.parametrize(("body", "status"), [(5, None), (4, 413), (None, None)])
    def test_body(self, body: int | None, status: int | None) -> None:
        raw = b"POST / HTTP/1.1\r\n" + HOST + b"%s\r\n\r\n%s"
        length = raw % (b"Content-Length: 5", b"hello")
        chunked = raw % (b"Transfer-Encoding: chunked", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n")
        for request in (length, chunked):
            assert play([request], Limits(body=body)).status == status

    def test_no_limit_for_the_body_is_no_limit_for_digits(self) -> None:
        raw = b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: %s\r\n\r\n"
        assert parsed(raw % (b"9" * 18), body=None).content_length == 10**18 - 1
        assert refused(raw % (b"9" * 19), Limits(body=None)) == 413

    def test_trailers(self) -> None:
        body = b"0\r\nA: 12345\r\n\r\n"  # ten bytes of a field line, and two that end the section
        assert decoded(body, trailers=12) == b""
        with pytest.raises(ProtocolError, match="431"):
            decoded(body, trailers=11)
        with pytest.raises(ProtocolError, match="431"):
            decoded(body, trailers=9)
        assert decoded(body, fields=1) == b""
        with pytest.raises(ProtocolError, match="431"):
            decoded(body, fields=0)

    def test_extensions(self) -> None:
        assert decoded(b"1;abc\r\nx\r\n0;ab\r\n\r\n", extensions=6) == b"x"
        with pytest.raises(ProtocolError, match="400"):
            decoded(b"1;abc\r\nx\r\n0;abc\r\n\r\n", extensions=6)
        with pytest.raises(ProtocolError, match="400"):
            decoded(b"0;abc\r\n", extensions=3)
        with pytest.raises(ProtocolError, match="400"):
            decoded(b"0;" + b"a" * 30, extensions=10)


def decoded(data: bytes, **limits: Any) -> bytes:
    return ChunkedDecoder(Limits(**limits)).feed(data)


class TestDecoder:
    def test_states(self) -> None:
        decoder = ChunkedDecoder()
        states = []
        for piece in (b"2", b"\r\n", b"h", b"e", b"\r", b"\n", b"0\r\n", b"A: b\r\n", b"\r", b"\n"):
            states.append(decoder.state)
            decoder.feed(piece)
        assert states == [
            *("size", "size", "data", "data", "data end", "data end", "size", "trailers"),
            *("trailers", "trailers"),
        ]
        assert decoder.done
        assert decoder.trailers == [("A", "b")]

    def test_gives_what_it_has(self) -> None:
        decoder = ChunkedDecoder()
        assert decoder.feed(b"5\r\nth") == b"th"
        assert decoder.feed(bytearray(b"ere\r\n1\r\n!\r\n0\r\n\r\nnext")) == b"ere!"
        assert decoder.done
        assert decoder.unused == b"next"

    def test_bytes_behind_the_end_are_kept(self) -> None:
        decoder = ChunkedDecoder()
        assert decoder.feed(b"0\r\n\r\nne") == b""
        assert decoder.feed(b"xt") == b""
        assert decoder.unused == b"next"

    def test_empty_feed(self) -> None:
        decoder = ChunkedDecoder()
        assert decoder.feed(b"") == b""
        assert not decoder.done


class TestLinear:
    """No step costs more than the client has sent (counted, not timed)."""

    def test_a_dripping_head_is_not_searched_again(self) -> None:
        data = Watched(b"GET / HTTP/1.1\r\n")
        searched = 0
        while len(data) < 20_000:
            assert parse_head(data, 0, Limits(), searched) is None
            searched = len(data)
            data += b"X-A: b\r\n"
        calls = 20_000 // 8
        assert data.looked_at < len(data) + calls * (3 + len(b"GET / HTTP/1.1\r"))

    @pytest.mark.parametrize(
        "raw",
        [
            b"GET " + b"/" * 60_000,
            b"GET / HTTP/1.1\r\nHost: " + b" " * 60_000 + b"\x01\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: " + b"%41" * 20_000 + b"%\r\n\r\n",
            b"GET / HTTP/1.1\r\nConnection: " + b"," * 60_000 + b"\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nTransfer-Encoding: " + b"\t," * 30_000 + b"\r\nHost: a\r\n\r\n",
            b"GET http://" + b"a:" * 30_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A:\r\n" * 15_000 + b"\r\n",
        ],
        ids=["slashes", "blanks", "percent", "commas", "codings", "colons", "repeated"],
    )
    @pytest.mark.timeout(10)
    def test_nothing_makes_an_expression_backtrack(self, raw: bytes) -> None:
        """A quadratic step on 60,000 bytes would run into the time-out."""
        limits = Limits(line=65536, head=65536, fields=20_000)
        outcome = play([raw], limits)
        assert not outcome.complete or outcome.head is not None


@pytest.fixture
def empty_memos() -> None:
    parser._lines.clear()
    parser._names.clear()


@pytest.mark.usefixtures("empty_memos")
class TestMemos:
    def parse(self, *lines: bytes) -> RequestHead:
        return parsed(b"GET / HTTP/1.1\r\n" + HOST + b"".join(x + b"\r\n" for x in lines) + b"\r\n")

    def test_holds_what_repeats(self) -> None:
        self.parse(b"Accept:  text/html ", b"accept: a")
        assert parser._lines == {
            "Host: a": ("HTTP_HOST", "a"),
            "Accept:  text/html ": ("HTTP_ACCEPT", "text/html"),
            "accept: a": ("HTTP_ACCEPT", "a"),
        }

    @pytest.mark.parametrize(
        "name",
        [
            "Cookie",
            "Authorization",
            "Proxy-Authorization",
            "X-Api-Key",
            "Referer",
            "Content-Length",
        ],
    )
    def test_holds_no_secret(self, name: str) -> None:
        self.parse(name.encode() + b": 12345")
        assert list(parser._lines) == ["Host: a"]

    def test_holds_no_long_line_and_no_long_name(self) -> None:
        self.parse(b"Accept: " + b"a" * 248, b"A" * 64 + b": b")
        assert "Accept: " + "a" * 248 in parser._lines
        assert "A" * 64 in parser._names
        self.parse(b"Accept: " + b"a" * 249, b"A" * 65 + b": b")
        assert "Accept: " + "a" * 249 not in parser._lines
        assert "A" * 65 not in parser._names

    def test_holds_nothing_bad(self) -> None:
        for line in (b"Host : a", b"Accept: \x00", b"Host: a/b", b"Accept", b"[]: a"):
            raw = b"GET / HTTP/1.1\r\n" + line + b"\r\n\r\n"
            assert [refused(raw) for _ in range(2)] == [400, 400]
        assert parser._lines == {}

    def test_is_bounded(self) -> None:
        for n in range(3000):
            self.parse(b"Accept: %d" % n, b"X-%d: a" % n)
            assert len(parser._lines) <= 1025
            assert len(parser._names) <= 1025
        assert len(parser._lines) > 500
        assert self.parse(b"Accept: 2999").variables["HTTP_ACCEPT"] == "2999"

    def test_a_full_one_keeps_what_it_has_and_begins_anew_after_a_while(self) -> None:
        memo = parser._LineMemo()
        for n in range(1024 + 16384):
            assert memo[f"Accept: {n}"] == ("HTTP_ACCEPT", str(n))
        assert list(memo) == [f"Accept: {n}" for n in range(1024)]
        assert memo["Accept: last"] == ("HTTP_ACCEPT", "last")
        assert not memo
        assert memo["Accept: next"] == ("HTTP_ACCEPT", "next")
        assert list(memo) == ["Accept: next"]
        for n in range(1023 + 16384):
            memo[f"Accept: {n}"]
        assert len(memo) == 1024

    def test_a_hit_is_as_strict_as_a_miss(self) -> None:
        """Duplicates, and what depends on the version, are looked at each time."""
        for _ in range(2):
            assert refused(b"GET / HTTP/1.1\r\n" + HOST * 2 + b"\r\n") == 400
            coding = b"Transfer-Encoding: chunked\r\n"
            assert parsed(b"GET / HTTP/1.1\r\n" + HOST + coding + b"\r\n").chunked
            assert refused(b"GET / HTTP/1.0\r\n" + HOST + coding + b"\r\n") == 400
