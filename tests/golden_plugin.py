"""Pytest's side of the official arrays: the option --golden, the fixtures, the count at the end."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from golden_arrays import FOLDER, Golden, Ledger

LEDGER = Ledger()
DESELECTED: list[str] = []
"""Tests that this session collected and then left out."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", type=Path, default=FOLDER, metavar="DIR", help="folder of official arrays to compare with"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name == "test_golden_coverage.py")  # stable: only moves it to the end


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    DESELECTED.extend(item.nodeid for item in items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if LEDGER.comparisons:
        keys = sum(len(used) for used in LEDGER.used.values())
        terminalreporter.write_line(
            f"golden: {LEDGER.comparisons} comparisons of {LEDGER.values} values, "
            f"{keys} keys of {len(LEDGER.used)} files used, in {config.getoption('golden')}"
        )


@pytest.fixture(scope="session")
def golden_folder(request: pytest.FixtureRequest) -> Path:
    return request.config.getoption("golden")


@pytest.fixture(scope="session")
def golden_ledger() -> Ledger:
    return LEDGER


@pytest.fixture
def golden_left_out(request: pytest.FixtureRequest) -> list[str]:
    """The golden tests that this session does not run: files, or single tests."""
    files = {path.name for path in Path(__file__).parent.glob("test_golden_*.py")}
    left_out = sorted(files - {item.path.name for item in request.session.items})
    left_out += [test for test in DESELECTED if "test_golden_" in test]
    return left_out + [argument for argument in request.config.args if "::" in argument]


@pytest.fixture(params=["reference", "kernels"])
def golden(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, golden_folder: Path) -> Golden:
    """The arrays, once with the references and once with whatever runs here by default."""
    if request.param == "reference":
        monkeypatch.setenv("FASTDREAMER_KERNELS", "reference")
    else:
        monkeypatch.delenv("FASTDREAMER_KERNELS", raising=False)
    return Golden(golden_folder, LEDGER)
