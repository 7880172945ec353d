"""`replay_gather` on the native library: bytes of any dtype on the CPU."""

from torch import Tensor

from fastdreamer_kernels import _native


def replay_gather(ring: Tensor, env: Tensor, start: Tensor, length: int, out: Tensor) -> None:
    row_bytes = ring.shape[2:].numel() * ring.element_size()
    _native.call("replay_gather", ring.shape[1], row_bytes, len(env), length, ring, env, start, out)
