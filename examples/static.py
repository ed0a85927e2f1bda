"""A folder of files over WSGI: their types, and no way out of it."""

import mimetypes
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from hop.streams import send_file

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

TYPES = {".js": "text/javascript", ".woff2": "font/woff2", ".epub": "application/epub+zip"}


def content_type(name: str) -> str:
    """The media type for a file's name; text is said to be UTF-8.

    The few types that the machine's own table may spell otherwise come first.
    """
    kind = TYPES.get(Path(name).suffix) or mimetypes.guess_type(name)[0]
    if kind is None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


class Folder:
    """A WSGI application that serves the files below `root` under `prefix`.

    What does not exist, and what would lead out of `root` (`..`, a symbolic link), gets 404
    with `hint` when the folder itself is missing. `index.html` stands for its directory.
    """

    def __init__(self, prefix: str, root: Path, hint: str) -> None:
        self.prefix, self.root, self.hint = prefix, root, hint

    def find(self, environ: dict[str, Any]) -> Path | None:
        """The path below `root` that the request names, or None for a name that is not one."""
        name = environ["PATH_INFO"].removeprefix(self.prefix)
        try:
            parts = name.encode("latin-1").decode("utf-8").split("/")
        except UnicodeError:
            return None
        if any(part == ".." or "\0" in part or "\\" in part for part in parts):
            return None
        root = self.root.resolve()
        try:
            path = root.joinpath(*filter(None, parts)).resolve()
        except (OSError, RuntimeError):
            return None
        return path if path.is_relative_to(root) else None

    def __call__(
        self, environ: dict[str, Any], start_response: "StartResponse"
    ) -> Iterable[bytes]:
        path, asked = self.find(environ), environ["PATH_INFO"]
        try:
            if path is None:
                return self.missing(start_response)
            if not path.is_dir():
                if asked.endswith("/"):
                    return self.missing(start_response)
                return self.send(environ, start_response, path)
            if asked.endswith("/"):
                return self.send(environ, start_response, path / "index.html")
            return self.redirect(environ, start_response)
        except OSError:
            return self.missing(start_response)

    def send(
        self, environ: dict[str, Any], start_response: "StartResponse", path: Path
    ) -> Iterable[bytes]:
        """The file, under the type that its name says."""
        return send_file(environ, start_response, path, content_type(path.name))

    def redirect(
        self, environ: dict[str, Any], start_response: "StartResponse"
    ) -> list[bytes]:
        """A directory's links are relative to its name with a slash."""
        place = quote(environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"], encoding="latin-1")
        headers = [("Location", f"/{place.lstrip('/')}/"), ("Content-Length", "0")]
        start_response("308 Permanent Redirect", headers)
        return []

    def missing(self, start_response: "StartResponse") -> list[bytes]:
        """404, with the hint when there is no folder at all."""
        text = "No such page." if self.root.is_dir() else self.hint
        body = f"{text}\n".encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
        ]
        start_response("404 Not Found", headers)
        return [body]
