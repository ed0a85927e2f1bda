"""hop.websocket without a socket: handshake, codec, closing, keep-alive, broadcast."""

import base64
import threading
import tracemalloc
import zlib

import pytest
from websockets.client import ClientProtocol
from websockets.http11 import Request, Response
from websockets.protocol import Side
from websockets.protocol import State as TheirState
from websockets.uri import parse_uri
from wsproto.frame_protocol import FrameProtocol, ParseFailed

from hop.websocket import (
    BINARY,
    FAREWELL,
    LINGER,
    PING,
    Close,
    Guard,
    Ping,
    Pong,
    Reader,
    State,
    Violation,
    WebSocket,
    accept,
    accept_key,
    agree_deflate,
    broadcast,
    encode,
    encode_close,
    encode_frame,
    parse_close,
    refusal,
    unmask,
)
from tests.websocket_corpus import client_frame
from tests.websocket_fakes import HANDSHAKE, FakeChannel, FakeHijacker, Visit, closing, text


def echo(ws, message):
    ws.send(message)


class TestHandshake:
    def test_the_key_of_the_rfc(self):
        assert accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

    @pytest.mark.parametrize(("fields", "status"), [
        ({"REQUEST_METHOD": "POST"}, "405"),
        ({"REQUEST_METHOD": "HEAD"}, "405"),
        ({"SERVER_PROTOCOL": "HTTP/1.0"}, "400"),
        ({"HTTP_CONNECTION": "keep-alive"}, "426"),
        ({"HTTP_CONNECTION": ""}, "426"),
        ({"HTTP_CONNECTION": "not-upgrade"}, "426"),
        ({"HTTP_UPGRADE": "h2c"}, "426"),
        ({"HTTP_UPGRADE": "websockets"}, "426"),
        ({"HTTP_SEC_WEBSOCKET_VERSION": "8"}, "426"),
        ({"HTTP_SEC_WEBSOCKET_VERSION": "13, 8"}, "426"),
        ({"HTTP_SEC_WEBSOCKET_KEY": ""}, "400"),
        ({"HTTP_SEC_WEBSOCKET_KEY": base64.b64encode(bytes(15)).decode()}, "400"),
        ({"HTTP_SEC_WEBSOCKET_KEY": base64.b64encode(bytes(17)).decode()}, "400"),
        ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ="}, "400"),
        ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==!"}, "400"),
        ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==, dGhlIHNhbXBsZSBub25jZQ=="}, "400"),
        ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25j\xe9Q=="}, "400"),
    ])  # fmt: skip
    def test_refusals(self, fields, status):
        assert refusal({**HANDSHAKE, **fields}).status.startswith(status)
        visit = Visit(fields=fields)
        assert visit.head[0].startswith(status)
        assert visit.channel.handler is None
        assert visit.ws is None
        assert visit.body[0].endswith(b".\n")

    @pytest.mark.parametrize("missing", [name for name in HANDSHAKE if name.startswith("HTTP_")])
    def test_nothing_may_be_missing(self, missing):
        assert refusal({name: HANDSHAKE[name] for name in HANDSHAKE if name != missing})

    def test_a_426_says_what_would_be_welcome(self):
        headers = Visit(fields={"HTTP_SEC_WEBSOCKET_VERSION": "8"}).head[1]
        assert (headers["Upgrade"], headers["Sec-WebSocket-Version"]) == ("websocket", "13")
        assert Visit(fields={"REQUEST_METHOD": "PUT"}).head[1]["Allow"] == "GET"

    def test_lists_and_cases_are_understood(self):
        fields = {"HTTP_CONNECTION": "keep-alive, Upgrade", "HTTP_UPGRADE": "foo, WebSocket"}
        assert refusal({**HANDSHAKE, **fields}) is None

    def test_the_answer_is_what_a_client_expects(self):
        visit = Visit(echo)
        assert visit.head == ("101 Switching Protocols", {
            "Upgrade": "websocket", "Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="})
        assert visit.body == []
        assert visit.hears(text("hi")).frames() == [("TEXT", "hi")]

    def test_origins(self):
        allowed = {"origins": ["https://example.org"]}
        fields = {"HTTP_ORIGIN": "https://example.org"}
        assert Visit(fields=fields, **allowed).ws is not None
        assert Visit(fields={"HTTP_ORIGIN": "https://evil.example"}).ws is not None
        for origin in ("https://evil.example", "http://example.org", "null", ""):
            assert Visit(fields={"HTTP_ORIGIN": origin}, **allowed).head[0].startswith("403")
        assert Visit(**allowed).head[0].startswith("403")
        assert Visit(origins=["https://example.org", None]).ws is not None

    def test_the_first_subprotocol_of_the_clients_that_we_speak(self):
        offered = {"HTTP_SEC_WEBSOCKET_PROTOCOL": "v3, v2,v1"}
        visit = Visit(fields=offered, subprotocols=["v1", "v2"])
        assert visit.head[1]["Sec-WebSocket-Protocol"] == visit.ws.subprotocol == "v2"
        for strange in (Visit(fields=offered, subprotocols=["v4"]), Visit(fields=offered),
                        Visit(subprotocols=["v1"])):
            assert "Sec-WebSocket-Protocol" not in strange.head[1]
            assert strange.ws.subprotocol is None

    @pytest.mark.parametrize("place", [{}, {"hop.hijacker": ""}])
    def test_another_server_gets_501(self, place):
        """So does an engine without a bridge, whose template holds the place of the key."""
        heads = []
        body = accept({**HANDSHAKE, **place}, lambda *head: heads.append(head), echo)
        assert heads[0][0].startswith("501")
        assert body

    def test_one_function_is_enough(self):
        channel = FakeChannel()
        environ = {**HANDSHAKE, "hop.hijacker": FakeHijacker(channel)}
        assert accept(environ, lambda *head: None, echo) == []
        channel.hears(text("a"), closing(1000))
        assert [name for name, _ in channel.frames()] == ["TEXT", "CLOSE"]

    def test_an_unknown_limit_is_a_mistake(self):
        with pytest.raises(TypeError):
            Visit(max_messages=1)

    def test_websockets_accepts_the_answer(self):
        client = ClientProtocol(parse_uri("ws://example.org/"), subprotocols=["v1"])
        request = client.connect()
        assert isinstance(request, Request)
        client.send_request(request)
        fields = {f"HTTP_{name.upper().replace('-', '_')}": value
                  for name, value in request.headers.raw_items()}
        visit = Visit(echo, fields=fields, subprotocols=["v1"])
        lines = [f"{name}: {value}" for name, value in visit.head[1].items()]
        head = "\r\n".join([f"HTTP/1.1 {visit.head[0]}", "Connection: upgrade", *lines, "", ""])
        client.receive_data(head.encode())
        (answer,) = client.events_received()
        assert isinstance(answer, Response)
        assert (client.state, client.side) == (TheirState.OPEN, Side.CLIENT)
        assert client.subprotocol == "v1"


class TestDeflateOffers:
    @pytest.mark.parametrize(("offers", "bits"), [
        ("permessage-deflate", 15),
        ("permessage-deflate; client_max_window_bits", 15),
        ("permessage-deflate; client_max_window_bits=8", 15),
        ("permessage-deflate ; client_max_window_bits = 10 ; server_max_window_bits = 9", 9),
        ('permessage-deflate; server_max_window_bits="12"', 12),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", 15),
        ("foo, permessage-deflate; server_max_window_bits=10, permessage-deflate", 10),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", 15),
        ("permessage-deflate; server_max_window_bits=8", 0),
        ("permessage-deflate; server_max_window_bits", 0),
        ("permessage-deflate; server_max_window_bits=16", 0),
        ("permessage-deflate; server_max_window_bits=+9", 0),
        ("permessage-deflate; client_max_window_bits=7", 0),
        ("permessage-deflate; client_max_window_bits=a", 0),
        ("permessage-deflate; server_max_window_bits=9; server_max_window_bits=9", 0),
        ("permessage-deflate; server_no_context_takeover=1", 0),
        ("permessage-deflate; level=9", 0),
        ("x-webkit-deflate-frame", 0),
        (",, ;", 0),
        ("", 0),
    ])  # fmt: skip
    def test_offer(self, offers, bits):
        assert agree_deflate(offers) == bits

    def test_only_if_the_application_wants_it(self):
        offered = {"HTTP_SEC_WEBSOCKET_EXTENSIONS": "permessage-deflate"}
        assert "Sec-WebSocket-Extensions" not in Visit(fields=offered).head[1]
        assert "Sec-WebSocket-Extensions" not in Visit(deflate=True).head[1]
        agreed = Visit(fields=offered, deflate=True).head[1]["Sec-WebSocket-Extensions"]
        terms = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        assert agreed == terms
        narrow = {"HTTP_SEC_WEBSOCKET_EXTENSIONS": "permessage-deflate; server_max_window_bits=9"}
        agreed = Visit(fields=narrow, deflate=True).head[1]["Sec-WebSocket-Extensions"]
        assert agreed == f"{terms}; server_max_window_bits=9"

    @pytest.mark.parametrize(("payload", "code"), [
        (b"\xff\xff\xff", 1007),  # no deflate
        (b"\xf3H\xcd\xc9\xc9\x07\0\0", None),  # a final block, and the empty one behind it
        (b"\xf3H\xcd\xc9\xc9\x07\0" + bytes(6), 1007),
        (zlib.compress(bytes(2001), wbits=-15), 1009),
    ])  # fmt: skip
    def test_what_a_client_may_fold(self, payload, code):
        (event,) = Reader(2000, True).feed(client_frame(0xC2, payload))
        assert (event.code == code) if code else (event == b"Hello")
        assert Guard(2000, True).offer() is False
        (event,) = Reader(2000, False).feed(client_frame(0xC2, payload))
        assert event.code == 1002

    def test_both_directions(self):
        offered = {"HTTP_SEC_WEBSOCKET_EXTENSIONS": "permessage-deflate; server_max_window_bits=9"}
        visit = Visit(echo, fields=offered, deflate=True)
        message = "".join(f"{number} " for number in range(1000))
        squeezed = zlib.compressobj(wbits=-15)
        payload = squeezed.compress(message.encode()) + squeezed.flush(zlib.Z_SYNC_FLUSH)
        visit.hears(client_frame(0xC1, payload[:-4]), text("short"))
        sent = bytes(visit.channel.sent)
        assert sent[0] == 0xC1
        assert sent.endswith(b"\x81\x05short")
        unfolded = zlib.decompressobj(-9).decompress(sent[4:-7] + b"\0\0\xff\xff")
        assert unfolded.decode() == message


class TestCodec:
    @pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 70000])
    def test_frames_are_wsprotos(self, size):
        theirs = FrameProtocol(client=False, extensions=[])
        assert encode(bytes(size)) == theirs.send_data(bytes(size))
        assert encode("ü" * size) == theirs.send_data("ü" * size)
        assert encode_frame(BINARY, bytes(size)) == theirs.send_data(bytes(size))

    def test_kinds_of_message(self):
        assert encode(bytearray(b"a")) == encode(memoryview(b"a")) == encode(b"a") == b"\x82\x01a"
        assert encode("a") == b"\x81\x01a"
        with pytest.raises(UnicodeEncodeError):
            encode("\ud800")
        with pytest.raises(TypeError):
            encode(None)

    def test_compression_begins_where_it_pays(self):
        assert encode("a" * 63, 15)[0] == 0x81
        assert encode("a" * 64, 15)[0] == 0xC1
        assert encode(b"a" * 64, 15)[0] == 0xC2

    def test_unmask_at_every_size(self):
        for size in [*range(70), *range(2040, 2060), 4096]:
            data = bytes(number % 251 for number in range(size))
            expected = bytes(byte ^ b"\x01\x80\xff\x00"[i % 4] for i, byte in enumerate(data))
            assert unmask(data, b"\x01\x80\xff\x00") == expected

    def test_close_frames(self):
        assert encode_close(1000) == b"\x88\x02\x03\xe8"
        assert encode_close(1005) == b"\x88\x00"
        assert encode_close(1000, "x" * 200) == b"\x88\x7d\x03\xe8" + b"x" * 123
        cut = encode_close(1000, "ö" * 100)
        assert (cut[4:].decode(), cut[1]) == ("ö" * 61, 124)

    def test_parse_close(self):
        assert parse_close(b"") == Close(1005, "")
        assert parse_close(b"\x03\xe8ok") == Close(1000, "ok")
        allowed = [code for code in range(65536) if self.is_allowed(code)]
        assert allowed == [*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)]
        with pytest.raises(ParseFailed):
            parse_close(b"\x03")

        with pytest.raises(ParseFailed) as failed:
            parse_close(b"\x03\xe8\xff")
        assert failed.value.code == 1007

    @staticmethod
    def is_allowed(code):
        try:
            parse_close(code.to_bytes(2, "big"))
        except ParseFailed:
            return False
        return True


class TestReader:
    """Further cases are in the corpus; here is what needs a look inside."""

    def read(self, *pieces, **options):
        reader = Reader(**options)
        return [event for piece in pieces for event in reader.feed(piece)]

    def test_kinds(self):
        data = b"".join([text("a"), client_frame(0x82, b"b"), client_frame(0x89, b"c"),
                         client_frame(0x8A, b"d"), closing(1000, "e")])
        assert self.read(data) == ["a", b"b", Ping(b"c"), Pong(b"d"), Close(1000, "e")]

    def test_the_same_by_the_careful_way(self):
        begun = client_frame(0x01, b"a")[:3]
        rest = client_frame(0x01, b"a")[3:] + client_frame(0x89, b"c") + client_frame(0x8A, b"d")
        events = self.read(begun, rest + client_frame(0x80, b"b") + closing(1000))
        assert events == [Ping(b"c"), Pong(b"d"), "ab", Close(1000, "")]

    def test_a_client_must_mask(self):
        for payload in (b"", b"Hello", bytes(200)):
            (event,) = self.read(client_frame(0x82, payload, mask=False) + bytes(8))
            assert event.code == 1002

    def test_a_length_must_have_its_shortest_form(self):
        for form in (16, 64):
            (event,) = self.read(client_frame(0x81, b"Hello", form=form))
            assert event.code == 1002

    def test_it_forgets_wsproto_between_messages(self):
        reader = Reader()
        for begun in (client_frame(0x81, b"x" * 300)[:100], client_frame(0x01, b"x"), b"\x81"):
            assert list(reader.feed(begun)) == []
            assert reader._frames is not None
            rest = {100: client_frame(0x81, b"x" * 300)[100:], 7: client_frame(0x80),
                    1: text("y")[1:]}[len(begun)]
            assert len(list(reader.feed(rest))) == 1
            assert reader._frames is None

    def test_the_short_way_goes_on_behind_a_message_that_was_torn(self, monkeypatch):
        reader = Reader()
        assert list(reader.feed(text("torn")[:-1])) == []
        calls, original = [], Reader._event
        monkeypatch.setattr(
            Reader, "_event", lambda *args: calls.append(1) or original(*args)
        )
        assert list(reader.feed(text("torn")[-1:] + text("a") * 50)) == ["torn"] + ["a"] * 50
        assert len(calls) == 1

    def test_nothing_is_read_behind_a_close(self):
        assert self.read(closing(1000) + text("late")) == [Close(1000, "")]
        assert self.read(text("a")[:3], text("a")[3:] + closing(1000) + text("late")) == [
            "a", Close(1000, "")]

    def test_events_come_one_by_one(self):
        events = Reader().feed(text("good") + client_frame(0x83))
        assert next(events) == "good"
        assert next(events) == Violation(1002, "Invalid opcode 0x3")

    def test_the_rooms_end(self):
        assert self.read(client_frame(0x82, bytes(200)), limit=200) == [bytes(200)]
        assert self.read(client_frame(0x82, bytes(201)), limit=200)[0].code == 1009
        assert self.read(client_frame(0x82, bytes(20)), limit=10)[0].code == 1009
        assert self.read(client_frame(0x89, bytes(20)), text("a"), limit=10)[-1] == "a"

    def test_a_reader_at_rest_is_small(self):
        readers = []
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            reader = Reader()
            list(reader.feed(client_frame(0x01, b"a") + client_frame(0x80, b"b") + text("c")))
            readers.append(reader)
        size = (tracemalloc.get_traced_memory()[0] - before) / len(readers)
        tracemalloc.stop()
        assert size < 200


class TestMessages:
    def test_in_order_and_of_their_kind(self):
        visit = Visit()
        visit.hears(text("a") + client_frame(0x82, b"b"), client_frame(0x01, b"c"))
        visit.hears(client_frame(0x80, b"d"))
        assert visit.messages == ["a", b"b", "cd"]

    def test_pongs_leave_together_and_before_what_comes_later(self):
        visit = Visit(echo)
        visit.hears(b"".join(client_frame(0x89, b"%d" % i) for i in range(5)) + text("a")
                    + client_frame(0x89, b"5") + client_frame(0x89, b"6"))
        assert visit.channel.writes == 3
        assert [payload for _, payload in visit.frames()] == [
            b"0", b"1", b"2", b"3", b"4", "a", b"5", b"6"]

    def test_pongs_leave_before_the_close(self):
        visit = Visit(echo).hears(client_frame(0x89, b"1") + closing(1000))
        assert [name for name, _ in visit.frames()] == ["PONG", "CLOSE"]

    def test_a_pong_is_no_message(self):
        visit = Visit().hears(client_frame(0x8A, b"1"))
        assert (visit.messages, visit.frames()) == ([], [])

    def test_send_says_whether_much_waits(self):
        visit = Visit(room=0)
        visit.channel.high_water = 1 << 20
        assert visit.ws.send("a") is False
        assert visit.ws.send(bytes(1 << 20)) is True

    def test_ping(self):
        visit = Visit()
        visit.ws.ping(b"?")
        assert visit.frames() == [("PING", b"?")]
        with pytest.raises(ValueError, match="125"):
            visit.ws.ping(bytes(126))

    def test_an_application_that_fails(self):
        def fail(ws, message):
            raise KeyError(message)

        visit = Visit(fail)
        with pytest.raises(KeyError):
            visit.hears(text("a"))
        assert visit.frames() == [("CLOSE", (1011, "the application failed"))]
        assert visit.told == [(1011, "the application failed")]
        assert visit.channel.ended == "close"

    def test_an_application_that_closes_in_the_middle(self):
        seen = []

        def once(ws, message):
            seen.append(message)
            ws.close(3000)

        visit = Visit(once).hears(text("a") + text("b") + client_frame(0x89))
        assert seen == ["a"]
        assert visit.frames() == [("CLOSE", (3000, ""))]
        visit.hears(text("c") + closing(3000))
        assert (seen, visit.told) == (["a"], [(3000, "")])

    def test_an_application_that_drops_in_the_middle(self):
        seen = []

        def once(ws, message):
            seen.append(message)
            ws.drop()

        visit = Visit(once).hears(text("a") + text("b"))
        assert (seen, visit.told, visit.channel.ended) == (["a"], [(1006, "")], "abort")

    def test_nothing_is_read_when_it_has_ended(self):
        visit = Visit()
        visit.ws.drop()
        visit.channel.handler(visit.channel, text("a"))
        assert visit.messages == []

    def test_data_belongs_to_the_application(self):
        visit = Visit()
        assert visit.ws.data is None
        visit.ws.data = "mine"
        assert visit.ws.channel is visit.channel


class TestClosing:
    def test_the_client_closes(self):
        visit = Visit().hears(closing(4321, "bye"))
        assert visit.frames() == [("CLOSE", (4321, ""))]
        assert visit.told == [(4321, "bye")]
        assert visit.channel.ended == "close"
        assert visit.channel.write_timeout == FAREWELL
        assert visit.ws.closed

    def test_the_client_closes_without_a_code(self):
        visit = Visit().hears(client_frame(0x88))
        assert bytes(visit.channel.sent) == b"\x88\x00"
        assert visit.told == [(1005, "")]

    def test_we_close(self):
        visit = Visit()
        visit.ws.close(1000, "done")
        visit.ws.close(1001)
        assert visit.ws.closed
        assert visit.ws.send("late") is False
        visit.ws.ping()
        visit.hears(client_frame(0x89), text("late"))
        assert visit.frames() == [("CLOSE", (1000, "done"))]
        assert (visit.messages, visit.told) == ([], [])
        visit.hears(closing(1000))
        assert (visit.told, visit.channel.ended) == ([(1000, "")], "close")
        assert len(visit.frames()) == 1

    def test_we_close_and_the_client_does_not(self):
        visit = Visit()
        visit.ws.close()
        visit.channel.wait(FAREWELL - 0.1)
        assert visit.channel.ended == ""
        visit.channel.wait(0.2)
        assert (visit.channel.ended, visit.told) == ("abort", [(1006, "")])

    def test_we_close_and_the_client_breaks_the_rules(self):
        visit = Visit()
        visit.ws.close()
        visit.hears(client_frame(0x83), closing(1002))
        assert (visit.told[0][0], len(visit.frames())) == (1002, 1)

    def test_violation(self):
        visit = Visit().hears(client_frame(0x81, b"\xff") + text("never"))
        assert visit.frames()[0][1][0] == 1007
        assert visit.channel.ended == ""
        visit.channel.wait(LINGER + 0.1)
        assert (visit.channel.ended, visit.told[0][0]) == ("close", 1007)
        assert visit.messages == []

    def test_who_broke_the_rules_and_sends_on_still_learns_which(self):
        visit = Visit().hears(client_frame(0x83), *[bytes(1 << 16)] * 10, text("a"))
        assert (visit.channel.ended, visit.messages) == ("", [])
        visit.hears(closing(1002))
        assert (visit.channel.ended, visit.told[0][0]) == ("close", 1002)
        assert len(visit.frames()) == 1

    def test_too_big(self):
        visit = Visit(max_message=10).hears(text("x" * 10), text("x" * 11), closing(1009))
        assert (visit.messages, visit.told[0][0]) == (["x" * 10], 1009)

    @pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000])
    def test_codes_that_may_not_be_sent(self, code):
        visit = Visit()
        with pytest.raises(ValueError, match=str(code)):
            visit.ws.close(code)
        assert not visit.ws.closed

    def test_the_connection_is_lost(self):
        visit = Visit()
        visit.channel.lost()
        assert visit.told == [(1006, "")]
        assert visit.ws.closed
        visit.ws.close()
        visit.ws.drop()
        assert visit.ws.send("a") is False
        assert visit.channel.sent == b""

    def test_drop(self):
        visit = Visit()
        visit.ws.drop(4000, "out")
        visit.ws.drop(4001, "again")
        assert (visit.told, visit.channel.ended) == ([(4000, "out")], "abort")

    def test_the_server_stops(self):
        visit = Visit()
        visit.channel.on_shutdown(visit.channel)
        assert visit.frames() == [("CLOSE", (1001, "the server stops"))]
        visit.hears(closing(1001))
        assert visit.told == [(1001, "")]

    def test_nobody_needs_to_know(self):
        channel = FakeChannel()
        ws = WebSocket(echo)
        ws.channel, channel.on_close = channel, ws._ended
        ws.drop()
        assert ws.closed

    def test_states(self):
        visit = Visit()
        states = [visit.ws._state]
        visit.ws.close()
        states.append(visit.ws._state)
        visit.hears(closing(1000))
        assert [*states, visit.ws._state] == [State.OPEN, State.CLOSING, State.CLOSED]


class TestKeepAlive:
    def pings(self, visit):
        return [name for name, _ in visit.frames()].count("PING")

    def test_silence_is_asked_and_then_dropped(self):
        visit = Visit(ping_interval=10, ping_timeout=3)
        visit.channel.wait(9.9)
        assert self.pings(visit) == 0
        visit.channel.wait(0.2)
        assert self.pings(visit) == 1
        visit.channel.wait(2.8)
        assert visit.told == []
        visit.channel.wait(0.2)
        assert visit.told == [(1006, "no answer to a ping")]
        assert visit.channel.ended == "abort"

    @pytest.mark.parametrize("sign", [client_frame(0x8A), text("a"), client_frame(0x82, b"1")[:3]])
    def test_any_sign_of_life_will_do(self, sign):
        visit = Visit(ping_interval=10, ping_timeout=3)
        for _ in range(5):
            visit.channel.wait(11)
            visit.hears(sign[:1])
            sign = sign[1:] or client_frame(0x8A)
        assert visit.told == []
        assert 1 <= self.pings(visit) <= 5

    def test_who_talks_is_never_asked(self):
        visit = Visit(ping_interval=10)
        for _ in range(50):
            visit.channel.wait(5)
            visit.hears(text("a"))
        assert self.pings(visit) == 0

    def test_without(self):
        visit = Visit(ping_interval=None)
        visit.channel.wait(1000)
        assert (visit.channel.timers, visit.channel.sent) == ([], b"")

    def test_one_timer_at_a_time(self):
        visit = Visit()
        for _ in range(20):
            visit.channel.wait(20)
            visit.hears(client_frame(0x8A))
            assert len(visit.channel.timers) == 1

    def test_nobody_is_asked_while_closing(self):
        visit = Visit(ping_interval=1)
        visit.ws.close()
        visit.channel.wait(FAREWELL - 1)
        assert self.pings(visit) == 0
        assert len(visit.channel.timers) == 1

    def test_output_that_nobody_takes(self):
        assert Visit(ping_timeout=7).channel.write_timeout == 7


class TestSlowReceivers:
    def test_send(self):
        visit = Visit(room=0, max_unsent=1000)
        visit.ws.send(bytes(2000))  # one message may be longer
        assert visit.told == []
        visit.ws.send("one more")
        assert visit.told == [(1013, "the client does not read")]
        assert visit.channel.ended == "abort"

    def test_exactly_so_much_may_wait(self):
        visit = Visit(room=0, max_unsent=1000)
        visit.ws.send(bytes(996))
        assert visit.channel.pending == 1000
        visit.ws.send("one more")
        assert visit.told == []
        visit.ws.send("one more")
        assert visit.told[0][0] == 1013

    def test_pings_of_a_client_that_does_not_read(self):
        visit = Visit(room=0, max_unsent=1000)
        for _ in range(20):
            visit.hears(client_frame(0x89, bytes(100)))
        assert visit.told[0][0] == 1013
        assert visit.channel.pending < 1300

    def test_a_bound_below_the_servers_counts_as_the_servers(self):
        visit = Visit(room=0, max_unsent=10)
        visit.channel.high_water = 1000
        visit.ws.send(bytes(496))
        visit.ws.send(bytes(496))
        assert visit.told == []
        visit.ws.send("one more")
        assert visit.told[0][0] == 1013


class TestBroadcast:
    def test_one_frame_for_all(self, monkeypatch):
        offered = {"HTTP_SEC_WEBSOCKET_EXTENSIONS": "permessage-deflate"}
        plain = [Visit() for _ in range(3)]
        folded = [Visit(fields=offered, deflate=True) for _ in range(3)]
        written = []
        monkeypatch.setattr(FakeChannel, "write", lambda self, data: written.append(data) or False)
        broadcast([visit.ws for visit in plain + folded], "news " * 100)
        assert len(written) == 6
        assert len({id(frame) for frame in written}) == 2
        assert written[0] == encode("news " * 100)
        assert len(written[-1]) < 30

    def test_the_slow_are_dropped_and_the_others_served(self):
        room = set()
        visits = [Visit(room=0 if number % 3 == 0 else 1 << 30) for number in range(9)]
        room.update(visit.ws for visit in visits)
        for visit in visits:
            visit.channel.on_close = lambda channel, ws=visit.ws: (
                room.discard(ws), ws._ended(channel))  # fmt: skip
        for _ in range(4):
            broadcast(room, bytes(600_000))
        assert len(room) == 6
        assert [bool(visit.told) for visit in visits] == [n % 3 == 0 for n in range(9)]
        assert all(len(visit.frames()) == 4 for visit in visits if not visit.told)

    def test_the_bound(self):
        visit = Visit(room=0)
        broadcast([visit.ws], bytes(100), max_unsent=50)
        assert visit.told == []
        broadcast([visit.ws], bytes(100), max_unsent=50)
        assert visit.told[0][0] == 1013

    def test_nobody_and_the_closed(self):
        broadcast([], "a")
        visit = Visit()
        visit.ws.close()
        broadcast([visit.ws], "a")
        assert len(visit.frames()) == 1


class TestThreads:
    def test_no_message_follows_the_close_frame(self):
        for _ in range(20):
            visit = Visit()
            start = threading.Barrier(4)

            def talk(visit=visit, start=start):
                start.wait()
                while not visit.ws.closed:
                    visit.ws.send("x")

            threads = [threading.Thread(target=talk) for _ in range(3)]
            for thread in threads:
                thread.start()
            start.wait()
            visit.ws.close()
            for thread in threads:
                thread.join()
            assert bytes(visit.channel.sent).endswith(encode_close(1000))
            assert bytes(visit.channel.sent).count(encode_close(1000)) == 1

    def test_writing_may_find_the_end(self):
        visit = Visit()

        def broken(data):
            visit.channel.lost()
            return False

        visit.channel.write = broken
        visit.ws.send("a")
        assert visit.told == [(1006, "")]

    def test_ping_is_a_frame_of_its_own(self):
        visit = Visit()
        visit.ws.ping()
        assert bytes(visit.channel.sent) == encode_frame(PING, b"")


@pytest.mark.parametrize("option", ["origins", "subprotocols"])
def test_one_string_is_no_collection(option):
    """Else `in` would look for a part of it: https://shop.example.co in https://shop.example.com."""
    with pytest.raises(TypeError, match="collections of strings"):
        accept({}, lambda *_: None, lambda *_: None, **{option: "https://shop.example.com"})
