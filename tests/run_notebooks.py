"""Run every notebook with nbval, and compare what it prints with what is stored.

    python -m tests.run_notebooks [notebook ...]

Outputs are compared on Python 3.11, with which they were made; elsewhere the notebooks run
without comparison. Cells that measure carry the tag `nbval-ignore-output`: the summary counts
them and names them, so that nobody has to believe that they are few.
"""

import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
COMPARED = (3, 11)


class Summary:
    """A pytest plugin that ends the run with the list of what was not compared."""

    def __init__(self, notebooks: list[Path]) -> None:
        self.cells = [
            (path, number, cell)
            for path in notebooks
            for number, cell in enumerate(code_cells(path))
        ]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Called by pytest behind its own summary of failures."""
        ignored = [
            f"{path.name}, cell {number} ({cell.get('id', 'no id')})"
            for path, number, cell in self.cells
            if "nbval-ignore-output" in cell.metadata.get("tags", [])
        ]
        write = terminalreporter.write_line
        if sys.version_info[:2] != COMPARED:
            write("outputs were not compared: they are on Python 3.11 only")
        write(f"{len(ignored)} of {len(self.cells)} cells measure, and are not compared:")
        for line in ignored:
            write(f"  {line}")


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook, in order, as nbval numbers them."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def uncompared(path: Path) -> list[str]:
    """Cells that nbval would run without comparing anything, though nobody asked for it.

    It leaves a cell alone that is stored without a count, and the tag `nbval-skip` is not for us.
    """
    problems = []
    for number, cell in enumerate(code_cells(path)):
        if cell.source.strip() and cell.execution_count is None:
            problems.append(f"{path.name}, cell {number}: stored without an execution count")
        if "nbval-skip" in cell.metadata.get("tags", []) or "NBVAL_SKIP" in cell.source:
            problems.append(f"{path.name}, cell {number}: skipped")
    return problems


def main(names: list[str]) -> int:
    """Run the notebooks that are named (none: all); return the exit status."""
    notebooks = [Path(name) for name in names] or sorted((ROOT / "notebooks").glob("*.ipynb"))
    problems = [problem for path in notebooks for problem in uncompared(path)]
    if problems or not notebooks:
        print("\n".join(problems) or "there are no notebooks")
        return 1
    mode = "--nbval" if sys.version_info[:2] == COMPARED else "--nbval-lax"
    sanitize = f"--nbval-sanitize-with={ROOT / 'tests' / 'nbval_sanitize.cfg'}"
    options = [mode, sanitize, "--nbval-current-env", "--nbval-cell-timeout=120", "-q"]
    options += ["-p", "tests.no_skips", "-p", "no:cacheprovider", "-o", "timeout=240"]
    options += ["--durations=8", "--durations-min=2"]
    return pytest.main([*options, *map(str, notebooks)], plugins=[Summary(notebooks)])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
