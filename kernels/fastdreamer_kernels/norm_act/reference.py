"""RMSNorm and SiLU in plain PyTorch. Source: SPEC 2.1."""

from torch import Tensor

from fastdreamer_kernels import functional


def norm_act(x: Tensor, scale: Tensor) -> Tensor:
    return functional.norm_act(x, scale)
