"""From notebooks to modules and back, with small notebooks of the tests' own."""

import json
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book.notebook import ROOT, Notebook, TangleError, normalise, problems
from book.project import execute
from book.tangle import Project, TangleExporter, main, tangle

HEAD = "%% md\n# Poller\n\nOne call for many sockets.\n%%\n#| default_exp hop.poller\n"
HEADER = "# Tangled from notebooks/02_poller.ipynb. Edit the notebook.\n"
DOCSTRING = '"""Poller.\n\nOne call for many sockets.\n"""\n'


def notebook(text: str, name: str = "notebooks/02_poller.ipynb") -> Notebook:
    """A notebook of cells that begin with a line `%%`, or `%% md` for prose."""
    cells = []
    for part in re.split(r"^%%(?= md$|$)", dedent(text).strip("\n"), flags=re.MULTILINE)[1:]:
        kind, _, source = part.partition("\n")
        make = new_markdown_cell if kind.strip() == "md" else new_code_cell
        cells.append(make(source.strip("\n")))
    return Notebook(name, new_notebook(cells=cells))


def cells(*sources: str) -> str:
    """Exported cells as the text of a notebook, prose before each."""
    exported = (f"%% md\nWhy.\n%%\n#| export\n{dedent(source).strip()}\n" for source in sources)
    return HEAD + "".join(exported)


def module(*sources: str) -> str:
    """What the sources, each an exported cell, are tangled into."""
    return tangle(notebook(cells(*sources)))[0].text


def body(*sources: str) -> str:
    """The module without header, docstring and `__all__`."""
    text = module(*sources).partition(DOCSTRING)[2]
    kept = [line for line in text.split("\n") if not line.startswith("__all__")]
    return "\n".join(kept).strip("\n") + "\n"


def refusal(*sources: str) -> str:
    """Why the sources make no module."""
    with pytest.raises(TangleError) as caught:
        module(*sources)
    return str(caught.value)


def expected(text: str) -> str:
    return dedent(text).strip("\n") + "\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with no notebook yet."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "hop").mkdir()
    return tmp_path


def store(project: Path, text: str, name: str = "02_poller", run: bool = True) -> Path:
    """Keep a notebook in its normal form, as if it had been run."""
    made = notebook(text, f"notebooks/{name}.ipynb")
    for cell in made.node.cells:
        if cell.cell_type == "code" and run:
            cell.execution_count = 1
    normalise(made)
    path = project / "notebooks" / f"{name}.ipynb"
    made.write(path)
    return path


# ---------------------------------------------------------------- a module


def test_a_module_reads_as_if_written_by_hand():
    text = module(
        """
        import select
        from typing import Any

        READ = 1  # as EPOLLIN
        WRITE = 4
        """,
        '''
        from collections.abc import Callable
        # The loop's clock.
        Clock = Callable[[], float]

        # Asks the kernel.
        class Poller:
            """Many sockets, one call."""

            def __init__(self, clock: Clock) -> None:
                self.clock = clock  # read after each poll
                # nobody waits yet
        ''',
        """
        from book.continued import continued
        @continued
        class Poller:
            # may be late
            def poll(self, timeout: float) -> list[Any]:

                return select.epoll().poll(timeout)
        """,
        """
        def default() -> Poller:
            return Poller(float)
        if __name__ == "__main__":
            default()
        """,
    )
    assert text == expected('''
        # Tangled from notebooks/02_poller.ipynb. Edit the notebook.
        """Poller.

        One call for many sockets.
        """

        import select
        from collections.abc import Callable
        from typing import Any

        __all__ = ["READ", "WRITE", "Clock", "Poller", "default"]

        READ = 1  # as EPOLLIN
        WRITE = 4

        # The loop's clock.
        Clock = Callable[[], float]


        # Asks the kernel.
        class Poller:
            """Many sockets, one call."""

            def __init__(self, clock: Clock) -> None:
                self.clock = clock  # read after each poll
                # nobody waits yet

            # may be late
            def poll(self, timeout: float) -> list[Any]:

                return select.epoll().poll(timeout)


        def default() -> Poller:
            return Poller(float)


        if __name__ == "__main__":
            default()
        ''')


def test_what_is_tangled_passes_the_projects_lint(tmp_path: Path):
    text = module(
        "import os\nimport sys\n\nfrom hop.errors import ProtocolError\nLIMIT = 3",
        "from __future__ import annotations\n\n\ndef a() -> str:\n    return os.sep",
        "class B:\n    def c(self) -> object:\n        return ProtocolError, sys.path",
        "from h11 import Event\n@continued\nclass B:\n    d: Event",
    )
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--config", "pyproject.toml",
         "--stdin-filename", "hop/poller.py", "-"],
        input=text, capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "All checks passed!\n")


def test_a_tangle_of_a_tangle_changes_nothing():
    class_a = ["class A:\n    x = 1", "@continued\nclass A:\n    y = 2"]
    first = module("import os\nX = os.sep", *class_a)
    source = first.partition(DOCSTRING)[2].replace('__all__ = ["A", "X"]\n\n', "")
    assert module(source) == first


def test_the_docstring_is_heading_and_promise_as_plain_text():
    text = "%% md\n# 2. The `poller`\n\nOne *call* for\n[many](x.md) sockets\\.\n\nMore.\n"
    made = tangle(notebook(text + "%%\n#| default_exp hop.poller\n%%\n#| export\nX = 1\n"))
    assert '"""The `poller`.\n\nOne call for many sockets\\\\.\n"""\n' in made[0].text


@pytest.mark.parametrize("text", ["%%\n", "%% md\nNo heading.\n", "%% md\n# Title\n"])
def test_a_notebook_without_heading_and_promise_is_refused(text: str):
    with pytest.raises(TangleError, match=r"^notebooks/02_poller\.ipynb: "):
        tangle(notebook(text + "%%\n#| default_exp hop.poller\n%%\n#| export\nX = 1\n"))


def test_all_names_what_is_public_and_breaks_when_long():
    assert '__all__ = ["LIMIT", "Loop", "a10", "a9", "run"]' not in module("LIMIT = 1")
    text = module("run = a9 = a10 = 1\nclass Loop: ...\nLIMIT: int = 1\n_x = 2\ndef _f(): ...")
    assert '__all__ = ["LIMIT", "Loop", "a9", "a10", "run"]\n' in text
    names = [f"the_name_number_{number}" for number in range(8)]
    long = module("\n".join(f"{name} = 1" for name in names))
    assert "__all__ = [\n" + "".join(f'    "{name}",\n' for name in names) + "]\n" in long


def test_nothing_public_needs_no_all_and_an_own_one_is_kept():
    assert "__all__" not in module("_x = 1")
    text = module("import os\na = b = os", '__all__ = [\n    "b",  # alone\n]')
    assert f'{DOCSTRING}\nimport os\n\n__all__ = [\n    "b",  # alone\n]\n\na = b = os\n' in text


def test_remarks_alone_and_statements_that_share_a_line_are_kept():
    assert module("# a = 1\n") == HEADER + DOCSTRING + "\n# a = 1\n"
    assert module("") == HEADER + DOCSTRING
    assert body("a = 1; b = 2\n\n\n\n# the end") == "a = 1; b = 2\n\n\n# the end\n"


def test_a_package_exports_what_it_imports():
    text = HEAD.replace("hop.poller", "hop.__init__")
    made = tangle(notebook(text + "%%\n#| export\nfrom hop.b import B, c as d\n_x = 1\n"))
    assert made[0].path == "hop/__init__.py"
    assert '__all__ = ["B", "d"]\n' in made[0].text


# ---------------------------------------------------------------- imports


def test_imports_are_hoisted_whole_merged_and_sorted():
    assert body(
        """
        import sys
        from typing import (
            Any,
            cast,
        )
        A: Any = cast(int, sys.path)
        """,
        """
        # noqa-like remarks stay with their import
        import os  # for sep
        import sys
        from hop.errors import ProtocolError
        from collections.abc import Callable
        from typing import Final
        from collections.abc import Iterator
        B: Final = (os.sep, ProtocolError, Callable, Iterator)
        """,
    ) == expected("""
        # noqa-like remarks stay with their import
        import os  # for sep
        import sys
        from collections.abc import Callable, Iterator
        from typing import (
            Any,
            Final,
            cast,
        )

        from hop.errors import ProtocolError


        A: Any = cast(int, sys.path)

        B: Final = (os.sep, ProtocolError, Callable, Iterator)
        """).replace("\n\n\nA:", "\n\n\nA:")


def test_future_imports_come_first():
    text = body("import os\nA = os", "from __future__ import annotations\nB = 1")
    assert text.startswith("from __future__ import annotations\n\nimport os\n")


def test_imports_for_type_checkers_come_together():
    text = module(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import socket\n    import abc",
        "# shapes only\nif TYPE_CHECKING:\n    from select import poll\nx: 'socket.socket | poll'",
    )
    inside = "    import abc\n    import socket\n    from select import poll\n"
    assert f"\n\nif TYPE_CHECKING:\n{inside}\n" in text.replace("# shapes only\n", "")
    assert text.count("if TYPE_CHECKING") == 1


def test_the_import_of_continued_stays_in_the_notebook():
    assert "continued" not in module("from book.continued import continued\nx = 1")


# ---------------------------------------------------------------- classes


LOOP = '''
class Loop:
    """Turns."""

    x = 1
    y = 2

    # first of all
    @cached
    def poll(self):
        return 1

    def last(self):
        return 9
'''
CACHED = "def cached(f):\n    return f"


def grown(*more: str) -> str:
    """The class Loop, continued."""
    text = body(CACHED, LOOP, *(f"@continued\nclass Loop:\n{part}" for part in more))
    return "class Loop" + text.partition("class Loop")[2]


def test_a_replaced_member_stands_where_it_stood_with_its_comments_and_decorators():
    better = "    # better\n    # and faster\n    def poll(self):\n        return 2"
    text = grown(f"    z = 3\n\n{better}")
    assert text == expected('''
        class Loop:
            """Turns."""

            x = 1
            y = 2

            # better
            # and faster
            def poll(self):
                return 2

            def last(self):
                return 9

            z = 3
        ''')


def test_replaced_constants_stay_close_and_the_docstring_first():
    text = grown('    x = 5', '    """Turns and turns."""\n    y = 6')
    assert text.startswith('class Loop:\n    """Turns and turns."""\n\n    x = 5\n    y = 6\n\n')
    plain = body("class A:\n    x = 1", '@continued\nclass A:\n    """Late."""')
    assert plain == 'class A:\n    """Late."""\n    x = 1\n' or '"""Late."""' in plain


PROPERTY = """
    @property
    def size(self):
        return self._size

    @size.setter
    def size(self, value):
        self._size = value
"""


def test_a_setter_belongs_to_its_property_and_does_not_replace_it():
    text = grown(PROPERTY)
    assert text.endswith(PROPERTY.strip("\n") + "\n")
    again = grown(PROPERTY, "    after = 1", PROPERTY.replace("_size", "_length"))
    assert again.endswith(PROPERTY.replace("_size", "_length").strip("\n") + "\n\n    after = 1\n")


def test_a_property_that_comes_again_loses_its_setter_as_it_does_in_the_notebook():
    text = grown(PROPERTY, "    @property\n    def size(self):\n        return 0")
    assert text.count("def size") == 1
    assert "setter" not in text


def test_a_setter_without_its_getter_is_refused():
    setter = "@continued\nclass Loop:\n    @size.setter\n    def size(self, value):\n        pass"
    told = refusal(CACHED, LOOP, setter)
    assert "line 5: property size must come whole, its getter in this cell too" in told


def test_overloads_and_registered_methods_stay_together():
    overloads = """
    @overload
    def read(self, n: int) -> bytes: ...
    @overload
    def read(self, n: None) -> None: ...
    def read(self, n):
        return n

    @poll.register
    def _(self, n: int):
        return n

    @poll.register
    def _(self, n: str):
        return n
"""
    first = "from typing import overload\n" + CACHED
    text = body(first, LOOP.replace("@cached", "@cached\n    @cached"),
                "@continued\nclass Loop:" + overloads.replace("@poll", "@cached"))  # fmt: skip
    assert text.endswith(overloads.replace("@poll", "@cached").strip("\n") + "\n")
    assert "    @cached\n    @cached\n    def poll" in text


def test_nested_decorators_and_classes_are_kept_as_they_are():
    source = """
class Loop:
    @cached
    @cached
    # between decorators
    def poll(self): return 1; x = '''
not indented
'''
    class Inner:
        def poll(self):  # not the outer one
            pass

        # closing remark
"""
    text = body(CACHED, source, "@continued\nclass Loop:\n    def wait(self):\n        pass")
    assert source.strip("\n") + "\n\n    def wait" in text


def test_a_placeholder_makes_room():
    text = body("class A:\n    pass", "@continued\nclass A:\n    x = 1")
    assert text == "class A:\n    x = 1\n"
    assert body("class A:\n    ...", "@continued\nclass A:\n    pass") == "class A:\n    ...\n"


def test_a_header_over_several_lines_is_kept():
    first = "class A(\n    dict,  # a base\n):  # why\n\n    # what\n    x = 1"
    text = body(first, "@continued\nclass A:\n    y = 1")
    assert text == first + "\n\n    y = 1\n"


def test_continuing_what_was_never_begun_is_refused():
    told = refusal("x = 1", "y = 2\n@continued\nclass Loop:\n    z = 1")
    assert told.startswith("notebooks/02_poller.ipynb, cell [3] ")
    assert "line 4: class Loop is continued here, but was exported by no cell before" in told


def test_other_headers_in_a_continuation_are_refused():
    assert "other bases" in refusal("class A:\n    x = 1", "@continued\nclass A(dict):\n    y = 1")
    assert "y = 1" in body("class A(dict):\n    x = 1", "@continued\nclass A(dict):\n    y = 1")
    more = "@continued\n@final\nclass A:\n    y = 1"
    assert "decorate class A where it begins" in refusal("class A:\n    x = 1", more)
    told = refusal("class A: x = 1", "@continued\nclass A:\n    y = 1")
    assert "cell [2]" in told
    assert "line 2: class A is continued: give its body lines of its own" in told


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("line", ["%time f()", "%%timeit", "!ls", "x = !ls", "f?", "a = %pwd"])
def test_magics_are_refused_with_cell_and_line(line: str):
    told = refusal("x = 1", f"y = 2\n{line}")
    assert told.startswith("notebooks/02_poller.ipynb, cell [3] ")
    assert told.endswith(f", line 3: a magic cannot be exported: {line}")


def test_a_percent_sign_in_a_string_is_no_magic():
    assert "%time" in module('x = """\n%time\n"""')


def test_syntax_errors_name_cell_and_line():
    assert "line 3: expected ':': def f()" in refusal("x = 1\ndef f()\n    pass")


def test_an_undefined_name_is_refused_with_cell_and_line():
    told = refusal("x = 1", "def f():\n    return toy(x)")
    assert "cell [3]" in told
    assert "line 3: toy is not defined in hop/poller.py: no exported cell defines or " in told


def test_a_name_that_comes_below_the_class_is_told_apart():
    more = "@continued\nclass A:\n    def f(self) -> T: ..."
    told = refusal("class A:\n    x = 1", "T = int", more)
    assert "line 4: T is not defined yet" in told
    assert "where it begins, above notebooks/02_poller.ipynb, cell [3]" in told


def test_a_name_in_an_own_all_that_does_not_exist_is_refused():
    told = refusal("x = 1", '__all__ = ["toy"]')
    assert "cell [3]" in told
    assert "line 2: toy is not defined" in told


def test_a_name_exported_twice_is_refused():
    told = refusal("def f(): ...", "x = 1\ndef f(): ...")
    assert "line 3: f is exported again, after notebooks/02_poller.ipynb, cell [2]" in told
    assert "@continued" in told
    assert body("x = 1\nx = x + 1") == "x = 1\nx = x + 1\n"


@pytest.mark.parametrize(("cell", "told"), [
    ("x = 1\n#| export", "line 2: `#| export` must be the first line"),
    ("#| export ../x.py\nx = 1", "'../x.py' is no module's path"),
    ("#| export hop.x\nx = 1", "'hop.x' is no module's path"),
])  # fmt: skip
def test_directives_that_mean_nothing_are_refused(cell: str, told: str):
    with pytest.raises(TangleError) as caught:
        tangle(notebook(HEAD + "%%\n" + cell))
    assert told in str(caught.value)


def test_a_notebook_that_names_no_module_is_refused():
    with pytest.raises(TangleError, match=r"the notebook has no `#\| default_exp`"):
        tangle(notebook("%% md\n# A\n\nB.\n%%\n#| export\nx = 1"))


ERRORS = '%%\n#| export hop/errors.py\n"""Errors."""\nclass Bad(Exception): ...\n'


def test_a_notebook_may_feed_several_modules_if_each_has_a_docstring():
    text = cells("x = 1") + ERRORS
    own, errors = tangle(notebook(text))
    assert (own.path, errors.path) == ("hop/poller.py", "hop/errors.py")
    assert errors.text.startswith(f'{HEADER}"""Errors."""\n\n__all__ = ["Bad"]\n\n\nclass')
    with pytest.raises(TangleError, match=r"hop/errors\.py has no docstring"):
        tangle(notebook(text.replace('"""Errors."""\n', "")))


# ---------------------------------------------------------------- the project


def run(project: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run a command on the project; its status and all that it printed."""
    status = main(list(arguments), project)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_a_module_fed_by_two_notebooks_is_refused(project: Path, capsys):
    store(project, cells("x = 1"))
    store(project, cells("y = 1"), "03_other")
    status, told = run(project, capsys, "tangle")
    assert status == 1
    assert told.startswith("notebooks/02_poller.ipynb, cell [2] poller-4, line 1: hop/poller.py is "
                           "fed by notebooks/03_other.ipynb, cell [2] poller-4 too")  # fmt: skip
    assert not (project / "hop/poller.py").exists()


def test_continuing_a_class_of_another_notebook_names_its_owner(project: Path, capsys):
    store(project, cells("class Poller:\n    x = 1"))
    other = cells("@continued\nclass Poller:\n    y = 1").replace("hop.poller", "hop.engine")
    store(project, other, "06_engine")
    status, told = run(project, capsys, "tangle")
    assert status == 1
    assert "notebooks/06_engine.ipynb, cell [2] poller-4, line 3: class Poller is continued" in told
    assert "belongs to notebooks/02_poller.ipynb, cell [2] poller-4" in told


def test_a_broken_notebook_does_not_stop_the_others(project: Path, capsys):
    path = store(project, cells("x = 1"))
    (project / "notebooks/01_broken.ipynb").write_text("{")
    assert run(project, capsys, "tangle", str(path))[0] == 0
    status, told = run(project, capsys, "check")
    assert status == 1
    assert told.startswith("notebooks/01_broken.ipynb: no notebook")


def test_check_is_content_with_what_was_tangled(project: Path, capsys):
    path = store(project, cells("x = 1"))
    run(project, capsys, "tangle")
    made = (project / "hop/poller.py").stat().st_mtime_ns
    assert run(project, capsys, "tangle") == (0, "")
    assert (project / "hop/poller.py").stat().st_mtime_ns == made
    status, told = run(project, capsys, "check", "--list-ignored")
    assert status == 0, told
    assert "notebooks/02_poller.ipynb: 8 words, 1 exported lines, 8.0 a line\n" in told
    assert "together: 8 words, 1 exported lines, 8.0 a line\n" in told
    assert run(project, capsys, "check", str(path))[0] == 0


def test_check_names_the_cell_of_each_difference(project: Path, capsys):
    store(project, cells("x = 1", "class A:\n    y = 2", "z = 3"))
    run(project, capsys, "tangle")
    file = project / "hop/poller.py"
    file.write_text(file.read_text().replace("y = 2", "y = 3").replace("z = 3", "z = 4"))
    status, told = run(project, capsys, "check")
    assert status == 1
    place = "notebooks/02_poller.ipynb, cell [3] poller-6, line 3"
    assert f"hop/poller.py:13 is not what {place} says (-):\n" in told
    assert "  -    y = 2\n  +    y = 3\n" in told
    assert "cell [4] poller-8, line 2 says (-):\n  -z = 3\n  +z = 4\n" in told


def test_check_misses_a_module_and_finds_one_that_nobody_feeds(project: Path, capsys):
    store(project, cells("x = 1"))
    (project / "hop/stray.py").write_text("")
    status, told = run(project, capsys, "check")
    assert status == 1
    assert "hop/poller.py:1 is not what" in told
    assert "hop/stray.py: no notebook feeds it" in told


def test_exported_cells_are_short_and_explained(project: Path):
    lines = "\n".join(f"x{n} = {n}" for n in range(41))
    path = store(project, cells(lines) + "%%\n1\n%%\n#| export\ny = 1\n")
    assert problems(path) == [
        "notebooks/02_poller.ipynb, cell [2] poller-4, line 42: exports 41 lines; 40 are the most",
        "notebooks/02_poller.ipynb, cell [4] poller-6: no prose between this exported cell and the "
        "one before",
    ]
    assert problems(store(project, cells(lines.rpartition("\n")[0]))) == []


# ---------------------------------------------------------------- the normal form


def test_a_cell_that_was_never_run_is_refused(project: Path):
    path = store(project, HEAD + "%%\n1\n", run=False)
    [told] = problems(path)
    assert told.startswith("notebooks/02_poller.ipynb, cell [1] poller-2: was never run")
    assert told.endswith("2 such cells")


def test_only_the_output_of_a_cell_may_be_left_uncompared(project: Path, capsys):
    path = store(project, HEAD + "%%\n1\n%%\n# NBVAL_IGNORE_OUTPUT\n2\n%%\n3\n")
    read = Notebook.read(path)
    read.node.cells[2].metadata.tags = ["nbval-skip"]
    read.node.cells[4].metadata.tags = ["nbval-ignore-output"]
    read.write(path)
    assert [text.partition(": ")[0] for text in problems(path)] == [
        "notebooks/02_poller.ipynb, cell [2] poller-3",
        "notebooks/02_poller.ipynb, cell [3] poller-4",
    ]
    read.node.cells[2].metadata.tags = []
    read.node.cells[3].source = "2"
    normalise(read)
    read.write(path)
    status, told = run(project, capsys, "check", "--list-ignored")
    assert status == 0, told
    assert told.endswith("1 cells measure, so that their output is not compared\n"
                         "notebooks/02_poller.ipynb, cell [4] poller-5\n")  # fmt: skip


def test_a_notebook_out_of_its_normal_form_is_refused_and_repaired(project: Path, capsys):
    path = store(project, HEAD + "%%\n1\n%%\n\n")
    data = json.loads(path.read_text())
    data["metadata"]["language_info"]["version"] = "3.11.7"
    data["cells"][2]["id"] = "f00ba4"
    data["cells"][2]["execution_count"] = 17
    data["cells"][2]["metadata"] = {"execution": {"iopub.status.busy": "2026-01-01"}}
    path.write_text(json.dumps(data))
    [told] = problems(path)
    assert "execution_count of cell 3 of all, which should have the id poller-3" in told
    assert run(project, capsys, "normalise", str(path))[0] == 0
    assert problems(path) == []
    assert "3.11.7" not in path.read_text()
    assert "iopub" not in path.read_text()
    data = json.loads(path.read_text())
    data["metadata"]["widgets"] = {}
    path.write_text(json.dumps(data))
    assert "metadata" in problems(path)[0]


def test_ids_say_where_a_cell_stands():
    made = notebook("%%\n0\n%% md\n# The `A` B!\n%%\n1\n%% md\n```\n# no heading\n```\n"
                    "%% md\n## Run it\n%% md\n# ???\n%% md\n## Run it\n")  # fmt: skip
    normalise(made)
    ids = [cell.id for cell in made.node.cells]
    assert ids == ["start-1", "the-a-b-1", "the-a-b-2", "the-a-b-3", "run-it-1", "section-1",
                   "run-it-2"]  # fmt: skip
    nbformat.validate(made.node)


def test_outputs_are_brought_into_one_form():
    made = notebook("%%\n1\n")
    trace = [f"File {ROOT}/hop/poller.py:3", "File ~/py/lib/python3.11/socket.py:5",
             f"File {sys.prefix}/lib/python3.11/site-packages/h11/x.py:5",
             "File /tmp/ipykernel_12/345.py:1"]  # fmt: skip
    made.node.cells[0].execution_count = 5
    made.node.cells[0].outputs = [
        new_output("stream", name="stdout", text="a"),
        new_output("stream", name="stdout", text="b"),
        new_output("stream", name="stderr", text="c"),
        new_output("execute_result", {"text/plain": "1"}, execution_count=5),
        new_output("error", ename="E", evalue="", traceback=trace),
    ]
    normalise(made)
    first, second, result, error = made.node.cells[0].outputs
    assert (first.text, second.text, result.execution_count) == ("ab", "c", 1)
    assert error.traceback == ["File hop/poller.py:3", "File socket.py:5", "File h11/x.py:5",
                               "File <cell>:1"]  # fmt: skip


def test_places_of_this_machine_in_outputs_are_refused(project: Path):
    path = store(project, HEAD + "%%\n1\n")
    read = Notebook.read(path)
    read.node.cells[2].outputs = [new_output("stream", text=f"see {ROOT}/hop/x.py")]
    read.write(path)
    assert problems(path) == ["notebooks/02_poller.ipynb, cell [2] poller-3: its output names a "
                              f"place on this machine: {ROOT}/"]  # fmt: skip


# ---------------------------------------------------------------- there and back


def test_where_names_notebook_cell_and_line(project: Path, capsys):
    class_a = ["class A:\n    y = 2", "@continued\nclass A:\n    z = 3"]
    store(project, cells("import os\nx = os", *class_a))
    run(project, capsys, "tangle")
    lines = (project / "hop/poller.py").read_text().splitlines()
    numbers = [lines.index(text) + 1 for text in ("    z = 3", "import os", '"""Poller.')]
    status, told = run(project, capsys, "where", *(f"hop/poller.py:{n}" for n in numbers))
    assert status == 0
    assert told.splitlines() == [
        "notebooks/02_poller.ipynb, cell [4] poller-8, line 4",
        "notebooks/02_poller.ipynb, cell [2] poller-4, line 2",
        'notebooks/02_poller.ipynb, made by the tangler: """Poller.',
    ]
    for nowhere in ("hop/poller.py:0", "hop/poller.py:999", "hop/poller.py", "hop/x.py:1"):
        assert run(project, capsys, "where", nowhere)[0] == 1


def test_the_map_knows_every_line_that_has_a_cell(project: Path, capsys):
    path = store(project, cells("import os\nx = os", "class A:\n    y = 2"))
    run(project, capsys, "tangle")
    read = json.loads(run(project, capsys, "map")[1])["hop/poller.py"]
    source = {cell.id: cell.lines for cell in Notebook.read(path).cells}
    text = (project / "hop/poller.py").read_text().splitlines()
    assert read["notebook"] == "notebooks/02_poller.ipynb"
    assert len(read["lines"]) == len(text)
    known = [(line, *origin) for line, origin in zip(text, read["lines"], strict=True) if origin]
    assert [line for line, *_ in known] == ["import os", "x = os", "class A:", "    y = 2"]
    assert all(source[cell][number - 1] == line for line, cell, _, number in known)


MODULE = ["import os\nimport abc\nx = os, abc", "class A:\n    def f(self):\n        return 2",
          "@continued\nclass A:\n    # why\n    def g(self):\n        return 3\n\n"
          "    def h(self):\n        return 4"]  # fmt: skip


def edited(project: Path, capsys, *changes: tuple[str, str]) -> tuple[int, str]:
    """Tangle, change the module, pull."""
    store(project, cells(*MODULE))
    run(project, capsys, "tangle")
    file = project / "hop/poller.py"
    text = file.read_text()
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    file.write_text(text)
    return run(project, capsys, "pull", "hop/poller.py")


@pytest.mark.parametrize("change", [
    ("return 2", "return 22"),
    ("return 3", "return 33"),
    ("        return 2\n", "        # twice\n        x = 1\n        return 2\n"),
    ("        return 2\n", "        return 2\n        # the end\n"),
    ("    # why\n", ""),
    ("    # why\n", "    # why\n    # not\n"),
    ("    def h", "    def between(self):\n        pass\n\n    def h"),
    ("        return 4\n", "        return 4\n\n    def last(self):\n        return 5\n"),
    ("import os\n", "import os\nimport re\n"),
    ("class A", "# about A\nclass A"),
])  # fmt: skip
def test_an_edit_is_pulled_into_its_cell(project: Path, capsys, change: tuple[str, str]):
    status, told = edited(project, capsys, change)
    assert status == 0, told
    assert "hop/poller.py: carried back: notebooks/02_poller.ipynb, cell [" in told
    assert run(project, capsys, "check")[0] == 0


def test_edits_of_several_cells_are_pulled_at_once(project: Path, capsys):
    status, told = edited(project, capsys, ("return 2", "return 22"), ("return 4", "return 44"),
                          ("    # why\n", "    # why\n    # not\n"))  # fmt: skip
    assert status == 0, told
    assert [line.partition("cell ")[2][:3] for line in told.splitlines()] == ["[3]", "[4]", "[4]"]
    assert run(project, capsys, "check")[0] == 0


@pytest.mark.parametrize(("change", "told"), [
    (("        return 2\n\n    # why\n", ""), "ambiguous: the edit spans"),
    (("        return 2\n", "        return 2\n\n    def new(self):\n        pass\n"), "ambiguous"),
    (("# Tangled", "# Hand-made"), "hop/poller.py:1: the tangler made this line"),
    (("import abc\nimport os\n", "import abc\n"), "os is not defined"),
    (("import abc\nimport os\n", "import re\n"), "says this in other lines"),
    (("import abc\n", "import abc\nimport zlib\nimport base64\n"), "tangled again"),
])  # fmt: skip
def test_an_ambiguous_edit_is_refused_and_nothing_changed(project, capsys, change, told):
    store(project, cells(*MODULE))
    before = (project / "notebooks/02_poller.ipynb").read_text()
    status, said = edited(project, capsys, change)
    assert status == 1
    assert told in said
    assert (project / "notebooks/02_poller.ipynb").read_text() == before


def test_pulling_from_a_module_that_was_not_edited_or_is_not_tangled(project: Path, capsys):
    assert edited(project, capsys)[1] == (
        "hop/poller.py: carried back: nothing: it is what its notebook says\n"
    )
    assert run(project, capsys, "pull", "hop/x.py") == (1, "hop/x.py: no notebook feeds it\n")


# ---------------------------------------------------------------- running


def test_build_runs_the_cells_writes_the_module_and_leaves_nothing_to_repair(project, capsys):
    text = cells(
        "from book.continued import continued\n\nclass A:\n    def f(self):\n        return 2",
        "@continued\nclass A:\n    def g(self):\n        return self.f() + __class__().f()",
    ).replace("hop.poller", "demo.poller")
    more = "%%\nprint('out')\nA().g()\n%%\nimport demo.poller\ndemo.poller.A().g()\n"
    path = store(project, text + more, run=False)
    status, told = run(project, capsys, "build")
    assert status == 0, told
    assert run(project, capsys, "check")[0] == 0
    *_, last, own = Notebook.read(path).node.cells
    assert [output.get("text", "") for output in last.outputs] == ["out\n", ""]
    assert last.outputs[1].data["text/plain"] == own.outputs[0].data["text/plain"] == "4"
    first = path.read_text()
    run(project, capsys, "build")
    assert path.read_text() == first


def test_a_cell_that_fails_is_named_and_the_module_is_taken_back(project: Path, capsys):
    path = store(project, cells("x = 1") + "%%\ny = 2\nassert x == y\n", run=False)
    before = path.read_text()
    status, told = run(project, capsys, "build")
    assert status == 1
    assert "notebooks/02_poller.ipynb, cell [3] poller-5, line 2: AssertionError: " in told
    assert not (project / "hop/poller.py").exists()
    assert path.read_text() == before


def test_chapters_that_import_each_other_are_built_from_nothing(project: Path, capsys):
    first = cells("x = 1").replace("hop.poller", "demo.first") + "%%\nimport demo.second\n"
    store(project, first, "01_first", run=False)
    second = cells("y = 2").replace("hop.poller", "demo.second") + "%%\nimport demo.first\n"
    path = store(project, second, "02_second", run=False)
    status, told = run(project, capsys, "build")
    assert status == 0, told
    assert told.splitlines()[-2:] == [
        "notebooks/01_first.ipynb: executed", "notebooks/02_second.ipynb: executed",
    ]  # fmt: skip
    assert [cell.execution_count for cell in Notebook.read(path).node.cells
            if cell.cell_type == "code"] == [1, 2, 3]  # fmt: skip


@pytest.mark.parametrize("failing", ["01_first", "02_second"])
def test_what_stands_behind_a_chapter_that_fails_is_taken_back_too(project, capsys, failing):
    for name in ("01_first", "02_second"):
        text = cells("x = 1").replace("hop.poller", f"demo.{name[3:]}")
        store(project, text + "%%\nassert False\n" * (name == failing), name, run=False)
    (project / "demo").mkdir()
    (project / "demo/second.py").write_text("x = 0\n")
    assert run(project, capsys, "build")[0] == 1
    assert (project / "demo/first.py").exists() == (failing == "02_second")
    assert (project / "demo/second.py").read_text() == "x = 0\n"


def test_nothing_is_written_when_one_of_them_makes_no_module(project: Path, capsys):
    store(project, cells("x = 1").replace("hop.poller", "demo.first"), "01_first")
    store(project, cells("x = y").replace("hop.poller", "demo.second"), "02_second")
    status, told = run(project, capsys, "build")
    assert status == 1
    assert "y is not defined" in told
    assert not (project / "demo").exists()


def test_a_cell_that_takes_too_long_and_a_kernel_that_dies_are_named(project, monkeypatch):
    monkeypatch.setattr("book.project.TIME_LIMIT", 1)
    stuck = notebook(HEAD + "%%\nimport threading\nthreading.Event().wait()\n")
    with pytest.raises(TangleError, match=r"cell \[2\] .*: takes more than 1 seconds"):
        execute(stuck, project, project)
    monkeypatch.undo()
    dead = notebook(HEAD + "%%\nimport os\nos._exit(3)\n")
    with pytest.raises(TangleError, match=r"cell \[2\] .*: the kernel died"):
        execute(dead, project, project)


# ---------------------------------------------------------------- nbconvert


def test_the_exporter_gives_the_module_and_further_ones_beside_it(project: Path):
    text = cells("x = 1") + '%%\n#| export hop/errors.py\n"""Errors."""\n_y = 1\n'
    path = store(project, text)
    made, resources = TangleExporter().from_filename(str(path))
    assert str(made) == tangle(Notebook.read(path))[0].text
    assert resources["output_extension"] == ".py"
    assert list(resources["outputs"]) == ["errors.py"]
    empty = store(project, "%% md\n# A\n\nB.\n", "00_why")
    assert not TangleExporter().from_filename(str(empty))[0]


def test_jupyter_nbconvert_knows_the_exporter(project: Path):
    path = store(project, cells("x = 1"))
    subprocess.run(
        [sys.executable, "-m", "jupyter", "nbconvert", "--to", "hop-tangle", "--output-dir",
         str(project / "hop"), str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    made = (project / "hop/poller.py").read_text()
    assert made == next(Project(project).everything()).text
