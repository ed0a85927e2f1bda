"""Plant mistakes in the package, one at a time, and see whether the tests find them.

    python -m tests.mutants [module ...]

`tests/mutants.toml` lists them. Each is applied to a copy of the tree, in which the module's own
test file (or the one that is named) must then fail. A mutant that survives shows something that
no test looks at. Before any mutant, the same tests must pass on the copy without a mistake: a
test that always fails would find everything.

    [[mutant]]
    module = "parser"                  # hop/parser.py
    find = "if size > limits.body:"    # occurs exactly once
    replace = "if size >= limits.body:"
    test = "tests/test_parser.py"      # by default: the module's own
    select = "limit"                   # pytest's -k, optional: makes a slow test file quick
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests import LEAN

ROOT = Path(__file__).resolve().parent.parent
#: Seconds. What a mutant has not answered by then, it has hung: that counts as found.
TIME_LIMIT = 60
#: Seconds for the tests without a mutant.
BASELINE_LIMIT = 240
#: What is copied for every mutant: a test may look for files beside its own. Links do for the rest.
COPIED = ("hop", "tests", "examples")
LINKED = ("book", "notebooks", "pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted mistake, and the tests that must notice it."""

    module: str
    find: str
    replace: str
    test: str = ""
    select: str = ""

    @property
    def tests(self) -> tuple[str, ...]:
        """pytest's arguments for the tests that must notice."""
        file = self.test or f"tests/test_{self.module.strip('_')}.py"
        return (file, "-k", self.select) if self.select else (file,)

    def __str__(self) -> str:
        before, after = (" ".join(text.split())[:44] for text in (self.find, self.replace))
        return f"hop/{self.module}.py: {before!r} -> {after!r}"

    def apply(self, tree: Path) -> str:
        """Plant the mistake under `tree`; say what is wrong with the entry itself, or ""."""
        path = tree / "hop" / f"{self.module}.py"
        if not path.exists():
            return "there is no such module"
        source = path.read_text()
        found = source.count(self.find)
        if found != 1:
            return f"the text to find occurs {found} times, not once"
        if self.find == self.replace:
            return "it changes nothing"
        mutated = source.replace(self.find, self.replace)
        try:
            compile(mutated, str(path), "exec")
        except SyntaxError as error:
            return f"it does not compile: {error}"
        path.write_text(mutated)
        return ""


def load(path: Path) -> list[Mutant]:
    """Read the list. An unknown key is a TypeError, a missing one too."""
    return [Mutant(**entry) for entry in tomllib.loads(path.read_text()).get("mutant", [])]


def copy_tree(into: Path) -> None:
    """Make a tree in which `hop` may be changed, and everything else is the original."""
    for name in filter(lambda name: (ROOT / name).exists(), COPIED):
        shutil.copytree(ROOT / name, into / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in LINKED:
        if (ROOT / name).exists():
            (into / name).symlink_to(ROOT / name)


def run_tests(tree: Path, tests: tuple[str, ...], limit: float) -> tuple[int | None, str]:
    """Run tests in a tree: pytest's exit status (None: it hung) and what it printed.

    Everything that pytest started ends with it: it runs in a session of its own.
    """
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", *LEAN]
    process = subprocess.Popen(
        [*command, f"--rootdir={tree}", *tests],
        cwd=tree, env=env, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    try:
        output, _ = process.communicate(timeout=limit)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, f"no answer within {limit:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def imported_from(tree: Path) -> Path:
    """Where a process that runs in the tree finds `hop`: it must be there."""
    code = "import hop, pathlib; print(pathlib.Path(list(hop.__path__)[0]).resolve())"
    env = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=env, text=True, capture_output=True, check=True
    )
    return Path(done.stdout.strip())


def baseline(tests: tuple[str, ...]) -> str:
    """Run tests on a copy without a mistake; say what is wrong, or ""."""
    with tempfile.TemporaryDirectory(prefix="hop-mutant-") as directory:
        tree = Path(directory).resolve()
        copy_tree(tree)
        if imported_from(tree) != tree / "hop":
            return f"the tests would import hop from {imported_from(tree)}"
        status, output = run_tests(tree, tests, BASELINE_LIMIT)
        return "" if status == 0 else output


def hunt(mutant: Mutant) -> tuple[bool, str]:
    """Whether the tests found one mutant, and how it went in a few words."""
    with tempfile.TemporaryDirectory(prefix="hop-mutant-") as directory:
        tree = Path(directory).resolve()
        copy_tree(tree)
        if problem := mutant.apply(tree):
            return False, f"ERROR    {mutant}: {problem}"
        start = time.monotonic()
        status, output = run_tests(tree, mutant.tests, TIME_LIMIT)
        took = f"{time.monotonic() - start:.1f} s"
        if status == 1:
            return True, f"found    {mutant} ({took})"
        if status is None:
            return True, f"hung     {mutant} ({took})"
        if status == 0:
            return False, f"SURVIVED {mutant} (pytest {' '.join(mutant.tests)}, {took})"
        return False, f"ERROR    {mutant}: pytest ended with status {status}\n{output[-2000:]}"


def main(modules: list[str]) -> int:
    """Hunt the mutants of the given modules (none: all); return the exit status."""
    mutants = load(ROOT / "tests" / "mutants.toml")
    if modules:
        mutants = [mutant for mutant in mutants if mutant.module in modules]
    with ThreadPoolExecutor(max_workers=2) as pool:
        suites = sorted({mutant.tests for mutant in mutants})
        broken = set()
        for tests, problem in zip(suites, pool.map(baseline, suites), strict=True):
            if problem:
                broken.add(tests)
                print(f"ERROR    {tests} fail without a mutant\n{problem[-3000:]}")
        hunted = [mutant for mutant in mutants if mutant.tests not in broken]
        found = 0
        for good, text in pool.map(hunt, hunted):
            found += good
            print(text, flush=True)
    print(f"{found} of {len(mutants)} mutants were found")
    return int(found < len(mutants))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
