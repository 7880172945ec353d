"""The ops that run parts of the model, reference and native, against float64: observe, imagine, mlp, twohot."""

from collections.abc import Iterator
from typing import Any

import kernel_model_cases
import pytest
import torch
from formulas import Sizes, make_weights, normal, observed, uniforms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import Case
from kernel_checks import CPU, SEED, UNIMIX, bytes_of, check, check_by_chance, named, needs_native, results
from kernel_model_cases import MANY, MIXED, imagine_case, loss_case, mean_case, mlp_case, observe_case
from torch import Tensor
from torch.utils import _pytree as pytree

from fastdreamer_kernels import _dispatch, imagine_sequence, mlp
from fastdreamer_kernels.functional import Projection

BACKENDS = CPU[:2]  # Triton's sequence ops have tests of their own; heads and values have no Triton on purpose
RAGGED, LARGE = list(kernel_model_cases.ragged()), list(kernel_model_cases.large())
OPS = sorted({case.op for case in RAGGED})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", named(RAGGED))
@pytest.mark.usefixtures("poisoned")
def test_values_and_gradients(case: Case, backend: str) -> None:
    check(case, backend)


@needs_native
@pytest.mark.parametrize("case", named(LARGE))
@pytest.mark.usefixtures("poisoned")
def test_large_values_and_gradients(case: Case) -> None:
    check(case, "native")


@needs_native
@pytest.mark.parametrize("case", named([case for case in RAGGED + LARGE if case.op == "mlp"]))
def test_mlp_gives_the_same_where_it_keeps_nothing(case: Case) -> None:
    """Frozen weights take the path without memory for the backward pass."""
    assert not any(x.requires_grad for x in case.inputs)
    assert bytes_of(case.call("native", *case.inputs)) == bytes_of((results(case)[0],))


@needs_native
@pytest.mark.parametrize("case", named([case for case in RAGGED + LARGE if case.op == "imagine_sequence"]))
@pytest.mark.usefixtures("poisoned")
def test_what_the_policy_leaves_is_what_mlp_would(case: Case) -> None:
    """Outputs and gradients of the policy's weights on the dreamt states, bit by bit."""
    seen: dict[str, Any] = {}

    def spy(*given: Any, backend: str) -> tuple[Any, ...]:
        seen["policy"], seen["dream"] = given[2], imagine_sequence(*given, backend=backend)
        return seen["dream"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_model_cases, "imagine_sequence", spy)
        case.call("native", *case.inputs)
    (trunk, outputs), (deter, stoch, _, kept) = seen["policy"], seen["dream"]
    flat = [out for outs in outputs for out in outs]
    joined = Projection(torch.cat([out.kernel for out in flat], 1), torch.cat([out.bias for out in flat]))
    leaves, spec = pytree.tree_flatten((trunk, joined))
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    runs = []
    for known in (None, kept):
        out = mlp(*pytree.tree_unflatten(leaves, spec), deter, stoch, known, backend="native")
        runs.append(bytes_of((out.detach(), *torch.autograd.grad(out, leaves, normal(5, *out.shape)))))
    assert runs[0] == runs[1]


def kernel_calls() -> Iterator[tuple[str, tuple[Any, ...]]]:
    def trained(tensors: list[Tensor]) -> list[Tensor]:
        return [x.clone().requires_grad_() for x in tensors]

    n = Sizes(B=3, T=2, D=4, G=2, M=5, S=2, K=3, E=3, A=7)
    weights, inputs = make_weights(n, MIXED), observed(n)
    core, post, prior, policy = (
        pytree.tree_leaves(tree) for tree in (weights.core, weights.posterior, weights.prior, weights.policy)
    )
    given_ = (inputs.deter, inputs.stoch, inputs.embed.clone().requires_grad_(), *inputs[3:])
    yield "observe_sequence", (trained(core), trained(post), *given_, 0.01)
    deters, stochs, onehots, logits, saved = _dispatch.kernel("observe_sequence", "native")(core, post, *inputs, 0.01)
    grads = (normal(70 + i, *x.shape) for i, x in enumerate((deters, onehots, logits)))
    kept = (inputs.stoch, inputs.embed, inputs.action, inputs.is_first, deters, stochs, logits, saved)
    yield "observe_sequence_backward", (*grads, core, post, *kept, 0.01)
    noise = (uniforms(80, n.B, n.T, n.S), uniforms(81, n.B, n.T + 1, 3))
    keys = [number for key in MIXED for number in key]
    yield "imagine_sequence", (core, prior, policy, 2, keys, inputs.deter, inputs.stoch, *noise, 0.01, 0.0)
    *stack, deter, stoch = mlp_case((4,), 5, 3, 4, (7, 9), 3).inputs
    for keep in (True, False):
        yield "mlp", (trained(stack) if keep else stack, deter, stoch, keep)
    yield "mlp", (trained(stack[:-2]), torch.cat([deter, normal(84, 4, 12)], -1).requires_grad_(), None, True)
    kept_out, kept_layers = _dispatch.kernel("mlp", "native")(stack, deter, stoch, True)
    yield "mlp_kept", (trained(stack), deter, stoch, kept_out, kept_layers)
    for inner in (True, False):
        yield "mlp_backward", (normal(82, 4, 3), stack, deter, stoch, kept_layers, inner)
    values, bins, *targets = loss_case((6,), 9, 2).inputs
    stacked = torch.stack(targets, -1)
    yield "twohot_mean", (values, bins)
    yield "twohot_loss", (values.clone().requires_grad_(), bins, stacked)
    yield "twohot_loss_backward", (normal(83, 6), values, bins, stacked)


@needs_native
@pytest.mark.parametrize("index", range(12))
def test_native_kernels_are_proper_ops(index: int) -> None:
    name, args = list(kernel_calls())[index]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if name == "observe_sequence":
        checks.pop()  # five seconds for its twenty weights: the next test traces it, of fixed shapes as in training
    torch.library.opcheck(_dispatch.kernel(name, "native"), args, test_utils=checks)


@needs_native
@pytest.mark.parametrize("op", OPS)
def test_contracts_trace_without_a_break(op: str) -> None:
    case = next(case for case in RAGGED if case.op == op and case.inputs[-1].numel() > 6)
    traced = torch.compile(case.call, backend="aot_eager", fullgraph=True, dynamic=False)
    expected = results(case)
    for actual, value in zip(results(case._replace(call=traced)), expected, strict=True):
        assert torch.equal(actual, value)


# Slow: shapes by chance


FEW, SOME = st.integers(1, 4), st.integers(1, 20)
LEAD = st.lists(SOME, min_size=1, max_size=2).map(tuple)
MODEL = st.builds(
    lambda rows, steps, part, blocks, *rest: Sizes(rows, steps, part * blocks, blocks, *rest),
    SOME, FEW, st.integers(2, 9), FEW, st.integers(2, 20), FEW, st.integers(2, 9), SOME, SOME,
)  # fmt: skip
SHAPES: dict[str, st.SearchStrategy[Case]] = {
    "observe_sequence": st.builds(observe_case, MODEL, st.integers(1, 3), UNIMIX),
    "imagine_sequence": st.builds(
        imagine_case, MODEL, st.sampled_from([MIXED, MIXED[:1], MIXED[1:], MANY]), UNIMIX, UNIMIX, st.integers(1, 3)
    ),
    "mlp": st.builds(
        mlp_case, LEAD, SOME, st.integers(0, 4), st.integers(1, 9),
        st.lists(st.integers(4, 20), min_size=1, max_size=3).map(tuple),  # fewer: no gradient is left
        st.integers(0, 20), SEED,
    ),
    "twohot_mean": st.builds(
        lambda lead, half, *rest: mean_case(lead, 2 * half + 1, *rest), LEAD, SOME, st.floats(1, 20), SEED
    ),
    "twohot_loss": st.builds(
        lambda lead, half, *rest: loss_case(lead, 2 * half + 1, *rest),
        LEAD, SOME, st.integers(1, 3), st.floats(1, 20), SEED,
    ),
}  # fmt: skip


CHANCES = [
    pytest.param(op, *each.values, id=f"{op}-{each.id}", marks=each.marks)
    for op in SHAPES
    for each in CPU[1:]
    if each.values[0] in _dispatch.backends()[op]
]


@pytest.mark.slow
@pytest.mark.parametrize("op, backend", CHANCES)
def test_shapes_by_chance(op: str, backend: str) -> None:
    run = check if op.startswith("twohot") else check_by_chance

    # Cases walk their sequences while they are drawn, which hypothesis takes for slow drawing.
    @settings(
        max_examples=1000 if backend == "native" else 50, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(SHAPES[op])
    def property(case: Case) -> None:
        run(case, backend)

    property()
