"""`python -m examples.launch KIND MODULE:APP PORT`: one server, in a process of its own.

The benchmarks start every server through this file, with the Python that has it installed.
Each is set up as its documentation advises for one process, without an access log; where a
default would cut the run short (waitress takes 100 connections, gunicorn keeps one alive for
2 seconds), it is raised.
"""

# mypy: disable-error-code="import-not-found, import-untyped"
# The other servers need not be installed where types are checked.

import argparse
import importlib
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

HOST = "127.0.0.1"
MANY = 100_000


@dataclass(frozen=True)
class Options:
    """What to serve, and how: `target` is MODULE:APP, `keep_alive` is in seconds."""

    target: str
    port: int
    threads: int = 64
    keep_alive: int = 600
    nodelay: bool = False

    def load(self, suffix: str = "") -> Any:
        """The application itself. Raises AttributeError when the module has none of that name."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name + suffix)


def bare(options: Options) -> None:
    from examples.bare import serve

    serve(HOST, options.port)


def hop(options: Options) -> None:
    from hop import Engine, Server

    server = Server(Engine(options.load()), keep_alive_timeout=options.keep_alive)
    server.serve(f"{HOST}:{options.port}")


def std(options: Options) -> None:
    from examples.std import StdServer

    StdServer(options.load(), f"{HOST}:{options.port}", options.nodelay).serve_forever()


def waitress(options: Options) -> None:
    import waitress

    waitress.serve(
        options.load(), host=HOST, port=options.port, threads=options.threads,
        connection_limit=MANY, channel_timeout=options.keep_alive, backlog=2048, _quiet=True,
    )


def gunicorn(options: Options) -> None:
    from gunicorn.app.base import BaseApplication

    class Application(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            settings = {
                "bind": f"{HOST}:{options.port}", "worker_class": "gthread",
                "threads": options.threads, "worker_connections": MANY,
                "keepalive": options.keep_alive, "loglevel": "error",
            }
            for name, value in settings.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return options.load()

    Application().run()


def cheroot(options: Options) -> None:
    from cheroot.wsgi import Server

    Server(
        (HOST, options.port), options.load(), numthreads=options.threads,
        request_queue_size=2048, timeout=options.keep_alive,
    ).start()


def granian(options: Options) -> None:
    from granian import Granian
    from granian.constants import Interfaces

    Granian(
        options.target, address=HOST, port=options.port, interface=Interfaces.WSGI,
        blocking_threads=options.threads, log_enabled=False, backlog=2048,
    ).serve()


def uvicorn(options: Options) -> None:
    import uvicorn

    try:
        application = options.load("_asgi")
    except AttributeError:
        from a2wsgi import WSGIMiddleware

        application = WSGIMiddleware(options.load(), workers=options.threads)
    uvicorn.run(
        application, host=HOST, port=options.port, loop="uvloop", http="httptools",
        log_level="error", access_log=False, timeout_keep_alive=options.keep_alive,
    )


def bjoern(options: Options) -> None:
    import bjoern

    bjoern.run(options.load(), HOST, options.port)


def fastwsgi(options: Options) -> None:
    import fastwsgi

    fastwsgi.run(options.load(), HOST, options.port, loglevel=0)


KINDS: dict[str, Callable[[Options], None]] = {
    function.__name__: function
    for function in (
        hop, std, bare, waitress, gunicorn, cheroot, granian, uvicorn, bjoern, fastwsgi
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("target")
    parser.add_argument("port", type=int)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--keep-alive", type=int, default=600)
    parser.add_argument("--nodelay", action="store_true")
    parser.add_argument("--cpu", type=int, help="run on this processor only")
    values = vars(parser.parse_args())
    kind, cpu = values.pop("kind"), values.pop("cpu")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    KINDS[kind](Options(**values))


if __name__ == "__main__":
    main()
