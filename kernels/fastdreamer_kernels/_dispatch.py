"""The one place that picks a backend.

    reference   plain PyTorch, everywhere: the specification of the op
    native      C++ on the CPU, float32, where the library was built
    triton      Triton on CUDA; on the CPU too under TRITON_INTERPRET=1, for tests. Meta tensors stand in for CUDA's

A call runs the backend that it names, else the one that `FASTDREAMER_KERNELS` names where the op has it for its device
and dtype, else the fastest that it has there: a run on a GPU draws some of its noise on the CPU, where Triton is none.
`report` says what runs where, and refuses a name that nothing runs on. Kernels are registered with `torch.library`, one
namespace per backend, as pure functions of tensors with a fake and, where the op is differentiable, a hand-written
backward; so they compile and can be captured.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal, NamedTuple

import torch

from fastdreamer_kernels import _native

Backend = Literal["reference", "native", "triton"]
KERNELS: dict[Backend, str] = {"native": "native", "triton": "cuda"}
"""Backend -> the module in an op's folder that holds its functions."""
GPU = ("cuda", "meta")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_libraries = {backend: torch.library.Library(f"fastdreamer_{backend}", "DEF") for backend in KERNELS}
_backends: dict[str, tuple[Backend, ...]] = {}
_of_any_dtype: set[str] = set()


class Gradient(NamedTuple):
    """How an op is differentiated: what to keep of inputs and output, and the gradients of the inputs.

    backward(ctx, *grads) calls the op's own backward kernel, on the backend that `ctx.backend` names.
    """

    setup: Callable[..., None]
    backward: Callable[..., Any]


def define(op: str, *backends: Backend, of_any_dtype: bool = False) -> None:
    """Names the backends of an op beside its reference, the fastest first.

    of_any_dtype: its tensors do not follow the dtype that the networks compute in.
    """
    assert op not in _backends, op
    _backends[op] = (*backends, "reference")
    if of_any_dtype:
        _of_any_dtype.add(op)


def register(
    folder: str, schema: str, fake: Callable[..., Any], gradient: Gradient | None = None,
    backends: Sequence[Backend] = ("native", "triton"),
) -> None:  # fmt: skip
    """Registers a kernel, `name(arguments) -> results` in torch's schema language, for each of `backends`.

    The function of that name in `folder`'s module of the backend implements it; the module is imported at its first
    call, so that Triton is needed only where it runs.
    """
    name = schema.partition("(")[0]
    for backend in backends:
        library = _libraries[backend]
        library.define(schema)
        run = lazily(folder, backend, name)
        for device in ("CPU",) if backend == "native" else ("CUDA", "CPU") if INTERPRETED else ("CUDA",):
            library.impl(name, run, device)
        torch.library.register_fake(f"fastdreamer_{backend}::{name}", fake, lib=library)
        if gradient is not None:
            torch.library.register_autograd(
                f"fastdreamer_{backend}::{name}", gradient.backward,
                setup_context=_naming(gradient.setup, backend), lib=library,
            )  # fmt: skip


def lazily(folder: str, backend: Backend, name: str) -> Callable[..., Any]:
    """The function `name` in the backend's module of an op's folder, imported at its first call."""
    module = f"fastdreamer_kernels.{folder}.{KERNELS[backend]}"
    return lambda *args: getattr(import_module(module), name)(*args)


def _naming(setup: Callable[..., None], backend: Backend) -> Callable[..., None]:
    def named(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.backend = backend
        setup(ctx, inputs, output)

    return named


def kernel(name: str, backend: str) -> Callable[..., Any]:
    """A registered kernel of a backend."""
    return getattr(getattr(torch.ops, f"fastdreamer_{backend}"), name).default


def backends() -> dict[str, tuple[Backend, ...]]:
    """The backends of every op, the fastest first."""
    return dict(_backends)


def choose(op: str, like: torch.Tensor, backend: str | None = None) -> str:
    """The backend that `op` runs on for a tensor like this. Raises ValueError for one that cannot run there."""
    return _choose(op, like.device.type, like.dtype, backend)


def _choose(op: str, device: str, dtype: torch.dtype, backend: str | None = None) -> str:
    computed = torch.float32 if op in _of_any_dtype else dtype
    able = [each for each in _backends[op] if _can_run(each, device, computed)]
    wanted = backend or os.environ.get("FASTDREAMER_KERNELS") or None
    if wanted in able:
        return wanted
    if backend is None and (wanted is None or wanted in KERNELS):
        return next(each for each in able if each != "triton" or device in GPU)
    where = f"{op} on {device} in {str(dtype).removeprefix('torch.')}"
    raise ValueError(f"kernels: backend of {where} must be one of {', '.join(able)}, got {wanted!r}")


def _can_run(backend: Backend, device: str, dtype: torch.dtype) -> bool:
    match backend:
        case "native":
            return device == "cpu" and dtype == torch.float32 and _native.library is not None
        case "triton":
            return device in GPU or (device == "cpu" and INTERPRETED)
        case "reference":
            return True


@contextmanager
def forced(backend: Backend) -> Iterator[None]:
    """`FASTDREAMER_KERNELS` as a block of code: the reference is plain PyTorch, which exporters can follow."""
    before = os.environ.get("FASTDREAMER_KERNELS")
    os.environ["FASTDREAMER_KERNELS"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["FASTDREAMER_KERNELS"]
        else:
            os.environ["FASTDREAMER_KERNELS"] = before


def check_dtypes(op: str, **tensors: tuple[torch.Tensor, torch.dtype]) -> None:
    """Raises ValueError for a tensor that has not the dtype beside it: kernels read memory as it is."""
    for name, (tensor, dtype) in tensors.items():
        if tensor.dtype != dtype:
            raise ValueError(f"{op}: {name} must be {dtype}, got {tensor.dtype}")


def report(device: torch.device, dtype: torch.dtype) -> str:
    """One line for the start-up log: which backend each op runs on for tensors of this device and dtype.

    Raises ValueError where `FASTDREAMER_KERNELS` names one that none runs on.
    """
    wanted = os.environ.get("FASTDREAMER_KERNELS")
    some = sorted({each for able in _backends.values() for each in able if _can_run(each, device.type, dtype)})
    if wanted and wanted not in some:
        raise ValueError(f"FASTDREAMER_KERNELS must be one of {', '.join(some)} on {device.type}, got {wanted!r}")
    chosen: dict[str, list[str]] = {}
    for op in _backends:
        chosen.setdefault(_choose(op, device.type, dtype), []).append(op)
    said = {backend: f"{backend} ({_native.isa})" if backend == "native" else backend for backend in chosen}
    most = max(chosen, key=lambda backend: len(chosen[backend]))
    parts = [said[most], *(f"{said[each]} for {', '.join(ops)}" for each, ops in chosen.items() if each != most)]
    missing = "" if device.type != "cpu" or _native.library is not None else "; the native library was not built"
    return f"kernels: {'; '.join(parts)}{missing}"
