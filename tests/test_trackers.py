"""TensorBoard and Weights & Biases get the numbers that metrics.jsonl gets."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_trained import tiny_config

from fastdreamer import trackers
from fastdreamer.config import Config
from fastdreamer.metrics import read_jsonl
from fastdreamer.trackers import Records, require_tracker

RECORDS = [
    {"step": 10, "episode/return": 3.5},
    {"step": 20, "update": 2, "loss/dyn": 0.25, "return_last20": None},
    {"step": 20, "eval/return": 7.0, "eval/returns": [6.0, 8.0]},
]


def tracked(folder: Path, tracker: str) -> Config:
    config = tiny_config(folder)
    return replace(config, run=replace(config.run, tracker=tracker))


def test_tensorboard_shows_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Records(tmp_path, tracked(tmp_path, "tensorboard"), None) as records:
        for record in RECORDS:
            records.write(record)
    with Records(tmp_path, tracked(tmp_path, "tensorboard"), 10) as records:  # goes on from step 10
        records.write({"step": 15, "loss/dyn": 0.5})
    assert [record["step"] for record in read_jsonl(tmp_path / "metrics.jsonl")] == [10, 15]
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    scalars = {name: [(each.step, each.value) for each in shown.Scalars(name)] for name in shown.Tags()["scalars"]}
    assert scalars == {"episode/return": [(10, 3.5)], "loss/dyn": [(15, 0.5)], "update": [], "eval/return": []}


def test_wandb_gets_the_numbers_and_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    made = SimpleNamespace(
        define_metric=lambda *words, **names: calls.append((words, names)),
        log=calls.append,
        finish=lambda: calls.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **names: calls.append(names) or made))
    config = tracked(tmp_path, "wandb")
    for resume_step in (None, 10):
        with Records(tmp_path, config, resume_step) as records:
            for record in RECORDS:
                records.write(record)
    first, second = calls[:6], calls[6:]
    assert first == second  # also the id
    assert len(first[0].pop("id")) == 8
    assert first[0] == {
        "project": "fastdreamer", "name": tmp_path.name, "resume": "allow", "dir": tmp_path, "config": config.to_json()
    }  # fmt: skip
    assert first[1:] == [
        (("*",), {"step_metric": "step"}),
        {"step": 10, "episode/return": 3.5},
        {"step": 20, "update": 2, "loss/dyn": 0.25},
        {"step": 20, "eval/return": 7.0},
        "finished",
    ]


def test_numbers_of_numpy_are_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    tracker = SimpleNamespace(write=lambda step, values: seen.append((step, dict(values))), close=lambda: None)
    monkeypatch.setattr(trackers, "_make_tracker", lambda *words: tracker)
    with Records(tmp_path, tiny_config(tmp_path), None) as records:
        records.write({"step": 1, "a": np.float32(0.5), "b": float("nan")})
    assert seen == [(1, {"a": 0.5})]
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 0.5, "b": None}]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    require_tracker(tracked(tmp_path, "none"))
    for name in ("tensorboard", "wandb"):
        with pytest.raises(ValueError, match=f"run.tracker {name} needs the package {name}: pip install {name}"):
            require_tracker(tracked(tmp_path, name))
