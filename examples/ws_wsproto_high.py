"""`/ws-wsproto-high`: an echo at the level of events, without a thread.

wsproto does it all, the handshake too: `WSConnection` takes the request, says what to answer, and
from then on turns bytes into events and events into bytes. Messages are put together before
they are echoed, up to `MAX_MESSAGE` bytes (then close code 1009). Compression is negotiated when
the client offers it.

Left out on purpose: subprotocols, the check of Origin, and pings of our own. `hop.websocket` has
all three.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import h11
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    TextMessage,
)
from wsproto.extensions import PerMessageDeflate
from wsproto.utilities import RemoteProtocolError

from examples import stats
from examples.upgrade import (
    MAX_MESSAGE,
    Fields,
    Refusal,
    give,
    refusable,
    request_fields,
    sixteen_bytes,
    take_over,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

# Compressed bytes looked at in one go: 4 KiB grow to 4 MiB at most, so that a few bytes that
# unfold to gigabytes meet MAX_MESSAGE early.
SLICE = 1 << 12


def handshake(environ: dict[str, Any]) -> tuple[Connection, Fields]:
    """The protocol's state and the fields that accept. Raises `Refusal` as wsproto advises."""
    ws = WSConnection(ConnectionType.SERVER)
    fields = [(name.encode(), value.encode("latin-1")) for name, value in request_fields(environ)]
    if environ["REQUEST_METHOD"] != "GET" or environ["SERVER_PROTOCOL"] != "HTTP/1.1":
        raise Refusal("400 Bad Request", "A WebSocket begins with GET and HTTP/1.1.")
    try:
        ws.initiate_upgrade_connection(fields, environ["PATH_INFO"])
    except RemoteProtocolError as error:
        hint: Any = error.event_hint
        status = "426 Upgrade Required" if hint.status_code == 426 else "400 Bad Request"
        raise Refusal(status, f"{error}.", decoded(hint.headers)) from None
    except h11.LocalProtocolError as error:
        raise Refusal("400 Bad Request", f"{error}.") from None
    if not sixteen_bytes(environ["HTTP_SEC_WEBSOCKET_KEY"]):
        raise Refusal("400 Bad Request", "Sec-WebSocket-Key is not 16 bytes in Base64.")
    answer = ws.send(AcceptConnection(extensions=[PerMessageDeflate()]))
    assert ws.connection is not None
    lines = [line.split(b": ", 1) for line in answer.split(b"\r\n")[1:-2]]
    return ws.connection, decoded((name.title(), value) for name, value in lines)


def decoded(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Fields as WSGI has them; those that are the server's business are left to it."""
    return [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in fields
        if name.lower() != b"connection"
    ]


class Echo:
    """One connection: wsproto's state, and what has arrived of a message that is not whole."""

    __slots__ = ("partial", "ws")

    def __init__(self, ws: Connection) -> None:
        self.ws = ws
        self.partial: bytearray | None = None

    def received(self, data: bytes) -> tuple[bytes, bool]:
        """What to send for these bytes, and whether the connection is over then."""
        output = []
        for start in range(0, len(data), SLICE):
            self.ws.receive_data(data[start : start + SLICE])
            for event in self.ws.events():
                answer = self.answer(event)
                if answer is not None:
                    output.append(self.ws.send(answer))
                    if isinstance(answer, CloseConnection):
                        return b"".join(output), True
        return b"".join(output), False

    def answer(self, event: Event) -> Event | None:
        """What this event is answered with: nothing, if it is a pong or part of a message."""
        if isinstance(event, Message):
            return self.message(event)
        if isinstance(event, (Ping, CloseConnection)):
            return event.response()
        return None

    def message(self, event: Message[Any]) -> Event | None:
        """The message, when this piece is its last one; the end, when it becomes too long."""
        if event.message_finished and self.partial is None:
            return event
        text = isinstance(event, TextMessage)
        if self.partial is None:
            self.partial = bytearray()
        self.partial += event.data.encode() if text else event.data
        if len(self.partial) > MAX_MESSAGE:
            return CloseConnection(code=1009, reason="the message is too long")
        if not event.message_finished:
            return None
        whole, self.partial = bytes(self.partial), None
        return TextMessage(data=whole.decode()) if text else BytesMessage(data=whole)


def received(channel: Any, data: bytes) -> None:
    """Answer all that these bytes complete, in one write."""
    output, over = channel.data.received(data)
    if output:
        give(channel, output)
    if over:
        channel.close()


@refusable
def application(environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
    """Accept, and let `received` be called whenever something arrives."""
    ws, fields = handshake(environ)
    channel = take_over(environ, received, stats.left("ws-wsproto-high"))
    channel.data = Echo(ws)
    stats.joined("ws-wsproto-high")
    start_response("101 Switching Protocols", fields)
    return []
