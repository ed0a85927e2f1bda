"""`python -m hop MODULE:APP`: the command line."""

import argparse
import gc
import importlib
import logging
import os
import sys
from typing import Any

from hop.engine import Application, Engine
from hop.listener import ListenConfig, parse_bind
from hop.parser import Limits
from hop.server import Server
from hop.storage import Storage

__all__ = ["load_application", "main"]

SWITCH_INTERVAL = 0.0005
EPILOG = """\
examples:
  python -m hop app:app                          a Flask application `app` in app.py
  python -m hop mysite.wsgi                      Django: `application` in mysite/wsgi.py
  python -m hop 'shop:create_app()'              a factory
  python -m hop app:app --bind 127.0.0.1:8000 --bind unix:/run/app.sock
  python -m hop app:app --keep-alive-timeout 600 --max-threads 16 --access-log

Sizes are bytes, times seconds; "none" switches a limit off.
"""


def load_application(name: str) -> Application:
    """The application that `MODULE`, `MODULE:NAME` or `MODULE:FACTORY()` names.

    ValueError says in one line what is wrong with the name.
    """
    module_name, _, attribute = name.partition(":")
    attribute = attribute or "application"
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"there is no module named {error.name!r}") from None
    except (ImportError, ValueError) as error:
        raise ValueError(f"cannot import {module_name!r}: {error}") from None
    for part in attribute.removesuffix("()").split("."):
        if not hasattr(found, part):
            raise ValueError(f"module {module_name!r} has no {attribute.removesuffix('()')!r}")
        found = getattr(found, part)
    if attribute.endswith("()"):
        found = found()
    if not callable(found):
        raise ValueError(f"{name!r} is not a WSGI application: it cannot be called")
    application: Application = found
    return application


def _limit(kind: type) -> Any:
    def convert(text: str) -> Any:
        if text == "none":
            return None
        value = kind(text)
        if value < 0:
            raise ValueError
        return value

    convert.__name__ = f"{kind.__name__} (0 or more) or none"
    return convert


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


_count.__name__ = "count (1 or more)"


def _bind(text: str) -> str:
    try:
        parse_bind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


_seconds, _bytes = _limit(float), _limit(int)

ENGINE = {
    "request_timeout": (_seconds, None, "a handler may run this long; then its client is cut off"),
    "max_drain_size": (_bytes, 256 << 10, "what a refused client may still send"),
    "max_pipelined": (_count, 16, "requests of one client answered before it is others' turn"),
}
SERVER = {
    "pollers": (_count, 1, "event loops in a process; more than one only for free-threaded Python"),
    "processes": (_count, 1, "processes that share the listeners"),
    "max_threads": (_count, 64, "handlers that may block at the same time"),
    "max_connections": (_count, None, "connections at the same time (default: descriptor limit)"),
    "buffer_size": (_count, 65536, "the most that one read takes from a socket"),
    "keep_alive_timeout": (_seconds, 30.0, "an idle connection is closed after this long"),
    "read_timeout": (_seconds, 10.0, "a request's head must arrive within this"),
    "body_timeout": (_seconds, 30.0, "so must its body; every KiB of it buys a second more"),
    "write_timeout": (_seconds, 30.0, "a client that takes nothing of its answer is cut off"),
    "linger_timeout": (float, 2.0, "a refused client may go on sending for this long"),
    "shutdown_timeout": (_seconds, 30.0, "what is in flight may finish when a signal comes"),
}
LIMITS = {
    "line": (_count, 8192, "the request line, or one field line"),
    "head": (_count, 65536, "a whole head"),
    "fields": (_count, 100, "fields in a head"),
    "body": (_bytes, 1 << 30, "a body"),
    "trailers": (_count, 8192, "the trailers of a chunked body"),
}
LISTEN = {
    "backlog": (_count, 2048, "handshakes that wait to be accepted"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hop",
        description="Serve a WSGI application.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("app", metavar="MODULE:APP", help="what to serve; APP: application")
    parser.add_argument(
        "--bind", action="append", type=_bind, metavar="WHERE",
        help="host:port, :port, [ipv6]:port, unix:/path or fd://N; may be repeated (:1826)",
    )  # fmt: skip
    parser.add_argument("--access-log", action="store_true", help="log every request")
    parser.add_argument("--chdir", default=".", metavar="DIR", help="where MODULE is looked for")
    for title, options, prefix in (
        ("server", SERVER, ""), ("engine", ENGINE, ""),
        ("limits of a request", LIMITS, "limit-"), ("listeners", LISTEN, ""),
    ):  # fmt: skip
        group = parser.add_argument_group(title)
        for name, (kind, default, text) in options.items():
            flags = [f"--{prefix}{name.replace('_', '-')}"]
            if name == "max_threads":
                flags.append("--threads")
            group.add_argument(
                *flags, type=kind, default=default, metavar="N",
                dest=prefix.replace("-", "_") + name,
                help=text + ("" if default is None else " (%(default)s)"),
            )  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal comes; the exit status: 0, 1 for a start that failed, 2 for misuse."""
    parser = _parser()
    given = parser.parse_args(argv)
    options = vars(given)
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", level=logging.WARNING)
    if given.access_log:
        logging.getLogger("hop.access").setLevel(logging.INFO)
    os.chdir(given.chdir)
    sys.path.insert(0, os.getcwd())
    try:
        app = load_application(given.app)
    except ValueError as error:
        parser.error(str(error))
    engine = Engine(
        app,
        limits=Limits(**{name: options[f"limit_{name}"] for name in LIMITS}),
        storage=Storage(),
        **{name: options[name] for name in ENGINE},
    )
    server = Server(
        engine,
        listen=ListenConfig(**{name: options[name] for name in LISTEN}),
        **{name: options[name] for name in SERVER},
    )
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()
    try:
        server.serve(*(given.bind or [":1826"]))
    except OSError as error:
        print(f"hop: cannot serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
