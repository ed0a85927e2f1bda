"""The server for tests: an address, a block, and errors where they belong."""

import socket
import threading
import urllib.error
import urllib.request

import pytest

import hop.testing
from hop import Engine
from hop.testing import serve
from tests.apps.plain import app

live = hop.testing.fixture(app, max_threads=3)


def running():
    return [thread for thread in threading.enumerate() if thread.name == "hop server"]


class TestServe:
    def test_it_serves_while_the_block_runs(self):
        with serve(app) as served:
            assert served.url == f"http://{served.host}:{served.port}"
            assert urllib.request.urlopen(served.url, timeout=20).read() == b"hello"
            assert len(running()) == 1
        assert running() == []
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(served.url, timeout=20)

    def test_an_engine_is_taken_as_it_is(self):
        engine = Engine(app)
        with serve(engine) as served:
            assert served.server.engine is engine

    def test_options_are_the_servers(self):
        with serve(app, max_threads=2, shutdown_timeout=7) as served:
            assert (served.server.max_threads, served.server.shutdown_timeout) == (2, 7)
        with serve(app) as served:
            assert served.server.shutdown_timeout == 5.0

    def test_an_unknown_option(self):
        with pytest.raises(TypeError, match="patience"), serve(app, patience=1):
            raise AssertionError("must not start")

    def test_an_error_at_the_start_is_raised_here(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            bind = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(OSError, match="in use"), serve(app, bind=bind):
                raise AssertionError("must not start")
        with pytest.raises(ValueError, match="bind"), serve(app, bind="nonsense"):
            raise AssertionError("must not start")

    def test_an_error_in_the_block_ends_the_server(self):
        with pytest.raises(ZeroDivisionError), serve(app):
            raise ZeroDivisionError
        assert running() == []

    def test_a_unix_socket(self, tmp_path):
        with serve(app, bind=f"unix:{tmp_path}/s") as served:
            assert (served.url, served.host, served.port) == (f"unix:{tmp_path}/s", "", 0)
        assert not (tmp_path / "s").exists()

    def test_an_ipv6_host_has_no_brackets(self):
        class Server:
            addresses = ["http://[::1]:1826"]

        served = hop.testing.Served(Server())
        assert (served.host, served.port) == ("::1", 1826)


class TestFixture:
    def test_it_serves(self, live):
        assert urllib.request.urlopen(live.url, timeout=20).read() == b"hello"
        assert live.server.max_threads == 3

    def test_each_test_has_its_own(self, live):
        assert len(running()) == 1
