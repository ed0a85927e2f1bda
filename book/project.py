"""The project: its notebooks, the modules they make, and whether the two agree."""

import difflib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbclient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from book.notebook import ROOT, Cell, Notebook, TangleError, normalise, problems
from book.splice import Line, Module

TIME_LIMIT = 120  # seconds that one cell may take
_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)
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


def tangle(notebook: Notebook, others: Iterable[Cell] = ()) -> list[Tangled]:
    """The modules of one notebook, its own one first; *others* are what other notebooks export.

    TangleError, naming cell and line, for what does not make a module.
    """
    theirs = {name: cell for cell in others for name in _CLASS.findall(cell.source)}
    modules: dict[str, Module] = {}
    for cell in notebook.cells:
        if cell.target:
            if cell.target not in modules:
                own = cell.target == notebook.default
                docstring = notebook.docstring if own else None
                modules[cell.target] = Module(cell.target, notebook.name, docstring, theirs)
            modules[cell.target].add(cell)
    made = [Tangled(path, notebook.name, module.lines()) for path, module in modules.items()]
    return sorted(made, key=lambda module: module.path != notebook.default)


class Project:
    """The notebooks below *root*, and the modules that they make."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self._known: dict[Path, list[Cell]] = {}

    def notebooks(self, names: Iterable[str] = ()) -> list[Path]:
        """The named notebooks, or all of them, in order."""
        paths = [Path(name).resolve() for name in names]
        return sorted(paths or (self.root / "notebooks").glob("*.ipynb"))

    def tangle(self, path: Path) -> list[Tangled]:
        """The modules of one notebook. TangleError if another notebook feeds one of them."""
        notebook = Notebook.read(path)
        others = [cell for other in self.notebooks() if other != path
                  for cell in self._exported(other)]  # fmt: skip
        theirs = {cell.target: cell for cell in others}
        for cell in notebook.cells:
            if cell.target in theirs:
                raise cell.error(f"{cell.target} is fed by {theirs[cell.target].place()} too", 1)
        return tangle(notebook, others)

    def _exported(self, path: Path) -> list[Cell]:
        """What a notebook exports; nothing if it cannot be read, which is for it to say."""
        if path not in self._known:
            try:
                self._known[path] = [cell for cell in Notebook.read(path).cells if cell.target]
            except TangleError:
                self._known[path] = []
        return self._known[path]

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

    def build(self, paths: Iterable[Path]) -> None:
        """Tangle notebooks; then execute, normalise and write them, one after the other.

        All modules come first: a chapter may start its own in a process of its own, and imports
        those of others, a later one's too. If a cell fails, the modules of its chapter and of
        those behind it are taken back, so that what does not hold leaves nothing behind.
        """
        made = {path: self.tangle(path) for path in paths}
        before = {path: self.write(modules) for path, modules in made.items()}
        while before:
            try:
                self._run(next(iter(before)))
            except TangleError:
                for texts in before.values():
                    for module, text in texts.items():
                        module.unlink() if text is None else module.write_text(text, "utf-8")
                raise
            del before[next(iter(before))]

    def _run(self, path: Path) -> None:
        notebook = Notebook.read(path)
        execute(notebook, path.parent, self.root)
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
            files = {p.relative_to(self.root).as_posix() for p in self.root.glob("hop/**/*.py")}
            found += [f"{file}: no notebook feeds it" for file in sorted(files - made)]
        return found

    def on_disk(self, module: Tangled) -> list[str]:
        """The lines of a module's file; none if there is no file."""
        path = self.root / module.path
        return path.read_text("utf-8").removesuffix("\n").split("\n") if path.exists() else []

    def _differences(self, module: Tangled) -> Iterator[str]:
        """Each place where a file is not what its cells say, with the cell that owns it."""
        stored, made = self.on_disk(module), [line.text for line in module.lines]
        matcher = difflib.SequenceMatcher(None, made, stored, autojunk=False)
        for tag, first, last, begin, end in matcher.get_opcodes():
            if tag != "equal":
                lines = [*(f"  -{text}" for text in made[first:last]),
                         *(f"  +{text}" for text in stored[begin:end])]  # fmt: skip
                place = f"{module.path}:{begin + 1}"
                yield "\n".join([
                    f"{place} is not what {owner_of(module, first, last)} says (-):", *lines[:20]
                ])


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
            except DeadKernelError:
                raise cell.error("the kernel died") from None


def _failure(error: CellExecutionError) -> tuple[str, int]:
    """The text of an exception that a cell raised, and the cell's line, 0 if unknown."""
    trace = _COLOUR.sub("", error.traceback)
    line = re.search(r"Cell In\[\d+\], line (\d+)|^-+> (\d+) ", trace, re.MULTILINE)
    number = int(next(filter(None, line.groups()))) if line else 0
    return f"{error.ename}: {error.evalue}\n\n{trace.strip()}", number
