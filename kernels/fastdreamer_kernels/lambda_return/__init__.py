"""`lambda_return`: R_t = r_{t+1} + c_{t+1} [(1 - lam_{t+1}) v_{t+1} + lam_{t+1} R_{t+1}], scanned backward."""

import torch
from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.lambda_return import reference

_dispatch.define("lambda_return", "native", "triton", of_any_dtype=True)


@torch.no_grad()
def lambda_return(reward: Tensor, cont: Tensor, value: Tensor, lam: Tensor, backend: str | None = None) -> Tensor:
    """Lambda-returns, scanned backward; bootstraps from value[:, -1].

    Every tensor is (B, T) float32. `cont`: the predicted continue in imagination, discount already inside;
    (1 - is_terminal)(1 - 1/333) in replay. `lam` is per step: 0 where an episode was cut. Returns (B, T - 1)
    without gradient: the targets are constants of the losses. Source: SPEC 1.6 and 1.7. Raises ValueError if
    the shapes differ or the dtypes are not float32.
    """
    if not reward.shape == cont.shape == value.shape == lam.shape:
        shapes = [tuple(x.shape) for x in (reward, cont, value, lam)]
        raise ValueError(f"lambda_return: reward, cont, value, lam must share one shape, got {shapes}")
    if reward.ndim != 2 or reward.shape[1] < 2:
        raise ValueError(f"lambda_return: tensors must be (B, T) with T at least 2, got {tuple(reward.shape)}")
    dtypes = [x.dtype for x in (reward, cont, value, lam)]
    if set(dtypes) != {torch.float32}:
        raise ValueError(f"lambda_return: reward, cont, value, lam must be float32, got {dtypes}")
    chosen = _dispatch.choose("lambda_return", reward, backend)
    if chosen == "reference":
        return reference.lambda_return(reward, cont, value, lam)
    return _dispatch.kernel("lambda_return", chosen)(*(x.contiguous() for x in (reward, cont, value, lam)))


def _fake(reward: Tensor, cont: Tensor, value: Tensor, lam: Tensor) -> Tensor:
    return reward.new_empty(reward.shape[0], reward.shape[1] - 1)


_dispatch.register(
    "lambda_return", "lambda_return(Tensor reward, Tensor cont, Tensor value, Tensor lam) -> Tensor", _fake
)
