"""The native library: one C function per op and instruction set, loaded with ctypes, which releases the GIL.

It is built with the package where there is a C++ compiler. `FASTDREAMER_ISA` names an instruction set (base, v3, v4)
instead of the processor's best: for tests.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

ABI = 2
Argument = Tensor | Sequence[Tensor] | Sequence[int] | int | float | None


def _load() -> ctypes.CDLL | None:
    path = Path(__file__).parent / "libfastdreamer.so"
    if not path.exists():
        return None
    library = ctypes.CDLL(str(path))
    library.fd_isa.restype = ctypes.c_char_p
    if library.fd_abi() != ABI:
        raise ImportError(f"{path} has ABI {library.fd_abi()}, this version needs {ABI}: install fastdreamer again")
    return library


library = _load()
isa = "" if library is None else os.environ.get("FASTDREAMER_ISA") or library.fd_isa().decode()


def call(op: str, *args: Argument) -> None:
    """Runs an op on as many threads as torch uses. Tensors go as pointers: contiguous, on the CPU, of its dtypes."""
    assert library is not None, "the native library is not built"
    library.fd_set_threads(torch.get_num_threads())
    getattr(library, f"fd_{op}_{isa}")(*map(_convert, args))


def _convert(value: Argument) -> object:
    match value:
        case None:
            return ctypes.c_void_p()
        case Tensor():
            return ctypes.c_void_p(_address(value))
        case bool() | int():
            return ctypes.c_int64(value)
        case float():
            return ctypes.c_float(value)
    addresses = [_address(each) for each in value if isinstance(each, Tensor)]
    if addresses:
        return (ctypes.c_void_p * len(addresses))(*addresses)
    numbers = [each for each in value if isinstance(each, int)]
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _address(tensor: Tensor) -> int:
    assert tensor.is_contiguous() and tensor.is_cpu, "a native op takes contiguous CPU tensors"
    return tensor.data_ptr()


def widths(weights: Sequence[Tensor]) -> list[int]:
    """Inputs and outputs along a stack of layers: kernel, bias, scale of each, and maybe kernel, bias of an output."""
    kernels = weights[0::3]
    return [kernels[0].shape[0], *(kernel.shape[1] for kernel in kernels)]
