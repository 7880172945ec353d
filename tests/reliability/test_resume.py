"""R1: 200 updates in a row are 100, a checkpoint, and 100 more, bit for bit, from the middle of episodes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_state import differing, everything
from test_loop import tiny_config

from fastdreamer import checkpoint
from fastdreamer.config import Config, EnvConfig
from fastdreamer.loop import Training

Bar = Callable[[str, bool], None]
HALF, ACTIONS = 100, 50
"""Updates before and after the checkpoint; records after them whose actions are compared."""

WALK = "fake_envs:Walk"
CASES = {
    "vector, discrete": (WALK, {"act": "discrete"}),
    "vector, continuous": (WALK, {"act": "box"}),
    "image, discrete": (WALK, {"act": "equal", "show": "image"}),
    "image, continuous": (WALK, {"act": "box", "show": "image"}),
}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


def configured(folder: Path, id: str, options: dict[str, str | int], seed: int, schedule: str = "sync") -> Config:
    config = tiny_config(folder, steps=10**6, seed=seed)
    return replace(
        config,
        env=EnvConfig(id=id, num_envs=3, options=options),
        model=replace(config.model, depth=2),
        run=replace(config.run, schedule=schedule),
    )


def train(training: Training, updates: int) -> None:
    while training.progress.updates < updates:
        training.advance()


def actions(training: Training, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What is sent to the environments in the next records."""
    sent: list[np.ndarray] = []
    original = training.env.send
    monkeypatch.setattr(training.env, "send", lambda action: (sent.append(action["action"]), original(action)))
    for _ in range(ACTIONS):
        training.advance()
    return sent


def resumed_as_if_never_stopped(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what differs between a run that never saved and one that went on from a checkpoint; or that saved."""
    whole = Training(config, None)
    train(whole, HALF)
    if not whole.env._backend.replays:
        whole.env.restore(whole.env.save())  # as the resumed run begins
    train(whole, 2 * HALF)
    expected, sent = everything(whole), actions(whole, monkeypatch)
    whole.env.close()

    first = Training(config, None)
    train(first, HALF)
    first.save(folder)
    second = Training(config, checkpoint.latest(folder))
    wrong = differing(everything(first), everything(second))
    trainings = {"resumed": second, "saved": first} if first.env._backend.replays else {"resumed": second}
    for name, training in trainings.items():
        train(training, 2 * HALF)
        wrong += [f"{name}: {tensor}" for tensor in differing(expected, everything(training))]
        if any((ours != theirs).any() for ours, theirs in zip(sent, actions(training, monkeypatch), strict=True)):
            wrong.append(f"{name}: actions")
    first.env.close()
    second.env.close()
    return wrong


QUICK = [(case, 0) for case in CASES if "vector" in case]
ALL = [(case, seed) for case in CASES for seed in range(3)]
SLOW = [pytest.param(*each, marks=pytest.mark.slow) for each in ALL if each not in QUICK]


@pytest.mark.parametrize("case, seed", [*QUICK, *SLOW])
def test_a_resumed_run_is_the_run_that_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bar: Bar, case: str, seed: int
) -> None:
    wrong = resumed_as_if_never_stopped(configured(tmp_path, *CASES[case], seed), tmp_path, monkeypatch)
    bar("R1 resumed bit for bit", not wrong)
    assert wrong == []


@pytest.mark.parametrize("id, options, schedule", [("CartPole-v1", {}, "sync"), (WALK, {}, "pipeline")])
def test_also_with_a_pool_and_with_a_policy_that_lags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bar: Bar, id: str, options: dict[str, str | int], schedule: str
) -> None:
    config = configured(tmp_path, id, options, 0, schedule)
    wrong = resumed_as_if_never_stopped(config, tmp_path, monkeypatch)
    bar("R1 with EnvPool, with a policy that lags", not wrong)
    assert wrong == []
