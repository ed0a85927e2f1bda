"""Clients that mean it: floods, bombs, drips. Memory stays bounded, the work linear."""

import tracemalloc
import zlib

import pytest

from hop.websocket import Reader
from tests.websocket_corpus import client_frame
from tests.websocket_fakes import Visit, closing, text

READ = 1 << 16  # bytes, what one read of the server gives


def peak(work):
    """The most memory that the work needs on top of what there was, and what it returns."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    result = work()
    top = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return top, result


def folded(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(
        b"\0\0\xff\xff"
    )


def test_empty_fragments_without_end():
    """They cost time, and no memory: a message of a hundred thousand frames is still empty."""
    flood = client_frame(0x00) * 10_000
    reader = Reader()
    assert list(reader.feed(client_frame(0x01))) == []

    def work():
        return sum(len(list(reader.feed(flood))) for _ in range(10))

    top, events = peak(work)
    assert events == 0
    assert top < 4 * len(flood)
    assert list(reader.feed(client_frame(0x80, b"at last"))) == ["at last"]


def test_a_message_in_single_bytes_weighs_what_it_weighs():
    reader = Reader(limit=100_000)
    list(reader.feed(client_frame(0x01, "ü".encode())))
    flood = client_frame(0x00, "ü".encode()) * 1_000

    def work():
        return [event for _ in range(40) for event in reader.feed(flood)]

    top, events = peak(work)
    assert events == []
    assert top < 10 * len(flood) + 4 * 80_002
    assert list(reader.feed(client_frame(0x80))) == ["ü" * 40_001]


def test_a_flood_of_pings_is_answered_in_few_writes():
    visit = Visit()
    flood = client_frame(0x89, b"?") * (READ // 7)
    for _ in range(5):
        visit.hears(flood)
    assert visit.channel.writes == 5
    assert len(visit.channel.sent) == 5 * (READ // 7) * 3


def test_a_flood_of_pings_by_one_who_does_not_read():
    visit = Visit(room=0, max_unsent=100_000)
    flood = client_frame(0x89, bytes(125)) * 500
    for _ in range(10):
        visit.hears(flood)
    assert visit.told[0][0] == 1013
    assert visit.channel.pending < 200_000


def test_an_echo_for_one_who_does_not_read():
    visit = Visit(lambda ws, message: ws.send(message), room=0, max_unsent=1 << 20)
    for _ in range(1000):
        visit.hears(client_frame(0x82, bytes(10_000)))
    assert visit.told == [(1013, "the client does not read")]
    assert visit.channel.pending < (1 << 20) + 20_000


@pytest.mark.parametrize("size", [1 << 20, 1 << 24])
def test_a_bomb(size):
    bomb = client_frame(0xC2, folded(bytes(size)))
    reader = Reader(1 << 18, True)
    top, events = peak(lambda: list(reader.feed(bomb)))
    assert [event.code for event in events] == [1009]
    assert top < (1 << 20) + 4 * len(bomb)


def test_a_bomb_in_small_pieces():
    bomb = client_frame(0xC2, folded(bytes(1 << 24)))
    reader = Reader(1 << 18, True)

    def work():
        for start in range(0, len(bomb), 100):
            if events := list(reader.feed(bomb[start : start + 100])):
                return start, events
        raise AssertionError("it was swallowed whole")

    top, (start, (event,)) = peak(work)
    assert event.code == 1009
    assert start < 2000
    assert top < 1 << 21


def test_bombs_that_fit_come_one_by_one():
    bombs = client_frame(0xC2, folded(bytes(1 << 20))) * 30
    reader = Reader(1 << 20, True)
    top, count = peak(lambda: sum(1 for _ in reader.feed(bombs)))
    assert count == 30
    assert top < 6 << 20


def test_a_compressed_stream_that_has_ended_collects_nothing():
    reader = Reader(1 << 20, True)
    list(reader.feed(client_frame(0x42, b"\xf3H\xcd\xc9\xc9\x07\0")))
    events = []
    for _ in range(100):
        events += reader.feed(client_frame(0x00, bytes(1000)))
        if events:
            break
    assert [event.code for event in events] == [1007]


def test_a_frame_that_drips():
    payload = bytes(100_000)
    frame = client_frame(0x82, payload)
    reader, seen = Reader(), []
    for start in range(0, len(frame), 7):
        seen += reader.feed(frame[start : start + 7])
    assert seen == [payload]


def test_a_frame_that_is_announced_and_never_comes_holds_nothing():
    reader = Reader()
    top, events = peak(lambda: list(reader.feed(client_frame(0x82, length=1 << 24)[:14])))
    assert events == []
    assert top < 10_000


def test_no_byte_of_a_read_is_looked_at_more_than_twice(monkeypatch):
    """Plain messages and fragments in turn, so that the two ways of reading alternate."""
    fed, original = [], Reader._carefully

    def spy(self, data, every):
        fed.append(len(data))
        return original(self, data, every)

    monkeypatch.setattr(Reader, "_carefully", spy)
    pattern = text("a") + client_frame(0x01, b"b") + client_frame(0x80, b"c")
    stream = pattern * (3 * READ // len(pattern))
    reader, events = Reader(), []
    for start in range(0, len(stream), READ):
        fed.clear()
        events += reader.feed(stream[start : start + READ])
        assert sum(fed) <= 2 * READ
        assert len(fed) <= 2
    assert events == ["a", "bc"] * (len(stream) // len(pattern))


def test_the_others_go_on():
    """One client after the other breaks the rules; a chat between two others notices nothing."""
    ann, bob = Visit(), Visit()
    for wrong in (client_frame(0x83), client_frame(0x81, b"\xff"), b"\x81\x05Hello",
                  client_frame(0x88, b"\x00"), closing(1000), b"GET / HTTP/1.1\r\n"):
        assert Visit().hears(wrong, closing(1002)).channel.ended == "close"
        ann.ws.send("still here")
        bob.hears(text("me too"))
    assert [payload for _, payload in ann.frames()] == ["still here"] * 6
    assert bob.messages == ["me too"] * 6
