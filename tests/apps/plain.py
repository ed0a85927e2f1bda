"""Applications without a framework, for tests of the command line and of the server's life."""

import os
import threading
import time

application_is = "not callable"
gate = threading.Event()


def app(environ, start_response):
    """Hello; `/pid` names the process, `/wait` answers when `/go` was asked for."""
    path = environ["PATH_INFO"]
    body = b"hello"
    if path == "/pid":
        body = str(os.getpid()).encode()
    elif path == "/wait":
        gate.wait(30)
        body = b"waited"
    elif path == "/go":
        gate.set()
    elif path == "/stuck":
        time.sleep(60)
    elif path == "/upload":
        body = str(len(environ["wsgi.input"].read())).encode()
    elif path == "/big":
        body = b"x" * (8 << 20)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]


application = app


def factory():
    """Makes an application."""
    return app
