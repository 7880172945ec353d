"""How a case is held against its formula, and what else the tests of the kernels share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from formulas import normal
from hypothesis import strategies as st
from kernel_cases import Case, to_float64
from torch import Tensor

from fastdreamer_kernels import _dispatch, _native

if _dispatch.INTERPRETED:
    pytest.importorskip("triton")

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
"""Of the largest absolute value of a tensor. To bfloat16 Triton's interpreter cuts off where a GPU rounds."""
needs_native = pytest.mark.skipif(_native.library is None, reason="the native library was not built")
needs_interpreter = pytest.mark.skipif(not _dispatch.INTERPRETED, reason="needs TRITON_INTERPRET=1")
needs_gpu = pytest.mark.gpu
CPU = [
    pytest.param("reference", id="reference"),
    pytest.param("native", id="native", marks=needs_native),
    pytest.param("triton", id="triton", marks=needs_interpreter),
]
BACKENDS = [pytest.param(*each.values, "cpu", id=each.id, marks=each.marks) for each in CPU]
BACKENDS += [pytest.param(each, "cuda", id=f"{each}-cuda", marks=needs_gpu) for each in ("reference", "triton")]
UNIMIX = st.sampled_from([0.0, 0.01, 0.5, 1.0])
SEED = st.integers(0, 1 << 30)


def named(cases: list[Case]) -> list[Any]:
    return [pytest.param(case, id=case.name) for case in cases]


def assert_near(actual: Tensor, expected: Tensor, absolute: float = 0.0) -> None:
    assert actual.shape == expected.shape
    if actual.dtype not in TOLERANCE:
        assert torch.equal(actual, expected)
        return
    error = (actual.double() - expected.double()).abs().max().item()
    size = expected.abs().max().item()
    assert error <= TOLERANCE[actual.dtype] * size + absolute, (error, size)


def pairs(case: Case, backend: str, device: str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
    """Every output and gradient of a case, and what its formula gives for it in float64."""
    inputs = [x.detach().to(device) for x in case.inputs]  # so that the case itself stays without gradient
    wide = [to_float64(x) for x in case.inputs]
    for i in case.trained:
        inputs[i].requires_grad_(), wide[i].requires_grad_()
    outputs, expected = case.call(backend, *inputs), case.formula(*wide)
    assert len(outputs) == len(expected)
    total, wide_total = torch.zeros((), device=device), torch.zeros((), dtype=torch.float64)
    for i, (output, value) in enumerate(zip(outputs, expected, strict=True)):
        yield output.detach().cpu(), value.detach()
        assert output.requires_grad == value.requires_grad
        if value.requires_grad:
            weight = normal(90 + i, *value.shape)
            total = total + (output * weight.to(device)).sum()
            wide_total = wide_total + (value * weight).sum()
    if case.trained:
        grads = torch.autograd.grad(total, [inputs[i] for i in case.trained])
        assert all(grad.dtype == torch.float32 for grad in grads)
        yield from zip(
            (grad.cpu() for grad in grads),
            torch.autograd.grad(wide_total, [wide[i] for i in case.trained]),
            strict=True,
        )


def check(case: Case, backend: str, device: str = "cpu") -> None:
    """Outputs and gradients of a case against its formula in float64."""
    for actual, expected in pairs(case, backend, device):
        assert_near(actual, expected, case.absolute)


def check_by_chance(case: Case, backend: str, device: str = "cpu") -> None:
    """The same for a case with norms that was drawn by chance, which may be one that float32 itself is far off in.

    A norm over two features leaves hardly any gradient: what the reference is off by, itself bounded, counts as well.
    """
    of_reference = pairs(case, "reference", device)
    for (actual, expected), (reference, _) in zip(pairs(case, backend, device), of_reference, strict=True):
        absolute = case.absolute
        if actual.dtype in TOLERANCE:
            off = (reference.double() - expected.double()).abs().max().item()
            assert off <= 100 * TOLERANCE[actual.dtype] * expected.abs().max().item() + 10 * case.absolute
            absolute += 8 * off
        assert_near(actual, expected, absolute)


def bytes_of(tensors: tuple[Tensor, ...]) -> list[bytes]:
    return [x.detach().contiguous().view(torch.uint8).numpy().tobytes() for x in tensors if x.ndim]


def results(case: Case, backend: str = "native") -> list[Tensor]:
    """Outputs and gradients."""
    inputs = list(case.inputs)
    for i in case.trained:
        inputs[i] = inputs[i].clone().requires_grad_()
    outputs = case.call(backend, *inputs)
    grads: tuple[Tensor, ...] = ()
    if case.trained:
        of = [x for x in outputs if x.requires_grad]
        grads = torch.autograd.grad(of, [inputs[i] for i in case.trained], [normal(9, *x.shape) for x in of])
    return [x.detach() for x in (*outputs, *grads)]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def assert_no_leak(small: Case, big: Case) -> None:
    for _ in range(200):
        results(small), results(big)
    before = resident_bytes()
    for _ in range(10_000):
        results(small)
    for _ in range(100):
        results(big)
    assert resident_bytes() - before < 4 << 20
