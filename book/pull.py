"""The way back: from a line of a module to its cell, and from an edited module to its notebook."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from book.notebook import Cell, Notebook, TangleError
from book.project import Project, Tangled, tangle
from book.splice import BLANK


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


@dataclass(frozen=True, slots=True)
class Edit:
    """Lines first:last (from 1) of a cell become *new*."""

    cell: Cell
    first: int
    last: int
    new: list[str]


def _pull_into(project: Project, file: Path, module: Tangled) -> list[str]:
    stored, made = project.on_disk(module), [line.text for line in module.lines]
    matcher = difflib.SequenceMatcher(None, made, stored, autojunk=False)
    edits = [
        _edit(module, first, last, stored[begin:end])
        for tag, first, last, begin, end in matcher.get_opcodes()
        if tag != "equal"
    ]
    notebook = Notebook.read(file)
    nodes = {node.id: node for node in notebook.node.cells}
    for edit in sorted(edits, key=lambda edit: edit.first, reverse=True):
        lines = nodes[edit.cell.id].source.split("\n")
        lines[edit.first - 1 : edit.last - 1] = edit.new
        nodes[edit.cell.id].source = "\n".join(lines)
    if not any(again.path == module.path and [line.text for line in again.lines] == stored
               for again in tangle(notebook)):  # fmt: skip
        raise TangleError(f"{module.path}: these edits cannot be carried back: tangled again, "
                          f"it would be another module; edit {module.notebook}")  # fmt: skip
    notebook.write(file)
    return [edit.cell.place(edit.first) for edit in edits]


def _edit(module: Tangled, first: int, last: int, new: list[str]) -> Edit:
    """What an edit of the module's lines first:last means for a cell."""
    lines = module.lines[first:last]
    place = f"{module.path}:{first + 1}"
    if not lines:
        return _insertion(module, first, new)
    if len({line.cell for line in lines}) > 1:
        owners = dict.fromkeys(line.cell.place() if line.cell else "no cell" for line in lines)
        raise TangleError(f"{place}: ambiguous: the edit spans {' and '.join(owners)}")
    cell, start = lines[0].cell, lines[0].number
    if cell is None:
        raise TangleError(f"{place}: the tangler made this line; edit {module.notebook}")
    if cell.lines[start - 1 : start - 1 + len(lines)] != [line.text for line in lines]:
        raise TangleError(f"{place}: ambiguous: {cell.place(start)} says this in other lines")
    return Edit(cell, start, start + len(lines), new)


def _insertion(module: Tangled, at: int, new: list[str]) -> Edit:
    """Lines put before line *at*: they belong to the cell around them, or that they touch."""
    above = module.lines[at - 1] if at else BLANK
    below = module.lines[at] if at < len(module.lines) else above
    inside = above.cell is below.cell
    follows = above.cell if inside or new[0].strip() else None
    leads = below.cell if inside or new[-1].strip() else None
    if follows and leads in (None, follows):
        return Edit(follows, above.number + 1, above.number + 1, new)
    if leads and not follows:
        return Edit(leads, below.number, below.number, new)
    raise TangleError(f"{module.path}:{at + 1}: ambiguous: lines were put between two cells; "
                      f"edit {module.notebook}")  # fmt: skip
