"""Run the unit tests, each file in a process of its own, and insist on their coverage.

    python -m tests.coverage_gate [module ...]

`tests/test_parser.py` alone must run every branch of `hop/parser.py`, and likewise for each
module, so that a module's tests are found where one looks for them. Two processes run at a
time. What they measured is then put together for the package as a whole.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from coverage import Coverage

from tests import LEAN

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "build" / "coverage"
#: Branch coverage in percent that a module's own test file must reach.
GATE, GATES = 95.0, {"parser": 100.0, "adaptor": 100.0}
#: Stages of their own in `make test`: they measure nothing of `hop`.
ELSEWHERE = {"test_book", "test_package"}


@dataclass(frozen=True, slots=True)
class Run:
    """The end of one pytest process: `module` is empty for a file that owns no module."""

    file: Path
    module: str
    status: int
    output: str


def module_of(file: Path) -> str:
    """The module that a test file owns: `test_parser.py` owns `parser`, `test_main.py` the
    command line, and a file that belongs to no module owns ""."""
    name = file.stem.removeprefix("test_").replace("main", "__main__")
    return name if (ROOT / "hop" / f"{name}.py").exists() else ""


def run(file: Path) -> Run:
    """Run one test file under coverage, without any hope of being helped by another one."""
    data = measured(file)
    for old in DATA.glob(f"{data.name}*"):
        old.unlink()
    command = [sys.executable, "-m", "coverage", "run", f"--data-file={data}", "-m", "pytest"]
    options = ["-q", *LEAN, str(file.relative_to(ROOT))]
    done = subprocess.run(
        command + options,
        cwd=ROOT, text=True, capture_output=True, check=False,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    output = done.stdout + done.stderr
    combine([data], data)
    return Run(file, module_of(file), done.returncode, output)


def measured(file: Path) -> Path:
    """Where a test file's process leaves what it measured."""
    return DATA / f"{file.stem}.coverage"


def combine(parts: list[Path], into: Path) -> None:
    """Put together what several processes, or a server that a test started, have measured."""
    found = [str(file) for part in parts for file in DATA.glob(f"{part.name}*")]
    if found:
        coverage = Coverage(data_file=str(into), config_file=str(ROOT / "pyproject.toml"))
        coverage.combine(found, keep=into not in parts)
        coverage.save()


def percent(data: Path, *modules: str) -> tuple[float, str]:
    """Branch coverage of the given modules of `hop` (none: of all), and the report's text."""
    coverage = Coverage(data_file=str(data), config_file=str(ROOT / "pyproject.toml"))
    coverage.load()
    text = StringIO()
    include = [str(ROOT / "hop" / f"{module}.py") for module in modules]
    total = coverage.report(file=text, include=include or None, skip_covered=False)
    return total, text.getvalue()


def judge(done: Run) -> str:
    """One line about a run that is well, or everything that one needs to know if it is not."""
    ends = [line.strip("= ") for line in done.output.splitlines() if " in " in line]
    last = ends[-1] if ends else "no result"
    line = f"{done.file.name:28} {last}"
    if done.status:
        return f"{done.output}\nFAILED {line}"
    if not done.module:
        return line
    reached, text = percent(measured(done.file), done.module)
    wanted = GATES.get(done.module, GATE)
    line += f"; {reached:.1f} % of hop/{done.module}.py"
    if reached < wanted:
        return f"{text}\nFAILED {line}, wanted {wanted:.0f} %"
    return line


def whole(files: list[Path]) -> list[str]:
    """Put all measurements together; say what is wrong with the package as a whole."""
    combined = DATA / "all"
    combine([measured(file) for file in files], combined)
    reached, text = percent(combined)
    print(text)
    modules = {path.stem for path in (ROOT / "hop").glob("*.py")} - {"__init__"}
    untested = sorted(modules - {module_of(file) for file in files})
    problems = [f"hop/{module}.py has no test file of its own" for module in untested]
    if reached < GATE:
        problems.append(f"{reached:.1f} % of hop, wanted {GATE:.0f} %")
    return problems


def main(names: list[str]) -> int:
    """Run what is asked for, print a line for each file, and return the exit status."""
    DATA.mkdir(parents=True, exist_ok=True)
    files = sorted((ROOT / "tests").glob("test_*.py"))
    files = [file for file in files if file.stem not in ELSEWHERE]
    if names:
        wanted = {name.strip("_") for name in names}
        files = [file for file in files if file.stem.removeprefix("test_") in wanted]
    os.environ.pop("HOP_POLLER", None)
    failures = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        for done in pool.map(run, files):
            verdict = judge(done)
            print(verdict, flush=True)
            failures += [done.file.name] if "FAILED " in verdict else []
    if not names:
        failures += whole(files)
    if failures:
        print("FAILED:", ", ".join(failures))
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
