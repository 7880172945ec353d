"""The choice between torch's two float32 matrix multiplications, and memory that stays."""

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastdreamer import cpu


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


VENDORS = [("GenuineIntel", "MKL", "highest"), ("AuthenticAMD", "oneDNN", "medium"), ("", "MKL", "highest")]


@pytest.mark.parametrize("vendor, name, precision", VENDORS)
def test_the_choice_is_the_chips(monkeypatch: pytest.MonkeyPatch, vendor: str, name: str, precision: str) -> None:
    monkeypatch.setattr(cpu, "LARGEST_ERROR", 1.0)  # this processor may have units for bfloat16
    assert cpu.pick_matmul(vendor) == name
    assert torch.get_float32_matmul_precision() == precision


def test_the_vendor_is_a_word() -> None:
    assert re.fullmatch(r"\w*", cpu.cpu_vendor())


def test_one_that_is_not_exact_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a chip where oneDNN multiplies in bfloat16."""
    exact = Tensor.__matmul__

    def rounded(left: Tensor, right: Tensor) -> Tensor:
        if torch.get_float32_matmul_precision() == "medium" and left.dtype == torch.float32:
            left, right = left.bfloat16().float(), right.bfloat16().float()
        return exact(left, right)

    monkeypatch.setattr(Tensor, "__matmul__", rounded)
    assert cpu.pick_matmul("AuthenticAMD") == "MKL"
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
