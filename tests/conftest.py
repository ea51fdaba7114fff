"""Lets every test say `import golpo_utils`, from wherever pytest was started."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

FIGURES = []                    # (what was promised, what was measured)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="the long form of the tests that have one")


@pytest.fixture(scope="session")
def long(request):
    return request.config.getoption("--long")


@pytest.fixture
def record_figure():
    return lambda promise, figure: FIGURES.append((promise, figure))


def pytest_terminal_summary(terminalreporter):
    for promise, figure in FIGURES:
        terminalreporter.write_line(f"| {promise} | {figure} |")
