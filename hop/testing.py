# Tangled from notebooks/08_server.ipynb. Edit the notebook.
"""A server for tests: on a free port while a `with` block runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hop.engine import Application, Engine
from hop.server import Server

__all__ = ["Served", "fixture", "serve"]


class Served:
    """A running server: `url` ("http://127.0.0.1:40123"), `host`, `port`, and `server` itself.

    On a Unix socket `url` is "unix:/path", `host` is empty, and `port` is 0.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.url = server.addresses[0]
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        self.host, self.port = (host.strip("[]"), int(port)) if port.isdigit() else ("", 0)


@contextmanager
def serve(
    app: Application | Engine,
    *,
    bind: str = "127.0.0.1:0",
    shutdown_timeout: float | None = 5.0,
    **options: Any,
) -> Iterator[Served]:
    """Serve `app`, or an engine that is set up already, for the length of the block.

    `options` are those of Server. An error at start-up is raised here.

    >>> with serve(app) as served:
    ...     urllib.request.urlopen(served.url)
    """
    engine = app if isinstance(app, Engine) else Engine(app)
    server = Server(engine, shutdown_timeout=shutdown_timeout, **options)
    failure: list[BaseException] = []

    def run() -> None:
        try:
            server.serve(bind)
        except BaseException as error:
            failure.append(error)
            server.started.set()

    thread = threading.Thread(target=run, name="hop server", daemon=True)
    thread.start()
    server.started.wait()
    if failure:
        raise failure[0]
    try:
        yield Served(server)
    finally:
        server.shutdown()
        thread.join()


def fixture(app: Application | Engine, **options: Any) -> Any:
    """A pytest fixture that serves `app` for the length of a test.

    In conftest.py: `live_server = hop.testing.fixture(app)`.
    """
    import pytest

    @pytest.fixture
    def served() -> Iterator[Served]:
        with serve(app, **options) as running:
            yield running

    return served
