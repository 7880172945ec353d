"""The recurrent ops on the CPU against their formulas in float64: one gated update, observing, imagining."""

import pytest
import torch
import torch.nn.functional as F
from formulas import (
    Observed,
    Sizes,
    Weights,
    act,
    core_step,
    gru,
    logits,
    make_weights,
    normal,
    observed,
    sample,
    uniforms,
)
from torch import Tensor
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from fastdreamer_kernels import _native, block_gru, imagine_sequence, observe_sequence
from fastdreamer_kernels.policy import ActionKey

UNIMIX = 0.01
SIZES = [
    Sizes(B=1, T=1, D=2, G=1, M=3, S=1, K=2, E=1, A=4),
    Sizes(B=3, T=7, D=12, G=4, M=5, S=3, K=5, E=7, A=6),
    Sizes(B=5, T=4, D=10, G=5, M=8, S=2, K=17, E=3, A=4),
]
KEYS = (ActionKey(elements=2, classes=3), ActionKey(elements=1, classes=0))


@pytest.fixture(autouse=True, params=["reference", "native"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on both."""
    if request.param == "native" and _native.library is None:
        pytest.skip("the native library was not built")
    monkeypatch.setenv("FASTDREAMER_KERNELS", request.param)


def widen(tree: Weights) -> Weights:
    """The same weights as float64 leaves that want a gradient."""
    return pytree.tree_map(lambda x: x.detach().double().requires_grad_(), tree)


def assert_same_gradients(actual: object, expected: object) -> None:
    """Of every leaf of two trees; relative to the largest, as float32 sums in another order differ."""
    pairs = zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True)
    compared = 0
    for narrow, wide in pairs:
        if wide.grad is not None:
            size = wide.grad.abs().max().item()
            assert_close(narrow.grad, wide.grad.float(), rtol=1e-4, atol=2e-5 * size)
            compared += 1
    assert compared


@pytest.mark.parametrize("rows, width, blocks", [(1, 2, 1), (3, 12, 4), (7, 30, 5)])
def test_gated_update_and_its_gradients(rows: int, width: int, blocks: int) -> None:
    part = width // blocks
    shapes = ((rows, width), (width,), (blocks, part, 3 * part), (3 * width,), (rows, width))
    inputs = [normal(seed, *shape).requires_grad_() for seed, shape in enumerate(shapes)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    weight = normal(9, rows, width)
    hidden, scale, kernel, bias, deter = inputs
    actual, expected = block_gru(hidden, scale, kernel, bias, deter), gru(*wide)
    assert_close(actual, expected.float(), rtol=1e-5, atol=1e-6)
    (actual * weight).sum().backward()
    (expected * weight).sum().backward()
    assert_same_gradients(inputs, wide)


def test_gated_update_keeps_its_state_where_the_update_gate_is_shut() -> None:
    deter, bias = normal(0, 2, 4), torch.zeros(12).view(2, 3, 2)
    bias[:, 2] = -100.0
    kernel = torch.zeros(2, 2, 6)
    assert_close(block_gru(normal(1, 2, 4), torch.ones(4), kernel, bias.flatten(), deter), deter)


def observe(
    weights: Weights, n: Sizes, inputs: Observed, unimix: float = UNIMIX
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """deter, one-hot and logits (B, T, ...) step by step in float64."""
    deter, embed = inputs.deter.double(), inputs.embed.double()
    stoch = F.one_hot(inputs.stoch.long(), n.K).double()
    steps = []
    for t in range(n.T):
        keep = 1.0 - inputs.is_first[:, t, None].double()
        deter = core_step(weights.core, deter * keep, stoch.flatten(1) * keep, inputs.action[:, t].double() * keep)
        post = logits(torch.cat([deter, embed[:, t]], -1), weights.posterior, n.S)
        stoch = sample(post, inputs.uniform[:, t], unimix)
        steps.append((deter, stoch, post))
    deters, stochs, posts = (torch.stack(column, 1) for column in zip(*steps, strict=True))
    return deters, stochs, posts


@pytest.mark.parametrize("n", SIZES)
def test_observe_and_its_gradients_through_time(n: Sizes) -> None:
    weights, inputs = make_weights(n), observed(n)
    leaves = pytree.tree_leaves(weights)
    for leaf in [*leaves, inputs.embed]:
        leaf.requires_grad_()
    wide = widen(weights)
    wide_inputs = inputs._replace(embed=inputs.embed.detach().double().requires_grad_())
    deter, stoch, onehot, post = observe_sequence(weights.core, weights.posterior, *inputs, UNIMIX)
    expected = observe(wide, n, wide_inputs)
    assert torch.equal(stoch, expected[1].argmax(-1).int())
    total, wide_total = torch.zeros(()), torch.zeros((), dtype=torch.float64)
    for seed, (actual, value) in enumerate(zip((deter, onehot, post), expected, strict=True)):
        assert_close(actual, value.float(), rtol=1e-4, atol=1e-5)
        weight = normal(60 + seed, *actual.shape)
        total, wide_total = total + (actual * weight).sum(), wide_total + (value * weight).sum()
    total.backward()
    wide_total.backward()
    assert_same_gradients([weights, inputs.embed], [wide, wide_inputs.embed])


def test_observe_after_a_reset_forgets_everything_before() -> None:
    n = SIZES[1]
    weights, inputs = make_weights(n), observed(n)
    is_first = torch.zeros(n.B, n.T, dtype=torch.bool)
    is_first[:, 3] = True
    inputs = inputs._replace(is_first=is_first)
    before = torch.arange(n.T)[:, None]
    other = inputs._replace(
        deter=inputs.deter + 1,
        stoch=(inputs.stoch + 1) % n.K,
        embed=inputs.embed + (before < 3),
        action=inputs.action + (before <= 3),  # the action before the reset is forgotten too
    )
    runs = [observe_sequence(weights.core, weights.posterior, *x, UNIMIX) for x in (inputs, other)]
    for actual, expected in zip(*runs, strict=True):
        assert torch.equal(actual[:, 3:], expected[:, 3:])
    assert not torch.equal(runs[0][0][:, :3], runs[1][0][:, :3])


@torch.no_grad()
def imagine(
    weights: Weights, keys: tuple[ActionKey, ...], deter: Tensor, stoch: Tensor, uniform: Tensor, noise: Tensor,
    unimix: float, actor_unimix: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """deter, stoch int32 and action (N, H+1, ...) step by step in float64."""
    groups, classes = stoch.shape[1], weights.core.stoch.kernel.shape[0] // stoch.shape[1]
    state, latent = deter.double(), F.one_hot(stoch.long(), classes).double()
    steps = []
    for h in range(noise.shape[1]):
        feat = torch.cat([state, latent.flatten(1)], -1)
        action = act(weights.policy, keys, feat, noise[:, h].double(), actor_unimix)
        steps.append((state, latent.argmax(-1).int(), action))
        if h < uniform.shape[1]:
            state = core_step(weights.core, state, latent.flatten(1), action)
            latent = sample(logits(state, weights.prior, groups), uniform[:, h], unimix)
    deters, stochs, actions = (torch.stack(column, 1) for column in zip(*steps, strict=True))
    return deters, stochs, actions


@pytest.mark.parametrize("n", [sizes._replace(A=sum(key.width for key in KEYS)) for sizes in SIZES])
def test_imagine(n: Sizes) -> None:
    weights = make_weights(n, KEYS)
    for leaf in pytree.tree_leaves(weights):
        leaf.requires_grad_()
    deter, stoch = normal(50, n.B, n.D), (uniforms(51, n.B, n.S) * n.K).int()
    uniform, noise = uniforms(52, n.B, n.T, n.S), uniforms(53, n.B, n.T + 1, 3)
    noise[:, :, 2] = 2 * normal(54, n.B, n.T + 1)  # beyond 1 after the mean: the core scales, the record does not
    given = weights.core, weights.prior, weights.policy, KEYS, deter, stoch, uniform, noise
    got = imagine_sequence(*given, UNIMIX, 0.0)[:3]
    assert not any(value.requires_grad for value in got)
    expected = imagine(widen(weights), KEYS, deter, stoch, uniform, noise, UNIMIX)
    for actual, value in zip(got, expected, strict=True):
        assert_close(actual, value.to(actual.dtype), rtol=1e-4, atol=1e-5)
