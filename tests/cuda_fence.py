"""For the tests of the Triton kernels: memory between guards, and values within a tolerance of float64.

Without a GPU the kernels run in Triton's interpreter, which importing this makes honest about bfloat16.
"""

import math
import os
from collections.abc import Callable

import torch
from torch import Tensor

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
GUARD = 64
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Of the largest absolute value of a tensor."""

if INTERPRETED:
    import interpreter_strict

    interpreter_strict.install()


def poison(dtype: torch.dtype) -> float:
    return math.nan if dtype.is_floating_point else 0 if dtype == torch.bool else torch.iinfo(dtype).min


class Fence:
    """Memory on one device between guards; `check` finds what was written outside of the tensors.

    The guards of what a kernel reads are poison, those of what it allocates a number: poison may hide poison.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.blocks: list[tuple[Tensor, int, float]] = []

    def _block(self, count: int, dtype: torch.dtype, device: torch.device, guard: float) -> Tensor:
        block = torch.full((count + 2 * GUARD,), guard, dtype=dtype, device=device)
        self.blocks.append((block, count, guard))
        return block[GUARD : GUARD + count].fill_(poison(dtype))

    def empty(self, *size: int | tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        shape = size if isinstance(size[0], int) else tuple(size[0])
        return self._block(math.prod(shape), dtype, device or self.device, 77).view(shape)

    def empty_like(self, x: Tensor) -> Tensor:
        return _shaped(self._block(x.numel(), x.dtype, x.device, 77), x)

    def given(self, x: Tensor) -> Tensor:
        return _shaped(self._block(x.numel(), x.dtype, self.device, poison(x.dtype)), x).copy_(x)

    def check(self) -> None:
        for block, count, guard in self.blocks:
            guards = torch.cat([block[:GUARD], block[GUARD + count :]])
            torch.testing.assert_close(guards, torch.full_like(guards, guard), rtol=0, atol=0, equal_nan=True)


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """In the memory order of `like` if that has no gaps."""
    last = sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    dense = last + 1 == like.numel()
    return flat.as_strided(like.shape, like.stride(), flat.storage_offset()) if dense else flat.view(like.shape)


def run(fence: Fence, function: Callable[..., Tensor | tuple[Tensor, ...]], *args: Tensor | float) -> list[Tensor]:
    """The results on the host, of arguments that were moved into fenced memory."""
    result = function(*(fence.given(arg) if isinstance(arg, Tensor) else arg for arg in args))
    return [x.cpu() for x in (result if isinstance(result, tuple) else (result,))]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5, least: float = 1e-3) -> None:
    """Within `tolerance` of the largest absolute value, or of `least` where all are smaller."""
    assert actual.shape == expected.shape
    expected = expected.detach().double()
    limit = tolerance * max(least, expected.abs().max().item())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=limit)
