"""What the Triton kernels share. Only a `cuda.py` imports it: importing fastdreamer_kernels needs no triton.

Nothing from libdevice: it does not run in the interpreter (TRITON_INTERPRET=1, set before triton is imported).
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRET = tl.constexpr(knobs.runtime.interpret)


def power_of_two(size: int, low: int, high: int) -> int:
    """The smallest power of two that holds `size`, but at least `low` and at most `high`."""
    return min(max(triton.next_power_of_2(size), low), high)


@triton.jit
def mma(a, b, acc):
    """acc + a @ b summed in float32; float32 operands are multiplied exactly, not as tf32."""
    if INTERPRET:  # which keeps bfloat16 as raw bits and would multiply those
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)  # no overflow on either side


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def silu_slope(x):
    """The derivative of SiLU."""
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))
