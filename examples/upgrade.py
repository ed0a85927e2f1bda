"""What the WebSocket examples share: how they get the connection, and how they refuse."""

import base64
import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

MAX_MESSAGE = 16 << 20  # bytes; a longer message ends the connection with code 1009
MAX_UNREAD = 2 * MAX_MESSAGE  # bytes that may wait for a client before it is cut off
GOING_AWAY = b"\x88\x02\x03\xe9"  # a close frame with code 1001: the server stops
STALLED = 30.0  # seconds in which a client takes nothing of what waits for it

Fields = list[tuple[str, str]]


class Refusal(Exception):
    """The handshake ends here: a status, a sentence, and the fields that go with it."""

    def __init__(self, status: str, text: str, fields: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(status, text)
        self.status, self.text, self.fields = status, text, list(fields)


def refusable(application: "WSGIApplication") -> "WSGIApplication":
    """The application, with a `Refusal` raised in it turned into a short plain answer."""

    @functools.wraps(application)
    def answer(environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
        try:
            return application(environ, start_response)
        except Refusal as refusal:
            body = f"{refusal.text}\n".encode()
            fields = [
                ("Content-Type", "text/plain; charset=utf-8"),
                ("Content-Length", str(len(body))),
                *refusal.fields,
            ]
            start_response(refusal.status, fields)
            return [body]

    return answer


def request_fields(environ: dict[str, Any]) -> Fields:
    """The request's header fields, under names that the libraries know."""
    return [
        (key[5:].replace("_", "-").title(), value)
        for key, value in environ.items()
        if key.startswith("HTTP_") and key != "HTTP_TRANSFER_ENCODING"
    ]


def sixteen_bytes(key: str) -> bool:
    """Whether Sec-WebSocket-Key is the Base64 of 16 bytes (RFC 6455, 4.2.1, point 5)."""
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


def hijacker(environ: dict[str, Any]) -> Any:
    """What can give the connection away. Raises `Refusal` where the server has no such thing."""
    if not environ.get("hop.hijacker"):
        raise Refusal("501 Not Implemented", "This server does not give connections away.")
    return environ["hop.hijacker"]


def take_over(
    environ: dict[str, Any],
    handler: Callable[[Any, bytes], object],
    on_close: Callable[[Any], object] | None = None,
) -> Any:
    """The connection as a channel: `handler(channel, data)` will be called with what arrives.

    Raises `Refusal` where no poller could call it.
    """
    try:
        channel = hijacker(environ).set_read_handler(handler, on_close=on_close)
    except NotImplementedError as error:
        raise Refusal("501 Not Implemented", str(error)) from None
    channel.write_timeout = STALLED
    channel.on_shutdown = say_goodbye
    return channel


def say_goodbye(channel: Any) -> None:
    """The server stops: tell the client why the connection ends."""
    channel.write(GOING_AWAY)
    channel.close()


def give(channel: Any, data: bytes) -> None:
    """Write; a client that sends and sends, and reads nothing of the echo, is cut off."""
    if channel.write(data) and channel.pending > MAX_UNREAD:
        channel.abort()
