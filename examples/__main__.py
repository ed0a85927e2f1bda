"""`python -m examples`: the example application, on hop or on the standard library."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence

from examples.app import application
from examples.std import StdServer, split_address
from hop import Engine, Server
from hop.debug import debug_port
from hop.listener import parse_bind


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with status 2 when it makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m examples", description=__doc__)
    parser.add_argument(
        "-type", "--type", choices=("hop", "std"), default="hop", dest="mode",
        help="hop, or the standard library's server with a thread per connection (default: hop)",
    )
    parser.add_argument(
        "-addr", "--addr", default=":1826", help="where to listen (default: :1826)"
    )
    parser.add_argument(
        "-debug-addr", "--debug-addr", default="localhost:6060",
        help="a second port to look inside, /debug/, for clients on this machine; none: no such "
        "port (default: localhost:6060). With std its figures stay at zero: they are hop's",
    )
    parser.add_argument(
        "--nodelay", action="store_true",
        help="with -type std: switch Nagle's algorithm off (hop always does)",
    )
    options = parser.parse_args(argv)
    try:
        if options.debug_addr != "none":
            parse_bind(options.debug_addr)
        if options.mode == "std":
            split_address(options.addr)
    except ValueError as error:
        parser.error(str(error))
    return options


def open_debug(stack: contextlib.ExitStack, server: Server, address: str) -> str:
    """Let `server` be looked into until the stack is closed; a remark about it.

    The example does its work without, so a port in use is no more than a remark.
    """
    if address == "none":
        return "nothing to look inside"
    try:
        url = stack.enter_context(debug_port(server, address))
    except OSError as error:
        return f"nothing to look inside ({address}: {error.strerror or error})"
    return f"look inside on {url}/debug/"


def serve_std(address: str, nodelay: bool, debug_addr: str) -> None:
    """Serve until SIGINT or SIGTERM."""

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with StdServer(application, address, nodelay) as server, contextlib.ExitStack() as stack:
        remark = open_debug(stack, Server(Engine(application)), debug_addr)
        print(f"std listens on {address}; {remark}", file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def serve_hop(address: str, debug_addr: str) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is in flight."""
    server = Server(Engine(application))
    with contextlib.ExitStack() as stack:
        remark = open_debug(stack, server, debug_addr)

        def announce(addresses: list[str]) -> None:
            print(f"hop listens on {', '.join(addresses)}; {remark}", file=sys.stderr)

        server.serve(address, announce=announce)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example; the exit status: 1 when the address cannot be had."""
    options = arguments(argv)
    try:
        if options.mode == "std":
            serve_std(options.addr, options.nodelay, options.debug_addr)
        else:
            serve_hop(options.addr, options.debug_addr)
    except ValueError as error:
        print(f"examples: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"examples: {options.addr}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
