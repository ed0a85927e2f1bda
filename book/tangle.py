"""Take the exported cells of the notebooks and lay down the modules.

    python -m book.tangle build [NB ...]      execute, normalise, write, tangle, one by one
    python -m book.tangle tangle [NB ...]     write the modules, execute nothing
    python -m book.tangle check [NB ...]      compare; say which cell owns a difference
    python -m book.tangle pull hop/x.py ...   carry edits of a module back into its cells
    python -m book.tangle where hop/x.py:42   name the cell that a line comes from
    python -m book.tangle map                 where every line comes from, as JSON
    python -m book.tangle normalise NB ...    bring notebooks into their normal form

No map of the sources is stored: it is what tangling gives, so it cannot be out of date.
"""

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbclient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbconvert.exporters import Exporter

from book.notebook import ROOT, Cell, Notebook, TangleError, ignored, normalise, problems
from book.splice import Line, Module

TIME_LIMIT = 120  # seconds that one cell may take
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Tangled:
    """One module as a notebook makes it."""

    path: str
    notebook: str
    lines: list[Line]

    @property
    def text(self) -> str:
        """What its file holds."""
        return "".join(f"{line.text}\n" for line in self.lines)


def tangle(notebook: Notebook) -> list[Tangled]:
    """The modules of one notebook, its own one first. TangleError names cell and line."""
    modules: dict[str, Module] = {}
    for cell in notebook.cells:
        if cell.target:
            if cell.target not in modules:
                own = cell.target == notebook.default
                docstring = notebook.docstring if own else None
                modules[cell.target] = Module(cell.target, notebook.name, docstring)
            modules[cell.target].add(cell)
    made = [Tangled(path, notebook.name, module.lines()) for path, module in modules.items()]
    return sorted(made, key=lambda module: module.path != notebook.default)


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


# ------------------------------------------------------------------ the project


class Project:
    """The notebooks below *root*, and the modules that they make."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    def notebooks(self, names: Iterable[str] = ()) -> list[Path]:
        """The named notebooks, or all of them, in order."""
        paths = [Path(name).resolve() for name in names]
        return sorted(paths or (self.root / "notebooks").glob("*.ipynb"))

    def tangle(self, path: Path) -> list[Tangled]:
        """The modules of one notebook. TangleError if another notebook feeds one of them."""
        notebook = Notebook.read(path)
        for other in self.notebooks():
            if other != path:
                self._check_apart(notebook, Notebook.read(other))
        return tangle(notebook)

    def _check_apart(self, notebook: Notebook, other: Notebook) -> None:
        theirs = {cell.target: cell for cell in other.cells if cell.target}
        for cell in notebook.cells:
            if cell.target in theirs:
                raise cell.error(f"{cell.target} is fed by {theirs[cell.target].place()} too", 1)

    def everything(self) -> Iterator[Tangled]:
        """All modules of all notebooks."""
        for path in self.notebooks():
            yield from self.tangle(path)

    def write(self, modules: Iterable[Tangled]) -> dict[Path, str | None]:
        """Write modules. The texts that they had before are given back, None for no file."""
        before: dict[Path, str | None] = {}
        for module in modules:
            path = self.root / module.path
            before[path] = path.read_text("utf-8") if path.exists() else None
            if before[path] != module.text:
                path.parent.mkdir(exist_ok=True)
                path.write_text(module.text, "utf-8")
                print(f"{module.path}: tangled from {module.notebook}")
        return before

    def build(self, path: Path) -> None:
        """Tangle, execute, normalise and write one notebook.

        The module comes first: a chapter may start it in a process of its own. It is taken
        back if a cell fails, so that a chapter that does not hold leaves nothing behind.
        """
        before = self.write(self.tangle(path))
        notebook = Notebook.read(path)
        try:
            execute(notebook, path.parent, self.root)
        except TangleError:
            for module, text in before.items():
                module.unlink() if text is None else module.write_text(text, "utf-8")
            raise
        normalise(notebook)
        notebook.write(path)
        print(f"{notebook.name}: executed")

    def check(self, names: list[str]) -> list[str]:
        """What is wrong with the notebooks and their modules; one text for each."""
        found: list[str] = []
        made: set[str] = set()
        for path in self.notebooks(names):
            try:
                found += problems(path)
                modules = self.tangle(path)
            except TangleError as error:
                found.append(str(error))
                continue
            made |= {module.path for module in modules}
            found += [text for module in modules for text in self._differences(module)]
        if not names:
            files = (path.relative_to(self.root).as_posix() for path in self.root.glob("hop/*.py"))
            found += [f"{file}: no notebook feeds it" for file in sorted(set(files) - made)]
        return found

    def on_disk(self, module: Tangled) -> list[str]:
        """The lines of a module's file; none if there is no file."""
        path = self.root / module.path
        return path.read_text("utf-8").splitlines() if path.exists() else []

    def _differences(self, module: Tangled) -> Iterator[str]:
        """Each place where a file is not what its cells say, with the cell that owns it."""
        stored, made = self.on_disk(module), [line.text for line in module.lines]
        groups = difflib.SequenceMatcher(None, made, stored, autojunk=False).get_grouped_opcodes(2)
        for group in groups:
            first, last = next((i, j) for tag, i, j, _, _ in group if tag != "equal")
            owner = owner_of(module, first, last)
            diff = difflib.unified_diff(
                made[group[0][1] : group[-1][2]], stored[group[0][3] : group[-1][4]],
                f"tangled from {module.notebook}", module.path, lineterm="", n=2,
            )  # fmt: skip
            yield "\n".join([f"{module.path} is not what is tangled from {owner}:",
                             *list(diff)[:24]])  # fmt: skip


def owner_of(module: Tangled, first: int, last: int) -> str:
    """The place that lines first:last (or the line before) of a module come from."""
    lines = [*module.lines[first:last], *reversed(module.lines[:first])]
    owner = next((line for line in lines if line.cell), None)
    return owner.cell.place(owner.number) if owner and owner.cell else module.notebook


# ------------------------------------------------------------------ executing


def execute(notebook: Notebook, folder: Path, root: Path = ROOT) -> None:
    """Run every cell in a fresh kernel, in *folder*. TangleError names the cell that fails."""
    client = nbclient.NotebookClient(
        notebook.node, timeout=TIME_LIMIT, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(folder)}}, extra_arguments=["--log-level=ERROR"],
    )  # fmt: skip
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    cells = iter(notebook.cells)
    with client.setup_kernel(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}):
        for index, node in enumerate(notebook.node.cells):
            if node.cell_type != "code" or not node.source.strip():
                continue
            cell = next(cells)
            try:
                client.execute_cell(node, index)
            except CellExecutionError as error:
                raise cell.error(*_failure(error)) from None
            except CellTimeoutError:
                raise cell.error(f"takes more than {TIME_LIMIT} seconds") from None


def _failure(error: CellExecutionError) -> tuple[str, int]:
    """The text of an exception that a cell raised, and the cell's line, 0 if unknown."""
    trace = _COLOUR.sub("", error.traceback)
    line = re.search(r"Cell In\[\d+\], line (\d+)|^-+> (\d+) ", trace, re.MULTILINE)
    number = int(next(filter(None, line.groups()))) if line else 0
    return f"{error.ename}: {error.evalue}\n\n{trace.strip()}", number


# ------------------------------------------------------------------ from module to cells


def where(project: Project, place: str) -> str:
    """The cell that `hop/x.py:42` comes from. TangleError if there is no such line."""
    path, _, number = place.partition(":")
    for module in project.everything():
        if module.path == path and number.isdigit() and 0 < int(number) <= len(module.lines):
            line = module.lines[int(number) - 1]
            if line.cell:
                return line.cell.place(line.number)
            return f"{module.notebook}, made by the tangler: {line.text or 'a blank line'}"
    raise TangleError(f"{place}: no such line in a tangled module; say it like hop/poller.py:42")


def source_map(project: Project) -> dict[str, Any]:
    """For each module: its notebook, and for each of its lines [cell id, number, line] or None."""
    return {
        module.path: {
            "notebook": module.notebook,
            "lines": [[line.cell.id, line.cell.number, line.number] if line.cell else None
                      for line in module.lines],
        }
        for module in project.everything()
    }  # fmt: skip


def pull(project: Project, path: str) -> list[str]:
    """Carry the edits made in a module back into its cells; the places that were changed.

    TangleError, and nothing changed, if it is not clear where an edit belongs: it spans two
    cells, or stands between two, or touches what the tangler made.
    """
    for file in project.notebooks():
        for module in project.tangle(file):
            if module.path == path:
                return _pull_into(project, file, module)
    raise TangleError(f"{path}: no notebook feeds it")


def _pull_into(project: Project, file: Path, module: Tangled) -> list[str]:
    stored, made = project.on_disk(module), [line.text for line in module.lines]
    edits: list[tuple[Cell, int, int, list[str]]] = []
    matcher = difflib.SequenceMatcher(None, made, stored, autojunk=False)
    for tag, first, last, begin, end in matcher.get_opcodes():
        if tag != "equal":
            edits.append((*_target(module, first, last, stored[begin:end]), stored[begin:end]))
    notebook = Notebook.read(file)
    nodes = {node.get("id"): node for node in notebook.node.cells}
    for cell, first, last, new in sorted(edits, key=lambda edit: edit[1], reverse=True):
        lines = nodes[cell.id].source.splitlines()
        lines[first - 1 : last - 1] = new
        nodes[cell.id].source = "\n".join(lines)
    again = next((other for other in tangle(notebook) if other.path == module.path), None)
    if again is None or again.text.splitlines() != stored:
        raise TangleError(f"{module.path}: its edits cannot be carried back: tangled again, "
                          "the module would be another one; edit the notebook")  # fmt: skip
    notebook.write(file)
    return [cell.place(first) for cell, first, _, _ in edits]


def _target(module: Tangled, first: int, last: int, new: list[str]) -> tuple[Cell, int, int]:
    """The cell, and its lines from:to, that an edit of module lines first:last belongs to."""
    lines = module.lines[first:last]
    cells = {line.cell for line in lines}
    place = f"{module.path}:{first + 1}"
    if not lines:
        return _insertion(module, first, new, place)
    start = lines[0]
    if len(cells) > 1:
        named = " and ".join(sorted({cell.place() for cell in cells if cell})) or module.notebook
        raise TangleError(f"{place}: the edit is ambiguous: it spans more than {named}")
    if start.cell is None:
        raise TangleError(f"{place}: this is made by the tangler; edit {module.notebook}")
    source = start.cell.source.splitlines()
    numbers = [line.number for line in lines]
    if numbers != list(range(start.number, start.number + len(lines))) or any(
        source[line.number - 1] != line.text for line in lines
    ):
        raise TangleError(f"{place}: the edit is ambiguous: {start.cell.place(start.number)} "
                          "does not say this in the same lines")  # fmt: skip
    return start.cell, start.number, start.number + len(lines)


def _insertion(module: Tangled, at: int, new: list[str], place: str) -> tuple[Cell, int, int]:
    """Where lines put before module line *at* belong: below the line that they follow."""
    above = module.lines[at - 1] if at else Line("")
    below = module.lines[at] if at < len(module.lines) else Line("")
    places: dict[Cell, int] = {}
    if below.cell and new[-1].strip():
        places[below.cell] = below.number
    if above.cell and new[0].strip():
        places[above.cell] = above.number + 1
    if len(places) != 1:
        raise TangleError(f"{place}: the edit is ambiguous: lines put between two cells; "
                          f"edit {module.notebook}")  # fmt: skip
    cell, number = places.popitem()
    return cell, number, number


# ------------------------------------------------------------------ the command


def _build(project: Project, arguments: argparse.Namespace) -> int:
    for path in project.notebooks(arguments.names):
        project.build(path)
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
    for notebook in notebooks:
        exported = [cell for cell in notebook.cells if cell.target]
        lines = sum(len(cell.source.splitlines()) - 1 for cell in exported)
        ratio = f"{notebook.words / lines:.1f} words a line" if lines else "nothing exported"
        print(f"{notebook.name}: {notebook.words} words, {lines} exported lines ({ratio})")
    measuring = [place for notebook in notebooks for place in ignored(notebook)]
    print(f"{len(measuring)} cells measure, so that their output is not compared")
    if arguments.list_ignored:
        print(*measuring, sep="\n")
    return 0


def _pull(project: Project, arguments: argparse.Namespace) -> int:
    for path in arguments.names:
        for place in pull(project, path):
            print(f"{path}: carried into {place}; now build the notebook")
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
