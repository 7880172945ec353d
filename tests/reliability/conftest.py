"""One line per promise at the end of a run: its name, how often it was tried, how often it held."""

from collections.abc import Callable

import pytest

_counts: dict[str, tuple[int, int]] = {}


@pytest.fixture
def bar() -> Callable[[str, bool], None]:
    """Counts one trial of a promise, and whether it held."""

    def count(name: str, held: bool) -> None:
        tried, survived = _counts.get(name, (0, 0))
        _counts[name] = tried + 1, survived + held

    return count


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, (tried, survived) in _counts.items():
        terminalreporter.write_line(f"{name}: {tried} tried, {survived} survived")
