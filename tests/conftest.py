"""What all tests share."""

import os

import pytest

from tests.no_skips import pytest_make_collect_report, pytest_runtest_makereport

__all__ = ["pytest_make_collect_report", "pytest_runtest_makereport"]

# Tests that touch no poller have nothing to say on another one. Those of the book and of the
# wheel are stages of their own in `make test`.
NO_POLLER = [
    "test_adaptor.py",
    "test_appcontext.py",
    "test_benchmark.py",
    "test_book.py",
    "test_continued.py",
    "test_corpus.py",
    "test_engine.py",
    "test_errors.py",
    "test_listener.py",
    "test_package.py",
    "test_parser.py",
    "test_parser_h11.py",
    "test_storage.py",
    "test_tangle.py",
    "test_tools.py",
]

collect_ignore = NO_POLLER if os.environ.get("HOP_POLLER") == "selector" else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On the portable poller, leave out what is marked `no_poller` in a file that polls."""
    if os.environ.get("HOP_POLLER") == "selector":
        left_out = [item for item in items if item.get_closest_marker("no_poller")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
