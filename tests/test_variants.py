"""Every kind of space and every field of the model and its losses trains, evaluates and goes on from a checkpoint."""

import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_loop import assert_same, tensors, tiny_config

from fastdreamer import checkpoint
from fastdreamer.config import Config, EnvConfig, LossConfig
from fastdreamer.evaluate import evaluate, evaluation_env
from fastdreamer.loop import Training

UPDATES = 5
ALWAYS = {"dyn", "rep", "rew", "policy", "value", "repval"}


def make_config(
    folder: Path, obs: str, act: str, num_envs: int, model: dict[str, float | str], loss: dict[str, float | bool]
) -> Config:
    """`tiny_config` in random observations; free nats would leave the prior without a gradient."""
    config = tiny_config(folder)
    return replace(
        config,
        env=EnvConfig(id="fake_envs:Sampled", num_envs=num_envs, options={"obs": obs, "act": act}),
        model=replace(config.model, **model),
        loss=LossConfig(**{"horizon": 3, "free_nats": 0.0} | loss),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("obs", "act", "num_envs", "model", "loss"),
    [
        pytest.param("box", "discrete", 1, {}, {}, id="one environment"),
        pytest.param("gray", "discrete", 4, {}, {}, id="one image"),
        pytest.param("hwc,chw,gray", "box", 4, {}, {}, id="three images"),
        pytest.param("class", "equal", 4, {}, {}, id="one class"),
        pytest.param("class,equal,uneven", "binary", 4, {}, {}, id="classes"),
        pytest.param("scalar", "uneven", 4, {}, {}, id="scalar"),
        pytest.param("box,gray,class,flags,nest,scalar", "nested", 4, {}, {}, id="everything"),
        pytest.param("box,class", "nested", 4, {"heads": "normal"}, {}, id="normal heads"),
        pytest.param("box", "nested", 4, {"actor_unimix": 0.01}, {}, id="actor unimix"),
        pytest.param("box", "nested", 4, {"unimix": 0.0}, {}, id="no unimix"),
        pytest.param("box", "discrete", 4, {}, {"use_cont": False}, id="no continue head"),
        pytest.param("gray,box", "discrete", 4, {}, {"decoder": 0.0}, id="no decoder"),
        pytest.param("box", "box", 4, {}, {"decoder": 0.0, "use_cont": False}, id="rewards alone"),
        pytest.param("box", "box", 4, {}, {"retnorm": False}, id="no return normalisation"),
        pytest.param("box", "discrete", 4, {}, {"horizon": 1}, id="horizon 1"),
        pytest.param("gray,box,class", "nested", 4, {"precision": "bfloat16"}, {}, id="bfloat16"),
    ],
)
def test_a_variant_trains_evaluates_and_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    obs: str,
    act: str,
    num_envs: int,
    model: dict[str, float | str],
    loss: dict[str, float | bool],
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    config = make_config(tmp_path, obs, act, num_envs, model, loss)
    training = Training(config, None)
    agent = training.learner.agent
    before = {name: param.detach().clone() for name, param in agent.named_parameters()}
    while training.progress.updates < UPDATES:
        training.advance()
    unchanged = [name for name, param in agent.named_parameters() if torch.equal(param, before[name])]
    assert unchanged == []
    metrics = training.learner.metrics.flush()
    assert {name: value for name, value in metrics.items() if not math.isfinite(value)} == {}
    expected = ALWAYS | ({"con"} if config.loss.use_cont else set())
    expected |= {f"rec/{key}" for key in training.env.obs_space} if config.loss.decoder else set()
    assert {name.removeprefix("loss/") for name in metrics if name.startswith("loss/")} == expected
    assert metrics["opt/loss"] == pytest.approx(
        sum(agent.scale(name) * metrics[f"loss/{name}"] for name in expected), rel=1e-4
    )
    with closing(evaluation_env(config, episodes=3, seed=0)) as played:
        assert len(evaluate(agent, played, 3, 0)) == 3
    training.save(tmp_path)
    second = Training(config, checkpoint.latest(tmp_path))
    for each in (training, second):
        each.update(1)
        each.env.close()
    assert_same(tensors(training), tensors(second))
