"""`/ws-wsproto-low`: an echo at the level of frames, without a thread.

The handshake is done by hand (RFC 6455, 4.2), then wsproto's `FrameProtocol` turns bytes into
frames and back. Each piece of a frame is echoed as it arrives, so no message is ever held in
memory, however long it is, and a limit on messages would have nothing to limit.

Left out on purpose: compression and subprotocols (none is offered), the check of Origin (an echo
has nothing to protect), pings of our own, and putting fragments together: a long message comes
back in other fragments than it went.
"""

import base64
import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from examples import stats
from examples.upgrade import Fields, Refusal, give, refusable, sixteen_bytes, take_over

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

TEXT, BINARY, PING, CLOSE = Opcode.TEXT, Opcode.BINARY, Opcode.PING, Opcode.CLOSE
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


def tokens(environ: dict[str, Any], name: str) -> list[str]:
    """A comma-separated field of the request, in lower case."""
    return [token.strip().lower() for token in environ.get(f"HTTP_{name}", "").split(",")]


def handshake(environ: dict[str, Any]) -> Fields:
    """The fields that accept the upgrade. Raises `Refusal` with what is wrong (4.2.1)."""
    if environ["REQUEST_METHOD"] != "GET" or environ["SERVER_PROTOCOL"] != "HTTP/1.1":
        raise Refusal("400 Bad Request", "A WebSocket begins with GET and HTTP/1.1.")
    if "websocket" not in tokens(environ, "UPGRADE") or "upgrade" not in tokens(
        environ, "CONNECTION"
    ):
        upgrade = [("Upgrade", "websocket")]
        raise Refusal("426 Upgrade Required", "This address speaks WebSocket only.", upgrade)
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != "13":
        version = [("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")]
        raise Refusal("426 Upgrade Required", "Version 13 of WebSocket is wanted.", version)
    key = environ.get("HTTP_SEC_WEBSOCKET_KEY", "")
    if not sixteen_bytes(key):
        raise Refusal("400 Bad Request", "Sec-WebSocket-Key is not 16 bytes in Base64.")
    accept = base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()
    return [("Upgrade", "websocket"), ("Sec-WebSocket-Accept", accept)]


def echo(channel: Any, data: bytes) -> None:
    """Answer every frame, or piece of one, that these bytes complete, in one write."""
    frames = channel.data
    output: list[bytes | bytearray] = []
    over = False
    frames.receive_bytes(data)
    try:
        for frame in frames.received_frames():
            opcode, payload = frame.opcode, frame.payload
            if opcode is TEXT or opcode is BINARY:
                if payload or frame.message_finished:
                    output.append(frames.send_data(payload, frame.message_finished))
            elif opcode is PING:
                output.append(frames.pong(payload))
            elif opcode is CLOSE:
                output.append(frames.close(payload[0]))
                over = True
    except ParseFailed as error:
        output.append(frames.close(error.code, str(error)))
        over = True
    if output:
        give(channel, b"".join(output))
    if over:
        channel.close()


@refusable
def application(environ: dict[str, Any], start_response: "StartResponse") -> Iterable[bytes]:
    """Accept, and let `echo` be called whenever something arrives."""
    fields = handshake(environ)
    channel = take_over(environ, echo, stats.left("ws-wsproto-low"))
    channel.data = FrameProtocol(client=False, extensions=[])
    stats.joined("ws-wsproto-low")
    start_response("101 Switching Protocols", fields)
    return []
