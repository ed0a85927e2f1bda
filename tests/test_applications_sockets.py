"""Libraries that were written for a socket and a thread, unmodified, with real clients."""

import contextlib
import threading
import urllib.request

import flask
import flask_sock
import pytest
import simple_websocket
import socketio
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from hop.testing import serve
from tests.test_hijack import until


def address(served, path):
    return f"ws://{served.host}:{served.port}{path}"


class TestFlaskSock:
    @pytest.fixture
    def app(self):
        app = flask.Flask(__name__)
        sock = flask_sock.Sock(app)
        app.ended = threading.Event()

        @sock.route("/echo")
        def echo(ws):
            try:
                while True:
                    ws.send(ws.receive())
            finally:
                app.ended.set()

        @sock.route("/bye")
        def bye(ws):
            ws.close(4001, "on purpose")

        @app.get("/")
        def page():
            return "a page"

        return app

    def test_messages_of_all_sizes_and_kinds(self, app, caplog):
        with serve(app) as served, connect(address(served, "/echo"), max_size=None) as client:
            for message in ("text", "grüße", b"bytes", "", b"", "x" * 70_000, bytes(1_000_000)):
                client.send(message)
                assert client.recv(20) == message
        assert app.ended.wait(20)
        assert not caplog.records

    def test_many_at_once_beside_ordinary_requests(self, app):
        with serve(app, max_threads=2) as served:
            with contextlib.ExitStack() as stack:
                clients = [
                    stack.enter_context(connect(address(served, "/echo"))) for _ in range(10)
                ]
                for number, client in enumerate(clients):
                    client.send(str(number))
                assert [client.recv(20) for client in clients] == [str(n) for n in range(10)]
                assert served.server.engine.bridge.hijacked == 10
                assert urllib.request.urlopen(served.url, timeout=20).read() == b"a page"
            until(lambda: served.server.engine.bridge.hijacked == 0)

    def test_the_servers_close_is_seen_with_its_code(self, app):
        with serve(app) as served, connect(address(served, "/bye")) as client:
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(20)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "on purpose")

    def test_the_graceful_stop_ends_the_handler(self, app):
        with serve(app) as served:
            with connect(address(served, "/echo")) as client:
                client.send("hello")
                assert client.recv(20) == "hello"
                assert served.server.shutdown()
                assert app.ended.is_set()

    def test_beyond_max_hijacked_the_handshake_is_refused(self, app):
        with serve(app, max_hijacked=0) as served:
            with pytest.raises(InvalidStatus) as refused:
                connect(address(served, "/echo")).close()
        assert refused.value.response.status_code == 503


class TestSimpleWebSocket:
    def test_pings_by_a_bare_application(self):
        """With `ping_interval` it waits in a selector, so `fileno` must be the real one."""
        seen = []

        def app(environ, start_response):
            ws = simple_websocket.Server.accept(environ, ping_interval=0.5)
            seen.append(ws.receive())
            ws.send("you said " + seen[0])
            ws.receive(timeout=1.3)  # an unanswered ping would end it at the one after
            seen.append(ws.connected)
            ws.close()
            return []

        with serve(app) as served, connect(address(served, "/")) as client:
            client.send("hello")
            assert client.recv(20) == "you said hello"
            with pytest.raises(ConnectionClosed):
                client.recv(20)
        assert seen == ["hello", True]

    def test_a_subprotocol(self):
        def app(environ, start_response):
            ws = simple_websocket.Server.accept(environ, subprotocols=["chess", "go"])
            ws.send(ws.subprotocol)
            ws.close()
            return []

        with serve(app) as served:
            with connect(address(served, "/"), subprotocols=["go", "chess"]) as client:
                assert client.recv(20) == client.subprotocol == "go"


class TestSocketIO:
    @pytest.fixture
    def server(self):
        server = socketio.Server(async_mode="threading", ping_interval=0.2, ping_timeout=5)

        @server.event
        def join(sid, room):
            server.enter_room(sid, room)
            return "joined"

        @server.event
        def say(sid, room, text):
            server.emit("said", text, room=room, skip_sid=sid)
            return len(text)

        return server

    @pytest.mark.parametrize("transports", [["websocket"], ["polling"], ["polling", "websocket"]])
    def test_rooms_and_pings(self, server, transports, caplog):
        caplog.set_level("ERROR", logger="hop.error")

        def client(heard):
            client = socketio.Client(reconnection=False)
            client.on("said", lambda text: (heard.append(text), heard_one.release()))
            client.connect(served.url, transports=transports, wait_timeout=20)
            return client

        heard_one = threading.Semaphore(0)
        with serve(socketio.WSGIApp(server), shutdown_timeout=20) as served:
            ears = [[], [], []]
            red, also_red, blue = clients = [client(heard) for heard in ears]
            assert red.call("join", "red") == also_red.call("join", "red") == "joined"
            assert blue.call("join", "blue") == "joined"
            assert red.call("say", ("red", "hello")) == 5
            assert heard_one.acquire(timeout=20)
            transport = red.transport()
            # the next word comes after several pings, so they have been answered
            red.sleep(1.0)
            assert all(each.connected for each in clients)
            assert blue.call("say", ("red", "to all")) == 6
            assert heard_one.acquire(timeout=20)
            assert heard_one.acquire(timeout=20)
            for each in clients:
                each.disconnect()
            server.shutdown()
        assert ears == [["to all"], ["hello", "to all"], []]
        assert transport == transports[-1]
        assert not [record for record in caplog.records if record.name == "hop.error"]
