"""Dreams are aligned with the truth, in their numbers and in the pictures of their videos."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_envs import Clock
from test_export import random_agent
from test_trained import saved_training, tiny_config
from test_video import read_video

from fastdreamer import dream
from fastdreamer.batch import State
from fastdreamer.dream import CONTEXT, GAP, SCALE, SEGMENT, Recorded, main, pictures, reconstruct, record, write_video
from fastdreamer.evaluate import evaluation_camera, evaluation_env
from fastdreamer.spaces import Space, Spaces
from fastdreamer.trained import load

OBS: Spaces = {"vector": Space("vector", (3,)), "room": Space("discrete", (), 4), "image": Space("image", (48, 48, 3))}
ACT: Spaces = {"turn": Space("vector", (2,), low=(-1.0, -1.0), high=(1.0, 1.0)), "jump": Space("discrete", (), 3)}


def make_truth(length: int) -> Recorded:
    rng = np.random.default_rng(0)
    obs = {
        "vector": rng.standard_normal((length, 3), np.float32),
        "room": rng.integers(4, size=length, dtype=np.int32),
        "image": rng.integers(256, size=(length, 48, 48, 3), dtype=np.uint8),
    }
    actions = {
        "turn": rng.standard_normal((length, 2), np.float32),
        "jump": rng.integers(3, size=length, dtype=np.int32),
    }
    return Recorded(obs, actions, rng.standard_normal(length, np.float32), np.ones(length, np.float32))


def test_a_dream_begins_where_the_observed_states_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """deter does not know its own step's observation: the first dreamed one is the observed one."""
    agent, truth, shown = random_agent(OBS, ACT), make_truth(SEGMENT + 20), []
    see = dream._see
    monkeypatch.setattr(dream, "_see", lambda agent, states: shown.append(states) or see(agent, states))
    seen, dreamed = reconstruct(agent, truth, seed=0)
    observed, open_loop = shown
    assert observed.deter.shape == open_loop.deter.shape == (1, SEGMENT + 20, 16)
    for begin in (0, SEGMENT):
        context, first = slice(begin, begin + CONTEXT), begin + CONTEXT
        assert torch.equal(observed.deter[:, context], open_loop.deter[:, context])
        assert torch.equal(observed.stoch[:, context], open_loop.stoch[:, context])
        torch.testing.assert_close(observed.deter[:, first], open_loop.deter[:, first], rtol=1e-5, atol=1e-5)
        later = slice(first + 1, begin + 20)
        assert not torch.allclose(observed.deter[:, later], open_loop.deter[:, later], atol=1e-3)
        for key in OBS:
            np.testing.assert_array_equal(seen.obs[key][context], dreamed.obs[key][context])
    assert {key: value.dtype.name for key, value in seen.obs.items()} == {
        "vector": "float32", "room": "int32", "image": "uint8"
    }  # fmt: skip


def test_following_actions_is_one_step_after_the_other() -> None:
    agent, rng = random_agent(OBS, ACT), torch.Generator().manual_seed(1)
    start = agent.world.dyn.initial(2, torch.float32, torch.device("cpu"))
    action, uniform = torch.randn(2, 6, 5, generator=rng), torch.rand(2, 6, 4, generator=rng)
    whole = agent.world.dyn.follow(start, action, uniform)
    rest = agent.world.dyn.follow(State(whole.deter[:, 2], whole.stoch[:, 2]), action[:, 3:], uniform[:, 3:])
    assert torch.equal(whole.deter[:, 3:], rest.deter) and torch.equal(whole.stoch[:, 3:], rest.stoch)
    assert len(whole.stoch.unique()) > 1


def test_what_the_decoder_says_is_shown_in_units_of_the_observation() -> None:
    agent = random_agent(OBS, ACT)
    states = State(torch.randn(1, 2, 16), torch.randint(4, (1, 2, 4), dtype=torch.int32))
    onehot = torch.nn.functional.one_hot(states.stoch.long(), 4).float().flatten(-2)
    out, seen = agent.world.dec(states.deter, onehot), dream._see(agent, states)
    expected = torch.sign(out["vector"][0]) * (out["vector"][0].abs().exp() - 1)
    np.testing.assert_allclose(seen.obs["vector"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(seen.obs["room"], out["room"][0].argmax(-1))
    assert np.abs(seen.obs["image"].astype(float) - 255 * out["image"][0].numpy()).max() <= 0.5
    assert seen.cont.max() <= 1


def test_the_pictures_are_those_of_the_episode(tmp_path: Path) -> None:
    """Picture t is of brightness 4 * t: read back from the file it stands at place t, in its own column."""
    length, side = 60, 48
    truth = np.broadcast_to(4 * np.arange(length, dtype=np.uint8)[:, None, None, None], (length, side, side, 3))
    seen, dreamed = np.full_like(truth, 100), truth // 2
    write_video(tmp_path / "dream.mp4", pictures(truth, seen, dreamed))
    frames = read_video(tmp_path / "dream.mp4")
    width = side * SCALE
    assert frames.shape == (length, width + 2 * GAP, 4 * width + 5 * GAP, 3)
    for column, expected in enumerate((truth, seen, dreamed, truth - dreamed)):
        left = GAP + column * (width + GAP)
        middle = frames[:, GAP + 8 : GAP + width - 8, left + 8 : left + width - 8].mean((1, 2, 3))
        assert np.abs(middle - expected[:, 0, 0, 0]).max() < 3, column
    left = GAP + 2 * (width + GAP)
    green = frames[:, 0, left + 8 : left + width - 8, 1].mean(-1) > 80
    assert np.flatnonzero(green).tolist() == [*range(CONTEXT), *range(SEGMENT, SEGMENT + CONTEXT)]


def test_an_episode_is_recorded_as_it_is_played(tmp_path: Path) -> None:
    saved_training(tmp_path, "CartPole-v1")
    trained = load(tmp_path)
    env = evaluation_env(trained.config, 1, seed=5)
    truth = record(trained.agent, env, steps=500, seed=5)
    env.close()
    again = evaluation_env(trained.config, 1, seed=5)
    begun = record(trained.agent, again, steps=5, seed=5)
    np.testing.assert_array_equal(begun.prev_action["action"], truth.prev_action["action"][:5])
    again.close()
    again = evaluation_env(trained.config, 1, seed=5)
    first = again.recv()
    assert np.array_equal(truth.obs["vector"][0], first.obs["vector"][0]) and truth.reward[0] == 0
    for at in range(1, len(truth.reward)):  # the action beside a record is the one that led to it
        again.send({"action": truth.prev_action["action"][at : at + 1]})
        np.testing.assert_array_equal(again.recv().obs["vector"][0], truth.obs["vector"][at])
    assert truth.reward[1:].tolist() == [1.0] * (len(truth.reward) - 1)
    assert truth.cont.tolist() == [1.0] * (len(truth.reward) - 1) + [0.0]  # the pole fell long before 500 steps
    again.close()


def test_a_known_episode_is_aligned_with_its_dream(tmp_path: Path) -> None:
    """Picture t shows step t and the action before it: in the record, in the video of the episode and of the dream."""
    saved_training(tmp_path / "run", "picture_envs:Clock")
    trained = load(tmp_path / "run")
    camera = evaluation_camera(trained.config, 1, 0)
    truth = record(trained.agent, camera.env, 200, 0)
    camera.env.close()
    steps, taken = np.arange(Clock.LENGTH + 1), 200 * truth.prev_action["action"]
    np.testing.assert_array_equal(truth.obs["image"][:, 0, -1, 0], 10 * steps)
    np.testing.assert_array_equal(truth.obs["image"][:, 0, 0, 0], taken)
    np.testing.assert_array_equal(truth.reward, steps)
    assert 0 < taken[1:].mean() < 200  # both actions
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "dream")]) == 0
    width = 48 * SCALE
    for name, left, top in (("episode-0", 0, 0), ("dream", GAP, GAP)):
        pictures = read_video(tmp_path / "dream" / f"{name}.mp4")
        assert len(pictures) == len(steps)
        halves = [
            pictures[:, top + 8 : top + 180, left + at + 8 : left + at + width // 2 - 8].mean((1, 2, 3))
            for at in (0, (240 if name == "episode-0" else width) // 2)
        ]
        assert np.abs(halves[0] - taken).max() < 4 and np.abs(halves[1] - 10 * steps).max() < 4, name


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved_training(tmp_path / "run", "Catch-v0")
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "dream"), "--steps", "9"]) == 0
    assert str(tmp_path / "dream" / "dream.html") in capsys.readouterr().out
    text = (tmp_path / "dream" / "dream.html").read_text()
    assert "open loop" in text and "reward" in text and "cont" in text
    without = tiny_config(tmp_path / "blind").to_json()
    without["loss"]["decoder"] = 0.0
    (tmp_path / "run" / "config.json").write_text(json.dumps(without))
    for words in (["--steps", "3"], []):
        with pytest.raises(SystemExit) as end:
            main([str(tmp_path / "run"), *words])
        assert end.value.code == 2
    assert capsys.readouterr().err.startswith("fastdreamer: error: --steps must be at least 6, got 3\n")
