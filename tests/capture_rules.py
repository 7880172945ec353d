"""What a CUDA graph cannot hold, told without a GPU: rules for every torch op that runs, on meta tensors.

A graph replays kernels with the arguments and addresses of its capture. So while it is captured nothing may read a
value back to the host or choose a shape by one, nothing may come from ordinary host memory, and no number or address in
it may be meant to change.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from triton.runtime.interpreter import GridExecutor

from fastdreamer_kernels._dispatch import backends
from fastdreamer_kernels.laprop_agc import cuda as laprop_agc

aten = torch.ops.aten
READS_BACK = {"_local_scalar_dense", "is_nonzero", "equal", "item"}
SHAPED_BY_VALUES = {
    "nonzero", "nonzero_numpy", "masked_select", "unique_consecutive", "_unique", "_unique2", "unique_dim", "bincount",
}  # fmt: skip
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Uncapturable(AssertionError):
    """An op that a CUDA graph cannot hold."""


def name_of(func: Any) -> str:
    return str(func._schema.name).split("::")[1]


def check(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: str) -> None:
    """Raises Uncapturable for an op on `device` that cannot be captured."""
    name, leaves = name_of(func), tree_flatten((args, kwargs))[0]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if name in READS_BACK:
        raise Uncapturable(f"{name} reads a value back to the host")
    if name in SHAPED_BY_VALUES or (name == "repeat_interleave" and len(tensors) > (args[0] is not args[-1])):
        raise Uncapturable(f"the shape of {name} depends on values")
    masked = name in INDEXED and any(leaf is not None and leaf.dtype in (torch.bool, torch.uint8) for leaf in args[1])
    if masked:
        raise Uncapturable(f"{name} with a boolean mask: its shape depends on values")
    target = kwargs.get("device")
    if target is not None and torch.device(target).type != device:
        raise Uncapturable(f"{name} goes to {target}")
    if away := [tensor for tensor in tensors if tensor.device.type != device]:
        raise Uncapturable(f"{name} takes a tensor of {tuple(away[0].shape)} on {away[0].device}")


class CaptureRules(TorchDispatchMode):
    """Refuses what cannot be captured, and writes down every op with its constants and the shapes of its tensors.

    In place of the fake of a Triton op its own host code runs, under the same rules; `launches` holds the names of the
    kernels that it would launch.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device, self.trace, self.launches = device, list[str](), list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "fastdreamer_triton":
            host = wrapper(name_of(func))
            with self:
                return host(*args, **kwargs)
        check(func, args, kwargs, self.device)
        self.trace.append(f"{func} {tree_map(_describe, (args, kwargs))}")
        return func(*args, **kwargs)


@contextmanager
def captured(device: str = "meta") -> Iterator[CaptureRules]:
    """Everything inside obeys the rules; Triton kernels are counted instead of run."""
    rules = CaptureRules(device)

    def count(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
        rules.launches.append(executor.fn.__name__)
        rules.trace.append(f"{executor.fn.__name__}{executor.grid} {tree_map(_describe, (args, kwargs))}")

    def pinned(table: Sequence[Sequence[int]], device: torch.device) -> Tensor:
        return torch.empty((len(table), len(table[0])), dtype=torch.int64, device=device)

    def refuse(*_: object, **__: object) -> None:
        raise Uncapturable("a tensor of host values: pageable memory is copied")  # to meta that is no op of torch

    with pytest.MonkeyPatch.context() as patched, rules:
        patched.setattr(GridExecutor, "__call__", count)
        patched.setattr(laprop_agc, "_upload", pinned)
        for maker in ("tensor", "as_tensor", "from_numpy"):
            patched.setattr(torch, maker, refuse)
        yield rules


@cache
def wrapper(name: str) -> Callable[..., Any]:
    """The host code of a Triton op."""
    modules = [import_module(f"fastdreamer_kernels.{op}.cuda") for op, names in backends().items() if "triton" in names]
    (module,) = [each for each in modules if getattr(vars(each).get(name), "__module__", None) == each.__name__]
    host: Callable[..., Any] = getattr(module, name)
    return host


def _describe(value: Any) -> Any:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, Tensor) else value


class Addresses(TorchDispatchMode):
    """The addresses of the memory that ops use and that was not made by ops since this mode was entered."""

    def __init__(self) -> None:
        super().__init__()
        self.outside, self._made, self._alive = set[int](), set[int](), list[Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.outside |= set(_addresses((args, kwargs))) - self._made
        result = func(*args, **(kwargs or {}))
        self._made |= set(_addresses(result)) - self.outside
        self._alive += [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, Tensor)]  # or it would be reused
        return result


def _addresses(values: Any) -> Iterator[int]:
    for leaf in tree_flatten(values)[0]:
        if isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes():
            yield leaf.untyped_storage().data_ptr()
