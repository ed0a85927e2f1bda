"""The corpus through all of HTTP, without a socket: what the application sees, or a refusal."""

import re

import pytest

from hop.engine import ConnectionState, Engine
from tests.corpus import Case, load
from tests.fakes import STEPS, FakeConnection

CASES = load()


def feed(case, pieces):
    """Run the pieces through an engine; the connection, and what the application saw."""
    conn, seen = FakeConnection(), []

    def app(environ, start_response):
        body = environ["wsgi.input"].read()
        seen.append({**environ, "body": body})
        start_response("200 OK", [])
        return [b"ok"]

    engine = Engine(app)
    for piece in pieces:
        if conn.state == ConnectionState.CLOSED:
            break
        engine.received(conn, piece)
        while conn.state == ConnectionState.IDLE and conn.incoming is not None:
            engine.resume(conn)
    return conn, seen


def ways(raw):
    """Whole, byte by byte, and in two halves."""
    yield [raw]
    yield [raw[position : position + 1] for position in range(min(len(raw), 4096))] + (
        [raw[4096:]] if len(raw) > 4096 else []
    )
    yield [piece for piece in (raw[: len(raw) // 2], raw[len(raw) // 2 :]) if piece]


def test_the_corpus_is_large_and_every_case_has_a_name_of_its_own():
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES)
    assert len({case.raw for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case):
    for pieces in ways(case.raw):
        conn, seen = feed(case, pieces)
        answers = [int(status) for status in re.findall(rb"HTTP/1.1 (\d{3}) ", conn.sent)]
        assert set(conn.steps) <= STEPS
        finals = [status for status in answers if status >= 200]
        if case.waits:
            assert (finals, seen) == ([], [])
        elif case.status is not None:
            assert finals[-1:] == [case.status]
            assert 200 not in finals
            assert seen == []
            assert b"Connection: close\r\n" in conn.sent
            assert conn.state in (ConnectionState.LINGERING, ConnectionState.CLOSED)
        else:
            assert finals[:1] == [200]
            check(case.sees, seen[0])


def test_the_corpus_leads_through_most_states():
    steps = set()
    for case in CASES:
        steps.update(feed(case, [case.raw])[0].steps)
        steps.update(feed(case, [case.raw[:20], case.raw[20:]])[0].steps)
    State = ConnectionState
    beyond = {State.PAUSED, State.FLUSHING, State.UPGRADED, State.HIJACKED}
    assert {new for _, new in steps} == set(State) - beyond


def check(sees, environ):
    keys = {
        "method": "REQUEST_METHOD",
        "target": "REQUEST_URI",
        "path": "PATH_INFO",
        "query": "QUERY_STRING",
        "protocol": "SERVER_PROTOCOL",
    }
    for name, key in keys.items():
        assert environ[key] == sees.get(name, environ[key])
    if "body" in sees:
        assert environ["body"] == sees["body"].encode("latin-1")
    for key, value in sees.get("variables", {}).items():
        assert environ.get(key) == value
    for key in sees.get("absent", ()):
        assert key not in environ or key == "CONTENT_LENGTH"
