"""The wheel, as somebody meets it who has never heard of the book: installed alone, and used."""

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAME = "http_over_polling"

pytestmark = pytest.mark.timeout(300)


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the source tree, without its environment; return what it printed."""
    keep = {name: value for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "COV", "HOP_", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=keep, text=True,
        capture_output=True, check=False, timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the tree as it is."""
    into = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation")
    run(*build, "--outdir", into, ROOT, cwd=into)
    (path,) = into.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and what it depends on."""
    home = tmp_path_factory.mktemp("empty")
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=home)
    return python


def test_the_wheel_holds_hop_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"hop/{path.name}" for path in (ROOT / "hop").glob("*.py")} | {"hop/py.typed"}
    assert names == expected
    assert "hop/__init__.py" in names


def test_the_wheel_promises_only_what_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (info,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        promised = archive.read(info).decode()
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        described = archive.read(metadata).decode()
    assert "hop = hop.__main__:main" in promised
    assert "book" not in promised
    assert "License-Expression: MIT" in described
    needed = [line for line in described.splitlines() if line.startswith("Requires-Dist")]
    assert {line.split()[1].split(">")[0] for line in needed if "extra" not in line} == {
        "h11", "wsproto",
    }


def test_it_imports_without_jupyter(python: Path) -> None:
    modules = sorted(path.stem for path in (ROOT / "hop").glob("*.py") if "__" not in path.stem)
    code = "; ".join(f"import hop.{module}" for module in modules) + "; import sys; " + (
        "print(hop.__file__); print(sorted({'IPython', 'nbformat', 'book', 'flask', 'matplotlib'}"
        " & set(sys.modules)))"
    )
    where, imported = run(python, "-c", code, cwd=python.parent).splitlines()
    assert Path(where).is_relative_to(python.parent.parent)
    assert imported == "[]"


def test_installed_it_serves(python: Path) -> None:
    code = """
import urllib.request
from hop.testing import serve

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello " + environ["PATH_INFO"].encode()]

with serve(app) as server:
    print(urllib.request.urlopen(server.url + "/wheel", timeout=10).read().decode())
"""
    assert run(python, "-c", code, cwd=python.parent) == "hello /wheel\n"


@pytest.mark.parametrize("command", [("-m", "hop"), ("hop",)], ids=" ".join)
def test_the_command_line_is_there(python: Path, command: tuple[str, ...]) -> None:
    program = [python, *command] if command[0] == "-m" else [python.parent / command[0]]
    assert "--bind" in run(*program, "--help", cwd=python.parent)


def test_a_type_checker_sees_the_types(python: Path, tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text("from hop import Engine\nreveal_type(Engine)\nEngine(3)\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", str(python), "use.py"],
        cwd=tmp_path, text=True, capture_output=True, check=False,
    )
    assert 'Argument 1 to "Engine" has incompatible type "int"' in done.stdout
    assert "import-untyped" not in done.stdout


def test_constraints_pin_every_dependency_and_name_no_host() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(line.count("==") == 1 and "/" not in line and "@" not in line for line in pins)
    pinned = {line.split("==")[0].lower() for line in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {name.split(">")[0].split("[")[0].lower() for part in wanted for name in part}
    assert names - {"http-over-polling"} - pinned == set()
