"""What the agent sees of every gymnasium space, and what the environment gets of every action."""

import re
from typing import Any

import numpy as np
import pytest
from fake_envs import ACTIONS, SHAPES, View
from PIL import Image

from fastdreamer.env import EnvError, make_env
from fastdreamer.spaces import Space

EXPECTED: dict[str, tuple[Space, Any]] = {
    "box": (Space("vector", (2, 3)), [[0, 1, 2], [3, 4, 5]]),
    "bytes": (Space("vector", (5,)), [0, 1, 2, 3, 4]),
    "class": (Space("discrete", (), 4), 3),
    "equal": (Space("discrete", (2,), 3), [2, 0]),
    "flags": (Space("vector", (3,)), [1, 0, 1]),
    "gray": (Space("image", (64, 64, 1)), np.full((64, 64, 1), 9)),
    "hwc": (Space("image", (64, 64, 3)), SHAPES["hwc"][1]),
    "chw": (Space("image", (64, 64, 3)), np.moveaxis(SHAPES["chw"][1], 0, -1)),
    "nest/a": (Space("vector", (1,)), [0.5]),
    "nest/b/0": (Space("discrete", (), 2), 1),
    "scalar": (Space("vector", ()), 0.25),
    "uneven/0": (Space("discrete", (), 3), 2),
    "uneven/1": (Space("discrete", (), 5), 4),
}


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_every_observation_kind(vectorization: str) -> None:
    env = make_env("fake_envs:Shapes", num_envs=2, seed=0, options={"vectorization": vectorization})
    assert env.obs_space == {name: space for name, (space, _) in EXPECTED.items()}
    env.recv()
    env.send({"action": np.zeros(2, np.int32)})
    obs = env.recv().obs
    assert obs.keys() == EXPECTED.keys()
    for name, (space, value) in EXPECTED.items():
        assert obs[name].dtype == space.dtype
        np.testing.assert_array_equal(obs[name], np.stack([value, value]), err_msg=name)
    env.close()


def test_keys_leaves_out_what_the_agent_should_not_see() -> None:
    options = {"keys": "scalar, uneven/1", "vectorization": "async"}
    env = make_env("fake_envs:Shapes", num_envs=2, seed=0, options=options)
    assert list(env.obs_space) == list(env.recv().obs) == ["scalar", "uneven/1"]
    env.close()
    speed = make_env("fake_envs:View", num_envs=1, seed=0, options={"kind": "text", "keys": "speed"})
    assert list(speed.recv().obs) == ["speed"]


@pytest.mark.parametrize(
    "name, spaces, action, executed",
    [
        # low..high is -2..2 and 0..10; what lies outside -1..1 is clipped first
        ("box", {"action": Space("vector", (2,), low=(-2, 0), high=(2, 10))}, {"action": [-3.0, 0.5]}, [-2, 7.5]),
        ("box", {"action": Space("vector", (2,), low=(-2, 0), high=(2, 10))}, {"action": [0.25, 9.0]}, [0.5, 10]),
        ("binary", {"action": Space("discrete", (3,), 2)}, {"action": [1, 0, 1]}, [1, 0, 1]),
        ("discrete", {"action": Space("discrete", (), 4)}, {"action": 3}, [2]),
        ("equal", {"action": Space("discrete", (2,), 3)}, {"action": [0, 2]}, [0, 2]),
        (
            "nested",
            {
                "aim/0": Space("vector", (), low=(0,), high=(4,)),
                "aim/1": Space("discrete", (), 2),
                "move": Space("discrete", (), 3),
            },
            {"aim/0": 0.5, "aim/1": 1, "move": 2},
            [2, 3, 1],
        ),
        (
            "uneven",
            {f"action/{at}": Space("discrete", (), n) for at, n in {"0/0": 3, "0/1": 4, "1/0": 3, "1/1": 2}.items()},
            {"action/0/0": 1, "action/0/1": 3, "action/1/0": 2, "action/1/1": 1},
            [1, 3, 2, 8],
        ),
    ],
)  # fmt: skip
def test_every_action_kind(
    name: str, spaces: dict[str, Space], action: dict[str, float], executed: list[float]
) -> None:
    env = make_env("fake_envs:Echo", num_envs=2, seed=0, options={"name": name})
    assert env.act_space == spaces
    env.recv()
    env.send({key: np.stack([np.zeros_like(value), value]) for key, value in action.items()})
    np.testing.assert_array_equal(env.recv().obs["vector"][1], executed)


def test_actions_never_leave_float32_bounds() -> None:
    env = make_env("HalfCheetah-v5", num_envs=4, seed=0)
    low, high = np.array(env.act_space["action"].low), np.array(env.act_space["action"].high)
    assert np.isfinite(low).all() and (low < high).all()
    sent: list[np.ndarray] = []
    env._backend.send = lambda action, *_: sent.append(action)  # type: ignore[method-assign]
    env.recv()
    env.send({"action": np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32) * 3})
    assert sent[0].dtype == np.float64 and (sent[0] >= low).all() and (sent[0] <= high).all()
    assert (sent[0] == high).any() and (sent[0] == low).any()


@pytest.mark.parametrize("height, width, side", [(96, 96, 64), (210, 160, 64), (40, 64, 96)])
def test_resize_is_pillows(height: int, width: int, side: int) -> None:
    options = {"height": height, "width": width, "resize": side}
    env = make_env("fake_envs:View", num_envs=1, seed=0, options=options)
    assert env.obs_space == {"image": Space("image", (side, side, 3))}
    raw, _ = View(height, width).reset()
    expected = np.asarray(Image.fromarray(raw).resize((side, side), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(env.recv().obs["image"][0], expected)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"height": 100, "width": 100},
            'observation "image" is 100x100 pixels; an image must be square with a side of 48,',
        ),
        ({"height": 64, "width": 96}, 'observation "image" is 64x96 pixels'),
        ({"height": 272, "width": 272}, 'observation "image" is 272x272 pixels'),
        ({"kind": "stack"}, 'observation "vector" is uint8 of shape (4, 64, 64, 3); an image has 2 or 3 axes'),
        (
            {"kind": "text"},
            'observation "says" is a Text; allowed: Box, Discrete, MultiDiscrete, MultiBinary, and Dict',
        ),
        ({"kind": "nothing"}, 'observation "vector" has shape (0,), no elements; leave it out with env.options.keys'),
        ({"kind": "clash"}, 'two parts of its space have the same flat key "a/b"'),
        ({"kind": "none"}, "its observation_space is None, not a gymnasium Space"),
    ],
)
def test_observations_that_cannot_be_used(options: dict[str, str | int], message: str) -> None:
    with pytest.raises(EnvError, match=re.escape(f"env.id fake_envs:View: {message}")):
        make_env("fake_envs:View", num_envs=2, seed=0, options=options)


@pytest.mark.parametrize(
    "name, message",
    [
        ("unbounded", 'action "action" must have bounds low < high, finite and below 1e+06 in size, got -inf..inf'),
        ("wide", 'action "action" must have bounds low < high, finite and below 1e+06 in size, got -1e+10..1e+10'),
        ("empty range", 'action "action" must have bounds low < high, finite and below 1e+06 in size, got 1..1'),
        ("integer", 'action "action" is a int32 Box; allowed: Discrete, MultiDiscrete, MultiBinary, float Box with'),
        ("text", 'action "action" is a Text; allowed: Discrete'),
    ],
)
def test_actions_that_cannot_be_learned(name: str, message: str) -> None:
    assert name in ACTIONS
    with pytest.raises(EnvError, match=re.escape(f"env.id fake_envs:Echo: {message}")):
        make_env("fake_envs:Echo", num_envs=2, seed=0, options={"name": name})
