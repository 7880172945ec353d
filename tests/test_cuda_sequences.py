"""The Triton sequence ops against the reference and its gradients; without a GPU they run in Triton's interpreter."""

from collections.abc import Iterator

import pytest
import torch
from formulas import Observed, Sizes, Weights, make_weights, normal, observed, uniforms
from test_kernels_sequences import KEYS, UNIMIX, observe, widen
from torch import Tensor
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from fastdreamer_kernels.imagine_sequence import reference as imagine_reference
from fastdreamer_kernels.observe_sequence import reference as observe_reference
from fastdreamer_kernels.policy import ActionKey

triton = pytest.importorskip("triton")

from fastdreamer_kernels.imagine_sequence import cuda as imagine_cuda  # noqa: E402  # after importorskip
from fastdreamer_kernels.observe_sequence import cuda as observe_cuda  # noqa: E402  # after importorskip

INTERPRETED = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1")
DEVICES = [pytest.param("cpu", marks=INTERPRETED), pytest.param("cuda", marks=pytest.mark.gpu)]
SIZES = [
    Sizes(B=5, T=3, D=40, G=2, M=24, S=3, K=5, E=7, A=6),  # every dimension ragged, several tiles in none
    Sizes(B=18, T=2, D=96, G=2, M=33, S=5, K=4, E=5, A=3),  # two tiles of rows and of columns
]
TINY = Sizes(B=3, T=3, D=12, G=4, M=5, S=3, K=5, E=7, A=6)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fresh memory holds NaN, so that whatever a kernel leaves out or reads too early is seen."""
    empty, empty_like = torch.empty, torch.empty_like

    def filled(x: Tensor) -> Tensor:
        return x.fill_(float("nan") if x.is_floating_point() else 10**6)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *args, **kwargs: filled(empty(*args, **kwargs)))
        patch.setattr(torch, "empty_like", lambda *args, **kwargs: filled(empty_like(*args, **kwargs)))
        yield


def cast(tree: object, device: str, dtype: torch.dtype) -> object:
    """Kernels and biases in the compute dtype, scales in float32: the last of every three tensors of a layer."""
    if isinstance(tree, Tensor):
        return tree.to(device, dtype)
    if hasattr(tree, "scale"):
        return type(tree)(*(x.to(device, dtype) for x in tree[:2]), tree.scale.to(device))
    parts = (cast(x, device, dtype) for x in tree)
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def awkward(inputs: Observed) -> Observed:
    """A reset in the middle of some rows, at the start of one, and in none of the others; and the largest uniform."""
    is_first, uniform = torch.zeros_like(inputs.is_first), inputs.uniform.clone()
    is_first[::2, 1], is_first[0, 0] = True, True
    uniform[1] = 1 - 2**-24
    return inputs._replace(is_first=is_first, uniform=uniform)


def run_observe(weights: Weights, inputs: Observed) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    core, posterior = pytree.tree_leaves(weights.core), pytree.tree_leaves(weights.posterior)
    return observe_cuda.observe_sequence(core, posterior, *inputs, UNIMIX)


def on(device: str, inputs: Observed, dtype: torch.dtype) -> Observed:
    return Observed(*(x.to(device, dtype if x.is_floating_point() else x.dtype) for x in inputs))._replace(
        uniform=inputs.uniform.to(device)
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", SIZES)
def test_observe_and_every_gradient(n: Sizes, device: str) -> None:
    weights, inputs = make_weights(n), awkward(observed(n))
    if n.B == SIZES[0].B:  # a second layer of the posterior
        weights = weights._replace(
            posterior=weights.posterior._replace(layers=(weights.posterior.layers[0], weights.prior.layers[1]))
        )
    wide = widen(weights)
    wide_inputs = inputs._replace(embed=inputs.embed.double().requires_grad_())
    expected = observe(wide, n, wide_inputs)
    weights, inputs = cast(weights, device, torch.float32), on(device, inputs, torch.float32)
    deters, stochs, onehots, logits, saved = run_observe(weights, inputs)
    assert torch.equal(stochs.cpu(), expected[1].argmax(-1).int())
    assert torch.equal(onehots.argmax(-1).int(), stochs)
    assert torch.equal(onehots.sum(-1), torch.ones_like(onehots[..., 0]))
    grads = [normal(60 + i, *x.shape) for i, x in enumerate((deters, onehots, logits))]
    sum((x * g).sum() for x, g in zip(expected, grads, strict=True)).backward()
    assert_close(deters.cpu(), expected[0].float(), rtol=1e-5, atol=1e-5)
    assert_close(logits.cpu(), expected[2].float(), rtol=1e-5, atol=1e-5)
    core, posterior = pytree.tree_leaves(weights.core), pytree.tree_leaves(weights.posterior)
    _, stoch, embed, action, is_first, _ = inputs
    dcore, dposterior, dembed = observe_cuda.observe_sequence_backward(
        *(g.to(device) for g in grads), core, posterior, stoch, embed, action, is_first, deters, stochs, logits,
        saved, UNIMIX,
    )  # fmt: skip
    wide_leaves = [*pytree.tree_leaves(wide.core), *pytree.tree_leaves(wide.posterior), wide_inputs.embed]
    for i, (got, want) in enumerate(zip([*dcore, *dposterior, dembed], wide_leaves, strict=True)):
        assert got.shape == want.shape
        size = want.grad.abs().max().item()
        assert_close(got.cpu(), want.grad.float(), rtol=1e-4, atol=1e-5 * size, msg=lambda m, i=i: f"leaf {i}: {m}")


def same_until_a_sample_differs(got: Tensor, want: Tensor) -> Tensor:
    """(B, T) bool: steps up to which every sample of the row was the same."""
    return (got == want).all(-1).int().cumprod(1).bool()


@pytest.mark.parametrize("device", DEVICES)
def test_observe_in_bfloat16(device: str) -> None:
    n = SIZES[0]
    weights = cast(make_weights(n), device, torch.bfloat16)
    inputs = on(device, awkward(observed(n)), torch.bfloat16)
    leaves = [*pytree.tree_leaves(weights.core), *pytree.tree_leaves(weights.posterior), inputs.embed]
    for leaf in leaves:
        leaf.requires_grad_()
    want = observe_reference.observe_sequence(weights.core, weights.posterior, *inputs, UNIMIX)
    with torch.no_grad():
        deters, stochs, onehots, logits, saved = run_observe(weights, inputs)
    same = same_until_a_sample_differs(stochs, want[1])
    assert same[:, 0].float().mean() > 0.5
    assert deters.dtype == onehots.dtype == logits.dtype == torch.bfloat16
    assert_close(deters[:, 0], want[0][:, 0], rtol=2e-2, atol=2e-2)
    assert_close(deters[same], want[0][same], rtol=2e-2, atol=2e-2)
    assert_close(logits[same], want[3][same], rtol=3e-2, atol=3e-2)
    if not same.all():
        pytest.skip("a sample differs: the gradients are of another sequence")
    grads = [normal(60 + i, *x.shape).to(device, torch.bfloat16) for i, x in enumerate((deters, onehots, logits))]
    torch.autograd.backward([want[0], want[2], want[3]], grads)
    _, stoch, embed, action, is_first, _ = inputs
    with torch.no_grad():
        dcore, dposterior, dembed = observe_cuda.observe_sequence_backward(
            *grads, leaves[:14], leaves[14:-1], stoch, embed, action, is_first, deters, stochs, logits, saved,
            UNIMIX,
        )  # fmt: skip
    for got, leaf in zip([*dcore, *dposterior, dembed], leaves, strict=True):
        assert got.dtype == leaf.dtype
        error = (got.float() - leaf.grad.float()).norm() / leaf.grad.float().norm()
        assert error < 3e-2


CLASSES = (ActionKey(elements=2, classes=3), ActionKey(elements=1, classes=17))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n, keys", [(SIZES[0], KEYS), (SIZES[1]._replace(B=35), CLASSES), (TINY, KEYS)])
def test_imagine(n: Sizes, keys: tuple[ActionKey, ...], device: str) -> None:
    """35 rows take the one-hot inputs as matmuls, 5 as sums of kernel rows."""
    n = n._replace(A=sum(key.width for key in keys))
    weights = cast(make_weights(n, keys), device, torch.float32)
    elements = sum(key.elements for key in keys)
    deter, stoch = normal(50, n.B, n.D).to(device), (uniforms(51, n.B, n.S) * n.K).int().to(device)
    uniform, noise = uniforms(52, n.B, n.T, n.S).to(device), uniforms(53, n.B, n.T + 1, elements)
    if not keys[-1].classes:
        noise[:, :, -1] = 2 * normal(54, n.B, n.T + 1)  # beyond 1 after the mean: the core scales, the record does not
    inputs = (deter, stoch, uniform, noise.to(device), UNIMIX, 0.0)
    want = imagine_reference.imagine_sequence(weights.core, weights.prior, weights.policy, keys, *inputs)
    lists = [pytree.tree_leaves(tree) for tree in (weights.core, weights.prior, weights.policy)]
    flat = [number for key in keys for number in key]
    got = imagine_cuda.imagine_sequence(*lists, len(weights.policy.trunk), flat, *inputs)
    assert torch.equal(got[1], want[1])
    assert_close(got[0], want[0], rtol=1e-5, atol=1e-5)
    assert_close(got[2], want[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_imagine_in_bfloat16(device: str) -> None:
    n = SIZES[0]._replace(A=sum(key.width for key in KEYS))
    weights = cast(make_weights(n, KEYS), device, torch.bfloat16)
    deter = normal(50, n.B, n.D).to(device, torch.bfloat16)
    stoch = (uniforms(51, n.B, n.S) * n.K).int().to(device)
    inputs = (deter, stoch, uniforms(52, n.B, n.T, n.S).to(device), uniforms(53, n.B, n.T + 1, 3).to(device))
    want = imagine_reference.imagine_sequence(weights.core, weights.prior, weights.policy, KEYS, *inputs, UNIMIX, 0.0)
    lists = [pytree.tree_leaves(tree) for tree in (weights.core, weights.prior, weights.policy)]
    flat = [number for key in KEYS for number in key]
    got = imagine_cuda.imagine_sequence(*lists, len(weights.policy.trunk), flat, *inputs, UNIMIX, 0.0)
    choices = [torch.cat([stoch.float(), action[..., :6]], -1) for _, stoch, action in (got, want)]
    same = same_until_a_sample_differs(*choices)
    assert same[:, 1].float().mean() > 0.5
    assert_close(got[0][same], want[0][same], rtol=2e-2, atol=2e-2)
    assert_close(got[2][same], want[2][same], rtol=2e-2, atol=3e-2)
