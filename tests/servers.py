"""The two servers that every application is tried on: the standard library's, and hop."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from wsgiref.validate import validator

from examples.std import StdServer
from hop.testing import serve


@contextlib.contextmanager
def std(application: Any) -> Iterator[int]:
    """The standard library's server in a thread; gives the port."""
    server = StdServer(application, "127.0.0.1:0", nodelay=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


@contextlib.contextmanager
def hop(application: Any) -> Iterator[int]:
    """hop in a thread; gives the port."""
    with serve(application) as served:
        yield served.port


SERVERS = {"std": std, "hop": hop}


class Reader:
    """`wsgi.input` for frameworks under wsgiref's validator, which demands a size for `read`
    although PEP 3333 makes it optional."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size)

    def readline(self, *size: int) -> bytes:
        return self._stream.readline(*size)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)


def validated(application: Any) -> Any:
    """The application between wsgiref's validator and us."""

    def inner(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.input"] = Reader(environ["wsgi.input"])
        return application(environ, start_response)

    return validator(inner)
