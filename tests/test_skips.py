"""Skipped updates are counted as a plain loop over a list counts them."""

import random

import torch
from test_steps import make_train_step
from test_warm_up import InlineCuda

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


def test_a_warm_up_is_not_counted() -> None:
    agent, train = make_train_step()
    with torch.no_grad():
        next(agent.parameters()).fill_(torch.nan)
    train.warm_up(InlineCuda())
    assert train.skips.most == 0 and (train.skips.plan == -1).all()
    train(train.replay.plan())
    assert train.skips.most == 1 and torch.equal(train.skips.plan, train.replay.staged)
    train.warm_up(InlineCuda())
    assert train.skips.most == 1
