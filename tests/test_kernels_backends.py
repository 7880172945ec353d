"""Every backend of every op against float64, and what the native library promises beside values."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import formulas
import kernel_cases
import pytest
import torch
from formulas import normal, uniforms
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case, poison, to_float64
from torch import Tensor

import fastdreamer_kernels
from fastdreamer_kernels import _dispatch, _native, laprop_agc, unimix_kl, unimix_sample

if _dispatch.INTERPRETED:
    pytest.importorskip("triton")

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
"""Of the largest absolute value of a tensor. To bfloat16 Triton's interpreter cuts off where a GPU rounds."""
needs_native = pytest.mark.skipif(_native.library is None, reason="the native library was not built")
needs_interpreter = pytest.mark.skipif(not _dispatch.INTERPRETED, reason="needs TRITON_INTERPRET=1")
needs_gpu = pytest.mark.gpu
CPU = [
    pytest.param("reference", id="reference"),
    pytest.param("native", id="native", marks=needs_native),
    pytest.param("triton", id="triton", marks=needs_interpreter),
]
BACKENDS = [pytest.param(*each.values, "cpu", id=each.id, marks=each.marks) for each in CPU]
BACKENDS += [pytest.param(each, "cuda", id=f"{each}-cuda", marks=needs_gpu) for each in ("reference", "triton")]
RAGGED, LARGE = list(kernel_cases.ragged()), list(kernel_cases.large())
N = torch.float32


def named(cases: list[Case]) -> list[Any]:
    return [pytest.param(case, id=case.name) for case in cases]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel forgets to write is NaN, or the lowest integer."""
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoning(getattr(owner, name)))


def poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args, **options: poison(allocate(*args, **options))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def assert_near(actual: Tensor, expected: Tensor, absolute: float = 0.0) -> None:
    assert actual.shape == expected.shape
    if actual.dtype not in TOLERANCE:
        assert torch.equal(actual, expected)
        return
    error = (actual.double() - expected.double()).abs().max().item()
    size = expected.abs().max().item()
    assert error <= TOLERANCE[actual.dtype] * size + absolute, (error, size)


def pairs(case: Case, backend: str, device: str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
    """Every output and gradient of a case, and what its formula gives for it in float64."""
    inputs = [x.to(device) for x in case.inputs]
    wide = [to_float64(x) for x in case.inputs]
    for i in case.trained:
        inputs[i].requires_grad_(), wide[i].requires_grad_()
    outputs, expected = case.call(backend, *inputs), case.formula(*wide)
    assert len(outputs) == len(expected)
    total, wide_total = torch.zeros((), device=device), torch.zeros((), dtype=torch.float64)
    for i, (output, value) in enumerate(zip(outputs, expected, strict=True)):
        yield output.detach().cpu(), value.detach()
        assert output.requires_grad == value.requires_grad
        if value.requires_grad:
            weight = normal(90 + i, *value.shape)
            total = total + (output * weight.to(device)).sum()
            wide_total = wide_total + (value * weight).sum()
    if case.trained:
        grads = torch.autograd.grad(total, [inputs[i] for i in case.trained])
        assert all(grad.dtype == N for grad in grads)
        yield from zip(
            (grad.cpu() for grad in grads),
            torch.autograd.grad(wide_total, [wide[i] for i in case.trained]),
            strict=True,
        )


def check(case: Case, backend: str, device: str = "cpu") -> None:
    """Outputs and gradients of a case against its formula in float64."""
    for actual, expected in pairs(case, backend, device):
        assert_near(actual, expected, case.absolute)


def check_by_chance(case: Case, backend: str, device: str = "cpu") -> None:
    """The same for a case drawn by chance, which may be one that float32 itself is far off in.

    A norm over two features leaves hardly any gradient, for example: what the reference is off by counts as well.
    """
    of_reference = pairs(case, "reference", device)
    for (actual, expected), (reference, _) in zip(pairs(case, backend, device), of_reference, strict=True):
        absolute = case.absolute
        if actual.dtype in TOLERANCE:
            absolute += 8 * (reference.double() - expected.double()).abs().max().item()
        assert_near(actual, expected, absolute)


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


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_formulas_have_the_gradients_of_finite_differences(unimix: float) -> None:
    """The references compute in float32, too coarse for finite differences; so the float64 formulas stand for them."""
    logits, prior = normal(0, 2, 3, 4).double().requires_grad_(), normal(1, 2, 3, 4).double().requires_grad_()
    uniform = uniforms(2, 2, 3).double()
    torch.autograd.gradcheck(lambda x: kernel_cases.sample_formula(x, uniform, unimix)[2:], logits)
    torch.autograd.gradcheck(lambda x: formulas.mixed(x, unimix), logits)  # what the one-hot carries
    torch.autograd.gradcheck(lambda p, q: kernel_cases.kl(p, q, unimix), (logits, prior))
    inputs = [x.double().requires_grad_() for x in kernel_cases.gru_case(3, 6, 2).inputs]
    torch.autograd.gradcheck(formulas.gru, inputs)


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


@pytest.mark.parametrize("backend", CPU[:2])
def test_laprop_passes_a_nan_of_one_gradient_on_to_its_tensor_alone(backend: str) -> None:
    params, grads = [normal(0, 20), normal(1, 20)], [normal(2, 20), normal(3, 20)]
    grads[0][3] = torch.nan
    moments = [[torch.zeros(20), torch.zeros(20)] for _ in range(2)]
    shadow = [torch.zeros(20, dtype=torch.bfloat16) for _ in range(2)]
    one = torch.tensor(1.0)
    stats = laprop_agc(params, grads, *moments, shadow, [], [], one, one, 0.3, backend=backend)
    assert params[0].isnan().all() and shadow[0].isnan().all() and stats.isnan().all()
    assert params[1].isfinite().all() and shadow[1].isfinite().all()


# Threads, instruction sets, processes


def bytes_of(tensors: tuple[Tensor, ...]) -> list[bytes]:
    return [x.detach().contiguous().view(torch.uint8).numpy().tobytes() for x in tensors if x.ndim]


def results(case: Case, backend: str = "native") -> list[Tensor]:
    """Outputs and gradients."""
    inputs = list(case.inputs)
    for i in case.trained:
        inputs[i] = inputs[i].clone().requires_grad_()
    outputs = case.call(backend, *inputs)
    grads: tuple[Tensor, ...] = ()
    if case.trained:
        of = [x for x in outputs if x.requires_grad]
        grads = torch.autograd.grad(of, [inputs[i] for i in case.trained], [normal(9, *x.shape) for x in of])
    return [x.detach() for x in (*outputs, *grads)]


@needs_native
@pytest.mark.parametrize("case", named(LARGE))
def test_results_do_not_depend_on_the_number_of_threads(case: Case, threads: Callable[[int], None]) -> None:
    runs = []
    for count in (1, 2, 3, 2):
        threads(count)
        runs.append(bytes_of(tuple(results(case))))
    assert runs[0] and all(run == runs[0] for run in runs[1:])


@needs_native
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs fork and /proc")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_has_threads_of_its_own(threads: Callable[[int], None]) -> None:
    case = LARGE[2]
    threads(2)
    expected = bytes_of(case.call("native", *case.inputs))
    child = os.fork()
    if child == 0:  # if it waits for a thread of its parent, the alarm ends it
        signal.alarm(20)
        right = bytes_of(case.call("native", *case.inputs)) == expected
        os._exit(0 if right and len(os.listdir("/proc/self/task")) == 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bytes_of(case.call("native", *case.inputs)) == expected


@needs_native
def test_concurrent_callers_get_their_own_results(threads: Callable[[int], None]) -> None:
    threads(2)
    expected = [bytes_of(case.call("native", *case.inputs)) for case in LARGE]
    wrong: list[str] = []

    def work(first: int) -> None:
        for i in range(3 * len(LARGE)):
            case, value = LARGE[(first + i) % len(LARGE)], expected[(first + i) % len(LARGE)]
            if bytes_of(case.call("native", *case.inputs)) != value:
                wrong.append(case.name)

    workers = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


# What the contracts refuse


def zeros(*shape: int, dtype: torch.dtype = N) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def gather(**changed: Any) -> None:
    ring, index = zeros(2, 5, 3), torch.zeros(4, dtype=torch.int64)
    given_ = {"ring": ring, "env": index, "start": index, "length": 3, "out": zeros(4, 3, 3)} | changed
    fastdreamer_kernels.replay_gather(**given_)


def laprop(**changed: Any) -> None:
    names = ("params", "grads", "nu", "mu")
    given_: dict[str, Any] = {name: [zeros(2, 3), zeros(4)] for name in names}
    given_ |= {"shadow": [], "slow": [zeros(4)], "slow_index": [1], "step": zeros() + 1, "lr": zeros(), "agc": 0.3}
    laprop_agc(**given_ | changed)


def gru(**changed: Tensor) -> None:
    given_ = {"hidden": zeros(2, 4), "scale": zeros(4), "kernel": zeros(2, 2, 6), "bias": zeros(12)}
    fastdreamer_kernels.block_gru(**given_ | {"deter": zeros(2, 4)} | changed)


DOUBLE, HALF, INT = torch.float64, torch.bfloat16, torch.int64
WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: unimix_sample(zeros(2, 3, dtype=INT), zeros(2), 0.1), "unimix_sample: logits must be .*int64"),
    (lambda: unimix_sample(zeros(2, 3), zeros(2, dtype=DOUBLE), 0.1), "unimix_sample: uniform must be float32"),
    (lambda: unimix_sample(zeros(3), zeros(), 0.1), r"unimix_sample: logits must be .*\(3,\)"),
    (lambda: unimix_kl(zeros(3), zeros(3), 0.1, 1.0), r"unimix_kl: .*\(3,\)"),
    (lambda: unimix_kl(zeros(2, 3), zeros(2, 3, dtype=HALF), 0.1, 1.0), "unimix_kl: .*dtype.*bfloat16"),
    (lambda: unimix_kl(zeros(2, 3, dtype=INT), zeros(2, 3, dtype=INT), 0.1, 1.0), "unimix_kl: .*float.*int64"),
    (
        lambda: fastdreamer_kernels.lambda_return(zeros(2, 3), *[zeros(2, 3, dtype=DOUBLE)] * 3),
        "lambda_return: .*float32.*float64",
    ),
    (lambda: gru(hidden=zeros(2, 4, dtype=HALF)), "block_gru: .*dtype.*bfloat16"),
    (lambda: gru(scale=zeros(4, dtype=HALF)), "block_gru: .*scale be float32"),
    (lambda: gru(kernel=zeros(3, 1, 3)), r"block_gru: .*\(3, 1, 3\)"),
    (lambda: gather(ring=zeros(2)), r"replay_gather: ring must be .*\(2,\)"),
    (lambda: gather(length=6), "replay_gather: ring must .*6"),
    (lambda: gather(length=0), "replay_gather: ring must .*0"),
    (lambda: gather(out=zeros(4, 2, 3)), r"replay_gather: out must be \(4, 3, 3\).*\(4, 2, 3\)"),
    (lambda: gather(out=zeros(4, 3, 3, dtype=HALF)), "replay_gather: out must be .*bfloat16"),
    (lambda: gather(out=zeros(3, 4, 3).transpose(0, 1)), "replay_gather: .*contiguous"),
    (lambda: gather(env=zeros(4)), "replay_gather: env and start must be .*int64, got .*float32"),
    (lambda: gather(start=zeros(3, dtype=INT)), r"replay_gather: env and start must be .*\(3,\)"),
    (lambda: gather(env=zeros(4, dtype=INT) + 2), r"replay_gather: env must be in \[0, 2\), got 2..2"),
    (lambda: gather(start=zeros(4, dtype=INT) - 1), r"replay_gather: start must be in \[0, inf\), got -1..-1"),
    (lambda: laprop(grads=[zeros(2, 3)]), "laprop_agc: grads must be 2 tensors, got 1"),
    (lambda: laprop(nu=[zeros(2, 3), zeros(5)]), r"laprop_agc: nu\[1\] must be \(4,\).*\(5,\)"),
    (lambda: laprop(mu=[zeros(2, 3), zeros(4, dtype=HALF)]), r"laprop_agc: mu\[1\] must be .*float32, got .*bfloat16"),
    (lambda: laprop(shadow=[zeros(2, 3), zeros(4)]), r"laprop_agc: shadow\[0\] must be .*bfloat16"),
    (lambda: laprop(slow_index=[0]), r"laprop_agc: slow\[0\] must be \(2, 3\)"),
    (lambda: laprop(slow_index=[2]), r"laprop_agc: slow_index must ascend in \[0, 2\)"),
    (lambda: laprop(slow_index=[1, 0], slow=[zeros(4), zeros(2, 3)]), "laprop_agc: slow_index must ascend"),
    (lambda: laprop(step=zeros(1)), r"laprop_agc: step must be 0-d float32, got \(1,\)"),
    (lambda: laprop(lr=zeros(dtype=DOUBLE)), "laprop_agc: lr must be .*float64"),
    (lambda: laprop(agc=-1.0), "laprop_agc takes .*-1.0"),
    (lambda: laprop(params=[], grads=[], nu=[], mu=[], slow=[], slow_index=[]), "laprop_agc takes .*got 0"),
]


@pytest.mark.parametrize("call, message", WRONG)
def test_wrong_inputs_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_right_inputs_are_taken() -> None:
    gather(), laprop(), gru()


# Slow: leaks, and shapes by chance


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@needs_native
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("op", sorted({case.op for case in RAGGED}))
def test_calls_do_not_leak(op: str) -> None:
    small, big = (next(case for case in cases if case.op == op) for cases in (RAGGED, LARGE))
    assert_no_leak(small, big)


def assert_no_leak(small: Case, big: Case) -> None:
    for _ in range(200):
        results(small), results(big)
    before = resident_bytes()
    for _ in range(10_000):
        results(small)
    for _ in range(100):
        results(big)
    assert resident_bytes() - before < 4 << 20


UNIMIX = st.sampled_from([0.0, 0.01, 0.5, 1.0])
SIZE = st.integers(1, 40)
SEED = st.integers(0, 1 << 30)
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
    @settings(max_examples=1000 if backend == "native" else 50, deadline=None, database=None)
    @given(SHAPES[op])
    def property(case: Case) -> None:
        check_by_chance(case, backend)

    property()
