"""Skipped updates are counted as a plain loop over a list counts them."""

import random

import torch

from fastdreamer.skips import RECENT, Skips


def test_the_most_in_a_row_and_the_last_plan_are_those_of_a_list() -> None:
    rng, skips, flags = random.Random(0), Skips(2, torch.device("cpu")), list[int]()
    most, last = 0, [-1, -1]
    for update in range(5 * RECENT):
        share = 0.01 if update < 2 * RECENT else 0.1
        flags.append(int(rng.random() < share))
        skips.add(torch.tensor(float(flags[-1])), torch.tensor([[update, update + 1], [7, update]]))
        most = max(most, sum(flags[-RECENT:]))
        last = [update, update + 1] if flags[-1] else last
        assert skips.most == most and skips.plan[0].tolist() == last
    assert most > 5 and skips.plan[1].tolist() == [7, last[0]]


def test_two_skips_with_a_hundred_updates_between_them_are_one_at_a_time() -> None:
    for between, most in ((RECENT - 2, 2.0), (RECENT - 1, 1.0)):
        skips, plan = Skips(1, torch.device("cpu")), torch.zeros(2, 1, dtype=torch.int64)
        for skipped in (1.0, *[0.0] * between, 1.0):
            skips.add(torch.tensor(skipped), plan)
        assert skips.most == most


def test_what_was_cleared_is_forgotten() -> None:
    skips, plan = Skips(1, torch.device("cpu")), torch.zeros(2, 1, dtype=torch.int64)
    for _ in range(3):
        skips.add(torch.ones(()), plan)
    skips.clear()
    assert skips.most == 0
    skips.add(torch.ones(()), plan)
    assert skips.most == 1
