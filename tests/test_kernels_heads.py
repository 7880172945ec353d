"""The ops that run parts of the model, reference and native, against float64: observe, imagine, mlp, twohot."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kernel_model_cases
import pytest
import test_kernels_backends as backends
import torch
from formulas import Sizes, make_weights, normal, observed, uniforms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import Case
from kernel_model_cases import MANY, MIXED, imagine_case, loss_case, make_bins, mean_case, mlp_case, observe_case
from safetensors.torch import load_file, save_file
from test_kernels_backends import CPU, bytes_of, check, check_by_chance, named, needs_native, results
from torch import Tensor
from torch.utils import _pytree as pytree

from fastdreamer_kernels import (
    _dispatch,
    _native,
    imagine_sequence,
    mlp,
    observe_sequence,
    twohot_loss,
    twohot_mean,
)
from fastdreamer_kernels.functional import Layer, Projection

BACKENDS = CPU[:2]  # Triton's sequence ops have tests of their own; heads and values have no Triton on purpose
RAGGED, LARGE = list(kernel_model_cases.ragged()), list(kernel_model_cases.large())
EVERY = backends.RAGGED + backends.LARGE + RAGGED + LARGE
OPS = sorted({case.op for case in RAGGED})
poisoned, threads = backends.poisoned, backends.threads


def first_of(op: str, cases: list[Case] = RAGGED) -> Case:
    return next(case for case in cases if case.op == op)


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


@needs_native
@pytest.mark.parametrize("case", named(LARGE))
def test_results_do_not_depend_on_the_number_of_threads(case: Case, threads: Callable[[int], None]) -> None:
    """Observing gives each thread rows of its own, as many as there are for it."""
    runs = []
    for count in (1, 2, 3, 7, 2):
        threads(count)
        runs.append(bytes_of(tuple(results(case))))
    assert runs[0] and all(run == runs[0] for run in runs[1:])


def other_instruction_sets() -> list[str]:
    if _native.library is None:
        return []
    best = ctypes.c_char_p(_native.library.fd_isa()).value or b""
    known = ["base", "v3", "v4"]
    return [each for each in known[: known.index(best.decode()) + 1] if each != _native.isa]


@needs_native
@pytest.mark.parametrize("isa", other_instruction_sets())
def test_instruction_sets_agree(isa: str, tmp_path: Path) -> None:
    """Indices and copies exactly; floats but for fused multiply-adds, which base does not have. Every native op."""
    script = f"import test_kernels_heads as t; t.save_results({str(tmp_path / 'results')!r})"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"FASTDREAMER_ISA": isa, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=120)
    other = load_file(tmp_path / "results")
    for case in EVERY:
        for i, mine in enumerate(results(case)):
            theirs = other[f"{case.name}/{i}"]
            if case.op == "replay_gather":
                assert torch.equal(mine, theirs)
            else:
                backends.assert_near(mine, theirs, case.absolute)


def save_results(path: str) -> None:
    save_file({f"{case.name}/{i}": x.contiguous() for case in EVERY for i, x in enumerate(results(case))}, path)


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
def test_a_nan_is_not_hidden(backend: str) -> None:
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


# What the contracts refuse

SIZES = Sizes(B=3, T=2, D=4, G=2, M=5, S=2, K=3, E=3, A=7)
WEIGHTS = make_weights(SIZES, MIXED)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def observing(**changed: Tensor) -> None:
    given_ = observed(SIZES)._asdict() | changed
    observe_sequence(WEIGHTS.core, WEIGHTS.posterior, **given_, unimix=0.01)


def imagining(**changed: Tensor) -> None:
    given_ = {"deter": zeros(3, 4), "stoch": zeros(3, 2, dtype=torch.int32), "uniform": zeros(3, 2, 2)}
    given_ |= {"action_noise": zeros(3, 3, 3)} | changed
    imagine_sequence(WEIGHTS.core, WEIGHTS.prior, WEIGHTS.policy, MIXED, **given_, unimix=0.01, actor_unimix=0.0)


def valuing(x: Tensor, stoch: Tensor | None) -> None:
    mlp(*kernel_model_cases.make_head(0, 10, 5, 2), x, stoch)


def mean(*shape: int, bins: Tensor) -> None:
    twohot_mean(zeros(*shape), bins)


INT = torch.int32
WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: observing(deter=zeros(2, 4)), r"observe_sequence: deter, .*got \(\(2,\)"),
    (lambda: observing(stoch=zeros(3, 3, dtype=INT)), r"observe_sequence: .*uniform must lead with .*\(3, 2, 3\)"),
    (lambda: observing(embed=zeros(3, 3, 3)), "observe_sequence: "),
    (lambda: observing(action=zeros(3, 1, 7)), r"observe_sequence: .*\(3, 1\)"),
    (lambda: observing(is_first=zeros(2, 2, dtype=torch.bool)), r"observe_sequence: .*\(2, 2\)"),
    (lambda: observing(uniform=zeros(3, 2, 1)), r"observe_sequence: .*\(3, 2, 1\)"),
    (lambda: observing(stoch=zeros(3, 2, dtype=torch.int64)), "observe_sequence: stoch must be torch.int32, got .*64"),
    (lambda: observing(is_first=zeros(3, 2)), "observe_sequence: is_first must be torch.bool, got torch.float32"),
    (lambda: observing(uniform=zeros(3, 2, 2, dtype=torch.float64)), "observe_sequence: uniform must be .*float32"),
    (lambda: imagining(stoch=zeros(3, 2, dtype=torch.int64)), "imagine_sequence: stoch must be torch.int32, got .*64"),
    (lambda: valuing(zeros(3, 4), zeros(3, 2, dtype=torch.int64)), "mlp: stoch must be torch.int32, got .*64"),
    (lambda: imagining(deter=zeros(2, 4)), r"imagine_sequence: deter, .*got \(\(2,\)"),
    (lambda: imagining(stoch=zeros(3, 3, dtype=INT)), r"imagine_sequence: .*\(3, 3\)"),
    (lambda: imagining(uniform=zeros(3, 3, 2)), "imagine_sequence: "),
    (lambda: imagining(action_noise=zeros(3, 3, 2)), r"imagine_sequence: .*\(3, 3, 2\)"),
    (lambda: valuing(zeros(3, 4), zeros(2, 2, dtype=INT)), r"mlp: .*\(3, 4\) and \(2, 2\)"),
    (lambda: valuing(zeros(3, 4), zeros(3, 4, dtype=INT)), r"mlp: .*\(3, 4\) and \(3, 4\)"),
    (lambda: valuing(zeros(3, 10), zeros(3, 2, dtype=INT)), r"mlp: .*\(3, 10\)"),
    (lambda: valuing(zeros(3, 9), None), r"mlp: .*\(3, 9\) and None"),
    (lambda: valuing(zeros(3, 10, dtype=torch.float64), None), "mlp: x must be torch.float32, got torch.float64"),
    (lambda: mean(2, 5, bins=zeros(3)), r"twohot_mean: .*\(3,\) for \(2, 5\)"),
    (lambda: mean(2, 4, bins=zeros(4)), r"twohot_mean: .*odd.*\(4,\)"),
    (lambda: mean(2, 1, bins=zeros(1)), r"twohot_mean: .*3..1023.*\(1,\)"),
    (lambda: mean(2, 1025, bins=zeros(1025)), r"twohot_mean: .*\(1025,\)"),
    (lambda: mean(2, 3, bins=zeros(1, 3)), r"twohot_mean: .*\(1, 3\)"),
    (lambda: twohot_loss(zeros(2, 4), zeros(4), zeros(2)), r"twohot_loss: bins .*\(4,\)"),
    (
        lambda: twohot_loss(zeros(2, 3), zeros(3), zeros(2), zeros(3)),
        r"twohot_loss: targets must be \(2,\), got .*\(3,",
    ),
]


@pytest.mark.parametrize("call, message", WRONG)
def test_wrong_inputs_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_right_inputs_are_taken() -> None:
    observing(), imagining(), valuing(zeros(3, 4), zeros(3, 2, dtype=INT)), valuing(zeros(3, 10), None)
    mean(2, 3, bins=zeros(3))
    twohot_loss(zeros(2, 3), zeros(3), zeros(2), zeros(2))


# Slow: leaks, and shapes by chance


@needs_native
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("op", OPS)
def test_calls_do_not_leak(op: str) -> None:
    backends.assert_no_leak(first_of(op), first_of(op, LARGE))


FEW, SOME = st.integers(1, 4), st.integers(1, 20)
UNIMIX = backends.UNIMIX
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
        st.lists(st.integers(2, 20), min_size=1, max_size=3).map(tuple), st.integers(0, 20), backends.SEED,
    ),
    "twohot_mean": st.builds(
        lambda lead, half, *rest: mean_case(lead, 2 * half + 1, *rest), LEAD, SOME, st.floats(1, 20), backends.SEED
    ),
    "twohot_loss": st.builds(
        lambda lead, half, *rest: loss_case(lead, 2 * half + 1, *rest),
        LEAD, SOME, st.integers(1, 3), st.floats(1, 20), backends.SEED,
    ),
}  # fmt: skip


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("op", SHAPES)
def test_shapes_by_chance(op: str) -> None:
    # Cases walk their sequences while they are drawn, which hypothesis takes for slow drawing.
    @settings(max_examples=1000, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(SHAPES[op])
    def property(case: Case) -> None:
        check_by_chance(case, "native")

    property()


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
