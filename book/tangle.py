"""Take the exported cells of the notebooks and lay down the modules.

    python -m book.tangle build [NB ...]      tangle all; then execute, normalise, write one by one
    python -m book.tangle tangle [NB ...]     write the modules, execute nothing
    python -m book.tangle check [NB ...]      compare; say which cell owns a difference
    python -m book.tangle pull hop/x.py ...   carry edits of a module back into its cells
    python -m book.tangle where hop/x.py:42   name the cell that a line comes from
    python -m book.tangle map                 where every line comes from, as JSON
    python -m book.tangle normalise NB ...    bring notebooks into their normal form

No map of the sources is stored: it is what tangling gives, so it cannot be out of date.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbconvert.exporters import Exporter

from book.notebook import ROOT, Notebook, TangleError, ignored, normalise
from book.project import Project, Tangled, tangle
from book.pull import pull, source_map, where

__all__ = ["Project", "TangleExporter", "Tangled", "main", "tangle"]


class TangleExporter(Exporter):
    """`jupyter nbconvert --to hop-tangle`: a notebook's module, and further ones beside it."""

    file_extension = ".py"
    export_from_notebook = "hop module"

    def from_notebook_node(  # type: ignore[override]
        self, nb: Any, resources: Any = None, **kw: Any
    ) -> tuple[str, dict[str, Any]]:
        """The text of the module; nbconvert's writers find the others in `outputs`."""
        nb, resources = super().from_notebook_node(nb, resources, **kw)
        stem = resources.get("metadata", {}).get("name") or "notebook"
        modules = tangle(Notebook(f"notebooks/{stem}.ipynb", nb))
        if not modules:
            return "", resources
        if resources.get("unique_key") == stem:
            resources["unique_key"] = Path(modules[0].path).stem
        further = {Path(module.path).name: module.text.encode() for module in modules[1:]}
        resources["outputs"] = {**(resources.get("outputs") or {}), **further}
        return modules[0].text, resources


def _build(project: Project, arguments: argparse.Namespace) -> int:
    project.build(project.notebooks(arguments.names))
    return 0


def _tangle(project: Project, arguments: argparse.Namespace) -> int:
    for path in project.notebooks(arguments.names):
        project.write(project.tangle(path))
    return 0


def _check(project: Project, arguments: argparse.Namespace) -> int:
    found = project.check(arguments.names)
    for text in found:
        print(text, file=sys.stderr)
    if found:
        return 1
    notebooks = [Notebook.read(path) for path in project.notebooks(arguments.names)]
    total = [(notebook.name, notebook.words, notebook.exported_lines) for notebook in notebooks]
    total.append(("together", sum(row[1] for row in total), sum(row[2] for row in total)))
    for name, words, lines in total:
        print(f"{name}: {words} words, {lines} exported lines, {words / max(lines, 1):.1f} a line")
    measuring = [place for notebook in notebooks for place in ignored(notebook)]
    print(f"{len(measuring)} cells measure, so that their output is not compared")
    if arguments.list_ignored:
        print(*measuring, sep="\n")
    return 0


def _pull(project: Project, arguments: argparse.Namespace) -> int:
    for path in arguments.names:
        for place in pull(project, path) or ["nothing: it is what its notebook says"]:
            print(f"{path}: carried back: {place}")
    return 0


def _where(project: Project, arguments: argparse.Namespace) -> int:
    print(*(where(project, place) for place in arguments.names), sep="\n")
    return 0


def _map(project: Project, arguments: argparse.Namespace) -> int:
    print(json.dumps(source_map(project)))
    return 0


def _normalise(project: Project, arguments: argparse.Namespace) -> int:
    for path in project.notebooks(arguments.names):
        notebook = Notebook.read(path)
        normalise(notebook)
        notebook.write(path)
    return 0


COMMANDS: dict[str, Callable[[Project, argparse.Namespace], int]] = {
    "build": _build, "tangle": _tangle, "check": _check, "pull": _pull, "where": _where,
    "map": _map, "normalise": _normalise,
}  # fmt: skip


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    """Run a command; 0 if all is well, 1 if not, with what is wrong on stderr."""
    parser = argparse.ArgumentParser("python -m book.tangle", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks or modules")
    parser.add_argument("--list-ignored", action="store_true",
                        help="check: list the cells whose output is not compared")  # fmt: skip
    arguments = parser.parse_args(argv)
    try:
        return COMMANDS[arguments.command](Project(root), arguments)
    except TangleError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
