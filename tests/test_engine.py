"""The life of a connection, without a socket: every state, every way out of it."""

import io
import logging
import re

import pytest

from hop.adaptor import ResponseWriter
from hop.engine import NO_BODY, TRANSITIONS, ConnectionState, Engine
from hop.errors import ProtocolError
from hop.parser import Limits, parse_head
from hop.storage import Storage
from tests.drive import Watched
from tests.fakes import STEPS, FakeConnection, FakeLoop

IDLE, HEAD, BODY, PAUSED, CALL, FLUSHING, CLOSING, REFUSING, LINGERING, *_, CLOSED = ConnectionState

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = GET[:-2] + b"Upgrade: x\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def echo(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("X-Length", environ.get("CONTENT_LENGTH", "none"))])
    return [body]


def post(body, *fields):
    lines = b"".join(field + b"\r\n" for field in fields)
    return b"POST / HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n" + body


def length(body):
    return post(body, b"Content-Length: %d" % len(body))


def chunked(*pieces):
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
    return post(body, b"Transfer-Encoding: chunked")


@pytest.fixture
def conn():
    return FakeConnection()


def statuses(conn):
    return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", conn.sent)]


def bodies(conn):
    return [part.partition(b"\r\n\r\n")[2] for part in bytes(conn.sent).split(b"HTTP/1.1 ")[1:]]


class TestWhatWasRead:
    @pytest.mark.parametrize(
        "read", [GET, length(b"abcd"), GET + length(b"abcd"), length(b"abcd") + GET]
    )
    def test_each_head_is_parsed_once(self, conn, monkeypatch, read):
        parsed = []

        def counted(data, start, *rest):
            parsed.append(start)
            return parse_head(data, start, *rest)

        monkeypatch.setattr("hop.engine.parse_head", counted)
        Engine(echo).received(conn, read)
        assert len(parsed) == len(set(parsed)) == read.count(b"HTTP/1.1")

    def test_a_mistake_does_not_hold_the_frames_that_it_was_found_in(self):
        error = Engine(echo)._find(b"BAD\r\n\r\n", 0)
        assert isinstance(error, ProtocolError)
        assert error.__traceback__ is None

    def test_nor_does_the_first_in_what_was_read(self, conn, monkeypatch):
        engine, found = Engine(echo), []
        monkeypatch.setattr(engine, "_put_off", lambda *arguments: found.append(arguments[-1]))
        engine.received(conn, b"BAD\r\n\r\n")
        assert isinstance(found[0], ProtocolError)
        assert found[0].__traceback__ is None


class TestNoBody:
    @pytest.mark.parametrize(
        "read",
        [
            lambda body: body.read(),
            lambda body: body.read(None),
            lambda body: body.read(1 << 60),
            lambda body: body.read1(),
            lambda body: body.readline(),
            b"".join,
            lambda body: body.seek(3) and body.read(),
            lambda body: io.BufferedReader(body).read(),
            lambda body: body.close(),
        ],
    )
    def test_nothing_is_read_however_and_nothing_stays(self, read):
        seen = []

        def app(environ, start_response):
            seen.append(read(environ["wsgi.input"]) or b"")
            start_response("200 OK", [])
            return []

        engine = Engine(app)
        for _ in range(2):
            conn = FakeConnection()
            engine.received(conn, GET)
            assert statuses(conn) == [200]
        assert seen == [b"", b""]

    @pytest.mark.parametrize("pieces", [[GET], [GET + GET], [GET[:9], GET[9:]], [length(b"")]])
    def test_however_the_request_arrives(self, conn, pieces):
        bodies = set()

        def app(environ, start_response):
            bodies.add(environ["wsgi.input"])
            start_response("200 OK", [])
            return []

        engine = Engine(app)
        for piece in pieces:
            engine.received(conn, piece)
        assert bodies == {NO_BODY}

    def test_nothing_can_be_left_on_it_for_the_next_request(self):
        with pytest.raises(AttributeError, match="share"):
            NO_BODY.user = "alice"


class TestTable:
    def test_every_state_but_the_last_can_end(self):
        assert all("end" in TRANSITIONS[state] for state in ConnectionState if state != CLOSED)
        assert TRANSITIONS[CLOSED] == {}

    def test_every_state_can_be_reached(self):
        reached, frontier = {IDLE}, [IDLE]
        while frontier:
            for state in TRANSITIONS[frontier.pop()].values():
                if state not in reached:
                    reached.add(state)
                    frontier.append(state)
        assert reached == set(ConnectionState)

    def test_every_step_is_taken_and_no_other(self):
        taken = set()
        for story in STORIES:
            conn = FakeConnection()
            story(Engine(echo, storage=Storage(body_memory=4, total_memory=4, total_disk=0)), conn)
            taken.update(conn.steps)
        assert taken == STEPS


def told(*acts):
    """A story: bytes are received, names are called, numbers are room in the kernel's buffer."""

    def story(engine, conn):
        for act in acts:
            if isinstance(act, bytes):
                engine.received(conn, act)
            elif isinstance(act, int):
                conn.room = act
                if conn.flush():
                    engine.flushed(conn)
            else:
                act(engine, conn)

    return story


def late(engine, conn):
    engine.expired(conn)


def deaf(engine, conn):
    conn.broken = True


def slow(engine, conn):
    conn.room = 9


def other_body(engine, conn):
    conn.other = engine.storage.open()
    assert conn.other.write(b"1234")


def other_body_ends(engine, conn):
    conn.other.close()
    engine.resume(conn)


def refused_while_paused(engine, conn):
    engine.expired(conn)


POST = length(b"abcd")
class Takes:
    """A bridge over which every connection leaves, and a successor that does what it is told."""

    silent = False
    writer = ResponseWriter

    def __init__(self, *events):
        self.events, self.seen = events, []

    def offer(self, environ):
        response = environ["hop.hijacker"]
        self.conn = response.conn
        response.pass_to(self)

    def failed(self):
        return None

    def succeed(self, whole):
        self.seen.append((whole, bytes(self.conn.incoming or b"")))
        for event in self.events:
            self.engine.pass_on(self.conn, event, self)


def leaving(*events):
    """A story: the connection leaves HTTP, and takes these steps."""

    def story(engine, conn):
        engine.bridge = takes = Takes(*events)
        takes.engine = engine
        engine.received(conn, UPGRADE)

    return story


STORIES = [
    leaving("upgraded", "last"),
    leaving("upgraded", "end"),
    leaving("hijacked", "end"),
    told(GET, b""),  # answered; the end of an idle connection
    told(GET[:5], GET[5:], LAST),  # a head in pieces; the last request
    told(GET[:5], b""),
    told(GET[:5], late),  # 408
    told(b"rubbish\n\n", b""),  # refused, lingering, ended
    told(POST[:-4], b"ab", b"cd"),  # IDLE -> BODY
    told(POST[:5], POST[5:-2], b""),  # HEAD -> BODY -> CLOSED
    told(POST[:-1], late),  # BODY -> REFUSING
    told(other_body, POST[:-1], other_body_ends, b"d"),  # PAUSED -> BODY
    told(other_body, POST[:-1], refused_while_paused),
    told(other_body, POST[:-1], deaf, late),  # PAUSED -> CLOSED
    told(slow, GET, 1 << 20),  # FLUSHING -> IDLE
    told(slow, GET + GET, 1 << 20),  # IDLE -> FLUSHING
    told(slow, GET, late),
    told(slow, LAST, 1 << 20, b""),  # CLOSING -> LINGERING
    told(slow, LAST + GET, late),  # CLOSING -> CLOSED
    told(slow, b"rubbish\n\n", late),  # REFUSING -> CLOSED
    told(deaf, GET),  # CALL -> CLOSED
]


class TestRequests:
    def test_a_request_is_answered_and_the_connection_is_idle_again(self, conn):
        Engine(hello).received(conn, GET)
        assert statuses(conn) == [200]
        assert bodies(conn) == [b"hello"]
        assert (conn.state, conn.incoming, conn.backlog) == (IDLE, None, None)
        assert conn.loop.calls == ["begin", "end"]

    def test_close_is_honoured(self, conn):
        Engine(hello).received(conn, LAST)
        assert b"Connection: close\r\n" in conn.sent
        assert conn.state == LINGERING

    def test_pipelined_requests_are_answered_in_order(self, conn):
        def app(environ, start_response):
            start_response("200 OK", [])
            return [environ["PATH_INFO"].encode()]

        requests = [b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(5)]
        Engine(app).received(conn, b"".join(requests))
        assert bodies(conn) == [b"/0", b"/1", b"/2", b"/3", b"/4"]

    def test_a_connection_that_pipelines_much_waits_for_its_turn(self, conn):
        engine = Engine(hello, max_pipelined=3)
        engine.received(conn, GET * 7)
        assert (len(statuses(conn)), conn.state, conn.incoming) == (3, IDLE, GET * 4)
        engine.resume(conn)
        engine.resume(conn)
        assert (len(statuses(conn)), conn.incoming) == (7, None)

    def test_nothing_is_parsed_behind_the_last_request(self, conn):
        calls = []

        def app(environ, start_response):
            calls.append(environ["PATH_INFO"])
            return hello(environ, start_response)

        Engine(app).received(conn, LAST + GET + b"rubbish")
        assert (calls, statuses(conn)) == (["/"], [200])
        assert (conn.state, conn.log) == (LINGERING, ["hang_up"])

    def test_requests_wait_while_the_client_does_not_read(self, conn):
        conn.room = 10
        engine = Engine(hello, max_pipelined=2)
        engine.received(conn, GET + GET + GET)
        assert (conn.state, conn.incoming, len(conn.sent)) == (FLUSHING, GET, 10)
        conn.room = 1 << 20
        assert conn.flush()
        engine.flushed(conn)
        assert conn.state == IDLE
        engine.resume(conn)
        assert bodies(conn) == [b"hello"] * 3

    def test_answers_that_are_ready_together_leave_together(self, conn):
        engine = Engine(hello)
        engine.received(conn, GET * 3)
        assert (bodies(conn), conn.sends) == ([b"hello"] * 3, 1)
        assert (conn.state, conn.incoming, conn.backlog) == (IDLE, None, None)

    def test_a_last_answer_among_them_is_the_last(self, conn):
        Engine(hello).received(conn, GET + LAST + GET)
        assert (bodies(conn), conn.sends) == ([b"hello"] * 2, 1)
        assert (conn.state, conn.log) == (LINGERING, ["hang_up"])

    def test_a_last_answer_that_waits_is_flushed_later(self, conn):
        conn.room = 10
        engine = Engine(hello)
        engine.received(conn, GET + LAST)
        assert conn.state == CLOSING
        conn.room = 1 << 20
        assert conn.flush()
        engine.flushed(conn)
        assert (bodies(conn), conn.state) == ([b"hello"] * 2, LINGERING)

    @pytest.mark.parametrize(
        ("behind", "state", "answers"),
        [
            (b"GET / HT", HEAD, [200]),
            (b"nonsense\r\n\r\n", LINGERING, [200, 400]),
            (length(b"body")[:-1], BODY, [200]),
            (chunked(b"body")[:-1], BODY, [200]),
        ],
    )
    def test_what_cannot_be_answered_does_not_hold_up_what_was(
        self, conn, behind, state, answers
    ):
        engine = Engine(hello)
        engine.received(conn, GET + behind)
        assert (statuses(conn), conn.state, conn.backlog) == ([200], IDLE, None)
        assert conn.incoming == behind
        engine.resume(conn)
        assert (conn.state, statuses(conn)) == (state, answers)

    def test_enough_is_not_held_back(self, conn):
        def large(environ, start_response):
            start_response("200 OK", [])
            return [bytes(40_000)]

        engine = Engine(large)
        engine.received(conn, GET * 5)
        assert (len(statuses(conn)), conn.sends, conn.incoming) == (2, 1, GET * 3)

    def test_pieces_are_not_held_back(self, conn):
        """PEP 3333: each one is sent before the next is asked for."""
        seen = []

        def app(environ, start_response):
            start_response("200 OK", [])
            for piece in (b"one", b"two"):
                yield piece
                seen.append(piece in conn.sent)

        Engine(app).received(conn, GET * 2)
        assert seen == [True] * 4

    def test_an_answer_that_is_cut_does_not_take_those_before_it_along(self, conn):
        def app(environ, start_response):
            start_response("200 OK", [("Content-Length", "9")])
            yield b"part"
            if environ["PATH_INFO"] == "/cut":
                raise RuntimeError("on purpose")
            yield b"-part"

        cut = GET.replace(b"/ ", b"/cut ", 1)
        Engine(app).received(conn, GET + cut + GET)
        assert (bodies(conn), conn.state) == ([b"part-part", b"part"], CLOSED)

    def test_the_last_answer_is_flushed_before_the_end(self, conn):
        conn.room = 10
        engine = Engine(hello)
        engine.received(conn, LAST)
        assert conn.state == CLOSING
        engine.flushed(conn)
        assert conn.state == LINGERING

    def test_draining_says_close(self, conn):
        engine = Engine(hello)
        conn.loop.draining = True
        engine.received(conn, GET)
        assert b"Connection: close" in conn.sent
        assert conn.state == LINGERING


class TestHeads:
    @pytest.mark.parametrize("size", [1, 2, 7])
    def test_a_head_in_pieces(self, conn, size):
        engine = Engine(hello)
        for position in range(0, len(GET), size):
            assert not conn.sent
            engine.received(conn, GET[position : position + size])
        assert (statuses(conn), conn.state, conn.incoming) == ([200], IDLE, None)

    def test_a_dripping_head_is_searched_once(self, conn):
        """Counted: each byte costs the step back of three, and the request line at most."""
        engine = Engine(hello)
        line = b"GET / HTTP/1.1\r\n"
        head = line + b"Host: x\r\nX-Long: " + b"y" * 4000 + b"\r\n\r\n"
        engine.received(conn, head[:1])
        conn.incoming.data = watched = Watched(head[:1])
        for position in range(1, len(head)):
            engine.received(conn, head[position : position + 1])
        assert (statuses(conn), len(watched)) == ([200], len(head))
        assert 0 < watched.looked_at <= len(head) * (4 + len(line))

    def test_the_clock_of_a_head_starts_with_its_first_byte(self, conn):
        engine = Engine(hello)
        conn.loop.now = 1010.0
        engine.received(conn, b"GET /")
        conn.loop.now = 1015.0
        engine.received(conn, b"x")
        assert (conn.state, conn.since) == (HEAD, 1010.0)

    def test_half_a_head_and_then_nothing(self, conn):
        engine = Engine(hello)
        engine.received(conn, GET[:10])
        engine.received(conn, b"")
        assert (conn.state, conn.incoming, conn.sent) == (CLOSED, None, b"")

    def test_a_bad_head_is_refused_and_the_rest_thrown_away(self, conn):
        engine = Engine(hello, max_drain_size=100)
        engine.received(conn, b"GET / HTTP/1.1\r\nHost: x\r\nBad Name: 1\r\n\r\n" + GET)
        assert statuses(conn) == [400]
        assert b"Connection: close" in conn.sent
        assert (conn.state, conn.log, conn.loop.calls) == (LINGERING, ["hang_up"], [])
        engine.received(conn, b"x" * 100)
        assert conn.state == LINGERING
        engine.received(conn, b"x")
        assert (conn.state, statuses(conn)) == (CLOSED, [400])

    def test_a_head_that_goes_bad_later(self, conn):
        engine = Engine(hello)
        engine.received(conn, b"GET / HTTP/1.1\r\n")
        engine.received(conn, b"a\nb")
        assert (statuses(conn), conn.state) == ([400], LINGERING)

    def test_a_refused_client_that_closes(self, conn):
        engine = Engine(hello)
        engine.received(conn, b"rubbish\n\n")
        engine.received(conn, b"")
        assert conn.state == CLOSED

    def test_a_refusal_waits_for_a_slow_client(self, conn):
        conn.room = 5
        engine = Engine(hello)
        engine.received(conn, b"rubbish\n\n")
        assert (conn.state, conn.log) == (REFUSING, [])
        engine.flushed(conn)
        assert (conn.state, conn.log) == (LINGERING, ["hang_up"])

    def test_a_refusal_that_nobody_hears(self, conn):
        conn.broken = True
        Engine(hello).received(conn, b"rubbish\n\n")
        assert conn.state == CLOSED


class TestBodies:
    @pytest.mark.parametrize("request_", [length(b"abc" * 9), chunked(b"abc" * 3, b"abc" * 6)])
    def test_split_at_every_position(self, request_):
        for position in range(1, len(request_)):
            conn = FakeConnection()
            engine = Engine(echo)
            engine.received(conn, request_[:position])
            engine.received(conn, request_[position:])
            assert bodies(conn) == [b"abc" * 9], position
            assert b"X-Length: 27\r\n" in conn.sent
            assert conn.state == IDLE

    def test_a_request_behind_a_body(self, conn):
        for whole in (length(b"abc") + GET, chunked(b"abc") + GET):
            engine, conn = Engine(echo), FakeConnection()
            engine.received(conn, whole[:50])
            engine.received(conn, whole[50:])
            while conn.incoming is not None:
                engine.resume(conn)
            assert bodies(conn) == [b"abc", b""]

    def test_continue_is_said_when_the_body_is_wanted(self, conn):
        engine = Engine(echo)
        engine.received(conn, post(b"", b"Content-Length: 3", b"Expect: 100-continue"))
        assert conn.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
        engine.received(conn, b"abc")
        assert statuses(conn) == [100, 200]

    def test_continue_is_not_said_to_a_body_that_is_here(self, conn):
        Engine(echo).received(conn, post(b"abc", b"Content-Length: 3", b"Expect: 100-continue"))
        assert statuses(conn) == [200]

    def test_continue_is_not_said_to_a_body_that_is_too_large(self, conn):
        engine = Engine(echo, limits=Limits(body=2))
        engine.received(conn, post(b"", b"Content-Length: 3", b"Expect: 100-continue"))
        assert (statuses(conn), conn.loop.calls) == ([413], [])

    def test_continue_to_a_client_that_has_gone(self, conn):
        conn.broken = True
        Engine(echo).received(conn, post(b"", b"Content-Length: 3", b"Expect: 100-continue"))
        assert conn.state == CLOSED

    def test_a_chunked_body_that_was_decoded_has_a_length_and_is_not_chunked(self, conn):
        """Or an application that looks for the field decodes it once more (RFC 9112, 7.1.3)."""
        seen = []

        def application(environ, start_response):
            seen.append((environ["CONTENT_LENGTH"], environ.get("HTTP_TRANSFER_ENCODING")))
            return echo(environ, start_response)

        Engine(application).received(conn, chunked(b"3\r\nabc\r\n", b"0\r\n\r\n"))
        assert seen == [("13", None)]
        assert bodies(conn) == [b"3\r\nabc\r\n0\r\n\r\n"]

    def test_a_truncated_body_never_reaches_the_application(self, conn):
        storage = Storage(total_memory=100)
        engine = Engine(echo, storage=storage)
        engine.received(conn, length(b"abcdef")[:-1])
        assert storage.free("memory") == 95
        engine.received(conn, b"")
        assert (conn.state, conn.loop.calls, storage.free("memory")) == (CLOSED, [], 100)

    def test_a_chunked_body_that_goes_bad(self, conn):
        storage = Storage(total_memory=100)
        engine = Engine(echo, storage=storage)
        engine.received(conn, chunked(b"abc")[:-5])
        engine.received(conn, b"zzz\r\n")
        assert (statuses(conn), conn.loop.calls) == ([400], [])
        assert storage.free("memory") == 100

    def test_every_kibibyte_buys_a_second(self, conn):
        engine = Engine(echo)
        engine.received(conn, length(b"x" * 10_000)[:100])
        start = conn.since
        conn.loop.now += 60
        engine.received(conn, b"x" * 2048)
        assert conn.since == pytest.approx(start + 2.0, abs=0.1)
        conn.loop.now += 1
        engine.received(conn, b"x" * 7000)
        assert conn.since <= conn.loop.now

    def test_nobody_can_save_up_time(self, conn):
        engine = Engine(echo)
        engine.received(conn, length(b"x" * 200_000)[:100_000])
        assert conn.since == conn.loop.now

    def test_a_body_waits_for_room_and_goes_on(self, conn):
        storage = Storage(total_memory=10, total_disk=0)
        engine = Engine(echo, storage=storage)
        other = storage.open()
        assert other.write(b"12345678")
        request = length(b"abcdef")
        engine.received(conn, request[:-6])
        engine.received(conn, b"abcdef")
        assert (conn.state, conn.sent) == (PAUSED, b"")
        engine.resume(conn)
        assert conn.state == PAUSED
        other.close()
        engine.resume(conn)
        assert (bodies(conn), conn.state) == ([b"abcdef"], IDLE)
        assert storage.free("memory") == 10

    def test_a_body_that_finds_no_room_in_time(self, conn):
        engine = Engine(echo, storage=Storage(total_memory=1, total_disk=0))
        engine.received(conn, length(b"abcdef")[:-1])
        assert conn.state == PAUSED
        engine.expired(conn)
        assert (statuses(conn), conn.state) == ([503], LINGERING)


class TestDrop:
    def test_the_loop_may_end_any_connection(self, conn):
        storage = Storage(total_memory=100)
        engine = Engine(echo, storage=storage)
        engine.received(conn, length(b"abcdef")[:-1])
        engine.drop(conn)
        assert (conn.state, conn.incoming, storage.free("memory")) == (CLOSED, None, 100)


class TestExpiry:
    def test_an_idle_connection_is_closed(self, conn):
        Engine(hello).expired(conn)
        assert (conn.state, conn.sent) == (CLOSED, b"")

    @pytest.mark.parametrize("part", [GET[:9], length(b"abc")[:-1]])
    def test_a_slow_request_is_told_so(self, conn, part):
        engine = Engine(hello)
        engine.received(conn, part)
        engine.expired(conn)
        assert (statuses(conn), conn.state) == ([408], LINGERING)

    def test_a_client_that_does_not_read_is_cut(self, conn):
        conn.room = 3
        engine = Engine(hello)
        engine.received(conn, GET)
        engine.expired(conn)
        assert conn.state == CLOSED

    def test_the_deadline_stands_in_the_context(self, conn):
        seen = []

        def app(environ, start_response):
            seen.append(environ["hop.context"].deadline)
            return hello(environ, start_response)

        Engine(app, request_timeout=5.0).received(conn, GET)
        Engine(app).received(conn, GET)
        assert seen == [1005.0, None]


class TestApplications:
    def test_one_that_fails_answers_500_and_goes_on(self, conn, caplog):
        def app(environ, start_response):
            raise RuntimeError("on purpose")

        Engine(app).received(conn, GET)
        assert (statuses(conn), conn.state) == ([500], IDLE)
        assert b"purpose" not in conn.sent
        assert "on purpose" in caplog.text

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
    def test_no_exception_of_an_application_ends_the_server(self, conn, caplog, error):
        def app(environ, start_response):
            raise error

        Engine(app).received(conn, GET)
        assert (statuses(conn), conn.state, conn.loop.calls) == ([500], IDLE, ["begin", "end"])

    def test_one_that_fails_in_the_middle_is_cut_off(self, conn, caplog):
        def app(environ, start_response):
            start_response("200 OK", [])
            yield b"first"
            raise RuntimeError("on purpose")

        Engine(app).received(conn, GET)
        assert conn.sent.endswith(b"first\r\n")
        assert conn.state == CLOSED

    def test_an_http_10_answer_that_is_cut_ends_with_a_reset(self, conn, caplog):
        def app(environ, start_response):
            start_response("200 OK", [])
            yield b"first"
            raise RuntimeError("on purpose")

        Engine(app).received(conn, OLD + OLD)
        assert conn.sent.endswith(b"\r\n\r\nfirst")
        assert (conn.state, conn.log) == (CLOSED, ["reset"])

    def test_an_http_10_answer_that_fails_early_is_a_500(self, conn, caplog):
        Engine(lambda environ, start_response: 1 / 0).received(conn, OLD)
        assert (statuses(conn), conn.state, conn.log) == ([500], LINGERING, ["hang_up"])

    @pytest.mark.parametrize("request_", [GET, OLD])
    def test_a_failure_behind_the_last_byte_spoils_nothing(self, conn, caplog, request_):
        class Pieces(list):
            def close(self):
                raise RuntimeError("on purpose")

        def app(environ, start_response):
            start_response("200 OK", [])
            return Pieces([b"whole"])

        Engine(app).received(conn, request_)
        assert b"whole" in conn.sent
        assert "on purpose" in caplog.text
        assert conn.state == (IDLE if request_ is GET else LINGERING)
        assert "reset" not in conn.log

    def test_an_application_may_spoil_its_environ(self, conn, caplog):
        def app(environ, start_response):
            environ.clear()
            raise RuntimeError("on purpose")

        Engine(app).received(conn, GET)
        assert (statuses(conn), conn.state) == ([500], IDLE)
        assert caplog.messages == ["GET /"]

    @pytest.mark.parametrize("fails", [False, True])
    def test_close_is_called_exactly_once(self, conn, caplog, fails):
        class Pieces:
            closed = 0

            def __iter__(self):
                yield b"a"
                if fails:
                    raise RuntimeError("on purpose")

            def close(self):
                self.closed += 1

        pieces = Pieces()

        def app(environ, start_response):
            start_response("200 OK", [])
            return pieces

        Engine(app).received(conn, GET)
        assert pieces.closed == 1

    def test_close_is_called_when_the_client_has_gone(self, conn):
        closed = []

        class Pieces(list):
            def close(self):
                closed.append(True)

        def app(environ, start_response):
            start_response("200 OK", [])
            conn.broken = True
            return Pieces([b"a"])

        Engine(app).received(conn, GET)
        assert (closed, conn.state) == ([True], CLOSED)

    def test_a_file_is_sent_and_not_read(self, conn, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"0123456789")

        def app(environ, start_response):
            file = open(path, "rb")  # noqa: SIM115
            file.seek(3)
            start_response("200 OK", [])
            return environ["wsgi.file_wrapper"](file)

        Engine(app).received(conn, GET)
        assert (bodies(conn), conn.log) == ([b"3456789"], ["send_file"])

    def test_a_generator_waits_for_a_slow_client(self):
        loop = FakeLoop()
        conn = FakeConnection(loop, room=100)

        def app(environ, start_response):
            start_response("200 OK", [("Content-Length", str(3 << 20))])
            return (b"x" * (1 << 20) for _ in range(3))

        Engine(app).received(conn, GET)
        assert "wait" in loop.calls
        assert bodies(conn) == [b"x" * (3 << 20)]


class TestLogs:
    def test_the_access_log_has_a_line_a_request(self, conn, caplog):
        with caplog.at_level(logging.INFO, "hop.access"):
            Engine(hello).received(conn, GET)
        assert caplog.messages == ['192.0.2.1 "GET / HTTP/1.1" 200 5']

    def test_a_refusal_has_a_line_without_a_request(self, conn, caplog):
        with caplog.at_level(logging.INFO, "hop.access"):
            Engine(hello).received(conn, b"rubbish\n\n")
        assert caplog.messages == ['192.0.2.1 "-" 400 0']

    def test_it_costs_nothing_when_it_is_off(self, conn, caplog):
        engine = Engine(hello)
        with caplog.at_level(logging.INFO, "hop.access"):
            engine.received(conn, GET)
        assert not caplog.records


def test_the_input_of_a_request_without_body_is_empty(conn):
    Engine(echo).received(conn, GET)
    assert bodies(conn) == [b""]
