"""The interface every environment keeps: whose turn it is, what is refused, what is handed out."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastdreamer.env import Env, EnvError, Step, make_env
from fastdreamer.env_backend import Raw, step_of
from fastdreamer.env_step import NotFiniteError

BACKENDS = [("CartPole-v1", {}), ("gym:CartPole-v1", {}), ("gym:CartPole-v1", {"vectorization": "async"})]


@pytest.fixture(autouse=True)
def importable_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def push(env: Env, action: int = 0) -> Step:
    env.send({"action": np.full(env.num_envs, action)})
    return env.recv()


@pytest.mark.parametrize("id, options", BACKENDS)
def test_first_record_is_first_and_arrays_are_kept(id: str, options: dict[str, str]) -> None:
    env = make_env(id, num_envs=3, seed=0, options=options)
    first = env.recv()
    assert first.is_first.all() and not first.is_last.any() and not first.is_terminal.any()
    assert first.reward.tolist() == [0, 0, 0]
    steps = [first, *(push(env) for _ in range(30))]
    before = [step.obs["vector"].copy() for step in steps]
    flags = [step.is_last.copy() for step in steps]
    for step in steps:  # the caller may write into what it got
        step.is_last[:] = True
    after = push(env)
    assert not after.is_first.all()
    for step, obs in zip(steps, before, strict=True):
        np.testing.assert_array_equal(step.obs["vector"], obs)
        assert step.obs["vector"].dtype == step.reward.dtype == np.float32
    assert any(flag.any() for flag in flags)
    env.close()


@pytest.mark.parametrize("id, options", BACKENDS)
def test_environment_i_has_seed_plus_i(id: str, options: dict[str, str]) -> None:
    together = make_env(id, num_envs=3, seed=5, options=options).recv().obs["vector"]
    apart = [make_env(id, num_envs=1, seed=5 + at, options=options).recv().obs["vector"][0] for at in range(3)]
    np.testing.assert_array_equal(together, apart)
    assert len({tuple(row) for row in together.tolist()}) == 3


@pytest.mark.parametrize("id, options", BACKENDS[:2])
def test_turns_are_kept(id: str, options: dict[str, str]) -> None:
    env = make_env(id, num_envs=2, seed=0, options=options)
    with pytest.raises(EnvError, match=re.escape(f"env.id {id}: send() needs a recv() before it")):
        env.send({"action": np.zeros(2, int)})
    env.recv()
    with pytest.raises(EnvError, match=r"recv\(\) needs a send\(\)"):
        env.recv()
    env.send({"action": np.zeros(2, int)})
    with pytest.raises(EnvError, match=r"send\(\) needs a recv\(\)"):
        env.send({"action": np.zeros(2, int)})
    with pytest.raises(EnvError, match=r"render\(\) only between"):
        env.render(0)
    env.recv()
    env.close()
    env.close()
    for call in (env.recv, lambda: env.send({"action": np.zeros(2, int)}), lambda: env.render(0)):
        with pytest.raises(EnvError, match="it is closed"):
            call()


@pytest.mark.parametrize(
    "id, action, message",
    [
        ("CartPole-v1", {"action": [0, 2]}, 'env 1: action "action" must lie in 0..1, got 2'),
        ("CartPole-v1", {"action": [-1, 0]}, 'env 0: action "action" must lie in 0..1, got -1'),
        ("CartPole-v1", {"action": [0.0, 1.0]}, 'action "action" must be integer, got float64'),
        ("CartPole-v1", {"action": [[0], [1]]}, 'action "action" must have shape (2,), got (2, 1)'),
        ("CartPole-v1", {"action": [0]}, 'action "action" must have shape (2,), got (1,)'),
        ("CartPole-v1", {}, "the action must have the keys ['action'], got []"),
        (
            "CartPole-v1",
            {"action": [0, 0], "b": [0, 0]},
            "the action must have the keys ['action'], got ['action', 'b']",
        ),
        ("Pendulum-v1", {"action": [[0.0], [np.nan]]}, 'env 1: action "action" is not finite (got nan)'),
        ("Pendulum-v1", {"action": [[np.inf], [0.0]]}, 'env 0: action "action" is not finite (got inf)'),
        ("Pendulum-v1", {"action": [[0], [1]]}, 'action "action" must be floating point, got int64'),
        ("Pendulum-v1", {"action": [0.0, 1.0]}, 'action "action" must have shape (2, 1), got (2,)'),
    ],
)
def test_bad_actions_are_refused_and_do_not_count(id: str, action: dict[str, list[float]], message: str) -> None:
    env = make_env(id, num_envs=2, seed=0)
    env.recv()
    with pytest.raises(EnvError, match=re.escape(message)):
        env.send({key: np.array(value) for key, value in action.items()})
    with pytest.raises(EnvError, match="needs a send"):  # nothing was sent
        env.recv()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"id": "Cartpole-v1"}, "env.id Cartpole-v1: there is no such environment; did you mean CartPole-v1 or"),
        ({"id": "ZZZZZZZZ"}, "env.id ZZZZZZZZ: there is no such environment; nothing looks like it"),
        ({"num_envs": 0}, "env.num_envs must be at least 1, got 0"),
        ({"seed": -1}, "run.seed must lie in 0..2147483645, got -1"),
        ({"seed": 2**31 - 1}, "run.seed must lie in 0..2147483645, got 2147483647"),
        ({"options": {"keys": 3}}, "env.options.keys must be str, got 3"),
        ({"options": {"keys": "speed"}}, 'env.options.keys: there is no observation "speed", only vector'),
        ({"options": {"resize": True}}, "env.options.resize must be int, got True"),
        ({"options": {"resize": 50}}, "env.options.resize must be one of 48, 64, ..., 256, got 50"),
        ({"options": {"vectorization": "sync"}}, "there is no option env.options.vectorization"),
        (
            {"id": "gym:CartPole-v1", "options": {"vectorization": "fork"}},
            "env.options.vectorization must be sync or async",
        ),
    ],
)
def test_bad_arguments_are_one_line_that_names_the_field(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(EnvError, match=re.escape(message)) as caught:
        make_env(**{"id": "CartPole-v1", "num_envs": 2, "seed": 0, **arguments})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_is_told_instead_of_hanging() -> None:
    env = make_env("CartPole-v1", num_envs=2, seed=0)
    env.recv()
    child = os.fork()
    if child == 0:
        code = 3
        try:
            env.send({"action": np.zeros(2, int)})
        except EnvError as error:
            code = 0 if "another process" in str(error) else 4
            env.close()
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while (status := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    if status == (0, 0):
        os.kill(child, signal.SIGKILL)
    assert status == (child, 0)
    assert push(env).obs["vector"].shape == (2, 4), "the parent's environment must be unharmed"


def test_what_an_environment_says_becomes_flags() -> None:
    no = np.zeros(1, bool)
    yes = ~no

    def flags(reward: float, first: bool, terminated: bool, truncated: bool, over: bool | None = None) -> list[float]:
        game_over = None if over is None else np.array([over])
        raw = Raw({}, np.array([reward]), yes & terminated, yes & truncated, yes & first, game_over)
        return [array[0].item() for array in step_of(raw, {})[1:]]

    assert flags(np.nan, True, False, False) == [0, True, False, False]  # EnvPool's first reward is uninitialised
    assert flags(1.5, False, False, False) == [1.5, False, False, False]
    assert flags(2.5, False, False, True) == [2.5, False, True, False]  # a time limit is not terminal
    assert flags(1e300, True, False, False) == [0, True, False, False]
    assert flags(0.5, False, True, False) == [0.5, False, True, True]
    assert flags(0.5, False, False, True, over=True) == [0.5, False, True, True]  # the environment knows better
    assert flags(0.0, True, False, False, over=True) == [0, True, False, False]
    with pytest.raises(NotFiniteError, match=r"env 0: reward is not finite \(got inf\)"):
        flags(1e300, False, False, False)


def test_same_step_autoreset_is_refused() -> None:
    first = np.ones(2, bool)
    with pytest.raises(EnvError, match="env 1 ended on its reset step"):
        step_of(Raw({}, np.zeros(2), np.array([False, True]), np.zeros(2, bool), first), {})


def test_render_shows_the_asked_environment() -> None:
    env = make_env("fake_envs:Counter", num_envs=2, seed=0, options={"render_mode": "rgb_array"})
    env.recv()
    assert [push(env).obs["vector"].tolist() for _ in range(6)][-1] == [0, 6]
    assert [env.render(at)[0, 0].tolist() for at in (0, 1)] == [[0, 0, 0], [6, 6, 6]]
    pong = make_env("Pong-v5", num_envs=2, seed=0, options={"render_mode": "rgb_array", "resize": 64})
    pong.recv()
    assert pong.render(1).shape == (210, 160, 3) and pong.render(1).std() > 1
    for id in ("CartPole-v1", "gym:CartPole-v1"):
        env = make_env(id, num_envs=1, seed=0)
        env.recv()
        with pytest.raises(EnvError, match=r"cannot render: .*render_mode"):
            env.render(0)


def test_imports_neither_torch_nor_envpool() -> None:
    code = "import sys, fastdreamer.env; print([name for name in ('torch', 'envpool') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "id, options, frames",
    [
        ("Pong-v5", {}, 4),
        ("Pong-v5", {"frame_skip": 2}, 2),
        ("CartPole-v1", {}, 1),
        ("CartpoleBalance-v1", {"frame_skip": 2}, 1),  # of the physics
        ("gym:CartPole-v1", {}, 1),
    ],
)
def test_frames_per_step(id: str, options: dict[str, int], frames: int) -> None:
    size = {"img_height": 64, "img_width": 64} if id == "Pong-v5" else {}
    env = make_env(id, num_envs=1, seed=0, options={**options, **size})
    assert env.action_repeat == frames
    env.close()
