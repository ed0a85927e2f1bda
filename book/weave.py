"""Weave the book: notebooks and pages in, HTML and EPUB out, with Sphinx and MyST-NB.

    python -m book.weave            # build/book/html and build/book/epub
    python -m book.weave html       # one of the two

Nothing is executed here: the book shows the outputs that are stored in the notebooks. Sphinx
reads a staged copy of the sources, in which exported cells carry a caption that leads to their
module, and each module has a page whose lines lead back to their cells.
"""

import argparse
import html
import inspect
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

import hop.__main__
from book.notebook import ROOT, Notebook, TangleError
from book.project import Project, Tangled
from hop import Engine, Limits, ListenConfig, Server, Storage

OUT = ROOT / "build" / "book"
#: What a page's name ends with, by the builder that writes it.
SUFFIX = {"html": ".html", "epub": ".xhtml"}


@dataclass(frozen=True, slots=True)
class Chapter:
    """A notebook, and what the landing page says about it."""

    name: str  # 02_poller, which is also the page's name
    title: str
    promise: str
    notebook: Notebook

    @property
    def exports(self) -> dict[str, str]:
        """The exported cells' ids, and the files that they go to, `hop/poller.py`."""
        return {cell.id: cell.target for cell in self.notebook.cells if cell.target}

    @property
    def sections(self) -> dict[str, str]:
        """For each cell, by its id, the heading that it stands below."""
        heading, found = self.title, {}
        for cell in self.notebook.node.cells:
            if cell.cell_type == "markdown":
                headings = re.findall(r"^#{2,3} +(.+)$", cell.source, re.MULTILINE)
                heading = headings[-1] if headings else heading
            found[cell.id] = heading.replace("`", "")
        return found


def chapters() -> list[Chapter]:
    """All notebooks, in the order of their names."""
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    notebooks = {path.stem: Notebook.read(path) for path in paths}
    return [Chapter(name, *notebook.docstring, notebook) for name, notebook in notebooks.items()]


# ---------------------------------------------------------------- chapters


def staged(chapter: Chapter, suffix: str, lines: dict[str, dict[str, int]]) -> NotebookNode:
    """A chapter as the reader sees it.

    The tangler's directives are gone. An exported cell has a caption that leads to its lines in
    the module, at `lines[file][cell id]`; under the title there is the way to the notebook.
    """
    cells: list[NotebookNode] = []
    for cell in chapter.notebook.node.cells:
        if cell.cell_type == "code" and cell.source.startswith("#| default_exp"):
            continue
        if file := chapter.exports.get(cell.id):
            page = f"../code/{Path(file).stem}{suffix}#L{lines[file].get(cell.id, 1)}"
            cells.append(markdown(CAPTION.format(id=cell.id, page=page, file=file)))
            cell = nbformat.from_dict({**cell, "source": cell.source.partition("\n")[2]})
        cells.append(cell)
    # The book numbers its chapters itself.
    title = re.sub(r"^# +\d+\W+", "# ", cells[0].source)
    cells[0] = nbformat.from_dict({**cells[0], "source": title})
    cells.insert(1, markdown(source_line(chapter, suffix)))
    node: NotebookNode = nbformat.from_dict({**chapter.notebook.node, "cells": cells})
    return node


CAPTION = (
    '<p class="exported" id="export-{id}">exported to '
    '<a href="{page}"><code>{file}</code></a></p>'
)


def source_line(chapter: Chapter, suffix: str) -> str:
    """Under a chapter's title: its notebook, and the modules that come from it."""
    files = dict.fromkeys(chapter.exports.values())
    pages = [f'<a href="../code/{Path(f).stem}{suffix}"><code>{f}</code></a>' for f in files]
    name = f"{chapter.name}.ipynb"
    notebook = f"<code>notebooks/{name}</code>"
    if suffix == SUFFIX["html"]:
        notebook = f'<a href="../_notebooks/{name}" download>{notebook}</a>'
    modules = f" It becomes {', '.join(pages)}." if pages else ""
    return f'<p class="source">This chapter is {notebook}.{modules}</p>'


def markdown(source: str) -> NotebookNode:
    """A Markdown cell."""
    cell: NotebookNode = nbformat.v4.new_markdown_cell(source)
    return cell


# ---------------------------------------------------------------- modules


@dataclass(frozen=True, slots=True)
class Origin:
    """Lines `first` to `last` of a module come from one cell of a chapter."""

    first: int
    last: int
    chapter: str
    cell: str


def origins(module: Tangled) -> list[Origin]:
    """Where a module's lines come from, in their order, without the collected imports."""
    found: list[Origin] = []
    chapter = Path(module.notebook).stem
    for number, line in enumerate(module.lines, start=1):
        if line.cell is None or line.text.startswith(("import ", "from ")):
            continue
        if found and found[-1].cell == line.cell.id:
            found[-1] = replace(found[-1], last=number)
        else:
            found.append(Origin(number, number, chapter, line.cell.id))
    return found


def source_map() -> dict[str, list[Origin]]:
    """The origins of every module, by its file, `hop/poller.py`."""
    return {module.path: origins(module) for module in Project().everything()}


def starts(found: list[Origin]) -> dict[str, int]:
    """For each cell, the first line of its longest run: a class may be continued elsewhere."""
    by_length = sorted(found, key=lambda origin: origin.last - origin.first)
    return {origin.cell: origin.first for origin in by_length}


def code_page(file: str, found: list[Origin], by_name: dict[str, Chapter], suffix: str) -> str:
    """A module's page: its lines, numbered, each run of them with the way back to its cell."""
    text = (ROOT / file).read_text()
    coloured = highlight(text, PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))
    begins = {origin.first: origin for origin in found}
    rows = []
    for number, line in enumerate(coloured.removesuffix("\n").split("\n"), start=1):
        if origin := begins.get(number):
            href = f"../notebooks/{origin.chapter}{suffix}#export-{origin.cell}"
            title = html.escape(by_name[origin.chapter].sections[origin.cell])
            rows.append(f'<a class="origin" href="{href}" title="Read why">{title}</a>')
        rows.append(
            f'<span class="line" id="L{number}"><a class="number" href="#L{number}">'
            f"{number:>4}</a> {line}</span>\n"
        )
    made_from = sorted({origin.chapter for origin in found})
    links = ", ".join(f"[{by_name[name].title}](../notebooks/{name}.ipynb)" for name in made_from)
    lead = f"Tangled from {links}. The links on the right lead to the cells." if links else ""
    listing = "".join(rows)
    return (
        f"# `{file}`\n\n{lead}\n\n```{{raw}} html\n"
        f'<div class="highlight module"><pre>{listing}</pre></div>\n```\n'
    )


# ---------------------------------------------------------------- the landing page


def card(number: int, chapter: Chapter) -> str:
    """A chapter on the landing page."""
    return (
        f"::::{{container}} card\n[{number}](notebooks/{chapter.name}.ipynb)\n\n"
        f"**[{chapter.title}](notebooks/{chapter.name}.ipynb)**\n\n{chapter.promise}\n::::\n"
    )


def landing(found: list[Chapter], pages: list[str], modules: list[str]) -> str:
    """The landing page: book/index.md with the cards, the picture and the tables of contents."""
    cards = "\n".join(card(number, chapter) for number, chapter in enumerate(found))
    picture = (ROOT / "book" / "loop.svg").read_text()
    trees = [
        toctree("The chapters", [f"notebooks/{chapter.name}" for chapter in found], numbered=True),
        toctree("To look things up", pages) if pages else "",
        toctree("The modules", [f"code/{name}" for name in modules]),
    ]
    text = (ROOT / "book" / "index.md").read_text()
    text = text.replace("<!-- chapters -->", f":::::{{container}} cards\n{cards}\n:::::")
    text = text.replace("<!-- picture -->", f"```{{raw}} html\n{picture}\n```")
    return text + "\n" + "\n".join(trees)


def toctree(caption: str, entries: list[str], numbered: bool = False) -> str:
    """A part of the sidebar."""
    depth = ":numbered: 2\n" if numbered else ""
    listed = "\n".join(entries)
    return f"```{{toctree}}\n:caption: {caption}\n:hidden:\n:maxdepth: 2\n{depth}\n{listed}\n```\n"


# ---------------------------------------------------------------- the reference


def reference(text: str) -> str:
    """book/reference.md, with the options as the command line knows them."""
    parser = hop.__main__._parser()
    _positional, *groups = parser._action_groups
    tables = "\n".join(option_table(group) for group in groups)
    classes = (Server, Engine, Limits, ListenConfig, Storage)
    signatures = "\n".join(f"| `{each.__name__}` | {parameters(each)} |" for each in classes)
    return text.replace("<!-- options -->", tables).replace("<!-- signatures -->", signatures)


def option_table(group: argparse._ArgumentGroup) -> str:
    """One group of options: how each is spelled, its default, and what it does."""
    rows = []
    for action in group._group_actions:
        spelled = ", ".join(f"`{option}`" for option in action.option_strings)
        given = action.default not in (None, False, argparse.SUPPRESS)
        default = f"`{action.default}`" if given else ""
        text = (action.help or "").replace(" (%(default)s)", "")
        rows.append(f"| {spelled} | {default} | {text} |")
    title = (group.title or "").capitalize()
    return f"### {title}\n\n| | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def parameters(of: type) -> str:
    """The names of what a class takes."""
    return ", ".join(f"`{name}`" for name in inspect.signature(of).parameters)


# ---------------------------------------------------------------- putting it together


def in_reading_order(found: list[Chapter]) -> list[Path]:
    """The modules, as the chapters come to them."""
    files = [file for chapter in found for file in chapter.exports.values()]
    order = {file: place for place, file in enumerate(reversed(files))}
    paths = sorted((ROOT / "hop").glob("*.py"))
    return sorted(paths, key=lambda path: -order.get(f"hop/{path.name}", -1))


def stage(source: Path, suffix: str) -> None:
    """Lay down under `source` everything that Sphinx reads."""
    shutil.rmtree(source, ignore_errors=True)
    for directory in ("notebooks", "code"):
        (source / directory).mkdir(parents=True)
    shutil.copytree(ROOT / "book" / "_static", source / "_static")
    found = chapters()
    by_name = {chapter.name: chapter for chapter in found}
    modules = in_reading_order(found)
    traced = source_map()
    for path in modules:
        file = f"hop/{path.name}"
        page = source / "code" / f"{path.stem}.md"
        page.write_text(code_page(file, traced.get(file, []), by_name, suffix))
    for chapter in found:
        node = staged(chapter, suffix, {file: starts(runs) for file, runs in traced.items()})
        nbformat.write(node, source / "notebooks" / f"{chapter.name}.ipynb")
    for image in (ROOT / "notebooks").glob("*.[ps][nv]g"):
        shutil.copy(image, source / "notebooks")
    pages = sorted(path for path in (ROOT / "book").glob("*.md") if path.stem != "index")
    for path in pages:
        (source / path.name).write_text(reference(path.read_text()))
    names = [path.stem for path in modules]
    (source / "index.md").write_text(landing(found, [path.stem for path in pages], names))


def weave(builder: str) -> int:
    """Write `build/book/html` or `build/book/epub`; return Sphinx's exit status.

    A warning is an error; all of them are shown before it ends, and a book that has warnings
    can be looked at all the same.
    """
    source = OUT / "source" / builder
    stage(source, SUFFIX[builder])
    new, old = OUT / f"{builder}.new", OUT / builder
    shutil.rmtree(new, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-b", builder, "-c", str(ROOT / "book")]
    options = ["-W", "--keep-going", "-q", "-E", "-d", str(OUT / "doctrees" / builder)]
    status = subprocess.run([*command, *options, str(source), str(new)], check=False).returncode
    if builder == "html":
        shutil.copytree(ROOT / "notebooks", new / "_notebooks", ignore=only_notebooks)
    shutil.rmtree(old, ignore_errors=True)
    new.rename(old)
    return status


def only_notebooks(directory: str, names: list[str]) -> list[str]:
    """For copytree: what is not a notebook stays behind."""
    return [name for name in names if not name.endswith(".ipynb")]


def main(builders: list[str]) -> int:
    """Weave what is asked for (nothing: both); return the exit status."""
    unknown = set(builders) - set(SUFFIX)
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SUFFIX)}")
        return 2
    try:
        return max([weave(builder) for builder in builders or SUFFIX])
    except TangleError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
