"""An agent that is loaded from a run folder acts as the run's own evaluation does, and refuses what does not fit."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

import fastdreamer
from fastdreamer import checkpoint
from fastdreamer.agent import Agent
from fastdreamer.config import Config, EnvConfig, ModelConfig, ReplayConfig, RunConfig
from fastdreamer.env import make_env
from fastdreamer.evaluate import EVAL, evaluation_env, main
from fastdreamer.loop import Training
from fastdreamer.noise import Noise, Stream
from fastdreamer.run import run
from fastdreamer.spaces import Space, spaces_from_json, spaces_to_json
from fastdreamer.steps import ActStep
from fastdreamer.trained import TrainedAgent


def tiny_config(folder: Path, env: str = "CartPole-v1") -> Config:
    return Config(
        preset="cartpole",
        env=EnvConfig(id=env, num_envs=3),
        model=ModelConfig(size="size1m", deter=16, hidden=8, units=8, stoch=4, classes=4, blocks=2, depth=2),
        replay=ReplayConfig(batch_size=3, batch_length=6),
        run=RunConfig(
            dir=str(folder), steps=90, train_ratio=8, device="cpu", log_every=0, save_every=0, eval_episodes=4, videos=0
        ),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    run(tiny_config(path), resume=False, started=0.0)
    return path


def saved_training(folder: Path, env: str) -> Training:
    """A few updates with every parameter drawn anew, so that no two actions look alike, and its checkpoint."""
    training = Training(tiny_config(folder, env), None)
    while training.env_steps < 45:
        training.advance()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in training.learner.agent.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(training.config.to_json()))
    training.save(folder)
    training.env.close()
    return training


@pytest.mark.parametrize("env", ["CartPole-v1", "gym:Pendulum-v1", "Catch-v0"])
def test_it_acts_as_the_evaluation_of_its_run(tmp_path: Path, env: str) -> None:
    training = saved_training(tmp_path, env)
    step_of_run = ActStep(training.learner.agent, 3, 0, EVAL)
    loaded = fastdreamer.load(tmp_path)
    state, seen = loaded.init(3), set()
    with closing(evaluation_env(training.config, episodes=3, seed=0)) as played:
        bound = {key: np.array(space.high) for key, space in played.act_space.items() if space.high}
        for _ in range(40):
            step = played.recv()
            expected = step_of_run(step)
            action, state = loaded.act(step.obs, state, step.is_first)
            ((key, raw),) = expected.items()
            if key in bound:
                raw = np.clip(raw, -1, 1) * bound[key]  # its bounds are symmetric
                np.testing.assert_allclose(action, raw, rtol=1e-6)
            else:
                assert np.array_equal(action, raw)
            seen |= set(np.asarray(action).ravel().tolist())
            played.send(expected)
    assert len(seen) > 1, "a policy that always does the same would show nothing"
    assert loaded.env_steps == training.env_steps


def test_is_first_forgets_the_carry_where_it_is_set(folder: Path) -> None:
    obs = np.array([[0.1, 0.2, 0.03, -0.4]] * 2, np.float32)
    agent = fastdreamer.load(folder)
    _, state = agent.act(obs, agent.init(2), True)
    _, later = fastdreamer.load(folder).act(obs, state, np.array([True, False]))
    fresh = fastdreamer.load(folder)
    _, begun = fresh.act(obs, fresh.init(2), np.array([True, True]))
    assert torch.equal(later.world.deter[0], begun.world.deter[0])
    assert not torch.equal(later.world.deter[1], begun.world.deter[1])


REFUSED = {
    "keys": ({"image": np.zeros((2, 4))}, True, r"^obs must have the keys \['vector'\], got \['image'\]$"),
    "shape": (np.zeros((2, 5)), True, r'^observation "vector" must have shape \(2, 4\), got \(2, 5\)$'),
    "rows": (np.zeros((3, 4)), True, r'^observation "vector" must have shape \(2, 4\), got \(3, 4\)$'),
    "type": (np.full((2, 4), "a"), True, r'^observation "vector" must be float32, got <U1$'),
    "nan": (np.full((2, 4), np.nan), True, r'^observation "vector" must be finite, or -inf'),
    "infinite": (np.full((2, 4), 1e300), True, r'^observation "vector" must be finite, or -inf'),
    "flags": (np.zeros((2, 4)), np.zeros(3, bool), r"^is_first must be one bool or shape \(2,\), got bool \(3,\)$"),
    "numbers": (np.zeros((2, 4)), np.zeros(2), r"^is_first must be one bool or shape \(2,\), got float64 \(2,\)$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named(folder: Path, case: str) -> None:
    obs, is_first, message = REFUSED[case]
    agent = fastdreamer.load(folder)
    with pytest.raises(ValueError, match=message):
        agent.act(obs, agent.init(2), is_first)  # type: ignore[arg-type]


def test_no_episodes_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^n must be at least 1 episode, got 0$"):
        fastdreamer.load(folder).init(0)


def test_several_keys_are_dicts(tmp_path: Path) -> None:
    spaces = {"a": Space("discrete", (2,), 3), "b": Space("vector", (), low=(2.0,), high=(6.0,))}
    assert spaces_from_json(json.loads(json.dumps(spaces_to_json(spaces))), "here") == spaces
    config = tiny_config(tmp_path)
    agent = Agent(
        {"x": Space("vector", (3,)), "y": Space("discrete", (), 5)}, spaces, config.model, config.loss, torch.float32
    )
    agent.initialize(Noise(0, Stream.INIT))
    trained = TrainedAgent(agent, config, env_steps=0, seed=0)
    obs = {"x": np.zeros((64, 3), np.float32), "y": np.arange(64) % 5}
    action, _ = trained.act(obs, trained.init(64), True)
    assert isinstance(action, dict)
    assert action["a"].shape == (64, 2) and set(action["a"].ravel().tolist()) == {0, 1, 2}
    assert action["b"].shape == (64,) and 2 <= action["b"].min() < 3 < 5 < action["b"].max() <= 6
    with pytest.raises(ValueError, match=r"^obs must be a dict with the keys \['x', 'y'\], got one value$"):
        trained.act(np.zeros((64, 3)), trained.init(64), True)
    with pytest.raises(ValueError, match=r'^observation "y" must lie in 0\.\.4, got 0\.\.5$'):
        trained.act(obs | {"y": np.arange(64) % 6}, trained.init(64), True)


GOOD = {"kind": "vector", "shape": [4], "classes": 0, "low": [], "high": []}
NO_SPACES = [
    None, [], {}, {"a": None}, {"a": {}}, {"a": GOOD | {"kind": "picture"}}, {"a": GOOD | {"shape": [1.5]}},
    {"a": GOOD | {"shape": [0]}}, {"a": GOOD | {"shape": [-3]}}, {"a": GOOD | {"shape": [2**13] * 2}},
    {"a": GOOD | {"shape": [[]]}}, {"a": GOOD | {"low": [0.0]}}, {"a": GOOD | {"low": [0.0] * 3, "high": [1.0] * 3}},
    {"a": GOOD | {"kind": "discrete"}}, {"a": GOOD | {"kind": "image"}}, {"a": GOOD | {"classes": True}},
    {"a": GOOD | {"more": 1}},
]  # fmt: skip


@pytest.mark.parametrize("data", NO_SPACES, ids=str)
def test_what_is_no_space_is_refused_in_one_line(data: object) -> None:
    with pytest.raises(ValueError, match=r"^here: ") as error:
        spaces_from_json(data, "here")
    assert "\n" not in str(error.value)


def test_the_command_gives_the_scores_of_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = json.loads((folder / "summary.json").read_text())["eval_return"]
    capsys.readouterr()
    assert main([str(folder), "--episodes", "4"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"CartPole-v1 after 90 agent steps: return {expected:.1f} ± ")
    assert "over 4 episodes" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: RUN"),
        (["nowhere"], "nowhere/config.json: cannot be read: No such file or directory"),
        (["nowhere", "--episodes", "0"], "--episodes must be at least 1, got 0"),
        (["nowhere", "--episodes", "many"], "argument --episodes: invalid int value: 'many'"),
        (["nowhere", "--episode", "3"], "unrecognized arguments: --episode 3"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"fastdreamer: error: {message}\n"


def test_a_checkpoint_without_spaces_is_named(folder: Path, tmp_path: Path) -> None:
    saved = checkpoint.latest(folder, with_replay=False)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    state = {name: value for name, value in saved.state.items() if name != "spaces"}
    checkpoint.save(tmp_path, 90, saved.tensors, state)
    with pytest.raises(ValueError, match=r"state\.json: spaces: expected dict, got nothing$"):
        fastdreamer.load(tmp_path)


def test_importing_the_package_does_not_import_torch() -> None:
    program = (
        "import sys, fastdreamer; print('torch' in sys.modules, fastdreamer.load.__name__, 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "load", "True"]
    with pytest.raises(AttributeError, match="has no attribute 'loads'"):
        fastdreamer.loads  # noqa: B018


def test_an_evaluation_plays_with_seeds_beyond_those_of_the_training(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    with (
        closing(evaluation_env(config, episodes=2, seed=5)) as played,
        closing(make_env("CartPole-v1", num_envs=2, seed=5 + config.env.num_envs)) as expected,
    ):
        assert played.num_envs == 2
        assert np.array_equal(played.recv().obs["vector"], expected.recv().obs["vector"])
