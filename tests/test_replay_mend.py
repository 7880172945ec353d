"""Values that are not finite leave the ring: the right ones, nothing else, and their files are written anew."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_replay import save
from tiny_agent import ACT, DETER, GROUPS, OBS, TIME, fill, make_replay
from torch import Tensor

from fastdreamer.replay import Replay
from fastdreamer.replay_mend import mend

ROWS = 10
FILLS = {"obs/speed": -math.inf, "reward": 0.0, "deter": 0.0, "half": 0.0}


def make_rings() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    rings = {"obs/speed": (2, ROWS, 3), "reward": (2, ROWS), "deter": (2, ROWS, 4)}
    made = {key: torch.randn(shape, generator=rng) for key, shape in rings.items()}
    return made | {"obs/room": torch.ones(2, ROWS, dtype=torch.int32), "half": torch.ones(2, ROWS, 2).bfloat16()}


@pytest.mark.parametrize("first, end", [(0, 4), (0, ROWS), (6, 14), (25, 35), (30, 40), (13, 13)])
def test_every_held_value_is_mended_and_no_other(first: int, end: int) -> None:
    rings, rng = make_rings(), np.random.default_rng(1)
    for ring in (ring for ring in rings.values() if ring.is_floating_point()):
        for value in (math.nan, math.inf, -math.inf):
            ring[rng.integers(2), rng.integers(ROWS)].view(-1)[0] = value
    expected, numbers = {key: ring.clone() for key, ring in rings.items()}, set()
    for key, fill_value in FILLS.items():
        for record in range(first, end):
            for value in (part.view(-1) for part in expected[key][:, record % ROWS].unbind()):
                for i in range(value.numel()):
                    if not math.isfinite(value[i]) and value[i] != fill_value:
                        value[i] = fill_value
                        numbers.add(record)
    assert set(mend(rings, first, end).tolist()) == numbers and (len(numbers) > 1 or first == end)
    for key, ring in rings.items():
        torch.testing.assert_close(ring, expected[key], rtol=0, atol=0, equal_nan=True)
    assert len(mend(rings, first, end)) == 0


def test_finite_values_whose_sum_is_not_stay_and_so_do_absent_ones() -> None:
    rings = {"reward": torch.full((2, ROWS), 3e38), "obs/speed": torch.full((2, ROWS), -math.inf)}
    before = {key: ring.clone() for key, ring in rings.items()}
    assert len(mend(rings, 0, ROWS)) == 0
    assert all(torch.equal(ring, before[key]) for key, ring in rings.items())


def test_what_was_mended_is_what_is_loaded(tmp_path: Path) -> None:
    replay = make_replay()
    save(replay, tmp_path)
    replay.records["reward"][1, 3] = math.nan
    replay.latents["deter"][0, 3] = math.inf
    replay.records["obs/speed"][2, 5, 1] = math.inf
    assert replay.mend() == 3, "one record of rewards, one of states, one of observations"
    index = save(replay, tmp_path)
    loaded = Replay(
        OBS, ACT, deter=DETER, stoch=GROUPS, num_envs=replay.num_envs, capacity=50, batch_size=3, batch_length=TIME,
        seed=0,
    )  # fmt: skip
    loaded.load(tmp_path, index)
    assert loaded.records["reward"][1, 3] == 0 and (loaded.latents["deter"][0, 3] == 0).all()
    assert loaded.records["obs/speed"][2, 5, 1] == -math.inf and loaded.records["obs/speed"][2, 5, 0].isfinite()
    for key, ring in (replay.records | replay.latents).items():
        theirs = (loaded.records | loaded.latents)[key]
        assert torch.equal(ring[:, : replay.length], theirs[:, : replay.length]), key


def test_rows_that_were_never_written_are_not_looked_at() -> None:
    replay = make_replay()
    replay.records["reward"][:, replay.length :] = math.nan
    assert replay.mend() == 0
    fill(replay, seed=1, records=TIME)
    assert replay.mend() == 0
