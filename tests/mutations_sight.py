"""Mistakes in what people and programs see of a run: panel, report, videos, dreams, agents and their export."""

from mutations import Mutation

PANEL, REPORT, TRAINED, EVALUATE, VIDEO, FILMING, DREAM, EXPORT, TRACKERS, RSSM, LOOP, LIBRARY = (
    f"fastdreamer/{name}.py"
    for name in (
        "panel", "report", "trained", "evaluate", "video", "filming", "dream", "export", "trackers", "rssm", "loop",
        "library",
    )
)  # fmt: skip

SHOWS = "test_panel.py::test_it_shows_the_numbers_of_the_run"
LINE = "test_panel.py::test_the_sparkline_holds_the_whole_run_in_means"
SPEEDS = "test_panel.py::test_speeds_are_those_of_the_last_seconds"
NUMBERS = "test_report.py::test_the_page_has_the_numbers_of_its_runs"
BIN = "test_report.py::test_a_bin_is_the_mean_of_what_lies_in_it"
OFFICIAL = "test_report.py::test_the_official_curve_is_that_of_the_task"
SMALL = "test_report.py::test_videos_are_in_the_page_as_long_as_they_are_small"
PLAIN = "test_report.py::test_the_page_asks_for_nothing_and_runs_no_text_of_a_run"
ACTS = "test_trained.py::test_it_acts_as_the_evaluation_of_its_run"
FORGETS = "test_trained.py::test_is_first_forgets_the_carry_where_it_is_set"
BEYOND = "test_trained.py::test_an_evaluation_plays_with_seeds_beyond_those_of_the_training"
EPISODES = "test_video.py::test_a_film_is_of_every_episode_that_counts"
ODD = "test_video.py::test_pictures_keep_their_order_and_odd_sides_get_a_line_of_black"
COLOURS = "test_video.py::test_colours_are_the_newest_three_or_one_thrice"
KEPT = "test_filming.py::test_the_newest_are_kept"
WAITS = "test_filming.py::test_a_film_waits_for_the_one_before"
FAILS = "test_filming.py::test_what_fails_costs_the_film_alone"
ONCE = "test_filming.py::test_a_run_saves_once_for_a_film"
NOW = "test_filming.py::test_a_run_that_is_stopped_does_not_wait"
BEGINS = "test_dream.py::test_a_dream_begins_where_the_observed_states_end"
UNITS = "test_dream.py::test_what_the_decoder_says_is_shown_in_units_of_the_observation"
PICTURES = "test_dream.py::test_the_pictures_are_those_of_the_episode"
PLAYED = "test_dream.py::test_an_episode_is_recorded_as_it_is_played"
KNOWN = "test_dream.py::test_a_known_episode_is_aligned_with_its_dream"
FOLLOWS = "test_dream.py::test_following_actions_is_one_step_after_the_other"
SAME = "test_export.py::test_a_step_is_that_of_a_loaded_agent"
RESETS = "test_export.py::test_the_comparison_has_resets_and_sees_a_policy_that_forgets_none"
BOARD = "test_trackers.py::test_tensorboard_shows_the_numbers"
WANDB = "test_trackers.py::test_wandb_gets_the_numbers_and_goes_on_in_the_same_run"
TOLD = "test_loop.py::test_a_user_is_told_what_the_agent_makes_of_the_spaces"

WATCHED = {
    "sparkline of the first returns": Mutation(PANEL, "self._means[-WIDTH:]", "self._means[:WIDTH]", LINE),
    "means of unequal weight": Mutation(PANEL, "self._each *= 2", "self._each += 1", LINE),
    "speeds since the start": Mutation(PANEL, "self._marks.popleft()", "break", SPEEDS),
    "ratio of updates, not of steps": Mutation(
        PANEL, "did.updates * config.replay.trained_steps / did.steps", "did.updates / did.steps", SHOWS
    ),
    "a bin takes the next one's first value": Mutation(
        REPORT, "np.searchsorted(edges, steps) - 1", 'np.searchsorted(edges, steps, "right") - 1', BIN
    ),
    "episodes counted twice": Mutation(REPORT, 'name == EPISODE and "update" in record', "False", NUMBERS),
    "official curve over frames": Mutation(REPORT, "for row in rows]) / repeat)", "for row in rows]))", OFFICIAL),
    "text of a run ends the script": Mutation(REPORT, 'data.replace("<", "\\\\u003c")', "data", PLAIN),
    "the oldest videos embedded first": Mutation(REPORT, "reversed(kept_folders", "list(kept_folders", SMALL),
    "embedded without a limit": Mutation(REPORT, "and size <= left", "", SMALL),
    "the head of numbers for classes": Mutation(
        LOOP, '"discrete": f"a categorical{mix}"', '"discrete": "a bounded normal"', TOLD
    ),
}
FILMS = {
    "an odd side cut off": Mutation(VIDEO, "((0, height % 2), (0, width % 2), (0, 0))", "((0, 0), (0, width % 2), (0, 0))", ODD, raises=True),
    "the oldest of stacked pictures": Mutation(VIDEO, "images[..., -3:]", "images[..., :3]", COLOURS),
    "one file for all environments": Mutation(VIDEO, "if row not in self._videos:", "if not self._videos:", EPISODES, raises=True),
    "the last picture missing": Mutation(VIDEO, "            self._videos[row].add(picture)\n            if step.is_last[row]:", "            if not step.is_last[row]:\n                self._videos[row].add(picture)\n            if step.is_last[row]:", EPISODES),
    "films episodes that do not count": Mutation(EVALUATE, "[row for row in range(rows) if quota[row]]", "list(range(rows))", EPISODES),
    "evaluated with the seeds of the training": Mutation(EVALUATE, "seed + config.env.num_envs", "seed", BEYOND),
    "keeps the oldest": Mutation(FILMING, "[: -self._kept]", "[self._kept :]", KEPT),
    "films every checkpoint": Mutation(FILMING, "        self._due = False\n", "", KEPT),
    "forgets an evaluation while it films": Mutation(FILMING, "        if not self.wants_checkpoint():\n            return\n        self._due = False", "        due, self._due = self.wants_checkpoint(), False\n        if not due:\n            return", WAITS),
    "saves all the time while it films": Mutation(FILMING, "return self._due and self.look()", "return self._due", ONCE),
    "as urgent as the training": Mutation(FILMING, "process.pid, 19)", "process.pid, 0)", WAITS),
    "the first line of what went wrong": Mutation(FILMING, "lines[-1] if lines", "lines[0] if lines", FAILS),
    "leaves a half of it": Mutation(FILMING, '            shutil.rmtree(self._videos / "making", ignore_errors=True)\n', "", NOW),
}  # fmt: skip
DREAMS = {
    "observes one step less": Mutation(DREAM, "slice(begin + CONTEXT, min(", "slice(begin + CONTEXT - 1, min(", BEGINS),
    "dreams under the actions of the step before": Mutation(
        DREAM, "follow(last, action[:, dreams]", "follow(last, action.roll(1, 1)[:, dreams]", BEGINS
    ),
    "numbers without their symexp": Mutation(
        DREAM, "(value.float().sign() * torch.expm1(value.float().abs())).numpy()", "value.float().numpy()", UNITS
    ),
    "columns in another order": Mutation(
        DREAM, "in (truth, seen, dreamed, error)]", "in (seen, truth, dreamed, error)]", PICTURES
    ),
    "no first action": Mutation(
        DREAM,
        "np.stack([action[key] for action in prev[: len(seen)]])",
        "np.stack([action[key] for action in prev[-len(seen) :]])",
        PLAYED,
    ),
    "filmed after the action": Mutation(
        DREAM,
        "        seen.append(step)\n        watch(step)\n",
        "        watch(seen[-1] if seen else step)\n        seen.append(step)\n",
        KNOWN,
    ),
    "a dream that stands still": Mutation(
        RSSM, "            states.append((deter, stoch))", "            states.append((deter, start.stoch))", FOLLOWS
    ),
}
USED = {
    "noise of the training": Mutation(TRAINED, "(Stream.EVAL_STATE, Stream.EVAL_POLICY)", "(Stream.ACT_STATE, Stream.ACT_POLICY)", ACTS),
    "forgets everything": Mutation(TRAINED, "np.broadcast_to(first, rows).copy()", "np.broadcast_to(first.any(), rows).copy()", FORGETS),
    "exports the raw sample": Mutation(EXPORT, "_executed(self.act[key], value) for", "value for", SAME),
    "compares one long episode": Mutation(EXPORT, "STEPS, EPISODE = 1000, 50", "STEPS, EPISODE = 1000, 1000", RESETS),
    "numbers of a step that is written again": Mutation(TRACKERS, "purge_step=purge", "purge_step=None", BOARD),
    "a new run of W&B whenever it goes on": Mutation(TRACKERS, "        if not file.exists():\n            file", "        file", WANDB),
}  # fmt: skip
