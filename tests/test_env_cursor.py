"""Environments that go on from a save: the same records follow, from the middle of episodes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from env_rollout import random_action

from fastdreamer.env import Env, EnvError, EnvState, Step, make_env
from fastdreamer.env_cursor import Cursors, episode_seed

SAVED, AFTER = 100, 60
"""Records before a save, and after it."""

WALK = "fake_envs:Walk"
KINDS = [
    (WALK, {}),
    (WALK, {"act": "nested"}),
    (WALK, {"act": "box", "show": "image"}),
    (WALK, {"vectorization": "async", "act": "uneven"}),
    ("gym:CartPole-v1", {}),
]


@pytest.fixture(autouse=True)
def importable_fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def drive(env: Env, steps: int, random: np.random.Generator) -> Iterator[Step]:
    for _ in range(steps):
        yield env.recv()
        env.send(random_action(env, random))


def one_has_ended_that_began_after_another(steps: list[Step]) -> bool:
    """Whose actions are kept, so that it could be played again."""
    began = np.array([step.is_first for step in steps])[::-1].argmax(0)  # records ago
    ended = steps[-1].is_last
    return bool(ended.any() and not ended.all() and began[ended].min() < began[~ended].max())


def assert_same(ours: list[Step], theirs: list[Step]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        for key, value in our.obs.items():
            np.testing.assert_array_equal(value, their.obs[key])
        for value, other in zip(our[1:], their[1:], strict=True):
            np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize("id, options", KINDS)
def test_the_records_after_a_save_come_again(
    id: str, options: dict[str, str | int], caplog: pytest.LogCaptureFixture
) -> None:
    env = make_env(id, num_envs=3, seed=7, options=options)
    random = np.random.default_rng(0)
    before = [*drive(env, SAVED, random)]
    while not one_has_ended_that_began_after_another(before):
        before += drive(env, 1, random)
    state, draws = env.save(), random.bit_generator.state
    expected = [*drive(env, AFTER, random)]
    assert sum(step.is_last.sum() for step in before) > 3 and sum(step.is_last.sum() for step in expected) > 1
    for other in (env, make_env(id, num_envs=3, seed=7, options=options)):  # the second leaves what it was about to do
        other.restore(EnvState(state.facts, {key: value.copy() for key, value in state.actions.items()}))
        random.bit_generator.state = draws
        again = other.save()
        assert again.facts == state.facts
        assert all((again.actions[key] == value).all() for key, value in state.actions.items())
        assert_same([*drive(other, AFTER, random)], expected)
        other.close()
    assert not caplog.messages


def test_what_does_not_repeat_itself_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    options = {"seeded": False}
    env = make_env(WALK, num_envs=2, seed=0, options=options)
    random = np.random.default_rng(0)
    while True:
        (last,) = drive(env, 1, random)
        if not (last.is_first | last.is_last).any():
            break
    env.restore(env.save())
    assert caplog.messages == ["2 of 2 episodes are cut, after the same seed and actions they show something else"]
    assert env.recv().is_first.all()


def test_a_pool_begins_new_episodes_with_seeds_of_the_moment(caplog: pytest.LogCaptureFixture) -> None:
    env = make_env("CartPole-v1", num_envs=3, seed=7)
    random = np.random.default_rng(0)
    for _ in drive(env, SAVED, random):
        pass
    state = env.save()
    assert state.actions == {}
    env.restore(state)
    (message,) = caplog.messages
    assert message.endswith("of 3 episodes are cut, they cannot be replayed")
    first = env.recv()
    assert first.is_first.all()
    fresh = make_env("CartPole-v1", num_envs=3, seed=episode_seed(7, SAVED)).recv()
    np.testing.assert_array_equal(first.obs["vector"], fresh.obs["vector"])
    assert (fresh.obs["vector"] != make_env("CartPole-v1", num_envs=3, seed=7).recv().obs["vector"]).all()


def test_what_failed_is_not_played_again() -> None:
    """It would fail again."""
    env = make_env("fake_envs:Faulty", num_envs=2, seed=0, options={"how": "raise"})
    random = np.random.default_rng(0)
    with pytest.raises(ValueError, match="of the environment"):
        for _ in drive(env, 10, random):
            pass
    env.restore(env.save())
    assert env.recv().is_first.all()


def test_a_long_episode_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdreamer.env_cursor.LONGEST", 6)
    cursors = Cursors(2, 0, keep=True)
    no, first = np.zeros(2, bool), np.array([True, True])
    for record in range(7):
        cursors.received({"x": np.full((2, 1), record)}, first, no)
        cursors.sent({"a": np.full((2,), record)})
        first = np.array([False, record == 2])  # the second begins a new episode at record 3
    state = cursors.save()
    assert state.facts["lengths"] == [0, 4] and state.actions["a"].tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize("value", [None, [], [0, 0, 0], [0, "1"], [0, -1], [0, 2**70], [0, 1.5]])
@pytest.mark.parametrize("name", ["began", "ended", "lengths", "digests"])
def test_a_state_that_is_none_is_refused(name: str, value: object) -> None:
    cursors = Cursors(2, 0, keep=True)
    cursors.received({"x": np.zeros((2, 1))}, np.ones(2, bool), np.zeros(2, bool))
    cursors.sent({"a": np.zeros(2)})
    state = cursors.save()
    with pytest.raises(EnvError, match="its saved state"):
        cursors.restore(EnvState(state.facts | {name: value}, state.actions))
    with pytest.raises(EnvError, match=r"its saved state has a of shape \(3,\), not of 2 actions"):
        cursors.restore(EnvState(state.facts, {"a": np.zeros(3)}))
    assert len(cursors.restore(state)) == 2


def test_later_episodes_have_seeds_of_their_own() -> None:
    seeds = {episode_seed(seed, record) for seed in range(20) for record in range(1, 50)}
    assert len(seeds) == 20 * 49 and all(0 <= seed < 2**30 for seed in seeds)
    assert [episode_seed(seed, 0) for seed in (0, 5)] == [0, 5]
