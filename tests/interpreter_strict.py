"""Makes the Triton interpreter honest about bfloat16, for tests.

It keeps bfloat16 as raw 16-bit integers and computes with those, silently, and it truncates where a GPU rounds to
bfloat16. After `install`, `tl.dot` of bfloat16 and casts to it are right, and any other arithmetic, comparison,
function, reduction or scan of a bfloat16 value raises.
"""

from collections.abc import Callable

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

GUARDED = ("binary_op", "unary_op", "ternary_op", "create_fabs", "create_rsqrt", "create_erf", "create_clampf",
           "create_precise_divf", "create_fma")  # fmt: skip


def install() -> None:
    """Patches the interpreter of this process, once. TRITON_INTERPRET=1 must have been set before triton's import."""
    builder = type(interpreter.interpreter_builder)
    if hasattr(builder.create_dot, "__wrapped__"):
        return
    builder.create_dot = _widening(builder.create_dot)
    builder.cast_impl = _rounding(builder.cast_impl)
    for name in GUARDED:
        if hasattr(builder, name):  # versions differ in what they have
            setattr(builder, name, _refusing(getattr(builder, name), name))
    for ops in (interpreter.ReduceOps, interpreter.ScanOps):
        ops.apply = _refusing(ops.apply, ops.__name__)


def _is_bf16(value: object) -> bool:
    if isinstance(value, tuple | list):
        return any(_is_bf16(item) for item in value)
    dtype = getattr(value, "dtype", None)  # of a handle or of a tl.tensor
    return getattr(dtype, "scalar", None) == tl.bfloat16


def _widened(handle: object) -> object:
    if not _is_bf16(handle):
        return handle
    return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _widening(dot: Callable[..., object]) -> Callable[..., object]:
    def create_dot(self: object, a: object, b: object, *rest: object) -> object:
        return dot(self, _widened(a), _widened(b), *rest)  # products of bfloat16 are exact in float32

    create_dot.__wrapped__ = dot
    return create_dot


def _rounding(cast: Callable[..., object]) -> Callable[..., object]:
    def cast_impl(self: object, source: object, target: object) -> object:
        if source.dtype.scalar != tl.float32 or target.scalar != tl.bfloat16:
            return cast(self, source, target)
        bits = source.data.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
        data = np.where(np.isnan(source.data), (bits >> 16) | 0x40, rounded).astype(np.uint16)
        return interpreter.TensorHandle(data, tl.bfloat16)

    return cast_impl


def _refusing(method: Callable[..., object], name: str) -> Callable[..., object]:
    def refuse(self: object, *args: object, **kwargs: object) -> object:
        if any(_is_bf16(arg) for arg in args):
            raise TypeError(f"the interpreter cannot compute {name} of bfloat16: use x.to(tl.float32)")
        return method(self, *args, **kwargs)

    return refuse
