"""The corpus of WebSocket frames: what a client sends, and what a server has to make of it.

The cases are in `tests/corpus/websocket/*.toml`. A case has

- `name`, unique in the corpus, and `rfc`, the number and section that decides;
- `sends`, a list of frames, masked and whole unless they say otherwise. A frame has `first`, its
  first byte; a payload as `text` or `hex`; `times` to repeat the payload; `form`, 7, 16 or 64,
  the bits of its length when that is not the shortest form; `length`, what it claims to be its
  length; `masked = false`; `cut`, how many bytes of it are sent. `raw` gives the bytes instead;
- `code`, the close code of the violation that ends it, or none if everything is allowed;
- `sees`, the events before: `{ text = }`, `{ hex = }`, `{ ping = }` with `times` perhaps,
  `{ pong = }` in hex, `{ close =, reason = }`;
- sometimes `deflate = true`, `limit` in bytes, and `wsproto` or `websockets`: the code with which
  that library refuses, 0 if it does not, where it differs from us. `note` says why.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hop.websocket import Close, Event, Ping, Pong, unmask
from tests.corpus import read

FOLDER = Path(__file__).parent / "corpus" / "websocket"
KEYS = {"name", "rfc", "sends", "code", "sees", "deflate", "limit", "wsproto", "websockets", "note"}
MASK = b"\x37\xfa\x21\x3d"


@dataclass(frozen=True)
class Case:
    """One client's bytes and their verdict."""

    name: str
    area: str
    rfc: str
    raw: bytes
    sees: tuple[Event, ...]
    code: int | None
    deflate: bool
    limit: int
    others: dict[str, int]

    def __str__(self) -> str:
        return f"{self.area}/{self.name}"


def client_frame(
    first: int, payload: bytes = b"", *, form: int = 0, length: int | None = None, mask: bool = True
) -> bytes:
    """A frame as a client sends it, or as it should not."""
    size = len(payload) if length is None else length
    form = form or (7 if size < 126 else 16 if size < 1 << 16 else 64)
    short = size if form == 7 else 126 if form == 16 else 127
    head = bytes([first, short | 0x80 * mask]) + size.to_bytes(8, "big")[8 - form // 8 :]
    return head + (MASK + unmask(payload, MASK) if mask else payload)


def load() -> list[Case]:
    """The whole corpus of frames."""
    return read(FOLDER, _case)


def _case(area: str, entry: dict[str, Any]) -> Case:
    if unknown := set(entry) - KEYS:
        raise ValueError(f"{entry['name']}: {unknown}")
    return Case(
        entry["name"], area, entry["rfc"], b"".join(_frame(**frame) for frame in entry["sends"]),
        tuple(_event(**event) for event in entry.get("sees", [])), entry.get("code"),
        entry.get("deflate", False), entry.get("limit", 1 << 24),
        {name: entry[name] for name in ("wsproto", "websockets") if name in entry},
    )


def _payload(text: str = "", times: int = 1, **entry: str) -> bytes:
    return (text.encode() or bytes.fromhex(entry.get("hex", ""))) * times


def _frame(
    first: int = 0, raw: str | None = None, form: int = 0, length: int | None = None,
    masked: bool = True, cut: int | None = None, **payload: Any,
) -> bytes:
    if raw is not None:
        return bytes.fromhex(raw)
    data = _payload(**payload)
    return client_frame(first, data, form=form, length=length, mask=masked)[:cut]


def _event(**entry: Any) -> Event:
    if "ping" in entry:
        return Ping(bytes.fromhex(entry["ping"]) * entry.get("times", 1))
    if "pong" in entry:
        return Pong(bytes.fromhex(entry["pong"]))
    if "close" in entry:
        return Close(entry["close"], entry.get("reason", ""))
    return _payload(**entry).decode() if "text" in entry else _payload(**entry)
