"""NVTX ranges: names, nesting and balance, against a domain that writes down what it is told."""

import time
from typing import get_args

import pytest

from fastdreamer.profiling import Range, RangeName, make_ranges, range_


class RecordingDomain:
    def __init__(self) -> None:
        self.events: list[str] = []

    def get_event_attributes(self, message: str, color: str) -> str:
        self.events.append(f"register {message}")
        return message

    def push_range(self, attributes: str) -> None:
        self.events.append(f"push {attributes}")

    def pop_range(self) -> None:
        self.events.append("pop")


@pytest.fixture
def domain() -> RecordingDomain:
    return RecordingDomain()


def test_every_name_is_registered_once_and_in_front(domain: RecordingDomain) -> None:
    ranges = make_ranges(domain)
    with ranges["train"], ranges["train"]:
        pass
    names = ["env", "act", "plan", "stage", "train", "save", "log"]
    assert domain.events == [f"register {name}" for name in names] + ["push train", "push train", "pop", "pop"]


def test_ranges_nest_and_can_be_entered_again(domain: RecordingDomain) -> None:
    ranges = make_ranges(domain)
    domain.events.clear()
    for _ in range(2):
        with ranges["train"], ranges["log"]:
            pass
    assert domain.events == ["push train", "push log", "pop", "pop"] * 2


def test_an_error_leaves_the_range_and_goes_on(domain: RecordingDomain) -> None:
    ranges = make_ranges(domain)
    domain.events.clear()
    with pytest.raises(KeyError, match="inside"), ranges["env"]:
        raise KeyError("inside")
    assert domain.events == ["push env", "pop"]


def test_range_is_found_by_name_and_nothing_else() -> None:
    for name in get_args(RangeName):
        assert isinstance(range_(name), Range)
        assert range_(name) is range_(name)
    with pytest.raises(KeyError):
        range_("trian")  # type: ignore[arg-type]


def test_a_range_without_a_profiler_costs_next_to_nothing() -> None:
    def pass_through(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            with range_("train"):
                pass
        return (time.perf_counter() - start) / count

    # 0.2 us here; the bound leaves room for a slow and busy machine, and is 0.1 % of a 10 ms update
    assert min(pass_through(2000) for _ in range(20)) < 10e-6
