"""The command line: every option once, errors in one line, and a server behind it."""

import gc
import inspect
import logging
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from hop import Engine, Limits, ListenConfig, Server, Storage
from hop import __main__ as command
from hop.__main__ import GROUPS, load_application, main
from tests.apps import plain

# Parameters that are made of other options, or that a command has no use for.
COMPOSITE = {
    Server: {"engine", "listen"},
    Engine: {"app", "limits", "storage"},
    Limits: set(),
    Storage: set(),
    ListenConfig: {"reuse_port"},
}


@pytest.fixture(autouse=True)
def _process():
    """main() sets up a process; the process of the tests gets its own settings back."""
    access = logging.getLogger("hop.access")
    before = os.getcwd(), list(sys.path), sys.getswitchinterval(), access.level
    yield
    os.chdir(before[0])
    sys.path[:] = before[1]
    sys.setswitchinterval(before[2])
    access.setLevel(before[3])
    gc.unfreeze()


def refused(capsys, *arguments):
    """The one line that main prints before it leaves with status 2."""
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def run_main(*arguments, during=lambda said: None):
    """Run main here until a helper thread, which has asked for `/`, ends it with SIGTERM.

    `during` gets what was printed by then. The exit status, the page, and what was printed.
    """
    said, pages = [], []
    ready = threading.Event()

    class Screen:
        def write(self, text):
            said.append(text)
            if "http://" in text:
                ready.set()

        def flush(self):
            pass

    def client():
        assert ready.wait(20)
        url = re.search(r"http://[0-9.:]+", "".join(said))[0]
        try:
            pages.append(urllib.request.urlopen(url, timeout=20).read())
            during("".join(said))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=client)
    thread.start()
    before, sys.stderr = sys.stderr, Screen()
    try:
        status = main(["tests.apps.plain:app", "--bind", "127.0.0.1:0", *arguments])
    finally:
        sys.stderr = before
        thread.join()
    return status, pages, "".join(said)


class TestOptions:
    @pytest.mark.parametrize("owner", GROUPS)
    def test_every_parameter_has_its_option(self, owner):
        table = GROUPS[owner][2]
        assert set(inspect.signature(owner).parameters) - COMPOSITE[owner] == set(table)

    @pytest.mark.parametrize("owner", GROUPS)
    def test_defaults_are_those_of_the_signature(self, owner):
        given = vars(command._parser().parse_args(["x"]))
        prefix = GROUPS[owner][1]
        for name in GROUPS[owner][2]:
            assert given[prefix + name] == inspect.signature(owner).parameters[name].default

    def test_no_two_options_are_one(self):
        names = [prefix + name for _, prefix, table in GROUPS.values() for name in table]
        assert len(names) == len(set(names))

    def test_each_is_spelled_with_hyphens_and_explained(self):
        text = command._parser().format_help()
        for _, prefix, table in GROUPS.values():
            for name, (_, explained) in table.items():
                assert f"--{(prefix + name).replace('_', '-')} N" in text or name == "max_threads"
                assert explained.split()[0] in text
        assert re.search(r"--max-threads( N)?, --threads N", text)  # Python 3.13 says N once
        assert "(30.0)" in text
        assert "python -m hop mysite.wsgi" in text

    def test_they_arrive(self):
        given = command._parser().parse_args(
            [
                "x", "--keep-alive-timeout", "600", "--threads", "3", "--max-unsent", "5",
                "--request-timeout", "1.5", "--limit-body", "none", "--limit-extensions", "7",
                "--body-memory", "8", "--total-memory", "9", "--total-disk", "10",
                "--unix-mode", "660", "--defer-accept", "2", "--fast-open", "3",
                "--notsent-lowat", "4",
            ]
        )  # fmt: skip
        server = command._make_server(plain.app, given)
        engine = server.engine
        assert server.timeouts[0] == 600.0
        assert (server.max_threads, server.max_unsent) == (3, 5)
        assert server.listen == ListenConfig(
            unix_mode=0o660, defer_accept=2, fast_open=3, notsent_lowat=4
        )
        assert (engine.app, engine.request_timeout) == (plain.app, 1.5)
        assert engine.limits == Limits(body=None, extensions=7)
        storage = engine.storage
        assert (storage.body_memory, storage.free("memory"), storage.free("disk")) == (8, 9, 10)


class TestValues:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("--read-timeout", "soon"),
            ("--read-timeout", "-1"),
            ("--read-timeout", "nan"),
            ("--read-timeout", "inf"),
            ("--linger-timeout", "none"),
            ("--threads", "0"),
            ("--threads", "1.5"),
            ("--max-drain-size", "none"),
            ("--limit-body", "-1"),
            ("--unix-mode", "rwx"),
            ("--bind", "here"),
            ("--chdir", "/no/such/directory"),
            ("--directory", "/no/such/directory"),
        ],
    )
    def test_a_bad_one_is_named_with_its_option(self, capsys, option, value):
        line = refused(capsys, "tests.apps.plain:app", option, value)
        assert option in line
        assert value in line

    def test_a_directory_is_looked_for_where_chdir_says(self, capsys, tmp_path, monkeypatch):
        (tmp_path / "new" / "bodies").mkdir(parents=True)
        (tmp_path / "old").mkdir()
        monkeypatch.chdir(tmp_path)
        made = []
        monkeypatch.setattr(command, "_serve", lambda server, given: made.append(server))
        app = ["tests.apps.plain:app", "--directory"]
        assert main([*app, "bodies", "--chdir", "new"]) == 0
        assert "'old'" in refused(capsys, *app, "old", "--chdir", str(tmp_path / "new"))
        assert [server.engine.storage.directory for server in made] == ["bodies"]

    def test_no_abbreviations(self, capsys):
        assert "--max-t" in refused(capsys, "tests.apps.plain:app", "--max-t", "3")

    def test_nothing_to_serve(self, capsys):
        assert "MODULE:APP" in refused(capsys)

    def test_zero_and_none(self):
        given = command._parser().parse_args(["x", "--read-timeout", "0", "--limit-body", "none"])
        assert (given.read_timeout, given.limit_body) == (0.0, None)


class TestApplication:
    @pytest.mark.parametrize(
        "name", ["tests.apps.plain:app", "tests.apps.plain", "tests.apps.plain:factory()"]
    )
    def test_found(self, name):
        assert load_application(name) is plain.app

    def test_a_dotted_attribute(self):
        assert load_application("tests.apps.plain:gate.wait") == plain.gate.wait

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("nosuchmodule", "there is no module named 'nosuchmodule'"),
            ("tests.nosuch:app", "there is no module named 'tests.nosuch'"),
            ("nosuch.sub:app", "there is no module named 'nosuch'"),
            ("tests.apps.plain.py", "without .py"),
            ("./app:app", "'./app' is no module"),
            (":app", "'' is no module"),
            ("tests.apps.plain:nothing", "has no 'nothing'"),
            ("tests.apps.plain:nothing()", "has no 'nothing'"),
            ("tests.apps.plain:application_is", "is not a WSGI application"),
        ],
    )
    def test_a_mistake_in_the_name(self, capsys, name, text):
        assert text in refused(capsys, name)

    @pytest.mark.parametrize(
        ("source", "error"),
        [
            ("import a_module_that_is_missing", ModuleNotFoundError),
            ("from os import a_name_that_is_missing", ImportError),
            ("raise ValueError('mine')", ValueError),
            ("raise ModuleNotFoundError('without a name')", ModuleNotFoundError),
        ],
    )
    def test_what_the_application_raises_is_its_own(self, tmp_path, source, error):
        name = f"raises_{error.__name__}_{abs(hash(source))}"
        (tmp_path / f"{name}.py").write_text(source)
        with pytest.raises(error) as caught:
            main([name, "--chdir", str(tmp_path)])
        assert type(caught.value) is error

    def test_its_traceback_is_shown_with_status_1(self, tmp_path):
        (tmp_path / "broken.py").write_text("1 / 0\n")
        done = subprocess.run(
            [sys.executable, "-m", "hop", "broken"],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.startswith("Traceback")
        assert "broken.py" in done.stderr
        assert done.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


class TestMain:
    def test_it_serves_and_says_where(self):
        status, pages, said = run_main()
        assert (status, pages) == (0, [b"hello"])
        assert re.fullmatch(
            r"hop serves tests.apps.plain:app on http://127.0.0.1:[0-9]+\n", said
        )
        assert sys.getswitchinterval() == pytest.approx(command.SWITCH_INTERVAL)
        assert gc.get_freeze_count() > 0

    def test_the_access_log_is_off_unless_it_is_asked_for(self, caplog):
        run_main()
        assert '"GET / HTTP/1.1" 200 5' not in caplog.text
        run_main("--access-log")
        assert '"GET / HTTP/1.1" 200 5' in caplog.text

    def test_a_taken_port_is_one_line_and_status_1(self, capsys):
        with socket.create_server(("127.0.0.1", 0)) as other:
            bind = f"127.0.0.1:{other.getsockname()[1]}"
            assert main(["tests.apps.plain:app", "--bind", bind]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("hop: cannot serve: ")
        assert bind in line

    def test_the_second_port_is_open_while_it_serves(self):
        seen = []

        def look(said):
            port = re.search(r"; look inside on http://127.0.0.1:([0-9]+)/debug/", said)[1]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/debug/threads") as answer:
                seen.append(answer.read())

        status, pages, _ = run_main("--debug-addr", "127.0.0.1:0", during=look)
        assert (status, pages) == (0, [b"hello"])
        assert b"watches the calls" in seen[0]

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            (["--debug-addr", ":6060"], "other machines"),
            (["--debug-addr", "127.0.0.1:0", "--processes", "2"], "processes=1"),
            (["--debug-addr", "here"], "expected host:port"),
        ],
    )
    def test_a_second_port_that_cannot_be(self, capsys, options, text):
        assert text in refused(capsys, "tests.apps.plain:app", *options)

    def test_a_second_port_in_use_is_status_1(self, capsys):
        with socket.create_server(("127.0.0.1", 0)) as other:
            bind = f"127.0.0.1:{other.getsockname()[1]}"
            assert main(["tests.apps.plain:app", "--debug-addr", bind]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert bind in line

    def test_as_a_module(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["hop", "--help"])
        monkeypatch.delitem(sys.modules, "hop.__main__")
        with pytest.raises(SystemExit) as end:
            runpy.run_module("hop", run_name="__main__")
        assert end.value.code == 0
        assert "MODULE:APP" in capsys.readouterr().out
