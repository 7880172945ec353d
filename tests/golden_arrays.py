"""The official arrays: reads them, compares with them, and keeps book of what was used.

A key is used when it was compared, or read before a comparison of the same test. `test_golden_coverage.py` fails on
every key of every file that was not. The folder is tests/golden, or the one that `--golden DIR` names.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"
EXEMPT = ("README.md", "atari_frames.npz")
"""EnvPool resizes Atari frames differently from Pillow, so their pixels are not the product's to match."""


class Tolerance(NamedTuple):
    """|a - b| <= relative |b| + absolute + largest max|b|, elementwise; b is the official array."""

    relative: float
    absolute: float = 0.0
    largest: float = 0.0


# golden/README.md: what JAX and torch agree to in float32, with room for another CPU's summation order.
FORWARD = Tolerance(2e-4, 2e-5)
GRADIENT = Tolerance(2e-3, largest=2e-4)
PARAMETER = Tolerance(1e-2, 2e-3)
EXACT = Tolerance(0.0)
LARGEST_DRIFT = 0.1
"""Of the largest value: what bfloat16 may cost before it counts as another result."""


@dataclass
class Ledger:
    """What one test session used of the arrays."""

    used: dict[str, set[str]] = field(default_factory=dict)
    """Keys per file name: arrays of .npz, columns of .csv, top-level entries of .json."""
    comparisons: int = 0
    values: int = 0

    def unused(self, folder: Path) -> list[str]:
        """FILE:KEY of everything in the folder that no comparison needed."""
        missing = []
        for path in sorted(folder.iterdir()):
            if path.name not in EXEMPT:
                missing += [
                    f"{path.name}:{key}" for key in read_keys(path) if key not in self.used.get(path.name, set())
                ]
        return missing


class Golden:
    """The arrays as one test sees them: what it reads counts as used once it compares something."""

    def __init__(self, folder: Path, ledger: Ledger) -> None:
        self.folder, self.ledger = folder, ledger
        self.pending: list[tuple[str, str]] = []

    def open(self, name: str) -> "Arrays":
        """One .npz file of the folder."""
        return Arrays(self, name)

    def read_table(self, name: str, *columns: str) -> list[tuple[str, ...]]:
        """The rows of a .csv file, these columns of them."""
        rows = read_rows(self.folder / name)
        self.pending += [(name, column) for column in columns]
        return [tuple(row[column] for column in columns) for row in rows]

    def read_json(self, name: str, *keys: str) -> Any:
        """What stands under the first key of a .json file, under the second in that, and so on."""
        value = json.loads((self.folder / name).read_text())
        self.pending.append((name, keys[0]))
        for key in keys:
            value = value[key]
        return value

    def compare(self, what: str, actual: Tensor | float | None, expected: Tensor | float, tolerance: Tolerance) -> None:
        """Fails unless both have one shape and agree; integers and booleans must be equal whatever the tolerance."""
        assert actual is not None, f"{what}: nothing to compare, such as a gradient that did not arrive"
        actual, expected = torch.as_tensor(actual).detach(), torch.as_tensor(expected)
        assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, official {tuple(expected.shape)}"
        if not expected.is_floating_point():
            tolerance = EXACT
        actual, expected = actual.double(), expected.double()
        size = expected.abs()
        largest = size.max() if size.numel() else 0.0
        limit = tolerance.relative * size + tolerance.absolute + tolerance.largest * largest
        error = (actual - expected).abs()
        outside = ~((error <= limit) | (actual == expected))  # a NaN is outside, equal infinities are not
        assert not outside.any(), f"{what}: {describe(actual, expected, error, outside)}"
        self.ledger.comparisons += 1
        self.ledger.values += expected.numel()
        for file, key in self.pending:
            self.ledger.used.setdefault(file, set()).add(key)
        self.pending.clear()


class Arrays:
    """The arrays of one file. What `read` and `group` hand out are inputs; `compare` checks outputs."""

    def __init__(self, golden: Golden, name: str) -> None:
        self.golden, self.name = golden, name
        self.arrays = load_arrays(golden.folder / name)

    def read(self, key: str) -> Tensor:
        """One array; text becomes an error."""
        self.golden.pending.append((self.name, key))
        return torch.from_numpy(self.arrays[key].copy())

    def read_names(self, key: str) -> list[str]:
        """An array of text."""
        self.golden.pending.append((self.name, key))
        return [str(name) for name in self.arrays[key]]

    def keys(self, prefix: str) -> list[str]:
        """What follows `prefix` in every key that has it."""
        return [key.removeprefix(prefix) for key in self.arrays if key.startswith(prefix)]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Every array whose key starts with `prefix`, by the rest of its key."""
        return {key: self.read(prefix + key) for key in self.keys(prefix)}

    def compare(self, key: str, actual: Tensor | float | None, tolerance: Tolerance) -> None:
        """Fails unless `actual` has the shape and, within the tolerance, the values of the official array."""
        self.golden.compare(f"{self.name}:{key}", actual, self.read(key), tolerance)

    def drift(self, key: str, exact: Tensor, times: float = 2, rows: Tensor | slice = slice(None)) -> Tolerance:
        """`times` the distance of the official bfloat16 array `key` from its float32 counterpart.

        Two codes that round in different places are each about that far from the exact result: twice is the least.
        At least one unit in the last place of bfloat16, where the official rounding happens to cancel. Only these
        leading rows count.
        """
        half, exact = self.read(key).double()[rows], exact.double()[rows]
        distance = (half - exact).abs().max().item()
        assert distance <= LARGEST_DRIFT * exact.abs().max(), f"{self.name}:{key} is no rounding of its float32 array"
        return Tolerance(2**-8, times * distance)

    def compare_group(self, prefix: str, actual: Mapping[str, Tensor | None], tolerance: Tolerance) -> None:
        """Compares every array whose key starts with `prefix`; both sides must have the same keys."""
        assert sorted(actual) == sorted(self.keys(prefix)), f"{self.name}: keys of {prefix}"
        for key, value in actual.items():
            self.compare(prefix + key, value, tolerance)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a .csv file by column name."""
    header, *rows = [line.split(",") for line in path.read_text().splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_keys(path: Path) -> list[str]:
    """Everything in a file that a comparison must use. Raises ValueError for a kind of file that no test reads."""
    match path.suffix:
        case ".npz":
            return list(load_arrays(path))
        case ".csv":
            return list(read_rows(path)[0])
        case ".json":
            return list(json.loads(path.read_text()))
    raise ValueError(f"{path}: no test reads such files")


@cache
def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of one file, read once per session."""
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def describe(actual: Tensor, expected: Tensor, error: Tensor, outside: Tensor) -> str:
    """The worst element, for a failure message."""
    worst = int(torch.where(outside, error.nan_to_num(torch.inf), -1.0).argmax())
    got, want = actual.flatten()[worst].item(), expected.flatten()[worst].item()
    return f"{int(outside.sum())} of {outside.numel()} differ, the worst at flat index {worst}: {got}, official {want}"
