"""Games through EnvPool against what they say of themselves: the console's memory, the board, the rules."""

import itertools

import gymnasium
import numpy as np
import pytest
from env_rollout import Policy, Record, Twin, episodes, play

from fastdreamer.env import Env, Step, make_env
from fastdreamer.env_step import Arrays, Options
from fastdreamer.presets import ATARI, ATARI100K

CPU_SCORE, PLAYER_SCORE = 13, 14
"""Where Pong keeps the points of the two sides in the console's 128 bytes."""


def score(record: Record) -> int:
    return int(record.info["ram"][PLAYER_SCORE]) - int(record.info["ram"][CPU_SCORE])


def always(action: int) -> Policy:
    return lambda env, step: {"action": np.full(env.num_envs, action)}


def play_pong(limit: int, watched: bool) -> list[Record]:
    options = {**ATARI100K, "max_episode_steps": limit}
    env = make_env("Pong-v5", num_envs=1, seed=1, options=options)
    return play(env, 824, Twin("Pong-v5", env, 1, options) if watched else None)[0]


@pytest.fixture(scope="module")
def pong() -> list[Record]:
    """A whole game, which takes 822 records, and the console's memory at each."""
    return play_pong(27_000, watched=True)


def test_pong_rewards_are_the_points_in_the_consoles_memory(pong: list[Record]) -> None:
    points = 0.0
    for record in pong:
        points = 0 if record.is_first else points + record.reward
        assert points == score(record)
        np.testing.assert_array_equal(record.obs["image"], np.moveaxis(record.info["raw"], 0, -1))
    (game,) = episodes([pong])
    winner = [int(max(record.info["ram"][[CPU_SCORE, PLAYER_SCORE]])) for record in game]
    assert game[-1].is_terminal and winner[-1] == 21 and max(winner[:-1]) == 20


def test_pong_ends_with_the_game_and_not_with_the_time_limit(pong: list[Record]) -> None:
    (game,) = episodes([pong])
    steps = len(game) - 1
    for limit, over in ((steps - 1, False), (steps, True)):  # at `steps` the game is over on the last step allowed
        shown = episodes([play_pong(limit, watched=False)])[0]
        assert len(shown) == limit + 1 and shown[-1].is_last and shown[-1].is_terminal == over
        assert [record.reward for record in shown] == [record.reward for record in game][: limit + 1]


@pytest.mark.parametrize("episodic", [False, True])
def test_breakout_ends_with_the_last_life_or_where_asked_with_each(episodic: bool) -> None:
    options = {**ATARI100K, "episodic_life": episodic}
    env = make_env("Breakout-v5", num_envs=2, seed=0, options=options)
    games = episodes(play(env, 300, Twin("Breakout-v5", env, 0, options)))
    assert len(games) >= (8 if episodic else 2)
    for game in games:
        lives = [int(record.info["lives"]) for record in game]
        assert game[-1].is_terminal
        assert sum(record.reward for record in game) == sum(record.info["reward"] for record in game[1:])
        if episodic:
            assert {*lives[:-1]} == {lives[0]} and lives[-1] == lives[0] - 1
        else:
            assert lives[0] == 5 and lives[-1] == 0 and 0 not in lives[:-1]


def test_the_presets_leave_the_fire_button_to_the_agent() -> None:
    def pictures_and_lives(options: Options) -> tuple[int, int]:
        env = make_env("Breakout-v5", num_envs=1, seed=0, options=options)
        row = play(env, 50, Twin("Breakout-v5", env, 0, options), always(0))[0]
        return len({record.obs["image"].tobytes() for record in row}), min(int(record.info["lives"]) for record in row)

    assert pictures_and_lives(ATARI) == pictures_and_lives(ATARI100K) == (1, 5), "nothing moves before it is pressed"
    served = pictures_and_lives({**ATARI100K, "use_fire_reset": True})
    assert served[0] > 10 and served[1] == 4, "the ball that EnvPool would serve is lost"


def test_catch_pays_for_a_caught_ball() -> None:
    env = make_env("Catch-v0", num_envs=4, seed=0)
    played = episodes(play(env, 101))
    for episode in played:
        assert len(episode) == 10 and episode[-1].is_terminal
        *before, last = episode
        # The ball is a cell of its own until it lands; on the paddle both are one.
        assert [record.obs["vector"].sum() for record in before] == [2] * 9
        assert [record.obs["vector"].argmax() // 5 for record in before] == [*range(9)]
        assert last.reward == (1 if last.obs["vector"].sum() == 1 else -1)
        assert not any(record.reward for record in before)
    assert {episode[-1].reward for episode in played} == {-1, 1} and len(played) == 40


TABLES = {
    "FrozenLake-v1": "FrozenLake-v1",
    "FrozenLake8x8-v1": "FrozenLake8x8-v1",
    "Taxi-v3": "Taxi-v4",
    "CliffWalking-v0": "CliffWalking-v1",
}


@pytest.mark.parametrize("id", [*TABLES, *(f"gym:{id}" for id in TABLES.values())])
def test_text_games_follow_gymnasiums_transition_table(id: str) -> None:
    unlimited = id == "CliffWalking-v0"
    env = make_env(id, num_envs=4, seed=0, options={} if unlimited else {"max_episode_steps": 50})
    table = gymnasium.make(TABLES.get(id, id.removeprefix("gym:"))).unwrapped.P  # type: ignore[attr-defined]
    records = play(env, 150)
    for row in records:
        for before, after in itertools.pairwise(row):
            outcomes = table[int(before.obs["vector"])][int(before.action["action"])]
            seen = (int(after.obs["vector"]), after.reward, after.is_terminal)
            assert after.is_first or seen in {(state, reward, bool(over)) for _, state, reward, over in outcomes}
    finished = episodes(records)
    assert all(episode[-1].is_terminal or len(episode) == 51 for episode in finished)
    assert len(finished) >= 8 or unlimited


def test_minigrid_pays_for_the_goal_and_shows_the_symbols() -> None:
    forward, right, left = 2, 1, 0
    path = itertools.cycle([forward, forward, right, forward, forward, left])  # what is sent after the goal is ignored

    def walk(env: Env, step: Step) -> Arrays:
        return {"action": np.full(env.num_envs, next(path))}

    id, options = "MiniGrid-Empty-5x5-v0", {"keys": "image,direction"}
    env = make_env(id, num_envs=2, seed=0, options=options)
    for episode in episodes(play(env, 13, Twin(id, env, 0, {}), walk)):
        for record in episode:
            # Every cell: 11 kinds of object, 6 colours, 3 states.
            parts = np.split(record.obs["image"].reshape(7, 7, 20), [11, 17], axis=-1)
            assert all((part.sum(-1) == 1).all() for part in parts)
            np.testing.assert_array_equal(np.stack([part.argmax(-1) for part in parts], -1), record.info["raw/image"])
        assert len(episode) == 6 and episode[-1].is_terminal
        # 1 - 0.9 of the share of the 100 steps that were used (MiniGrid's definition).
        assert [record.reward for record in episode] == pytest.approx([0, 0, 0, 0, 0, 1 - 0.9 * 5 / 100])
        assert [int(record.obs["direction"]) for record in episode] == [0, 0, 0, 1, 1, 1]
    turning = episodes(play(make_env(id, num_envs=1, seed=0, options=options), 203, policy=always(0)))
    assert [(len(episode), episode[-1].is_terminal) for episode in turning] == [(101, False)] * 2
