"""The example: one WSGI application, served by hop and by the standard library alike."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples import (
    sse,
    stats,
    ws_websockets_event,
    ws_websockets_std,
    ws_wsproto_high,
    ws_wsproto_low,
)
from examples.static import Folder
from hop.streams import send_file

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

type_environ = dict[str, Any]
Handler = Callable[[type_environ, "StartResponse"], Iterable[bytes]]

HERE = Path(__file__).resolve().parent
BOOK = HERE.parent / "build" / "book" / "html"
NO_BOOK = "The book has not been woven yet: run `make book`, then ask again."

OVERVIEW = b"""\
hop: ordinary WSGI applications on a readiness loop.

  /                      this page (a browser gets it alive)
  /ws-wsproto-low        WebSocket echo: wsproto's frames, called when bytes arrive
  /ws-wsproto-high       WebSocket echo: wsproto's events, called when bytes arrive
  /ws-websockets-std     WebSocket echo: a blocking loop, a thread for each connection
  /ws-websockets-event   WebSocket echo: the same protocol, called when bytes arrive
  /sse                   an event stream: the server's time, every second
  /sse-generator         the same from a generator that sleeps, and holds a thread
  /file                  the source of this application: whole, in part, or not at all
  /stats                 an event stream: threads, connections, memory
  /book/                 the book: how the server that answers you was written

The same application is served in both modes:

  python -m examples -type hop
  python -m examples -type std
"""
PAGE = (HERE / "index.html").read_bytes()


def plain(start_response: "StartResponse", status: str, text: str) -> list[bytes]:
    """A short answer in plain text."""
    body = f"{text}\n".encode()
    start_response(
        status,
        [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))],
    )
    return [body]


def overview(environ: type_environ, start_response: "StartResponse") -> Iterable[bytes]:
    """The page at `/`: HTML for whoever asks for text/html, plain text for curl and wrk."""
    if "text/html" in environ.get("HTTP_ACCEPT", ""):
        body, kind = PAGE, "text/html; charset=utf-8"
    else:
        body, kind = OVERVIEW, "text/plain; charset=utf-8"
    headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Vary", "Accept")]
    start_response("200 OK", headers)
    return [body]


def source(environ: type_environ, start_response: "StartResponse") -> Iterable[bytes]:
    """This file, or the part that is asked for. hop gives it to the kernel to send."""
    return send_file(environ, start_response, Path(__file__), "text/plain; charset=utf-8")


ROUTES: dict[str, Handler] = {
    "/": overview,
    "/ws-wsproto-low": ws_wsproto_low.application,
    "/ws-wsproto-high": ws_wsproto_high.application,
    "/ws-websockets-std": ws_websockets_std.application,
    "/ws-websockets-event": ws_websockets_event.application,
    "/sse": sse.sse,
    "/sse-generator": sse.sse_generator,
    "/file": source,
    "/stats": stats.application,
}
FOLDERS: dict[str, Handler] = {
    "/book/": Folder("/book/", BOOK, NO_BOOK),
}


def application(environ: type_environ, start_response: "StartResponse") -> Iterable[bytes]:
    """Find the handler for the path and call it; GET and HEAD are all it knows."""
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        start_response(
            "405 Method Not Allowed", [("Allow", "GET, HEAD"), ("Content-Length", "0")]
        )
        return []
    path = environ["PATH_INFO"]
    handler = ROUTES.get(path)
    if handler is None:
        handler = next((h for prefix, h in FOLDERS.items() if path.startswith(prefix)), None)
    if handler is not None:
        return handler(environ, start_response)
    if f"{path}/" in FOLDERS:
        start_response(
            "308 Permanent Redirect", [("Location", f"{path}/"), ("Content-Length", "0")]
        )
        return []
    return plain(start_response, "404 Not Found", "There is nothing here; the overview is at /.")
