"""Nothing in the folder of official arrays lies there unused. Runs last, and needs all the other golden tests."""

from pathlib import Path

import pytest
from golden_arrays import EXEMPT, Ledger


def test_every_array_was_used(golden_folder: Path, golden_ledger: Ledger, golden_left_out: list[str]) -> None:
    if golden_left_out:
        pytest.skip(f"only where every golden test runs: this session leaves out {', '.join(golden_left_out)}")
    unused = golden_ledger.unused(golden_folder)
    assert not unused, f"{len(unused)} keys that no passing test used: {', '.join(unused)}"


def test_every_file_of_the_repository_is_there(golden_folder: Path) -> None:
    """Another folder may hold other values, not fewer files."""
    own = {path.name for path in (Path(__file__).parent / "golden").iterdir()}
    missing = own - {path.name for path in golden_folder.iterdir()} - set(EXEMPT)
    assert not missing
