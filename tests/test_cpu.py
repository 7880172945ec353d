"""The choice between torch's two float32 matrix multiplications, and memory that stays."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fastdreamer import cpu


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def seconds_of(mkl: float, onednn: float) -> Callable[[Tensor, Tensor], float]:
    return lambda left, right: mkl if torch.get_float32_matmul_precision() == "highest" else onednn


@pytest.mark.parametrize("mkl, onednn, name, precision", [(1.0, 0.9, "MKL", "highest"), (2.0, 1.0, "oneDNN", "medium")])
def test_the_clearly_faster_one_is_left_switched_on(
    monkeypatch: pytest.MonkeyPatch, mkl: float, onednn: float, name: str, precision: str
) -> None:
    monkeypatch.setattr(cpu, "_best_seconds", seconds_of(mkl, onednn))
    monkeypatch.setattr(cpu, "LARGEST_ERROR", 1.0)  # this processor may have units for bfloat16
    assert cpu.pick_matmul() == name
    assert torch.get_float32_matmul_precision() == precision


def test_one_that_is_not_exact_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a chip where oneDNN multiplies in bfloat16."""
    exact = Tensor.__matmul__

    def rounded(left: Tensor, right: Tensor) -> Tensor:
        if torch.get_float32_matmul_precision() == "medium" and left.dtype == torch.float32:
            left, right = left.bfloat16().float(), right.bfloat16().float()
        return exact(left, right)

    monkeypatch.setattr(Tensor, "__matmul__", rounded)
    monkeypatch.setattr(cpu, "_best_seconds", seconds_of(2.0, 1.0))
    assert cpu.pick_matmul() == "MKL"
    assert torch.get_float32_matmul_precision() == "highest"


def test_freed_memory_is_kept() -> None:
    """In a process of its own, since it stays so: after some arrays of a size the next ones cost no new pages."""
    program = """
import resource, torch
from fastdreamer import cpu
assert cpu.keep_memory()
faults = []
for _ in range(24):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array = torch.ones(10_000_000)  # 40 MB: 10,000 pages
    del array
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    faults = list(map(int, result.stdout.split()))
    assert faults[0] > 5000 and max(faults[-4:]) < 100
