"""The optimizer beside the arrays: what a skipped update leaves, copies in bfloat16, what the reference computes."""

import math

import pytest
import torch
from formulas import normal
from kernel_checks import CPU, bytes_of
from torch import Tensor, nn

from fastdreamer.optim import LaProp
from fastdreamer_kernels import laprop_agc

SHAPES = {"a/kernel": (3, 5), "a/bias": (5,), "b/kernel": (4, 3, 2, 2), "b/scale": (1,)}
WARMUP = 4


def make(weight_decay: float = 0.0, shadows: bool = False, device: str = "cpu") -> LaProp:
    params = {name: nn.Parameter(normal(i, *shape).to(device)) for i, (name, shape) in enumerate(SHAPES.items())}
    with torch.no_grad():
        params["a/kernel"][0, :2] = -0.0
    slow = {"b/kernel": params["b/kernel"].detach() + 1}
    shadow = [param.detach().bfloat16() for param in params.values()] if shadows else []
    return LaProp(params, 0.1, WARMUP, 0.3, slow, weight_decay, shadow)


def step(optimizer: LaProp, t: int, value: float | None = None) -> dict[str, Tensor]:
    """The update number t, with a value in the last element of a gradient."""
    for i, param in enumerate(optimizer.params):
        param.grad = normal(10 * t + i, *param.shape).to(param.device)
    if value is not None:
        optimizer.params[2].grad.view(-1)[-1] = value
    return optimizer.step()


def all_bytes(optimizer: LaProp) -> list[bytes]:
    tensors = *optimizer.params, *optimizer.nu, *optimizer.mu, *optimizer.shadow, *optimizer._slow
    return bytes_of((*tensors, optimizer.step_count.view(1)))


@pytest.mark.parametrize("value", [math.nan, math.inf, 2e19])
@pytest.mark.parametrize("weight_decay, shadows", [(0.0, True), (0.1, False)])
@pytest.mark.parametrize("backend", CPU)
def test_a_skipped_update_leaves_no_trace(
    backend: str, weight_decay: float, shadows: bool, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTDREAMER_KERNELS", backend)
    ours, theirs = make(weight_decay, shadows), make(weight_decay, shadows)
    count = ours.step_count
    for t in range(1, 4):
        before, rate = all_bytes(ours), ours.learning_rate()
        skipped = step(ours, 50 + t, value)
        assert all_bytes(ours) == before and torch.equal(ours.learning_rate(), rate)
        assert skipped["opt/skipped"] == 1 and skipped["opt/update_rms"] == 0
        assert not skipped["opt/grad_norm"].isfinite() and skipped["opt/param_rms"].isfinite()
        assert all(param.grad is None for param in ours.params)
        metrics, expected = step(ours, t), step(theirs, t)
        assert metrics == expected and metrics["opt/skipped"] == 0
        assert all_bytes(ours) == all_bytes(theirs)
        assert ours.step_count is count and count == t and torch.equal(ours.learning_rate(), theirs.learning_rate())
    for each in (skipped, metrics):
        assert each["opt/skipped"].shape == () and each["opt/skipped"].dtype == torch.float32


def test_a_skipped_update_decays_no_parameter_that_is_not_finite() -> None:
    optimizer = make(weight_decay=0.1)
    with torch.no_grad():
        optimizer.params[0][1] = math.inf
    step(optimizer, 1, math.nan)
    assert (optimizer.params[0][1] == math.inf).all()


@pytest.mark.parametrize("backend", CPU)
def test_copies_in_bfloat16_follow_their_parameters(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDREAMER_KERNELS", backend)
    optimizer = make(shadows=True)
    for half in optimizer.shadow:
        half.fill_(math.nan)
    for t in range(1, 4):
        step(optimizer, t)
        for half, param in zip(optimizer.shadow, optimizer.params, strict=True):
            torch.testing.assert_close(half.float(), param.detach(), rtol=2**-7, atol=0)  # the interpreter cuts off


def test_copies_in_bfloat16_are_not_decayed() -> None:
    with pytest.raises(AssertionError, match="before the decay"):
        make(weight_decay=0.1, shadows=True)


def unconditional(
    params: list[Tensor], grads: list[Tensor], nu: list[Tensor], mu: list[Tensor], shadow: list[Tensor],
    slow: list[Tensor], slow_index: list[int], step: Tensor, lr: Tensor, agc: float,
) -> Tensor:  # fmt: skip
    """The reference as it was before it skipped any update."""
    norms = torch.stack(torch._foreach_norm(grads))
    clipped: list[Tensor] | tuple[Tensor, ...] = grads
    if agc:
        limit = agc * torch.stack(torch._foreach_norm(params)).clamp(min=1e-3)
        clipped = torch._foreach_div(grads, (norms / limit).clamp(min=1.0).unbind())
    correction, factor = 1 - 0.999**step, -lr / (1 - 0.9**step)
    torch._foreach_lerp_(nu, torch._foreach_mul(clipped, clipped), 1 - 0.999)
    scale = torch._foreach_div(nu, correction)
    torch._foreach_sqrt_(scale)
    torch._foreach_add_(scale, 1e-20)
    torch._foreach_lerp_(mu, torch._foreach_div(clipped, scale), 1 - 0.9)
    updates = torch._foreach_mul(mu, factor)
    torch._foreach_add_(params, updates)
    if shadow:
        torch._foreach_copy_(shadow, params)
    if slow:
        torch._foreach_lerp_(slow, [params[i] for i in slow_index], 0.02)
    of_updates, of_params = (torch.stack(torch._foreach_norm(x)) for x in (updates, params))
    return torch.stack([x.square().sum() for x in (norms, of_updates, of_params)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("agc", [0.0, 0.3])
@pytest.mark.parametrize("shadows, slow_index", [(False, []), (True, [0, 2])])
def test_the_reference_is_bit_equal_to_one_that_never_skips(
    shadows: bool, slow_index: list[int], agc: float, dtype: torch.dtype
) -> None:
    def tensors(offset: int) -> list[Tensor]:
        made = [normal(10 * offset + i, *shape).to(dtype) for i, shape in enumerate(SHAPES.values())]
        return [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in made]

    def state() -> tuple[list[Tensor], ...]:
        params, slow = tensors(0), [tensors(3)[i] for i in slow_index]
        halves = [x.bfloat16() for x in params] if shadows else []
        return params, [x.square() for x in tensors(1)], tensors(2), halves, slow

    ours, theirs = state(), state()
    for t in range(1, 4):
        grads = [x.contiguous() * (1e-3 if i % 2 else 10.0) for i, x in enumerate(tensors(3 + t))]
        at = torch.tensor(float(t)), torch.tensor(0.01)
        with torch.no_grad():
            expected = unconditional(theirs[0], grads, *theirs[1:], slow_index, *at, agc)
        stats = laprop_agc(ours[0], grads, *ours[1:], slow_index, *at, agc, backend="reference")
        assert torch.equal(stats, expected)
        for kind, other in zip(ours, theirs, strict=True):
            assert bytes_of(tuple(kind)) == bytes_of(tuple(other))
