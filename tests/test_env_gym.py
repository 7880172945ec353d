"""gymnasium environments: what they do wrong is said in one line, and how they are found."""

import multiprocessing
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from fake_envs import OldCrafter

from fastdreamer.env import Env, EnvError, make_env
from fastdreamer.env_cursor import episode_seed


@pytest.fixture(autouse=True)
def importable_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def run(env: Env, steps: int = 5) -> None:
    env.recv()
    for _ in range(steps):
        env.send({"action": np.zeros(env.num_envs, int)})
        env.recv()


MISTAKES = {
    "shape": 'env 1: observation "speed" must have shape (2,), got (3,)',
    "dtype": 'env 1: observation "class" must be int64, got float64',
    "key": "env 1: the observation must be a dict with the keys ['class', 'speed'], got the keys ['class']",
    "more keys": "env 1: the observation must be a dict with the keys ['class', 'speed'],"
    " got the keys ['class', 'other',",
    "structure": "env 1: the observation must be a dict with the keys ['class', 'speed'], got a ndarray",
    "space": 'env 1: observation "speed" must have shape (2,), got (4,)',
    "nan": 'env 1: observation "speed" is not finite (got nan)',
    "huge": 'env 1: observation "speed" is not finite (got inf)',
    "class": 'env 1: observation "class" is 3, outside its space 0..2',
    "reward nan": "env 1: reward is not finite (got nan)",
    "reward none": "env 1: reward must be a number, got None",
    "old": "env 1: step() must return (observation, reward, terminated, truncated, info), got 4 values",
    "reset": "env 0: reset() must return (observation, info), the interface of gymnasium",
}


@pytest.mark.parametrize("how", MISTAKES)
def test_what_an_environment_does_wrong_is_named(how: str) -> None:
    with pytest.raises(EnvError, match=re.escape(f"env.id fake_envs:Bad: {MISTAKES[how]}")):
        run(make_env("fake_envs:Bad", num_envs=2, seed=0, options={"how": how}))
    run(make_env("fake_envs:Bad", num_envs=2, seed=0, options={"how": "nothing"}))


@pytest.mark.parametrize("how", ["shape", "class"])
def test_the_same_across_processes_and_nothing_else_is_printed(how: str, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(EnvError, match=re.escape(f"env.id fake_envs:Bad: {MISTAKES[how]}")):
        run(make_env("fake_envs:Bad", num_envs=2, seed=0, options={"how": how, "vectorization": "async"}))
    assert not [str(warning.message) for warning in recwarn]


def test_episodes_of_different_length_keep_their_own_flags() -> None:
    env = make_env("fake_envs:Counter", num_envs=2, seed=0)
    rows = []
    for _ in range(14):
        step = env.recv()
        rows.append(
            (step.obs["vector"].tolist(), step.is_first.tolist(), step.is_last.tolist(), step.is_terminal.tolist())
        )
        env.send({"action": np.zeros(2, int)})
    counts = [[row[0][env] for row in rows] for env in (0, 1)]
    assert counts[0] == [0, 1, 2, 3, 4, 5] * 2 + [0, 1]
    assert counts[1] == [0, 1, 2, 3, 4, 5, 6] * 2
    for at, (count, first, last, terminal) in enumerate(rows):
        assert first == [number == 0 for number in count], at
        assert last == terminal == [count[0] == 5, count[1] == 6], at


@pytest.mark.parametrize(
    "id, options, message",
    [
        ("gym:CartPole-v7", {}, "there is no such environment; did you mean CartPole-v1"),
        ("gym:LunarLander-v2", {}, "gymnasium.make: Environment version v2 for `LunarLander` is deprecated"),
        ("gym:ALE/Pong-v5", {}, "it comes with a package: pip install ale-py, then gym:ale_py:ALE/Pong-v5"),
        ("gym:MiniGrid-Empty-5x5-v0", {}, "pip install minigrid, then gym:minigrid:MiniGrid-Empty-5x5-v0"),
        ("gym:no_such_module:A-v0", {}, "there is no module no_such_module; install its package"),
        (
            "gym:CartPole-v1",
            {"wrong": 1},
            "gymnasium.make: CartPoleEnv.__init__() got an unexpected keyword argument 'wrong'",
        ),
        ("gym:CartPole-v1", {"max_episode_steps": 0}, "gymnasium.make: Expect the `max_episode_steps` to be positive"),
        ("no_such_module:make", {}, "there is no module no_such_module; install its package"),
        ("fake_envs.inner:make", {}, "there is no module fake_envs.inner"),
        ("fake_envs:Missing", {}, "the module fake_envs has no Missing"),
        ("fake_envs:NOT_CALLABLE", {}, "NOT_CALLABLE is a int, not a callable that returns a gymnasium.Env"),
        ("fake_envs:makes_a_list", {}, "makes_a_list returned a list, not a gymnasium.Env"),
        ("fake_envs:Echo", {}, "Echo cannot be called with env.options {}: missing a required argument: 'name'"),
        ("fake_envs:Counter", {"size": 3}, "Counter cannot be called with env.options {'size': 3}: got an unexpected"),
        ("fake_envs:Differing", {}, "its copies cannot be run side by side: env 1 has "),
        (":make", {}, 'must be an EnvPool id, gym:ID or module:factory, got the module ""'),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_made(id: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(EnvError, match=re.escape(message)) as caught:
        make_env(id, num_envs=2, seed=0, options=options)
    assert str(caught.value).startswith(f"env.id {id}: ") and "\n" not in str(caught.value)


def test_missing_packages_come_with_the_line_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "needs_a_package.py").write_text("import package_that_is_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("envpool", "Box2D", "crafter"):
        monkeypatch.setitem(sys.modules, name, None)
    for id, line in {
        "CartPole-v1": 'needs the package envpool, which is not installed: pip install "envpool==1.2.5"',
        "gym:LunarLander-v3": 'Box2D is not installed, .*pip install "gymnasium\\[box2d\\]"',
        "fastdreamer.env_crafter:Crafter": "needs the package crafter, which is not installed: pip install crafter",
        "needs_a_package:make": "needs the package package_that_is_not_there: pip install package_that_is_not_there",
    }.items():
        with pytest.raises(EnvError, match=line):
            make_env(id, num_envs=1, seed=0)


def test_crafter_seeds_and_tells_death_from_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crafter", types.SimpleNamespace(Env=OldCrafter))
    env = make_env("fastdreamer.env_crafter:Crafter", num_envs=2, seed=10, options={"length": 4})
    assert env.obs_space["image"].shape == (64, 64, 3) and env.act_space["action"].classes == 17
    rows = []
    for _ in range(6):
        step = env.recv()
        rows.append([step.obs["image"][:, 0, 0, 0].tolist(), step.is_last.tolist(), step.is_terminal.tolist()])
        env.send({"action": np.zeros(2, int)})
    later = [episode_seed(11, 4) % 200, episode_seed(10, 5) % 200]
    assert rows == [
        [[10, 11], [False, False], [False, False]],
        [[11, 12], [False, False], [False, False]],
        [[12, 13], [False, False], [False, False]],
        [[13, 14], [False, True], [False, True]],
        [[14, later[0]], [True, False], [False, False]],
        [[later[1], later[0] + 1], [False, False], [False, False]],
    ]


def test_closing_workers_while_they_step() -> None:
    env = make_env("gym:CartPole-v1", num_envs=2, seed=0, options={"vectorization": "async"})
    env.recv()
    env.send({"action": np.zeros(2, int)})
    env.close()
    assert not multiprocessing.active_children()
