"""The choice between torch's two float32 matrix multiplications."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fastdreamer import matmul


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
    monkeypatch.setattr(matmul, "_best_seconds", seconds_of(mkl, onednn))
    monkeypatch.setattr(matmul, "LARGEST_ERROR", 1.0)  # this processor may have units for bfloat16
    assert matmul.pick_matmul() == name
    assert torch.get_float32_matmul_precision() == precision


def test_one_that_is_not_exact_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a chip where oneDNN multiplies in bfloat16."""
    exact = Tensor.__matmul__

    def rounded(left: Tensor, right: Tensor) -> Tensor:
        if torch.get_float32_matmul_precision() == "medium" and left.dtype == torch.float32:
            left, right = left.bfloat16().float(), right.bfloat16().float()
        return exact(left, right)

    monkeypatch.setattr(Tensor, "__matmul__", rounded)
    monkeypatch.setattr(matmul, "_best_seconds", seconds_of(2.0, 1.0))
    assert matmul.pick_matmul() == "MKL"
    assert torch.get_float32_matmul_precision() == "highest"
