"""A pytest plugin: where results count (`CI=true`), a test that was skipped has failed.

A program that is missing can be installed, and a test that was forgotten can be run; a machine's
network cannot be changed by a test, nor what its container may trace. So a skip for want of IPv6
or of ptrace stays what it is.
"""

import os
from collections.abc import Generator

import pytest

ALLOWED = ("no IPv6", "no ptrace here")


def is_allowed(report: pytest.TestReport | pytest.CollectReport) -> bool:
    """Whether a skip may stand: nobody counts, or the reason is one that nobody can help."""
    if os.environ.get("CI") != "true" or hasattr(report, "wasxfail"):
        return True
    return any(reason in str(report.longrepr) for reason in ALLOWED)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the report of a skipped test into that of a failed one. An xfail stays what it is."""
    report = yield
    if report.skipped and not is_allowed(report):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI=true does not allow: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole file that skips itself while it is collected."""
    report = yield
    if report.skipped and not is_allowed(report):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI=true does not allow: {report.longrepr}"
    return report
