"""No update is lost or made twice over a long run; intervals come due once each."""

import json
import math
from fractions import Fraction
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdreamer.schedule import Every, TrainRatio


def updates(ratio: TrainRatio, steps: list[int]) -> list[int]:
    return [ratio.due(step) for step in steps]


def test_the_first_call_gives_one_update_at_any_step() -> None:
    for step in (0, 1, 2047, 10**9):
        assert updates(TrainRatio(32, 16, 64), [step, step]) == [1, 0]


@pytest.mark.parametrize(
    "train_ratio, steps, expected",
    [
        (32, 16, [1, 0, 1, 0, 1, 0, 1, 0, 1, 0]),  # 1/32 update per step
        (1024, 4, [1, 4, 4, 4, 4]),
        (96, 16, [1, 1, 2, 1, 2, 1, 2]),  # 3/32: 1.5 per call
        (64, 8, [1, 0, 1, 0, 1]),
        (2048, 1, [1, 2, 2, 2]),
        (40, 16, [1, 0, 1, 0, 1, 1, 0, 1, 1, 0]),  # 0.625 per call
    ],
)
def test_the_fraction_is_carried_over(train_ratio: float, steps: int, expected: list[int]) -> None:
    ratio = TrainRatio(train_ratio, 16, 64)
    assert updates(ratio, [2048 + steps * call for call in range(len(expected))]) == expected


@pytest.mark.parametrize("train_ratio, num_envs", [(32, 16), (256, 1), (64, 64), (512, 3), (1, 7), (1024, 48)])
def test_a_long_run_makes_every_update(train_ratio: int, num_envs: int) -> None:
    ratio, first, last = TrainRatio(train_ratio, 16, 64), 1120, 1120 + 20_000 * num_envs
    total = sum(updates(ratio, list(range(first, last + 1, num_envs))))
    assert total == 1 + math.floor(Fraction((last - first) * train_ratio, 1024))


@pytest.mark.parametrize("train_ratio, num_envs", [(1000, 48), (96, 16), (30.3, 5)])
def test_a_long_run_of_an_inexact_ratio_is_at_most_one_update_late(train_ratio: float, num_envs: int) -> None:
    ratio, steps = TrainRatio(train_ratio, 16, 64), range(0, 20_000 * num_envs + 1, num_envs)
    exact = 1 + Fraction(train_ratio) * steps[-1] / 1024
    assert exact - 1 <= sum(updates(ratio, list(steps))) <= exact


@given(
    train_ratio=st.floats(0.01, 10_000),
    trained=st.tuples(st.integers(1, 64), st.integers(2, 64)),
    increments=st.lists(st.integers(0, 5000), min_size=1, max_size=50),
)
def test_any_ratio_is_kept_within_one_update(
    train_ratio: float, trained: tuple[int, int], increments: list[int]
) -> None:
    steps, ratio = list(accumulate(increments)), TrainRatio(train_ratio, *trained)
    done = 0
    for step in steps:
        done += ratio.due(step)
        wanted = 1 + (step - steps[0]) * train_ratio / (trained[0] * trained[1])
        assert wanted - 1 - 1e-9 * wanted <= done <= wanted + 1e-9 * wanted


@given(train_ratio=st.floats(0.1, 5000), calls=st.integers(0, 30), num_envs=st.integers(1, 64))
def test_a_saved_ratio_goes_on_as_one_never_interrupted(train_ratio: float, calls: int, num_envs: int) -> None:
    ratio, resumed = TrainRatio(train_ratio, 16, 64), TrainRatio(train_ratio, 16, 64)
    updates(ratio, [num_envs * call for call in range(calls)])
    resumed.load_state_dict(json.loads(json.dumps(ratio.state_dict())), num_envs * max(calls - 1, 0))
    rest = [num_envs * call for call in range(calls, calls + 50)]
    assert updates(resumed, rest) == updates(ratio, rest)
    assert resumed.state_dict() == ratio.state_dict()


@pytest.mark.parametrize("train_ratio", [0.0, -1.0, math.nan])
def test_a_ratio_that_never_trains_is_refused(train_ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"^run\.train_ratio must be positive, got {train_ratio}$"):
        TrainRatio(train_ratio, 16, 64)


@pytest.mark.parametrize(
    "interval, start, calls, expected",
    [
        (10, 0, [0, 9, 10, 11, 19, 20], [False, False, True, False, False, True]),
        (10, 0, [35, 39, 40], [True, False, True]),  # 10 and 20 were missed and are not made up for
        (10, 25, [26, 29, 30, 31], [False, False, True, False]),
        (10, 30, [30, 39, 40], [False, False, True]),
        (0.5, 100.2, [100.4, 100.5, 100.9, 101.0], [False, True, False, True]),
        (16, 0, [16, 32, 48], [True, True, True]),
        (10, 0, [20, 15, 20, 30], [True, False, False, True]),  # a clock that goes back
        (0, 0, [0, 1, 10**9], [False, False, False]),
    ],
)
def test_an_interval_is_due_at_the_first_call_in_it(
    interval: float, start: float, calls: list[float], expected: list[bool]
) -> None:
    every = Every(interval, start)
    assert [every.due(now) for now in calls] == expected


@given(interval=st.integers(1, 100), increments=st.lists(st.integers(0, 300), max_size=50))
def test_each_interval_is_due_at_most_once(interval: int, increments: list[int]) -> None:
    calls, every = list(accumulate(increments, initial=0)), Every(interval)
    due = [now // interval for now in calls if every.due(now)]
    assert due == sorted({now // interval for now in calls} - {0})


@pytest.mark.parametrize("interval", [-1.0, math.nan])
def test_a_negative_interval_is_refused(interval: float) -> None:
    with pytest.raises(ValueError, match=f"^interval must be 0 or more, got {interval}$"):
        Every(interval)
