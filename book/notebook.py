"""Notebooks as the tangler reads them, and the one normal form in which they are kept."""

import os
import re
import textwrap
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parent.parent
LONGEST_CELL = 40  # lines of an exported cell

_EXPORT = re.compile(r"#\|\s*export(?:\s+(\S+))?\s*$")
_DEFAULT = re.compile(r"^#\|\s*default_exp\s+([\w.]+)\s*$", re.MULTILINE)
_FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6}\s+(.+?)[\s#]*$", re.MULTILINE)
_MACHINE = re.compile(
    rf"{re.escape(str(ROOT))}/|{re.escape(str(Path.home()))}/|/home/|/Users/"
    r"|/tmp/ipykernel|site-packages"
)
_LIBRARY = re.compile(r"(?:~|/)[^\s:'\"]*/lib/python3[.\d]*/(?:site-packages/)?")


class TangleError(Exception):
    """Something in a notebook cannot be tangled; the text names notebook, cell and line."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A code cell. *number* is what Jupyter shows as [number]; *target* the file it feeds."""

    notebook: str
    number: int
    id: str
    source: str
    target: str | None
    explained: bool  # prose stands between this cell and the exported one before it

    @property
    def lines(self) -> list[str]:
        """The lines of its source, as Python counts them."""
        return self.source.split("\n")

    def place(self, line: int = 0) -> str:
        """Where this is, for people: notebook, cell and (from 1) line."""
        return f"{self.notebook}, cell [{self.number}] {self.id}" + (f", line {line}" * bool(line))

    def error(self, problem: str, line: int = 0) -> TangleError:
        """An error that says what is wrong, and where."""
        return TangleError(f"{self.place(line)}: {problem}")


class Notebook:
    """One notebook, read from its file or handed over by nbconvert."""

    def __init__(self, name: str, node: Any) -> None:
        self.name = name
        self.node = node

    @classmethod
    def read(cls, path: Path) -> "Notebook":
        """Read a file. TangleError if it holds no notebook."""
        name = f"{path.parent.name}/{path.name}"
        try:
            return cls(name, nbformat.reads(path.read_text("utf-8"), as_version=4))
        except (ValueError, nbformat.ValidationError) as error:
            raise TangleError(f"{name}: no notebook: {error}") from None

    @cached_property
    def default(self) -> str | None:
        """The file that plain `#| export` feeds, as `#| default_exp` names its module."""
        for cell in self.node.cells:
            if cell.cell_type == "code" and (found := _DEFAULT.search(cell.source)):
                return found[1].replace(".", "/") + ".py"
        return None

    @cached_property
    def cells(self) -> list[Cell]:
        """The code cells, in order."""
        cells: list[Cell] = []
        explained = False
        for node in self.node.cells:
            if node.cell_type == "markdown":
                explained = True
            elif node.cell_type == "code" and node.source.strip():
                number = len(cells) + 1
                target = self._target(node.source, number, node.get("id", ""))
                identity = node.get("id", "")
                cells.append(Cell(self.name, number, identity, node.source, target, explained))
                explained = explained and target is None
        return cells

    def _target(self, source: str, number: int, identity: str) -> str | None:
        here = Cell(self.name, number, identity, source, None, False)
        for line, text in enumerate(here.lines[1:], 2):
            if _EXPORT.match(text):
                raise here.error("`#| export` must be the first line of its cell", line)
        if not (found := _EXPORT.match(here.lines[0])):
            return None
        target = found[1] or self.default
        if target is None:
            raise here.error("exported to no module: the notebook has no `#| default_exp`", 1)
        if not target.endswith(".py") or target.startswith(("/", "..")):
            raise here.error(f"{target!r} is no module's path, such as hop/poller.py", 1)
        return target

    @property
    def docstring(self) -> tuple[str, str]:
        """Title and promise: the first heading, and the paragraph below it, as plain text."""
        text = next((c.source for c in self.node.cells if c.cell_type == "markdown"), "")
        if not (heading := _HEADING.search(text)):
            raise TangleError(f"{self.name}: begins with no heading and promise")
        promise = text[heading.end() :].strip().split("\n\n")[0]
        if not promise:
            raise TangleError(f"{self.name}: its heading is followed by no promise")
        return re.sub(r"^\d+\W+", "", _plain(heading[1])), _plain(promise)

    @property
    def words(self) -> int:
        """How many words of prose it has."""
        cells = (c.source for c in self.node.cells if c.cell_type == "markdown")
        return sum(len(text.split()) for text in cells)

    @property
    def exported_lines(self) -> int:
        """How many lines it exports, without the directives."""
        return sum(len(cell.lines) - 1 for cell in self.cells if cell.target)

    def text(self) -> str:
        """What the file holds when it is written."""
        text: str = nbformat.writes(self.node, indent=1, ensure_ascii=False, sort_keys=True)
        return text + "\n"

    def write(self, path: Path) -> None:
        """Replace the file at once: a reader sees the old notebook or the new one."""
        draft = path.with_name(path.name + ".tmp")
        draft.write_text(self.text(), "utf-8")
        os.replace(draft, path)


def _plain(markdown: str) -> str:
    """The words of a paragraph without emphasis, links and line ends."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(markdown.split()))
    return text.replace("*", "").lstrip("> ")


def docstring_lines(title: str, promise: str) -> list[str]:
    """The lines of a module's docstring, quotes included."""
    title += "" if title.endswith((".", "?", "!")) else "."
    text = f'"""{title}\n\n' + textwrap.fill(promise, 99)
    return [*text.replace("\\", "\\\\").splitlines(), '"""']


# ------------------------------------------------------------------ the normal form


def normalise(notebook: Notebook) -> None:
    """Bring a notebook into the form in which it is kept.

    Ids that say where a cell stands; counts 1..n (a cell that was never run stays without);
    no metadata but tags; no version of anything; no path of this machine in a traceback.
    """
    node = notebook.node
    node.nbformat, node.nbformat_minor = 4, 5
    node.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    })
    node.cells = [cell for cell in node.cells if cell.source.strip()]
    numbers = count(1)
    for cell, identity in zip(node.cells, _ids(node.cells), strict=True):
        cell.id = identity
        tags = sorted(cell.metadata.get("tags", []))
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        cell.source = cell.source.strip("\n")
        if cell.cell_type == "code":
            number = next(numbers)
            cell.execution_count = number if cell.execution_count is not None else None
            cell.outputs = _normal_outputs(cell.outputs, cell.execution_count)
    notebook.__dict__.pop("cells", None)


def _ids(cells: list[Any]) -> list[str]:
    """`waking-up-3`: the third cell below the heading "Waking up"."""
    ids: list[str] = []
    seen: dict[str, int] = {}
    slug = "start"
    for cell in cells:
        text = _FENCED.sub("", cell.source) if cell.cell_type == "markdown" else ""
        if found := _HEADING.search(text):
            words = re.sub(r"[^a-z0-9]+", "-", _plain(found[1]).lower())
            slug = words[:48].strip("-") or "section"
        seen[slug] = seen.get(slug, 0) + 1
        ids.append(f"{slug}-{seen[slug]}")
    return ids


def _normal_outputs(outputs: list[Any], number: int | None) -> list[Any]:
    """Streams in one piece, counts of the cell, tracebacks without this machine's paths."""
    normal: list[Any] = []
    for output in outputs:
        output.pop("transient", None)
        if output.output_type == "execute_result":
            output.execution_count = number
        if output.output_type == "error":
            output.traceback = [_without_paths(line) for line in output.traceback]
        if output.output_type == "stream" and normal and normal[-1].get("name") == output.name:
            normal[-1].text += output.text
        else:
            normal.append(output)
    return normal


def _without_paths(text: str) -> str:
    text = _LIBRARY.sub("", text).replace(f"{ROOT}/", "")
    return re.sub(r"/tmp/ipykernel_\d+/\d+\.py", "<cell>", text)


def problems(path: Path) -> list[str]:
    """What keeps the notebook at *path* from being kept as it is; one text each."""
    notebook = Notebook.read(path)
    found = [cell.error(text, line) for cell in notebook.cells for text, line in _rules(cell)]
    code = [c for c in notebook.node.cells if c.cell_type == "code" and c.source.strip()]
    pairs = list(zip(notebook.cells, code, strict=True))
    found += [cell.error(text) for cell, node in pairs for text in _rules_of_node(node)]
    if bare := [cell for cell, node in pairs if node.execution_count is None]:
        problem = f"was never run, so that nothing would be compared; {len(bare)} such cells"
        found.append(bare[0].error(problem))
    stored = path.read_text("utf-8")
    normalise(notebook)
    if notebook.text() != stored:
        place = _first_difference(notebook, Notebook.read(path))
        found.append(TangleError(
            f"{notebook.name}: not in normal form ({place}): "
            f"run `python -m book.tangle normalise {notebook.name}`"
        ))
    return [str(error) for error in found]


def _rules(cell: Cell) -> list[tuple[str, int]]:
    if cell.target is None:
        return []
    broken = []
    lines = len(cell.lines) - 1
    if lines > LONGEST_CELL:
        broken.append((f"exports {lines} lines; {LONGEST_CELL} are the most", LONGEST_CELL + 2))
    if not cell.explained:
        broken.append(("no prose between this exported cell and the one before", 0))
    return broken


def _rules_of_node(node: Any) -> list[str]:
    broken = []
    if "nbval-skip" in node.metadata.get("tags", []) or "# NBVAL_" in node.source:
        broken.append("is kept from being run and compared; only a tag nbval-ignore-output may")
    found = filter(None, map(_MACHINE.search, map(str, node.outputs)))
    return broken + [f"its output names a place on this machine: {place[0]}" for place in found]


def _first_difference(normal: Notebook, stored: Notebook) -> str:
    pairs = zip(normal.node.cells, stored.node.cells, strict=False)
    for number, (cell, other) in enumerate(pairs, 1):
        for key in sorted({*cell, *other}):
            if cell.get(key) != other.get(key):
                return f"{key} of cell {number} of all, which should have the id {cell.id}"
    return "metadata, or a cell without text"


def ignored(notebook: Notebook) -> list[str]:
    """The cells whose output is not compared, because they measure."""
    code = [c for c in notebook.node.cells if c.cell_type == "code" and c.source.strip()]
    return [
        cell.place()
        for cell, node in zip(notebook.cells, code, strict=True)
        if "nbval-ignore-output" in node.metadata.get("tags", [])
    ]
