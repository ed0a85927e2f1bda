"""`/ws-websockets-std`: an echo in a classic blocking loop, with a thread for every connection.

`hijack()` takes the socket out of the poller for good; the loop below reads and writes it as one
has always done. The protocol is that of the `websockets` library without its input and output:
it answers the handshake, pings and the close, and refuses messages beyond `MAX_MESSAGE` (code
1009). This is what also runs on the standard library's server.

Left out on purpose: compression, subprotocols, the check of Origin, and pings of our own.
"""

import codecs
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from examples import stats
from examples.upgrade import (
    GOING_AWAY,
    MAX_MESSAGE,
    STALLED,
    Refusal,
    hijacker,
    refusable,
    request_fields,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

LINGER = 10.0  # seconds that a client may take to close, once it has been told to


class Echo:
    """One connection: the protocol's state, and what has arrived of a message."""

    __slots__ = ("decoder", "message", "protocol")

    def __init__(self) -> None:
        self.protocol = ServerProtocol(state=State.OPEN, max_size=MAX_MESSAGE)
        self.message = bytearray()
        self.decoder: codecs.IncrementalDecoder | None = None  # of a text that is not yet whole

    def accept(self, environ: dict[str, Any]) -> Response:
        """The answer that accepts the request. Raises `Refusal` with that which does not."""
        request = Request(
            environ["PATH_INFO"], Headers(request_fields(environ)),
            environ["REQUEST_METHOD"], environ["SERVER_PROTOCOL"],
        )
        response = self.protocol.accept(request)
        if response.status_code != 101:
            fields = [("Upgrade", "websocket")] if response.status_code == 426 else []
            status = f"{response.status_code} {response.reason_phrase}"
            raise Refusal(status, response.body.decode().strip(), fields)
        return response

    def received(self, data: bytes) -> list[bytes]:
        """What to send for these bytes; `b""` at its end: nothing more will follow."""
        self.protocol.receive_data(data)
        for frame in self.protocol.events_received():
            # Whoever has closed, or broken the rules, does not wait for an echo.
            if isinstance(frame, Frame) and self.protocol.state is State.OPEN:
                self.frame(frame)
        return self.protocol.data_to_send()

    def frame(self, frame: Frame) -> None:
        """Put a message together, see that a text is UTF-8, and send the whole back."""
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        if frame.opcode is Opcode.TEXT:
            self.decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            if self.decoder is not None:
                self.decoder.decode(frame.data, frame.fin)
        except UnicodeDecodeError:
            self.protocol.fail(CloseCode.INVALID_DATA, "the text is not UTF-8")
            return
        self.message += frame.data
        if frame.fin:
            whole, self.message = self.message, bytearray()
            send = self.protocol.send_binary if self.decoder is None else self.protocol.send_text
            self.decoder = None
            send(whole)


def serve(sock: socket.socket, echo: Echo) -> None:
    """Wait, read, answer, until the client goes or the server stops and nothing can be read.

    Raises OSError when the connection fails.
    """
    while data := sock.recv(1 << 16):
        sock.settimeout(STALLED)
        for piece in echo.received(data):
            if piece:
                sock.sendall(piece)
            else:
                sock.shutdown(socket.SHUT_WR)
        sock.settimeout(LINGER if echo.protocol.close_expected() else None)
    if not echo.protocol.close_expected():
        sock.sendall(GOING_AWAY)


@refusable
def application(environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
    """Accept, and stay here as long as the client does."""
    echo = Echo()
    response = echo.accept(environ)
    try:
        with hijacker(environ).hijack() as sock, stats.counted("ws-websockets-std"):
            sock.sendall(response.serialize())
            serve(sock, echo)
    except OSError:
        pass  # the client has gone or does not read, or the server lends no more threads
    return []
