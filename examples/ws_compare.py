"""The four WebSocket styles side by side: their code, and what their threads do.

`lines` counts code, `record` watches a server's threads while a few clients speak, and `draw`
makes a picture of it. What they cost is measured by examples/bench_websocket.py.
"""

import ast
import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from examples import ws_websockets_event, ws_websockets_std, ws_wsproto_high, ws_wsproto_low
from examples.load_ws import masked, unmasked, upgrade

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication
    from matplotlib.figure import Figure

STYLES: dict[str, ModuleType] = {
    "wsproto low": ws_wsproto_low,
    "wsproto high": ws_wsproto_high,
    "websockets std": ws_websockets_std,
    "websockets event": ws_websockets_event,
}
PAYLOAD = b"hello"


def code_lines(source: str) -> int:
    """Lines of code: neither blank, nor a comment, nor part of a docstring."""
    docstrings: set[int] = set()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node):
            first = node.body[0]
            docstrings.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return sum(
        number not in docstrings and bool(line.strip()) and not line.lstrip().startswith("#")
        for number, line in enumerate(source.splitlines(), 1)
    )


def lines(style: str) -> int:
    """Lines of code of a style; the protocol that the two `websockets` styles share is counted
    for each of them."""
    module = STYLES[style]
    count = code_lines(Path(str(module.__file__)).read_text())
    if module is ws_websockets_event:
        count += code_lines(inspect.getsource(ws_websockets_std.Echo))
    return count


@dataclass(frozen=True)
class Side:
    """One style: lines of code, threads and bytes for each idle connection, and microseconds of
    processor time for a message of 64 bytes there and back."""

    style: str
    lines: int
    threads: float
    bytes: float
    microseconds: float


def side_by_side(connections: int = 300, seconds: float = 0.5) -> list[Side]:
    """All four on hop, each in a process of its own; small runs, for a first look."""
    from examples.bench_websocket import hold, measure

    sides = []
    for style in STYLES:
        name = f"hop-{style.replace(' ', '-')}"
        idle, busy = hold(name, connections), measure(name, 50, seconds)
        if idle.connections < connections or busy.errors:
            raise RuntimeError(f"{name} lost connections")
        sides.append(
            Side(style, lines(style), round(idle.threads_each, 2), idle.bytes_each, busy.cpu)
        )
    return sides


@dataclass(frozen=True)
class Span:
    """What one thread did for one client, in seconds since the recording began: it ran the
    style's code (`busy`), or sat and waited for bytes."""

    thread: str
    client: int
    start: float
    end: float
    busy: bool


class Watch:
    """Puts itself between an application and `hop.hijacker`, and notes who works and who waits."""

    def __init__(self, application: "WSGIApplication") -> None:
        self.application, self.spans = application, list[Span]()
        self.names: dict[int, str] = {}
        self.clients = 0
        self.began = time.perf_counter()
        self.lock = threading.Lock()

    def __call__(
        self, environ: dict[str, Any], start_response: "StartResponse"
    ) -> Iterable[bytes]:
        with self.lock:
            self.clients += 1
            hijacker = Watched(self, environ["hop.hijacker"], self.clients)
        environ["hop.hijacker"] = hijacker
        began = time.perf_counter()
        result = self.application(environ, start_response)
        if not hijacker.hijacked:
            self.note(hijacker.client, began, busy=True)
        return result

    def note(self, client: int, start: float, *, busy: bool) -> None:
        """The calling thread has done so from `start` until now."""
        with self.lock:
            name = self.names.setdefault(threading.get_ident(), f"thread {len(self.names) + 1}")
            end = time.perf_counter()
            span = Span(name, client, start - self.began, end - self.began, busy)
            self.spans.append(span)


class Watched:
    """A hijacker that tells the watch what its handlers and sockets do."""

    def __init__(self, watch: Watch, hijacker: Any, client: int) -> None:
        self.watch, self.hijacker, self.client = watch, hijacker, client
        self.hijacked = False

    def set_read_handler(self, handler: Callable[[Any, bytes], object], **callbacks: Any) -> Any:
        def noted(channel: Any, data: bytes) -> None:
            start = time.perf_counter()
            handler(channel, data)
            self.watch.note(self.client, start, busy=True)

        return self.hijacker.set_read_handler(noted, **callbacks)

    def hijack(self) -> Any:
        self.hijacked = True
        return WatchedSocket(self.watch, self.hijacker.hijack(), self.client)


class WatchedSocket:
    """A hijacked socket; between two reads its thread works, within one it waits."""

    def __init__(self, watch: Watch, sock: Any, client: int) -> None:
        self.watch, self.sock, self.client = watch, sock, client
        self.since = time.perf_counter()

    def recv(self, size: int) -> Any:
        self.watch.note(self.client, self.since, busy=True)
        start = time.perf_counter()
        try:
            return self.sock.recv(size)
        finally:
            self.watch.note(self.client, start, busy=False)
            self.since = time.perf_counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)

    def __enter__(self) -> "WatchedSocket":
        return self

    def __exit__(self, *how: object) -> None:
        self.watch.note(self.client, self.since, busy=True)
        self.sock.close()


@contextlib.contextmanager
def on_hop(application: "WSGIApplication") -> Iterator[int]:
    """hop in a thread; the port."""
    from hop.testing import serve

    with serve(application) as served:
        yield served.port


def record(
    style: str, clients: int = 3, messages: int = 4, pause: float = 0.02,
    server: Callable[..., contextlib.AbstractContextManager[int]] = on_hop,
) -> list[Span]:
    """What the server's threads do while so many clients come, speak in turn, and go."""
    watch = Watch(STYLES[style].application)
    with server(watch) as port:
        watch.began = time.perf_counter()
        socks = [upgrade(port, "/") for _ in range(clients)]
        for _ in range(messages):
            for sock in socks:
                time.sleep(pause)
                sock.sendall(masked(PAYLOAD))
                answer = sock.recv(100)
                assert answer == unmasked(PAYLOAD)
        time.sleep(pause)
        for sock in socks:
            sock.sendall(masked(b"", 0x88))
            while sock.recv(100):
                pass
            sock.close()
    return watch.spans


def draw(recordings: dict[str, Sequence[Span]]) -> "Figure":
    """A row of bars for each thread: pale where it waits for one client, solid where it works."""
    from matplotlib import pyplot

    heights = [len({span.thread for span in spans}) + 0.8 for spans in recordings.values()]
    figure, axes = pyplot.subplots(
        len(recordings), 1, figsize=(8, 0.45 * sum(heights) + 0.6), sharex=True, squeeze=False,
        height_ratios=heights, layout="constrained",
    )
    colours = pyplot.get_cmap("tab10")
    for (style, spans), axis in zip(recordings.items(), axes.flat, strict=True):
        names = sorted({span.thread for span in spans})
        for span in spans:
            # A handler runs for some 50 µs: shown as wide as can be seen.
            wide = max(span.end - span.start, 0.002) if span.busy else span.end - span.start
            axis.barh(
                names.index(span.thread), 1000 * wide, left=1000 * span.start, height=0.7,
                color=colours(span.client - 1), alpha=1.0 if span.busy else 0.18, linewidth=0,
            )
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_title(style, loc="left", fontsize=10)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes.flat[-1].set_xlim(left=0)
    axes.flat[-1].set_xlabel("milliseconds; a colour is a client, pale: the thread waits for it")
    return figure
