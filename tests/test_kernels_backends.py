"""Every backend of the small ops against float64, and as ops of torch.library."""

from collections.abc import Iterator
from typing import Any

import kernel_cases
import pytest
import torch
from formulas import normal, uniforms
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case
from kernel_checks import BACKENDS, CPU, SEED, UNIMIX, check, check_by_chance, named, needs_native, results

from fastdreamer_kernels import _dispatch, unimix_sample

RAGGED, LARGE = list(kernel_cases.ragged()), list(kernel_cases.large())


@pytest.mark.parametrize("backend, device", BACKENDS)
@pytest.mark.parametrize("case", named(RAGGED))
@pytest.mark.usefixtures("poisoned")
def test_values_and_gradients(case: Case, backend: str, device: str) -> None:
    check(case, backend, device)


@needs_native
@pytest.mark.parametrize("case", named(LARGE))
@pytest.mark.usefixtures("poisoned")
def test_large_values_and_gradients(case: Case) -> None:
    check(case, "native")


# What torch.library asks of a kernel: schema, fake, autograd, and the same under torch.compile's tracing.


def kernel_calls() -> Iterator[tuple[str, tuple[Any, ...]]]:
    logits, uniform = normal(0, 6, 5), uniforms(1, 6)
    index, onehot, log_prob, entropy = unimix_sample(logits, uniform, 0.01, backend="reference")
    yield "unimix_sample", (logits.clone().requires_grad_(), uniform, 0.01)
    yield "unimix_sample_backward", (onehot, log_prob, entropy, logits, index, 0.01)
    post, prior = normal(2, 3, 4, 5), normal(3, 3, 4, 5)
    yield "unimix_kl", (post.clone().requires_grad_(), prior.clone().requires_grad_(), 0.01, 1.0)
    yield "unimix_kl_backward", (normal(4, 3), normal(5, 3), post, prior, 0.01, 1.0)
    yield "lambda_return", kernel_cases.return_case(3, 7).inputs
    inputs = kernel_cases.gru_case(3, 12, 4).inputs
    yield "block_gru", tuple(x.clone().requires_grad_() for x in inputs)
    hidden, scale, kernel, _, deter = inputs
    yield "block_gru_backward", (normal(6, 3, 12), hidden, scale, kernel, deter, normal(7, 3, 36), uniforms(8, 3))
    ring, env, start = kernel_cases.gather_case((2, 9, 3), 4, 6).inputs
    yield "replay_gather", (ring, env, start, 4, torch.zeros(6, 4, 3))
    lists = [[normal(20 + i, 3, 5), normal(30 + i, 7)] for i in range(4)]
    lists[2] = [x.square() for x in lists[2]]
    shadow = [torch.zeros(x.shape, dtype=torch.bfloat16) for x in lists[0]]
    yield "laprop_agc", (*lists, shadow, [normal(40, 7)], [1], torch.tensor(3.0), torch.tensor(1e-2), 0.3)


@needs_native
@pytest.mark.parametrize("name, args", [pytest.param(*call, id=call[0]) for call in kernel_calls()])
def test_native_kernels_are_proper_ops(name: str, args: tuple[Any, ...]) -> None:
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if name == "unimix_sample":
        checks.pop()  # it adds up all outputs, which fails for int32 and float32: the next test stands in
    torch.library.opcheck(_dispatch.kernel(name, "native"), args, test_utils=checks)


@needs_native
@pytest.mark.parametrize("op", ["unimix_sample", "unimix_kl", "lambda_return", "block_gru"])
def test_contracts_trace_without_a_break(op: str) -> None:
    case = next(case for case in RAGGED if case.op == op and case.inputs[0].numel() > 20)
    traced = torch.compile(case.call, backend="aot_eager", fullgraph=True, dynamic=True)
    expected = results(case)
    for actual, value in zip(results(case._replace(call=traced)), expected, strict=True):
        assert torch.equal(actual, value)


# Slow: shapes by chance


SIZE = st.integers(1, 40)
SHAPES: dict[str, st.SearchStrategy[Case]] = {
    "unimix_sample": st.builds(
        kernel_cases.sample_case, st.tuples(SIZE, SIZE), st.integers(1, 100), UNIMIX, SEED, st.floats(0.01, 10)
    ),
    "unimix_kl": st.builds(kernel_cases.kl_case, st.tuples(SIZE), SIZE, SIZE, UNIMIX, st.booleans(), SEED),
    "lambda_return": st.builds(kernel_cases.return_case, SIZE, st.integers(2, 40), SEED),
    "block_gru": st.builds(
        lambda rows, part, blocks, seed: kernel_cases.gru_case(rows, part * blocks, blocks, seed),
        SIZE, st.integers(2, 20), st.integers(1, 8), SEED,
    ),
    "replay_gather": st.builds(
        lambda envs, rows, row, length, windows, dtype, seed: kernel_cases.gather_case(
            (envs, rows, *row), min(length, rows), windows, dtype, seed
        ),
        SIZE, SIZE, st.lists(st.integers(1, 9), max_size=3), SIZE, SIZE,
        st.sampled_from([torch.uint8, torch.bool, torch.bfloat16, torch.float32, torch.int64]), SEED,
    ),
    "laprop_agc": st.builds(
        lambda shapes, agc, step, slow, shadow, seed: kernel_cases.laprop_case(
            shapes, agc, step, tuple(range(len(shapes)))[:slow], shadow, seed
        ),
        st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4),
        st.sampled_from([0.0, 0.3]), st.integers(1, 3000), st.integers(0, 4), st.booleans(), SEED,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("backend", CPU[1:])
@pytest.mark.parametrize("op", SHAPES)
def test_shapes_by_chance(op: str, backend: str) -> None:
    run = check_by_chance if op == "block_gru" else check

    @settings(max_examples=1000 if backend == "native" else 50, deadline=None, database=None)
    @given(SHAPES[op])
    def property(case: Case) -> None:
        run(case, backend)

    property()
