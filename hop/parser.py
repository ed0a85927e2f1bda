# Tangled from notebooks/04_parser.ipynb. Edit the notebook.
"""Parser.

From bytes to a request: heads, chunked bodies, and what bad input gets.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote

from hop.errors import ProtocolError

__all__ = ["DEFAULT_LIMITS", "ChunkedDecoder", "Limits", "RequestHead", "parse_head"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of everything a client may send, in bytes unless it says otherwise."""

    line: int = 8192  # the request line (414), or one field line (431)
    head: int = 65536  # the whole head with its blank line (431)
    fields: int = 100  # field lines in a head, or in the trailers; a count (431)
    body: int | None = 1 << 30  # the decoded body (413); None: no limit
    extensions: int = 4096  # chunk extensions beyond the data that they come with (400)
    trailers: int = 8192  # the trailer section of a chunked body (431)


DEFAULT_LIMITS = Limits()


def _bad(reason: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> ProtocolError:
    return ProtocolError(status, reason)


@dataclass(slots=True, init=False)
class RequestHead:
    """One request head: what the first line said, and what follows for the body and the connection.

    `path` is percent-decoded into a native string of PEP 3333 (each character is one byte);
    `target` is as the client sent it. `variables` holds the CGI names of the fields
    (`HTTP_*`, `CONTENT_TYPE`, `CONTENT_LENGTH`), ready for `environ.update`. The body begins
    at offset `end` of the data that was parsed.
    """

    method: str
    target: str
    path: str
    query: str
    protocol: str
    variables: dict[str, str]
    content_length: int | None
    chunked: bool
    keep_alive: bool
    expect_continue: bool
    end: int


_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_AUTHORITY = r"(?:\[[0-9A-Fa-f:.]+\]|(?:[\w\-.~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)"

_is_token = re.compile(_TOKEN).fullmatch
_origin_form = re.compile(
    rf"(?!CONNECT )({_TOKEN}) ((/[!\"$->@-~]*+)(?:\?([!\"$-~]*+))?) (HTTP/1\.[01])()"
).fullmatch
_request_line = re.compile(rf"({_TOKEN}) ([!\"$-~]+) (HTTP/[0-9]\.[0-9])").fullmatch
_absolute_form = re.compile(r"https?://([^/?]+)(/[^?]*)?(?:\?(.*))?", re.IGNORECASE).fullmatch
_is_host = re.compile(rf"{_AUTHORITY}(?::[0-9]{{0,5}})?", re.ASCII).fullmatch
_host_port = re.compile(rf"{_AUTHORITY}:([0-9]{{1,5}})", re.ASCII).fullmatch


def _unusual_request_line(line: str) -> tuple[str, ...]:
    """Return method, target, path, query, protocol and authority of any request line.

    The authority is "" unless the target is in absolute form (RFC 9112, section 3.2).
    """
    if usual := _origin_form(line):
        return usual.groups("")
    parts = _request_line(line)
    if parts is None:
        raise _bad("malformed request line")
    method, target, protocol = parts.groups()
    if protocol[5] != "1":
        raise _bad("HTTP/1.1 is spoken here", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    if protocol[7] > "1":  # a later minor version is answered as the latest known one
        return _unusual_request_line(line[:-1] + "1")
    if method == "CONNECT":
        port = _host_port(target)
        if port is None or not 0 < int(port[1]) < 65536:
            raise _bad("CONNECT needs host:port")
        raise _bad("this server is no proxy", HTTPStatus.NOT_IMPLEMENTED)
    if target == "*" and method == "OPTIONS":
        return method, target, target, "", protocol, ""
    absolute = _absolute_form(target)
    if absolute is None or not _is_host(absolute[1]) or absolute[1].startswith(":"):
        raise _bad("malformed request target")
    authority, path, query = absolute.groups("")
    return method, target, path or "/", query, protocol, authority


# fmt: off
# Lines of these fields repeat from request to request and are no secret: they may be remembered.
_REPEATING = {
    "CONTENT_TYPE", "HTTP_ACCEPT", "HTTP_ACCEPT_CHARSET", "HTTP_ACCEPT_ENCODING",
    "HTTP_ACCEPT_LANGUAGE", "HTTP_CACHE_CONTROL", "HTTP_CONNECTION", "HTTP_DNT", "HTTP_HOST",
    "HTTP_ORIGIN", "HTTP_PRAGMA", "HTTP_PRIORITY", "HTTP_SEC_CH_UA", "HTTP_SEC_CH_UA_MOBILE",
    "HTTP_SEC_CH_UA_PLATFORM", "HTTP_SEC_FETCH_DEST", "HTTP_SEC_FETCH_MODE",
    "HTTP_SEC_FETCH_SITE", "HTTP_SEC_FETCH_USER", "HTTP_SEC_GPC", "HTTP_TE",
    "HTTP_TRANSFER_ENCODING", "HTTP_UPGRADE", "HTTP_UPGRADE_INSECURE_REQUESTS",
    "HTTP_USER_AGENT", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PORT",
    "HTTP_X_FORWARDED_PROTO",
}


# fmt: on


class _NameMemo(dict[str, tuple[str, bool]]):
    """A bounded cache: a field name as sent -> (CGI variable, whether its lines repeat).

    The variable is "" when the field is dropped: an underscore would pass for a hyphen.
    """

    __slots__ = ()

    def __missing__(self, name: str) -> tuple[str, bool]:
        if not _is_token(name):
            raise _bad("malformed field name")
        variable = name.upper().replace("-", "_")
        if "_" in name:
            variable = ""
        elif variable not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            variable = "HTTP_" + variable
        if len(self) >= 1024:
            self.clear()
        if len(name) <= 64:
            self[name] = variable, variable in _REPEATING
        return variable, variable in _REPEATING


_names = _NameMemo()

_control = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]").search


class _LineMemo(dict[str, tuple[str, str]]):
    """A bounded cache: a raw field line -> (CGI variable, value), both validated.

    Once it is full it takes nothing in, until many lines have come in vain: then it begins anew.
    """

    __slots__ = ("in_vain",)

    def __init__(self) -> None:
        super().__init__()
        self.in_vain = 0

    def __missing__(self, line: str) -> tuple[str, str]:
        name, colon, value = line.partition(":")
        variable, repeats = _names[name]
        value = value.strip(" \t")
        if not colon or (not value.isprintable() and _control(value)):
            raise _bad("malformed field line")
        if repeats:
            if variable == "HTTP_HOST" and not _is_host(value):
                raise _bad("malformed Host")
            if len(self) < 1024:
                if len(line) <= 256:
                    self[line] = variable, value
            elif self.in_vain < 16384:
                self.in_vain += 1
            else:
                self.in_vain = 0
                self.clear()
        return variable, value


_lines = _LineMemo()
_field = _lines.__getitem__


def _merge(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Join fields that repeat (RFC 9110, section 5.3), and leave out the dropped ones."""
    values: dict[str, list[str]] = {}
    for variable, value in pairs:
        values.setdefault(variable, []).append(value)
    values.pop("", None)
    if len(values.get("HTTP_HOST", ())) > 1:
        raise _bad("repeated Host")
    return {k: ("; " if k == "HTTP_COOKIE" else ", ").join(v) for k, v in values.items()}


def _framing(variables: dict[str, str], modern: bool, limits: Limits) -> tuple[int | None, bool]:
    """Decide how the body is delimited: (content length, chunked) (RFC 9112, section 6.3)."""
    length = variables.get("CONTENT_LENGTH")
    coding = variables.get("HTTP_TRANSFER_ENCODING")
    if coding is None and length is not None:
        if not (length.isascii() and length.isdigit()):
            raise _bad("malformed Content-Length")
        if len(length) > 18 or (limits.body is not None and int(length) > limits.body):
            raise _bad("body too large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        return int(length), False
    if length is not None:
        raise _bad("Content-Length with Transfer-Encoding")
    if not modern:
        raise _bad("Transfer-Encoding in HTTP/1.0")
    codings = [name.strip(" \t") for name in (coding or "").lower().split(",")]
    if codings[-1] != "chunked" or codings.count("chunked") > 1:
        raise _bad("chunked must come last, and once")
    if len(codings) > 1:
        raise _bad("unknown transfer coding", HTTPStatus.NOT_IMPLEMENTED)
    return None, True


def _keeps_alive(connection: str, modern: bool) -> bool:
    """Whether the connection persists (RFC 9112, section 9.3); `close` always wins."""
    if connection == "keep-alive":
        return True
    options = [option.strip(" \t") for option in connection.split(",")]
    return "close" not in options and (modern or "keep-alive" in options)


def _expects_continue(expect: str) -> bool:
    """Whether the client waits for 100 (Continue); nothing else can be expected here."""
    if any(item.strip(" \t") != "100-continue" for item in expect.lower().split(",")):
        raise _bad("unknown expectation", HTTPStatus.EXPECTATION_FAILED)
    return True


_garbage = re.compile(rb"(?<!\r)\n|\r[^\n]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]").search


def _check_partial(data: bytes | bytearray, start: int, limits: Limits, searched: int) -> None:
    """Refuse a head that is not complete but already wrong, looking only at what is new."""
    if data.startswith(b"\r\n", start):
        start += 2
    size = len(data) - start
    line_end = data.find(b"\n", start, start + limits.line + 2)
    if line_end < 0 and size > limits.line + 1:
        raise _bad("request line too long", HTTPStatus.REQUEST_URI_TOO_LONG)
    if size > limits.head:
        raise _bad("header fields too large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    if _garbage(data, max(start, searched - 1)):
        raise _bad("control character in the head")
    if line_end >= max(start, searched):
        _unusual_request_line(data[start : line_end - 1].decode("latin-1"))


def _check_sizes(line: str, fields: list[str], size: int, limits: Limits) -> None:
    """Refuse a complete head that is too large in one way or another."""
    if len(line) > limits.line:
        raise _bad("request line too long", HTTPStatus.REQUEST_URI_TOO_LONG)
    longest = max(map(len, fields), default=0)
    if longest > limits.line or len(fields) > limits.fields or size > limits.head:
        raise _bad("header fields too large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)


def parse_head(
    data: bytes | bytearray, start: int = 0, limits: Limits = DEFAULT_LIMITS, searched: int = 0
) -> RequestHead | None:
    """Parse the request head that begins at offset `start` of `data`.

    None: its end has not arrived. Call again with more, and with the length that `data` had
    now as `searched`, so that the search does not begin anew. ProtocolError: no head that begins
    like this is accepted, whatever may follow.
    """
    end = data.find(b"\r\n\r\n", start if searched < start + 3 else searched - 3)
    if end < 0:
        _check_partial(data, start, limits, searched)
        return None
    lines = data[start:end].decode("latin-1").split("\r\n")
    line = lines.pop(0) or (lines.pop(0) if lines else "")  # one empty line may lead
    size = end + 4 - start
    if size > limits.line or size > limits.head or len(lines) > limits.fields:
        _check_sizes(line, lines, size, limits)
    usual = _origin_form(line)
    parts = usual.groups("") if usual else _unusual_request_line(line)
    head = RequestHead()
    head.method, head.target, path, head.query, protocol, authority = parts
    variables = dict(map(_field, lines))
    if len(variables) < len(lines) or "" in variables:
        variables = _merge(map(_field, lines))
    modern = protocol == "HTTP/1.1"
    if modern and "HTTP_HOST" not in variables:
        raise _bad("missing Host")
    if authority:
        variables["HTTP_HOST"] = authority
    head.path = unquote(path, "latin-1") if "%" in path else path
    head.protocol, head.variables = protocol, variables
    head.content_length, head.chunked, head.keep_alive = None, False, modern
    if "CONTENT_LENGTH" in variables or "HTTP_TRANSFER_ENCODING" in variables:
        head.content_length, head.chunked = _framing(variables, modern, limits)
    if "HTTP_CONNECTION" in variables:
        head.keep_alive = _keeps_alive(variables["HTTP_CONNECTION"].lower(), modern)
    expects = modern and "HTTP_EXPECT" in variables and _expects_continue(variables["HTTP_EXPECT"])
    head.expect_continue, head.end = expects, end + 4
    return head


class ChunkedDecoder:
    """Decodes a chunked body as it arrives (RFC 9112, section 7.1), in linear time.

    When `done`, `trailers` holds the trailer fields as pairs of name and value, and `unused` the
    bytes behind the body. A body whose bytes end before `done` is truncated. `state` is one of
    "size", "data", "data end", "trailers", "done".
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.state = "size"
        self.trailers: list[tuple[str, str]] = []
        self.unused = b""
        self._limits = limits
        self._line = bytearray()  # as much of a line as has arrived
        self._room = limits.extensions + 18  # how long that line may become
        self._left = 0  # bytes of the current chunk that have not arrived
        self._total = 0  # bytes of all chunks announced so far
        self._excess = 0  # bytes of extensions that no data has paid for

    @property
    def done(self) -> bool:
        """Whether the last byte of the body has been seen."""
        return self.state == "done"

    def feed(self, data: bytes | bytearray) -> bytes:
        """Return the body bytes that are in `data`; a ProtocolError ends the body for good."""
        pieces: list[bytes | bytearray] = []
        position = 0
        while position < len(data) and self.state != "done":
            if self.state == "data":
                piece = data[position : position + self._left]
                pieces.append(piece)
                self._left -= len(piece)
                position += len(piece)
                if not self._left:
                    self.state = "data end"
            else:
                stop = data.find(b"\n", position) + 1 or len(data)
                self._line += data[position:stop]
                position = stop
                self._look_at_line()
        self.unused += data[position:]
        return b"".join(pieces)

    def _look_at_line(self) -> None:
        """Act on the line if it is whole, refuse it if it is too long."""
        if self.state == "data end" and not b"\r\n".startswith(self._line):
            raise _bad("chunk data too long")
        if len(self._line) > self._room:
            if self.state == "trailers":
                raise _bad("trailers too large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            raise _bad("chunk size line too long")
        if not self._line.endswith(b"\n"):
            return
        line = bytes(self._line)
        self._line.clear()
        if self.state == "data end":
            self.state, self._room = "size", self._limits.extensions + 18
        elif self.state == "size":
            self._on_size(line)
        else:
            self._on_trailer(line)

    def _on_size(self, line: bytes) -> None:
        match = _chunk_line(line)
        if match is None:
            raise _bad("malformed chunk size")
        size = int(match[1], 16)
        self._excess = max(0, self._excess + len(match[2] or b"") - size)
        if self._excess > self._limits.extensions:
            raise _bad("chunk extensions too large")
        self._total += size
        if self._limits.body is not None and self._total > self._limits.body:
            raise _bad("body too large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        self._left = size
        if size:
            self.state = "data"
        else:
            self.state, self._room = "trailers", self._limits.trailers

    def _on_trailer(self, line: bytes) -> None:
        if line == b"\r\n":
            self.state = "done"
            return
        self._room -= len(line)
        if not line.endswith(b"\r\n"):
            raise _bad("malformed trailer field")
        if len(self.trailers) >= self._limits.fields:
            raise _bad("too many trailer fields", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        text = line[:-2].decode("latin-1")
        variable, value = _field(text)
        if variable in ("CONTENT_LENGTH", "HTTP_HOST", "HTTP_TRANSFER_ENCODING"):
            raise _bad("a trailer cannot say how a message is framed or routed")
        if variable:
            self.trailers.append((text.partition(":")[0], value))


_chunk_line = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\t -~\x80-\xff]*)?\r\n").fullmatch
