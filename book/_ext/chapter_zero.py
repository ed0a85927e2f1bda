"""A Sphinx extension: the first chapter is chapter 0, as its notebook's name says.

Sphinx numbers chapters from 1. This takes one off the first part of every section's number,
after Sphinx has given the numbers and before anything is written.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def shift(number: Any) -> Any:
    """(3, 2) becomes (2, 2); no number stays no number."""
    return (number[0] - 1, *number[1:]) if number else number


def renumber(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Take one off wherever Sphinx has noted a number; return the pages to be written again."""
    for numbers in env.toc_secnumbers.values():
        for anchor, number in numbers.items():
            numbers[anchor] = shift(number)
    numbered = {  # a title may stand in two of the tables: once is enough
        id(node): node
        for trees in (env.tocs, env.titles, env.longtitles)
        for tree in trees.values()
        for node in tree.findall(nodes.Element)
        if node.get("secnumber")
    }
    for node in numbered.values():
        node["secnumber"] = shift(node["secnumber"])
    return list(env.toc_secnumbers)


def setup(app: Sphinx) -> dict[str, Any]:
    """Run after Sphinx's own collector, which answers the same event at priority 500."""
    app.connect("env-get-updated", renumber, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
