"""Three parsers read the same heads: microseconds a request, the fastest of many rounds.

hop's and h11's are pure Python; httptools is llhttp, in C, with Python callbacks. Each gives what
a server needs: hop the CGI variables, h11 a list of fields, httptools one call for each field.
"""

import gc
import importlib.util
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import h11

from hop.parser import parse_head

__all__ = ["BROWSER", "SMALL", "Row", "run", "workloads"]

SMALL = b"GET / HTTP/1.1\r\nHost: localhost:1826\r\nAccept: */*\r\n\r\n"

BROWSER = (
    b"GET /articles/2024/polling?page=2&sort=new HTTP/1.1\r\n"
    b"Host: www.example.com\r\n"
    b"Connection: keep-alive\r\n"
    b'sec-ch-ua: "Chromium";v="124", "Google Chrome";v="124", "Not-A.Brand";v="99"\r\n'
    b"sec-ch-ua-mobile: ?0\r\n"
    b'sec-ch-ua-platform: "Linux"\r\n'
    b"Upgrade-Insecure-Requests: 1\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    b"Chrome/124.0.0.0 Safari/537.36\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8\r\n"
    b"Sec-Fetch-Site: none\r\n"
    b"Sec-Fetch-Mode: navigate\r\n"
    b"Sec-Fetch-User: ?1\r\n"
    b"Sec-Fetch-Dest: document\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\n\r\n"
)


@dataclass(frozen=True)
class Row:
    """One parser on one kind of request."""

    workload: str
    server: str
    microseconds: float


def workloads() -> dict[str, list[bytes]]:
    """Requests by kind: a small head, and a browser's of 14 lines in three degrees of sameness."""
    first, _, rest = BROWSER.partition(b"\r\n")
    changing = [
        first.replace(b"page=2", b"page=%d" % n) + b"\r\n" + rest[:-2]
        + b"Cookie: session=%032x\r\n\r\n" % (n * 7919)
        for n in range(100)
    ]  # fmt: skip
    lines = rest[:-4].split(b"\r\n")
    never = [
        first.replace(b"page=2", b"page=%d" % n) + b"\r\n"
        + b"\r\n".join(line + b"%05d" % n for line in lines) + b"\r\n\r\n"
        for n in range(100)
    ]  # fmt: skip
    return {
        "small": [SMALL],
        "browser, repeated": [BROWSER],
        "browser, path and cookie vary": changing,
        "browser, never repeated": never,
    }


def by_h11(data: bytes) -> object:
    """One request through a new connection, as for a client that sends one."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    return connection.next_event()


class Collected:
    """What httptools calls back."""

    def __init__(self) -> None:
        self.url = b""
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        """Remember the target."""
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Remember a field."""
        self.fields.append((name, value))


def httptools_parser() -> Callable[[bytes], object]:
    """A function that parses one request with httptools, which is imported here."""
    from httptools import HttpRequestParser

    def by_httptools(data: bytes) -> object:
        request = Collected()
        parser = HttpRequestParser(request)
        parser.feed_data(data)
        return request, parser.get_method(), parser.should_keep_alive()

    return by_httptools


def fastest(parse: Callable[[bytes], object], requests: Sequence[bytes], rounds: int) -> float:
    """Microseconds a request, in the fastest round: other processes only ever add to it."""
    repeated = list(requests) * max(1, 100 // len(requests))
    best = float("inf")
    gc.disable()
    try:
        for _ in range(rounds):
            begin = time.perf_counter()
            for request in repeated:
                parse(request)
            best = min(best, time.perf_counter() - begin)
    finally:
        gc.enable()
    return best / len(repeated) * 1e6


def run(parse: Callable[[bytes], Any] = parse_head, rounds: int = 200) -> list[Row]:
    """Every parser that is installed on every kind of request; `parse` goes by the name of hop."""
    parsers: dict[str, Callable[[bytes], object]] = {"hop": parse, "h11": by_h11}
    if importlib.util.find_spec("httptools") is not None:
        parsers["httptools"] = httptools_parser()
    return list(_rows(parsers, rounds))


def _rows(parsers: dict[str, Callable[[bytes], object]], rounds: int) -> Iterable[Row]:
    for workload, requests in workloads().items():
        for name, parse in parsers.items():
            times = rounds // 4 if name == "h11" else rounds
            yield Row(workload, name, fastest(parse, requests, times))


if __name__ == "__main__":
    for row in run():
        print(f"{row.workload:32}{row.server:12}{row.microseconds:8.2f} µs")
