"""The way back: from a line of a module to its cell, and from an edited module to its notebook."""

import difflib
from pathlib import Path
from typing import Any

from book.notebook import Cell, Notebook, TangleError
from book.project import Project, Tangled, tangle
from book.splice import Line


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
