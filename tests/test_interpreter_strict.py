"""The patched interpreter: bfloat16 products and casts are right, all else on bfloat16 raises."""

import os
from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("only for the interpreter", allow_module_level=True)

import interpreter_strict  # noqa: E402
import triton.language as tl  # noqa: E402

interpreter_strict.install()


@triton.jit
def _dot(a, b, out):
    i = tl.arange(0, 16)
    at = i[:, None] * 16 + i[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


@triton.jit
def _widened(a, b, out):
    i = tl.arange(0, 16)
    product = tl.load(a + i).to(tl.float32) * tl.load(b + i).to(tl.float32)
    tl.store(out + i, product.to(tl.bfloat16))


@triton.jit
def _cast(x, out):
    i = tl.arange(0, 16)
    tl.store(out + i, tl.load(x + i).to(tl.bfloat16))


@triton.jit
def _add(a, b, out):
    i = tl.arange(0, 16)
    tl.store(out + i, tl.load(a + i) + tl.load(b + i))


@triton.jit
def _compare(a, b, out):
    i = tl.arange(0, 16)
    tl.store(out + i, tl.where(tl.load(a + i) < tl.load(b + i), 1.0, 0.0))


@triton.jit
def _absolute(a, b, out):
    i = tl.arange(0, 16)
    tl.store(out + i, tl.abs(tl.load(a + i)))


@triton.jit
def _sum(a, b, out):
    i = tl.arange(0, 16)
    tl.store(out, tl.sum(tl.load(a + i), 0))


@triton.jit
def _plus(x, y):
    return x + y


@triton.jit
def _scan(a, b, out):
    i = tl.arange(0, 16)
    tl.store(out + i, tl.associative_scan(tl.load(a + i), 0, _plus))


def test_dot_of_bfloat16_is_right() -> None:
    a, b = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = torch.empty(16, 16)
    _dot[(1,)](a, b, out)
    assert_close(out, a.float() @ b.float())


def test_widened_arithmetic_is_right() -> None:
    a, b = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = torch.empty(16, dtype=torch.bfloat16)
    _widened[(1,)](a, b, out)
    assert torch.equal(out, a * b)


def test_casts_round_to_nearest_even_and_keep_infinity_and_nan() -> None:
    ties = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8 - 2**-20]
    x = torch.tensor([*ties, 3.4e38, 1e-40, torch.inf, -torch.inf, torch.nan] * 2)
    out = torch.empty(16, dtype=torch.bfloat16)
    _cast[(1,)](x, out)
    assert_close(out, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kernel", [_add, _compare, _absolute, _sum, _scan])
def test_other_arithmetic_of_bfloat16_raises(kernel: Callable[..., None]) -> None:
    x = torch.ones(16, dtype=torch.bfloat16)
    with pytest.raises(Exception, match="of bfloat16"):
        kernel[(1,)](x, x, torch.empty_like(x))


@pytest.mark.parametrize("kernel", [_add, _compare, _absolute, _sum, _scan])
def test_arithmetic_of_float32_does_not(kernel: Callable[..., None]) -> None:
    x = torch.ones(16)
    kernel[(1,)](x, x, torch.empty_like(x))


def test_installing_twice_is_installing_once() -> None:
    before = interpreter_strict.interpreter.InterpreterBuilder.binary_op
    interpreter_strict.install()
    assert interpreter_strict.interpreter.InterpreterBuilder.binary_op is before
