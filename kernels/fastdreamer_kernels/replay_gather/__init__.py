"""`replay_gather`: windows of successive records out of the replay ring, as plain copies of rows.

Record number r of an environment lies in row r % rows of its part of the ring, so a window may wrap around once.
"""

import torch
from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.replay_gather import reference

_dispatch.define("replay_gather", "native", "triton", of_any_dtype=True)


def replay_gather(
    ring: Tensor, env: Tensor, start: Tensor, length: int, out: Tensor, backend: str | None = None
) -> None:
    """Copies B windows of `length` records: out[b, t] = ring[env[b], (start[b] + t) % rows].

    ring (N, rows, ...) and out (B, length, ...) share any dtype and are contiguous; env (B,) and start (B,) int64, env
    in 0..N-1, start a record number from 0 on, length at most rows. Raises ValueError if something does not fit; what
    env and start hold is looked at on the CPU only. Source: SPEC 1.2.
    """
    batch = env.shape[0] if env.ndim else 0
    if ring.ndim < 2 or not 1 <= length <= ring.shape[1]:
        shape = tuple(ring.shape)
        raise ValueError(f"replay_gather: ring must be (N, rows, ...) and length in 1..rows, got {shape} and {length}")
    if not env.shape == start.shape == (batch,) or not env.dtype == start.dtype == torch.int64:
        got = f"{tuple(env.shape)} {env.dtype}, {tuple(start.shape)} {start.dtype}"
        raise ValueError(f"replay_gather: env and start must be (B,) int64, got {got}")
    expected = (batch, length, *ring.shape[2:])
    if out.shape != expected or out.dtype != ring.dtype:
        got = f"{tuple(out.shape)} {out.dtype}"
        raise ValueError(f"replay_gather: out must be {expected} {ring.dtype}, got {got}")
    if not ring.is_contiguous() or not out.is_contiguous():
        raise ValueError("replay_gather: ring and out must be contiguous")
    if ring.device.type == "cpu" and batch:
        _check_range("env", env, ring.shape[0])
        _check_range("start", start)
    chosen = _dispatch.choose("replay_gather", ring, backend)
    run = reference.replay_gather if chosen == "reference" else _dispatch.kernel("replay_gather", chosen)
    run(ring, env.contiguous(), start.contiguous(), length, out)


def _check_range(name: str, index: Tensor, end: int | None = None) -> None:
    low, high = (int(value) for value in index.aminmax())
    if low < 0 or (end is not None and high >= end):
        raise ValueError(f"replay_gather: {name} must be in [0, {'inf' if end is None else end}), got {low}..{high}")


def _fake(ring: Tensor, env: Tensor, start: Tensor, length: int, out: Tensor) -> None:
    return None


_dispatch.register(
    "replay_gather", "replay_gather(Tensor ring, Tensor env, Tensor start, int length, Tensor(a!) out) -> ()", _fake
)
