"""The corpus of frames through the reader, and through two libraries that know nothing of hop."""

import pytest
from websockets.extensions.permessage_deflate import PerMessageDeflate as WebsocketsDeflate
from websockets.frames import Frame as WebsocketsFrame
from websockets.protocol import Protocol, Side, State

from hop.websocket import Close, Ping, Pong, Reader, Violation
from tests.websocket_corpus import Case, load
from tests.websocket_oracle import by_wsproto

CASES = load()


def ours(case: Case, pieces: list[bytes]):
    """Events before a violation, and its code or None."""
    reader, events = Reader(case.limit, case.deflate), []
    for piece in pieces:
        for event in reader.feed(piece):
            if isinstance(event, Violation):
                return events, event.code
            events.append(event)
            if isinstance(event, Close):
                return events, None
    return events, None


def with_wsproto(case: Case, pieces: list[bytes]):
    """The same by wsproto."""
    return by_wsproto(pieces, case.deflate)


def with_websockets(case: Case, pieces: list[bytes]):
    """The same by websockets."""
    protocol = Protocol(Side.SERVER, state=State.OPEN, max_size=case.limit)
    if case.deflate:
        protocol.extensions = [WebsocketsDeflate(True, True, 15, 15)]
    for piece in pieces:
        protocol.receive_data(piece)
    events, parts, kind = [], [], None
    for frame in protocol.events_received():
        assert isinstance(frame, WebsocketsFrame)
        if frame.opcode == 8:
            close = protocol.close_rcvd
            events.append(Close(int(close.code), close.reason))
        elif frame.opcode > 8:
            events.append((Ping if frame.opcode == 9 else Pong)(bytes(frame.data)))
        else:
            kind = frame.opcode or kind
            parts.append(bytes(frame.data))
            if frame.fin:
                whole = b"".join(parts)
                try:
                    events.append(whole.decode() if kind == 1 else whole)
                except UnicodeDecodeError:  # its connections decode, its protocol does not
                    return events, 1007
                parts.clear()
    failed = protocol.parser_exc is not None and protocol.close_sent is not None
    code = int(protocol.close_sent.code) if failed else None
    return events, None if events and isinstance(events[-1], Close) else code


def ways(raw: bytes):
    """Whole, byte by byte, and cut in two at a few places."""
    yield [raw]
    if len(raw) < 4096:
        yield [raw[place : place + 1] for place in range(len(raw))]
    for cut in {1, 2, 3, 5, 6, 7, 10, len(raw) // 2, len(raw) - 1}:
        if 0 < cut < len(raw):
            yield [raw[:cut], raw[cut:]]


def test_the_corpus_is_large_and_every_case_has_a_name_of_its_own():
    assert len(CASES) >= 110
    assert len({str(case) for case in CASES}) == len(CASES)
    assert len({(case.raw, case.deflate, case.limit) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case):
    for pieces in ways(case.raw):
        assert ours(case, pieces) == (list(case.sees), case.code)


def comparable():
    """What each library can be asked: wsproto has no limit."""
    for case in CASES:
        yield pytest.param(case, with_websockets, id=f"websockets-{case}")
        if case.limit == 1 << 24 and case.code != 1009:
            yield pytest.param(case, with_wsproto, id=f"wsproto-{case}")


@pytest.mark.parametrize(("case", "oracle"), list(comparable()))
def test_the_oracles_agree_or_the_corpus_says_where_not(case: Case, oracle):
    name = oracle.__name__.removeprefix("with_")
    events, code = oracle(case, [case.raw])
    if name in case.others:
        assert (code or 0) == case.others[name] != (case.code or 0)
    else:
        assert (events, code) == (list(case.sees), case.code)
