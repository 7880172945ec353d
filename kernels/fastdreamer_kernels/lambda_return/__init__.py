"""`lambda_return`: R_t = r_{t+1} + c_{t+1} [(1 - lam_{t+1}) v_{t+1} + lam_{t+1} R_{t+1}], scanned backward."""

from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.lambda_return import reference

_dispatch.define("lambda_return", reference=reference.lambda_return)


def lambda_return(reward: Tensor, cont: Tensor, value: Tensor, lam: Tensor, backend: str | None = None) -> Tensor:
    """Lambda-returns, scanned backward; bootstraps from value[:, -1].

    Every tensor is (B, T) float32. `cont`: the predicted continue in imagination, discount already inside;
    (1 - is_terminal)(1 - 1/333) in replay. `lam` is per step: 0 where an episode was cut. Returns (B, T - 1)
    without gradient: the targets are constants of the losses. Source: SPEC 1.6 and 1.7. Raises ValueError if
    the shapes differ.
    """
    if not reward.shape == cont.shape == value.shape == lam.shape:
        shapes = [tuple(x.shape) for x in (reward, cont, value, lam)]
        raise ValueError(f"lambda_return: reward, cont, value, lam must share one shape, got {shapes}")
    if reward.ndim != 2 or reward.shape[1] < 2:
        raise ValueError(f"lambda_return: tensors must be (B, T) with T at least 2, got {tuple(reward.shape)}")
    run = _dispatch.implementation("lambda_return", reference.lambda_return, backend)
    return run(reward, cont, value, lam)
