"""What all tests share: the fixtures of trainings.py, and a table of what slow tests measured."""

from trainings import (  # noqa: F401
    FIGURES,
    after_step,
    chance,
    epoch,
    one_thread,
    record_figure,
    silent,
    training_corpus,
    uninterrupted,
)


def pytest_terminal_summary(terminalreporter):
    for tried, measured in FIGURES:
        terminalreporter.write_line(f"| {tried} | {measured} |")
