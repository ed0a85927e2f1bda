"""The parser's memo of header lines: how often it is hit, and hop without it.

What is replaced here are private names of hop/parser.py; hop itself has no such option.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from examples.drive import different, new, same
from hop import parser

BROWSER = """\
Host: www.example.com
Connection: keep-alive
sec-ch-ua: "Chromium";v="126", "Not.A/Brand";v="24"
sec-ch-ua-mobile: ?0
sec-ch-ua-platform: "Linux"
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
Chrome/126.0.0.0 Safari/537.36
Accept-Encoding: gzip, deflate, br
Accept-Language: en-GB,en;q=0.9
""".splitlines()
# What a page asks for: kind, how many, Accept, Sec-Fetch-Dest, Sec-Fetch-Mode.
PAGE = (
    ("html", 1, "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "document",
     "navigate"),
    ("css", 2, "text/css,*/*;q=0.1", "style", "no-cors"),
    ("js", 4, "*/*", "script", "no-cors"),
    ("png", 9, "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", "image",
     "no-cors"),
    ("json", 2, "application/json", "empty", "cors"),
)


@dataclass(frozen=True)
class MemoRow:
    """How many of the header `lines` of so many `requests` the memo knew; `kept`: how many it
    holds in the end."""

    workload: str
    server: str
    requests: int
    lines: int
    hit_rate: float
    kept: int


def session(pages: int = 10) -> Iterator[bytes]:
    """A browser's visit: pages with their styles, scripts, images and data; the cookie changes
    with every page, the referrer with it, and what is cached is asked for with its entity tag."""
    for page in range(pages):
        for kind, count, accept, destination, mode in PAGE:
            for number in range(count):
                lines = [
                    *BROWSER, f"Accept: {accept}", f"Sec-Fetch-Dest: {destination}",
                    f"Sec-Fetch-Mode: {mode}", "Sec-Fetch-Site: same-origin",
                    f"Referer: http://www.example.com/page/{page}",
                    f"Cookie: session=3d1f0c; seen={page}",
                ]
                if page and kind in ("css", "js"):
                    lines.append(f'If-None-Match: "{number:08x}"')
                first = f"GET /{kind}/{page}/{number} HTTP/1.1"
                yield "\r\n".join([first, *lines, "", ""]).encode()


def numbered(make: Callable[[int], bytes], count: int = 5000) -> Iterator[bytes]:
    return map(make, range(count))


SESSIONS: dict[str, Callable[[], Iterable[bytes]]] = {
    "a browser's session, ten pages": session,
    "wrk": lambda: numbered(same),
    "every request different": lambda: numbered(different),
    "ever-new lines": lambda: numbered(new),
}


def fresh(base: type[dict[str, Any]], **members: Any) -> Any:
    """An empty memo of this kind, with some methods replaced."""
    return type(base.__name__, (base,), {"__slots__": ("looked", "missed"), **members})()


def forget() -> None:
    """Let the parser remember no line and no name: each is examined anew."""

    def keep_nothing(self: object, key: str, value: object) -> None: ...

    names = fresh(parser._NameMemo, __setitem__=keep_nothing)
    lines = fresh(parser._LineMemo, __setitem__=keep_nothing)
    parser._names, parser._lines, parser._field = names, lines, lines.__getitem__


def observe(name: str) -> MemoRow:
    """One of the sessions, with an empty memo; the parser's own is put back."""
    count = missed = 0
    before = parser._lines, parser._field

    def missing(self: Any, line: str) -> tuple[str, str]:
        nonlocal missed
        missed += 1
        found: tuple[str, str] = base.__missing__(self, line)
        return found

    base = parser._LineMemo
    memo = fresh(base, __missing__=missing)
    parser._lines, parser._field = memo, memo.__getitem__
    try:
        heads = list(SESSIONS[name]())
        for head in heads:
            parser.parse_head(head)
            count += head.count(b"\r\n") - 2
    finally:
        parser._lines, parser._field = before
    return MemoRow(name, "hop", len(heads), count, 1 - missed / count, len(memo))


def memo() -> list[MemoRow]:
    """Every session."""
    return [observe(name) for name in SESSIONS]
