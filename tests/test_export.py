"""The exported policy is the policy: a thousand recurrent steps with resets, for classes, bounded values and images."""

import re
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from test_trained import saved_training, tiny_config

from fastdreamer import export as export_module
from fastdreamer import trained
from fastdreamer.agent import Agent
from fastdreamer.config import LossConfig, ModelConfig, Option
from fastdreamer.evaluate import evaluation_env
from fastdreamer.export import (
    STEPS,
    Arrays,
    Difference,
    Policy,
    PolicyStep,
    difference,
    export,
    main,
    named_inputs,
    output_names,
    unflatten,
)
from fastdreamer.noise import Noise, Stream
from fastdreamer.run import run
from fastdreamer.spaces import Space, Spaces
from fastdreamer.trained import TrainedAgent, load

README = Path(__file__).parents[1] / "README.md"
VECTOR, CLASSES = {"vector": Space("vector", (4,))}, {"action": Space("discrete", (), 3)}
BOUNDED = {"action": Space("vector", (2,), low=(-2.0, 0.0), high=(2.0, 6.0))}
CASES: dict[str, tuple[Spaces, Spaces]] = {
    "bounded": ({**VECTOR, "room": Space("discrete", (), 5)}, BOUNDED),
    "image": ({"image": Space("image", (48, 48, 3))}, CLASSES | {"jump": BOUNDED["action"]}),
}


def random_agent(obs: Spaces, act: Spaces) -> Agent:
    """With every parameter drawn: no output is left at zero."""
    model = ModelConfig(size="size1m", deter=16, hidden=8, units=8, stoch=4, classes=4, blocks=2, depth=2)
    agent = Agent(obs, act, model, LossConfig(), torch.float32)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    return agent.requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_thousand_steps_are_the_same(tmp_path: Path, case: str) -> None:
    agent = random_agent(*CASES[case])
    policies = export(agent, tmp_path)
    assert list(policies) == ["policy.onnx", "policy.pt2"]
    for name, policy in policies.items():
        found = difference(agent, policy)
        print(name, found)
        assert found.action <= 1e-5 and found.classes == 0, name
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    assert {each.name: tuple(each.shape) for each in session.get_inputs()} == {
        name: shape for name, (shape, _) in named_inputs(agent).items()
    }


TASKS: dict[str, dict[str, Option]] = {
    "CartPole-v1": {},
    "Pendulum-v1": {"max_episode_steps": 50},
    "Pong-v5": {"max_episode_steps": 50, "resize": 64},
}


def trained_run(folder: Path, task: str) -> TrainedAgent:
    """A tiny agent after some updates on a task, loaded from its run folder."""
    config = tiny_config(folder, task)
    config = replace(config, env=replace(config.env, options=TASKS[task]), run=replace(config.run, eval_episodes=0))
    run(config, resume=False, started=0.0)
    return load(folder)


def apart_from(agent: TrainedAgent, policy: Policy, steps: int) -> Difference:
    """A policy beside `TrainedAgent.act` over the steps of the agent's own environment, each with its own carry."""
    inner, inputs = agent.agent, named_inputs(agent.agent)
    observe, draw = (Noise(0, stream) for stream in (Stream.EVAL_STATE, Stream.EVAL_POLICY))
    carry = {name: np.zeros(shape, kind) for name, (shape, kind) in inputs.items()}
    state, largest, others, episodes = agent.init(1), 0.0, 0, 0
    with closing(evaluation_env(agent.config, 1, 0)) as env:
        for _ in range(steps):
            step = env.recv()
            episodes += int(step.is_first[0])
            action, state = agent.act(step.obs, state, step.is_first)
            noise = inner.act_noise(observe, draw, 1)
            fresh = {f"obs_{key}": value for key, value in step.obs.items()} | {"is_first": step.is_first}
            out = policy(carry | fresh | {"observe": noise.observe.numpy(), "noise": noise.action.numpy()})
            apart = float(np.abs(out["action_action"].astype(float) - action).max())
            classes = inner.world.act["action"].classes > 0
            largest, others = max(largest, 0.0 if classes else apart), others + int(classes and apart > 0)
            carry |= export_module._carry(out, ["action"])
            env.send({"action": out["next_action"]})
    assert episodes > steps / 500
    return Difference(largest, others)


def test_a_step_is_that_of_a_loaded_agent(tmp_path: Path) -> None:
    """With the same noise, on the observations of its environment, within its bounds."""
    agent = trained_run(tmp_path / "run", "Pendulum-v1")
    step, outputs = PolicyStep(agent.agent), output_names(agent.agent)

    def policy(feed: Arrays) -> Arrays:
        results = step(*unflatten(agent.agent, {name: torch.from_numpy(value) for name, value in feed.items()}))
        return {name: value.numpy() for name, value in zip(outputs, results, strict=True)}

    assert apart_from(agent, policy, 120).action <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_trained_run_plays_its_environment_the_same(tmp_path: Path, task: str) -> None:
    agent = trained_run(tmp_path / "run", task)
    for name, policy in export(agent.agent, tmp_path).items():
        found = apart_from(load(tmp_path / "run"), policy, STEPS)  # whose noise is at its begin
        print(task, name, found)
        assert found.action <= 1e-5 and found.classes == 0, name


def test_actions_are_those_of_a_loaded_agent() -> None:
    """Raw samples beyond -1..1 are clipped, then mapped to the bounds."""
    space, raw = BOUNDED["action"], np.array([[-3.0, 0.25], [0.5, 1.5]], np.float32)
    ours = export_module._executed(space, torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(ours, trained._executed(space, "action", raw), rtol=1e-6)
    np.testing.assert_allclose(ours, [[-2.0, 3.75], [1.0, 6.0]], rtol=1e-6)


def test_the_comparison_has_resets_and_sees_a_policy_that_forgets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdreamer.export.STEPS", 200)
    agent, first = random_agent(VECTOR, BOUNDED), []
    step, outputs = PolicyStep(agent), output_names(agent)

    def forgetless(feed: Arrays) -> Arrays:
        first.append(bool(feed["is_first"][0]))
        tensors = {name: torch.from_numpy(value) for name, value in (feed | {"is_first": np.array([False])}).items()}
        return {name: value.numpy() for name, value in zip(outputs, step(*unflatten(agent, tensors)), strict=True)}

    assert difference(agent, forgetless).action > 1e-3
    assert np.flatnonzero(first).tolist() == [0, 50, 100, 150]


def test_the_comparison_sees_a_policy_that_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdreamer.export.STEPS", 100)
    agents = [random_agent(VECTOR, CLASSES | BOUNDED | {"turn": BOUNDED["action"]}) for _ in range(2)]
    with torch.no_grad():
        agents[1].behavior.pol.head["turn"]["mean"].bias.add_(1e-3)

    def policy_of(agent: Agent):
        step, outputs = PolicyStep(agent), output_names(agent)

        def act(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            results = step(*unflatten(agent, {name: torch.from_numpy(value) for name, value in feed.items()}))
            return {name: value.numpy() for name, value in zip(outputs, results, strict=True)}

        return act

    assert difference(agents[0], policy_of(agents[0])) == Difference(0.0, 0)
    assert difference(agents[0], policy_of(agents[1])).action > 1e-4


def test_the_command_and_the_loop_of_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved_training(tmp_path / "run", "CartPole-v1")
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "policy")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        f"{STEPS} steps, actions differ by at most 0.0e+00, classes 0 times"
    ] * 2
    (program,) = [
        code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "onnxruntime" in code
    ]
    program += "import sys; print('torch' in sys.modules, 'fastdreamer' in sys.modules)"
    words = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()
    assert 1 <= float(words[0]) <= 500 and words[1:] == ["False", "False"]


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(tmp_path / "no")])
    message = f"fastdreamer: error: {tmp_path / 'no' / 'config.json'}: cannot be read: No such file or directory\n"
    assert end.value.code == 2 and capsys.readouterr().err == message
