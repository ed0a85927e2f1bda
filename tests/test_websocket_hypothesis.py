"""Streams that nobody thought of: cut anywhere, and read by libraries that know nothing of hop."""

from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.protocol import Protocol, Side, State
from wsproto.frame_protocol import FrameProtocol

from hop.websocket import (
    Close,
    Ping,
    Pong,
    Reader,
    Violation,
    accept_key,
    agree_deflate,
    encode,
    unmask,
)
from tests.websocket_corpus import client_frame
from tests.websocket_fakes import Visit
from tests.websocket_oracle import by_wsproto

LIMIT = 1000


@st.composite
def messages(draw):
    """A message in fragments, with control frames between them: (bytes, events)."""
    payload = draw(st.one_of(st.text(max_size=200), st.binary(max_size=200)))
    data = payload.encode() if isinstance(payload, str) else payload
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
    parts = [data[i:j] for i, j in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    wire, events = b"", []
    for number, part in enumerate(parts):
        opcode = 0 if number else 1 if isinstance(payload, str) else 2
        wire += client_frame(opcode | 0x80 * (number == len(parts) - 1), part)
        if number < len(parts) - 1 and draw(st.booleans()):
            body = draw(st.binary(max_size=125))
            kind = draw(st.sampled_from([Ping, Pong]))
            wire += client_frame(0x89 if kind is Ping else 0x8A, body)
            events.append(kind(body))
    return wire, [*events, payload]


@st.composite
def cut(draw, stream):
    """The stream in pieces."""
    places = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    return [stream[i:j] for i, j in zip([0, *places], [*places, len(stream)], strict=True)]


def read(pieces, limit=LIMIT, deflate=False):
    """All events, up to the one that is the last."""
    reader, events = Reader(limit, deflate), []
    for piece in pieces:
        for event in reader.feed(piece):
            events.append(event)
            if isinstance(event, Close | Violation):
                return events
    return events


@given(st.lists(messages(), max_size=5), st.data())
def test_wherever_a_stream_is_cut_the_events_are_the_same(parts, data):
    stream = b"".join(wire for wire, _ in parts)
    expected = [event for _, events in parts for event in events]
    assert read(data.draw(cut(stream)), limit=10_000) == expected


@st.composite
def frames(draw):
    """Frames of which most are wrong somewhere."""
    first = draw(st.one_of(st.sampled_from([0x81, 0x82, 0x01, 0x80, 0x00, 0x88, 0x89, 0x8A]),
                           st.integers(0, 255)))  # fmt: skip
    payload = draw(st.one_of(
        st.binary(max_size=130), st.text(max_size=40).map(str.encode),
        st.sampled_from([b"\x03\xe8", b"\x03\xe8\xff", b"\x03\xed", b"\xed\xa0\x80", b"\xe2\x82"]),
    ))  # fmt: skip
    form = draw(st.sampled_from([0, 0, 0, 0, 16, 64])) if len(payload) < 126 else 0
    return client_frame(first, payload, form=form, mask=draw(st.integers(0, 9)) > 0)


def without_reasons(events):
    return [Violation(e.code, "") if isinstance(e, Violation) else e for e in events]


@given(st.lists(frames(), max_size=6), st.data())
@settings(max_examples=300)
def test_right_or_wrong_wsproto_sees_the_same(parts, data):
    stream = b"".join(parts)
    events = without_reasons(read([stream], limit=1 << 24))
    expected, code = by_wsproto([stream])
    if code is not None:
        expected.append(Violation(code, ""))
    if events != expected:  # the one difference: a code that was registered later
        assert expected[-1] == Violation(1002, "")
        assert (expected[:-1], events[-1].code) == (events[:-1], 1014)
    assert without_reasons(read(data.draw(cut(stream)), limit=1 << 24)) == events


@given(st.binary(max_size=300), st.booleans(), st.data())
@settings(max_examples=300)
def test_any_bytes_are_events_and_a_cut_changes_nothing(stream, deflate, data):
    events = read([stream], deflate=deflate)
    assert all(len(event) <= LIMIT for event in events if isinstance(event, bytes))
    assert without_reasons(read(data.draw(cut(stream)), deflate=deflate)) == without_reasons(events)


@given(st.lists(st.one_of(st.text(), st.binary()), max_size=5), st.sampled_from([0, 9, 15]))
def test_both_libraries_read_what_we_write(payloads, bits):
    stream = b"".join(encode(payload) for payload in payloads)
    wsproto = FrameProtocol(client=True, extensions=[])
    wsproto.receive_bytes(stream)
    assert [frame.payload for frame in wsproto.received_frames()] == payloads
    websockets = Protocol(Side.CLIENT, state=State.OPEN)
    websockets.receive_data(stream)
    received = [(int(frame.opcode), bytes(frame.data)) for frame in websockets.events_received()]
    assert received == [(1, p.encode()) if isinstance(p, str) else (2, p) for p in payloads]
    for payload in payloads:  # and we read what we fold
        frame = encode(payload, bits)
        start = {126: 4, 127: 10}.get(frame[1], 2)
        assert read([client_frame(frame[0], frame[start:])], 1 << 24, True) == [payload]


@given(st.lists(messages(), max_size=4), st.data())
def test_an_echo_sends_back_all_messages_in_order(parts, data):
    visit = Visit(lambda ws, message: ws.send(message))
    visit.hears(*data.draw(cut(b"".join(wire for wire, _ in parts))))
    sent = [event for _, events in parts for event in events if isinstance(event, str | bytes)]
    pongs = [e.payload for _, events in parts for e in events if isinstance(e, Ping)]
    frames = visit.frames()
    assert [payload for name, payload in frames if name != "PONG"] == sent
    assert [payload for name, payload in frames if name == "PONG"] == pongs


@given(st.binary(max_size=1200), st.binary(min_size=4, max_size=4))
def test_a_mask_comes_off_as_it_was_put_on(data, key):
    assert unmask(unmask(data, key), key) == data


@given(st.text(max_size=200))
def test_an_offer_is_never_an_error(offer):
    assert agree_deflate(offer) in (0, *range(9, 16))
    assert len(accept_key(offer.encode("ascii", "replace").decode())) == 28
