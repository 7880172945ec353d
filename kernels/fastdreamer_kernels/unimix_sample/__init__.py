"""`unimix_sample`: one class per group from p = (1 - unimix) softmax(logits) + unimix / K, by inverse CDF.

The class is the number of k < K - 1 with cdf_k <= uniform. The one-hot carries the gradient of p (straight-through):
its forward value is exactly 0 or 1, its derivative that of p.
"""

from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.unimix_sample import reference

_dispatch.define("unimix_sample", reference=reference.unimix_sample)


def unimix_sample(logits: Tensor, uniform: Tensor, unimix: float, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Class indices (..., S) int32 and their differentiable one-hot (..., S, K) in the dtype of the logits.

    logits (..., S, K), uniform (..., S) float32 in [0, 1), unimix in [0, 1]: the share of the uniform distribution.
    Raises ValueError if the shapes do not fit or unimix is out of range. Source: SPEC 2.6.
    """
    if logits.shape[:-1] != uniform.shape:
        raise ValueError(f"unimix_sample: uniform must be {tuple(logits.shape[:-1])}, got {tuple(uniform.shape)}")
    if not 0 <= unimix <= 1:
        raise ValueError(f"unimix_sample: unimix must be in [0, 1], got {unimix}")
    run = _dispatch.implementation("unimix_sample", reference.unimix_sample, backend)
    return run(logits, uniform, unimix)
