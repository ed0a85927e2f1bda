"""`python -m examples.launch_ws KIND PORT`: one WebSocket server, in a process of its own.

Each echoes, as its documentation shows it, without compression (the load offers none) and without
pings of its own, which the load would not answer; where a default would refuse the load (a pool of
few threads), it is raised.
"""

# mypy: disable-error-code="import-not-found, import-untyped"
# The other servers need not be installed where types are checked.

import argparse
import asyncio
import logging
import os
import resource
from collections.abc import Callable
from typing import Any

HOST = "127.0.0.1"
MANY = 100_000
POOL = 600  # threads: one for each connection, and some


def bare(port: int) -> None:
    from examples.bare_ws import serve

    serve(HOST, port)


def hop(port: int) -> None:
    from examples.ws_workloads import application
    from hop import Engine, Server

    Server(Engine(application), max_hijacked=MANY).serve(f"{HOST}:{port}")


def std(port: int) -> None:
    from examples.app import application
    from examples.std import StdServer

    StdServer(application, f"{HOST}:{port}", True).serve_forever()


def websockets(port: int) -> None:
    from websockets.asyncio.server import broadcast, serve

    room: set[Any] = set()

    async def echo(client: Any) -> None:
        if client.request.path == "/broadcast":
            room.add(client)
            async for message in client:
                broadcast(room, message)
        else:
            async for message in client:
                await client.send(message)

    async def run() -> None:
        async with serve(echo, HOST, port, compression=None, ping_interval=None, backlog=4096):
            await asyncio.get_running_loop().create_future()

    asyncio.run(run())


def aiohttp(port: int) -> None:
    from aiohttp import WSMsgType, web

    clients: set[Any] = set()

    async def echo(request: Any) -> Any:
        client = web.WebSocketResponse(compress=False)
        await client.prepare(request)
        async for message in client:
            if message.type is WSMsgType.BINARY:
                await client.send_bytes(message.data)
        return client

    async def room(request: Any) -> Any:
        client = web.WebSocketResponse(compress=False)
        await client.prepare(request)
        clients.add(client)
        async for message in client:
            if message.type is WSMsgType.BINARY:
                await asyncio.gather(*(other.send_bytes(message.data) for other in clients))
        return client

    application = web.Application()
    application.router.add_get("/", echo)
    application.router.add_get("/broadcast", room)
    web.run_app(
        application, host=HOST, port=port, access_log=None, print=lambda *_: None, backlog=4096
    )


def picows(port: int) -> None:
    import picows
    import uvloop

    class Echo(picows.WSListener):  # type: ignore[misc]
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type == picows.WSMsgType.CLOSE:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
                transport.disconnect()
            else:
                transport.send(frame.msg_type, frame.get_payload_as_bytes())

    async def run() -> None:
        server = await picows.ws_create_server(lambda request: Echo(), HOST, port, backlog=4096)
        await server.serve_forever()

    uvloop.run(run())


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An echo for ASGI servers."""
    while True:
        event = await receive()
        if event["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif event["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": event["bytes"]})
        else:
            return


def uvicorn(port: int, ws: Any) -> None:
    import uvicorn

    uvicorn.run(
        asgi, host=HOST, port=port, loop="uvloop", http="httptools", ws=ws, lifespan="off",
        log_level="error", access_log=False, ws_ping_interval=None, ws_per_message_deflate=False,
        backlog=4096,
    )


def uvicorn_wsproto(port: int) -> None:
    uvicorn(port, "wsproto")


def uvicorn_websockets(port: int) -> None:
    uvicorn(port, "websockets-sansio")


def flask() -> Any:
    """An echo with Flask-Sock."""
    from flask import Flask
    from flask_sock import Sock

    application = Flask(__name__)

    @Sock(application).route("/")  # type: ignore[untyped-decorator,unused-ignore]
    def echo(client: Any) -> None:
        while True:
            client.send(client.receive())

    return application


def flask_sock_werkzeug(port: int) -> None:
    from werkzeug.serving import run_simple

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    run_simple(HOST, port, flask(), threaded=True)


def flask_sock_gunicorn(port: int) -> None:
    from gunicorn.app.base import BaseApplication

    class Application(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            for name, value in {
                "bind": f"{HOST}:{port}", "worker_class": "gthread", "threads": POOL,
                "worker_connections": MANY, "loglevel": "error", "backlog": 4096,
            }.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return flask()

    Application().run()


KINDS: dict[str, Callable[[int], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        bare, hop, std, websockets, aiohttp, picows, uvicorn_wsproto, uvicorn_websockets,
        flask_sock_werkzeug, flask_sock_gunicorn,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("port", type=int)
    parser.add_argument("--cpu", type=int, help="run on this processor only")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    KINDS[options.kind](options.port)


if __name__ == "__main__":
    main()
