"""`philox` on the native library."""

import torch
from torch import Tensor

from fastdreamer_kernels import _native

KINDS = {"bits": 0, "uniform": 1, "normal": 2}


def philox(kind: str, key: list[int], counter: Tensor, count: int) -> Tensor:
    out = torch.empty(count, dtype=torch.int64 if kind == "bits" else torch.float32)
    _native.call("philox", KINDS[kind], *key, counter, count, out)
    return out
