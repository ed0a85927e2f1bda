"""A connection's worth of parsing without a connection: pieces in, one request or refusal out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hop.errors import ProtocolError
from hop.parser import DEFAULT_LIMITS, ChunkedDecoder, Limits, RequestHead, parse_head

__all__ = ["Outcome", "Watched", "play", "splits"]


@dataclass
class Outcome:
    """What became of the pieces: a refusal, a complete request, or neither when it must wait."""

    status: int | None = None
    reason: str = ""
    head: RequestHead | None = None
    body: bytes = b""
    rest: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    complete: bool = False

    def as_seen(self) -> dict[str, Any]:
        """The request in the words of the corpus."""
        head = self.head
        assert head is not None
        return {
            "method": head.method,
            "target": head.target,
            "path": head.path,
            "query": head.query,
            "protocol": head.protocol,
            "variables": head.variables,
            "keep_alive": head.keep_alive,
            "expect_continue": head.expect_continue,
            "body": self.body.decode("latin-1"),
            "trailers": [list(pair) for pair in self.trailers],
            "rest": self.rest.decode("latin-1"),
        }


def play(pieces: Iterable[bytes], limits: Limits = DEFAULT_LIMITS) -> Outcome:
    """Feed the pieces one after another, as a server does that reads them from a socket."""
    outcome = Outcome()
    try:
        _play(pieces, limits, outcome)
    except ProtocolError as error:
        return Outcome(status=error.status.value, reason=error.reason)
    return outcome


def _play(pieces: Iterable[bytes], limits: Limits, outcome: Outcome) -> None:
    data = bytearray()
    searched = 0
    decoder: ChunkedDecoder | None = None
    body = bytearray()
    for piece in pieces:
        if outcome.complete:
            outcome.rest += piece
            continue
        data += piece
        head = outcome.head
        if head is None:
            head = outcome.head = parse_head(data, 0, limits, searched)
            searched = len(data)
            if head is None:
                continue
            del data[: head.end]
            decoder = ChunkedDecoder(limits) if head.chunked else None
        if decoder is None:
            outcome.complete = len(data) >= (head.content_length or 0)
            body = data[: head.content_length or 0]
            outcome.rest = bytes(data[len(body) :])
        else:
            body += decoder.feed(data)
            data.clear()
            outcome.complete = decoder.done
            outcome.trailers, outcome.rest = decoder.trailers, decoder.unused
        outcome.body = bytes(body)


def splits(raw: bytes) -> Iterable[tuple[bytes, bytes]]:
    """Every way to cut `raw` in two; of a long one, the cuts near its ends and its lines."""
    cuts: Iterable[int] = range(len(raw) + 1)
    if len(raw) > 400:
        ends = [n for n in range(len(raw)) if raw[n : n + 1] in b"\r\n"][-20:]
        near = {n + k for n in [0, len(raw), *ends] for k in range(-20, 21)}
        cuts = sorted(n for n in near if 0 <= n <= len(raw))
    return ((raw[:cut], raw[cut:]) for cut in cuts)


class Watched(bytearray):
    """Counts the bytes that searches look at."""

    looked_at = 0

    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        end = len(self) if end is None else min(end, len(self))
        found = super().find(sub, start, end)
        self.looked_at += (end if found < 0 else found) - start
        return found
