"""`laprop_agc`: one optimizer update of all parameters, with the moving average of the critic.

Per tensor, with step t = 1, 2, ...:

    g  <- g / max(1, |g| / (agc max(1e-3, |theta|)))
    nu <- 0.999 nu + 0.001 g^2 ;    u = g / (sqrt(nu / (1 - 0.999^t)) + 1e-20)
    mu <- 0.9 mu + 0.1 u ;          theta <- theta - lr mu / (1 - 0.9^t)
    slow <- 0.98 slow + 0.02 theta

If the sum of squares of all gradients is not finite, since one of them is inf or NaN or since it overflows float32,
nothing changes: params, nu, mu, shadow and slow keep their bits. The update is skipped, which the device decides.

Nothing here may flush denormals: with eps 1e-20 a tiny gradient whose square vanishes would become a huge update.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdreamer_kernels import _dispatch
from fastdreamer_kernels.laprop_agc import reference

_dispatch.define("laprop_agc", "native", "triton", of_any_dtype=True)


@torch.no_grad()
def laprop_agc(
    params: list[Tensor], grads: list[Tensor], nu: list[Tensor], mu: list[Tensor], shadow: list[Tensor],
    slow: list[Tensor], slow_index: list[int], step: Tensor, lr: Tensor, agc: float, backend: str | None = None,
) -> Tensor:  # fmt: skip
    """Updates params, nu, mu, shadow and slow in place. Returns sums of squares over all tensors.

    params, grads, nu, mu: float32 (the reference takes float64 too), one of each per parameter; nu, mu, shadow and slow
    laid out in memory as their parameter. shadow: bfloat16 copies of all parameters, or none. slow: moving averages of
    the parameters numbered slow_index, ascending. step: the number of this update, counted from 1, and lr: its learning
    rate, both 0-d float32.
    agc: the largest |gradient| / |parameter| per tensor, 0 for no clipping.

    Returns (3,) float32: of the gradients before clipping, the updates, the new parameters. The first is not finite
    exactly where the update was skipped; the second is 0 then, the third that of the unchanged parameters.
    Raises ValueError if the lists do not fit together. Source: SPEC 1.9.
    """
    if not params or not agc >= 0:
        raise ValueError(f"laprop_agc takes one parameter or more and agc from 0 on, got {len(params)} and {agc}")
    dtype = torch.float64 if params[0].dtype == torch.float64 else torch.float32
    _check("params", params, dtype, params)
    for name, tensors in (("grads", grads), ("nu", nu), ("mu", mu)):
        _check(name, tensors, dtype, params)
    if shadow:
        _check("shadow", shadow, torch.bfloat16, params)
    if list(slow_index) != sorted(set(slow_index)) or not all(0 <= i < len(params) for i in slow_index):
        raise ValueError(f"laprop_agc: slow_index must ascend in [0, {len(params)}), got {slow_index}")
    _check("slow", slow, dtype, [params[i] for i in slow_index])
    for name, scalar in (("step", step), ("lr", lr)):
        if scalar.shape != () or scalar.dtype != torch.float32:
            raise ValueError(f"laprop_agc: {name} must be 0-d float32, got {tuple(scalar.shape)} {scalar.dtype}")
    wide = dtype == torch.float64
    chosen = "reference" if wide else _dispatch.choose("laprop_agc", params[0], backend)
    run = reference.laprop_agc if chosen == "reference" else _dispatch.kernel("laprop_agc", chosen)
    return run(params, grads, nu, mu, shadow, slow, slow_index, step, lr, agc)


def _check(name: str, tensors: Sequence[Tensor], dtype: torch.dtype, params: Sequence[Tensor]) -> None:
    if len(tensors) != len(params):
        raise ValueError(f"laprop_agc: {name} must be {len(params)} tensors, got {len(tensors)}")
    for i, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
        if tensor.shape != param.shape or tensor.dtype != dtype:
            got = f"{tuple(tensor.shape)} {tensor.dtype}"
            raise ValueError(f"laprop_agc: {name}[{i}] must be {tuple(param.shape)} {dtype}, got {got}")


def _fake(params: list[Tensor], *rest: object) -> Tensor:
    return params[0].new_empty(3)


_dispatch.register(
    "laprop_agc",
    "laprop_agc(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] nu, Tensor(c!)[] mu, Tensor(d!)[] shadow,"
    " Tensor(e!)[] slow, int[] slow_index, Tensor step, Tensor lr, float agc) -> Tensor",
    _fake,
)
