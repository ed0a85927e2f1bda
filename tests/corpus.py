"""The corpus: raw requests, each with what a server has to make of it.

The cases are in `tests/corpus/*.toml`, one file for each area. A case has

- `name`, unique in the whole corpus, and `rfc`, the number and section that decides;
- `raw`, the bytes that the client sends: a string whose characters are bytes (latin-1), or a list
  of such strings and of `{ repeat = "...", times = N }`;
- one verdict: `status`, when the request is refused with it; `sees`, what the application sees; or
  `wait = true`, when the server must wait for more;
- sometimes a `note`.

What `sees` may hold: `method`, `target`, `path`, `query`, `protocol`, `body`, `variables` (these at
least are in the environ), `absent` (these are not), `keep_alive`, `expect_continue`, `trailers`
(pairs), and `rest`, the bytes behind the request.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["Case", "load", "read"]

AnyCase = TypeVar("AnyCase")

FOLDER = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Case:
    """One raw request and its verdict; a case with neither `status` nor `sees` has to wait."""

    name: str
    area: str
    raw: bytes
    rfc: str
    status: int | None
    sees: dict[str, Any] | None
    note: str

    @property
    def waits(self) -> bool:
        """Whether the server must wait for more bytes."""
        return self.status is None and self.sees is None

    def __str__(self) -> str:
        return f"{self.area}/{self.name}"


def read(folder: Path, case: Callable[[str, dict[str, Any]], AnyCase]) -> list[AnyCase]:
    """Read a corpus, area by area, in the order of the files: `case` of the area and each entry."""
    return [
        case(path.stem, entry)
        for path in sorted(folder.glob("*.toml"))
        for entry in tomllib.loads(path.read_text("utf-8"))["case"]
    ]


def load() -> list[Case]:
    """The whole corpus of requests."""
    return read(FOLDER, _case)


def _case(area: str, entry: dict[str, Any]) -> Case:
    verdicts = [key for key in ("status", "sees", "wait") if key in entry]
    unknown = set(entry) - {"name", "rfc", "raw", "note", *verdicts}
    if len(verdicts) != 1 or unknown:
        raise ValueError(f"{area}/{entry.get('name')}: one verdict, and nothing unknown: {entry}")
    return Case(
        name=entry["name"],
        area=area,
        raw=_bytes(entry["raw"]),
        rfc=entry["rfc"],
        status=entry.get("status"),
        sees=entry.get("sees"),
        note=entry.get("note", ""),
    )


def _bytes(raw: str | list[Any]) -> bytes:
    if isinstance(raw, str):
        return raw.encode("latin-1")
    return b"".join(
        _bytes(piece) if isinstance(piece, str) else _bytes(piece["repeat"]) * piece["times"]
        for piece in raw
    )
