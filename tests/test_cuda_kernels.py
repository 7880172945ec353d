"""The Triton kernels against float64: values, every gradient, ragged shapes, memory outside of the tensors.

Without a GPU they run in Triton's interpreter, with one unchanged. Every tensor that a kernel gets or allocates lies
between poisoned guards and every output is poisoned before, so what a kernel forgets or reads too far becomes NaN.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import chain

import formulas
import pytest
import torch
import torch.nn.functional as F
from formulas import mixed, normal, uniforms
from torch import Tensor

pytest.importorskip("triton")

from fastdreamer_kernels.block_gru.cuda import block_gru, block_gru_backward
from fastdreamer_kernels.lambda_return.cuda import lambda_return
from fastdreamer_kernels.lambda_return.reference import lambda_return as reference_lambda_return
from fastdreamer_kernels.laprop_agc import cuda as laprop
from fastdreamer_kernels.philox.cuda import philox
from fastdreamer_kernels.philox.reference import philox as reference_philox
from fastdreamer_kernels.replay_gather.cuda import replay_gather
from fastdreamer_kernels.unimix_kl.cuda import unimix_kl, unimix_kl_backward
from fastdreamer_kernels.unimix_sample.cuda import unimix_sample, unimix_sample_backward

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
GUARD = 64
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Of the largest absolute value of a tensor."""

if INTERPRETED:
    import interpreter_strict

    interpreter_strict.install()


def poison(dtype: torch.dtype) -> float:
    return math.nan if dtype.is_floating_point else 0 if dtype == torch.bool else torch.iinfo(dtype).min


class Fence:
    """Memory on one device between guards; `check` finds what was written outside of the tensors.

    The guards of what a kernel reads are poison, those of what it allocates a number: poison may hide poison.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.blocks: list[tuple[Tensor, int, float]] = []

    def _block(self, count: int, dtype: torch.dtype, device: torch.device, guard: float) -> Tensor:
        block = torch.full((count + 2 * GUARD,), guard, dtype=dtype, device=device)
        self.blocks.append((block, count, guard))
        return block[GUARD : GUARD + count].fill_(poison(dtype))

    def empty(self, *size: int | tuple[int, ...], dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        shape = size if isinstance(size[0], int) else tuple(size[0])
        return self._block(math.prod(shape), dtype, device or self.device, 77).view(shape)

    def empty_like(self, x: Tensor) -> Tensor:
        return _shaped(self._block(x.numel(), x.dtype, x.device, 77), x)

    def given(self, x: Tensor) -> Tensor:
        return _shaped(self._block(x.numel(), x.dtype, self.device, poison(x.dtype)), x).copy_(x)

    def check(self) -> None:
        for block, count, guard in self.blocks:
            guards = torch.cat([block[:GUARD], block[GUARD + count :]])
            torch.testing.assert_close(guards, torch.full_like(guards, guard), rtol=0, atol=0, equal_nan=True)


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """In the memory order of `like` if that has no gaps."""
    last = sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    dense = last + 1 == like.numel()
    return flat.as_strided(like.shape, like.stride(), flat.storage_offset()) if dense else flat.view(like.shape)


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="the kernels are compiled for the GPU")),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(INTERPRETED, reason="interpreted")]),
    ]
)
def fence(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fence]:
    fence = Fence(request.param)
    monkeypatch.setattr(torch, "empty", fence.empty)
    monkeypatch.setattr(torch, "empty_like", fence.empty_like)
    yield fence
    fence.check()


def run(fence: Fence, function: Callable[..., Tensor | tuple[Tensor, ...]], *args: Tensor | float) -> list[Tensor]:
    """The results on the host, of arguments that were moved into fenced memory."""
    result = function(*(fence.given(arg) if isinstance(arg, Tensor) else arg for arg in args))
    return [x.cpu() for x in (result if isinstance(result, tuple) else (result,))]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5, least: float = 1e-3) -> None:
    """Within `tolerance` of the largest absolute value, or of `least` where all are smaller."""
    assert actual.shape == expected.shape
    expected = expected.detach().double()
    limit = tolerance * max(least, expected.abs().max().item())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=limit)


# B, G, D/G: one row and one tile; two row tiles with a ragged second; two tiles of columns and of depth, both ragged.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch, blocks, width", [(1, 1, 16), (18, 3, 5), (3, 2, 70)])
def test_block_gru(fence: Fence, batch: int, blocks: int, width: int, dtype: torch.dtype) -> None:
    check_block_gru(fence, batch, blocks, width, dtype)


def test_block_gru_of_many_rows(fence: Fence) -> None:
    check_block_gru(fence, 130, 1, 20, torch.bfloat16)


def check_block_gru(fence: Fence, batch: int, blocks: int, width: int, dtype: torch.dtype) -> None:
    features, tolerance = blocks * width, TOLERANCE[dtype]
    hidden, deter, grad = (normal(i, batch, features).to(dtype) for i in range(3))
    hidden[0] *= 0.01  # so that the epsilon of the norm matters
    scale, bias = 1 + 0.2 * normal(3, features), normal(4, 3 * features).to(dtype)
    kernel = (normal(5, blocks, width, 3 * width) / width**0.5).to(dtype)
    inputs = [x.double().requires_grad_() for x in (hidden, scale, kernel, bias, deter)]
    expected = formulas.gru(*inputs)
    expected.backward(grad.double())

    out, gates, rstd = run(fence, block_gru, hidden, scale, kernel, bias, deter)
    assert out.dtype == gates.dtype == dtype and rstd.dtype == torch.float32
    assert_near(out, expected, tolerance)
    assert_near(rstd, (hidden.double().pow(2).mean(-1) + 1e-4).rsqrt())
    grads = run(fence, block_gru_backward, grad, hidden, scale, kernel, deter, gates, rstd)
    for actual, x, like in zip(grads, inputs, (hidden, scale, kernel, bias, deter), strict=True):
        assert actual.dtype == like.dtype and x.grad is not None
        assert_near(actual, x.grad, tolerance)


def test_block_gru_takes_strided_tensors(fence: Fence) -> None:
    hidden, deter = fence.given(normal(0, 2, 3, 10))[:, 1], fence.given(normal(1, 2, 3, 10))[:, 2]
    kernel = fence.given(normal(2, 2, 15, 5)).mT
    inputs = hidden, fence.given(torch.ones(10)), kernel, fence.given(normal(3, 30)), deter
    out, gates, rstd = block_gru(*inputs)
    wide = [x.cpu().double().requires_grad_() for x in inputs]
    expected, grad = formulas.gru(*wide), normal(4, 10, 2)
    expected.backward(grad.mT.double())
    assert_near(out.cpu(), expected)
    grads = block_gru_backward(fence.given(grad).mT, hidden, inputs[1], kernel, deter, gates, rstd)
    for actual, x in zip(grads, wide, strict=True):
        assert x.grad is not None
        assert_near(actual.cpu(), x.grad)


# N, K: two programs of rows, classes at and off a power of two, one class more than half of the padding.
@pytest.mark.parametrize("unimix", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count, classes", [(1, 2), (260, 4), (7, 5), (70, 17), (5, 255)])
def test_unimix_sample(fence: Fence, count: int, classes: int, dtype: torch.dtype, unimix: float) -> None:
    logits, uniform = (2 * normal(0, count, classes)).to(dtype), uniforms(1, count)
    wide = logits.double().requires_grad_()
    probs = mixed(wide, unimix)

    index, onehot, log_prob, entropy = run(fence, unimix_sample, logits, uniform, unimix)
    assert index.dtype == torch.int32 and onehot.dtype == dtype
    lowest, highest = (count_below(probs, uniform.double() + by) for by in (-1e-6, 1e-6))
    assert (lowest <= index).all() and (index <= highest).all()
    assert torch.equal(onehot, F.one_hot(index.long(), classes).to(dtype))
    log_probs, entropies = probs.log()[torch.arange(count), index.long()], -(probs * probs.log()).sum(-1)
    assert_near(log_prob, log_probs)
    assert_near(entropy, entropies)

    donehot, dlog_prob, dentropy = normal(2, count, classes).to(dtype), normal(3, count), normal(4, count)
    (grad,) = run(fence, unimix_sample_backward, donehot, dlog_prob, dentropy, logits, index, unimix)
    ((probs * donehot).sum() + (log_probs * dlog_prob).sum() + (entropies * dentropy).sum()).backward()
    assert grad.dtype == dtype and wide.grad is not None
    assert_near(grad, wide.grad, TOLERANCE[dtype])


def count_below(probs: Tensor, uniform: Tensor) -> Tensor:
    return (probs.detach().cumsum(-1)[:, :-1] <= uniform.unsqueeze(-1)).sum(-1)


def test_unimix_sample_on_the_edges_of_the_cdf(fence: Fence) -> None:
    uniform = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2**-24])
    index, *_ = run(fence, unimix_sample, torch.zeros(5, 4), uniform, 0.0)
    assert index.tolist() == [0, 1, 2, 3, 3]


def test_unimix_sample_stays_in_range_where_rounding_leaves_the_cdf_short_of_one(fence: Fence) -> None:
    logits = normal(0, 500, 64)
    logits[:, -1] = 5.0
    index, *_ = run(fence, unimix_sample, logits, torch.full((500,), 1 - 2**-24), 0.0)
    assert (index == 63).all()


def test_unimix_sample_of_certain_classes_is_finite(fence: Fence) -> None:
    logits = torch.tensor([[-200.0, 200.0, -200.0], [0.0, -math.inf, 1.0]])
    index, _, log_prob, entropy = run(fence, unimix_sample, logits, torch.tensor([0.0, 0.9]), 0.0)
    assert index.tolist() == [1, 2]
    assert_near(log_prob, torch.tensor([0.0, torch.sigmoid(torch.tensor(1.0)).log()]))
    assert_near(entropy, torch.tensor([0.0, 0.582203]))  # of probabilities 1 / (1 + e) and e / (1 + e)
    ones = torch.ones(2)
    (grad,) = run(fence, unimix_sample_backward, torch.ones(2, 3), ones, ones, logits, index, 0.0)
    assert grad.isfinite().all()


# N, S, K: also groups that are taken in two rounds, the second ragged.
@pytest.mark.parametrize("free_nats", [0.0, 1.0])
@pytest.mark.parametrize("unimix", [0.0, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count, groups, classes", [(1, 1, 2), (6, 3, 7), (3, 33, 16), (2, 11, 200)])
def test_unimix_kl(
    fence: Fence, count: int, groups: int, classes: int, dtype: torch.dtype, unimix: float, free_nats: float
) -> None:
    post = normal(0, count, groups, classes).to(dtype)
    prior = (post.float() + (0.5 + torch.arange(count)).view(-1, 1, 1) * normal(1, *post.shape)).to(dtype)
    wide_post, wide_prior = (x.double().requires_grad_() for x in (post, prior))
    p, q = mixed(wide_post, unimix), mixed(wide_prior, unimix)
    kl = (p * (p.log() - q.log())).sum((-2, -1))
    expected = kl.clamp(min=free_nats)

    results = run(fence, unimix_kl, post, prior, unimix, free_nats)
    for actual, value in zip(results, (expected, expected, entropy_of(p), entropy_of(q)), strict=True):
        assert_near(actual, value, least=0.1)  # sums of terms that cancel

    ddyn, drep = normal(2, count), normal(3, count)
    dpost, dprior = run(fence, unimix_kl_backward, ddyn, drep, post, prior, unimix, free_nats)
    (of_post,) = torch.autograd.grad((expected * drep).sum(), wide_post, retain_graph=True)
    (of_prior,) = torch.autograd.grad((expected * ddyn).sum(), wide_prior)
    assert dpost.dtype == dprior.dtype == dtype
    assert_near(dpost, of_post, TOLERANCE[dtype])
    assert_near(dprior, of_prior, TOLERANCE[dtype])


def entropy_of(probs: Tensor) -> Tensor:
    return -(probs * probs.log()).sum((-2, -1))


@pytest.mark.parametrize("count, groups, classes", [(2, 3, 7)])
def test_unimix_kl_passes_gradient_exactly_at_the_floor(fence: Fence, count: int, groups: int, classes: int) -> None:
    post, prior, ones = normal(0, count, groups, classes), normal(1, count, groups, classes), torch.ones(count)
    dyn, *_ = run(fence, unimix_kl, post, prior, 0.01, 0.0)
    for row, value in enumerate(dyn.tolist()):
        for free_nats, flows in ((value, True), (value * 1.001, False)):
            grads = run(fence, unimix_kl_backward, ones, ones, post, prior, 0.01, free_nats)
            assert [bool(grad[row].any()) for grad in grads] == [flows, flows]


def test_unimix_kl_does_not_hide_a_nan(fence: Fence) -> None:
    post = torch.zeros(2, 1, 3)
    post[1, 0, 0] = math.nan
    dyn, rep, *_ = run(fence, unimix_kl, post, torch.zeros(2, 1, 3), 0.01, 1.0)
    assert dyn.isnan().tolist() == rep.isnan().tolist() == [False, True]


@pytest.mark.parametrize("rows, steps", [(1, 2), (3, 7), (33, 16)])
def test_lambda_return(fence: Fence, rows: int, steps: int) -> None:
    inputs = [normal(0, rows, steps), uniforms(1, rows, steps), normal(2, rows, steps), uniforms(3, rows, steps)]
    (actual,) = run(fence, lambda_return, *inputs)
    assert_near(actual, reference_lambda_return(*(x.double() for x in inputs)))


# bytes per row: 1 (bool), 1, 3, 10, 68, 48, and more 8-byte words than one program copies
@pytest.mark.parametrize(
    "dtype, shape",
    [
        (torch.bool, ()), (torch.uint8, ()), (torch.uint8, (3,)), (torch.bfloat16, (5,)), (torch.float32, (17,)),
        (torch.uint8, (4, 4, 3)), (torch.float32, (2100,)),
    ],
)  # fmt: skip
def test_replay_gather(fence: Fence, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    rows, length = 7, 5
    words = (uniforms(0, 3, rows, *shape) * 256).to(torch.uint8)
    ring = words > 127 if dtype == torch.bool else words.to(dtype)
    env, start = torch.tensor([2, 0, 2, 1]), torch.tensor([0, 4, 6 + 7 * 10**9, 7])
    out = fence.empty((4, length, *shape), dtype=dtype)
    replay_gather(fence.given(ring), fence.given(env), fence.given(start), length, out)
    assert torch.equal(out.cpu(), ring[env[:, None], (start[:, None] + torch.arange(length)) % rows])


def test_replay_gather_of_whole_rings_in_unaligned_memory(fence: Fence) -> None:
    block = torch.arange(100, dtype=torch.uint8, device=fence.device)
    ring, out = block[3:51].view(2, 3, 8), fence.empty((2, 3, 8), dtype=torch.uint8)
    env, start = torch.tensor([1, 0]), torch.tensor([2, 1])
    replay_gather(ring, fence.given(env), fence.given(start), 3, out)
    assert torch.equal(out.cpu(), ring.cpu()[env[:, None], (start[:, None] + torch.arange(3)) % 3])


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


@pytest.mark.parametrize("kind", ["bits", "uniform", "normal"])
@pytest.mark.parametrize("count", [1, 6, 1024, 1029])
def test_philox(fence: Fence, kind: str, count: int) -> None:
    counter = fence.given(torch.tensor(2**32 + 5))
    drawn = philox(kind, [2**32 - 1, 7], counter, count).cpu()
    expected = reference_philox(kind, (2**32 - 1, 7), counter.cpu(), count)
    if kind != "normal":
        assert torch.equal(drawn, expected)
    torch.testing.assert_close(drawn, expected, rtol=2**-23, atol=0)  # a last bit, where math libraries differ


def test_importing_the_ops_needs_no_triton() -> None:
    code = "import sys, fastdreamer_kernels; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
