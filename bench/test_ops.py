"""Times every op on every backend that this machine has: `pytest bench`.

Groups are op and shape; extra_info holds bytes, FLOPs, and the ratio of the medians to the reference's in the same run.
`--benchmark-save NAME` stores the run under bench/results/, named after the hardware, and `--benchmark-compare` sets a
run against what is stored there.
"""

import functools
from typing import get_args

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.ops import Case, cases
from fastdreamer.config import Size
from fastdreamer_kernels import _dispatch

SIZES: tuple[Size, ...] = ("size1m", "size12m")
OPS = tuple(_dispatch.backends())
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
assert set(SIZES) <= set(get_args(Size))


@functools.lru_cache(maxsize=1)
def cases_of(size: Size) -> dict[str, Case]:
    return {case.op: case for case in cases(size, DEVICE)}


def backends_of(op: str) -> list[str]:
    able = _dispatch.backends()[op]
    return [each for each in ("reference", "triton" if ON_GPU else "native") if each in able] + ["compiled"] * ON_GPU


PARAMETERS = [(size, op, backend) for size in SIZES for op in OPS for backend in backends_of(op)]


@pytest.mark.parametrize("size, op, backend", PARAMETERS)
def test_op(benchmark: BenchmarkFixture, size: Size, op: str, backend: str) -> None:
    case = cases_of(size)[op]
    benchmark.group = f"{case.op} {case.shape}"
    benchmark.extra_info |= {"backend": backend, "bytes": case.bytes, "flops": case.flops}

    def run() -> None:
        case.run("reference" if backend == "compiled" else backend)
        if ON_GPU:
            torch.cuda.synchronize()

    benchmark.pedantic(torch.compile(run) if backend == "compiled" else run, rounds=9, warmup_rounds=2)
