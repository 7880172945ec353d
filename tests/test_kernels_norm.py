"""`norm_act`, and `mlp` made of it: values and gradients against float64, on every backend."""

from importlib import import_module

import pytest
import torch
from formulas import normal
from kernel_checks import BACKENDS, assert_near, needs_interpreter
from torch import Tensor

from fastdreamer_kernels import _dispatch, mlp, norm_act
from fastdreamer_kernels.functional import Layer, Projection

ON = [each for each in BACKENDS if each.values[0] != "native"]
# One element, ragged rows and columns, several tiles in one program and several programs, wide rows.
SHAPES = [(1, 1), (5, 3), (2, 3, 40), (300, 17), (7, 1500), (3, 4, 5, 64)]


def formula(x: Tensor, scale: Tensor) -> Tensor:
    y = x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt() * scale
    return y * torch.sigmoid(y)


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("backend, device", ON)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(
    backend: str, device: str, shape: tuple[int, ...], poisoned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "triton":  # so that a program has several tiles, and not the same number as the next one
        kernels = import_module("fastdreamer_kernels.norm_act.cuda")
        monkeypatch.setattr(kernels, "PROGRAMS", 2)
        monkeypatch.setattr(kernels, "TILE", 64)
    inputs = normal(1, *shape) * 3, 1 + 0.5 * normal(2, shape[-1])
    weight = normal(3, *shape)
    x, scale = leaves(*(tensor.to(device) for tensor in inputs))
    out = norm_act(x, scale, backend=backend)
    grads = torch.autograd.grad(out, [x, scale], weight.to(device))
    wide = leaves(*(tensor.double() for tensor in inputs))
    expected = formula(*wide)
    assert_near(out.detach().cpu(), expected.detach())
    for actual, value in zip(grads, torch.autograd.grad(expected, wide, weight.double()), strict=True):
        assert_near(actual.cpu(), value, absolute=1e-5)


@pytest.mark.parametrize("backend, device", ON)
def test_in_bfloat16_what_is_normed_is_rounded_before_the_activation(backend: str, device: str) -> None:
    x, scale, weight = normal(1, 33, 48).bfloat16(), 1 + 0.5 * normal(2, 48), normal(3, 33, 48).bfloat16()
    ours = leaves(x.to(device), scale.to(device))
    out = norm_act(*ours, backend=backend)
    grads = torch.autograd.grad(out, ours, weight.to(device))
    assert (out.dtype, grads[0].dtype, grads[1].dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    wide = leaves(x.double(), scale.double())
    expected = formula(*wide)
    # The interpreter cuts off where a GPU rounds, here twice: twice the error of one cut, 2^-7.
    twice = 2**-7 * expected.abs().max().item() if (backend, device) == ("triton", "cpu") else 0.0
    assert_near(out.detach().cpu(), expected.detach(), absolute=twice)
    for actual, value in zip(grads, torch.autograd.grad(expected, wide, weight.double()), strict=True):
        error = (actual.cpu().double() - value).abs().max() / value.abs().max()
        assert error < 2**-6


@pytest.mark.parametrize("backend, device", ON)
@pytest.mark.parametrize("stoch", [0, 3])
def test_a_stack_of_layers(backend: str, device: str, stoch: int) -> None:
    classes, width = 4, 10 + 4 * stoch
    layers = []
    for inputs, units in ((width, 9), (9, 12)):
        layers.append(Layer(normal(units, inputs, units) / 3, normal(1, units), 1 + 0.2 * normal(2, units)))
    output = Projection(normal(5, 12, 7) / 3, normal(6, 7))
    x, index = normal(7, 2, 5, 10), torch.arange(10 * stoch, dtype=torch.int32).view(2, 5, stoch) % classes

    def run(dtype: torch.dtype, device: str, backend: str | None) -> list[Tensor]:
        moved = leaves(*(t.to(device, dtype) for part in (*layers, output) for t in part), x.to(device, dtype))
        stack = tuple(Layer(*moved[3 * i : 3 * i + 3]) for i in range(2))
        states = index.to(device) if stoch else None
        out = mlp(stack, Projection(*moved[6:8]), moved[-1], states, backend=backend)
        grads = torch.autograd.grad(out, moved, torch.ones_like(out))
        return [each.detach().cpu() for each in (out, *grads)]

    for actual, expected in zip(
        run(torch.float32, device, backend), run(torch.float64, "cpu", "reference"), strict=True
    ):
        assert_near(actual, expected, absolute=1e-5)


@needs_interpreter
def test_it_is_a_proper_op() -> None:
    inputs = leaves(normal(1, 6, 5), normal(2, 5))
    torch.library.opcheck(_dispatch.kernel("norm_act", "triton"), tuple(inputs))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"^norm_act: scale must be as wide as x \(2, 3\), got \(4,\)$"):
        norm_act(torch.zeros(2, 3), torch.zeros(4))
    if _dispatch.INTERPRETED:
        with pytest.raises(ValueError, match=r"^norm_act: scale must be torch\.float32, got torch\.bfloat16$"):
            norm_act(torch.zeros(2, 3), torch.zeros(3, dtype=torch.bfloat16), backend="triton")
