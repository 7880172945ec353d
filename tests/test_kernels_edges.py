"""Where kernels go wrong between the ordinary values: ends of intervals, denormals, NaN, mirrored bins."""

from itertools import chain

import formulas
import kernel_cases
import pytest
import torch
from formulas import Sizes, make_weights, normal, observed, uniforms
from kernel_checks import CPU, bytes_of, needs_native
from kernel_model_cases import MIXED, make_bins, mlp_case
from torch import Tensor
from torch.utils import _pytree as pytree

import fastdreamer_kernels
from fastdreamer_kernels import (
    imagine_sequence,
    laprop_agc,
    mlp,
    observe_sequence,
    twohot_loss,
    twohot_mean,
    unimix_kl,
    unimix_sample,
)
from fastdreamer_kernels.functional import Layer, Projection

BACKENDS = CPU[:2]  # of the ops that run parts of the model


# Samples


@needs_native
def test_native_samples_have_the_frequencies_of_the_mix() -> None:
    draws, logits = 1_000_000, torch.tensor([2.0, -1.0, 0.0, -30.0, 1.0])
    index = unimix_sample(logits.expand(draws, 1, 5), uniforms(0, draws, 1), 0.1, backend="native").drawn
    probs = formulas.mixed(logits, 0.1)
    sigma = (draws * probs * (1 - probs)).sqrt()
    assert ((torch.bincount(index.flatten(), minlength=5) - draws * probs).abs() < 4 * sigma).all()


@pytest.mark.parametrize("backend", CPU[1:])
def test_the_same_uniforms_draw_the_same_classes_but_at_edges(backend: str) -> None:
    count = 100_000 if backend == "native" else 1_000
    logits, uniform = 2 * normal(0, count, 17), uniforms(1, count)
    uniform[::10] = formulas.mixed(logits, 0.01).cumsum(-1)[::10, 5].float()  # a tenth lies on an edge
    ours, theirs = (unimix_sample(logits, uniform, 0.01, backend=each).drawn for each in (backend, "reference"))
    near = kernel_cases.edge_distance(logits, uniform, 0.01) < kernel_cases.EDGE
    differ = ours != theirs
    assert not (differ & ~near).any()
    assert (ours - theirs).abs().max() <= 1
    assert differ.sum() <= 0.6 * near.sum() and 0.1 * count <= near.sum() <= 0.102 * count


@pytest.mark.parametrize("backend", CPU)
def test_samples_at_the_ends(backend: str) -> None:
    certain = torch.tensor([[[-200.0, 200.0, -200.0]]])
    for uniform in (0.0, 0.5, 1 - 2**-24):
        assert unimix_sample(certain, torch.full((1, 1), uniform), 0.0, backend=backend).drawn.item() == 1
    equal, edges = torch.zeros(4, 1, 4), torch.tensor([[0.0], [0.25], [0.5], [0.75]])  # an edge is of the next class
    assert unimix_sample(equal, edges, 0.0, backend=backend).drawn.flatten().tolist() == [0, 1, 2, 3]
    last = normal(0, 300, 1, 64)
    last[..., -1] = 5.0
    assert (unimix_sample(last, torch.full((300, 1), 1 - 2**-24), 0.0, backend=backend).drawn == 63).all()


@pytest.mark.parametrize("backend", CPU)
def test_a_nan_is_not_hidden(backend: str) -> None:
    post, prior = normal(0, 2, 3, 4), normal(1, 2, 3, 4)
    post[0, 1, 2] = torch.nan
    for unimix in (0.0, 0.01):
        dyn, rep, entropy, _ = unimix_kl(post, prior, unimix, 1.0, backend=backend)
        assert all(x.isnan().tolist() == [True, False] for x in (dyn, rep, entropy))
        drawn = unimix_sample(post, uniforms(2, 2, 3), unimix, backend=backend)
        assert all(x.isnan().flatten().nonzero().tolist() == [[1]] for x in (drawn.log_prob, drawn.entropy))
        assert ((drawn.drawn >= 0) & (drawn.drawn < 4)).all()
    inputs = list(kernel_cases.gru_case(3, 12, 4).inputs)
    inputs[0] = inputs[0].clone()
    inputs[0][1] = torch.nan
    out = fastdreamer_kernels.block_gru(*inputs, backend=backend)
    assert out.isnan().all(1).tolist() == [False, True, False]


# The optimizer's edges


@pytest.mark.parametrize("backend", CPU)
def test_laprop_keeps_denormals(backend: str) -> None:
    """Where 0.001 g^2 were flushed to 0, u would be g / 1e-20: 300, 100, 10. Source: SPEC 1.9."""
    grad = torch.tensor([3e-18, 1e-18, 1e-19, 0.0])
    nu, mu, param = torch.zeros(4), torch.zeros(4), torch.ones(4)
    laprop_agc([param], [grad], [nu], [mu], [], [], [], torch.tensor(1.0), torch.tensor(1.0), 0.0, backend=backend)
    expected = grad.double() / (grad.double() + 1e-20)
    torch.testing.assert_close(mu.double() / 0.1, expected, rtol=1e-3, atol=0)
    assert nu[2] > 0
    torch.testing.assert_close(param.double(), 1 - expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backend", CPU[:2])
def test_laprop_rounds_the_shadow_to_nearest_even(backend: str) -> None:
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 3.3895e38, 0.0, 1e-39, -0.5])
    zeros = [torch.zeros(8) for _ in range(3)]
    shadow = [torch.zeros(8, dtype=torch.bfloat16)]
    none = torch.tensor(0.0)
    laprop_agc([ties.clone()], *([x] for x in zeros), shadow, [], [], torch.tensor(1.0), none, 0.0, backend=backend)
    assert torch.equal(shadow[0], ties.bfloat16())


NOT_FINITE: dict[str, tuple[float, list[tuple[int, int | slice]]]] = {
    "nan in the last element": (torch.nan, [(1, -1)]),
    "inf in the first element": (torch.inf, [(0, 0)]),
    "-inf in the middle": (-torch.inf, [(0, 5)]),
    "a finite value with an infinite square": (2e19, [(1, 3)]),
    "finite squares with an infinite sum": (1e19, [(1, slice(None))]),
    "finite norms with an infinite sum": (1.5e19, [(0, 3), (1, 3)]),
}
"""A value and its places in two gradients."""


def laprop_state() -> tuple[list[Tensor], ...]:
    """Params, nu, mu, shadow and slow; with zeros of both signs, which are equal but for their bits."""
    params, nu, mu, slow = ([normal(10 * i + j, 20) for j in range(2)] for i in range(4))
    nu, shadow = [x.square() for x in nu], [normal(60 + j, 20).bfloat16() for j in range(2)]
    for x in (*params, *nu, *mu, *shadow, *slow):
        x[2], x[3] = -0.0, 0.0
    return params, nu, mu, shadow, slow[:1]


@pytest.mark.parametrize("agc", [0.0, 0.3])
@pytest.mark.parametrize("kind", NOT_FINITE)
@pytest.mark.parametrize("backend", CPU)
def test_laprop_changes_nothing_where_a_gradient_is_not_finite(backend: str, kind: str, agc: float) -> None:
    def update(state: tuple[list[Tensor], ...], grads: list[Tensor]) -> Tensor:
        params, *rest = state
        return laprop_agc(params, grads, *rest, [1], torch.tensor(1.0), torch.tensor(0.1), agc, backend=backend)

    def all_bytes(state: tuple[list[Tensor], ...]) -> list[bytes]:
        return bytes_of(tuple(chain(*state)))

    state, fresh = laprop_state(), laprop_state()
    good, bad = ([normal(80 + j, 20) for j in range(2)] for _ in range(2))
    value, places = NOT_FINITE[kind]
    for tensor, at in places:
        bad[tensor][at] = value
    stats = update(state, bad)
    assert all_bytes(state) == all_bytes(fresh)
    assert not stats[0].isfinite() and stats[1] == 0
    assert stats[2].item() == pytest.approx(sum(x.double().square().sum().item() for x in fresh[0]), rel=1e-5)
    stats, expected = update(state, good), update(fresh, good)
    assert torch.equal(stats, expected) and stats.isfinite().all() and stats[1] > 0
    assert all_bytes(state) == all_bytes(fresh)
    assert not any(new == old for new, old in zip(all_bytes(state), all_bytes(laprop_state()), strict=True))


# Two-hot values at their edges


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bins", [3, 15, 17, 255, 1023])
def test_equal_logits_mean_exactly_nothing(backend: str, bins: int) -> None:
    """The mass of mirrored bins cancels before it meets values of 5e8."""
    values = make_bins(bins, 20.0)
    for level in (0.0, -3.7, 1e4):
        assert (twohot_mean(torch.full((2, bins), level), values, backend=backend) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_targets_on_the_bins_and_beyond_the_ends_have_one_bin(backend: str) -> None:
    values, logits = make_bins(9, 3.0), normal(0, 12, 9)
    expected = -torch.log_softmax(logits, -1)
    targets = torch.cat([values, torch.tensor([-1e30, 1e30, torch.inf])])
    loss = twohot_loss(logits, values, targets, backend=backend)
    picked = [*range(9), 0, 8, 8]
    torch.testing.assert_close(loss, expected[torch.arange(12), picked], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_is_not_hidden_by_parts_of_the_model(backend: str) -> None:
    for bins in (9, 41):
        values, targets = make_bins(bins, 3.0), normal(1, 4)
        for place in (0, 1, bins - 1):
            logits = normal(0, 4, bins)
            logits[2, place] = torch.nan
            mean, loss = (
                twohot_mean(logits, values, backend=backend),
                twohot_loss(logits, values, targets, backend=backend),
            )
            assert mean.isnan().tolist() == loss.isnan().tolist() == [False, False, True, False]
        targets[1] = torch.nan
        loss = twohot_loss(normal(0, 4, bins), values, targets, targets + 1, backend=backend)
        assert loss.isnan().tolist() == [False, True, False, False]
    case = mlp_case((3,), 5, 3, 4, (7, 9), 3)
    *stack, deter, stoch = case.inputs
    deter[1, 2] = torch.nan
    (out,) = case.call(backend, *stack, deter, stoch)
    assert out.isnan().all(1).tolist() == [False, True, False] and out.isnan().any(1).sum() == 1
    n = Sizes(B=3, T=3, D=4, G=2, M=5, S=2, K=3, E=3, A=7)
    weights, inputs = make_weights(n, MIXED), observed(n)
    inputs = inputs._replace(is_first=torch.zeros(n.B, n.T, dtype=torch.bool))
    inputs.is_first[1, 2] = True
    inputs.deter[1, 0] = torch.nan
    deters, stochs, _, logits = observe_sequence(weights.core, weights.posterior, *inputs, 0.01, backend=backend)
    for out in (deters, logits.flatten(2)):  # the native kernel forgets it at the reset, the reference does not
        assert out[:, :2].isnan().any(2).tolist() == [[False] * 2, [True] * 2, [False] * 2]
    noise = uniforms(1, n.B, n.T, n.S), uniforms(2, n.B, n.T + 1, 3)
    dream = imagine_sequence(
        weights.core, weights.prior, weights.policy, MIXED, inputs.deter, inputs.stoch, *noise, 0.01, 0.0,
        backend=backend,
    )  # fmt: skip
    assert dream[0].isnan().any(2).any(1).tolist() == [False, True, False]
    for index in (stochs, dream[1]):
        assert ((index >= 0) & (index < n.K)).all()


# Mirrored bins of a two-hot head: the outermost are 5e8, so that one bit between them is a tenth of a value


@needs_native
def test_mirrored_outputs_stay_equal_to_the_last_bit() -> None:
    """Whatever their place in a panel of the matmul: outputs, and the gradients of their weights."""
    bins, rows = 255, 700
    first = Layer(normal(0, 20, 8), normal(1, 8), 1 + normal(2, 8))
    kernel, bias = normal(3, 8, bins), normal(4, bins)
    kernel, bias = ((x + x.flip(-1)).requires_grad_() for x in (kernel, bias))
    deter, stoch = normal(5, rows, 12), (uniforms(6, rows, 2) * 4).int()
    out = mlp((first,), Projection(kernel, bias), deter, stoch, backend="native")
    assert torch.equal(out, out.flip(-1))
    weight = normal(7, rows, bins)
    grads = torch.autograd.grad(out, [kernel, bias], weight + weight.flip(-1))
    assert all(torch.equal(grad, grad.flip(-1)) for grad in grads)


@needs_native
def test_the_mean_of_nearly_mirrored_logits_is_exact() -> None:
    half = torch.linspace(0, 20, 128).expm1()
    bins = torch.cat([-half.flip(0), half[1:]])
    logits = normal(0, 50, 255)
    logits = logits + logits.flip(-1) + 1e-5 * normal(1, 50, 255)
    probs = torch.softmax(logits.double(), -1)
    expected = ((probs[:, 128:] - probs[:, :127].flip(-1)) * bins[128:].double()).sum(-1)
    error = (twohot_mean(logits, bins, backend="native").double() - expected).abs() / expected.abs().mean()
    assert error.max() < 1e-4


# No rows at all


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("poisoned")
def test_no_rows_give_no_rows_and_gradients_of_zero(backend: str) -> None:
    n = Sizes(B=0, T=2, D=4, G=2, M=5, S=2, K=3, E=3, A=7)
    weights, inputs = make_weights(n, MIXED), observed(n)
    for leaf in pytree.tree_leaves((weights.core, weights.posterior)):
        leaf.requires_grad_()
    outputs = observe_sequence(weights.core, weights.posterior, *inputs, 0.01, backend=backend)
    assert [tuple(x.shape) for x in outputs] == [(0, 2, 4), (0, 2, 2), (0, 2, 2, 3), (0, 2, 2, 3)]
    noise = uniforms(1, 0, n.T, n.S), uniforms(2, 0, n.T + 1, 3)
    start = inputs.deter, inputs.stoch
    dream = imagine_sequence(
        weights.core, weights.prior, weights.policy, MIXED, *start, *noise, 0.01, 0.0, backend=backend
    )
    assert [tuple(x.shape) for x in dream[:3]] == [(0, 3, 4), (0, 3, 2), (0, 3, 7)]
    kernel, x = normal(3, 4, 5).requires_grad_(), normal(4, 0, 4).requires_grad_()
    out = mlp((Layer(kernel, normal(5, 5), normal(6, 5)),), None, x, backend=backend)
    assert out.shape == (0, 5)
    grads = torch.autograd.grad(
        [out.sum(), *(y.sum() for y in outputs if y.requires_grad)], [kernel, x, weights.core.gru.kernel]
    )
    assert [tuple(grad.shape) for grad in grads] == [(4, 5), (0, 4), tuple(weights.core.gru.kernel.shape)]
    assert all((grad == 0).all() for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_mlp_takes_a_single_row(backend: str) -> None:
    layers, x = (Layer(normal(3, 4, 5), normal(5, 5), normal(6, 5)),), normal(4, 4)
    one, row = mlp(layers, None, x, backend=backend), mlp(layers, None, x.unsqueeze(0), backend=backend)
    assert one.shape == (5,) and torch.equal(one, row[0])
