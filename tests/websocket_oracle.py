"""wsproto as an oracle: it reads what a client sends, and knows nothing of hop."""

from collections.abc import Iterable

from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from hop.websocket import Close, Event, Ping, Pong


def by_wsproto(pieces: Iterable[bytes], deflate: bool = False) -> tuple[list[Event], int | None]:
    """Its events before a violation, and the code of that or None.

    The payloads of a message's frames are put together here; nothing is read behind a Close.
    """
    extension = PerMessageDeflate(client_no_context_takeover=True)
    extension._enabled = True
    protocol = FrameProtocol(client=False, extensions=[extension] if deflate else [])
    events, parts = [], []
    try:
        for piece in pieces:
            protocol.receive_bytes(piece)
            for frame in protocol.received_frames():
                if frame.opcode is Opcode.CLOSE:
                    events.append(Close(int(frame.payload[0]), frame.payload[1]))
                    return events, None
                if frame.opcode.iscontrol():
                    events.append((Ping if frame.opcode is Opcode.PING else Pong)(frame.payload))
                    continue
                parts.append(frame.payload)
                if frame.message_finished:
                    events.append(type(parts[0])().join(parts))
                    parts.clear()
    except ParseFailed as error:
        return events, int(error.code)
    return events, None
