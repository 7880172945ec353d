"""The generator's kernels against the reference, which tests/test_noise.py holds to the published numbers."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import Case
from kernel_checks import CPU, assert_no_leak, needs_gpu, needs_interpreter, needs_native
from torch import Tensor

from fastdreamer_kernels import _dispatch, philox
from fastdreamer_kernels.philox import Kind

KINDS: tuple[Kind, ...] = ("bits", "uniform", "normal")
WORD = st.integers(0, 2**32 - 1)
MANY = 1_000_003
DEVICES = [pytest.param("cpu", marks=needs_interpreter), pytest.param("cuda", marks=needs_gpu)]


def at(counter: int) -> Tensor:
    return torch.tensor(counter)


@needs_native
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key, counter", [((0, 0), 0), ((2**32 - 1, 2**32 - 1), 2**33 - 1), ((7, 3 << 16 | 5), 2**62)])
def test_a_million_numbers_are_bit_equal(kind: Kind, key: tuple[int, int], counter: int) -> None:
    """Normals are rounded from float64, where two math libraries are a last bit apart: one in 1e8 may differ."""
    native = philox(kind, key, at(counter), MANY, backend="native")
    assert torch.equal(native, philox(kind, key, at(counter), MANY, backend="reference"))


@needs_native
@settings(max_examples=300, deadline=None, database=None)
@given(st.sampled_from(KINDS), st.tuples(WORD, WORD), st.integers(0, 2**62), st.integers(0, 700))
def test_any_key_counter_and_count(kind: Kind, key: tuple[int, int], counter: int, count: int) -> None:
    native = philox(kind, key, at(counter), count, backend="native")
    expected = philox(kind, key, at(counter), count, backend="reference")
    assert native.dtype == expected.dtype and torch.equal(native, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 3, 1024, 4099])
@pytest.mark.parametrize(
    "key, counter", [((0, 1), 0), ((2**32 - 1, 2**31), 2**33 - 1), ((2**31 - 1, 16), 2**62), ((1, 2**32 - 16), 2**32)]
)
def test_the_triton_kernel(device: str, kind: Kind, count: int, key: tuple[int, int], counter: int) -> None:
    """Bit by bit; on a GPU a normal may be a last bit apart, where its float64 math library is."""
    ours = philox(kind, key, at(counter).to(device), count, backend="triton")
    expected = philox(kind, key, at(counter), count, backend="reference")
    assert ours.dtype == expected.dtype
    torch.testing.assert_close(ours.cpu(), expected, rtol=2**-23 if kind == "normal" else 0, atol=0)


@needs_interpreter
@settings(max_examples=40, deadline=None, database=None)
@given(st.sampled_from(KINDS), st.tuples(WORD, WORD), st.integers(0, 2**62), st.integers(0, 1500))
def test_any_key_counter_and_count_in_triton(kind: Kind, key: tuple[int, int], counter: int, count: int) -> None:
    ours = philox(kind, key, at(counter), count, backend="triton")
    expected = philox(kind, key, at(counter), count, backend="reference")
    torch.testing.assert_close(ours, expected, rtol=2**-23 if kind == "normal" else 0, atol=0)


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_every_replay_of_a_graph_reads_the_counter_again(kind: Kind) -> None:
    key, first = (2**32 - 1, 16), 2**32 - 2
    counter = at(first).cuda()
    philox(kind, key, counter, 99)  # compiles outside of the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = philox(kind, key, counter, 99)
        counter.add_(1)
    for step in range(4):
        graph.replay()
        expected = philox(kind, key, at(first + step), 99, backend="reference")
        torch.testing.assert_close(drawn.cpu(), expected, rtol=2**-23 if kind == "normal" else 0, atol=0)


@needs_native
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_do_not_depend_on_the_number_of_threads(kind: Kind, threads: Callable[[int], None]) -> None:
    runs = []
    for count in (1, 2, 3):
        threads(count)
        runs.append(philox(kind, (1, 2), at(3), 100_001, backend="native"))
    assert all(torch.equal(run, runs[0]) for run in runs[1:])


@pytest.mark.parametrize("backend", CPU[1:])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_proper_op(kind: Kind, backend: str) -> None:
    torch.library.opcheck(_dispatch.kernel("philox", backend), (kind, [1, 2], at(3), 9))
    traced = torch.compile(philox, backend="aot_eager", fullgraph=True, dynamic=False)
    args = kind, (1, 2), at(3), 9, backend
    assert torch.equal(traced(*args), philox(*args))


@pytest.mark.parametrize(
    "args, message",
    [
        (("bits", (0, 2**32), at(0), 1), r"kind, key and count must be .*words in 0..4294967295 .*\(0, 4294967296\)"),
        (("bits", (1, 2, 3), at(0), 1), r"kind, key and count must be .*two words .*\(1, 2, 3\)"),  # type: ignore[arg-type]
        (("bits", (-1, 0), at(0), 1), r"kind, key and count must be .*\(-1, 0\)"),
        (("uniform", (0, 0), at(0), -1), "kind, key and count must be .*0 or more, got 'uniform', .* and -1"),
        (("gamma", (0, 0), at(0), 1), "kind, key and count must be one of bits, uniform, normal.*got 'gamma'"),
        (("bits", (0, 0), torch.zeros(2, dtype=torch.int64), 1), r"counter must be 0-d, got \(2,\)"),
        (("bits", (0, 0), torch.zeros(()), 1), "counter must be torch.int64, got torch.float32"),
    ],
)
def test_wrong_inputs_are_named(args: tuple[Kind, tuple[int, int], Tensor, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^philox: {message}"):
        philox(*args)


@needs_native
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_calls_do_not_leak(kind: Kind) -> None:
    def case(count: int) -> Case:
        return Case("philox", lambda backend: (philox(kind, (1, 2), at(3), count, backend=backend),), lambda: (), ())

    assert_no_leak(case(7), case(100_000))
