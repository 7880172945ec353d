"""`philox`: random numbers by Philox4x32-10, a function of key, counter and place, the same on every device.

Element i of a call is word i % 4 of block i // 4, whose counter words are (block, counter low, counter high, 0): what
`tl.philox` gives for them. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.philox import reference

Kind = Literal["bits", "uniform", "normal"]

_dispatch.define("philox", "native", "triton", of_any_dtype=True)


def philox(kind: Kind, key: tuple[int, int], counter: Tensor, count: int, backend: str | None = None) -> Tensor:
    """(count,) numbers for a key of two 32-bit words and a counter () int64, on the device of the counter.

    bits     int64: 32-bit words
    uniform  float32: multiples of 2**-24 in [0, 1)
    normal   float32: standard normal, by Box-Muller on 32-bit words; at most 6.8 in magnitude. Computed in float64 and
             rounded once, so that devices with other math libraries agree

    Nothing here waits for the device. Raises ValueError for a kind, key, counter or count that is none.
    """
    if kind not in get_args(Kind) or len(key) != 2 or not all(0 <= word < 1 << 32 for word in key) or count < 0:
        allowed = f"one of {', '.join(get_args(Kind))}, two words in 0..{(1 << 32) - 1} and 0 or more"
        raise ValueError(f"philox: kind, key and count must be {allowed}, got {kind!r}, {key} and {count}")
    if counter.shape != ():
        raise ValueError(f"philox: counter must be 0-d, got {tuple(counter.shape)}")
    _dispatch.check_dtypes("philox", counter=(counter, torch.int64))
    chosen = _dispatch.choose("philox", counter, backend)
    if chosen == "reference":
        return reference.philox(kind, key, counter, count)
    return _dispatch.kernel("philox", chosen)(kind, list(key), counter, count)


def _fake(kind: str, key: list[int], counter: Tensor, count: int) -> Tensor:
    return counter.new_empty(count, dtype=torch.int64 if kind == "bits" else torch.float32)


_dispatch.register("philox", "philox(str kind, int[] key, Tensor counter, int count) -> Tensor", _fake)
