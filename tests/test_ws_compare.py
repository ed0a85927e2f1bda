"""The four styles side by side: what is counted, and what is seen of their threads."""

import itertools

import pytest

from examples import ws_compare
from examples.ws_compare import STYLES, Span, code_lines, draw, lines, record
from tests.servers import std

SOURCE = '''"""Docstring.

Of three lines.
"""

# a comment
x = (1,
     2)  # two lines


def f():
    """Short."""
    # nothing

    return x
'''


def test_lines_of_code_are_neither_blank_nor_words():
    assert code_lines(SOURCE) == 4
    assert code_lines("") == 0


def test_a_shared_protocol_counts_for_both():
    counted = {style: lines(style) for style in STYLES}
    assert all(20 < count < 150 for count in counted.values())
    assert counted["websockets event"] > counted["websockets std"] / 2


def test_side_by_side():
    sides = ws_compare.side_by_side(connections=60, seconds=0.1)
    assert [side.style for side in sides] == list(STYLES)
    for side in sides:
        assert (side.threads > 0.9) == (side.style == "websockets std")
        assert side.microseconds > 0


def test_the_poller_s_thread_serves_all():
    spans = record("wsproto low", clients=3, messages=2, pause=0.001)
    assert {span.client for span in spans} == {1, 2, 3}
    assert all(span.busy for span in spans)


def together(spans, thread):
    return sorted((s.start, s.end, s.busy) for s in spans if s.thread == thread)


def test_a_thread_that_waits_is_seen():
    spans = record("websockets std", clients=2, messages=2, pause=0.001, server=std)
    threads = {span.thread for span in spans}
    assert len(threads) == len({span.client for span in spans}) == 2
    for thread in threads:
        alone = together(spans, thread)
        assert sum(not busy for _, _, busy in alone) == 4  # two messages, the close, the end
        for (_, end, _), (start, _, _) in itertools.pairwise(alone):
            assert start >= end


def test_the_picture_has_a_row_for_each_thread():
    spans = [Span("thread 1", 1, 0.0, 0.1, False), Span("thread 1", 2, 0.1, 0.1, True),
             Span("thread 2", 2, 0.2, 0.3, True)]
    figure = draw({"one": spans[:2], "two": spans})
    first, second = figure.axes
    assert [len(axis.patches) for axis in (first, second)] == [2, 3]
    assert [len(axis.get_yticks()) for axis in (first, second)] == [1, 2]
    assert first.get_title(loc="left") == "one"
    pale, solid = (patch.get_alpha() for patch in first.patches)
    assert pale < solid == 1.0
    assert first.patches[1].get_width() > 1  # milliseconds: what is too short to be seen is not


def test_other_attributes_are_the_socket_s_own():
    class Sock:
        def fileno(self):
            return 7

    watched = ws_compare.WatchedSocket(ws_compare.Watch(lambda *a: []), Sock(), 1)
    assert watched.fileno() == 7
    with pytest.raises(AttributeError):
        watched.nothing  # noqa: B018
