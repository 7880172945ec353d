"""Philox is Philox; its numbers are uniform, normal and independent; a counter is all that a resumed run needs."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdreamer.noise import Noise, Stream
from fastdreamer_kernels.philox import reference

WORD = st.integers(0, 2**32 - 1)
# Known answers of Random123 1.14, kat_vectors, philox4x32 with 10 rounds: counter, key, output.
KNOWN = {
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}
DRAWS = 1 << 18


def plain_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 as its authors write it, on Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        (high0, low0), (high1, low1) = divmod(c0 * 0xD2511F53, 1 << 32), divmod(c2 * 0xCD9E8D57, 1 << 32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % (1 << 32), (k1 + 0xBB67AE85) % (1 << 32)
    return c0, c1, c2, c3


def vector_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    return tuple(int(word) for word in reference.philox_words((c0, c1, c2, c3), key))


@pytest.mark.parametrize("counter, key, output", KNOWN.values(), ids=KNOWN.keys())
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, int], output: tuple[int, ...]
) -> None:
    assert vector_philox(counter, key) == output
    assert plain_philox(counter, key) == output


@given(counter=st.tuples(WORD, WORD, WORD, WORD), key=st.tuples(WORD, WORD))
def test_philox_is_its_authors_definition(counter: tuple[int, ...], key: tuple[int, int]) -> None:
    assert vector_philox(counter, key) == plain_philox(counter, key)


@settings(deadline=None)
@given(seed=WORD, stream=st.sampled_from(Stream), rank=st.integers(0, 65535), counter=st.integers(0, 2**62))
def test_a_word_is_a_function_of_seed_stream_rank_counter_and_place(
    seed: int, stream: Stream, rank: int, counter: int
) -> None:
    source = Noise(seed, stream, rank)
    for step in range(2):
        source.counter.fill_(counter + step)
        high, low = divmod(counter + step, 1 << 32)
        expected = [plain_philox((block, low, high, 0), (seed, stream << 16 | rank)) for block in range(3)]
        assert source.bits(10).tolist() == [word for words in expected for word in words][:10]
        assert int(source.counter) == counter + step + 1


@pytest.mark.parametrize("backend", ["", "reference"])
def test_uniforms_and_normals_are_made_of_the_words(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDREAMER_KERNELS", backend)
    words = Noise(5, Stream.OBSERVE).bits(1000).tolist()
    assert Noise(5, Stream.OBSERVE).uniform(1000).tolist() == [(word >> 8) / 2**24 for word in words]
    normals = []
    for first, second in zip(words[::2], words[1::2], strict=True):
        radius, angle = math.sqrt(-2 * math.log((first + 0.5) / 2**32)), 2 * math.pi * second / 2**32
        normals += [radius * math.cos(angle), radius * math.sin(angle)]
    torch.testing.assert_close(Noise(5, Stream.OBSERVE).normal(1000), torch.tensor(normals), rtol=2e-7, atol=2e-7)


def test_uniforms_are_multiples_of_two_to_the_minus_24_below_one() -> None:
    draws = Noise(0, Stream.OBSERVE).uniform(DRAWS)
    assert draws.dtype == torch.float32
    assert 0 <= draws.min() < 1e-4 and 1 - 1e-4 < draws.max() < 1
    steps = draws.double() * 2**24
    assert torch.equal(steps, steps.round())
    assert 0.45 < (steps % 2).mean() < 0.55  # the last of the 24 bits is used


@pytest.mark.parametrize("word, uniform, magnitude", [(0, 0.0, 6.7637), (0xFFFFFFFF, 1 - 2**-24, 1.5259e-5)])
def test_the_extreme_words_give_finite_numbers(
    monkeypatch: pytest.MonkeyPatch, word: int, uniform: float, magnitude: float
) -> None:
    def words(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
        return tuple(torch.full_like(part, word) for part in counter)

    monkeypatch.setattr(reference, "philox_words", words)
    monkeypatch.setenv("FASTDREAMER_KERNELS", "reference")
    assert Noise(0, Stream.INIT).uniform(4).tolist() == [uniform] * 4
    draws = Noise(0, Stream.INIT).normal(4)
    assert draws.isfinite().all()
    torch.testing.assert_close(draws[0::2].abs(), torch.full((2,), magnitude), rtol=1e-4, atol=0)


def kolmogorov(probabilities: Tensor) -> float:
    """sqrt(n) times the largest distance of the empirical from the uniform distribution; 1.95 is the 0.1 % point."""
    ordered, n = probabilities.double().sort().values, len(probabilities)
    grid = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum((ordered - grid[:-1]).max(), (grid[1:] - ordered).max()) * math.sqrt(n))


def chi_square(bins: Tensor, count: int) -> float:
    """Of bin numbers that should be equally likely, in standard deviations from what is expected."""
    counts, expected = torch.bincount(bins, minlength=count).double(), len(bins) / count
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - (count - 1)) / math.sqrt(2 * (count - 1))


@pytest.mark.parametrize("seed, counter", [(0, 0), (1, 2**40), (2**32 - 1, 77)])
def test_uniforms_are_uniform(seed: int, counter: int) -> None:
    source = Noise(seed, Stream.IMAGINE)
    source.counter.fill_(counter)
    draws = source.uniform(DRAWS)
    assert kolmogorov(draws) < 1.95
    assert abs(chi_square((draws * 1024).long(), 1024)) < 4
    pair = (draws * 32).long().view(-1, 2)
    assert abs(chi_square(pair[:, 0] * 32 + pair[:, 1], 1024)) < 4  # neighbours are independent
    assert abs(float(draws.double().mean()) - 1 / 2) < 4 * math.sqrt(1 / 12 / DRAWS)


@pytest.mark.parametrize("seed, counter", [(0, 0), (1, 2**40), (2**32 - 1, 77)])
def test_normals_are_normal(seed: int, counter: int) -> None:
    source = Noise(seed, Stream.ACTION)
    source.counter.fill_(counter)
    draws = source.normal(DRAWS).double()
    assert kolmogorov(torch.special.ndtr(draws)) < 1.95
    # Mean and variance of x ** power under the normal distribution.
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((draws**power).mean()) - mean) < 4 * math.sqrt(variance / DRAWS), power
    for limit in (2.0, 3.0, 4.0):
        tail = math.erfc(limit / math.sqrt(2))
        assert abs(int((draws.abs() > limit).sum()) - tail * DRAWS) < 4 * math.sqrt(tail * DRAWS), limit
    pair = (torch.special.ndtr(draws) * 32).long().view(-1, 2)
    assert abs(chi_square(pair[:, 0] * 32 + pair[:, 1], 1024)) < 4  # cosine and sine are independent


def correlation(a: Tensor, b: Tensor) -> float:
    """Of two sets of draws, in standard deviations of what independent ones have."""
    return float(torch.corrcoef(torch.stack([a, b]).double())[0, 1]) * math.sqrt(len(a))


def test_sources_are_independent_and_never_share_a_block() -> None:
    sources = {
        "first": Noise(0, Stream.OBSERVE),
        "rank": Noise(0, Stream.OBSERVE, 1),
        "last rank": Noise(0, Stream.OBSERVE, 65535),
        "seed": Noise(1, Stream.OBSERVE),
        "high seed": Noise(1 << 31, Stream.OBSERVE),
        "seed and rank": Noise(1, Stream.OBSERVE, 1),
        "counter": Noise(0, Stream.OBSERVE),
        "high counter": Noise(0, Stream.OBSERVE),
    }
    sources |= {stream.name: Noise(0, stream) for stream in Stream if stream != Stream.OBSERVE}
    sources["counter"].counter.add_(1)
    sources["high counter"].counter.add_(1 << 32)
    words = {name: source.bits(16384) for name, source in sources.items()}
    for (name, a), (other, b) in combinations(words.items(), 2):
        assert abs(correlation(a, b)) < 4.5, (name, other)
    blocks = torch.cat(list(words.values())).view(-1, 4)
    assert len(blocks.unique(dim=0)) == len(blocks)


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 7, 64])
def test_a_call_is_independent_of_itself_shifted_and_of_the_next_call(lag: int) -> None:
    source = Noise(3, Stream.IMAGINE)
    first, second = source.uniform(DRAWS), source.uniform(DRAWS)
    assert abs(correlation(first[lag:], first[:-lag])) < 4
    assert abs(correlation(first[lag:], second[:-lag])) < 4


@pytest.mark.parametrize("kind", ["bits", "uniform", "normal"])
def test_numbers_do_not_depend_on_shape_or_on_how_many_are_computed_at_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = getattr(Noise(4, Stream.PLAN), kind)(3000)
    assert torch.equal(getattr(Noise(4, Stream.PLAN), kind)(1501), whole[:1501])
    if kind != "bits":
        assert torch.equal(getattr(Noise(4, Stream.PLAN), kind)(30, 5, 20), whole.view(30, 5, 20))
        assert getattr(Noise(4, Stream.PLAN), kind)(7, 0).shape == (7, 0)
        assert getattr(Noise(4, Stream.PLAN), kind)() == whole[0]
    monkeypatch.setenv("FASTDREAMER_KERNELS", "reference")
    for blocks in (1, 7, 749, 750):
        monkeypatch.setattr(reference, "CPU_BLOCKS", blocks)
        assert torch.equal(getattr(Noise(4, Stream.PLAN), kind)(3000), whole), blocks


def test_a_counter_is_all_there_is_to_resume() -> None:
    source, resumed = Noise(6, Stream.ACTION, 2), Noise(6, Stream.ACTION, 2)
    source.uniform(3), source.normal(0), source.bits(9)
    saved = int(source.counter)
    assert saved == 3
    resumed.counter.fill_(saved)
    assert torch.equal(resumed.normal(100), source.normal(100))
    assert torch.equal(resumed.uniform(100), source.uniform(100))
    assert torch.equal(resumed.counter, source.counter)


@pytest.mark.parametrize(
    "seed, rank, message",
    [
        (-1, 0, "seed must be in 0..4294967295, got -1"),
        (2**32, 0, "seed must be in 0..4294967295, got 4294967296"),
        (0, -1, "rank must be in 0..65535, got -1"),
        (0, 65536, "rank must be in 0..65535, got 65536"),
    ],
)
def test_a_seed_or_rank_out_of_range_is_refused(seed: int, rank: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Noise(seed, Stream.INIT, rank)
