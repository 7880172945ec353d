"""The ring does what lists of records do, whatever the sizes; sampling is uniform; misuse gets one line."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from fake_replay import (
    DETER,
    STOCH,
    ListReplay,
    add,
    assert_equal,
    drive,
    flatten,
    gather,
    make_record,
    make_ring,
    pairs,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdreamer import replay_files
from fastdreamer.noise import Noise, Stream
from fastdreamer.replay import Plan, _below


@pytest.fixture(autouse=True)
def chunks_of_three() -> Iterator[None]:
    """Rows come in whole chunks: short ones let a small ring wrap around."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay_files, "CHUNK", 3)
        yield


DTYPES = [torch.float32, torch.bfloat16]
SIZES = {
    "num_envs": st.integers(1, 4),
    "capacity": st.integers(1, 40),
    "batch_size": st.integers(1, 6),
    "batch_length": st.integers(1, 5),
}
# How many records are added before a plan, and how many more before it is gathered and written back.
STEPS = st.lists(st.tuples(st.integers(0, 25), st.sampled_from([0, 0, 1, 5, 12, 40])), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(sizes=st.fixed_dictionaries(SIZES), steps=STEPS, seed=st.integers(0, 99), dtype=st.sampled_from(DTYPES))
def test_the_ring_does_what_lists_do(
    sizes: dict[str, int], steps: list[tuple[int, int]], seed: int, dtype: torch.dtype
) -> None:
    ring, lists, rng = make_ring(seed=seed, dtype=dtype, **sizes), ListReplay(**sizes), np.random.default_rng(seed)
    for adds, delay in steps:
        drive([ring], lists, rng, adds, delay, dtype)


def test_the_newest_windows_of_all_environments_can_be_sampled() -> None:
    ring, rng = make_ring(num_envs=3, capacity=10, batch_length=4), np.random.default_rng(0)
    ranges = []
    for _ in range(10):
        add(ring, make_record(rng, 3))
        ranges.append(ring.window_range())
    assert ranges == [(0, 0)] * 4 + [(0, 3), (0, 6), (0, 9), (2, 12), (5, 15), (8, 18)]
    drawn = {window for _ in range(40) for window in pairs(ring.plan())}
    assert drawn == {(env, start) for env, start in ((n % 3, n // 3) for n in range(8, 18))}


def test_online_windows_come_first_in_order_and_once() -> None:
    """Windows of 5 records without overlap, from the second record on: 1..5, 6..10, ..."""
    ring, rng = make_ring(num_envs=2, capacity=50, batch_size=3, batch_length=4), np.random.default_rng(0)
    for _ in range(11):
        add(ring, make_record(rng, 2))
    plans = [ring.plan() for _ in range(3)]
    assert [plan.online for plan in plans] == [3, 1, 0]
    assert pairs(plans[0]) == [(0, 1), (1, 1), (0, 6)]
    assert pairs(plans[1])[0] == (1, 6)


def test_online_windows_that_are_too_old_are_dropped() -> None:
    ring, rng = make_ring(num_envs=2, capacity=5, batch_size=3, batch_length=4), np.random.default_rng(0)
    for _ in range(21):
        add(ring, make_record(rng, 2))
    assert ring.window_range() == (29, 34)  # from the one that starts at record 14 of environment 1
    plan = ring.plan()
    assert (plan.online, pairs(plan)[:2]) == (2, [(0, 16), (1, 16)])
    assert ring.plan().online == 0


def test_windows_are_drawn_uniformly_with_replacement() -> None:
    ring, rng = make_ring(num_envs=3, capacity=40, batch_size=16, batch_length=4), np.random.default_rng(0)
    for _ in range(60):
        add(ring, make_record(rng, 3))
    low, high = ring.window_range()
    assert high - low == 40
    counts = np.zeros(40)
    repeats = 0
    while ring.plan().online:
        pass
    for _ in range(1000):
        plan = ring.plan()
        numbers = plan.start * 3 + plan.env - low
        np.add.at(counts, numbers, 1)
        repeats += 16 - len(set(numbers.tolist()))
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert 17.3 < chi_square < 72.1  # 0.1 % on either side, 39 degrees of freedom
    assert repeats / 1000 == pytest.approx(16 - 40 * (1 - (1 - 1 / 40) ** 16), abs=0.15)


@given(span=st.integers(1, 2**31 - 1), high=st.integers(0, 2**32 - 1), low=st.integers(0, 2**32 - 1))
def test_a_number_below_the_span_is_drawn_from_all_64_bits(span: int, high: int, low: int) -> None:
    words = (np.array([word], np.uint64) for word in (high, low))
    assert _below(span, *words).tolist() == [span * (high << 32 | low) >> 64]


def test_a_plan_is_made_of_64_bits_per_window() -> None:
    ring, rng = make_ring(num_envs=3, capacity=40, batch_size=3, batch_length=4, seed=8), np.random.default_rng(0)
    for _ in range(5):
        add(ring, make_record(rng, 3))
    words = Noise(8, Stream.PLAN).bits(6).tolist()
    windows = [(words[2 * b] << 32 | words[2 * b + 1]) * 3 >> 64 for b in range(3)]
    assert pairs(ring.plan()) == [(window, 0) for window in windows]
    # Two draws on either side of a third of 2**64: only their last bits differ.
    third = 0x55555555
    ring.noise.bits = lambda _: torch.tensor([third, third, third, third + 1, 0xFFFFFFFF, 0])  # type: ignore[method-assign]
    assert pairs(ring.plan()) == [(0, 0), (1, 0), (2, 0)]


def test_plans_depend_on_seed_and_rank_and_on_nothing_else() -> None:
    def plans(seed: int, rank: int = 0) -> list[list[tuple[int, int]]]:
        ring, rng = make_ring(capacity=100, seed=seed, rank=rank), np.random.default_rng(0)
        for _ in range(60):
            add(ring, make_record(rng, 2))
        return [pairs(ring.plan()) for _ in range(20)][-5:]

    assert plans(1) == plans(1)
    assert plans(1) != plans(2)
    assert plans(1) != plans(1, rank=3)


def test_overlapping_windows_keep_the_states_of_the_highest_batch_index() -> None:
    ring, rng = make_ring(num_envs=1, batch_size=3, batch_length=4), np.random.default_rng(0)
    for _ in range(12):
        add(ring, make_record(rng, 1))
    before = ring.latents["deter"][0, :12].clone()
    plan = Plan(env=np.array([0, 0, 0]), start=np.array([4, 2, 4]), online=0)
    deter = torch.arange(12.0).view(3, 4, 1).expand(3, 4, DETER)
    stoch = torch.arange(100, 112, dtype=torch.int32).view(3, 4, 1).expand(3, 4, STOCH)
    ring.stage(plan)
    ring.write_back(deter, stoch)
    assert ring.latents["deter"][0, 3:9, 0].tolist() == [4.0, 5.0, 8.0, 9.0, 10.0, 11.0]
    assert ring.latents["stoch"][0, 3:9, -1].tolist() == [104, 105, 108, 109, 110, 111]
    untouched = [0, 1, 2, 9, 10, 11]
    assert torch.equal(ring.latents["deter"][0, untouched], before[untouched])


def test_every_window_writes_what_the_last_one_with_the_same_record_does() -> None:
    """On a GPU rows are written in any order: where windows overlap, all of them must bring the same values."""
    ring, rng = make_ring(num_envs=2, batch_size=3, batch_length=4), np.random.default_rng(0)
    for _ in range(12):
        add(ring, make_record(rng, 2))
    # Records 5..8, 3..6 and 5..8 of the first environment; then the middle one of the second.
    for env, expected in ((0, [8, 9, 10, 11, 4, 5, 8, 9, 8, 9, 10, 11]), (1, [8, 9, 10, 11, 4, 5, 6, 7, 8, 9, 10, 11])):
        ring.stage(Plan(env=np.array([0, env, 0]), start=np.array([4, 2, 4]), online=0))
        assert ring._windows._source.tolist() == expected


def test_a_window_that_was_overwritten_is_refused() -> None:
    ring, rng = make_ring(num_envs=1, capacity=3, batch_size=2, batch_length=4), np.random.default_rng(0)
    for _ in range(5):
        add(ring, make_record(rng, 1))
    plan = ring.plan()
    assert ring.rows == 3 + 4 + 10 + 1  # a multiple of three
    while ring.length <= ring.rows:
        ring.stage(plan)
        add(ring, make_record(rng, 1))
    with pytest.raises(ValueError, match=r"^replay: record 0 was planned but is overwritten already$"):
        ring.stage(plan)


def test_a_planned_window_outlives_the_margin() -> None:
    """Two windows' worth of records may be added between a plan and its gather, even from the oldest window."""
    sizes = {"num_envs": 2, "capacity": 6, "batch_size": 64, "batch_length": 4}
    ring, lists, rng = make_ring(**sizes), ListReplay(**sizes), np.random.default_rng(0)
    for _ in range(40):
        drive([ring], lists, rng, adds=1, delay=0, dtype=torch.float32)
    plan = ring.plan()
    assert plan.start.min() == ring.window_range()[0] // 2
    for _ in range(2 * 5):
        record = make_record(rng, 2)
        add(ring, record)
        lists.add(record)
    assert_equal(flatten(gather(ring, plan)), lists.gather(plan))


def test_bfloat16_states_come_back_bit_by_bit() -> None:
    ring, rng = make_ring(num_envs=1, batch_size=1, dtype=torch.bfloat16), np.random.default_rng(0)
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16)[bits.view(torch.bfloat16).isfinite()].view(-1, 5, DETER)[:40]
    for five in values:
        records = [make_record(rng, 1, torch.bfloat16) | {"deter": deter[None]} for deter in five]
        for record in records:
            add(ring, record)
        plan = Plan(np.array([0]), np.array([ring.length - 5]), 0)
        assert torch.equal(gather(ring, plan).start.deter[0].view(torch.int16), five[0].view(torch.int16))
        ring.write_back(five[None, 1:], torch.zeros(1, 4, STOCH, dtype=torch.int32))
        rows = np.arange(ring.length - 4, ring.length) % ring.rows
        assert torch.equal(ring.latents["deter"][0, rows].view(torch.int16), five[1:].view(torch.int16))


def test_gather_fills_the_same_buffers_again() -> None:
    ring, rng = make_ring(), np.random.default_rng(0)
    for _ in range(30):
        add(ring, make_record(rng, 2))
    first, second = (gather(ring, ring.plan()) for _ in range(2))
    assert first.batch.obs["image"].data_ptr() == second.batch.obs["image"].data_ptr()
    assert first.start.stoch.data_ptr() == second.start.stoch.data_ptr()


@pytest.mark.parametrize("name", ["capacity", "batch_size", "batch_length"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^replay\.{name} must be at least 1, got 0$"):
        make_ring(**{name: 0})


def test_a_plan_without_windows_is_refused() -> None:
    ring, rng = make_ring(batch_length=4), np.random.default_rng(0)
    for _ in range(4):
        add(ring, make_record(rng, 2))
    with pytest.raises(ValueError, match=r"^replay holds no window of 5 records yet, only 4$"):
        ring.plan()


def test_a_record_that_does_not_fit_is_refused_as_a_whole() -> None:
    ring, record = make_ring(), make_record(np.random.default_rng(0), 2)
    obs = {key.removeprefix("obs/"): value for key, value in record.items() if key.startswith("obs/")}
    action = {key.removeprefix("action/"): value for key, value in record.items() if key.startswith("action/")}
    rest = [record[key] for key in ("reward", "is_first", "is_last", "is_terminal")]
    latents = record["deter"], record["stoch"]
    with pytest.raises(
        ValueError, match=r"^replay\.add takes \['action/jump', .*\], got \['action/jump', .*'obs/sound'"
    ):
        ring.add(obs | {"sound": record["reward"]}, *rest, action, *latents)
    with pytest.raises(ValueError, match=r"^replay\.add takes .*'obs/image'.* got (?!.*'obs/image')"):
        ring.add({key: obs[key] for key in ("speed", "room")}, *rest, action, *latents)
    message = re.escape("replay.add: stoch must be (2, 3), got (1, 3)")
    with pytest.raises(ValueError, match=f"^{message}$"):
        ring.add(obs, *rest, action, record["deter"], record["stoch"][:1])
    assert (ring.length, ring.windows) == (0, 0)
