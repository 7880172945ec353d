"""Scores and lengths of episodes that end at different times."""

import numpy as np

from fastdreamer.episodes import Episode, EpisodeTracker


def test_scores_and_lengths_of_two_environments() -> None:
    tracker = EpisodeTracker(2)
    records = [  # reward, is_first, is_last: a pair each
        ([0, 0], [True, True], [False, False]),
        ([1, 5], [False, False], [False, True]),
        ([2, 0], [False, True], [True, False]),
        ([0, 7], [True, False], [False, False]),
        ([4, 8], [False, False], [True, True]),
    ]
    ended = [tracker.add(np.array(r, np.float32), np.array(f), np.array(last)) for r, f, last in records]
    assert ended == [[], [Episode(1, 5, 1)], [Episode(0, 3, 2)], [], [Episode(0, 4, 1), Episode(1, 15, 2)]]
