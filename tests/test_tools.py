"""The tools that check the project: they must be able to fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import coverage_gate, mutants

ROOT = Path(__file__).resolve().parent.parent


def run_pytest(tmp_path: Path, source: str, ci: str) -> subprocess.CompletedProcess[str]:
    """Run one test file with the plugin `tests.no_skips`, with CI set to what is given."""
    (tmp_path / "test_it.py").write_text(source)
    plugins = ["-p", "tests.no_skips", "-p", "no:cacheprovider"]
    env = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, "-c", os.devnull, "test_it.py"],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )


SKIPS = {
    "mark": "import pytest\n@pytest.mark.skip(reason='no wrk')\ndef test_it(): pass\n",
    "call": "import pytest\ndef test_it(): pytest.skip('no wrk')\n",
    "file": "import pytest\npytest.skip('no wrk', allow_module_level=True)\n",
    "import": "import pytest\npytest.importorskip('no_such_module')\n",
}


@pytest.mark.parametrize("source", SKIPS.values(), ids=SKIPS)
def test_a_skip_fails_where_results_count(tmp_path: Path, source: str) -> None:
    done = run_pytest(tmp_path, source, ci="true")
    assert done.returncode != 0
    assert "which CI=true does not allow" in done.stdout


@pytest.mark.parametrize("source", SKIPS.values(), ids=SKIPS)
def test_a_skip_is_allowed_on_a_desk(tmp_path: Path, source: str) -> None:
    done = run_pytest(tmp_path, source, ci="")
    assert done.returncode in (0, 5)
    assert "1 skipped" in done.stdout


def test_a_skip_that_nobody_can_help_is_allowed(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, SKIPS["mark"].replace("no wrk", "no IPv6 here"), ci="true")
    assert done.returncode == 0
    assert "1 skipped" in done.stdout


def test_what_passes_and_what_is_expected_to_fail_are_left_alone(tmp_path: Path) -> None:
    source = "import pytest\n@pytest.mark.xfail\ndef test_a(): assert 0\ndef test_b(): pass\n"
    done = run_pytest(tmp_path, source, ci="true")
    assert done.returncode == 0
    assert "1 passed, 1 xfailed" in done.stdout


def plant(tree: Path, **files: str) -> None:
    """Lay down a tree with a package `hop` and its tests, as the mutants' tool expects one."""
    for directory in ("hop", "tests"):
        (tree / directory).mkdir(parents=True)
        (tree / directory / "__init__.py").write_text("")
    for name, text in files.items():
        suffix = "toml" if name == "mutants" else "py"
        directory = "hop" if name == "it" else "tests"
        (tree / directory / f"{name}.{suffix}").write_text(text)


IT = "def double(x: int) -> int:\n    return x * 2\n"
TEST_IT = "from hop.it import double\ndef test_it(): assert double({}) == {}\n"
ENTRY = "[[mutant]]\nmodule = 'it'\nfind = '{}'\nreplace = '{}'\n"


@pytest.mark.parametrize(
    ("numbers", "entry", "status", "verdict"),
    [
        ((3, 6), ("x * 2", "x * 3"), 0, "found"),
        ((0, 0), ("x * 2", "x * 3"), 1, "SURVIVED"),
        ((3, 6), ("int", "str"), 1, "occurs 2 times"),
        ((3, 6), ("x / 2", "x * 3"), 1, "occurs 0 times"),
        ((3, 6), ("x * 2", "x * 2"), 1, "changes nothing"),
        ((3, 6), ("x * 2", "x *"), 1, "does not compile"),
        ((3, 7), ("x * 2", "x * 3"), 1, "fail without a mutant"),
        ((3, 6), ("return x * 2", "while True: pass"), 0, "hung"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_hunt_for_mutants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    numbers: tuple[int, int], entry: tuple[str, str], status: int, verdict: str,
) -> None:
    plant(tmp_path, it=IT, test_it=TEST_IT.format(*numbers), mutants=ENTRY.format(*entry))
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "TIME_LIMIT", 20 if verdict != "hung" else 3)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    assert mutants.main([]) == status
    assert verdict in capsys.readouterr().out


def test_an_unknown_key_of_a_mutant_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, mutants=ENTRY.format("a", "b") + "sleect = 'x'\n")
    with pytest.raises(TypeError, match="sleect"):
        mutants.load(tmp_path / "tests" / "mutants.toml")


def test_a_module_is_covered_by_its_own_test_file_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    it = "def half(x):\n    if x:\n        return x / 2\n    return 0\n"
    test_it = "from hop.it import half\ndef test_it(): assert half(2) == 1\n"
    test_other = "from hop.it import half\ndef test_it(): assert half(0) == 0\n"
    plant(tmp_path, it=it, test_it=test_it, test_other=test_other)
    settings = "[tool.coverage.run]\nbranch = true\nsource = ['hop']\n"
    (tmp_path / "pyproject.toml").write_text(settings)
    monkeypatch.setattr(coverage_gate, "ROOT", tmp_path)
    monkeypatch.setattr(coverage_gate, "DATA", tmp_path / "data")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    assert coverage_gate.main([]) == 1
    printed = capsys.readouterr().out
    assert "hop/it.py, wanted 95 %" in printed
    assert "FAILED: test_it.py\n" in printed  # both files together run everything: that is no help
    (tmp_path / "tests" / "test_it.py").write_text(test_it + test_other.replace("_it", "_zero"))
    assert coverage_gate.main([]) == 0
