"""NVTX ranges: names, nesting and balance, against a domain that writes down what it is told."""

import time
from pathlib import Path
from typing import get_args

import pytest
from test_loop import tiny_config

from fastdreamer import profiling
from fastdreamer.loop import Training
from fastdreamer.metrics import JsonlWriter
from fastdreamer.profiling import Range, RangeName, make_ranges, range_
from fastdreamer.run import Run
from fastdreamer.stop import Stop


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


def record_run(folder: Path, monkeypatch: pytest.MonkeyPatch, domain: RecordingDomain, updates: int) -> Training:
    """A tiny training, recorded from the step before these updates on."""
    monkeypatch.setattr(profiling, "_RANGES", make_ranges(domain))
    training = Training(tiny_config(folder), None)
    while training.progress.updates < updates:
        domain.events.clear()
        training.advance()
    return training


def test_the_order_of_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, domain: RecordingDomain) -> None:
    """env, act, then what a launch does: all plans, for each of its updates stage and train; none inside another."""
    training = record_run(tmp_path, monkeypatch, domain, updates=2)
    one_step = ["env", "act", "plan", "stage", "train"]
    assert domain.events == [event for name in one_step for event in (f"push {name}", "pop")]
    domain.events.clear()
    training.update(2)
    launch = ["plan", "stage", "train", "stage", "train"]
    assert domain.events == [event for name in launch for event in (f"push {name}", "pop")]
    domain.events.clear()
    with JsonlWriter(tmp_path / "metrics.jsonl") as writer:
        job = Run(training, tmp_path, writer, Stop(), 0.0)
        job.reading = training.learner.read_metrics()
        job.log()
        training.save(tmp_path)
    training.env.close()
    assert domain.events == ["push log", "pop", "push save", "pop"]


def test_ranges_of_a_step_cost_less_than_a_hundredth_of_the_fastest_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, domain: RecordingDomain
) -> None:
    """Without a profiler; the fastest update that is aimed at, on any device, takes 2 ms."""
    record_run(tmp_path, monkeypatch, domain, updates=2).env.close()
    entered = sum(event.startswith("push") for event in domain.events)
    monkeypatch.undo()
    assert entered == 5
    assert entered * min(seconds_per_range(2000) for _ in range(20)) < 0.01 * 2e-3


def seconds_per_range(count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        with range_("train"):
            pass
    return (time.perf_counter() - start) / count
