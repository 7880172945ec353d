"""The Triton kernels against float64: values, every gradient, ragged shapes, memory outside of the tensors.

Without a GPU they run in Triton's interpreter, with one unchanged. Every tensor that a kernel gets or allocates lies
between poisoned guards and every output is poisoned before, so what a kernel forgets or reads too far becomes NaN.
"""

import math
import subprocess
import sys

import formulas
import pytest
import torch
import torch.nn.functional as F
from formulas import mixed, normal, uniforms
from torch import Tensor

pytest.importorskip("triton")

from cuda_fence import TOLERANCE, Fence, assert_near, run

from fastdreamer_kernels.block_gru.cuda import block_gru, block_gru_backward
from fastdreamer_kernels.lambda_return.cuda import lambda_return
from fastdreamer_kernels.lambda_return.reference import lambda_return as reference_lambda_return
from fastdreamer_kernels.philox.cuda import philox
from fastdreamer_kernels.philox.reference import philox as reference_philox
from fastdreamer_kernels.replay_gather.cuda import replay_gather
from fastdreamer_kernels.unimix_kl.cuda import unimix_kl, unimix_kl_backward
from fastdreamer_kernels.unimix_sample.cuda import unimix_sample, unimix_sample_backward


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
