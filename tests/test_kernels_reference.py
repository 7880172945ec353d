"""Returns, samples and KL of the reference against their formulas in float64: values, gradients, edges."""

import pytest
import torch
from formulas import mixed, normal, uniforms
from torch import Tensor
from torch.testing import assert_close

from fastdreamer_kernels import lambda_return, unimix_kl, unimix_sample

LAST_UNIFORM = 1 - 2**-24
"""The largest uniform that noise draws."""


@pytest.fixture(autouse=True)
def reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDREAMER_KERNELS", "reference")


@pytest.mark.parametrize("rows, steps", [(1, 2), (3, 7), (5, 33)])
def test_lambda_return_is_the_sum_of_n_step_returns(rows: int, steps: int) -> None:
    """Unrolled from the definition: the return of t weighs every later step by the products of c lam."""
    reward, value = normal(0, rows, steps), normal(1, rows, steps)
    cont, lam = uniforms(2, rows, steps), uniforms(3, rows, steps)
    expected = torch.zeros(rows, steps - 1, dtype=torch.float64)
    for row in range(rows):
        for t in range(steps - 1):
            weight = 1.0
            for s in range(t + 1, steps):
                r, c, v, k = (x[row, s].item() for x in (reward, cont, value, lam))
                expected[row, t] += weight * (r + c * (v if s == steps - 1 else (1 - k) * v))
                weight *= c * k
    assert_close(lambda_return(reward, cont, value, lam), expected.float(), rtol=1e-5, atol=1e-6)


def test_lambda_return_without_lambda_is_one_step() -> None:
    reward, cont, value = normal(0, 4, 6), uniforms(1, 4, 6), normal(2, 4, 6)
    one_step = reward + cont * value
    assert_close(lambda_return(reward, cont, value, torch.zeros(4, 6)), one_step[:, 1:])


def test_lambda_return_is_a_constant_of_the_losses() -> None:
    reward, cont, value, lam = (normal(seed, 2, 3).requires_grad_() for seed in range(4))
    assert not lambda_return(reward, cont, value, lam).requires_grad


def count_below(logits: Tensor, uniform: Tensor, unimix: float) -> Tensor:
    """The class by definition: how many of the first K - 1 cumulative sums are at most the uniform."""
    probs, index = mixed(logits, unimix), torch.zeros(uniform.shape, dtype=torch.int32)
    total = torch.zeros(uniform.shape, dtype=torch.float64)
    for k in range(logits.shape[-1] - 1):
        total = total + probs[..., k]
        index += (total <= uniform.double()).int()
    return index


@pytest.mark.parametrize("unimix", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("lead, classes", [((1, 1), 2), ((3, 5), 4), ((7, 2, 3), 17), ((11, 1), 64)])
def test_sample_is_the_inverse_of_the_cdf(lead: tuple[int, ...], classes: int, unimix: float) -> None:
    logits, uniform = 2 * normal(0, *lead, classes), uniforms(1, *lead)
    index, onehot, _, _ = unimix_sample(logits, uniform, unimix)
    assert index.dtype == torch.int32
    assert torch.equal(index, count_below(logits, uniform, unimix))
    assert torch.equal(onehot, torch.nn.functional.one_hot(index.long(), classes).float())


def test_sample_has_the_frequencies_of_the_mixed_distribution() -> None:
    logits, draws = torch.tensor([[2.0, -1.0, 0.0, -30.0]]), 4096
    uniform = (torch.arange(draws) / draws).unsqueeze(-1)
    index = unimix_sample(logits.expand(draws, 1, 4), uniform, 0.1).drawn
    frequency = torch.bincount(index.flatten(), minlength=4) / draws
    assert_close(frequency, mixed(logits, 0.1)[0].float(), rtol=0, atol=1.5 / draws)


def test_sample_at_zero_is_the_first_class_with_mass() -> None:
    assert unimix_sample(torch.zeros(1, 1, 100), torch.zeros(1, 1), 0.01).drawn.item() == 0
    certain = torch.tensor([[[-200.0, 200.0, -200.0]]])
    assert [unimix_sample(certain, torch.full((1, 1), u), 0.0).drawn.item() for u in (0.0, 0.5)] == [1, 1]


def test_sample_just_below_one_is_the_last_class_even_where_rounding_leaves_the_sum_short() -> None:
    logits = normal(0, 500, 1, 64)
    logits[..., -1] = 5.0
    short = torch.softmax(logits, -1).cumsum(-1)[..., -1] <= LAST_UNIFORM
    assert short.any()
    index = unimix_sample(logits, torch.full((500, 1), LAST_UNIFORM), 0.0).drawn
    assert (index == 63).all()


def test_sample_on_an_edge_of_the_cdf_belongs_to_the_next_class() -> None:
    index = unimix_sample(torch.zeros(3, 1, 4), torch.tensor([[0.25], [0.5], [0.75]]), 0.0).drawn
    assert index.flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_onehot_is_exactly_zero_or_one(dtype: torch.dtype) -> None:
    logits = (5 * normal(0, 500, 4, 7)).to(dtype).requires_grad_()
    onehot = unimix_sample(logits, uniforms(1, 500, 4), 0.01).onehot
    assert onehot.dtype == dtype
    assert set(onehot.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(onehot.sum(-1), torch.ones(500, 4, dtype=dtype))


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_onehot_carries_the_gradient_of_the_probabilities(unimix: float) -> None:
    logits, weight = normal(0, 6, 3, 5).requires_grad_(), normal(1, 6, 3, 5)
    onehot = unimix_sample(logits, uniforms(2, 6, 3), unimix).onehot
    (onehot * weight).sum().backward()
    softmax = mixed(logits.detach(), 0.0)
    expected = (1 - unimix) * softmax * (weight - (softmax * weight).sum(-1, keepdim=True))
    assert_close(logits.grad, expected.float(), rtol=1e-5, atol=1e-6)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum((-2, -1))


@pytest.mark.parametrize("unimix", [0.0, 0.01])
@pytest.mark.parametrize("lead, groups, classes", [((1,), 1, 2), ((3, 7), 5, 3), ((2, 1), 32, 17)])
def test_kl_values(lead: tuple[int, ...], groups: int, classes: int, unimix: float) -> None:
    post, prior = normal(0, *lead, groups, classes), normal(1, *lead, groups, classes)
    p, q = mixed(post, unimix), mixed(prior, unimix)
    entropies = [-(x * x.log()).sum((-2, -1)) for x in (p, q)]
    expected = [kl(p, q), kl(p, q), *entropies]
    for actual, value in zip(unimix_kl(post, prior, unimix, 0.0), expected, strict=True):
        assert_close(actual, value.float(), rtol=1e-5, atol=1e-5)


def test_kl_floor_holds_for_the_sum_over_groups_and_stops_the_gradient() -> None:
    post, prior = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    post[0, :, 0], post[1, :, 0] = 0.5, 5.0  # three groups below the floor together, and far above it
    post.requires_grad_(), prior.requires_grad_()
    exact = kl(mixed(post.detach(), 0.01), mixed(prior.detach(), 0.01)).float()
    assert exact[0] < 1.0 < exact[1]
    dyn, rep, _, _ = unimix_kl(post, prior, 0.01, 1.0)
    for loss in (dyn, rep):
        assert_close(loss.detach(), torch.stack([torch.tensor(1.0), exact[1]]), rtol=1e-5, atol=1e-6)
    (dyn + rep).sum().backward()
    for grad in (post.grad, prior.grad):
        assert grad is not None and not grad[0].any() and grad[1].any()


def test_kl_trains_the_prior_with_dyn_and_the_posterior_with_rep() -> None:
    post, prior = normal(0, 4, 3, 5).requires_grad_(), normal(1, 4, 3, 5).requires_grad_()
    dyn, rep, post_entropy, prior_entropy = unimix_kl(post, prior, 0.01, 0.0)
    assert not post_entropy.requires_grad and not prior_entropy.requires_grad
    wide_post, wide_prior = (x.detach().double().requires_grad_() for x in (post, prior))
    kl(mixed(wide_post, 0.01), mixed(wide_prior, 0.01)).sum().backward()
    for loss, trained, constant, expected in ((dyn, prior, post, wide_prior), (rep, post, prior, wide_post)):
        grad, none = torch.autograd.grad(loss.sum(), [trained, constant], allow_unused=True)
        assert none is None and expected.grad is not None
        assert_close(grad, expected.grad.float(), rtol=1e-4, atol=1e-6)
