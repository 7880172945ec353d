"""What a run is: the official sizes, presets that survive JSON, and a named field for everything wrong in a config."""

import dataclasses
import json
from typing import Any

import pytest

from fastdreamer.config import WIDTHS, Config, Dims, EnvConfig, ModelConfig, OptimConfig, ReplayConfig, RunConfig, Size
from fastdreamer.presets import PRESETS

SIZES: dict[Size, tuple[int, int, int, int]] = {  # deter, hidden = units, classes, depth. Source: SPEC 3.1
    "size1m": (512, 64, 4, 4),
    "size12m": (2048, 256, 16, 16),
    "size25m": (3072, 384, 24, 24),
    "size50m": (4096, 512, 32, 32),
    "size100m": (6144, 768, 48, 48),
    "size200m": (8192, 1024, 64, 64),
    "size400m": (12288, 1536, 96, 96),
}


@pytest.mark.parametrize("size", SIZES)
def test_official_sizes(size: Size) -> None:
    deter, units, classes, depth = SIZES[size]
    assert ModelConfig(size=size).dims() == Dims(deter, units, units, 32, classes, 8, depth)


def test_every_size_is_official() -> None:
    assert list(WIDTHS) == list(SIZES)


def test_a_given_dimension_overrides_the_size() -> None:
    given = ModelConfig(size="size12m", deter=96, units=7, blocks=2).dims()
    assert given == Dims(deter=96, hidden=256, units=7, stoch=32, classes=16, blocks=2, depth=16)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    preset = PRESETS[name]
    assert preset.preset == name
    restored = Config.from_json(json.loads(json.dumps(preset.to_json())))
    assert restored == preset
    assert all(type(restored.env.options[key]) is type(value) for key, value in preset.env.options.items())


def test_json_takes_a_whole_number_for_a_real_one() -> None:
    data = PRESETS["cartpole"].to_json()
    data["run"]["train_ratio"] = 32
    ratio = Config.from_json(data).run.train_ratio
    assert (ratio, type(ratio)) == (32.0, float)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("run", 3, "run must be an object, got 3"),
        ("run.seed", 1.0, "run.seed must be an integer, got 1.0"),
        ("run.seed", True, "run.seed must be an integer, got True"),
        ("run.dir", None, "run.dir must be text, got None"),
        ("run.solved", "475", "run.solved must be a number or none, got '475'"),
        ("loss.retnorm", 1, "loss.retnorm must be True or False, got 1"),
        ("model.heads", "three", "model.heads must be one of twohot, normal, got 'three'"),
        ("model.heads", [], "model.heads must be one of twohot, normal, got []"),
        ("model.deter", 2.5, "model.deter must be an integer or none, got 2.5"),
        ("env.options", [1], "env.options must be an object, got [1]"),
        ("env.options", {"a": None}, "env.options.a must be True or False or an integer or a number or text, got None"),
        ("run.tempo", 3, "run.tempo is unknown"),
        ("extra", {}, "extra is unknown"),
        ("run.seed", -1, "run.seed must be in 0..2147483647, got -1"),
    ],
)
def test_a_wrong_value_in_json_is_named(path: str, value: object, message: str) -> None:
    data: dict[str, Any] = PRESETS["cartpole"].to_json()
    *groups, leaf = path.split(".")
    node = data
    for group in groups:
        node = node[group]
    node[leaf] = value
    with pytest.raises(ValueError) as caught:
        Config.from_json(data)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["preset", "env", "env.num_envs", "run.steps"])
def test_a_missing_field_in_json_is_named(name: str) -> None:
    data: dict[str, Any] = PRESETS["cartpole"].to_json()
    group, _, leaf = name.rpartition(".")
    del (data[group] if group else data)[leaf]
    with pytest.raises(ValueError, match=f"^{name} is missing$"):
        Config.from_json(data)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_only_an_object_is_a_config(data: object) -> None:
    with pytest.raises(ValueError, match=r"^config must be an object, got "):
        Config.from_json(data)


def test_capacity_is_never_more_than_the_steps() -> None:
    preset = PRESETS["cartpole"]
    assert (preset.replay.capacity, preset.capacity) == (5_000_000, preset.run.steps)
    small = dataclasses.replace(preset, replay=ReplayConfig(capacity=2000))
    assert small.capacity == 2000


@pytest.mark.parametrize(
    ("num_envs", "size", "length", "step"),
    [
        (8, 16, 64, 8 * (64 + 128)),  # 1024 windows take 128 starts in each of 8 envs, the last one 64 steps long
        (1, 16, 64, 64 + 1024),
        (7, 2, 5, 7 * (5 + 2)),  # 10 windows over 7 envs: two starts each
    ],
)
def test_the_first_update_waits_for_enough_windows(num_envs: int, size: int, length: int, step: int) -> None:
    replay = ReplayConfig(batch_size=size, batch_length=length)
    env = EnvConfig(id="CartPole-v1", num_envs=num_envs)
    optim = OptimConfig(warmup=0)
    assert Config(preset="", env=env, replay=replay, optim=optim, run=RunConfig(steps=step)).first_update == step
    with pytest.raises(ValueError, match=f"^run.steps must be at least {step}, "):
        Config(preset="", env=env, replay=replay, run=RunConfig(steps=step - 1))


def test_a_run_of_one_update_learns_nothing() -> None:
    """32 replayed steps per agent step are one update per 32 agent steps; the learning rate of the first is 0."""
    env = EnvConfig(id="CartPole-v1")
    Config(preset="", env=env, run=RunConfig(steps=2048 + 32))
    for run in (RunConfig(steps=2048 + 16), RunConfig(steps=10**6, train_ratio=0.001)):
        with pytest.raises(ValueError, match=r"^run\.train_ratio must make at least 2 updates, got "):
            Config(preset="", env=env, run=run)
