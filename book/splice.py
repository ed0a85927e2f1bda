"""Put the exported cells of a module together, by lines of source: nothing is reformatted.

Each line of a module knows the cell it comes from. Syntax trees say where a statement begins
and ends, and what it defines; the text is always the one that stands in the notebook.
"""

import ast
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import ruff  # type: ignore[import-untyped]
from pyflakes import messages
from pyflakes.checker import Checker

from book.notebook import ROOT, Cell, TangleError, docstring_lines

UNDEFINED = messages.UndefinedName | messages.UndefinedLocal | messages.UndefinedExport
_MAGIC = re.compile(r"^[%!?]|= *[%!]|\?$")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a module, and the line (from 1) of the cell that it comes from, if any."""

    text: str
    cell: Cell | None = None
    number: int = 0


BLANK = Line("")
# Nothing comes again under no name, nor under the name of `@method.register def _`.
UNNAMED: set[tuple[str, ...]] = {(), ("_",)}


@dataclass(slots=True)
class Chunk:
    """A statement (or more that share a line) with the comments above it.

    *gap* holds the blank lines above it, or None where it begins a cell. *members* are the
    chunks of a class's body, once the class is continued.
    """

    cell: Cell
    nodes: list[ast.stmt]
    lines: list[Line]
    gap: list[Line] | None
    names: tuple[str, ...] = ()
    members: "list[Chunk]" = field(default_factory=list)

    @property
    def defines(self) -> bool:
        """Whether it is a class or a function, which stands apart from what is around it."""
        return any(isinstance(node, Definition) for node in self.nodes)

    def all_lines(self) -> list[Line]:
        """Its lines, and those of the members it was continued with."""
        lines = list(self.lines)
        previous: Chunk | None = None
        for member in self.members:
            lines += [*_gap(previous, member, 1), *member.lines]
            previous = member
        return lines


def _gap(previous: Chunk | None, chunk: Chunk, apart: int) -> list[Line]:
    """The blank lines above *chunk*: those of its cell, or *apart* where two cells meet.

    Classes and functions of a module stand two lines apart even where a cell has fewer.
    """
    if previous is None and apart == 1:
        return chunk.gap or []
    above = previous is not None and previous.defines
    strangers = previous is None or previous.cell is not chunk.cell
    if chunk.gap is None or (strangers and (above or chunk.defines or apart == 2)):
        return [BLANK] * (apart if above or chunk.defines else 1)
    if above and chunk.defines and not chunk.gap:
        return []  # overloads
    count = apart if above or chunk.defines else min(len(chunk.gap), apart)
    return [*chunk.gap, BLANK, BLANK][:count]


# ------------------------------------------------------------------ from a cell to chunks


def parse(cell: Cell) -> ast.Module:
    """The cell's syntax tree. TangleError for what is no Python, such as a magic."""
    try:
        return ast.parse(cell.source)
    except SyntaxError as error:
        line = min(error.lineno or 1, len(cell.lines))
        text = cell.lines[line - 1].strip()
        problem = "a magic cannot be exported" if _MAGIC.search(text) else error.msg
        raise cell.error(f"{problem}: {text}", line) from None


def split(cell: Cell, body: list[ast.stmt], lines: Sequence[Line]) -> list[Chunk]:
    """Split *lines*, which hold the statements of *body* and comments, into chunks."""
    chunks: list[Chunk] = []
    offset = lines[0].number if lines else 1
    indent = body[0].col_offset if body else 0
    groups = _by_line(body)
    starts = [_first_line(group[0]) - offset for group in groups] + [len(lines)]
    cursor = 0
    for group, limit in zip(groups, starts[1:], strict=True):
        end = max(node.end_lineno or 0 for node in group) - offset + 1
        end = _with_inner_comments(lines, end, limit, indent)
        chunks.append(_chunk(cell, group, lines[cursor:end]))
        cursor = end
    if any(line.text.strip() for line in lines[cursor:]):
        chunks.append(_chunk(cell, [], lines[cursor:]))
    if body and _is_text(body[0]):
        chunks[0].names = ("__doc__",)
    return chunks


def _by_line(body: list[ast.stmt]) -> list[list[ast.stmt]]:
    groups: list[list[ast.stmt]] = []
    for node in body:
        if groups and _first_line(node) <= (groups[-1][-1].end_lineno or 0):
            groups[-1].append(node)
        else:
            groups.append([node])
    return groups


def _first_line(node: ast.stmt) -> int:
    decorators = node.decorator_list if isinstance(node, Definition) else []
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def _with_inner_comments(lines: Sequence[Line], end: int, limit: int, indent: int) -> int:
    """Move *end* behind the comments that close an indented block."""
    for index in range(end, limit):
        text = lines[index].text
        if text.strip() and len(text) - len(text.lstrip()) <= indent:
            break
        if text.strip():
            end = index + 1
    return end


def _chunk(cell: Cell, nodes: list[ast.stmt], lines: Sequence[Line]) -> Chunk:
    first = next(index for index, line in enumerate(lines) if line.text.strip())
    last = max(index for index, line in enumerate(lines) if line.text.strip())
    names = tuple(name for node in nodes for name in _names(node))
    return Chunk(cell, nodes, list(lines[first : last + 1]), list(lines[:first]), names)


def _names(node: ast.stmt) -> Iterable[str]:
    """What a statement defines: the names under which it can be replaced and exported."""
    if isinstance(node, Definition):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [leaf.id for target in node.targets for leaf in ast.walk(target)
                if isinstance(leaf, ast.Name) and isinstance(leaf.ctx, ast.Store)]  # fmt: skip
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def _is_text(node: ast.stmt) -> bool:
    return (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str))  # fmt: skip


def _is_placeholder(chunk: Chunk) -> bool:
    return len(chunk.nodes) == 1 and ast.unparse(chunk.nodes[0]) in ("pass", "...")


# ------------------------------------------------------------------ classes


def _is_continued(node: ast.stmt) -> bool:
    return isinstance(node, ast.ClassDef) and any(
        ast.unparse(decorator).split(".")[-1] == "continued" for decorator in node.decorator_list
    )


def _open_class(chunk: Chunk) -> tuple[ast.ClassDef, list[Line], list[Chunk]]:
    """A class's statement, the lines down to its colon, and its members."""
    node = chunk.nodes[0]
    assert isinstance(node, ast.ClassDef)
    body = chunk.lines
    first = _first_line(node.body[0]) - body[0].number
    if body[first].text[: node.body[0].col_offset].strip():
        raise chunk.cell.error(f"class {node.name} is continued: give its body lines of its own",
                               node.body[0].lineno)  # fmt: skip
    while not body[first - 1].text.strip() or body[first - 1].text.lstrip().startswith("#"):
        first -= 1
    return node, body[:first], split(chunk.cell, node.body, body[first:])


def continue_class(begun: Chunk, more: Chunk) -> None:
    """Put the members of *more* into the class *begun*: those that come again in place."""
    addition, _, members = _open_class(more)
    _check_header(begun, more, addition)
    if not begun.members:
        _, begun.lines, begun.members = _open_class(begun)
    _check_accessors(members)
    members[0].gap = None
    merged = _merge(begun.members, members)
    begun.members = [m for m in merged if not _is_placeholder(m)] or merged[:1]


def _check_header(begun: Chunk, more: Chunk, addition: ast.ClassDef) -> None:
    first = begun.nodes[0]
    assert isinstance(first, ast.ClassDef)
    bases = [ast.unparse(base) for base in (*addition.bases, *addition.keywords)]
    if bases and bases != [ast.unparse(base) for base in (*first.bases, *first.keywords)]:
        raise more.cell.error(f"class {first.name} cannot be continued with other bases",
                              addition.lineno)  # fmt: skip
    if len(addition.decorator_list) > 1:
        raise more.cell.error(f"decorate class {first.name} where it begins", addition.lineno)


def _check_accessors(members: list[Chunk]) -> None:
    """A setter needs its property in the same cell: elsewhere it could not name it."""
    known: set[str] = set()
    for member in members:
        for node in member.nodes:
            if isinstance(node, Definition):
                if node.name not in known and f"{node.name}." in " ".join(
                    ast.unparse(decorator) for decorator in node.decorator_list
                ):
                    raise member.cell.error(
                        f"property {node.name} must come whole, its getter in this cell too",
                        node.lineno,
                    )
                known.add(node.name)


def _merge(old: list[Chunk], new: list[Chunk]) -> list[Chunk]:
    """The members *old*, then *new*; but those that come again stand where they stood.

    All that is new under a name takes the place of all that was old under it, as it does in
    a class's namespace: a property's setters, a function's overloads.
    """
    again = {member.names for member in old} & {member.names for member in new} - UNNAMED
    merged: list[Chunk] = []
    for member in old:
        if member.names not in again:
            merged.append(member)
        elif member.names not in {other.names for other in merged}:
            successors = [other for other in new if other.names == member.names]
            successors[0].gap = member.gap
            merged += successors
    added = [member for member in new if member.names not in again]
    docstring = [member for member in added if member.names == ("__doc__",)]
    return [*docstring, *merged, *(member for member in added if member not in docstring)]


# ------------------------------------------------------------------ the module


class Module:
    """A module that grows cell by cell; *elsewhere* are the classes of other modules."""

    def __init__(
        self,
        path: str,
        notebook: str,
        docstring: tuple[str, str] | None,
        elsewhere: Mapping[str, Cell],
    ) -> None:
        self.path = path
        self.notebook = notebook
        self._elsewhere = elsewhere
        self._promise = docstring
        self._docstring: Chunk | None = None
        self._all: Chunk | None = None
        self._imports: list[Chunk] = []
        self._typing: list[Chunk] = []
        self._body: list[Chunk] = []
        self._tail: list[Chunk] = []

    def add(self, cell: Cell) -> None:
        """Take in one exported cell. TangleError for what cannot be in a module."""
        tree = parse(cell)
        lines = [Line(text, cell, n) for n, text in enumerate(cell.lines, 1)]
        for chunk in split(cell, tree.body, lines[1:]):
            self._add(chunk)

    def _add(self, chunk: Chunk) -> None:
        nodes = chunk.nodes
        if nodes and all(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes):
            if not any(_is_books(node) for node in nodes):
                self._imports.append(chunk)
        elif nodes and _is_continued(nodes[0]):
            continue_class(self._begun(chunk), chunk)
        elif any(_asks_for(node, "TYPE_CHECKING") and not node.orelse for node in nodes):
            self._typing.append(chunk)
        elif any(_asks_for(node, "__name__") for node in nodes):
            self._tail.append(chunk)
        elif chunk.names == ("__doc__",) and not (self._body or self._docstring):
            self._docstring = chunk
        elif chunk.names == ("__all__",):
            self._all = chunk
        else:
            self._check_new(chunk)
            self._body.append(chunk)

    def _begun(self, more: Chunk) -> Chunk:
        for chunk in self._body:
            if chunk.names == more.names and isinstance(chunk.nodes[0], ast.ClassDef):
                return chunk
        name = more.names[0]
        owner = self._elsewhere.get(name)
        reason = f"belongs to {owner.place()}" if owner else "was exported by no cell before"
        raise more.cell.error(f"class {name} is continued here, but {reason}", more.nodes[0].lineno)

    def _check_new(self, chunk: Chunk) -> None:
        for other in self._body:
            again = sorted(set(chunk.names) & set(other.names) - {"_"})
            if again and other.cell is not chunk.cell:
                how = "; @continued adds to a class" if chunk.defines else ""
                problem = f"{again[0]} is exported again, after {other.cell.place()}{how}"
                raise chunk.cell.error(problem, chunk.nodes[0].lineno)

    def lines(self) -> list[Line]:
        """The whole module. TangleError for a name in it that nothing defines."""
        lines = [Line(f"# Tangled from {self.notebook}. Edit the notebook.")]
        lines += self._docstring_lines()
        if head := self._head():
            lines += [BLANK, *head]
        previous: Chunk | None = None
        for chunk in [*self._body, *self._tail]:
            lines += [*_gap(previous, chunk, 2), *chunk.all_lines()]
            previous = chunk
        self._check_names(lines)
        return lines

    def _docstring_lines(self) -> list[Line]:
        if self._docstring:
            return self._docstring.lines
        if self._promise:
            return [Line(text) for text in docstring_lines(*self._promise)]
        raise TangleError(
            f"{self.notebook}: {self.path} has no docstring: "
            "begin the first cell exported to it with one"
        )

    def _head(self) -> list[Line]:
        """Imports, those for type checkers, and `__all__`, in ruff's order."""
        plain = [line.text for chunk in self._imports for line in chunk.lines]
        for chunk in self._typing:
            texts = [line.text for line in chunk.lines]
            header = chunk.nodes[0].lineno - chunk.lines[0].number + 1
            plain += ["", *texts] if chunk is self._typing[0] else texts[header:]
        plain += ["", *self._public_lines()]
        text = "\n".join(plain).strip()
        if not text:
            return []
        text = _sorted_by_ruff(text + "\n", self.path)
        origins = _import_origins(text, [*self._imports, *self._typing])
        return [Line(line, *origins.get(number, (None, 0)))
                for number, line in enumerate(text.splitlines(), 1)]  # fmt: skip

    def _public_lines(self) -> list[str]:
        """`__all__`: the notebook's own one, or all that is public."""
        if self._all:
            return [line.text for line in self._all.lines]
        names = [name for chunk in self._body for name in chunk.names]
        if self.path.endswith("__init__.py"):
            names += [alias.asname or alias.name for chunk in self._imports
                      for node in chunk.nodes if isinstance(node, ast.ImportFrom)
                      for alias in node.names if node.module != "__future__"]  # fmt: skip
        public = [f'"{name}"' for name in sorted(set(names)) if not name.startswith("_")]
        line = f"__all__ = [{', '.join(public)}]"
        if not public or len(line) <= 100:
            return [line] if public else []
        return ["__all__ = [", *(f"    {name}," for name in public), "]"]

    def _check_names(self, lines: list[Line]) -> None:
        source = "".join(f"{line.text}\n" for line in lines)
        for found in Checker(ast.parse(source), self.path).messages:
            if isinstance(found, UNDEFINED):
                line = lines[found.lineno - 1]
                if line.cell is None and self._all:  # nobody else's line names anything
                    line = self._all.lines[0]
                assert line.cell
                raise line.cell.error(self._undefined(str(found.message_args[0])), line.number)

    def _undefined(self, name: str) -> str:
        for chunk in self._body:
            if name in chunk.names:
                return (f"{name} is not defined yet at this place of {self.path}: a class stands "
                        f"where it begins, above {chunk.cell.place()}")  # fmt: skip
        return f"{name} is not defined in {self.path}: no exported cell defines or imports it"


def _is_books(node: ast.stmt) -> bool:
    """Whether it is the import of `continued`, which only notebooks need."""
    return isinstance(node, ast.ImportFrom) and node.module == "book.continued"


def _asks_for(node: ast.stmt, name: str) -> TypeGuard[ast.If]:
    """Whether it is an `if` that asks for *name*: TYPE_CHECKING or __name__."""
    return isinstance(node, ast.If) and any(
        getattr(part, "id", getattr(part, "attr", None)) == name for part in ast.walk(node.test)
    )


def _sorted_by_ruff(text: str, path: str) -> str:
    """Sort imports and `__all__`, and merge imports, as the project's lint wants them."""
    done = subprocess.run(
        [ruff.find_ruff_bin(), "check", "--fix-only", "--quiet", "--no-cache",
         "--select", "I001,RUF022", "--config", str(ROOT / "pyproject.toml"),
         "--stdin-filename", str(ROOT / path), "-"],
        input=text, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def _import_origins(text: str, chunks: list[Chunk]) -> dict[int, tuple[Cell, int]]:
    """For the lines of sorted imports: the cells and lines that they come from."""
    known: dict[tuple[object, ...], tuple[Cell, ast.stmt, ast.alias]] = {}
    for chunk in chunks:
        for node in chunk.nodes:
            for statement, alias, key in _aliases(node):
                known.setdefault(key, (chunk.cell, statement, alias))
    origins: dict[int, tuple[Cell, int]] = {}
    for statement, alias, key in _aliases(ast.parse(text)):
        cell, source, name = known[key]
        origins.setdefault(statement.lineno, (cell, source.lineno))
        origins.setdefault(alias.lineno, (cell, name.lineno))
        origins.setdefault(statement.end_lineno or 0, (cell, source.end_lineno or 0))
    return origins


def _aliases(tree: ast.AST) -> Iterable[tuple[ast.stmt, ast.alias, tuple[object, ...]]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = (node.module, node.level) if isinstance(node, ast.ImportFrom) else ()
            for alias in node.names:
                yield node, alias, (*module, alias.name, alias.asname)
