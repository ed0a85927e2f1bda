"""A Flask application with what people use: sessions, uploads, streams, error pages."""

import hashlib
import threading

from flask import Flask, Response, abort, redirect, request, send_file, session, stream_with_context

app = Flask(__name__)
app.secret_key = "a key for tests"


@app.get("/")
def index():
    return "Hello from Flask"


@app.post("/login")
def login():
    session["name"] = request.form["name"]
    return redirect("/me")


@app.get("/me")
def me():
    return session.get("name", "nobody")


@app.post("/upload")
def upload():
    file = request.files["file"]
    digest = hashlib.sha256()
    size = 0
    while piece := file.stream.read(1 << 16):
        digest.update(piece)
        size += len(piece)
    return {"name": file.filename, "size": size, "sha256": digest.hexdigest()}


@app.post("/raw")
def raw():
    return {"size": len(request.get_data()), "length": request.content_length}


@app.get("/stream")
def stream():
    """Pieces that prove that request and thread stay the same from the first to the last."""
    name, count = request.args["name"], int(request.args["count"])
    thread = threading.get_ident()

    def pieces():
        for number in range(count):
            same = threading.get_ident() == thread
            yield f"{number} {request.args['name']} {same};" + "." * int(request.args["pad"])

    assert name
    return Response(stream_with_context(pieces()), mimetype="text/plain")


@app.get("/lines")
def lines():
    return Response((f"line {number}\n" for number in range(5)), mimetype="text/plain")


@app.get("/source")
def source():
    return send_file(__file__, mimetype="text/x-python")


@app.get("/teapot")
def teapot():
    abort(418)


@app.errorhandler(404)
def missing(error):
    return "there is no such page", 404


@app.get("/fails")
def fails():
    raise RuntimeError("on purpose")


@app.get("/fails-late")
def fails_late():
    def pieces():
        yield "first;"
        raise RuntimeError("on purpose")

    return Response(pieces(), mimetype="text/plain")
