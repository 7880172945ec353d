"""The one place that picks a backend.

Every op names its implementations here once, at import. A call runs the backend that it names, else the one that
`FASTDREAMER_KERNELS` names, else the fastest that is present (the order of `BACKENDS`). Nothing looks at
`tensor.device`.
"""

import os
from collections.abc import Callable
from typing import Literal, ParamSpec, TypeVar

Backend = Literal["reference"]
BACKENDS: tuple[Backend, ...] = ("reference",)

P = ParamSpec("P")
R = TypeVar("R")

_table: dict[str, dict[str, Callable[..., object]]] = {}


def define(op: str, reference: Callable[P, R]) -> None:
    """Names the implementations of one op; `reference` is its specification in plain PyTorch."""
    assert op not in _table, op
    _table[op] = {"reference": reference}


def choose(op: str, backend: str | None = None) -> str:
    """The backend that `op` runs on. Raises ValueError for a backend that does not exist or that the op lacks."""
    named = backend or os.environ.get("FASTDREAMER_KERNELS") or None
    present = _table[op]
    if named is None:
        return next(name for name in BACKENDS if name in present)
    if named not in present:
        raise ValueError(f"kernels: backend of {op} must be one of {', '.join(present)}, got {named!r}")
    return named


def implementation(op: str, like: Callable[P, R], backend: str | None = None) -> Callable[P, R]:
    """The function to call for `op`; it has the signature of its reference `like`."""
    return _table[op][choose(op, backend)]  # type: ignore[return-value]  # the table holds every signature


def report() -> str:
    """One line for the start-up log: which backend each op runs on."""
    return "kernels: " + ", ".join(f"{op} {choose(op)}" for op in _table)
