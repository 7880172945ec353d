"""The Triton optimizer against SPEC 1.9 in float64; the fence as in test_cuda_kernels.py."""

import math
from itertools import chain

import pytest
import torch
from formulas import normal
from torch import Tensor

pytest.importorskip("triton")

from cuda_fence import INTERPRETED, Fence, assert_near

from fastdreamer_kernels.laprop_agc import cuda as laprop


class Optimized:
    """Random tensors of an optimizer, and the update of SPEC 1.9 on float64 copies of them."""

    def __init__(self, fence: Fence, shapes: list[tuple[int, ...]], shadows: bool, slow_index: list[int]) -> None:
        params = [normal(i, *shape) for i, shape in enumerate(shapes)]
        params = [x.to(memory_format=torch.channels_last) if x.ndim == 4 else x for x in params]
        self.params = [fence.given(x) for x in params]
        self.nu, self.mu = ([fence.given(torch.zeros_like(x)) for x in params] for _ in range(2))
        self.shadow = [fence.given(x.bfloat16()) for x in params] if shadows else []
        self.slow = [fence.given(params[i] + 1) for i in slow_index]
        self.fence, self.slow_index = fence, slow_index
        self.wide = [[x.cpu().double() for x in xs] for xs in (self.params, self.nu, self.mu, self.slow)]

    def step(self, grads: list[Tensor], t: int, lr: float, agc: float) -> list[float]:
        """Both updates; returns the float64 sums of squares and checks those of the kernel."""
        at = torch.tensor(float(t))
        stats = laprop.laprop_agc(
            self.params, [self.fence.given(x) for x in grads], self.nu, self.mu, self.shadow, self.slow,
            self.slow_index, self.fence.given(at), self.fence.given(torch.tensor(lr)), agc,
        )  # fmt: skip
        # The powers are float32 in every implementation: at t = 1 that moves an update by 6e-6.
        correction1, correction2 = (1 - 0.9**at).item(), (1 - 0.999**at).item()
        params, nu, mu, slow = self.wide
        expected = [0.0, 0.0, 0.0]
        for i, grad in enumerate(grads):
            g = grad.double()
            expected[0] += g.pow(2).sum().item()
            if agc:
                g = g / max(1.0, (g.norm() / (agc * max(1e-3, params[i].norm().item()))).item())
            nu[i] = 0.999 * nu[i] + 0.001 * g**2
            mu[i] = 0.9 * mu[i] + 0.1 * g / ((nu[i] / correction2).sqrt() + 1e-20)
            update = -lr * mu[i] / correction1
            params[i] = params[i] + update
            expected[1] += update.pow(2).sum().item()
            expected[2] += params[i].pow(2).sum().item()
        for i, average in zip(self.slow_index, range(len(slow)), strict=True):
            slow[average] = 0.98 * slow[average] + 0.02 * params[i]
        assert stats.cpu().tolist() == pytest.approx(expected, rel=1e-5)
        return expected

    def check(self) -> None:
        for actual, expected in zip((self.params, self.nu, self.mu, self.slow), self.wide, strict=True):
            for x, y in zip(actual, expected, strict=True):
                assert_near(x.cpu(), y)
        for x, theta in zip(self.shadow, self.params, strict=bool(self.shadow)):
            assert torch.equal(x, theta.bfloat16())


SHAPES = [(1,), (7,), (8, 5, 3, 3), (1100,), (3, 1700)]  # the last: two chunks, the second with a ragged block


@pytest.mark.parametrize(
    "agc, shadows, slow_index", [(0.3, True, [1, 4]), (0.3, False, []), (0.0, True, []), (0.0, False, [4, 0])]
)
def test_laprop_agc(fence: Fence, agc: float, shadows: bool, slow_index: list[int]) -> None:
    optimized = Optimized(fence, SHAPES, shadows, slow_index)
    for t in (1, 2, 3):
        # From far above the limit of the clipping to far below; convolutions contiguous, unlike their parameters.
        grads = [(100.0 if i % 2 else 0.01) * normal(10 * t + i, *shape) for i, shape in enumerate(SHAPES)]
        optimized.step(grads, t, lr=0.01, agc=agc)
        optimized.check()


def test_laprop_agc_in_long_chunks(fence: Fence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(laprop, "LARGE", 0)
    laprop._chunks.cache_clear()
    shapes = [(17000,), (3,)]
    optimized = Optimized(fence, shapes, True, [0])
    optimized.step([normal(1, *shape) for shape in shapes], 1000, lr=0.1, agc=0.3)
    optimized.check()
    laprop._chunks.cache_clear()


def test_laprop_agc_clips_by_the_smallest_norm_where_a_parameter_is_zero(fence: Fence) -> None:
    optimized = Optimized(fence, [(4,)], False, [])
    optimized.params[0].zero_(), optimized.wide[0][0].zero_()
    optimized.step([torch.ones(4)], 1, lr=0.01, agc=0.3)
    optimized.check()


def test_laprop_agc_keeps_denormals(fence: Fence) -> None:
    """With flushed squares the updates would be 300, 100 and 10 (SPEC 1.9)."""
    optimized = Optimized(fence, [(3,)], False, [])
    optimized.step([torch.tensor([3e-18, 1e-18, 1e-19])], 1, lr=0.0, agc=0.0)
    update = optimized.mu[0].cpu() / 0.1
    torch.testing.assert_close(update, torch.tensor([0.997, 0.990, 0.909]), rtol=2e-3, atol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("agc", [0.0, 0.3])
def test_laprop_agc_changes_nothing_where_a_gradient_is_not_finite(fence: Fence, agc: float, value: float) -> None:
    """Programs of every tensor see it, whichever chunk it is in; the next update is as if there had been none."""
    optimized = Optimized(fence, SHAPES, True, [1, 4])
    grads = [normal(10 + i, *shape) for i, shape in enumerate(SHAPES)]
    optimized.step(grads, 1, lr=0.01, agc=agc)
    changed = [*optimized.params, *optimized.nu, *optimized.mu, *optimized.shadow, *optimized.slow]
    before = [x.clone() for x in changed]
    bad = [fence.given(x) for x in grads]
    bad[-1][-1, -1] = value
    stats = laprop.laprop_agc(
        optimized.params, bad, optimized.nu, optimized.mu, optimized.shadow, optimized.slow, optimized.slow_index,
        fence.given(torch.tensor(2.0)), fence.given(torch.tensor(0.01)), agc,
    )  # fmt: skip
    assert_same_bits(changed, before)
    assert not stats[0].isfinite() and stats[1] == 0
    of_params = sum(x.double().square().sum().item() for x in optimized.params)
    assert stats[2].item() == pytest.approx(of_params, rel=1e-5)
    optimized.step(grads, 2, lr=0.01, agc=agc)
    optimized.check()


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    for x, y in zip(actual, expected, strict=True):
        integers = torch.int16 if x.dtype == torch.bfloat16 else torch.int32
        assert torch.equal(x.view(integers), y.view(integers))


@pytest.mark.parametrize("chunks", [1, 1024, 2500])
def test_laprop_agc_adds_up_more_chunks_than_a_program_holds_at_once(fence: Fence, chunks: int) -> None:
    sums = normal(0, chunks).square()
    for value in (1.0, math.nan, math.inf):
        sums[-1] = value
        total = fence.empty(1, dtype=torch.float32)
        laprop._total_kernel[(1,)](fence.given(sums), total, chunks, BLOCK=laprop.BLOCK, num_warps=4)
        assert total.item() == pytest.approx(sums.double().sum().item(), rel=1e-5, nan_ok=True)


def test_a_capture_takes_the_page_locked_table_that_a_call_before_left(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def empty(shape: tuple[int, ...], dtype: torch.dtype, pin_memory: bool) -> Tensor:
        assert pin_memory and not capturing
        made.append(torch.zeros(shape, dtype=dtype))
        return made[-1]

    monkeypatch.setattr(laprop, "_spare", {})
    monkeypatch.setattr(laprop, "_captured", [])
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(Tensor, "pin_memory", Tensor.clone)
    monkeypatch.setattr(Tensor, "to", lambda host, device, non_blocking: host)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    cuda, capturing = torch.device("cuda"), False
    for table in ([[1, 2]], [[3, 4]], [[5], [6]]):
        assert laprop._upload(table, cuda).tolist() == table
    assert [tuple(x.shape) for x in made] == [(1, 2), (2, 1)], "one of each shape"
    capturing = True
    taken = laprop._upload([[7, 8]], cuda)
    assert taken is made[0] and taken.tolist() == [[7, 8]]
    with pytest.raises(AssertionError, match="the first call precedes any capture"):
        laprop._upload([[9, 10]], cuda)
    assert taken.tolist() == [[7, 8]], "a graph copies from it at every replay"
    capturing = False
    laprop._upload([[1, 2]], cuda)
    capturing = True
    assert laprop._upload([[9, 10]], cuda) is made[2]


@pytest.mark.gpu
@pytest.mark.skipif(INTERPRETED, reason="interpreted")
def test_laprop_agc_in_a_graph_decides_at_every_replay() -> None:
    shapes = [(7,), (3, 1700)]
    params, grads, nu, mu = ([normal(10 * i + j, *s).cuda() for j, s in enumerate(shapes)] for i in range(4))
    nu = [x.square() for x in nu]
    shadow, slow = [x.bfloat16() for x in params], [params[1].clone()]
    one, lr = torch.ones((), device="cuda"), torch.full((), 0.01, device="cuda")

    def update(*state: list[Tensor]) -> Tensor:
        params, nu, mu, shadow, slow = state
        return laprop.laprop_agc(params, grads, nu, mu, shadow, slow, [1], one, lr, 0.3)

    def clone() -> tuple[list[Tensor], ...]:
        return tuple([x.clone() for x in tensors] for tensors in state)

    state = params, nu, mu, shadow, slow
    update(*state)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stats = update(*state)
    before, expected = clone(), clone()
    wanted = update(*expected)
    good = grads[1][-1, -1].clone()
    grads[1][-1, -1] = math.nan
    graph.replay()
    assert not stats[0].isfinite() and stats[1] == 0
    assert_same_bits([*chain(*state)], [*chain(*before)])
    grads[1][-1, -1] = good
    graph.replay()
    assert torch.equal(stats, wanted) and stats.isfinite().all()
    assert_same_bits([*chain(*state)], [*chain(*expected)])
