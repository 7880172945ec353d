"""Every family of EnvPool and every preset: spaces, dtypes, flags, the same run for the same seed."""

import ctypes
import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import envpool
import numpy as np
import pytest
from env_rollout import Record, episodes, play
from fake_envs import OldCrafter

from fastdreamer.env import EnvError, make_env
from fastdreamer.env_observation import SIDES
from fastdreamer.env_step import AnyArray, Options
from fastdreamer.presets import PRESETS
from fastdreamer.spaces import Space, Spaces

ATARI_OPTIONS: Options = {"img_height": 64, "img_width": 64}
FAMILIES: dict[str, Options] = {
    "CartPole-v1": {},
    "Pendulum-v1": {},
    "Blackjack-v1": {},
    "Catch-v0": {},
    "FrozenLake-v1": {},
    "NChain-v0": {},
    "Taxi-v3": {},
    "LunarLander-v3": {},
    "BipedalWalker-v3": {},
    "CarRacing-v3": {},
    "HalfCheetah-v5": {},
    "CheetahRun-v1": {},
    "AdroitHandDoor-v1": {},
    "FetchReach-v4": {},
    "MetaWorld/Reach-v3": {},
    "MyoHandAirplaneFixed-v0": {},
    "MuJoCoPlayground/PandaPickCube-v1": {},
    "Pong-v5": ATARI_OPTIONS,
    "CoinrunEasy-v0": {},
    "MiniGrid-DoorKey-5x5-v0": {},
    "BabyAI-GoToObj-v0": {},
    "D1Basic-v1": {"use_combined_action": True, **ATARI_OPTIONS},
    "Highway-v0": {},
    "Jumanji/Snake-v1": {},
    "Game2048-v1": {},
    "gfootball/academy_empty_goal_close-v1": {"resize": 64},
}
REFUSED = {
    "Go9x9-v1": "it has 2 players; only environments with one are supported",
    "LqrLqr21-v1": 'action "action" must have bounds low < high, finite',
    "Sudoku-v0": "failed to open Sudoku database",
}
EXPECTED: dict[str, tuple[Spaces, Spaces]] = {
    "cartpole": ({"vector": Space("vector", (4,))}, {"action": Space("discrete", (), 2)}),
    "catch": ({"vector": Space("vector", (10, 5))}, {"action": Space("discrete", (), 3)}),
    "atari": ({"image": Space("image", (96, 96, 1))}, {"action": Space("discrete", (), 18)}),
    "atari100k": ({"image": Space("image", (64, 64, 3))}, {"action": Space("discrete", (), 6)}),
    "dmc_proprio": (
        {
            "orientations": Space("vector", (14,)),
            "height": Space("vector", ()),
            "velocity": Space("vector", (9,)),
        },
        {"action": Space("vector", (6,), low=(-1.0,) * 6, high=(1.0,) * 6)},
    ),
    "procgen": ({"image": Space("image", (64, 64, 3))}, {"action": Space("discrete", (), 15)}),
    "crafter": ({"image": Space("image", (64, 64, 3))}, {"action": Space("discrete", (), 17)}),
    "minigrid": (
        {"direction": Space("discrete", (), 4), "image": Space("vector", (980,))},
        {"action": Space("discrete", (), 7)},
    ),
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # ViZDoom writes where it is started


def assert_row_is_of(space: Space, value: AnyArray) -> None:
    assert value.shape == space.shape and value.dtype == space.dtype
    match space.kind:
        case "image":
            assert value.shape[0] == value.shape[1] in SIDES and value.shape[2] in (1, 3, 4)
        case "vector":
            assert np.isfinite(value).all()
        case "discrete":
            assert (value >= 0).all() and (value < space.classes).all()


def qt_is_installed() -> bool:
    try:
        ctypes.CDLL("libQt5Gui.so.5")
    except OSError:
        return False
    return True


@contextmanager
def needs_qt(id: str) -> Iterator[None]:
    """Procgen draws with a Qt 5 that its wheel does not bring along: without it, the error must say so in one line."""
    if not id.startswith("Coinrun") or qt_is_installed():
        yield
        return
    with pytest.raises(EnvError, match=f"^env.id {id}: .*requires the system Qt 5 runtime.*apt install[^\\n]*$"):
        yield


def plays_the_same_twice(id: str, options: Options, num_envs: int = 2, steps: int = 21) -> list[list[Record]]:
    """The records of a random run, after checking every value and a second run with the same seed."""
    envs = [make_env(id, num_envs=num_envs, seed=7, options=options) for _ in range(2)]
    records, again = (play(env, steps) for env in envs)
    episodes(records)
    for row in records:
        for record in row:
            assert record.obs.keys() == envs[0].obs_space.keys() and np.isfinite(record.reward)
            for name, space in envs[0].obs_space.items():
                assert_row_is_of(space, record.obs[name])
    np.testing.assert_equal(again, records)
    for env in envs:
        env.close()
    return records


@pytest.mark.parametrize("id", FAMILIES)
def test_every_family_steps(id: str) -> None:
    with needs_qt(id):
        records = plays_the_same_twice(id, FAMILIES[id])
        shown = {tuple(value.tobytes() for value in record.obs.values()) for record in records[0]}
        assert len(shown) > 1, "something happens"


def test_no_family_is_left_out() -> None:
    specs = envpool.registration.registry.specs
    family = {id: spec[0].removeprefix("envpool.") for id, spec in specs.items()}
    assert {family[id] for id in [*FAMILIES, *REFUSED]} == {*family.values()}


@pytest.mark.parametrize("id", REFUSED)
def test_what_the_agent_cannot_play_is_refused_in_one_line(id: str) -> None:
    with pytest.raises(EnvError, match=re.escape(f"env.id {id}: {REFUSED[id]}")) as caught:
        make_env(id, num_envs=2, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "preset", [name for name, config in PRESETS.items() if not config.env.options.get("from_pixels")]
)
def test_every_preset_makes_an_environment(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crafter", types.SimpleNamespace(Env=OldCrafter))
    config = PRESETS[preset].env
    with needs_qt(config.id):
        plays_the_same_twice(config.id, config.options)
        env = make_env(config.id, num_envs=1, seed=0, options=config.options)
        assert (env.obs_space, env.act_space) == EXPECTED[preset]
