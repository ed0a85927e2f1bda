"""Run every notebook with nbval, and compare what it prints with what is stored.

    python -m tests.run_notebooks [notebook ...]

Outputs are compared on Python 3.11, with which they were made; elsewhere the notebooks run
without comparison. Cells that measure carry the tag `nbval-ignore-output`: the summary counts
them and names them, so that nobody has to believe that they are few.
"""

import sys
from pathlib import Path

import pytest

from book.notebook import ROOT, Notebook, ignored
from book.notebook import problems as kept_badly

COMPARED = (3, 11)


class Summary:
    """A pytest plugin that ends the run with the list of what was not compared."""

    def __init__(self, notebooks: list[Notebook]) -> None:
        self.notebooks = notebooks

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Called by pytest behind its own summary of failures."""
        cells = sum(len(notebook.cells) for notebook in self.notebooks)
        measure = [place for notebook in self.notebooks for place in ignored(notebook)]
        write = terminalreporter.write_line
        if sys.version_info[:2] != COMPARED:
            write("outputs were not compared: they are on Python 3.11 only")
        write(f"{len(measure)} of {cells} cells measure, and are not compared:")
        for place in measure:
            write(f"  {place}")


def main(names: list[str]) -> int:
    """Run the notebooks that are named (none: all); return the exit status."""
    notebooks = [Path(name) for name in names] or sorted((ROOT / "notebooks").glob("*.ipynb"))
    # nbval would leave cells alone that are stored without a count: the tangler's check says so.
    problems = [problem for path in notebooks for problem in kept_badly(path)]
    if problems or not notebooks:
        print("\n".join(problems) or "there are no notebooks")
        return 1
    mode = "--nbval" if sys.version_info[:2] == COMPARED else "--nbval-lax"
    sanitize = f"--nbval-sanitize-with={ROOT / 'tests' / 'nbval_sanitize.cfg'}"
    options = [mode, sanitize, "--nbval-current-env", "--nbval-cell-timeout=120", "-q"]
    options += ["-p", "tests.no_skips", "-p", "no:cacheprovider", "-o", "timeout=240"]
    options += ["--durations=8", "--durations-min=2"]
    summary = Summary([Notebook.read(path) for path in notebooks])
    return pytest.main([*options, *map(str, notebooks)], plugins=[summary])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
