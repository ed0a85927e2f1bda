# Tangled from notebooks/08_server.ipynb. Edit the notebook.
"""`python -m hop MODULE:APP`: the command line."""

import argparse
import contextlib
import gc
import importlib
import inspect
import logging
import math
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from hop.engine import Application, Engine
from hop.listener import ListenConfig, parse_bind
from hop.parser import Limits
from hop.server import Server
from hop.storage import Storage

__all__ = ["load_application", "main"]


def _number(kind: type, least: int, *, none: bool = False) -> Callable[[str], Any]:
    """A reader of numbers from `least`; with `none` that word is None, no limit."""
    expected = "a whole number" if kind is int else "a number"
    expected += f" from {least}" + (" or none" if none else "")

    def read(text: str) -> Any:
        if none and text == "none":
            return None
        with contextlib.suppress(ValueError):
            if least <= (value := kind(text)) < math.inf:
                return value
        raise argparse.ArgumentTypeError(f"expected {expected}, not {text!r}")

    return read


_seconds, _bytes = _number(float, 0, none=True), _number(int, 0, none=True)
_size, _count = _number(int, 0), _number(int, 1)


def _checked(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """A reader whose ValueError has a text that is worth showing."""

    def checked(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _bind(text: str) -> str:
    parse_bind(text)
    return text


def _directory(text: str) -> str:
    if not os.path.isdir(text):
        raise ValueError(f"there is no directory {text!r}")
    return text


Options = dict[str, tuple[Callable[[str], Any], str]]

ENGINE: Options = {
    "request_timeout": (_seconds, "a handler may run this long; then its client is cut off (none)"),
    "max_drain_size": (_size, "what a refused client may still send"),
    "max_pipelined": (_count, "requests of one client answered before it is others' turn"),
}
SERVER: Options = {
    "pollers": (_count, "event loops in a process; more than one only for free-threaded Python"),
    "processes": (_count, "processes that share the listeners"),
    "max_threads": (_count, "handlers that may block at the same time"),
    "max_hijacked": (_size, "connections that left HTTP for a thread of their own"),
    "max_connections": (_count, "connections at the same time (what the descriptor limit allows)"),
    "buffer_size": (_count, "the most that one read takes from a socket"),
    "max_unsent": (_count, "what may wait for a slow client before its handler is paused"),
    "keep_alive_timeout": (_seconds, "an idle connection is closed after this long"),
    "read_timeout": (_seconds, "a request's head must arrive within this"),
    "body_timeout": (_seconds, "so must its body; every KiB of it buys a second more"),
    "write_timeout": (_seconds, "a client that takes nothing of its answer is cut off"),
    "linger_timeout": (_number(float, 0), "a refused client may go on sending for this long"),
    "shutdown_timeout": (_seconds, "what is in flight may finish when a signal comes"),
}

LIMITS: Options = {
    "line": (_count, "the request line, or one field line"),
    "head": (_count, "a whole head"),
    "fields": (_count, "fields in a head"),
    "body": (_bytes, "a body"),
    "extensions": (_size, "chunk extensions beyond the size of the data"),
    "trailers": (_count, "the trailers of a chunked body"),
}
STORAGE: Options = {
    "body_memory": (_size, "a body that is larger waits in a file"),
    "total_memory": (_size, "all bodies in memory together"),
    "total_disk": (_size, "all bodies in files together (half of what is free)"),
    "directory": (str, "where such files are (the directory for temporary files)"),
}
LISTEN: Options = {
    "backlog": (_count, "handshakes that wait to be accepted"),
    "defer_accept": (_size, "seconds for which a client that has sent nothing is not accepted"),
    "fast_open": (_size, "clients that may send data with their first packet"),
    "notsent_lowat": (_size, "bytes of an answer that the kernel takes in before it may send them"),
    "unix_mode": (_checked(lambda text: int(text, 8)), "the mode of a socket file, in octal"),
}
GROUPS: dict[type, tuple[str, str, Options]] = {
    Server: ("server", "", SERVER),
    Engine: ("engine", "", ENGINE),
    Limits: ("limits of a request", "limit_", LIMITS),
    Storage: ("bodies that have not arrived whole", "", STORAGE),
    ListenConfig: ("listeners", "", LISTEN),
}

EPILOG = """\
examples:
  python -m hop app:app                          a Flask application `app` in app.py
  python -m hop mysite.wsgi                      Django: `application` in mysite/wsgi.py
  python -m hop 'shop:create_app()'              a factory
  python -m hop app:app --bind 127.0.0.1:8000 --bind unix:/run/app.sock
  python -m hop app:app --keep-alive-timeout 600 --max-threads 16 --access-log

Sizes are bytes, times seconds; "none" switches a limit off. SIGTERM or Ctrl-C stops the server
gracefully, a second one at once.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, and status 2."""
        self.exit(2, f"hop: {message} (--help tells more)\n")


def _add_options(parser: argparse.ArgumentParser, owner: type) -> None:
    """The options of a class, each spelled as its parameter, with the parameter's default."""
    title, prefix, options = GROUPS[owner]
    group = parser.add_argument_group(title)
    parameters = inspect.signature(owner).parameters
    for name, (read, text) in options.items():
        flags = ["--" + (prefix + name).replace("_", "-")]
        if name == "max_threads":
            flags.append("--threads")
        default = parameters[name].default
        shown = text if default is None else f"{text} (%(default)s)"
        group.add_argument(*flags, type=read, default=default, metavar="N",
                           dest=prefix + name, help=shown)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m hop",
        usage="%(prog)s MODULE:APP [options]",
        description="Serve a WSGI application over HTTP/1.1.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "app", metavar="MODULE:APP",
        help="what to serve: a callable, or a call that makes one; without APP, `application`",
    )  # fmt: skip
    parser.add_argument(
        "--bind", action="append", type=_checked(_bind), metavar="WHERE",
        help="host:port, :port, [ipv6]:port, unix:/path or fd://N; may be repeated (:1826)",
    )  # fmt: skip
    parser.add_argument("--access-log", action="store_true", help="log every request")
    parser.add_argument(
        "--debug-addr", type=_checked(_bind), metavar="WHERE",
        help="a second port, /debug/, to look inside; for this machine only (none)",
    )  # fmt: skip
    parser.add_argument(
        "--chdir", default=".", type=_checked(_directory), metavar="DIR",
        help="work there, and look there for MODULE (.)",
    )  # fmt: skip
    for owner in GROUPS:
        _add_options(parser, owner)
    return parser


class Misuse(ValueError):
    """A mistake of the person at the keyboard, in one line."""


def _import(name: str) -> Any:
    """The module; Misuse if there is none. What the module itself raises passes through."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise Misuse(f"{name!r} is no module: write package.module, without a path")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        hint = ", without .py" if name.endswith(".py") else ""
        raise Misuse(f"there is no module named {error.name!r}{hint}") from None


def load_application(name: str) -> Application:
    """The application that `MODULE`, `MODULE:NAME` or `MODULE:FACTORY()` names.

    Misuse, a ValueError, says in one line what is wrong with the name.
    """
    module_name, _, attribute = name.partition(":")
    attribute = attribute or "application"
    found = _import(module_name)
    for part in attribute.removesuffix("()").split("."):
        if not hasattr(found, part):
            raise Misuse(f"module {module_name!r} has no {attribute.removesuffix('()')!r}")
        found = getattr(found, part)
    if attribute.endswith("()"):
        found = found()
    if not callable(found):
        raise Misuse(f"{name!r} is not a WSGI application: it cannot be called")
    application: Application = found
    return application


def _make_server(app: Application, given: argparse.Namespace) -> Server:
    """Engine and server with the options that were given. OSError for a bad directory."""

    def options(owner: type) -> dict[str, Any]:
        _, prefix, table = GROUPS[owner]
        return {name: getattr(given, prefix + name) for name in table}

    engine = Engine(
        app,
        limits=Limits(**options(Limits)),
        storage=Storage(**options(Storage)),
        **options(Engine),
    )
    return Server(engine, listen=ListenConfig(**options(ListenConfig)), **options(Server))


def _serve(server: Server, given: argparse.Namespace) -> None:
    """Serve until a signal comes, with the second port if there is to be one."""
    looked_into = ""

    def announce(addresses: list[str]) -> None:
        where = ", ".join(addresses) + looked_into
        print(f"hop serves {given.app} on {where}", file=sys.stderr, flush=True)

    with contextlib.ExitStack() as stack:
        if given.debug_addr is not None:
            from hop.debug import debug_port

            try:
                url = stack.enter_context(debug_port(server, given.debug_addr))
            except ValueError as error:
                raise Misuse(str(error)) from None
            looked_into = f"; look inside on {url}/debug/"
        server.serve(*(given.bind or []), announce=announce)


SWITCH_INTERVAL = 0.0005  # seconds


def _prepare_process(given: argparse.Namespace) -> None:
    """Logging, directories, and where modules are looked for. Misuse if a directory is missing."""
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", level=logging.WARNING)
    if given.access_log:
        logging.getLogger("hop.access").setLevel(logging.INFO)
    os.chdir(given.chdir)
    sys.path.insert(0, os.getcwd())
    if given.directory is not None and not os.path.isdir(given.directory):
        raise Misuse(f"argument --directory: there is no directory {given.directory!r}")


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal comes; the exit status: 0, 1 for a start that failed, 2 for misuse."""
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        _prepare_process(given)
        app = load_application(given.app)
    except Misuse as error:
        parser.error(str(error))
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.collect()
    gc.freeze()

    try:
        _serve(_make_server(app, given), given)
    except Misuse as error:
        parser.error(str(error))
    except OSError as error:
        print(f"hop: cannot serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__" and __spec__ is not None:
    sys.exit(main())
