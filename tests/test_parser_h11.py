"""hop.parser against h11, both ways: what one accepts, the other accepts and sees as well.

Where they are meant to differ, a row of DIFFERENCES says so, with the section of the RFC (or of
RFC 3875) that decides. A difference that no row explains fails, and so does a row without one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.corpus import Case, load
from tests.drive import Outcome, play

Seen = dict[str, Any]


def by_h11(raw: bytes) -> Seen | None:
    """What h11 makes of the bytes: None when it refuses, {} when it waits, or what it sees."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    seen: Seen = {}
    body = bytearray()
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                seen = described(event, connection)
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return {}
    except h11.RemoteProtocolError:
        return None
    seen["body"] = bytes(body)
    seen["trailers"] = [(k.decode(), v.decode("latin-1")) for k, v in event.headers]
    seen["trailers"] = [pair for pair in seen["trailers"] if "_" not in pair[0]]
    seen["rest"] = connection.trailing_data[0]
    # A proposal to upgrade hides what h11 thinks of keep-alive.
    persists = {h11.DONE: True, h11.MUST_CLOSE: False}.get(connection.their_state)
    seen["keep_alive"] = persists
    return seen


def described(request: h11.Request, connection: h11.Connection) -> Seen:
    variables: dict[str, list[str]] = {}
    for name, value in request.headers:
        if b"_" not in name:
            variable = "HTTP_" + name.decode().upper().replace("-", "_")
            variables.setdefault(variable, []).append(value.decode("latin-1"))
    for plain in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if values := variables.pop("HTTP_" + plain, None):
            variables[plain] = values
    return {
        "method": request.method.decode(),
        "target": request.target.decode(),
        "variables": {
            k: ("; " if k == "HTTP_COOKIE" else ", ").join(v) for k, v in variables.items()
        },
        "expect_continue": connection.they_are_waiting_for_100_continue,
    }


def by_hop(outcome: Outcome) -> Seen | None:
    if outcome.status is not None:
        return None
    if not outcome.complete or outcome.head is None:
        return {}
    head = outcome.head
    return {
        "method": head.method,
        "target": head.target,
        "variables": {
            k: v.lower() if k == "HTTP_TRANSFER_ENCODING" else v for k, v in head.variables.items()
        },
        "expect_continue": head.expect_continue,
        "body": outcome.body,
        "trailers": [(name.lower(), value) for name, value in outcome.trailers],
        "rest": outcome.rest,
        "keep_alive": head.keep_alive,
    }


@dataclass(frozen=True)
class Difference:
    """A deliberate difference: which bytes show it, and what each of the two does with them."""

    name: str
    rfc: str
    example: bytes
    pattern: str  # what must be found in the bytes
    reasons: str = ""  # hop refuses, and says this; "": hop accepts
    on: str = ""  # both accept, and this is seen differently

    def explains(self, raw: bytes, ours: Outcome, field: str = "") -> bool:
        if self.on != field or not re.fullmatch(self.reasons, ours.reason):
            return False
        return re.search(self.pattern.encode("latin-1"), raw, re.IGNORECASE | re.DOTALL) is not None


def get(fields: str = "", line: str = "GET / HTTP/1.1", host: str = "Host: a\r\n") -> bytes:
    return f"{line}\r\n{host}{fields}\r\n".encode("latin-1")


CHUNKED = "Transfer-Encoding: chunked\r\n"


def chunked(body: str) -> bytes:
    return get(CHUNKED, "POST / HTTP/1.1") + body.encode("latin-1")


FIRST = r"\A(\r\n)?"
DIFFERENCES = [
    # hop refuses, h11 accepts
    Difference("line-end-lf", "9112 2.2", b"GET / HTTP/1.1\nHost: a\n\n", r"(?<!\r)\n",
               "control character in the head|malformed (field|request|trailer).*"),
    Difference("other-major-version", "9112 2.3", get(line="GET / HTTP/2.0"),
               FIRST + r"\S+ \S+ HTTP/[02-9]\.", "HTTP/1.1 is spoken here"),
    Difference("later-minor-without-host", "9112 3.2", b"GET / HTTP/1.2\r\n\r\n",
               FIRST + r"\S+ \S+ HTTP/1\.[2-9]\r", "missing Host"),
    Difference("target-form", "9112 3.2", get(line="GET a/b HTTP/1.1"),
               FIRST + r"\S+ (?!/[^#]*? )", "malformed request target"),
    Difference("fragment", "9112 3.2", get(line="GET /a#b HTTP/1.1"),
               FIRST + r"\S+ \S*#", "malformed request line"),
    Difference("connect", "9110 9.3.6", get(line="CONNECT a:1 HTTP/1.1"),
               FIRST + "CONNECT ", "this server is no proxy|CONNECT needs host:port"),
    Difference("invalid-host", "9112 3.2", get(host="Host: a/b\r\n"),
               r"\nHost:", "malformed Host"),
    Difference("control-in-value", "9110 5.5", get("X: \x01\r\n"),
               r"[\x01-\x08\x0e-\x1f\x7f]",
               "malformed field line|control character in the head"),
    Difference("obs-fold", "9112 5.2", get("X: a\r\n b\r\n"),
               r"\r\n[ \t]", "malformed field (name|line)"),
    Difference("both-lengths", "9112 6.1", get(f"Content-Length: 0\r\n{CHUNKED}") + b"0\r\n\r\n",
               "Transfer-Encoding.*Content-Length|Content-Length.*Transfer-Encoding",
               "Content-Length with Transfer-Encoding"),
    Difference("coding-in-1.0", "9112 6.1", get(CHUNKED, "GET / HTTP/1.0") + b"0\r\n\r\n",
               r"HTTP/1\.0\r.*\nTransfer-Encoding", "Transfer-Encoding in HTTP/1.0"),
    Difference("length-list", "9112 6.3", get("Content-Length: 0, 0\r\n"),
               r"\nContent-Length:[^\r]*,", "malformed Content-Length"),
    Difference("length-repeated", "9112 6.3", get("Content-Length: 0\r\nContent-Length: 0\r\n"),
               r"\nContent-Length:.*\nContent-Length:", "malformed Content-Length"),
    Difference("length-over-limit", "9110 15.5.14", get("Content-Length: 9999999999\r\n"),
               r"\nContent-Length: *\d{10,}|\n[0-9a-f]{8,}\r", "body too large"),
    Difference("chunk-size-blanks", "9112 7.1", chunked("0 \r\n\r\n"),
               r"\n[0-9a-f]+[ \t]+\r", "malformed chunk size"),
    Difference("chunk-size-digits", "9112 7.1", chunked("0" * 20 + "\r\n\r\n"),
               r"\n[0-9a-f]{17,20}[;\r]", "malformed chunk size"),
    Difference("chunk-extension-control", "9112 7.1.1", chunked("0;\x00\r\n\r\n"),
               r"\n[0-9a-f]+;[^\n]*[\x00-\x08\x0b-\x1f\x7f](?!\n)", "malformed chunk size"),
    Difference("trailer-framing", "9110 6.5.1", chunked("0\r\nHost: b\r\n\r\n"),
               r"\n(Host|Content-Length|Transfer-Encoding):", "a trailer cannot .*"),
    Difference("expectation", "9110 10.1.1", get("Expect: payment\r\n"),
               r"\nExpect:", "unknown expectation"),
    Difference("many-fields", "9110 5.4", get("X: a\r\n" * 101), r"\A([^\n]*\n){102}",
               "header fields too large"),
    Difference("long-line", "9112 3", get(line="GET /" + "a" * 9000 + " HTTP/1.1"),
               r"(\A|\n)[^\n]{8194}", "request line too long|header fields too large"),
    Difference("large-head", "9110 5.4", get(f"X: {'a' * 1000}\r\n" * 70),
               r"\A.{65537}", "header fields too large"),
    Difference("extensions-add-up", "9112 7.1.1", chunked("1;" + "a" * 5000 + "\r\nx\r\n0\r\n\r\n"),
               r"\n[0-9a-f]+;.{4000}", "chunk (size line too long|extensions too large)"),
    Difference("trailers-limit", "9110 5.4", chunked("0\r\n" + "X: a\r\n" * 101 + "\r\n"),
               r"\n0+\r\n.{600}", "too many trailer fields|trailers too large"),
    # hop accepts, h11 refuses
    Difference("leading-crlf", "9112 2.2", b"\r\n" + get(), r"\A\r"),
    # hop waits for the end of the line, h11 refuses its first byte
    Difference("leading-blank", "9112 3", b" ", r"\A(\r\n)?[ \t]"),
    # both accept
    Difference("keep-alive-in-1.0", "9112 9.3", get("Connection: keep-alive\r\n", "GET / HTTP/1.0"),
               r"HTTP/1\.0\r.*keep-alive", on="keep_alive"),
    Difference("absolute-form-host", "9112 3.2.2", get(line="GET http://b/ HTTP/1.1"),
               FIRST + r"\S+ https?://", on="variables"),
]  # fmt: skip

# Endings with which h11 would have to accept what hop refuses while h11 still waits.
ENDINGS = (b"\r\n\r\n", b"\n\n", b"\r\n", b"\n", b"\r\n0\r\n\r\n", b"0\r\n\r\n")


def unexplained(raw: bytes) -> str:
    """Compare the two; return "" when they agree or a row explains it, otherwise what differs."""
    outcome = play([raw])
    ours, theirs = by_hop(outcome), by_h11(raw)

    def explained(field: str = "") -> bool:
        return any(row.explains(raw, outcome, field) for row in DIFFERENCES)

    if ours and theirs:
        if theirs["keep_alive"] is None:
            theirs["keep_alive"] = ours["keep_alive"]
        differ = [key for key in ours if ours[key] != theirs[key] and not explained(key)]
        return f"{differ}: hop {ours}, h11 {theirs}" if differ else ""
    if ours is None and theirs == {}:  # refused before the end: h11 must not have a good one
        good = outcome.status != 400 or any(by_h11(raw + end) for end in ENDINGS)
        return f"hop refuses early: {outcome}" if good and not explained() else ""
    if (ours is None) == (theirs is None) and bool(ours) == bool(theirs):
        return ""
    return "" if explained() else f"hop {ours or outcome}, h11 {theirs}"


@pytest.mark.parametrize("row", DIFFERENCES, ids=lambda row: row.name)
def test_each_row_shows_a_difference(row: Difference) -> None:
    outcome = play([row.example])
    ours, theirs = by_hop(outcome), by_h11(row.example)
    assert row.explains(row.example, outcome, row.on)
    if row.on:
        assert ours
        assert theirs
        assert ours[row.on] != theirs[row.on]
    elif row.reasons:
        assert ours is None
        assert theirs is not None
    else:
        assert ours is not None
        assert theirs is None


def test_an_unlisted_difference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in DIFFERENCES:
        rest = [other for other in DIFFERENCES if other is not row]
        monkeypatch.setattr("tests.test_parser_h11.DIFFERENCES", rest)
        assert unexplained(row.example), row.name


@pytest.mark.parametrize("case", load(), ids=str)
def test_corpus(case: Case) -> None:
    assert unexplained(case.raw) == ""


METHODS = st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "get", "X!"])
TARGETS = st.sampled_from(["/", "/a%20b?c=d", "/a/../b", "//x", "http://b/c", "http://b", "*", "a"])
VERSIONS = st.sampled_from(["HTTP/1.1"] * 8 + ["HTTP/1.0", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0"])
TOKENS = st.text("ab-_1.Z", min_size=1, max_size=5)
VALUES = st.text('ab ,;=\t\xe9"', max_size=8)
ODD_VALUES = st.text("ab ,;=\t\xe9\x7f\x01\x0b", max_size=8)
FREE = st.builds("{}:{}{}".format, TOKENS, st.sampled_from(["", " ", "\t "]), VALUES)
KNOWN = st.sampled_from(
    [
        *("Connection: close", "Connection: keep-alive", "Connection: a, Close", "Accept: */*"),
        *("Expect: 100-continue", "Upgrade: x", "Cookie: a=b", "Cookie: c", "Accept: text/html"),
        *("Content-Type: a/b", "Content_Length: 9", "X_Y: z"),
    ]
)
ODD = st.one_of(
    st.builds("X:{}".format, ODD_VALUES),
    st.sampled_from(["Content-Length: 0", "Host: b", CHUNKED[:-2], "X: a\r\n b", "X : a", "X"]),
)
FIELDS = st.one_of(FREE, FREE, FREE, KNOWN, KNOWN, KNOWN, KNOWN, ODD)


def chunk(data: str, extension: str, zeros: str) -> str:
    return f"{zeros}{len(data):x}{extension}\r\n{data}\r\n"


EXTENSIONS = st.sampled_from([""] * 8 + [";a", ";a=b", ';a="b c"', " ", ";\x00"])
CHUNK = st.builds(chunk, st.text("ab\r\n0", min_size=1, max_size=20), EXTENSIONS,
                  st.sampled_from(["", "", "0", "000"]))  # fmt: skip
BODIES = st.one_of(
    st.builds(lambda text: (f"Content-Length: {len(text)}\r\n", text), VALUES),
    st.builds(
        lambda chunks, extension, trailers: (
            "Transfer-Encoding: chunked\r\n",
            "".join(chunks) + f"0{extension}\r\n" + "".join(f"{t}\r\n" for t in trailers) + "\r\n",
        ),
        st.lists(CHUNK, max_size=3),
        EXTENSIONS,
        st.lists(FREE | FIELDS, max_size=2),
    ),
    st.just(("", "")),
)


@st.composite
def requests(draw: Callable[..., Any]) -> bytes:
    """A request that is nearly always valid."""
    line = f"{draw(METHODS)} {draw(TARGETS)} {draw(VERSIONS)}\r\n"
    framing, body = draw(BODIES)
    fields = [f"{text}\r\n" for text in draw(st.lists(FIELDS, max_size=3))]
    lines = draw(
        st.permutations([*fields, framing, draw(st.sampled_from(["Host: a\r\n"] * 9 + [""]))])
    )
    rest = draw(st.sampled_from(["", "", "GET /next", "\r\n"]))
    return (line + "".join(lines) + "\r\n" + body + rest).encode("latin-1")


@st.composite
def damaged(draw: Callable[..., Any]) -> bytes:
    """A request with one to three bytes inserted, replaced or removed."""
    raw = bytearray(draw(requests()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(raw)))
        byte = draw(st.sampled_from(b"\r\n \t:,;\x00\x7f\x80#/019afAZ_-+%[") | st.integers(0, 255))
        kind = draw(st.sampled_from(["insert", "replace", "remove", "double"]))
        new = {"insert": bytes([byte]), "replace": bytes([byte]), "remove": b""}
        raw[at : at + (kind != "insert")] = new.get(kind, bytes(raw[at : at + 1]) * 2)
    return bytes(raw)


STEADY = settings(derandomize=True, database=None, deadline=None, max_examples=1500)


@STEADY
@given(requests())
def test_valid(raw: bytes) -> None:
    assert unexplained(raw) == ""


@STEADY
@given(damaged())
def test_damaged(raw: bytes) -> None:
    assert unexplained(raw) == ""


@STEADY
@given(st.binary(max_size=60) | st.text("GET/ HTP1.\r\n:a\x00", max_size=60).map(str.encode))
def test_noise(raw: bytes) -> None:
    assert unexplained(raw) == ""
