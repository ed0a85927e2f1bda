"""Real frameworks over real sockets: the same answers from hop and from the standard library."""

import contextlib
import hashlib
import http.client
import json
import re
import socket
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import bottle
import falcon
import pytest

from hop import testing
from tests.apps import django_app, flask_app
from tests.servers import SERVERS, validated


@pytest.fixture(params=SERVERS)
def serve(request):
    """A function that serves an application until the test ends, and gives the port."""
    with contextlib.ExitStack() as stack:
        yield lambda application: stack.enter_context(SERVERS[request.param](application))


@contextlib.contextmanager
def client(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        yield connection
    finally:
        connection.close()


def ask(connection, method, path, body=None, **headers):
    """One request; status, headers and body of the answer."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, fields)
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def slow_stream(port, path, piece=4096):
    """Read an answer through a small window, a piece at a time; its decoded body."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(60)
        sock.connect(("127.0.0.1", port))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert response.status == 200
        pieces = []
        while data := response.read(piece):
            pieces.append(data)
        return b"".join(pieces).decode()


class TestFlask:
    @pytest.fixture
    def port(self, serve):
        return serve(validated(flask_app.app))

    @pytest.fixture
    def bare(self, serve):
        """Without the validator, whose wrapper hides files from sendfile."""
        return serve(flask_app.app)

    def test_sessions_survive_from_request_to_request(self, port):
        with client(port) as connection:
            status, headers, _ = ask(
                connection, "POST", "/login", "name=Ada",
                Content_Type="application/x-www-form-urlencoded",
            )  # fmt: skip
            assert (status, headers["Location"]) == (302, "/me")
            cookie = headers["Set-Cookie"].partition(";")[0]
            assert ask(connection, "GET", "/me", Cookie=cookie)[2] == b"Ada"
            assert ask(connection, "GET", "/me")[2] == b"nobody"

    def test_an_upload_of_50_megabytes_arrives_whole(self, port):
        block = bytes(range(256)) * 4096
        head = (
            b"--cut\r\nContent-Disposition: form-data; name=file; filename=big.bin\r\n"
            b"Content-Type: application/octet-stream\r\n\r\n"
        )
        tail = b"\r\n--cut--\r\n"
        size = 50 * len(block)

        def body():
            yield head
            for _ in range(50):
                yield block
            yield tail

        with client(port) as connection:
            status, _, answer = ask(
                connection, "POST", "/upload", body(),
                Content_Type="multipart/form-data; boundary=cut",
                Content_Length=str(len(head) + size + len(tail)),
            )  # fmt: skip
        assert status == 200
        assert json.loads(answer) == {
            "name": "big.bin",
            "size": size,
            "sha256": hashlib.sha256(block * 50).hexdigest(),
        }

    def test_a_chunked_upload_arrives_whole(self, port):
        with client(port) as connection:
            connection.request(
                "POST", "/raw", (b"x" * 1000 for _ in range(300)), encode_chunked=True,
                headers={"Transfer-Encoding": "chunked"},
            )  # fmt: skip
            answer = json.loads(connection.getresponse().read())
        assert answer["size"] == 300_000

    def test_streaming(self, port):
        with client(port) as connection:
            status, headers, body = ask(connection, "GET", "/lines")
            assert (status, headers["Transfer-Encoding"]) == (200, "chunked")
            assert body == b"".join(b"line %d\n" % number for number in range(5))

    def test_error_pages(self, port):
        with client(port) as connection:
            assert ask(connection, "GET", "/nowhere")[::2] == (404, b"there is no such page")
            assert ask(connection, "GET", "/teapot")[0] == 418
            status, _, body = ask(connection, "GET", "/fails")
            assert status == 500
            assert b"on purpose" not in body
            assert ask(connection, "GET", "/")[::2] == (200, b"Hello from Flask")

    def test_a_stream_that_fails_is_seen_to_be_cut(self, port):
        with client(port) as connection:
            connection.request("GET", "/fails-late")
            response = connection.getresponse()
            with pytest.raises(http.client.IncompleteRead) as caught:
                response.read()
            assert caught.value.partial == b"first;"

    def test_send_file(self, bare):
        with client(bare) as connection:
            status, headers, body = ask(connection, "GET", "/source")
            with open(flask_app.__file__, "rb") as file:
                assert body == file.read()
            assert (status, int(headers["Content-Length"])) == (200, len(body))
            etag = headers["ETag"]
            assert ask(connection, "GET", "/source", If_None_Match=etag)[::2] == (304, b"")
            assert ask(connection, "HEAD", "/source")[::2] == (200, b"")

    def test_many_streams_with_slow_readers_keep_their_own_request(self, bare):
        names = [f"reader-{number}" for number in range(24)]

        def read(name):
            query = urllib.parse.urlencode({"name": name, "count": 60, "pad": 50_000})
            text = slow_stream(bare, f"/stream?{query}", 1 << 16)
            return re.findall(r"(\d+) (\S+) (\w+);", text)

        with ThreadPoolExecutor(len(names)) as pool:
            answers = list(pool.map(read, names))
        for name, answer in zip(names, answers, strict=True):
            assert answer == [(str(number), name, "True") for number in range(60)]


class TestDjango:
    @pytest.fixture
    def port(self, serve):
        return serve(validated(django_app.application))

    def test_hello(self, port):
        with client(port) as connection:
            assert ask(connection, "GET", "/")[::2] == (200, b"Hello from Django")

    def test_the_admin_log_in(self, port):
        with client(port) as connection:
            status, headers, page = ask(connection, "GET", "/admin/login/?next=/admin/")
            assert status == 200
            token = re.search(rb'name="csrfmiddlewaretoken" value="([^"]+)"', page)[1].decode()
            csrf = headers["Set-Cookie"].partition(";")[0]
            form = urllib.parse.urlencode(
                {"username": "admin", "password": "secret", "csrfmiddlewaretoken": token}
            )
            status, headers, _ = ask(
                connection, "POST", "/admin/login/?next=/admin/", form, Cookie=csrf,
                Content_Type="application/x-www-form-urlencoded",
                Referer=f"http://127.0.0.1:{port}/admin/login/",
            )  # fmt: skip
            assert (status, headers["Location"]) == (302, "/admin/")
            cookies = "; ".join(
                value.partition(";")[0] for value in headers.get_all("Set-Cookie", [])
            )
            status, _, page = ask(connection, "GET", "/admin/", Cookie=cookies)
            assert status == 200
            assert b"Site administration" in page

    def test_static_files(self, port):
        with client(port) as connection:
            status, headers, body = ask(connection, "GET", "/static/admin/css/base.css")
            assert status == 200
            assert headers.get_content_type() == "text/css"
            assert len(body) == int(headers["Content-Length"])
            assert ask(connection, "GET", "/static/admin/none.css")[0] == 404

    def test_a_transaction_stays_open_across_yield(self, serve):
        port = serve(django_app.application)

        def read(_):
            return slow_stream(port, "/rows?count=30&pad=50000", 1 << 16)

        def look(_):
            with client(port) as connection:
                return [ask(connection, "GET", "/clean")[2] for _ in range(20)]

        with ThreadPoolExecutor(16) as pool:
            streams = pool.map(read, range(12))
            looks = pool.map(look, range(4))
            for text in streams:
                rows = re.findall(r"(\d+) (\w+) (\d+);", text)
                assert rows == [(str(number), "True", "1") for number in range(30)]
            assert {answer for answers in looks for answer in answers} == {b"False"}


def bottle_app():
    application = bottle.Bottle()

    @application.get("/hello/<name>")
    def hello(name):
        return f"Hello {name}"

    @application.post("/form")
    def form():
        return {"sum": sum(int(value) for value in bottle.request.forms.getall("n"))}

    return application


def falcon_app():
    class Thing:
        def on_get(self, request, response, name):
            response.media = {"name": name, "agent": request.user_agent}

        def on_put(self, request, response, name):
            response.status = falcon.HTTP_201
            response.media = {"got": request.get_media(), "name": name}

    application = falcon.App()
    application.add_route("/things/{name}", Thing())
    return application


def test_bottle(serve):
    with client(serve(validated(bottle_app()))) as connection:
        assert ask(connection, "GET", "/hello/w%C3%B6rld")[::2] == (200, "Hello wörld".encode())
        status, _, body = ask(
            connection, "POST", "/form", "n=1&n=2&n=39",
            Content_Type="application/x-www-form-urlencoded",
        )  # fmt: skip
        assert (status, json.loads(body)) == (200, {"sum": 42})
        assert ask(connection, "GET", "/nowhere")[0] == 404


def test_bottle_reads_a_chunked_form():
    """It decodes chunks where the field says that there are some: on hop there are none left."""
    with testing.serve(bottle_app()) as served, client(served.port) as connection:
        connection.request(
            "POST", "/form", (b"n=%d&" % number for number in (40, 2)), encode_chunked=True,
            headers={
                "Transfer-Encoding": "chunked",
                "Content-Type": "application/x-www-form-urlencoded",
            },
        )  # fmt: skip
        assert json.loads(connection.getresponse().read()) == {"sum": 42}


def test_falcon(serve):
    with client(serve(validated(falcon_app()))) as connection:
        status, headers, body = ask(connection, "GET", "/things/pen", User_Agent="tests")
        assert (status, json.loads(body)) == (200, {"name": "pen", "agent": "tests"})
        assert headers.get_content_type() == "application/json"
        status, _, body = ask(
            connection, "PUT", "/things/ink", '{"colour": "blue"}',
            Content_Type="application/json",
        )  # fmt: skip
        assert (status, json.loads(body)) == (201, {"got": {"colour": "blue"}, "name": "ink"})
        assert ask(connection, "DELETE", "/things/ink")[0] == 405
