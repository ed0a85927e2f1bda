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
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
MANY = 100_000


@dataclass(frozen=True)
class Options:
    """What to serve, and how: `target` is MODULE:APP, `keep_alive` is in seconds; `threads` are
    those of a pool, None what the server has by default."""

    target: str
    port: int
    threads: int | None = None
    keep_alive: int = 600

    def load(self, suffix: str = "") -> Any:
        """The application itself. Raises AttributeError when the module has none of that name."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name + suffix)


def bare(options: Options) -> None:
    from examples.bare import serve

    serve(HOST, options.port)


def hop(options: Options, *more: str) -> None:
    """As `python -m hop` starts it, with everything as it is by default."""
    from hop.__main__ import main

    address, patience = f"{HOST}:{options.port}", str(options.keep_alive)
    arguments = ["--bind", address, "--keep-alive-timeout", patience, *more]
    sys.exit(main([options.target, *arguments]))


def hop_twice(options: Options) -> None:
    hop(options, "--processes", "2")


def hop_hasty(options: Options) -> None:
    """With every answer sent as soon as it is made: what it costs to wait for none."""
    from hop.connection import Connection
    from hop.leader import InlineLoop

    def at_once(self: InlineLoop, conn: Connection, data: bytes) -> None:
        conn.write(data)

    InlineLoop.answer = at_once  # type: ignore[method-assign]
    hop(options)


def hop_unwatched(options: Options) -> None:
    """Without the monitor: no product, but what there is to compare it with."""
    from hop.leader import Monitor

    def wait(self: Monitor, over: Callable[[], bool], may_sleep: object) -> None:
        self._bell.acquire()
        while not over():
            time.sleep(0.01)

    Monitor.run = wait  # type: ignore[method-assign]
    hop(options)


def hop_forgetful(options: Options) -> None:
    """Without the memo of header lines: what it saves is the difference."""
    from examples.memo import forget

    forget()
    hop(options)


def std(options: Options, nodelay: bool = False) -> None:
    from examples.std import StdServer

    StdServer(options.load(), f"{HOST}:{options.port}", nodelay).serve_forever()


def std_nodelay(options: Options) -> None:
    std(options, nodelay=True)


NGINX = """\
daemon off; worker_processes 1; error_log stderr crit; pid {port}.pid; {user}
events {{ worker_connections 100000; }}
http {{
  access_log off; sendfile on; tcp_nopush on; default_type text/plain;
  keepalive_timeout {keep_alive}; keepalive_requests 1000000000;
  server {{
    listen {host}:{port} backlog=2048;
    location / {{ return 200 "{hello}\\n"; }}
    location = /file {{ alias {file}; }}
  }}
}}
"""


def nginx(options: Options) -> None:
    """One worker; the program takes the place of this process."""
    from examples.peers import nginx as program
    from examples.workloads import FILE, HELLO

    folder = Path(tempfile.gettempdir(), "hop-benchmark-nginx")
    folder.mkdir(exist_ok=True)
    config = folder / f"{options.port}.conf"
    config.write_text(NGINX.format(
        port=options.port, host=HOST, keep_alive=options.keep_alive, file=FILE,
        hello=HELLO.decode().strip(), user="" if os.getuid() else "user root;",
    ))
    path = program() or "nginx"
    os.execv(path, [path, "-p", str(folder), "-e", "stderr", "-c", str(config)])


def pool(options: Options, name: str) -> dict[str, int]:
    """The number of threads by the server's name for it, or nothing where it shall choose."""
    return {name: options.threads} if options.threads else {}


def waitress(options: Options) -> None:
    import waitress

    waitress.serve(
        options.load(), host=HOST, port=options.port, connection_limit=MANY,
        channel_timeout=options.keep_alive, backlog=2048, asyncore_use_poll=True, _quiet=True,
        max_request_body_size=1 << 40, **pool(options, "threads"),
    )


def gunicorn(options: Options) -> None:
    from gunicorn.app.base import BaseApplication

    class Application(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            settings = {
                "bind": f"{HOST}:{options.port}", "worker_class": "gthread",
                "threads": options.threads or 64, "worker_connections": MANY,
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
        (HOST, options.port), options.load(), request_queue_size=2048,
        timeout=options.keep_alive, **pool(options, "numthreads"),
    ).start()


def granian(options: Options) -> None:
    from granian import Granian
    from granian.constants import Interfaces

    Granian(
        options.target, address=HOST, port=options.port, interface=Interfaces.WSGI,
        blocking_threads=options.threads, log_enabled=False, backlog=2048,
        backpressure=MANY,
    ).serve()


def uvicorn(options: Options) -> None:
    import uvicorn

    try:
        application = options.load("_asgi")
    except AttributeError:
        from a2wsgi import WSGIMiddleware

        application = WSGIMiddleware(options.load(), workers=options.threads or 64)
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


def gevent(options: Options) -> None:
    from gevent.pywsgi import WSGIServer

    WSGIServer((HOST, options.port), options.load(), backlog=2048, log=None).serve_forever()


KINDS: dict[str, Callable[[Options], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        hop, hop_hasty, hop_unwatched, hop_forgetful, hop_twice, std, std_nodelay, bare, waitress,
        gunicorn, cheroot, granian, uvicorn, bjoern, fastwsgi, gevent, nginx,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("target")
    parser.add_argument("port", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--keep-alive", type=int, default=600)
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
